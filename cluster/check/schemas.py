"""Validate documents by Kubernetes' schemas, by those that are built from custom_resources.yaml, or by one that is given.

Each check returns lines that say where the document is wrong, and how.
"""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry, Resource

KUBERNETES = "1.37"
"""The version whose schemas are used; the manifests keep to what 1.27 has (unhealthyPodEvictionPolicy is not used)."""

DEFINITIONS = "https://kubernetes.io/api/_definitions.json"
PREFIXES = {"core": "io.k8s.api.", "meta": "io.k8s.apimachinery.pkg.apis."}
SIMPLE: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "quantity": {"type": "string", "pattern": r"^\d+(Mi|Gi|Ti)$"},
    "any": {},
    "map": {"type": "object", "additionalProperties": {"type": "string"}},
}


def kubernetes_mistakes(document: dict[str, Any]) -> list[str]:
    """Check a resource of Kubernetes itself; an unknown field is a mistake."""
    group, _, version = document["apiVersion"].rpartition("/")
    name = "-".join(part for part in (document["kind"].lower(), group.split(".")[0], version) if part)
    file = _schemas() / f"{name}.json"
    if not file.is_file():
        return [f"Kubernetes {KUBERNETES} has no {document['kind']} of {document['apiVersion']}"]
    return mistakes(json.loads(file.read_text()), document)


def custom_mistakes(kind: str, document: dict[str, Any]) -> list[str]:
    """Check a resource, or chart values, of a type of custom_resources.yaml."""
    schema = custom_schema(kind)
    if schema is None:
        return [f"{kind} is not described in cluster/check/custom_resources.yaml: add it, from its reference"]
    return mistakes(schema, document)


@cache
def custom_schema(kind: str) -> dict[str, Any] | None:
    """The JSON schema of a type of custom_resources.yaml; one with a spec has apiVersion, kind and metadata too."""
    types = yaml.safe_load(Path(__file__).with_name("custom_resources.yaml").read_text())
    if kind not in types:
        return None
    schema = _object(types[kind])
    if any(field.rstrip("!") == "spec" for field in types[kind]):
        schema["properties"] |= {
            "apiVersion": SIMPLE["string"],
            "kind": SIMPLE["string"],
            "metadata": _type("meta.v1.ObjectMeta"),
        }
        schema["required"] += ["apiVersion", "kind", "metadata"]
    others = {name: _type(fields) for name, fields in types.items() if name != kind}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": others, **schema}


def mistakes(schema: dict[str, Any], document: Any) -> list[str]:
    """Every violation of the schema by a document: where, and what."""
    validator = jsonschema.Draft202012Validator(schema, registry=_registry())
    found = sorted(validator.iter_errors(document), key=lambda error: list(map(str, error.absolute_path)))
    return [f"{'.'.join(map(str, error.absolute_path)) or 'the document'}: {_short(error)}" for error in found]


def _short(error: jsonschema.ValidationError) -> str:
    """The most specific cause, shortened where the message would contain a whole document."""
    deepest = jsonschema.exceptions.best_match([error])
    message = (deepest or error).message
    return message if len(message) < 300 else f"...{message[-300:]}"


def _object(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name.rstrip("!"): _type(wanted) for name, wanted in fields.items()},
        "required": [name.rstrip("!") for name in fields if name.endswith("!")],
        "additionalProperties": False,
    }


def _type(wanted: Any) -> dict[str, Any]:
    if isinstance(wanted, dict):
        return _object(wanted)
    if isinstance(wanted, list):
        return {"type": "array", "items": _type(wanted[0])}
    if wanted in SIMPLE:
        return SIMPLE[wanted]
    if "|" in wanted:
        return {"enum": wanted.split("|")}
    if "." in wanted:
        return {"$ref": f"{DEFINITIONS}#/$defs/{PREFIXES[wanted.split('.')[0]]}{wanted}"}
    return {"$ref": f"#/$defs/{wanted}"}


def _schemas() -> Path:
    found = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"
    return Path(str(found))


@cache
def _registry() -> Registry[Any]:
    definitions = json.loads((_schemas() / "_definitions.json").read_text())
    return Resource.from_contents(definitions) @ Registry()
