"""One student in place of another: what is not a student that answers changes nothing, and says so."""

import asyncio
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.service.replica import Replica, StudentChoice
from refbert.errors import InputError

WEIGHTS = "model.safetensors"


def damaged(folder, how):
    """Damage a student's folder, in one of the ways that copying and training can."""
    if how == "no folder":
        shutil.rmtree(folder)
    elif how == "no weights":
        (folder / WEIGHTS).unlink()
    elif how == "half of the weights":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    elif how == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif how == "another shape":
        config = (folder / "config.json").read_text()
        (folder / "config.json").write_text(config.replace('"intermediate_size": 48', '"intermediate_size": 40'))
    elif how == "no JSON":
        (folder / "config.json").write_text("{")
    elif how == "NaN":
        weights = load_file(folder / WEIGHTS)
        save_file({name: torch.full_like(value, torch.nan) for name, value in weights.items()}, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    "how",
    ["no folder", "no weights", "half of the weights", "no tokenizer", "another shape", "no JSON", "NaN"],
)
def test_a_damaged_student_is_refused_in_one_line_and_the_present_one_answers(
    serve_in_process, make_student, tmp_path, how
):
    folder = damaged(make_student(tmp_path / "student", seed=1), how)
    with serve_in_process() as client:
        before = client.post("/v1/embeddings", json={"input": "a text"}).json()["data"]
        replica = Replica.__new__(Replica)  # without Ray Serve, which gives a replica its context
        replica.service, replica.loaded, replica.is_serving = client.app.service, None, True
        student = client.get("/metrics").text.partition("refbert_student_info{")[2].partition("\n")[0]
        asyncio.run(replica.reconfigure({"student": str(folder)}))
        state = client.get("/readyz")
        assert state.status_code == 200
        assert str(folder) in state.json()["refused"]
        assert "\n" not in state.json()["refused"]
        assert "refbert_student_refused 1.0" in client.get("/metrics").text
        assert student in client.get("/metrics").text
        assert client.post("/v1/embeddings", json={"input": "a text"}).json()["data"] == before
        asyncio.run(replica.reconfigure({"student": None}))
        assert client.get("/readyz").json()["refused"] is None
        assert "refbert_student_refused 0.0" in client.get("/metrics").text
        replica.is_serving = False  # one that starts would answer with other vectors than those beside it
        with pytest.raises(InputError):
            asyncio.run(replica.reconfigure({"student": str(folder)}))


def test_another_student_answers_and_a_misspelt_key_is_not_the_runs_own(serve_in_process, make_student, tmp_path):
    other = make_student(tmp_path / "student", seed=1)
    with serve_in_process() as client:
        replica = Replica.__new__(Replica)
        replica.service, replica.loaded, replica.is_serving = client.app.service, None, True
        own = client.post("/v1/embeddings", json={"input": "a text"}).json()["data"]
        asyncio.run(replica.reconfigure({"student": str(other)}))
        others = client.post("/v1/embeddings", json={"input": "a text"}).json()["data"]
        assert others != own
        asyncio.run(replica.reconfigure({"students": None}))
        assert "user_config.students" in client.get("/readyz").json()["refused"]
        assert client.post("/v1/embeddings", json={"input": "a text"}).json()["data"] == others
    for wrong in ("a folder", {"student": 5}):
        with pytest.raises(InputError, match="user_config"):
            StudentChoice.of(wrong)
