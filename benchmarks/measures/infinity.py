"""The service beside infinity-emb and sentence-transformers with the teacher, which need transformers 4: in an environment of
their own.
"""

import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.config import RunConfig
from measures.goals import Goal, Part, Rows
from measures.service import BATCH, http_load, rate, row, running, some_texts
from refbert.packaged import local_path
from refbert.passages import Text

REQUIREMENTS = ["infinity-emb[torch,server]==0.0.78", "transformers<5"]

LOOP = """
import json, sys, time
from sentence_transformers import SentenceTransformer
given = json.load(sys.stdin)
model = SentenceTransformer(given["model"], device="cpu")
model.max_seq_length = given["tokens"]
count, texts = 0, given["texts"]
model.encode(texts[:32], batch_size=32)
started_s = time.perf_counter()
while time.perf_counter() - started_s < given["seconds"]:
    start = count % (len(texts) - 31)
    model.encode(texts[start : start + 32], batch_size=32, normalize_embeddings=True)
    count += 32
print(count / (time.perf_counter() - started_s))
"""

START_S = 300.0


def measure(config: RunConfig, quick: bool, environment: Path, teacher: str | None) -> Part:
    """The service, infinity with the teacher, and sentence-transformers in a loop, in turns."""
    model = teacher or local_path(config.teacher.model)
    seconds, turns = (3.0, 1) if quick else (15.0, 3)
    texts: list[Any] = [text for text in some_texts(config) if isinstance(text, str)]
    make_environment(environment)
    sides: dict[str, Callable[[], float]] = {}
    loads: dict[tuple[str, int], list] = {}

    with running(config) as (address, _, _), infinity(environment, model) as other:
        for name, at, path, served_as in (
            ("service", address, "/v1/embeddings", "any"),
            ("infinity-emb, teacher", other, "/embeddings", "teacher"),
        ):
            for size in (1, BATCH):
                loads[name, size] = []

                def ask(
                    name: str = name, at: str = at, path: str = path, size: int = size, served_as: str = served_as
                ) -> float:
                    load = http_load(at, texts, 64 if size == 1 else 8, size, seconds, path, served_as)
                    loads[name, size].append(load)
                    return rate(load) * size

                sides[f"{name}, {size}"] = ask
        sides["loop"] = lambda: looped(environment, model, texts, seconds, config.teacher.tokens)
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(turns):
            for side in sides if turn % 2 == 0 else reversed(sides):
                rates[side].append(sides[side]())
    rows: Rows = [row(name, 64 if size == 1 else 8, size, found) for (name, size), found in loads.items()]
    rows.append(
        {
            "contender": "sentence-transformers, teacher, loop",
            "texts_per_request": BATCH,
            "texts_per_s": statistics.median(rates["loop"]),
        }
    )
    ratio = statistics.median(
        a / b for a, b in zip(rates[f"service, {BATCH}"], rates[f"infinity-emb, teacher, {BATCH}"], strict=True)
    )
    is_mpnet = "all-mpnet-base-v2" in str(model)
    goals = [Goal("serve_over_infinity_all_mpnet_base_v2", ratio, 5.0, ">=")] if is_mpnet else []
    note = (
        f"Teacher: {Path(str(model)).name}. 64 clients of single texts, 8 of batches of {BATCH}; all sides in turns, on the "
        f"same texts. infinity-emb {REQUIREMENTS[0].rpartition('=')[2]} on torch, its own defaults but the device; it reads "
        "texts as far as its model does, the service as far as the run's teacher.tokens. "
        f"Service over infinity at batches of {BATCH}: {ratio:.2f}."
    )
    return Part(rows, goals, note, {"run": config.name, "teacher": str(model), "quick": quick, "seconds": seconds})


def make_environment(folder: Path) -> None:
    """Make a virtual environment with infinity-emb, unless it is there."""
    if (folder / "bin" / "infinity_emb").exists():
        return
    print(f"making {folder} with {', '.join(REQUIREMENTS)}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin" / "pip"), "install", "-q", *REQUIREMENTS], check=True)


@contextmanager
def infinity(environment: Path, model: str) -> Iterator[str]:
    """Serve a model by infinity and yield the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(environment / "bin" / "infinity_emb"), "v2", "--model-id", str(model), "--served-model-name", "teacher",
        "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--engine", "torch", "--log-level", "error",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_S
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=2):
                    break
            except OSError as error:
                if process.poll() is not None:
                    assert process.stderr
                    raise RuntimeError(f"infinity ended: {process.stderr.read()[-2000:]}") from error
                if time.monotonic() > deadline:
                    raise RuntimeError(f"infinity did not answer within {START_S:g} s") from error
                time.sleep(0.5)
        yield address
    finally:
        process.kill()  # it has nothing to save, and at its start does not hear of an end
        process.wait()


def looped(environment: Path, model: str, texts: list[Text], seconds: float, tokens: int) -> float:
    """Texts per second of sentence-transformers, batches of 32 one after the other."""
    given = {"model": str(model), "texts": texts, "seconds": seconds, "tokens": tokens}
    command = [str(environment / "bin" / "python"), "-c", LOOP]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])
