"""An ablation from the task's files to its report, on real Ray and a real memory: small, but every step of it."""

import json

import numpy as np
import pytest

import refbert
from jobs import ablate
from jobs.memory.neighbour_plan import NeighbourPlan
from jobs.memory.store import running_store
from jobs.tasks.corpus import NEAR_DUPLICATE, augmented, example_text, prepare_task
from jobs.tasks.student import RESULT
from jobs.tasks.teacher import task_teacher
from refbert.answers import Mixing
from refbert.errors import InputError
from refbert.memory.explanation import explained
from refbert.memory.texts import reference_id
from refbert.teacher import load_teacher
from tests.integration.jobs.in_process import compute_in_process
from vector_store.client import connect
from vector_store.store import Store

pytestmark = [pytest.mark.usefixtures("ray_cluster")]

WORDS = np.array(["good", "bad", "film", "actor", "plot", "long", "short", "music", "scene", "end", "story", "light"])


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory):
    """Pairs that are `same` where their first words are; two training rows repeat a development row."""
    folder = tmp_path_factory.mktemp("task")
    rng = np.random.default_rng(0)

    def rows(count: int) -> list[dict]:
        texts = [[" ".join(rng.choice(WORDS, 9)) for _ in range(2)] for _ in range(count)]
        return [
            {"text": text, "text_pair": pair, "label": "same" if text[0] == pair[0] else "other"}
            for text, pair in texts
        ]

    train, dev = rows(48), rows(12)
    train += [dev[0], {**dev[1], "text": dev[1]["text"].upper()}]
    for name, part in (("train", train), ("dev", dev)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture(scope="module")
def done(task_folder, tiny_run, tmp_path_factory, ray_cluster):
    """One ablation without a general stage: two arms, one seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBERT_HOME", str(tmp_path_factory.mktemp("home")))
        compute_in_process(patch)  # but for the students, which are Ray's tasks
        short = {"epochs": 2, "batch": 8}
        nothing = {"hidden": 0, "relation": 0, "contrastive": 0}
        config = tiny_run(
            name="ablation",
            teacher__tokens=32,
            references__count=2,
            references__dense_index=True,
            task={"name": "custom", "path": str(task_folder), "text_pair_field": "text_pair"},
            task_stage={
                "teacher": short,
                "augment": {"copies": 2},
                "phases": [
                    {**short, "loss": {"contrastive": 0, "relation_heads": 4}},
                    {**short, "loss": {"prediction": 1, **nothing}},
                ],
            },
            ablate={
                "arms": ["nearest", "vanilla", "vanilla_without_distillation"],
                "seeds": 1,
                "general_stage": False,
                "mixing": True,
            },
        )
        with running_store(config):
            ablate.run(config)
            yield config


def test_every_arm_is_scored_and_the_nearest_arm_with_every_kind_of_reference(done):
    report = json.loads((done.run_directory / "ablation.json").read_text())
    (task,) = report["tasks"].values()
    scores = {arm: set(of_seed["0"]["scores"]) for arm, of_seed in task["arms"].items()}
    assert scores == {
        "nearest": {"nearest", "random", "null", "nearest_unguarded"},
        "vanilla": {"vanilla", "mixed", "mixed_random"},
        "vanilla_without_distillation": {"vanilla_without_distillation"},
    }
    assert len(task["arms"]["nearest"]["0"]["losses"]) == 2
    assert [goal["name"] for goal in report["goals"]]
    assert "## Paired differences" in (done.run_directory / "ablation.md").read_text()


def test_a_vanilla_student_beside_its_memory_mixes_its_answers_as_it_was_scored(done):
    (task,) = json.loads((done.run_directory / "ablation.json").read_text())["tasks"].values()
    (scores,) = (result["scores"] for result in task["arms"]["vanilla"].values())
    corpus = prepare_task(done.task, done.home)
    (folder,) = done.run_directory.glob("tasks/*/vanilla-0/student")
    labels, texts = corpus.labels("dev"), corpus.texts("dev")
    names = corpus.data.task.labels

    def accuracy(predictions):
        return np.mean([names.index(each.label) == label for each, label in zip(predictions, labels, strict=True)])

    with running_store(done) as url, refbert.load(folder, url) as student:
        assert student.mixing == Mixing()
        mixed = student.predict(texts)
        report = explained(student, texts[0])
    alone = refbert.load(folder).predict(texts)
    assert accuracy(mixed) == pytest.approx(scores["mixed"]["dev"]["all"]["accuracy"])
    assert accuracy(alone) == pytest.approx(scores["vanilla"]["dev"]["all"]["accuracy"])
    # What the memory says is in it: some references, whose weights are the mixture's share in all.
    assert sum(reference["weight"] for reference in report["references"]) == pytest.approx(Mixing().share)
    assert max(report["labels"]["with"].values()) == pytest.approx(mixed[0].score, abs=1e-5)
    assert max(report["labels"]["without"].values()) == pytest.approx(alone[0].score, abs=1e-5)
    assert mixed[0].score != pytest.approx(alone[0].score, abs=1e-4)


def test_near_duplicates_of_development_rows_are_never_read(done):
    corpus = prepare_task(done.task, done.home)
    assert corpus.leaked.sum() == 2
    assert corpus.repeated["dev"][:2].all()
    assert corpus.repeated["dev"].sum() == 2
    splits = corpus.prepared.table("train")["split"].to_pylist()
    assert [split == NEAR_DUPLICATE for split in splits] == corpus.leaked.tolist()


def test_augmented_copies_are_trained_on_but_never_read_and_never_read_their_original(done):
    corpus = prepare_task(done.task, done.home)
    teacher = load_teacher(task_teacher(done, corpus).config)
    more = augmented(done, corpus, teacher)
    assert more.num_labelled == len(corpus.data.split("train")) == 50
    copies = more.texts("train")[50:]
    assert 50 < len(copies) <= 100
    assert np.isnan(more.labels("train")[50:]).all()
    (task,) = json.loads((done.run_directory / "ablation.json").read_text())["tasks"].values()
    assert (task["train"], task["copies"]) == (50, len(copies))
    with running_store(done) as url:
        collection = done.store.model_copy(
            update={"collection": f"{more.prepared.directory.name}-{teacher.fingerprint[:12]}"}
        )
        config = done.model_copy(update={"store": collection})
        with connect(config.store, url) as client:
            assert Store(client, config.store).count() == len(set(more.texts("train")))
    (path,) = (more.prepared.directory / "plans").glob("*.npy")
    rows = [example_text(example) for example in more.data.split("train")]
    labelled = {reference_id(teacher.fingerprint, text): place for place, text in enumerate(rows[:50])}
    documents = [example.document for example in more.data.split("train")]
    for row, choices in enumerate(NeighbourPlan(path).choices(np.arange(len(rows)))):
        read = [labelled[choice.id] for choice in choices]
        assert read
        assert all(documents[place] != documents[row] for place in read)


def test_a_finished_student_is_not_trained_again(done):
    results = sorted(done.run_directory.glob(f"tasks/*/*/{RESULT}"))
    written = [path.stat().st_mtime_ns for path in results]
    assert len(results) == 3
    gone = results.pop(0).parent
    (gone / RESULT).unlink()
    ablate.run(done)
    assert [path.stat().st_mtime_ns for path in results] == written[1:]
    assert (gone / RESULT).exists()


def test_an_ablation_refuses_students_that_were_trained_with_other_options(done):
    more = done.task_stage.phases[0].model_copy(update={"epochs": 3})
    stage = done.task_stage.model_copy(update={"phases": (more, *done.task_stage.phases[1:])})
    with pytest.raises(InputError, match="holds a run with another task_stage"):
        ablate.run(done.model_copy(update={"task_stage": stage}))


def test_an_ablation_without_a_task_is_refused(tiny_run):
    with pytest.raises(InputError, match="no task to compare students on"):
        ablate.check(tiny_run())


def test_arms_that_read_want_a_student_that_does(tiny_run):
    task = {"name": "SST-2"}
    with pytest.raises(
        InputError, match=r"arms nearest, random, null read .*reference_mode=none, references.criterion=k"
    ):
        ablate.check(tiny_run(task=task, student__reference_mode="none"))
    with pytest.raises(
        InputError, match=r"reference_mode=concat, references.criterion=none; set them to concat and key"
    ):
        ablate.check(tiny_run(task=task, references__criterion="none"))
    ablate.check(tiny_run(task=task, references__criterion="none", ablate__arms=["vanilla"]))


def test_mixing_without_an_index_of_words_is_refused_before_ray_starts(tiny_run):
    run = tiny_run(task={"name": "SST-2"}, ablate__mixing=True)
    with pytest.raises(InputError, match=r"set\s+references.dense_index=true"):
        ablate.check(run)
