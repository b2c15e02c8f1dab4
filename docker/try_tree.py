"""Build the Dockerfile's stages without a Docker engine, and run commands in them, to find missing system packages.

    python docker/try_tree.py /tmp/tree                              build the target `cpu`, then check it
    python docker/try_tree.py /tmp/tree -- python jobs/demo.py train.steps=20
    python docker/try_tree.py /tmp/tree --build-arg TORCH_INDEX=     where pip already knows an index with torch for CPUs

Reads docker/Dockerfile: each stage is a folder, in which RUN runs by chroot, as the stage's user, with a clean environment.
The base image is made by debootstrap from the release in its tag. This machine's pip settings (index, constraints,
certificates) are passed on; the folders they name are mounted read-only. Needs root, debootstrap and about 5 GB. A finished
stage is reused until `--fresh`. Supports the instructions that the file uses, and stops at any other.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOST = "/mnt/host"
NO_EFFECT = {"HEALTHCHECK", "CMD", "LABEL", "EXPOSE"}
"""Instructions that do not change files."""

CHECKS = {
    "no compiler": "for tool in cc c++ gcc g++ clang nvcc; do ! command -v $tool || exit 1; done",
    "not root": 'test "$(id -u)" -ne 0 && touch "$REFBERT_HOME/written" && ! touch /opt/refbert/written 2>/dev/null',
    "requirements agree": "pip check",
    "every dependency and module imports": "python -c '{imports}'",
    "the plan of the quickstart": "python jobs/distill.py --show",
}
IMPORTS = """
import importlib, importlib.metadata, pkgutil, re, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
wanted = sum((project["optional-dependencies"][extra] for extra in ("memory", "cluster", "serve")), project["dependencies"])
names = {re.split(r"[\\[<>=~]", line)[0].lower().replace("_", "-") for line in wanted}
modules = sorted(m for m, owners in importlib.metadata.packages_distributions().items()
                 if names & {o.lower().replace("_", "-") for o in owners} and m.isidentifier() and not m.startswith("_"))
own = [found.name for package in ("refbert", "vector_store", "jobs", "cluster")
       for found in pkgutil.walk_packages([package], package + ".") if not found.name.endswith(("__main__", "checkout"))]
for name in (*modules, *own): importlib.import_module(name)
print(len(modules), "modules of", len(names), "dependencies,", len(own), "of our own")
"""


class Instruction(NamedTuple):
    """One line of a Dockerfile, with its continuation lines joined."""

    word: str
    rest: str


@dataclass
class Stage:
    """A named stage: its base and its instructions."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)


@dataclass
class State:
    """Settings of a stage, which later stages based on it inherit."""

    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    folder: str = "/"


def instructions(text: str) -> Iterator[Instruction]:
    """Split a Dockerfile into instructions, without comments, also between continuation lines."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        word, _, rest = line.strip().partition(" ")
        yield Instruction(word.upper(), " ".join(rest.split()) if word.upper() != "RUN" else rest.strip())


def stages(text: str) -> tuple[dict[str, Stage], dict[str, str]]:
    """Return the stages by name in their order, and the arguments before them with their defaults."""
    found: dict[str, Stage] = {}
    arguments: dict[str, str] = {}
    current: Stage | None = None
    for instruction in instructions(text):
        if instruction.word == "FROM":
            base, _, name = re.split(r"\s+", f"{instruction.rest} AS {len(found)}")[:3]
            current = found[name] = Stage(name, base)
        elif current is not None:
            current.instructions.append(instruction)
        else:
            name, _, default = instruction.rest.partition("=")
            arguments[name] = default
    return found, arguments


def filled(text: str, values: dict[str, str]) -> str:
    """Replace $NAME and ${NAME} by their values."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], ""), text)


def context_files(rules: list[str]) -> list[Path]:
    """The files of the checkout that .dockerignore does not exclude: the last matching rule decides."""

    def fits(path: str, rule: str) -> bool:
        if rule.startswith("**/"):
            return any(fnmatch(part, rule[3:]) for part in path.split("/"))
        return rule == "*" or path == rule or path.startswith(f"{rule}/")

    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    kept = []
    for path in listed.stdout.decode().splitlines():
        ignored = False
        for rule in rules:
            if fits(path, rule.removeprefix("!")):
                ignored = not rule.startswith("!")
        if not ignored and (ROOT / path).is_file():
            kept.append(Path(path))
    return kept


def pip_settings() -> dict[str, str]:
    """This machine's pip settings as environment variables."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = re.findall(r"^(?::env:|\w+)\.([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE)
    return {f"PIP_{name.strip('.').upper().replace('-', '_')}": value for name, value in found}


def shown_inside(settings: dict[str, str]) -> tuple[dict[str, str], set[Path]]:
    """The settings for a stage, with paths below HOST, and the paths of this machine to mount there.

    For a folder that serves as an index the parent is mounted: its pages link to files beside it.
    """
    seen = set()

    def moved(word: str) -> str:
        path = Path(word.removeprefix("file://"))
        if not path.is_absolute() or not path.exists():
            return word
        seen.add(path.parent if word.startswith("file://") else path)
        return word.replace(str(path), f"{HOST}{path}", 1)

    return {name: " ".join(map(moved, value.split())) for name, value in settings.items()}, seen


class Builder:
    """Builds stages as folders under `tree`, and runs commands in them."""

    def __init__(self, tree: Path, given: dict[str, str]) -> None:
        self.tree = tree
        self.given = given
        self.stages, defaults = stages(DOCKERFILE.read_text())
        self.global_arguments = defaults | {name: given[name] for name in defaults.keys() & given.keys()}
        self.settings, self.seen = shown_inside(pip_settings())
        self.states: dict[str, State] = {}

    def build(self, name: str) -> State:
        """Build a stage and those it needs, unless they are built; return its settings."""
        if name in self.states:
            return self.states[name]
        stage = self.stages[name]
        base = filled(stage.base, self.global_arguments)
        folder, finished = self.tree / name, self.tree / f"{name}.finished"
        if base in self.stages:
            before = self.build(base)
            state = State(dict(before.environment), {}, before.user, before.folder)
        else:
            state = State()
        is_built = finished.exists()
        if not is_built:
            print(f"== {name}, from {base}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            if base in self.stages:
                subprocess.run(["cp", "-a", self.tree / base, folder], check=True)
            else:
                bootstrap(base, folder)
        for instruction in stage.instructions:
            self.obey(instruction, folder, state, is_built)
        finished.touch()
        self.states[name] = state
        return state

    def obey(self, instruction: Instruction, folder: Path, state: State, is_built: bool) -> None:
        """Execute one instruction; in a stage that is built, only its settings."""
        word, rest = instruction
        values = state.arguments | state.environment
        if word == "ENV":
            for pair in shlex.split(filled(rest, values)):
                name, _, value = pair.partition("=")
                state.environment[name] = value
        elif word == "ARG":
            name, _, default = rest.partition("=")
            state.arguments[name] = self.given.get(name, default)
        elif word == "USER":
            state.user = rest
        elif word == "WORKDIR":
            state.folder = filled(rest, values)
            (folder / state.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "RUN":
            if not is_built:
                print(f"-- {rest[:110]}", flush=True)
                self.run(folder, state, rest, check=True)
        elif word == "COPY":
            self.copy(shlex.split(rest), folder, state, is_built)
        elif word not in NO_EFFECT:
            sys.exit(f"error: {DOCKERFILE.name} has {word} {rest}, which this script does not support; add it")

    def copy(self, words: list[str], folder: Path, state: State, is_built: bool) -> None:
        """COPY from another stage, which is built first, or from the checkout without the files that .dockerignore excludes."""
        source: Path | None = None
        if words[0].startswith("--from="):
            name = words.pop(0).removeprefix("--from=")
            self.build(name)
            source = self.tree / name
        if is_built:
            return
        *sources, target = words
        goal = folder / os.path.normpath(os.path.join(state.folder, target)).lstrip("/")
        if source is not None:
            (path,) = sources
            goal.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", source / path.lstrip("/"), goal], check=True)
            return
        rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
        for path in context_files(rules):
            if sources == ["."] or str(path) in sources:
                (goal / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, goal / path)

    def run(self, folder: Path, state: State, command: str, check: bool = False) -> int:
        """Run a shell command in a stage's folder as its user, in new namespaces that end with it."""
        uid = state.user.split(":")[0]
        passwd = [line.split(":") for line in (folder / "etc/passwd").read_text().splitlines()]
        home = next((line[5] for line in passwd if line[2] == uid), "/")
        environment = {
            "HOME": home,
            "DEBIAN_FRONTEND": "noninteractive",
            **state.arguments,
            **state.environment,
            **self.settings,
        }
        mounts = [
            "mount -t proc proc proc",
            "mount --rbind /dev dev",
            "mount -t tmpfs tmpfs dev/shm",
            "mount --rbind -o ro /sys sys",
        ]
        seen = {Path(name): name for name in ("/etc/resolv.conf", "/etc/hosts")}
        seen |= {path: f"{HOST}{path}" for path in sorted(self.seen)}
        for path, name in seen.items():
            place = folder / name.lstrip("/")
            (place if path.is_dir() else place.parent).mkdir(parents=True, exist_ok=True)
            if not path.is_dir():
                place.touch()
            mounts.append(f"mount --bind -o ro {shlex.quote(str(path.resolve()))} {shlex.quote(str(place))}")
        inside = f"cd {shlex.quote(state.folder)} && {command}"
        variables = [f"{name}={value}" for name, value in environment.items()]
        chroot = shlex.join(
            ["chroot", f"--userspec={state.user}", ".", "/usr/bin/env", "-i", *variables, "/bin/sh", "-c", inside]
        )
        script = " && ".join([*mounts, f"exec {chroot}"])
        ended = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", script], cwd=folder, check=False
        )
        if check and ended.returncode:
            sys.exit(f"error: exit code {ended.returncode} of: {command}")
        return ended.returncode


def bootstrap(image: str, folder: Path) -> None:
    """Create the files of a Debian image, from the release in its tag."""
    release = re.match(r"debian:(\w+)", image)
    if release is None:
        sys.exit(f"error: the base is {image}; this script supports only Debian, debian:RELEASE-...")
    subprocess.run(["debootstrap", "--variant=minbase", release[1], folder], check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    """Build, then run the given command or every check."""
    parser = argparse.ArgumentParser(
        usage="python docker/try_tree.py TREE [options] [-- COMMAND ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tree", type=Path, help="folder for the stages")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--fresh", action="store_true", help="build again what is there")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    given, command = parser.parse_args(words[:end]), words[end + 1 :]
    if os.geteuid() or not shutil.which("debootstrap"):
        print("error: needs root and debootstrap (`apt install debootstrap`)", file=sys.stderr)
        return 3
    given.tree.mkdir(parents=True, exist_ok=True)
    builder = Builder(given.tree.absolute(), dict(pair.split("=", 1) for pair in given.build_arg))
    if given.target not in builder.stages:
        print(f"error: no target {given.target}; there are {', '.join(builder.stages)}", file=sys.stderr)
        return 2
    if given.fresh:
        for finished in given.tree.glob("*.finished"):
            finished.unlink()
    state = builder.build(given.target)
    folder = builder.tree / given.target
    if command:
        return builder.run(folder, state, shlex.join(command))
    failed = 0
    for name, command in CHECKS.items():
        print(f"== {name}", flush=True)
        failed += builder.run(folder, state, command.replace("{imports}", IMPORTS)) != 0
    print("every check passed" if not failed else f"{failed} of {len(CHECKS)} checks failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
