"""An index of the teacher's embeddings, written by Qdrant's client, becomes a memory; what is none is refused in one line."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from qdrant_client import models
from typer.testing import CliRunner

import refbert
from jobs import adapt as adapt_job
from jobs.memory.store import CLUSTER_STORE
from refbert.command import app
from refbert.errors import InputError
from refbert.folder import CORRECTION
from refbert.memory.adoption import budgets, checked
from refbert.memory.texts import reference_id
from refbert.teacher import Teacher, load_teacher, tokenize
from tests.conftest import REPOSITORY
from tests.integration.jobs.untaught import save_untaught_student
from tests.store_clients import environment_with, official_client, rest_address
from vector_store import foreign
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import CollectionMismatch, CollectionMissing, StoreUnavailable
from vector_store.schema import Parts
from vector_store.server.access import split, stored_key
from vector_store.server.process import embedded_server
from vector_store.store import Store
from vector_store.writer import Writer

THINGS = ("kettle", "lamp", "bicycle", "violin", "garden", "river", "engine", "letter")
TEXTS = [f"the {thing} of {name} is {how}" for thing in THINGS for name in ("Ann", "Bob", "Cleo") for how in (
    "old", "new", "broken", "on the table", "what we talked about again and again and again before the long winter came",
)]  # fmt: skip
ASKED = [f"the {thing} of Dan is {how}" for thing in THINGS for how in ("old", "broken", "lost in the rain")]


@pytest.fixture(scope="module")
def teacher(tiny_run):
    return load_teacher(tiny_run().teacher)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A store, and Qdrant's official client of it."""
    with embedded_server(tmp_path_factory.mktemp("adoption-store")) as url, official_client(url) as client:
        yield client, url


@pytest.fixture
def index(server, monkeypatch):
    """The same without collections of another test, as the run's own store: no Ray is asked for it."""
    client, url = server
    monkeypatch.setenv(CLUSTER_STORE, url)
    for name in ("docs", "adapted"):
        client.delete_collection(name)
    return client, url


@pytest.fixture
def run(home, tiny_run, teacher):
    """A run with a student that has learned nothing; `adopt` are the options of what is adopted."""

    def make(**adopt):
        config = tiny_run(
            name="adopting",
            adapt={"landmarks": 20, "references": {"count": 4}, "adopt": {"collection": "docs"} | adopt},
        )
        if not config.run_directory.exists():
            save_untaught_student(config.run_directory / "student", teacher)
        return config

    return make


def embedded(teacher, texts, tokens=512):
    """What an embedder of whole texts makes of them, (texts, dim)."""
    ids, mask, segments = tokenize(teacher.tokenizer, texts, tokens)
    states = teacher.encode(ids, mask, token_type_ids=segments).states
    return ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()


def write_index(client, vectors, texts, name="", field="text", distance=models.Distance.COSINE, collection="docs"):
    """Write an index as a retrieval library does."""
    size = models.VectorParams(size=vectors.shape[1], distance=distance)
    client.create_collection(collection, vectors_config={name: size} if name else size)
    points = []
    for number, (vector, text) in enumerate(zip(vectors.tolist(), texts, strict=True)):
        payload = {"metadata": {"page": number}}
        *outer, last = field.split(".")
        (payload[outer[0]] if outer else payload)[last] = text
        points.append(models.PointStruct(id=number, vector={name: vector} if name else vector, payload=payload))
    client.upsert(collection, points, wait=True)


@pytest.mark.parametrize(
    ("name", "field", "distance"),
    [("", "text", models.Distance.COSINE), ("all-minilm", "metadata.chunk", models.Distance.DOT)],
)
def test_an_index_is_adopted_without_a_forward_and_its_answers_follow(
    index, run, teacher, monkeypatch, name, field, distance, index_pauses
):
    client, url = index
    texts = [*TEXTS, TEXTS[0] + " "]  # and one that is stored already
    write_index(client, embedded(teacher, texts), texts, name, field, distance)
    config = run(text_field=field, sample=8)
    encoded = []
    encode = Teacher.encode

    def counting(self, ids, *arguments, **options):
        encoded.append(len(ids))
        return encode(self, ids, *arguments, **options)

    monkeypatch.setattr(Teacher, "encode", counting)
    folder = config.run_directory / "student"
    with refbert.load(folder) as student:
        alone = cosine(student, embedded(teacher, ASKED))
    encoded.clear()
    adapt_job.run(config)
    index_pauses.assert_one()
    assert sum(encoded) <= 8 * len(budgets(teacher)), "the sample, and no more"
    report = json.loads((config.run_directory / "adapted.json").read_text())
    assert report["references"] == len(TEXTS)
    assert report["heldout"] == {}
    assert report["left_out"]["alone"] < report["left_out"]["references"]
    with refbert.load(folder, url) as student:
        assert cosine(student, embedded(teacher, ASKED)) > alone + 0.1
        store = Store(student.source._client, StoreConfig(collection=config.adapt.collection))
        ids = [reference_id(teacher.fingerprint, text) for text in TEXTS]
        stored = store.fetch(ids, Parts(states=False, text=True, vector=True))
        assert [texts[0] for texts in stored.texts] == TEXTS
        # The teacher's own vectors of the whole texts: also their length, where the index kept it.
        own = embedded(teacher, TEXTS)
        wanted = own if distance == models.Distance.DOT else own / np.linalg.norm(own, axis=1, keepdims=True)
        found = stored.vectors[:, 0]
        if distance == models.Distance.COSINE:
            lengths = np.linalg.norm(found, axis=1)
            assert lengths == pytest.approx(np.linalg.norm(own[:8], axis=1).mean(), rel=0.02)
            found = found / lengths[:, None]
        np.testing.assert_allclose(found, wanted, atol=np.abs(wanted).max() / 60)
    client_points = client.scroll("docs", limit=1000)[0]
    assert len(client_points) == len(texts), "their collection is as it was"


def test_an_index_of_first_states_is_adopted_where_the_models_files_say_so(index, run, teacher, tmp_path):
    client, _ = index
    embedder = tmp_path / "embedder"
    shutil.copytree(teacher.config.model, embedder)
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules.append({"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    (embedder / "modules.json").write_text(json.dumps(modules))
    (embedder / "1_Pooling").mkdir()
    (embedder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    ids, mask, segments = tokenize(teacher.tokenizer, TEXTS, 512)
    first = teacher.encode(ids, mask, token_type_ids=segments).states[:, 0].numpy()
    write_index(client, first, TEXTS)
    with pytest.raises(
        InputError,
        match=r"pooled by mean: cosine .* name the teacher that wrote them in teacher.model \(teacher.pooling\)",
    ):
        adapt_job.run(run())
    config = run().model_copy(
        update={"teacher": teacher.config.model_copy(update={"model": str(embedder)}), "name": "first"}
    )
    save_untaught_student(config.run_directory / "student", load_teacher(config.teacher))
    adapt_job.run(config)
    assert json.loads((config.run_directory / "adapted.json").read_text())["references"] == len(TEXTS)


def cosine(student, wanted):
    return float((student.encode(ASKED) * wanted / np.linalg.norm(wanted, axis=1, keepdims=True)).sum(1).mean())


def test_points_without_text_or_vector_are_counted_by_name_and_an_adoption_goes_on(index, run, teacher, caplog):
    client, url = index
    caplog.set_level("INFO")
    write_index(client, embedded(teacher, TEXTS), TEXTS, "v")
    vector = embedded(teacher, TEXTS[:1])[0].tolist()
    more = [
        models.PointStruct(id=900, vector={"v": vector}, payload={"title": "no text"}),
        models.PointStruct(id=901, vector={}, payload={"text": "it has no vector"}),
        models.PointStruct(id=902, vector={"v": vector}, payload={"text": "  "}),
        models.PointStruct(id=903, vector={"v": [0.0] * teacher.dim}, payload={"text": "it is all zeros"}),
    ]
    client.upsert("docs", more, wait=True)
    config = run()
    adapt_job.run(config)
    assert f"adopted docs: read {len(TEXTS) + 4}, written {len(TEXTS)}, skipped 0, rejected 4" in caplog.text
    rejected = [json.loads(line) for line in (config.run_directory / "rejected.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in rejected} == {
        "900": "it has no text", "901": "it has no such vector", "902": "it has no text",
        "903": "its vector is all zeros",
    }  # fmt: skip
    version = json.loads((config.run_directory / "adapted.json").read_text())["version"]
    client.upsert(
        "docs",
        [models.PointStruct(id=904, vector={"v": vector}, payload={"text": "one more text that came later"})],
        wait=True,
    )
    read_at_once = config.model_copy(update={"adapt": config.adapt.model_copy(update={"refit": False})})
    adapt_job.run(read_at_once)
    assert f"read {len(TEXTS) + 5}, written 1, skipped {len(TEXTS)}, rejected 4" in caplog.text
    with refbert.load(config.run_directory / "student", url) as student:
        assert student.correction.version == version
        read = Parts(states=False, residual_of=student.correction.reader)
        store = Store(student.source._client, StoreConfig(collection=config.adapt.collection))
        late = store.fetch([reference_id(teacher.fingerprint, "one more text that came later")], read)
        assert np.isfinite(late.residuals).all()


def test_a_text_that_was_deleted_is_not_adopted_again_until_it_is_readmitted(index, run, teacher, caplog):
    client, url = index
    caplog.set_level("INFO")
    write_index(client, embedded(teacher, TEXTS), TEXTS)
    config = run()
    adapt_job.run(config)
    store_options = StoreConfig(collection=config.adapt.collection)
    with connect(store_options, url) as ours:
        memory = Store(ours, store_options)
        assert memory.delete(("document", "7")) == 1
        adapt_job.run(config)
        assert f"adopted docs: read {len(TEXTS)}, written 0, skipped {len(TEXTS)}, rejected 0" in caplog.text
        assert "1 texts were deleted from 'adapted' and are not stored again" in caplog.text
        assert memory.count() == len(TEXTS) - 1
        memory.readmit()
        adapt_job.run(config)
        assert f"adopted docs: read {len(TEXTS)}, written 1, skipped {len(TEXTS) - 1}, rejected 0" in caplog.text
        assert memory.count() == len(TEXTS)


@pytest.fixture(scope="module")
def bad_indexes(server, teacher):
    """Collections that are no index of the teacher's embeddings, for the one reason or the other."""
    client, _ = server
    texts = TEXTS[:40]
    ids, mask, _ = tokenize(teacher.tokenizer, texts, 512)
    of = {
        "mean": embedded(teacher, texts), "cls": teacher.encode(ids, mask).states[:, 0].numpy(),
        "long": np.ones((40, 60)), "flat": np.ones((40, teacher.dim)),
    }  # fmt: skip
    cosine = models.Distance.COSINE
    client.create_collection(
        "bad", vectors_config={name: models.VectorParams(size=len(one[0]), distance=cosine) for name, one in of.items()}
    )
    client.upsert(
        "bad",
        [
            models.PointStruct(
                id=number,
                vector={name: one[number].tolist() for name, one in of.items()},
                payload={"text": text, "title": f"page {number}"},
            )
            for number, text in enumerate(texts)
        ],
        wait=True,
    )
    client.create_collection("empty", vectors_config=models.VectorParams(size=teacher.dim, distance=cosine))
    client.create_collection(
        "ours",
        vectors_config=models.VectorParams(size=teacher.dim, distance=cosine),
        metadata={"fingerprint": "f", "format_version": 3},
    )
    return client


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"vector": "other"}, r"has the vectors cls, flat, long, mean, and no 'other'; name one in adapt.adopt.vector"),
        ({}, r"has the vectors cls, flat, long, mean; name one in adapt.adopt.vector"),
        ({"vector": "long"}, r"has vectors of 60 numbers, those of .* have 48; name the teacher"),
        ({"vector": "cls"}, r"are not what .* says of the texts in 'text', pooled by mean: cosine .* wanted 0.97; name"),
        ({"vector": "flat"}, r"are not what .* says of the texts"),
        ({"vector": "mean", "text_field": "titel"}, r"none of the first 40 points .* in 'titel'; .*\(there are: text, title\)"),
        ({"vector": "mean", "text_field": "title"}, r"are not what .* says of the texts in 'title'"),
        ({"collection": "adapted"}, r"are both 'adapted'; give the memory another name: adapt.collection="),
        ({"collection": "empty"}, r"holds no points, so there is nothing to adopt"),
        ({"collection": "nowhere"}, r"no collection 'nowhere' at .*\(there are: bad, .*ours\); name one in adapt.adopt.coll"),
        ({"collection": "ours"}, r"is a memory already; another student is adapted to it by .* adapt.collection=ours`"),
    ],
)  # fmt: skip
def test_what_is_no_index_of_the_teacher_is_refused_in_one_line_and_nothing_is_written(
    index, bad_indexes, run, options, line
):
    config = run(**{"collection": "bad"} | options)
    folder = config.run_directory / "student"
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises((InputError, CollectionMismatch, CollectionMissing), match=line) as refused:
        adapt_job.run(config)
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert CORRECTION not in before
    assert not bad_indexes.collection_exists("adapted")


def test_an_adoption_that_loses_its_store_goes_on_where_it_was(index, run, teacher, monkeypatch, caplog):
    client, _ = index
    caplog.set_level("INFO")
    write_index(client, embedded(teacher, TEXTS), TEXTS)
    monkeypatch.setattr(foreign, "MOST_POINTS", 50)
    finish, calls = Writer.finish, []

    def losing(self):
        calls.append(self)
        if len(calls) == 2:
            raise StoreUnavailable("the store is gone")
        return finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "finish", losing)
        with pytest.raises(StoreUnavailable):
            adapt_job.run(run())
    adapt_job.run(run())
    assert f"adopted docs: read {len(TEXTS)}, written {len(TEXTS) - 50}, skipped 50, rejected 0" in caplog.text


def test_vectors_of_cut_texts_are_the_teachers_too(index, teacher):
    client, url = index
    texts = [" ".join([text] * 30) for text in TEXTS[:6]]
    write_index(client, embedded(teacher, texts, 128), texts)
    store = StoreConfig(url=url)
    options = adapt_job.RunConfig.model_fields["adapt"].default.adopt.model_copy(update={"collection": "docs"})
    with connect(store, url) as ours:
        assert checked(ours, options, teacher, store).cosine > 0.999


def test_the_command_of_the_wheel_adopts_an_index_of_langchains_without_ray(index, run, teacher, tmp_path):
    client, url = index
    write_index(client, embedded(teacher, TEXTS), TEXTS, field="page_content")
    folder = run().run_directory / "student"
    with refbert.load(folder) as student:
        alone = cosine(student, embedded(teacher, ASKED))
    store = tmp_path / "memory"
    words = ["adopt", folder, "docs", "--url", url, "--references", store, "--teacher", teacher.config.model]
    mistaken = command(*words)
    assert mistaken.exit_code == 2
    (line,) = mistaken.stderr.splitlines()
    assert "in --text-field (there are: metadata, page_content)" in line
    code = "import json, sys\nfrom refbert.command import app\nsys.modules['ray'] = None\napp(json.load(sys.stdin))"
    given = json.dumps([*map(str, words), "--text-field", "page_content"])
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["points"] == {"read": 120, "written": 120, "skipped": 0, "rejected": 0}
    assert report["references"] == len(TEXTS)
    assert report["left_out"]["alone"] < report["left_out"]["references"]
    assert {path.name for path in folder.parent.iterdir()} == {"student", "student.rejected.jsonl"}
    with refbert.load(folder, store) as student:
        assert cosine(student, embedded(teacher, ASKED)) > alone + 0.1
        short = student.encode(ASKED, 6)
    cut = command("encode", folder, *ASKED, "--references", store, "--dimensions", "6")
    np.testing.assert_allclose([json.loads(line)["embedding"] for line in cut.stdout.splitlines()], short, atol=1e-6)
    explained = json.loads(command("explain", folder, ASKED[0], "--references", store).stdout)
    assert {reference["text"] for reference in explained["references"]} <= set(TEXTS)
    there = ", ".join(sorted(one.name for one in client.get_collections().collections))
    elsewhere = command("encode", folder, "a text", "--references", url)
    assert (elsewhere.exit_code, elsewhere.stderr) == (
        2,
        f"{folder} reads the memory 'adapted', and {split(url)[0]} has no such collection (there are: {there}); give the "
        "store that has it, or adapt the student to a memory there\n",
    )
    same = command(*words[:3], "--url", url, "--memory", "docs", "--teacher", teacher.config.model)
    assert (same.exit_code, "another one in --memory" in same.stderr) == (2, True)
    wrong = command(*words[:3], "--url", "qdrant:6334")
    assert (wrong.exit_code, "there is no store in 'qdrant:6334'; give a store's" in wrong.stderr) == (2, True)
    misspelt = command("adopt", folder, "dogs", "--url", url, "--teacher", teacher.config.model)
    assert (misspelt.exit_code, "; name one in COLLECTION\n" in misspelt.stderr) == (2, True)


def test_a_store_is_adopted_from_by_its_directory_and_reads_beside_what_it_adopted(
    run, teacher, tmp_path, index_pauses
):
    with embedded_server(tmp_path / "store") as url, official_client(url) as client:
        write_index(client, embedded(teacher, TEXTS), TEXTS)
        folder = run().run_directory / "student"
        done = command("adopt", folder, "docs", "--url", tmp_path / "store", "--teacher", teacher.config.model)
        assert done.exit_code == 0, done.stderr
        index_pauses.assert_one()
        assert {one.name for one in client.get_collections().collections} == {"docs", "adapted"}
        with refbert.load(folder, url) as student:
            assert student.correction.version == json.loads(done.stdout)["version"]


@pytest.mark.long
def test_a_collection_that_langchain_wrote_over_rest_is_adopted(run, teacher, tmp_path):
    python = environment_with(tmp_path / "environment", "langchain-qdrant==1.1.*")
    script = REPOSITORY / "tests/integration/vector_store/embedded/rest_clients/write_langchain.py"
    given = json.dumps({"texts": TEXTS, "vectors": embedded(teacher, TEXTS).tolist()})
    folder = run().run_directory / "student"
    with embedded_server(tmp_path / "store", rest_port=0) as url:
        words = [python, script, rest_address(url), stored_key(tmp_path / "store")]
        subprocess.run(words, input=given, text=True, check=True, env={})
        options = ["--url", url, "--teacher", teacher.config.model]
        done = command("adopt", folder, "docs", *options, "--text-field", "page_content")
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["points"] == {"read": 120, "written": 120, "skipped": 0, "rejected": 0}
        with refbert.load(folder, url, text=True) as student:
            assert cosine(student, embedded(teacher, ASKED)) > 0.3
            (read,) = student.look_up(TEXTS[:1], student.tokenize(TEXTS[:1])).texts
            assert len(read) == 16
            assert set(read) < set(TEXTS[1:]), "near texts, and not itself"


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])
