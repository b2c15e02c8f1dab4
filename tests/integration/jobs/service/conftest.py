"""The service of a trained run in this process, without Ray Serve."""

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from starlette.testclient import TestClient

from jobs.config import RunConfig
from jobs.service.api import http_api
from jobs.service.inference import InferenceService
from jobs.service.middleware import RequestMiddleware


@pytest.fixture(autouse=True)
def at_home(home_of_the_run) -> None:
    """Every test here uses the trained run."""


@pytest.fixture(scope="session")
def serving(trained) -> Callable[..., RunConfig]:
    """The run with other options; the keyword `section__key` changes one."""

    def make(**changes: Any) -> RunConfig:
        tree = trained.model_dump(mode="json")
        for key, value in changes.items():
            section, _, option = key.partition("__")
            tree[section][option] = value
        return RunConfig.model_validate(tree)

    return make


@contextlib.contextmanager
def app_of(config: RunConfig, student: Any = None, **options: Any) -> Iterator[RequestMiddleware]:
    """The ASGI app of a run, whose student is loaded and answers while the app's lifespan lasts."""
    service = InferenceService(config, torch.device("cpu"))
    service.load(student)
    api = http_api(service)

    @contextlib.asynccontextmanager
    async def answering(_: Any):
        service.start()
        yield
        await service.stop()

    api.router.lifespan_context = answering
    yield RequestMiddleware(service, api, **options)


@contextlib.contextmanager
def client_of(config: RunConfig, student: Any = None) -> Iterator[TestClient]:
    """An HTTP client of a run's service in this process; the service is `client.app.service`."""
    with app_of(config, student) as app, TestClient(app, raise_server_exceptions=False) as client:
        yield client


@contextlib.contextmanager
def address_of(config: RunConfig, student: Any = None) -> Iterator[str]:
    """The address of a run's service behind a real HTTP server, in a thread of this process."""
    with app_of(config, student) as app, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@contextlib.contextmanager
def loaded(client: Any, threads: int = 4, retries: int = 0) -> Iterator[list[tuple[Any, ...]]]:
    """Send known and new texts until the block ends; yields a list with the statuses of each request's tries."""
    outcomes: list[tuple[Any, ...]] = []
    ended = threading.Event()

    def ask(name: int) -> None:
        for number in itertools.count():
            if ended.is_set():
                return
            tries: list[Any] = []
            while len(tries) <= retries and tries[-1:] != [200]:
                time.sleep(0.1 * len(tries))
                try:
                    body = {"input": ["The film is slow and far too long.", f"text {number} of {name}"]}
                    tries.append(client.post("/v1/embeddings", json=body).status_code)
                except httpx.TransportError as error:
                    tries.append(type(error).__name__)
            outcomes.append(tuple(tries))

    workers = [threading.Thread(target=ask, args=(name,)) for name in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield outcomes
    finally:
        ended.set()
        for worker in workers:
            worker.join(60)


@pytest.fixture(scope="session")
def steady_load() -> Callable[..., AbstractContextManager[list[tuple[Any, ...]]]]:
    return loaded


@pytest.fixture(scope="module")
def client(serving) -> Iterator[TestClient]:
    with client_of(serving()) as client:
        yield client


@pytest.fixture(scope="session")
def connect() -> Callable[..., AbstractContextManager[TestClient]]:
    return client_of


@pytest.fixture(scope="session")
def listen() -> Callable[..., AbstractContextManager[str]]:
    return address_of


@pytest.fixture(scope="session")
def open_app() -> Callable[..., AbstractContextManager[RequestMiddleware]]:
    return app_of


@pytest.fixture(scope="session")
def classifier(trained, tmp_path_factory, labelling_student):
    return labelling_student(trained.run_directory / "student", tmp_path_factory.mktemp("task"))
