"""Kill -9 of the ingest job, Ray and all: started again it ends with exactly the memory that an undisturbed run makes.

The long form kills 20 times during a load of 20,000 references, the short one once: each start of the job costs 20 seconds.
In the short one the tests' own process finishes the load, and the teacher says what an undisturbed run stores.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from jobs import ingest
from jobs.config import RunConfig
from jobs.corpus.prepared import prepare
from refbert.memory.texts import reference_id
from refbert.teacher import load_teacher
from tests.chaos.faults import kill_server, kill_session, scrolled_ids, wait_until
from tests.chaos.load import REPOSITORY
from tests.integration.jobs.in_process import compute_in_process
from vector_store.client import connect
from vector_store.errors import CollectionMissing, StoreUnavailable
from vector_store.schema import Parts
from vector_store.server.access import with_directory
from vector_store.server.process import embedded_server
from vector_store.store import Store


class Kept(NamedTuple):
    """One text of a memory."""

    text: str | None
    states: NDArray[np.float16]


@pytest.mark.timeout(3600)
def test_an_ingest_killed_at_random_moments_ends_with_the_memory_of_an_undisturbed_one(
    ray_cluster, tmp_path, tiny_run, is_long, moments, monkeypatch
):
    # The last kill is not near the end: by the next look at the store the load must not be over.
    num_kills, last_kill, load, batch, max_texts = (
        (20, 18_000, 20_000, 64, None) if is_long else (1, 500, 1000, 16, 1200)
    )
    config = tiny_run(corpus__max_texts=max_texts, corpus__heldout_fraction=0.05, ingest__batch=batch)
    home = tmp_path / "killed"
    monkeypatch.setenv("REFBERT_HOME", str(home))
    kill_at = sorted(moments.sample(range(1, last_kill), num_kills))
    print(f"kill when stored: {kill_at}")

    if not is_long:
        prepare(config)  # in the tests' own Ray: the job that is killed has it at its start
    if is_long:  # killed once before anything is stored: Ray starts, or the corpus is read
        job = start(home, config)
        time.sleep(moments.uniform(2, 15))
        kill_session(job.pid)
        job.wait()
    seen = []
    for turn, moment in enumerate(kill_at):
        before = num_stored(home, config)
        job = start(home, config)
        wait_until(
            lambda moment=moment, before=before, job=job: (
                job.poll() is not None or num_stored(home, config) >= max(moment, before + 1)
            ),
            f"{moment} references are stored",
        )
        assert job.poll() is None, f"the job ended before it was killed:\n{printed(home)}"
        seen.append(num_stored(home, config))
        kill_session(job.pid)
        job.wait()
        if turn % 2:  # its store is a process of its own, and outlives the job by seconds
            kill_server(home / "store")
    if is_long:
        finish(home, config)
    else:
        with monkeypatch.context() as patch:
            compute_in_process(patch)
            ingest.run(config)

    teacher = load_teacher(config.teacher)
    texts = prepare(config).table("train")["text"].to_pylist()
    wanted = {reference_id(teacher.fingerprint, text): text for text in texts}
    if is_long:
        monkeypatch.setenv("REFBERT_HOME", str(tmp_path / "undisturbed"))
        ingest.run(config)  # in the tests' own Ray, which saves a start
        undisturbed, _ = memory_of(tmp_path / "undisturbed", config, list(wanted))
    else:  # what it would hold: tests/integration/jobs/test_ingest.py
        encoded = zip(wanted.items(), teacher.encode_texts(list(wanted.values())), strict=True)
        undisturbed = {i: Kept(text, states) for (i, text), (_, states) in encoded}
    found, met = memory_of(home, config, list(wanted))
    lost, duplicated = wanted.keys() - found.keys(), met.total() - len(met)
    apart = max(float(np.abs(found[i].states.astype(np.float32) - undisturbed[i].states).max()) for i in found)
    print(
        f"kills={len(kill_at)} (stored at each: {seen}) texts={len(texts)} distinct={len(wanted)} lost={len(lost)} "
        f"duplicated={duplicated} strange={len(met.keys() - wanted.keys())} largest difference of a state={apart:.2e}"
    )
    assert len(wanted) >= load
    assert not lost
    assert not duplicated
    assert met.keys() == wanted.keys() == undisturbed.keys()
    assert all(found[i].text == wanted[i] for i in wanted)
    # Which texts share a batch decides about padding, and so about the last bit of a half-precision state.
    assert all(found[i].states.shape == undisturbed[i].states.shape for i in wanted)
    assert apart < 5e-3


def start(home: Path, config: RunConfig) -> subprocess.Popen:
    """The job as a user starts it, in a session of its own with a local Ray of its own."""
    home.mkdir(exist_ok=True)
    (home / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with open(home / "job.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, REPOSITORY / "jobs" / "ingest.py", "run.yaml"],
            env={**environment, "REFBERT_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}, cwd=home,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def finish(home: Path, config: RunConfig) -> None:
    job = start(home, config)
    try:
        assert job.wait(timeout=600) == 0, printed(home)
    finally:
        kill_session(job.pid)


def printed(home: Path) -> str:
    return (home / "job.log").read_text()[-4000:]


def num_stored(home: Path, config: RunConfig) -> int:
    """How many references the running store of this home holds; 0 while there is none."""
    try:
        plain = json.loads((home / "store" / "address.json").read_text())["url"]
    except FileNotFoundError:
        return 0
    url = with_directory(plain, home / "store")
    impatient = config.store.model_copy(update={"write_deadline_s": 1.0})
    with connect(impatient, url) as client:
        try:
            return Store(client, impatient).count()
        except (CollectionMissing, StoreUnavailable):
            return 0


def memory_of(home: Path, config: RunConfig, ids: list[str]) -> tuple[dict[str, Kept], Counter[str]]:
    """Those of the ids that are stored, with text and states, and how often a scroll meets every id."""
    with embedded_server(home / "store") as url, connect(config.store, url) as client:
        store = Store(client, config.store)
        kept = {}
        for start_row in range(0, len(ids), 500):
            page = store.fetch(ids[start_row : start_row + 500], Parts(text=True))
            for row, found in enumerate(page.ids):
                if found:
                    kept[found[0]] = Kept(page.texts[row][0], page.states[row][page.mask[row]])
        met = Counter(scrolled_ids(client, config.store.collection))
        assert store.count() == len(met)
        return kept, met
