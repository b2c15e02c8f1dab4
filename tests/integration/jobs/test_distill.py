"""Training on real Ray Train and real DeepSpeed: the same whatever shards it, resumable, and leaving a loadable student."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import UserCallback
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from jobs import distill, evaluate, export
from jobs.config import RunConfig
from jobs.corpus.prepared import prepare
from jobs.memory.neighbour_plan import NeighbourPlan
from jobs.memory.store import running_store
from jobs.run.directory import training_lock
from jobs.run.failures import known_cause
from jobs.training import loop
from refbert.errors import InputError
from refbert.export import read_export
from refbert.teacher import load_teacher, tokenize
from tests.integration.jobs.in_process import compute_in_process
from vector_store.client import connect
from vector_store.store import Store

pytestmark = pytest.mark.usefixtures("home_of_the_run")

TOLERANCE = 2e-5
"""Relative: two gloo workers add the same float32 gradients in another order than one worker does."""


@pytest.fixture
def variant(tiny_run) -> Callable[..., RunConfig]:
    """Make a run like the trained one, but for its name and what else is given."""

    def make(name: str, **changes: Any) -> RunConfig:
        return tiny_run(name=name, references__count=2, **changes)

    return make


def losses(config) -> list[float]:
    lines = (config.run_directory / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert [line["step"] for line in steps] == list(range(1, config.train.steps + 1))
    return [line["train/loss"] for line in steps]


def weights(config) -> dict[str, torch.Tensor]:
    return AutoModel.from_pretrained(config.run_directory / "student").state_dict()


def test_a_run_fills_the_memory_trains_and_leaves_a_complete_directory(trained):
    directory = trained.run_directory
    found = {path.name for path in directory.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "student", "manifest.json"} <= found
    with running_store(trained) as url, connect(trained.store, url) as client:
        assert Store(client, trained.store).count() == prepare(trained).counts.train
    training = json.loads((directory / "manifest.json").read_text())["training"]
    assert training["steps"] == 8
    assert training["examples_per_s"] > 0
    curve = losses(trained)
    assert curve[-1] < curve[0]


def test_the_student_loads_with_auto_classes_and_names_its_memory(trained):
    folder = trained.run_directory / "student"
    student, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert student.config.memory["fingerprint"] == load_teacher(trained.teacher).fingerprint
    texts = ["A short text.", "Another, which is rather longer than that."]
    together = student(**tokenizer(texts, padding=True, return_tensors="pt")).sentence_embedding
    for row, text in enumerate(texts):
        alone = student(**tokenizer([text], return_tensors="pt")).sentence_embedding[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


def test_a_complete_run_is_not_trained_again(trained, caplog):
    before = (trained.run_directory / "metrics.jsonl").read_text()
    caplog.set_level("INFO")
    distill.run(trained)
    assert "is complete" in caplog.text
    assert (trained.run_directory / "metrics.jsonl").read_text() == before


def test_only_one_job_at_a_time_trains_in_a_directory(trained):
    with (
        training_lock(trained.run_directory),
        pytest.raises(InputError, match="another job is training in"),
        training_lock(trained.run_directory),
    ):
        pass
    with training_lock(trained.run_directory):
        pass


def test_a_run_with_the_same_name_and_other_options_is_refused(trained, variant):
    with pytest.raises(InputError, match=r"holds a run with another train\.learning_rate; give another name"):
        distill.run(variant("served", train__learning_rate=0.5))


@pytest.mark.long  # the resumed training has workers and stages too
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_two_workers_with_any_zero_stage_have_the_losses_of_one_worker(trained, variant, zero_stage):
    config = variant(f"two-{zero_stage}", train__num_workers=2, train__zero_stage=zero_stage)
    distill.run(config)
    assert losses(config) == pytest.approx(losses(trained), rel=TOLERANCE)
    ours, alone = (torch.cat([tensor.flatten() for tensor in weights(run).values()]) for run in (config, trained))
    assert (ours - alone).norm() < 1e-3 * alone.norm()  # Adam magnifies the last bit of a gradient near zero


@pytest.mark.usefixtures("process_group")
def test_a_training_resumes_in_the_same_order_on_other_workers_and_zero_stages_and_a_mistake_is_not_retried(
    trained, variant, monkeypatch
):
    """Checkpoints after steps 3 and 6, both amid an epoch; the first two starts end in between, the second by a mistake."""
    submissions = [({}, 4), ({"train__num_workers": 2, "train__zero_stage": 3}, 7), ({"train__zero_stage": 1}, None)]
    read: dict[int, list[list[int]]] = {}
    for submission, (options, mistaken_at) in enumerate(submissions):
        config = variant("mistaken", **options)
        served = config.run_directory / f"served-{submission}"
        served.mkdir(parents=True)
        with monkeypatch.context() as patch:
            if config.train.num_workers == 1:
                compute_in_process(patch)
            watch_workers(patch, served, mistaken_at)
            if mistaken_at:
                with pytest.raises(Exception, match=r"a mistake of the test|Training failed") as raised:
                    distill.run(config)
                assert str(known_cause(raised.value)) == "a mistake of the test"
                assert not (config.run_directory / "student").exists()
            else:
                distill.run(config)
        seen = [json.loads(line) for file in served.iterdir() for line in file.read_text().splitlines()]
        assert min(number for number, _ in seen) == submission * 3 * 4  # step 0, 3, 6 of 4 micro-batches
        assert len(seen) == len(dict(seen)), "it was tried again"
        read |= dict(seen)
    corpus = prepare(trained)
    rows, train = corpus.table("train"), trained.train
    order, tokenizer = (
        loop.training_order(rows, train, trained.seed),
        load_teacher(trained.teacher).tokenizer,
    )
    assert 3 * train.global_batch < rows.num_rows < 6 * train.global_batch
    assert sorted(read) == list(range(train.steps * 4))
    for number, ids in read.items():
        texts = rows["text"].take(order.rows(number)).to_pylist()
        assert ids == tokenize(tokenizer, texts, trained.teacher.tokens)[0].tolist()
    assert losses(config) == pytest.approx(losses(trained), rel=TOLERANCE)


def test_a_killed_worker_and_a_damaged_checkpoint_cost_only_repeated_steps(trained, variant, monkeypatch):
    """Killed with -9 after step 8 of 8 of one start: checkpoints are after 3 and 6, and the newer one is damaged."""
    config = variant("survivor", train__num_workers=2, train__min_workers=1, train__activation_checkpointing=True)
    folder, train_worker = config.run_directory, loop.train_worker

    class Noted(UserCallback):
        def after_report(self, run_context, metrics, checkpoint):
            with (folder / "reported.jsonl").open("a") as file:
                file.write(json.dumps(metrics) + "\n")

    def dies_once(job):
        import os
        import signal

        from jobs.training import loop
        from jobs.training.checkpoint import FILE

        finish = loop.MetricsLogger.finish_step

        def finish_or_die(metrics, *step):
            finish(metrics, *step)
            if metrics.step == 8 and metrics.is_writer and not (folder / "died").exists():
                (folder / "died").touch()
                (folder / "checkpoints" / "step-00000006" / FILE).write_bytes(b"damaged")
                os.kill(os.getpid(), signal.SIGKILL)

        loop.MetricsLogger.finish_step = finish_or_die
        return train_worker(job)

    monkeypatch.setattr(loop, "train_worker", dies_once)
    monkeypatch.setattr(loop, "tune_callbacks", lambda: [Noted()])  # as Tune's own gets them
    distill.run(config)
    assert losses(config) == pytest.approx(losses(trained), rel=TOLERANCE)
    training = json.loads((folder / "manifest.json").read_text())["training"]
    starts = [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]
    assert (folder / "died").exists()
    assert [start["step"] for start in starts] == [0, 3]
    assert training["steps_repeated"] == 5
    assert training["lookups_cached"] == training["lookups_null"] == 0
    assert training["lookups_live"] >= 8 * 64
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    reported = [json.loads(line) for line in (folder / "reported.jsonl").read_text().splitlines()]
    assert {len(workers) for workers in reported} == {2}
    assert reported[-1][0] == logged[-1], "the last logged step is reported, as rank 0 logs it"
    assert {workers[0]["step"] for workers in reported} <= {line["step"] for line in logged}


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_uneven_shares_and_compiled_layers_have_the_losses_of_one_worker(tiny_run):
    """Three micro-batches on two workers: one of them computes one for nothing. So it is after a worker of three is lost."""
    alone = tiny_run(name="three-alone", train__global_batch=48, train__steps=5)
    shared = tiny_run(name="three-shared", train__global_batch=48, train__steps=5, train__compile=True)
    left_over = shared.train.model_copy(
        update={"num_workers": 2}
    )  # what a config cannot ask for, and a failure can leave
    for config in (alone, shared.model_copy(update={"train": left_over})):
        distill.run(config)
    assert losses(shared) == pytest.approx(losses(alone), rel=5 * TOLERANCE)


def watch_workers(patch, served: Path, mistaken_at: int | None) -> None:
    """Have every worker write down the micro-batches that it trains on, and fail once it has made `mistaken_at` steps."""
    train_worker = loop.train_worker
    for owner, name in ((loop.MetricsLogger, "finish_step"), (loop.DistillStream, "__next__")):
        patch.setattr(owner, name, getattr(owner, name))  # so that the tests' own process has them back in the end

    def watched(job):
        from jobs.training import loop

        finish, take = loop.MetricsLogger.finish_step, loop.DistillStream.__next__

        def finish_or_fail(metrics, *step):
            finish(metrics, *step)
            if metrics.step == mistaken_at:
                raise InputError("a mistake of the test")

        def noted(stream):
            number, (batch, targets) = stream.number, take(stream)
            with (served / f"{stream.rank}.jsonl").open("a") as file:
                file.write(json.dumps([number, batch.input_ids.tolist()]) + "\n")
            return batch, targets

        loop.MetricsLogger.finish_step, loop.DistillStream.__next__ = finish_or_fail, noted
        return train_worker(job)

    patch.setattr(loop, "train_worker", watched)


@pytest.mark.usefixtures("in_process")
def test_training_works_in_bf16_with_every_loss_and_a_dense_memory(tiny_run):
    config = tiny_run(
        name="dense-bf16", train__precision="bf16", train__zero_stage=1, train__targets="teacher", train__steps=4,
        loss={
            "hidden": 1, "embedding": 1, "attention": 1, "relation": 1, "contrastive": 1, "layer_map": "uniform",
            "relation_heads": 4, "relation_of": "qkv",
        },
        references={"criterion": "dense", "dense_index": True}, store__collection="dense",
        student__reference_keys="embedding", student__reference_layers="first",
    )  # fmt: skip
    distill.run(config)
    curve = losses(config)
    assert curve[-1] < curve[0]
    assert all(tensor.dtype == torch.float32 for tensor in weights(config).values())
    line = json.loads((config.run_directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["store/live"] >= 4 * 64  # what was looked up ahead is counted too
    assert (config.run_directory / "student" / "word_table.safetensors").exists()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("targets", ["memory", pytest.param("teacher", marks=pytest.mark.long)])
def test_training_with_planned_references_has_the_losses_of_live_look_ups(trained, variant, targets):
    config = variant(f"planned-{targets}", references__plan=True, train__targets=targets)
    distill.run(config)
    assert losses(config) == pytest.approx(losses(trained), rel=TOLERANCE if targets == "memory" else 2e-3)
    (plan,) = (prepare(config).directory / "plans").glob("*.npy")
    assert len(NeighbourPlan(plan)) == prepare(config).counts.train


@pytest.mark.usefixtures("in_process")
def test_targets_from_the_memory_equal_those_of_the_teacher_to_float16(trained, variant):
    config = variant("teacher-targets", train__targets="teacher")
    distill.run(config)
    assert losses(config) == pytest.approx(losses(trained), rel=2e-3)


@pytest.mark.usefixtures("in_process")
def test_a_student_of_a_classification_teacher_is_trained_measured_and_exported(tiny_run):
    config = tiny_run(
        name="predictions", teacher__head="classification", store__collection="classified", train__targets="teacher",
        loss={"hidden": 1, "prediction": 1, "relation": 0}, train__steps=2,
    )  # fmt: skip
    distill.run(config)
    student = AutoModelForSequenceClassification.from_pretrained(config.run_directory / "student")
    assert student.config.num_labels == 2
    evaluate.run(config)
    report = json.loads((config.run_directory / "report.json").read_text())
    assert report["labelled"]["test_texts"] > 0
    export.run(config)
    folder = config.run_directory / "student"
    exported = read_export(folder / "onnx")
    assert exported.outputs == ("logits", "sentence_embedding")
    assert exported.difference < config.export.tolerance
    card = (folder / "README.md").read_text()
    assert f"{report['fidelity']['nearest']['sentence_cosine']:.4f}" in card
    assert f"`{student.config.memory['fingerprint']}`" in card
    assert "train/prediction" in (config.run_directory / "metrics.jsonl").read_text()


@pytest.mark.usefixtures("in_process")
def test_the_control_without_references_needs_no_store(tiny_run):
    config = tiny_run(
        name="vanilla", references__criterion="none", student__reference_mode="none", train__targets="teacher",
        train__steps=2, store={"url": "http://127.0.0.1:9", "write_deadline_s": 1},
    )  # fmt: skip
    distill.run(config)
    assert AutoModel.from_pretrained(config.run_directory / "student").config.memory is None
    evaluate.run(config)
    report = json.loads((config.run_directory / "report.json").read_text())
    assert set(report["fidelity"]) - {"texts", "mutual_information"} == {"null"}
    assert set(report["labelled"]) >= {"teacher", "null", "majority"}
    assert not {"nearest", "random"} & set(report["labelled"])
    assert set(report["speed"]) == {"teacher", "student"}
    assert "| null |" in (config.run_directory / "report.md").read_text()
