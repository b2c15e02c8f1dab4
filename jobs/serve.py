"""Serve a distilled student over HTTP with Ray Serve; each answer says which reference was read.

    python jobs/serve.py [RUN.yaml] [key=value ...]        until interrupted
    curl -s localhost:8000/v1/embeddings -H 'content-type: application/json' -d '{"input": "a text", "explain": true}'

The student alone answers: no teacher is loaded. A store that is slow or gone costs quality, never an error: the answer then
comes from a cached reference or the null reference, and says so.
"""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from jobs.config import RunConfig
from jobs.launch import launch
from jobs.memory import running_store
from jobs.reader import ReferenceRead, check_memory, open_reader, references_read, student_run
from jobs.worker import per_node, set_up_worker
from refbert.corpus import Text, normalise
from refbert.errors import UnavailableError
from vector_store.schema import parts

log = logging.getLogger(__name__)

MAX_CHARACTERS = 20_000

CONTINUES_RUN = True
"""Without a YAML, the options are those that the named run was trained with."""


class EmbeddingRequest(BaseModel, extra="forbid"):
    """OpenAI's request: one text or several, of which each may be a pair, `[["a text", "its second"]]`."""

    input: str | list[Text]
    model: str | None = None
    encoding_format: Literal["float"] = "float"
    explain: bool = Field(False, description="Also say which reference each text read.")


class Embedding(BaseModel):
    """One text's vector in the teacher's space, L2-normalised."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float]
    reference: ReferenceRead | None = Field(None, description="The best of those that the text read.")
    further_references: list[ReferenceRead] | None = Field(None, description="The others, where references.count > 1.")


class EmbeddingResponse(BaseModel):
    """OpenAI's answer, and how long look-up and student took."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: dict[str, int]
    timing_ms: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """One text's result within a batch."""

    vector: list[float]
    tokens: int
    references: list[ReferenceRead]
    lookup_ms: float
    student_ms: float


api = FastAPI(title="RefBERT", description="Embeddings by a small student that reads references.")


@serve.deployment
@serve.ingress(api)
class StudentService:
    """One replica: the student, its tokenizer and a client of the memory. Requests of the same moment share a forward."""

    def __init__(self, config: RunConfig, folder: Path, url: str | None) -> None:
        device = set_up_worker(per_node(config.serve.num_replicas), config.train.gpus_per_worker)
        self.config, self.name = config, config.name
        self.reader = open_reader(config, folder, url, device, with_text=True)
        batching: Any = self.embed_batch
        batching.set_max_batch_size(config.serve.max_batch)
        batching.set_batch_wait_timeout_s(config.serve.batch_wait_ms / 1000)

    @api.get("/healthz")
    def healthz(self) -> dict[str, str]:
        """Say that this replica answers."""
        return {"status": "ok", "model": self.name}

    @api.post("/v1/embeddings")
    async def embeddings(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """Embed one text or a list of them."""
        inputs: list[Text] = [request.input] if isinstance(request.input, str) else request.input
        if not 1 <= len(inputs) <= self.config.serve.max_texts:
            raise HTTPException(422, f"got {len(inputs)} texts, wanted 1 to {self.config.serve.max_texts}")
        if any(not part.strip() or len(part) > MAX_CHARACTERS for text in inputs for part in parts(text)):
            raise HTTPException(422, f"a text is empty or longer than {MAX_CHARACTERS} characters")
        answers: list[Answer] = await asyncio.gather(*(self.embed_batch(text) for text in inputs))
        tokens = sum(answer.tokens for answer in answers)
        return EmbeddingResponse(
            data=[
                Embedding(
                    index=index,
                    embedding=answer.vector,
                    reference=answer.references[0] if request.explain else None,
                    further_references=answer.references[1:] if request.explain else None,
                )
                for index, answer in enumerate(answers)
            ],
            model=self.name,
            usage={"prompt_tokens": tokens, "total_tokens": tokens},
            timing_ms={
                "lookup": max(answer.lookup_ms for answer in answers),
                "student": max(answer.student_ms for answer in answers),
            },
        )

    @serve.batch
    async def embed_batch(self, texts: list[Text]) -> list[Answer]:
        """Embed the texts that arrived together, off the event loop."""
        return await asyncio.to_thread(self.embed, texts)

    @torch.inference_mode()
    def embed(self, texts: list[Text]) -> list[Answer]:
        """Look up, encode, normalise."""
        texts = [normalise(text) for text in texts]  # as those that were trained on and stored
        tokens = self.reader.tokenize(texts)
        lengths = tokens.mask.sum(1).tolist()
        started_s = time.perf_counter()
        found = self.reader.look_up(texts, tokens)
        looked_up_s = time.perf_counter()
        inputs = self.reader.inputs(tokens, found).student_inputs()
        output = self.reader.model(**inputs, output_projected_states=False)
        vectors = torch.nn.functional.normalize(output.sentence_embedding, dim=-1).cpu().tolist()
        done_s = time.perf_counter()
        return [
            Answer(
                vector,
                lengths[index],
                references_read(found, index),
                1000 * (looked_up_s - started_s),
                1000 * (done_s - looked_up_s),
            )
            for index, vector in enumerate(vectors)
        ]


def run(config: RunConfig) -> None:
    """Serve until interrupted."""
    with running_store(config) as url, served(config, url) as address:
        log.info("serving %s at %s/v1/embeddings, its API at %s/docs; Ctrl-C ends it", config.name, address, address)
        threading.Event().wait()


@contextmanager
def served(config: RunConfig, url: str | None) -> Iterator[str]:
    """Start the service, yield its HTTP address, and stop what was started."""
    config, folder = student_run(config, None)  # resolved here: a replica's environment may name another home
    check_memory(config, folder, url)
    port = config.serve.port or _free_port(config.serve.host)
    was_running = _serve_is_running()
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    try:
        serve.start(
            http_options=HTTPOptions(host=config.serve.host, port=port), logging_config=quiet, proxy_location="HeadOnly"
        )
        deployment: Any = StudentService
        service = deployment.options(
            num_replicas=config.serve.num_replicas,
            max_ongoing_requests=4 * config.serve.max_batch,
            ray_actor_options={"num_cpus": 1, "num_gpus": config.train.gpus_per_worker},
        )
        serve.run(service.bind(config, folder, url), name=config.name, route_prefix="/", logging_config=quiet)
    except (RuntimeError, TimeoutError) as error:
        _stop(config.name, was_running)
        raise UnavailableError(f"the service did not start on {config.serve.host}:{port}: {error}") from error
    try:
        yield f"http://{config.serve.host}:{port}"
    finally:
        _stop(config.name, was_running)


def _serve_is_running() -> bool:
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def _stop(name: str, was_running: bool) -> None:
    """Stop what was started: only the application where others' applications share the cluster's Serve."""
    if was_running:
        serve.delete(name)
    else:
        serve.shutdown()


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    launch("jobs.serve")
