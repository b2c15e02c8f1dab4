"""Students that read no references, and so need neither a store nor a training; services of them in this process."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from jobs.config import RunConfig
from jobs.service.api import http_api
from jobs.service.inference import InferenceService
from jobs.service.middleware import RequestMiddleware
from refbert import RefBertConfig, RefBertModel
from refbert.folder import save_student
from refbert.teacher import Teacher

Serve = Callable[..., AbstractContextManager[TestClient]]


@pytest.fixture(scope="session")
def make_student(teacher: Teacher) -> Callable[..., Path]:
    """Write an untrained student of 1 x 24 with its teacher's tokenizer; each seed has vectors of its own."""

    def make(folder: Path, seed: int = 0, dim: int = 24, text_tokens: int = 16) -> Path:
        torch.manual_seed(seed)
        shape = RefBertConfig(
            vocab_size=len(teacher.tokenizer), hidden_size=24, num_hidden_layers=1, num_attention_heads=4,
            intermediate_size=48, dim=dim, reference_mode="none",
        )  # fmt: skip
        save_student(folder, RefBertModel(shape), teacher.tokenizer, text_tokens=text_tokens)
        return folder

    return make


@pytest.fixture(scope="session")
def served_home(make_student, tmp_path_factory) -> Path:
    """A $REFBERT_HOME whose run `served` has a student."""
    home = tmp_path_factory.mktemp("served-home")
    make_student(home / "runs" / "served" / "student")
    return home


@pytest.fixture
def served_run(served_home, monkeypatch) -> Callable[..., RunConfig]:
    """Make the run `served`; keywords are options of its service."""
    monkeypatch.setenv("REFBERT_HOME", str(served_home))

    def make(**limits: Any) -> RunConfig:
        return RunConfig.model_validate({"name": "served", "corpus": {"path": "x"}, "serve": limits})

    return make


@pytest.fixture
def serve_in_process(served_run) -> Serve:
    """Open an HTTP client of the run's service; the service is `client.app.service`."""

    @contextlib.contextmanager
    def serve(**limits: Any) -> Iterator[TestClient]:
        service = InferenceService(served_run(**limits), torch.device("cpu"))
        service.load()
        api = http_api(service)

        @contextlib.asynccontextmanager
        async def answering(_: Any):
            service.start()
            yield
            await service.stop()

        api.router.lifespan_context = answering
        with TestClient(RequestMiddleware(service, api), raise_server_exceptions=False) as client:
            yield client

    return serve
