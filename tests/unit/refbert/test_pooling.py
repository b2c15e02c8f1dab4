"""A teacher's vector is what its own library makes of a text, where its files say how; else the mean of its states."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from refbert.config import StudentConfig, TeacherConfig
from refbert.distillation import new_student
from refbert.errors import InputError, UnavailableError
from refbert.pooling import pooling_of
from refbert.student import pooled
from refbert.teacher import load_teacher, tokenize

sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = ["a short text", "another one, which is longer", ""]


@pytest.fixture
def embedder(tiny_teacher_path, tmp_path):
    """Save the tiny teacher as sentence-transformers does, with a way of pooling and further modules: its folder."""

    def save(mode, *further):
        modules = sentence_transformers.sentence_transformer.modules
        encoder = modules.Transformer(tiny_teacher_path, max_seq_length=16)
        model = sentence_transformers.SentenceTransformer(modules=[encoder, modules.Pooling(48, mode), *further])
        model.save(str(tmp_path / "embedder"))
        return tmp_path / "embedder", model

    return save


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_a_teachers_vector_is_its_own_librarys(embedder, mode):
    folder, model = embedder(mode, sentence_transformers.sentence_transformer.modules.Normalize())
    teacher = load_teacher(TeacherConfig(model=str(folder), tokens=16))
    assert teacher.pooling == mode
    vectors = np.stack([teacher.vector(states) for _, states in teacher.encode_texts(TEXTS)])
    assert vectors.dtype == np.float32
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, model.encode(TEXTS), atol=2e-3)


def test_models_of_another_pooling_are_other_teachers_and_those_by_the_mean_keep_their_name(
    embedder, tiny_teacher_path
):
    folder, _ = embedder("cls")
    by_mean = load_teacher(TeacherConfig(model=tiny_teacher_path, tokens=16))
    by_first = load_teacher(TeacherConfig(model=str(folder), tokens=16))
    asked = load_teacher(TeacherConfig(model=str(folder), tokens=16, pooling="mean"))
    assert (by_mean.pooling, by_first.pooling, asked.pooling) == ("mean", "cls", "mean")
    assert asked.fingerprint == by_mean.fingerprint != by_first.fingerprint


@pytest.mark.parametrize(
    "options",
    [
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        {"word_embedding_dimension": 48, "pooling_mode_cls_token": True},
        {"pooling_mode": "cls"},
        {"pooling_mode": ["cls"]},
    ],
)
def test_older_and_newer_files_are_read(embedder, options):
    folder, _ = embedder("mean")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(options))
    assert pooling_of(TeacherConfig(model=str(folder))) == "cls"


def test_without_files_of_that_library_it_is_the_mean(tiny_teacher_path):
    assert pooling_of(TeacherConfig(model=tiny_teacher_path)) == "mean"


@pytest.mark.parametrize(
    ("mode", "line"),
    [
        ("max", "pools by max, which no student does; set teacher.pooling=mean or teacher.pooling=cls"),
        (("cls", "mean"), "pools by cls and mean, which no student does"),
    ],
)
def test_other_ways_are_refused_in_one_line_and_taken_on_request(embedder, mode, line):
    folder, _ = embedder(mode)
    with pytest.raises(InputError, match=line):
        load_teacher(TeacherConfig(model=str(folder), tokens=16))
    assert load_teacher(TeacherConfig(model=str(folder), tokens=16, pooling="mean")).pooling == "mean"


def test_a_further_layer_is_refused_in_one_line(embedder):
    folder, _ = embedder("mean", sentence_transformers.sentence_transformer.modules.Dense(48, 48))
    with pytest.raises(InputError, match=r"a further module \(Dense\), which no student learns; set teacher.pooling="):
        pooling_of(TeacherConfig(model=str(folder)))


LISTED = '[{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]'
UNLISTED = "does not list one Pooling module with its path"


@pytest.mark.parametrize(
    ("modules", "options", "line"),
    [
        ("{", "{}", r"has a modules.json that cannot be read \(JSONDecodeError"),
        ("[1]", "{}", UNLISTED),
        ("{}", "{}", UNLISTED),
        ("[]", "{}", UNLISTED),
        ("null", "{}", UNLISTED),
        ('[{"type": "x.Pooling"}]', "{}", UNLISTED),
        ('[{"type": "x.Pooling", "path": 3}]', "{}", UNLISTED),
        (
            '[{"type": "x.Pooling", "path": "../none"}]',
            "{}",
            r"and ../none/config.json does not say how: there is no such file",
        ),
        (LISTED, "{", r"has a 1_Pooling/config.json that cannot be read"),
        (LISTED, "{}", r"1_Pooling/config.json does not say how: {}"),
        (LISTED, '"cls"', "does not say how: cls"),
        (LISTED, '{"pooling_mode": null}', "does not say how"),
        (LISTED, '{"pooling_mode": [1, 2]}', "does not say how"),
        (LISTED, '{"pooling_mode": {"cls": 1}}', "does not say how"),
        (LISTED, '{"pooling_mode_cls_token": "false"}', "does not say how"),
        (LISTED, '{"pooling_mode": ["cls", "cls", "mean"]}', "pools by cls and mean, which"),
        (LISTED, '{"pooling_mode": "of\\ntwo lines"}', "pools by 'of"),
        (LISTED, None, "1_Pooling/config.json does not say how: there is no such file"),
    ],
)
def test_files_that_do_not_say_how_are_refused_in_one_line_by_their_name(tmp_path, modules, options, line):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "modules.json").write_text(modules)
    if options is not None:
        (tmp_path / "1_Pooling" / "config.json").write_text(options)
    with pytest.raises(InputError, match=line) as refused:
        pooling_of(TeacherConfig(model=str(tmp_path)))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json"])
def test_a_file_that_cannot_be_opened_is_no_absent_one(tmp_path, name):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "modules.json").write_text(LISTED)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(InputError, match=rf"has a {name} that cannot be read \(FileNotFoundError"):
        pooling_of(TeacherConfig(model=str(tmp_path)))
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=rf"has a {name} that cannot be read \(IsADirectoryError"):
        pooling_of(TeacherConfig(model=str(tmp_path)))


def test_of_a_cached_model_it_is_known_or_asked_for_and_never_guessed(tmp_path, monkeypatch):
    """As huggingface_hub keeps files, and that a repository has none of a name."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told, repository = TeacherConfig(model="somebody/embedder"), tmp_path / "models--somebody--embedder"
    snapshot, absent = repository / "snapshots" / "c0ffee", repository / ".no_exist" / "c0ffee"
    for folder in (snapshot / "1_Pooling", absent, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(
        UnavailableError, match=r"is in its modules.json, which is not cached, .* set teacher.pooling=mean or"
    ):
        pooling_of(told)
    assert pooling_of(told.model_copy(update={"pooling": "cls"})) == "cls"
    (absent / "modules.json").touch()
    assert pooling_of(told) == "mean"
    (absent / "modules.json").unlink()
    (snapshot / "modules.json").write_text(LISTED)
    (snapshot / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    assert pooling_of(told) == "cls"


@pytest.mark.parametrize("model", ["/no/such/teacher", "no-such/model", "no model's name"])
def test_of_a_model_that_is_nowhere_loading_says_so(model, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pooling_of(TeacherConfig(model=model)) == "mean"
    with pytest.raises(InputError, match="cannot be loaded"):
        load_teacher(TeacherConfig(model=model))


def test_a_student_has_its_teachers_way(embedder, tmp_path):
    folder, _ = embedder("cls")
    teacher = load_teacher(TeacherConfig(model=str(folder), tokens=16))
    shape = StudentConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    student = new_student(shape, teacher, seed=0).eval()
    ids, mask, _ = tokenize(teacher.tokenizer, TEXTS, 16)
    output = student(ids, attention_mask=mask, output_projected_states=True)
    torch.testing.assert_close(output.sentence_embedding, output.projected_states[:, 0])
    student.save_pretrained(tmp_path / "student")
    assert type(student).from_pretrained(tmp_path / "student").config.pooling == "cls"


def test_pooling_written_out():
    states, mask = torch.arange(12.0).view(2, 3, 2), torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pooled(states, mask, "mean").tolist() == [[1.0, 2.0], [8.0, 9.0]]
    assert pooled(states, mask, "cls").tolist() == [[0.0, 1.0], [6.0, 7.0]]
