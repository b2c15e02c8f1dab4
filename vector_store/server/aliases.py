"""Aliases: further names of collections. Readers use an alias, and the collection behind it can be replaced.

    <root>/aliases.json    {alias: collection}

The file is replaced as a whole, so a list of changes takes effect completely or not at all. A damaged one is kept under another
name when it is replaced; until then no name is taken for an alias. Knows only names; the catalogue knows which of them are
collections.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc

from vector_store.atomic import write_whole
from vector_store.protocol import api
from vector_store.server.status import CollectionNotFoundError, DamagedError, StatusError, already_exists, invalid

log = logging.getLogger(__name__)


class Aliases:
    """The aliases of one root. Reading needs no lock; the caller serializes changes."""

    def __init__(self, root: Path) -> None:
        self._path = root / "aliases.json"
        self._targets: dict[str, str] = {}
        self._damage = ""
        try:
            targets = json.loads(self._path.read_text(encoding="utf-8"))
            if not isinstance(targets, dict) or not all(isinstance(target, str) for target in targets.values()):
                raise ValueError("no names of collections by alias")
            self._targets = targets
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            self._damage = f"{self._path} cannot be read ({error}), so no alias is known"
            log.error("%s; put back a copy of it, or name the collections' aliases again", self._damage)

    def __contains__(self, name: str) -> bool:
        return name in self._targets

    def require_readable(self) -> None:
        """DamagedError where the file of aliases is damaged: a name that is no collection's may be an alias."""
        if self._damage:
            raise DamagedError(f"{self._damage}; put back a copy of it, or promote each alias again")

    def resolve(self, name: str) -> str:
        """The collection behind an alias; any other name unchanged."""
        return self._targets.get(name, name)

    def pairs(self) -> list[tuple[str, str]]:
        """Aliases with their collections, sorted."""
        return sorted(self._targets.items())

    def change(self, actions: Iterable[api.AliasOperations], is_collection: Callable[[str], bool]) -> None:
        """Apply all actions in order, or none: StatusError where one of them is invalid."""
        targets = dict(self._targets)
        for action in actions:
            match action.WhichOneof("action"):
                case "create_alias":
                    collection, alias = action.create_alias.collection_name, action.create_alias.alias_name
                    if not is_collection(collection):
                        raise CollectionNotFoundError(collection)
                    _require_free(alias, is_collection)
                    targets[alias] = collection
                case "rename_alias":
                    old, new = action.rename_alias.old_alias_name, action.rename_alias.new_alias_name
                    if old not in targets:
                        raise StatusError(grpc.StatusCode.NOT_FOUND, f"Not found: Alias {old} does not exists!")
                    _require_free(new, is_collection)
                    targets[new] = targets.pop(old)
                case "delete_alias":
                    targets.pop(action.delete_alias.alias_name, None)
                case _:
                    raise invalid("an alias operation has no action")
        self._replace(targets)

    def forget(self, collection: str) -> None:
        """Delete every alias of a collection."""
        self._replace({alias: target for alias, target in self._targets.items() if target != collection})

    def _replace(self, targets: dict[str, str]) -> None:
        if targets != self._targets:
            if self._damage:
                os.replace(self._path, self._path.with_name(self._path.name + ".damaged"))
                self._damage = ""
            write_whole(self._path, json.dumps(targets, indent=2))
            self._targets = targets


def _require_free(alias: str, is_collection: Callable[[str], bool]) -> None:
    if not alias:
        raise invalid("an alias needs a name")
    if is_collection(alias):
        raise already_exists(alias)
