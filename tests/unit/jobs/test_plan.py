"""What `--show` computes of a corpus, and from how much of it."""

import pytest

from jobs import plan
from refbert.memory.manifest import manifest_of


def test_what_a_reference_takes_is_seen_on_a_few_hundred_texts_from_all_that_were_read(tiny_run, tmp_path, monkeypatch):
    lines = [f"text {number}, a short one" for number in range(500)]
    lines += [f"text {number}, a long one with many more words than the others had" for number in range(500)]
    (tmp_path / "sorted.txt").write_text("\n".join(lines))
    corpus = {"path": str(tmp_path / "sorted.txt"), "heldout_fraction": 0.1, "long_texts": "truncate"}
    config = tiny_run(corpus=corpus)
    teacher = plan.teacher_outline(config.teacher)
    made = []
    encode = plan.encode
    monkeypatch.setattr(plan, "encode", lambda point, manifest: made.append(point.text) or encode(point, manifest))

    def stored_bytes():
        made.clear()
        return plan.reference_sample(config, teacher, manifest_of(teacher, config.references)).stored_bytes

    of_some, num_made = stored_bytes(), len(made)
    assert 200 < num_made <= 400
    monkeypatch.setattr(plan, "SAMPLE_POINTS", 1000)
    of_all = stored_bytes()
    assert len(made) == len(set(made)) > 800
    assert of_some == pytest.approx(of_all, rel=0.01)


def test_a_run_that_reads_nothing_from_the_store_is_not_shown_as_if_it_did(tiny_run):
    without = tiny_run(train={"targets": "teacher"}, references={"criterion": "none"})
    assert plan.plan(without)["memory"].endswith("; training reads none of it")
    for reading in (tiny_run(train={"targets": "memory"}, references={"criterion": "none"}), tiny_run()):
        assert "reads none" not in plan.plan(reading)["memory"]
