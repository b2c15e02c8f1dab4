"""Versions of what a memory corrects in a student's answers: published by `adapt` of `adaptation.py`, read by whoever answers.

A version is a correction, kept with the collection, and the residuals that belong to it, kept with each point under the names
of student and version. A version is complete before a pointer, also kept with the collection, names it. The version before the
current one stays until another is published, and `roll_back` returns to it. So readers switch between whole versions, and none
weighs one version's residuals over another one's maps. Where the memory's name is an alias, a version names the collection that
the alias stood for when the version was opened.
"""

from typing import NamedTuple

from refbert.config import ReferenceConfig
from refbert.correction import Correction, reader_of
from refbert.errors import InputError
from refbert.memory.manifest import trained_manifest, trained_references
from vector_store.client import Client
from vector_store.config import StoreConfig
from vector_store.errors import CollectionMismatch
from vector_store.schema import Manifest, Parts
from vector_store.store import Store, pinned
from vector_store.versions import CORRECTION_OF


class MemoryVersion(NamedTuple):
    """A version: its collection, what it corrects, its manifest, and how a student asks it."""

    store: StoreConfig
    correction: Correction
    manifest: Manifest
    references: ReferenceConfig

    def parts(self, text: bool = False) -> Parts:
        """Return what a look-up reads of a reference."""
        return Parts(states=False, text=text, vector=True, residual_of=self.correction.reader)


def memory_it_is_of(correction: Correction) -> tuple[str, Manifest, ReferenceConfig]:
    """Return the name, the manifest and the look-up of the memory that a correction is of. Raises InputError for another's."""
    name, saved = correction.reading.get("collection"), correction.reading.get("memory")
    manifest = trained_manifest(saved, "the student's correction")
    references = trained_references(correction.reading.get("references"), "the student's correction")
    if not (name and manifest and references):
        raise InputError("the student's correction does not say which memory it is of; adapt the memory again")
    return name, manifest, references


def current_version(client: Client, store: StoreConfig, student: str) -> MemoryVersion:
    """Return this student's current version in the memory that `store.collection` stands for.

    CollectionMismatch where it holds none, or one of another manifest than its own.
    """
    collection, name = current_name(client, store, student)
    return version_named(client, store.model_copy(update={"collection": collection}), student, name)


def version_named(client: Client, store: StoreConfig, student: str, name: str) -> MemoryVersion:
    """Return this student's version of this name: the current one, or the one before. CollectionMismatch where it is gone."""
    resolved = pinned(client, store)
    memory = Store(client, resolved)
    content = memory.kept(CORRECTION_OF + reader_of(student, name))
    if content is None:
        raise CollectionMismatch(
            f"collection {store.collection!r} has no version {name} of student {student} any more: it was adapted twice since; "
            "start again, what is to be read by one version into another place"
        )
    correction = Correction.from_bytes(content)
    _, manifest, references = memory_it_is_of(correction)
    return MemoryVersion(resolved, correction, memory.require(manifest), references)


def current_name(client: Client, store: StoreConfig, student: str) -> tuple[str, str]:
    """Return the collection that `store.collection` stands for, and its current version's name: in two short calls.

    CollectionMismatch where it has none.
    """
    resolved = pinned(client, store)
    name = version_name(Store(client, resolved), student)
    if name is None:
        raise _not_adapted(store, student)
    return resolved.collection, name


def _not_adapted(store: StoreConfig, student: str) -> CollectionMismatch:
    return CollectionMismatch(
        f"collection {store.collection!r} corrects no answers of student {student}; adapt it to this student: "
        "`python jobs/adapt.py`, or of an index that there is `refbert adopt`"
    )


def version_name(memory: Store, student: str) -> str | None:
    """Return the name of a student's current version; None where it has none."""
    name = memory.kept(CORRECTION_OF + student)
    return None if name is None else name.decode()


def publish_version(memory: Store, correction: Correction) -> None:
    """Make a correction, whose residuals are stored, its student's current one. The one that was current stays; where that
    is the same one, written again, the one before it stays.
    """
    current, others = version_name(memory, correction.student), _versions(memory, correction.student)
    if current != correction.version:
        # First, so that there are two at most: a rollback knows which one to take, whenever this is killed.
        for version in set(others) - {current, correction.version}:
            reader = reader_of(correction.student, version)
            memory.forget(CORRECTION_OF + reader)
            memory.drop_residuals(reader)
    memory.keep(CORRECTION_OF + correction.reader, correction.to_bytes())
    memory.keep(CORRECTION_OF + correction.student, correction.version.encode())


def roll_back(memory: Store, student: str) -> str:
    """Make the version before a student's current one the current one, and return its name. Raises InputError for none."""
    current = version_name(memory, student)
    others = [version for version in _versions(memory, student) if version != current]
    if not others:
        raise InputError(f"student {student} has no version before {current}; adapt the memory again instead")
    memory.keep(CORRECTION_OF + student, others[0].encode())
    return others[0]


def _versions(memory: Store, student: str) -> list[str]:
    """The names of a student's versions that the memory still has."""
    prefix = CORRECTION_OF + reader_of(student, "")
    return [name.removeprefix(prefix) for name in memory.names() if name.startswith(prefix)]
