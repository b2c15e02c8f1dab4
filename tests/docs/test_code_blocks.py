"""Every code block of the documents is true: Python runs, commands are ones that their programs take, YAML is read.

Python runs beside a small trained-looking student and its memory, where `make demo` would leave them. Nothing is skipped: a
block in another language, or in none, is a mistake; a drawing is `text`.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ray.serve.schema import ServeDeploySchema
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from jobs.config import load_config
from jobs.serve import AppArguments
from refbert import RefBertConfig, RefBertModel
from refbert.config import ReferenceConfig, TeacherConfig
from refbert.folder import save_student
from refbert.memory.manifest import manifest_of
from refbert.memory.texts import reference_texts
from refbert.teacher import load_teacher
from tests.docs.commands import REPOSITORY, calls, check, make_shadow
from tests.integration.vector_store.embedded.served import filled_store
from vector_store.config import StoreConfig

DOCUMENTS = [*REPOSITORY.glob("*.md"), *sorted((REPOSITORY / "docs").rglob("*.md"))]


def run_bash(example: Example) -> None:
    blocks = [region for region in example.document.examples() if region.region.lexemes["arguments"] == "bash"]
    before = [str(one.parsed) for one in blocks if one.start < example.start]
    folder = example.namespace["folder"]
    for call in calls(str(example.parsed), before, folder):
        check(call, folder)


def read_yaml(example: Example) -> None:
    folder, tree = example.namespace["folder"], yaml.safe_load(example.parsed)
    if "applications" in tree:  # Ray Serve's own config file
        for application in ServeDeploySchema.model_validate(tree).applications:
            arguments = AppArguments(**application.args)
            load_config(folder / str(arguments.run), arguments.overrides)
        return
    file = folder / "block.yaml"
    file.write_text(example.parsed)
    load_config(file)


def see_drawing(example: Example) -> None:
    assert re.search("[─│►▲]", example.parsed), "a text block is a drawing; name the language of anything else"


EVALUATORS = {"python": PythonEvaluator(), "bash": run_bash, "yaml": read_yaml, "text": see_drawing}
SYBIL = Sybil([CodeBlockParser(language, evaluator) for language, evaluator in EVALUATORS.items()])


def blocks_of(file: Path) -> list[Example]:
    return sorted(SYBIL.parse(file).examples(), key=lambda example: example.start)


BLOCKS = {file: blocks_of(file) for file in DOCUMENTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_teacher_path) -> Path:
    """What a demo leaves, in small, and what shell blocks are run in."""
    folder = tmp_path_factory.mktemp("checkout")
    make_shadow(folder)
    for example in (example for examples in BLOCKS.values() for example in examples):
        if named := re.match(r"# (\w+\.yaml)\n", example.parsed):
            (folder / named[1]).write_text(example.parsed)
    teacher = load_teacher(TeacherConfig(model=tiny_teacher_path, tokens=16))
    references = ReferenceConfig(criterion="keywords")
    manifest = manifest_of(teacher, references)
    texts = reference_texts(teacher, manifest, references)
    stored = ["a text of its own", "another text"]
    points = [
        texts.point({"text": stored[index], "text_pair": None, "source": "docs", "document": "docs", "split": "train"},
                    texts.identifier(stored[index]), token_ids, states.mean(0, dtype=np.float32), states)
        for index, token_ids, states in teacher.encode_one_by_one(stored)
    ]  # fmt: skip
    with filled_store(folder / "store", manifest, points):
        pass
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    student = RefBertModel(RefBertConfig(**shape, dim=manifest.dim))
    place = folder / "runs/quickstart/student"
    place.parent.mkdir(parents=True)
    memory = {"memory": manifest.model_dump(mode="json"), "collection": StoreConfig().collection}
    save_student(
        place, student, teacher.tokenizer, texts.table, **memory, references=references.model_dump(mode="json")
    )
    return folder


def evaluate(example: Example, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    example.namespace["folder"] = folder
    example.evaluate()


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(example, id=f"{file.relative_to(REPOSITORY)}:{example.line}")
        for file, examples in BLOCKS.items()
        for example in examples
    ],
)
def test_a_block_does_what_it_shows(example, folder, monkeypatch):
    evaluate(example, folder, monkeypatch)


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_every_block_is_in_a_language_that_is_checked(file):
    fences = re.findall(r"^\s*(?:```|~~~)", file.read_text(), flags=re.MULTILINE)
    assert len(fences) == 2 * len(BLOCKS[file])


@pytest.mark.parametrize(
    ("block", "wanted"),
    [
        ("python\nfrom refbert import TrainedStudent", "cannot import name"),
        ("yaml\nname: mine\ncorpus: {pathh: my.jsonl}", "pathh"),
        ("text\nmake demo", "a drawing"),
        ("bash\npython jobs/distil.py", "no such file"),
        ("bash\npython jobs/distill.py train.stepz=1", "ends with 2"),
        ("bash\npython jobs/distill.py --shwo", "ends with 2|distill.py --shwo"),
        ("bash\npython jobs/distill.py missing.yaml", "ends with 2"),
        ("bash\nray job submit --working-dirr . -- python jobs/distill.py", "working-dirr"),
        ("bash\nray job submit -- python jobs/distill.py train.stepz=1", "ends with 2"),
        ("bash\npython -m cluster submit -- python jobs/distill.py train.stepz=1", "ends with 2"),
        ("bash\npython -m vector_store serv ./store", "vector_store serv ./store: 2"),
        ("bash\nrefbert store serv ./store", "vector_store serv ./store: 2"),
        ("bash\nrefbert encode student text --referenzes ./store", "--referenzes"),
        ("bash\npython benchmarks/store.py --onli lookups", "--onli lookups: 2"),
        ("bash\npython -m pytest tests/docs/test_architecture.py::test_nothing", "has no test_nothing"),
        ("bash\nmake dema", "make has no dema"),
        ("bash\npip install '.[exports]'", "no such extra"),
        ("bash\nkubectl apply -f cluster/kubernetes/ingests.yaml", "no such file"),
        (
            "bash\nfor job in distill evaluat; do kubectl apply -f cluster/kubernetes/$job.yaml; done",
            "evaluat.yaml: no such",
        ),
        ("bash\nkubectl exec pod -- python jobs/ingest.py /etc/refbert/run.yaml train.stepz=1", "ends with 2"),
        ("bash\ndocker build -f docker/Dockerfile --target tpu .", "no stage tpu"),
        ("bash\ncurl -s 127.0.0.1:8000/v1/embedding", "the API has no"),
        ("bash\nkubektl get pods", "kubektl: command not found"),
        ("bash\necho 'a quote that does not end", "unexpected EOF"),
    ],
)
def test_a_block_that_is_wrong_fails(block, wanted, folder, monkeypatch, tmp_path):
    file = tmp_path / "wrong.md"
    file.write_text(f"```{block}\n```\n")
    (example,) = blocks_of(file)
    with pytest.raises(Exception, match=wanted):
        evaluate(example, folder, monkeypatch)
