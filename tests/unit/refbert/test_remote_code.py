"""A student's folder gives its vectors in transformers and sentence-transformers, with this package and without it."""

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

import refbert
from refbert import RefBertConfig, RefBertForSequenceClassification, RefBertModel
from refbert.correction import Correction
from refbert.errors import InputError
from refbert.folder import fingerprint, save_correction, save_student
from refbert.global_part import GlobalPartOptions, Rows, fit_global_part
from refbert.references import word_table
from refbert.remote_code import make_loadable, remote_code
from refbert.scores import score
from refbert.teacher import load_tokenizer
from refbert.words import WordVectors
from tests.store_clients import installer

HAS_SENTENCE_TRANSFORMERS = find_spec("sentence_transformers") is not None

DIM, WORDS = 16, 12
SHAPE = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "dim": DIM,
    "initializer_range": 0.2,
}  # fmt: skip
TEXTS = [
    "a short text",
    "Another one, with  white\n space, which is longer than its teacher read and is cut after sixteen tokens.",
    "",
]

WITHOUT_THE_PROJECT = """
import json
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("refbert", "vector_store", "jobs", "cluster"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
folders, texts = json.loads(sys.argv[1])
answers = {}
"""

IN_TRANSFORMERS = """
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

for folder in folders:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.inference_mode():
        vectors = model(**inputs).sentence_embedding
    extract = pipeline("feature-extraction", folder, trust_remote_code=True)
    states = [extract(text, truncation=True, return_tensors=True)[0] for text in texts]
    pooled = [one[0] if folder.endswith("first") else one.mean(0) for one in states]
    answers[folder] = {
        "tokens": tokenizer.model_max_length, "AutoModel": vectors.tolist(), "pipeline": torch.stack(pooled).tolist(),
    }
    if folder.endswith("labelling"):
        labelling = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
        answers[folder]["logits"] = labelling(**inputs).logits.tolist()
"""

IN_SENTENCE_TRANSFORMERS = """
from sentence_transformers import SentenceTransformer

for folder in folders[:3]:
    student = SentenceTransformer(folder, trust_remote_code=True)
    answers[folder] |= {"most tokens": student.max_seq_length, "encode": student.encode(texts).tolist()}
    student.save(folder + "-again")
    again = SentenceTransformer(folder + "-again", trust_remote_code=True)
    answers[folder]["saved again"] = again.encode(texts).tolist()
"""


IN_MTEB = """
import mteb
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from sentence_transformers import SentenceTransformer

folder, data = folders, texts


class OwnPairs(AbsTaskSTS):
    metadata = TaskMetadata(
        name="OwnPairs", description="Pairs of a file of one's own.", dataset={"path": data, "revision": "1"}, type="STS",
        eval_langs=["eng-Latn"], main_score="cosine_spearman",
    )


student = SentenceTransformer(folder, trust_remote_code=True)
(result,) = mteb.evaluate(student, OwnPairs(), cache=None, show_progress_bar=False).task_results
answers["scores"] = result.scores
"""

IN_INFINITY = """
import asyncio

import transformers
from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

assert transformers.__version__.startswith("4.")


async def embed(folder):
    options = EngineArgs(
        model_name_or_path=folder, engine="torch", device="cpu", trust_remote_code=True, model_warmup=False,
        bettertransformer=False, compile=False,
    )
    engine = AsyncEmbeddingEngine.from_args(options)
    async with engine:
        vectors, _ = await engine.embed(sentences=texts)
    return [vector.tolist() for vector in vectors]


for folder in folders:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    answers[folder] = {
        "Infinity": asyncio.run(embed(folder)),
        "encode": SentenceTransformer(folder, trust_remote_code=True).encode(texts).tolist(),
        "AutoModel": AutoModel.from_pretrained(folder, trust_remote_code=True)(**inputs).sentence_embedding.tolist(),
    }
"""


def elsewhere(script, given, home, packages=""):
    """What a script answers in a process that can import nothing of this project, nor ask the Hub; it finds `packages`."""
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(home), "HF_HOME": str(home),
        "PYTHONPATH": str(packages),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script + "print(json.dumps(answers))", json.dumps(given)],
        capture_output=True, text=True, cwd=home, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def save_adapted(folder, model, tokenizer):
    table = word_table(np.random.default_rng(0).standard_normal((30522, WORDS)).astype(np.float32))
    save_student(folder, model, tokenizer, table, text_tokens=16)
    words = WordVectors(table, tokenizer.all_special_ids)
    ids, mask = torch.randint(2000, 5000, (300, 7)), torch.ones(300, 7, dtype=torch.long)
    with torch.inference_mode():
        said, near = model(ids, attention_mask=mask).sentence_embedding, words(ids, mask)
    taught = 5 * (said + torch.tanh(near @ torch.randn(WORDS, DIM) * 2))
    fitted = fit_global_part(lambda: iter([Rows(said, near, taught)]), GlobalPartOptions(landmarks=40))
    save_correction(folder, Correction(fingerprint(folder), "v1", fitted.part, 0.4, 0.1, 6))


@pytest.fixture(scope="module")
def folders(tiny_teacher_path, tmp_path_factory) -> list[Path]:
    """A student that was not adapted, two that were, of which one has its first state as its vector, and one with a head."""
    home = tmp_path_factory.mktemp("students")
    tokenizer = load_tokenizer(tiny_teacher_path)
    torch.manual_seed(0)
    save_student(home / "plain", RefBertModel(RefBertConfig(**SHAPE)), tokenizer, text_tokens=16)
    for name, pooling in (("adapted", "mean"), ("first", "cls")):
        save_adapted(home / name, RefBertModel(RefBertConfig(**SHAPE, pooling=pooling)).eval(), tokenizer)
    labelling = RefBertForSequenceClassification(RefBertConfig(**SHAPE, num_labels=3))
    save_student(home / "labelling", labelling, tokenizer, text_tokens=16)
    return [home / name for name in ("plain", "adapted", "first", "labelling")]


@pytest.fixture(scope="module")
def answers(folders, tmp_path_factory):
    """What other libraries answer of these folders, in a process that can import nothing of this project."""
    home = tmp_path_factory.mktemp("elsewhere")
    script = WITHOUT_THE_PROJECT + IN_TRANSFORMERS + (IN_SENTENCE_TRANSFORMERS if HAS_SENTENCE_TRANSFORMERS else "")
    return elsewhere(script, [[str(folder) for folder in folders], TEXTS], home)


def unit(vectors):
    return np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_in_transformers_without_the_project_a_folder_gives_the_same_vectors(folders, answers):
    for folder in folders:
        wanted, answer = refbert.load(folder).encode(TEXTS), answers[str(folder)]
        assert answer["tokens"] == 16
        np.testing.assert_allclose(unit(answer["AutoModel"]), wanted, atol=1e-5)
        np.testing.assert_allclose(unit(answer["pipeline"]), wanted, atol=1e-5)
    labelling = folders[-1]
    predicted = refbert.load(labelling).predict(TEXTS)
    logits = torch.tensor(answers[str(labelling)]["logits"])
    assert [f"LABEL_{best}" for best in logits.argmax(1).tolist()] == [label for label, _ in predicted]
    np.testing.assert_allclose(logits.softmax(1).amax(1), [score for _, score in predicted], atol=1e-5)


@pytest.mark.skipif(not HAS_SENTENCE_TRANSFORMERS, reason="sentence-transformers is not installed")
def test_in_sentence_transformers_without_the_project_a_folder_gives_the_same_vectors(folders, answers):
    for folder in folders[:3]:
        wanted, answer = refbert.load(folder).encode(TEXTS), answers[str(folder)]
        assert answer["most tokens"] == 16
        np.testing.assert_allclose(answer["encode"], wanted, atol=1e-5)
        np.testing.assert_allclose(answer["saved again"], wanted, atol=1e-5)


@pytest.mark.parametrize("place", range(4))
def test_beside_the_project_auto_model_gives_the_same_vectors(folders, place):
    folder = folders[place]
    model = AutoModel.from_pretrained(folder).eval()
    inputs = load_tokenizer(str(folder))(TEXTS, padding=True, truncation=True, return_tensors="pt")
    output = model(**inputs)
    mask = inputs["attention_mask"][..., None]
    mean = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
    pooled = output.last_hidden_state[:, 0] if folder.name == "first" else mean
    torch.testing.assert_close(pooled, output.sentence_embedding, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(unit(pooled.tolist()), refbert.load(folder).encode(TEXTS), atol=1e-5)


def test_a_correction_is_in_the_vectors_and_a_copy_keeps_it(folders, tmp_path):
    model = AutoModel.from_pretrained(folders[1])
    ids = torch.tensor([[101, 2460, 3793, 102]])
    corrected, own = model(ids).sentence_embedding, RefBertModel.from_pretrained(folders[1])(ids).sentence_embedding
    assert torch.nn.functional.cosine_similarity(corrected, own).item() < 0.99
    model.half().save_pretrained(tmp_path / "other weights")
    with pytest.raises(InputError, match="its weights changed since"):
        AutoModel.from_pretrained(tmp_path / "other weights")
    AutoModel.from_pretrained(folders[1]).save_pretrained(tmp_path / "copy")
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "copy")(ids).sentence_embedding, corrected)
    with pytest.raises(ValueError, match="reads vectors, not reference_states"):
        AutoModel.from_pretrained(folders[1])(ids, reference_states=torch.zeros(1, 2, DIM))


def test_the_head_is_offered_only_by_a_student_that_has_one(folders):
    offered = [json.loads((folder / "config.json").read_text())["auto_map"].keys() for folder in folders]
    assert [AutoModelForSequenceClassification.__name__ in names for names in offered] == [False, False, False, True]


def test_a_folder_of_an_earlier_release_is_completed_and_its_weights_stay(folders, tiny_teacher_path, tmp_path):
    model, tokenizer = RefBertModel.from_pretrained(folders[0]), load_tokenizer(tiny_teacher_path)
    model.config.special_token_ids = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    make_loadable(tmp_path, tokenizer.all_special_ids)
    names = {str(path.relative_to(folders[0])) for path in folders[0].rglob("*")}
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == names
    files = [name for name in names if (tmp_path / name).is_file()]
    assert [name for name in files if (tmp_path / name).read_bytes() != (folders[0] / name).read_bytes()] == []


def test_the_copied_code_imports_what_transformers_brings_and_its_own_files():
    sources = remote_code()
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.module in sources, (name, node.module)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                modules = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
                )
                packages = {module.partition(".")[0] for module in modules}
                assert packages <= sys.stdlib_module_names | {"numpy", "torch", "transformers", "safetensors"}, name


@pytest.fixture
def folder_with(tmp_path_factory):
    """Make a folder with packages, which stand before this project's own."""

    def make(*named):
        folder = tmp_path_factory.mktemp("packages")
        command = [*installer(sys.executable), "--no-deps", "--target", str(folder), *named]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{named[0]} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
        return folder

    return make


@pytest.mark.long
@pytest.mark.timeout(600)
def test_in_infinity_and_transformers_4_a_folder_gives_the_same_vectors(folders, tmp_path, folder_with):
    packages = folder_with(
        "infinity-emb==0.0.78", "transformers>=4.57,<5", "tokenizers<0.23", "huggingface-hub<1", "datasets>=4.4,<4.5",
        "sentence-transformers>=5,<6",
    )  # fmt: skip
    script = WITHOUT_THE_PROJECT + IN_INFINITY
    answers = elsewhere(script, [[str(folder) for folder in folders[:3]], TEXTS], tmp_path, packages)
    for folder in folders[:3]:
        wanted = refbert.load(folder).encode(TEXTS)
        for vectors in answers[str(folder)].values():
            np.testing.assert_allclose(unit(vectors), wanted, atol=1e-5)


def test_mteb_scores_a_folder_without_the_project_as_its_own_vectors_do(folders, tmp_path, folder_with):
    named = ("mteb>=2.26,<3", "polars>=2.1,<3", "polars-runtime-32>=2.1,<3", "pytrec-eval-terrier")
    mteb = folder_with(*named)
    adapted = folders[1]
    pairs = list(combinations(("a short text", "another short text", "One that is longer", "what is it?"), 2))
    rows = [
        {"sentence1": one, "sentence2": other, "score": float(place % 6)} for place, (one, other) in enumerate(pairs)
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = elsewhere(WITHOUT_THE_PROJECT + IN_MTEB, [str(adapted), str(tmp_path)], tmp_path, mteb)
    with refbert.load(adapted) as student:
        ones, others = (student.encode(list(texts)) for texts in zip(*pairs, strict=True))
    wanted = score(["spearman"], [row["score"] for row in rows], (ones * others).sum(1))["spearman"]
    assert found["scores"]["test"][0]["cosine_spearman"] == pytest.approx(wanted, abs=1e-6)
    assert found["scores"]["test"][0]["main_score"] == pytest.approx(wanted, abs=1e-6)
