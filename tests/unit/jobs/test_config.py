"""One YAML is one run: what is accepted, and the one line for what is not."""

import subprocess
import sys

import pytest

from jobs.config import QUICKSTART, RunConfig, load_config
from refbert.config import StudentConfig
from refbert.errors import InputError


@pytest.mark.parametrize("file", sorted(QUICKSTART.parent.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_config_of_the_checkout_is_valid_named_after_its_file_and_survives_saving(file):
    config = load_config(file)
    assert config.name == file.stem
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_overrides_reach_every_depth_and_are_yaml():
    config = load_config(
        QUICKSTART, ["name=mine", "train.steps=7", "student.reference_layers=[0, 2]", "corpus.max_texts=null"]
    )
    assert (config.name, config.train.steps, config.student.reference_layers) == ("mine", 7, (0, 2))
    assert config.corpus.max_texts is None


def test_a_teacher_in_a_folder_is_found_from_any_directory(tmp_path, monkeypatch):
    (tmp_path / "encoder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config(overrides=["teacher.model=encoder"]).teacher.model == str(tmp_path / "encoder")
    assert load_config(overrides=["teacher.model=thenlper/gte-small"]).teacher.model == "thenlper/gte-small"


def test_the_students_of_a_service_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = str(tmp_path / "reviews")
    config = load_config(overrides=["serve.models={reviews-1.5: reviews}", f"serve.models.again={folder}"])
    assert config.serve.models == {"reviews-1.5": folder, "again": folder}
    assert load_config(overrides=["serve.student=reviews"]).serve.student == folder


def test_a_text_to_explain_is_taken_as_it_stands():
    config = load_config(overrides=["explain.text=No: it is 'late'", "explain.text_pair=null"])
    assert (config.explain.text, config.explain.text_pair) == ("No: it is 'late'", "null")


def test_an_unquoted_null_among_the_arms_is_the_arm_of_that_name():
    assert load_config(overrides=["ablate.arms=[vanilla, null]"]).ablate.arms == ("vanilla", "null")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=1", "unknown key train.stepz; known are steps, "),
        ("trian.steps=1", "unknown key trian; known are name, "),
        ("task.nme=SST-2", "unknown key task.nme; known are name, "),
        ("ablate.tasks=[{nme: SST-2}]", "unknown key ablate.tasks.0.nme; known are name, "),
        ("task_stage.phases=[{loss: {hiden: 1}}]", "unknown key task_stage.phases.0.loss.hiden; known are hidden, "),
        ("train.steps=many", "train.steps='many'"),
        ("serve.models={my reviews: /x}", "serve: models: 'my reviews' is no name of a model; give letters, digits"),
        ("serve.models={../x: /x}", "serve: models: '../x' is no name of a model"),
        (
            "serve.models={quickstart: /x}",
            "serve.models: quickstart is the name of the run's own student; choose another",
        ),
        ("serve.models.reviews=5", "serve.models.reviews=5: Input should be a valid string"),
        ("train.steps=0", "train.steps=0"),
        ("train.min_workers=3", "min_workers=3 exceeds num_workers=2"),
        ("train.max_failures=-2", "train.max_failures=-2: Input should be greater than or equal to -1"),
        ("train.global_batch=33", "global_batch=33 is not a multiple of micro_batch x num_workers = 16 x 2"),
        ("ingest={num_encoders: 4, max_encoders: 2}", "max_encoders=2 is below num_encoders=4"),
        ("store.shard_number=4", "store.shard_number=4 needs a Qdrant cluster"),
        ("train.steps.more=1", "steps is a value|train.steps"),
        ("references.criterion=dense", "needs references.dense_index=true"),
        ("references={criterion: mine.make, plan: true}", "plan=true needs a built-in criterion, found mine.make"),
        ("references={criterion: mine.make, count: 2}", "count=2 needs a built-in criterion, found mine.make"),
        ("references.criterion=closest", "neither one of keywords, dense"),
        ("adapt.references.criterion=mine.make", "an adapted student reads by one of these"),
        ("loss.embedding=1", "train.targets=memory has only the last layer's states"),
        ("loss.relation_of=qkv", "train.targets=memory has only the last layer's states"),
        ("loss.prediction=1", "train.targets=memory has only the last layer"),
        ("references.states=false", "loss.hidden and loss.relation learn from stored token states; leave out"),
        ("train.precision=bf16", "set zero_stage to 1, 2 or 3"),
        ("store.url=localhost:6334", "neither `embedded` nor http"),
        ("student.num_attention_heads=5", "hidden_size=84 is not a multiple of num_attention_heads=5"),
        (
            "student={token_embeddings: learned, hidden_size: 84, embedding_size: 84}",
            "embedding_size=84 is not below hidden_size=84",
        ),
        ("student.hiden=84", "unknown key student.hiden; known are hidden_size, embedding_size, "),
        ("student.hidden=84", "student: hidden is now hidden_size, and both are given; leave out hidden"),
        ("student={layers: 0}", "student.num_hidden_layers=0: Input should be greater than 0"),
        ("name=a/b", "name='a/b'"),
        ("just-a-word", "is no override; write key.sub=value"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(override, message):
    with pytest.raises(InputError, match=message) as error:
        load_config(QUICKSTART, [override])
    assert "\n" not in str(error.value)


def test_the_file_is_named_for_its_own_mistakes_alone(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("{corpus: {path: x.txt}, seed: many, train: {steps: 0}}")
    of_file = rf"{file}: seed='many': [^;]*"
    with pytest.raises(InputError, match=rf"^{of_file}; train.steps=0: [^;]*$"):
        load_config(file)
    with pytest.raises(InputError, match=rf"^train.steps=-1: [^;]*; {of_file}$"):
        load_config(file, ["train.steps=-1"])
    with pytest.raises(InputError, match=r"^seed='few': [^;]*; train.steps=-1: [^;]*$"):
        load_config(file, ["seed=few", "train={steps: -1}"])


def test_earlier_names_of_the_students_options_are_read_as_the_present_ones():
    before = {"hidden": 24, "embedding": 8, "layers": 1, "heads": 4, "intermediate": 48, "dropout": 0.1}
    assert StudentConfig.model_validate(before) == StudentConfig(
        hidden_size=24, embedding_size=8, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    )  # fmt: skip


def test_references_that_outgrow_the_positions_of_their_keys_are_refused():
    load_config(QUICKSTART, ["references.count=17"])
    with pytest.raises(InputError, match=r"512 positions for all references together, .* asks for 544"):
        load_config(QUICKSTART, ["references.count=17", "student.reference_keys=embedding"])


@pytest.mark.parametrize(
    ("content", "message"), [("- a\n", "holds a list"), ("a: [", "is not YAML"), ("name: x\n", "corpus is missing")]
)
def test_a_broken_file_is_one_line(tmp_path, content, message):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "run.yaml")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"nope.yaml cannot be read"):
        load_config(tmp_path / "nope.yaml")


def test_home_is_the_current_directory_and_in_a_ray_job_one_that_stays(monkeypatch, tmp_path):
    monkeypatch.delenv("REFBERT_HOME", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    config = load_config()
    assert config.home == tmp_path
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert config.home == tmp_path / "me" / ".refbert"
    monkeypatch.setenv("REFBERT_HOME", str(tmp_path / "shared"))
    assert config.run_directory == tmp_path / "shared" / "runs" / "quickstart"


def test_configs_errors_and_the_cluster_command_wait_for_no_models():
    code = (
        "import sys, refbert, jobs.config, refbert.errors, cluster.__main__; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
