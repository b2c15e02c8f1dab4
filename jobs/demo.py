"""The whole pipeline in one command: a student is distilled, meets a domain that it has never seen, and is adapted to it.

    python jobs/demo.py                        what `make demo` runs
    python jobs/demo.py train.steps=200        shorter
    python jobs/demo.py MY_RUN.yaml            on your own corpus and teacher; `demo.corpus.path` names the other domain

Memory, distilled student, its answers on the new domain as more and more of that is stored (and, as a control, those of the
student that was trained on these texts instead), report, and one request to the served student. A second run reuses the memory
and the trained students. A killed run resumes when it is started again. A run without `demo.corpus` meets no new domain: its
student is not adapted.
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

from jobs import adapt, distill, evaluate
from jobs.config import RunConfig
from jobs.corpus.prepared import prepare, texts_in
from jobs.evaluation.documents import show
from jobs.evaluation.report import growth_table, plot_growth, print_tables
from jobs.memory.fill import fill_memory
from jobs.memory.gain import HeldOutTexts
from jobs.memory.store import running_store
from jobs.sections import DemoConfig
from jobs.serve import served
from refbert.atomic import write_whole
from refbert.errors import InputError
from refbert.passages import Text
from refbert.teacher import load_teacher

log = logging.getLogger(__name__)


def check(config: RunConfig) -> None:
    """Raise what jobs/distill.py does before Ray is started."""
    distill.check(config)


def run(config: RunConfig) -> None:
    """Run every stage, then print the tables, one served answer and the report's path."""
    started_s = time.monotonic()
    growth: dict[str, Any] | None = None
    met = config
    with running_store(config) as url:
        log.info("1/5 memory: %s at %s", config.store_directory, url)
        fill_memory(config, url)
        log.info("2/5 distil: %s", config.run_directory)
        distill.run(config)
        if config.demo.corpus:
            met = config.model_copy(update={"corpus": config.demo.corpus})
            log.info("3/5 meet a new domain: %s", met.corpus.path)
            growth = grown(met, config.demo)
        log.info("4/5 evaluate on %s", met.corpus.path)
        evaluate.run(met)
        print_tables(json.loads((config.run_directory / "report.json").read_text()))  # whatever becomes of the service
        if growth:
            show(growth_table(growth))
        log.info("5/5 serve")
        text = next(texts_in(prepare(met).table("heldout")))
        any_port = config.model_copy(
            update={"serve": config.serve.model_copy(update={"port": 0})}
        )  # 8000 is often taken
        with served(any_port) as address:
            answer = ask(f"{address}/v1/embeddings", {"input": [text], "explain": True})
    show_answer(text, answer)
    print(f"\n{time.monotonic() - started_s:.0f} s; report: {config.run_directory / 'report.md'}")


def grown(met: RunConfig, demo: DemoConfig) -> dict[str, Any]:
    """Adapt the run's student to more and more of a domain; return what it gained each time, on the same held-out texts.

    Then train the same student on that domain, as a control, and adapt this one to the whole memory, too. Written to
    growth.json and growth.png of the run.
    """
    file, of = (
        met.run_directory / "growth.json",
        met.digest("seed", "corpus", "teacher", "student", "train", "adapt", "demo"),
    )
    if file.exists() and (before := json.loads(file.read_text()))["of"] == of:
        return before
    corpus = prepare(met)
    heldout = HeldOutTexts(corpus, load_teacher(met.teacher))
    num_texts = corpus.counts.train + corpus.counts.heldout
    steps = []
    for share in demo.shares:
        some = met
        if share < 1:
            fewer = met.corpus.model_copy(update={"max_texts": max(1, round(share * num_texts))})
            some = met.model_copy(update={"corpus": fewer})
        steps.append(adapt.adapted_to_texts(some, heldout))
    if not steps[-1]["heldout"]:
        raise InputError(
            f"memory {met.adapt.collection!r} holds every held-out text of {met.corpus.path} already, so nothing says what it "
            "gains; give the demo another adapt.collection=NAME"
        )
    growth = {"of": of, "texts": round(steps[-1]["heldout"]["texts"]), "steps": steps}
    if demo.trained_steps:
        growth["trained"] = {"steps": demo.trained_steps, **trained_instead(met, demo.trained_steps, heldout)}
    write_whole(file, json.dumps(growth, indent=2))
    plot_growth(growth, met.run_directory / "growth.png")
    return growth


def trained_instead(met: RunConfig, steps: int, heldout: HeldOutTexts) -> dict[str, float]:
    """Train the run's student on a domain's texts, and adapt it to the domain's memory; return the cosines of `GROWTH`."""
    start = str(met.run_directory / "student")
    train = met.train.model_copy(update={"start": start, "steps": steps, "targets": "teacher"})
    control = met.model_copy(update={"name": f"{met.name}-trained", "train": train})
    distill.run(control)
    return adapt.adapted_to_texts(control, heldout, is_filled=True)["heldout"]


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
    vector, others = embedding["embedding"], embedding["further_references"] or []
    read = f"{reference['text']} ({reference['rung']}, score {reference['score']:.2f})" if reference else "nothing"
    print(
        f"asked:      {text}\n"
        f"read:       {read}{f' and {len(others)} more' if others else ''}\n"
        f"answered:   [{', '.join(f'{x:.3f}' for x in vector[:4])}, ...] of {len(vector)}; "
        f"look-up {timing['lookup']:.1f} ms, student {timing['student']:.1f} ms"
    )
