"""Versions of a memory behind one alias that readers use: promote a version, and roll back.

Each version is a collection. The served collection's metadata records which one the alias named before, so every machine can
roll back. A version that readers of the served one would refuse, by its manifest or for lack of a student's correction, is not
promoted without `other_teacher`. Reads no references.
"""

from typing import NamedTuple

from vector_store.client import Client
from vector_store.config import StoreConfig
from vector_store.errors import CollectionMismatch, CollectionMissing, StoreError, StoreUnavailable
from vector_store.protocol import api
from vector_store.schema import Manifest
from vector_store.store import Store, aliases, collection_names, settle

PREVIOUS_OF = "previous_of:"
"""Metadata key, followed by the alias. Its value is empty for a first version: metadata cannot be deleted."""


CORRECTION_OF = "correction_"
"""Name under which a collection keeps which version of its corrections a student reads, followed by the student's fingerprint;
and, followed by that, `_` and the version, the correction itself. Who adapts a memory writes both."""


class Version(NamedTuple):
    """An alias with its collection, and the collection that it named before, if any.

    `away` says why the collection, which knows what was before it, cannot be read.
    """

    alias: str
    collection: str
    previous: str | None
    away: str | None = None


def versions(client: Client, config: StoreConfig) -> list[Version]:
    """List every alias at the client's address, by name."""
    return [
        _described(client, config, alias, collection)
        for alias, collection in sorted(aliases(client, config.write_deadline_s).items())
    ]


def _described(client: Client, config: StoreConfig, alias: str, collection: str) -> Version:
    try:
        return Version(alias, collection, _previous(client, config, alias, collection))
    except StoreUnavailable as error:  # one collection that is away does not hide the other aliases
        return Version(alias, collection, None, str(error))


def promote(client: Client, config: StoreConfig, alias: str, collection: str, other_teacher: bool = False) -> Version:
    """Switch the alias to this collection; every look-up reads either the old version or the new one.

    CollectionMissing where the collection does not exist. CollectionMismatch where it has no manifest or, unless
    `other_teacher`, running readers of the version now served would refuse it. StoreError where the alias is a collection's
    name, StoreUnavailable where it is not known whether the alias was switched: promote again then.
    """
    names = collection_names(client)
    if collection not in names:
        raise CollectionMissing(
            f"cannot promote {collection!r}: {client.url} has no such collection, it has {', '.join(names) or 'none'}"
        )
    if alias in names:
        raise StoreError(f"{alias!r} is a collection at {client.url}, not an alias; choose a name that is free")
    served = aliases(client, config.write_deadline_s).get(alias)
    if served == collection:
        return Version(alias, collection, _previous(client, config, alias, collection))
    new = _store(client, config, collection)
    manifest = new.manifest()
    if served and not other_teacher:
        _require_readable(new, manifest, _store(client, config, served), alias)
    # Before the switch, so that the new version can be rolled back from the moment it is served.
    _store(client, config, collection).merge_metadata({PREVIOUS_OF + alias: api.Value(string_value=served or "")})
    _switch(client, config, alias, served, collection, "promote again: that is safe")
    return Version(alias, collection, served)


def rollback(client: Client, config: StoreConfig, alias: str) -> Version:
    """Switch the alias to the version before the one it names; each further rollback goes one version back.

    It goes back whatever that one is, since its readers were there before. StoreUnavailable where it is not known whether the
    alias was switched: look which one it names before another rollback.
    """
    served = aliases(client, config.write_deadline_s).get(alias)
    if served is None:
        raise StoreError(f"{client.url} has no alias {alias!r}; see `python -m vector_store aliases`")
    previous = _previous(client, config, alias, served)
    if previous is None:
        raise StoreError(f"{alias!r} names its first version {served!r}: there is none before it to roll back to")
    if previous not in collection_names(client):
        raise CollectionMissing(
            f"{alias!r} named {previous!r} before {served!r}, and that collection is gone; promote another one"
        )
    advice = f"and roll back again only where {alias!r} still names {served!r}"
    _switch(client, config, alias, served, previous, advice)
    return Version(alias, previous, _previous(client, config, alias, previous))


def _require_readable(new: Store, manifest: Manifest, old: Store, alias: str) -> None:
    """CollectionMismatch where what readers of the old version compare differs: the manifest, or what corrects them."""
    before = old.raw_manifest()
    differing = [
        name for name in Manifest.model_fields if name != "encoder" and before.get(name) != getattr(manifest, name)
    ]
    has, had = new.config.collection, old.config.collection
    remedy = f"readers of {alias!r} would refuse it; promote it with --other-teacher, and start them again with students of it"
    if differing:
        found, wanted = (
            ", ".join(f"{name}={values.get(name)!r}" for name in differing)
            for values in (manifest.model_dump(), before)
        )
        raise CollectionMismatch(f"{has!r} was written with {found}, and {had!r}, now served, with {wanted}: {remedy}")
    if lacking := sorted(_corrected(old) - _corrected(new)):
        raise CollectionMismatch(
            f"{has!r} corrects no answers of student {', '.join(lacking)}, and {had!r}, now served, does: {remedy}, or adapt "
            "it to that student before (`python jobs/adapt.py`)"
        )


def _corrected(store: Store) -> set[str]:
    """The students whose answers a collection corrects."""
    names = {name.removeprefix(CORRECTION_OF) for name in store.names() if name.startswith(CORRECTION_OF)}
    current = {name: (store.kept(CORRECTION_OF + name) or b"").decode() for name in names if "_" not in name}
    return {student for student, version in current.items() if f"{student}_{version}" in names}


def _switch(client: Client, config: StoreConfig, alias: str, served: str | None, collection: str, advice: str) -> None:
    # A single request, so that no reader finds the alias missing.
    request = api.ChangeAliases()
    if served:
        request.actions.add().delete_alias.alias_name = alias
    created = request.actions.add().create_alias
    created.alias_name, created.collection_name = alias, collection
    settle(
        lambda: client.call(client.collections.UpdateAliases, request, config.write_deadline_s),
        lambda: aliases(client, config.write_deadline_s).get(alias) == collection,
        f"switching {alias!r} to {collection!r}",
        advice,
    )


def _previous(client: Client, config: StoreConfig, alias: str, collection: str) -> str | None:
    remembered = _store(client, config, collection).metadata().get(PREVIOUS_OF + alias)
    return (remembered.string_value or None) if remembered else None


def _store(client: Client, config: StoreConfig, collection: str) -> Store:
    return Store(client, config.model_copy(update={"collection": collection}))
