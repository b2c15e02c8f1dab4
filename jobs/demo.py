"""The whole pipeline in one command: corpus, memory, distilled student, report, and one request to the served student.

    python jobs/demo.py                        what `make demo` runs
    python jobs/demo.py train.steps=200        shorter
    python jobs/demo.py MY_RUN.yaml            on your own corpus and teacher

A second run reuses the memory and the trained student. A killed run resumes when it is started again.
"""

if __name__ == "__main__":
    import checkout  # noqa: F401  # the checkout is on the path from here on

    from jobs.launch import launch

    launch("jobs.demo", __doc__)  # before what follows is imported, which takes seconds

import json
import logging
import time
import urllib.request
from typing import Any

from jobs import distill, evaluate
from jobs.config import RunConfig
from jobs.corpus.prepared import prepare, texts_in
from jobs.evaluation.report import print_tables
from jobs.memory.fill import fill_memory
from jobs.memory.store import running_store
from jobs.serve import served
from refbert.corpus import Text

log = logging.getLogger(__name__)


def run(config: RunConfig) -> None:
    """Run every stage, then print the tables, one served answer and the report's path."""
    started_s = time.monotonic()
    with running_store(config) as url:
        log.info("1/4 memory: %s at %s", config.store_directory, url)
        fill_memory(config, url)
        log.info("2/4 distil: %s", config.run_directory)
        distill.run(config)
        log.info("3/4 evaluate")
        evaluate.run(config)
        print_tables(json.loads((config.run_directory / "report.json").read_text()))  # whatever becomes of the service
        log.info("4/4 serve")
        text = next(texts_in(prepare(config).table("heldout")))
        any_port = config.model_copy(
            update={"serve": config.serve.model_copy(update={"port": 0})}
        )  # 8000 is often taken
        with served(any_port) as address:
            answer = ask(f"{address}/v1/embeddings", {"input": [text], "explain": True})
    show_answer(text, answer)
    print(f"\n{time.monotonic() - started_s:.0f} s; report: {config.run_directory / 'report.md'}")


def ask(address: str, request: dict[str, Any]) -> dict[str, Any]:
    """POST one JSON request and return the JSON answer."""
    post = urllib.request.Request(
        address, json.dumps(request).encode(), {"content-type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(post, timeout=60) as response:
        return json.loads(response.read())


def show_answer(text: Text, answer: dict[str, Any]) -> None:
    """Print the text, the reference that it read, and the start of its vector."""
    embedding = answer["data"][0]
    reference, timing = embedding["reference"], answer["timing_ms"]
    vector = embedding["embedding"]
    print(
        f"asked:      {text}\n"
        f"read:       {reference['text']} ({reference['rung']}, score {reference['score']:.2f})\n"
        f"answered:   [{', '.join(f'{x:.3f}' for x in vector[:4])}, ...] of {len(vector)}; "
        f"look-up {timing['lookup']:.1f} ms, student {timing['student']:.1f} ms"
    )
