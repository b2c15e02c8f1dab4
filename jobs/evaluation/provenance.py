"""Where a figure comes from: commit, versions, hardware, and how long it took."""

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "transformers", "ray", "deepspeed", "qdrant-client", "qdrant-edge-py", "pyarrow", "numpy")


def provenance(started_s: float) -> dict[str, Any]:
    """Return commit, versions and the seconds since `started_s`, a monotonic time."""
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in LIBRARIES},
        "seconds": round(time.monotonic() - started_s, 1),
    }


def commit() -> str:
    """Return the commit of the code that runs, with `-dirty` where it was changed.

    REFBERT_COMMIT, then git where this file lies, then git where the package was installed from: `ray job submit
    --working-dir` copies the code to a place without .git.
    """
    if given := os.environ.get("REFBERT_COMMIT"):
        return given
    for folder in (Path(__file__).parent, _installed_from()):
        if folder and (described := _git(folder, "rev-parse", "HEAD")):
            return described + ("-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    return "unknown"


def hardware() -> str:
    """Return the machine in words."""
    model = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        names = [line.split(":", 1)[1].strip() for line in cpu_info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} x {model}, {memory_gb:.0f} GB" + "".join(f", {gpu}" for gpu in gpus)


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _installed_from() -> Path | None:
    try:
        origin = importlib.metadata.distribution("refbert").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    url = json.loads(origin or "{}").get("url", "")
    return Path(url.removeprefix("file://")) if url.startswith("file://") else None
