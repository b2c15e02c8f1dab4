"""Who may go on in a run's directory: the same student in the making, on whatever it is made."""

import pytest
import yaml

from jobs.config import load_config
from jobs.run.directory import claim_directory
from refbert.config import STUDENT_NAMES_BEFORE
from refbert.errors import InputError


def test_workers_shards_and_pace_may_change_between_submissions(home, tiny_run):
    claim_directory(tiny_run())
    config = tiny_run(
        train__num_workers=2, train__zero_stage=3, train__gpus_per_worker=1, train__threads_per_worker=4, train__prefetch=9,
        train__log_every=7, train__save_every=1, train__keep_checkpoints=5, references__plan=True,
    )  # fmt: skip
    claim_directory(config)
    assert yaml.safe_load((config.run_directory / "config.yaml").read_text())["train"]["num_workers"] == 2


def test_a_run_saved_under_the_students_earlier_option_names_is_the_same_run(home, tiny_run):
    config = tiny_run()
    claim_directory(config)
    path = config.run_directory / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    student = saved["student"]
    assert student.pop("attention_probs_dropout_prob") == student["hidden_dropout_prob"]
    for before, names in STUDENT_NAMES_BEFORE.items():
        student[before] = student.pop(names[0])
    path.write_text(yaml.safe_dump(saved))
    assert load_config(path) == config
    claim_directory(config)
    assert yaml.safe_load(path.read_text())["student"]["hidden_size"] == 24


def test_the_collection_is_no_part_of_a_run_that_reads_no_memory(home, tiny_run):
    alone = {"references__criterion": "none", "train__targets": "teacher"}
    claim_directory(tiny_run(**alone))
    claim_directory(tiny_run(**alone, store__collection="another"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"loss__contrastive_temperature": 2.0}, "loss"),
        ({"train__micro_batch": 8}, "train.micro_batch"),
        ({"train__global_batch": 32}, "train.global_batch"),
        ({"train__precision": "autocast"}, "train.precision"),
        ({"train__targets": "teacher", "train__clip": 0.5}, "train.clip, train.targets"),
        ({"store__collection": "another"}, "store.collection"),
    ],
)
def test_a_changed_option_of_the_student_is_refused_by_name_in_one_line(home, tiny_run, change, named):
    claim_directory(tiny_run())
    with pytest.raises(
        InputError, match=f"holds a run with another {named}; give another name=..., or delete it"
    ) as error:
        claim_directory(tiny_run(**change))
    assert "\n" not in str(error.value)
