"""The gRPC calls of one desk: messages to questions, rows to messages, errors to status codes.

`proto/refbert_pb2*` are generated from `proto/refbert.proto`, and again after a change of it, by

    pip install grpcio-tools==1.85.1
    python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. jobs/service/proto/refbert.proto
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from jobs.service import tracing
from jobs.service.api import labelled
from jobs.service.errors import BUG, InvalidInput, TooLarge, Unauthorised, kind_of, line_of
from jobs.service.inference import Answered, Desk
from jobs.service.middleware import bug_report, request_id, sent_key
from jobs.service.proto import refbert_pb2 as messages
from jobs.service.schema import Asked, AttendedReference
from vector_store.schema import parts

log = logging.getLogger(__name__)

Message = TypeVar("Message")

ADD_SERVICER = "jobs.service.proto.refbert_pb2_grpc.add_RefBertServicer_to_server"
"""What Ray Serve's gRPC proxy is told to serve."""


class GrpcCalls:
    """The calls of one desk. Each takes a message and Ray Serve's context of the call."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    async def embed(self, request: messages.EmbedRequest, context: Any) -> messages.EmbedResponse:
        """Answer with vectors."""

        async def answer(deadline: float) -> messages.EmbedResponse:
            answered = await self.desk.ask(_asked(request.texts), deadline, request.explain)
            return messages.EmbedResponse(
                model=answered.model,
                dimensions=len(answered.rows[0].vector),
                embeddings=[
                    messages.Embedding(
                        vector=row.vector.astype("<f4", copy=False).tobytes(),
                        tokens=row.tokens,
                        references=_references(row.references),
                    )
                    for row in answered.rows
                ],
                timing=_timing(answered),
            )

        return await self._call("Embed", request, context, answer, messages.EmbedResponse())

    async def classify(self, request: messages.ClassifyRequest, context: Any) -> messages.ClassifyResponse:
        """Answer with labels."""

        async def answer(deadline: float) -> messages.ClassifyResponse:
            answered = await self.desk.classify(_asked(request.texts), deadline, request.explain)
            return messages.ClassifyResponse(
                model=answered.model,
                classifications=[
                    messages.Classification(
                        tokens=row.tokens,
                        references=_references(row.references),
                        **labelled(row, answered.labels or []),
                    )
                    for row in answered.rows
                ],
                timing=_timing(answered),
            )

        return await self._call("Classify", request, context, answer, messages.ClassifyResponse())

    async def similarity(self, request: messages.SimilarityRequest, context: Any) -> messages.SimilarityResponse:
        """Answer with cosines."""

        async def answer(deadline: float) -> messages.SimilarityResponse:
            answered = await self.desk.ask(_asked([request.source, *request.texts]), deadline)
            source, *others = (row.vector for row in answered.rows)
            return messages.SimilarityResponse(
                model=answered.model,
                similarities=np.array([source @ other for other in others], np.float32),
                timing=_timing(answered),
            )

        return await self._call("Similarity", request, context, answer, messages.SimilarityResponse())

    async def status(self, request: messages.StatusRequest, context: Any) -> messages.StatusResponse:
        """Say which student answers, and whether it reads its memory."""

        async def answer(deadline: float) -> messages.StatusResponse:
            (model,), readiness = self.desk.models(), self.desk.readiness()
            return messages.StatusResponse(
                model=model.id,
                dimensions=model.dimensions,
                max_tokens=model.max_tokens,
                labels=model.labels or [],
                status=readiness.status,
                memory=readiness.memory,
                reason=readiness.reason or "",
            )

        return await self._call("Status", request, context, answer, messages.StatusResponse())

    async def _call(
        self, name: str, request: Any, context: Any, answer: Callable[[float], Awaitable[Message]], nothing: Message
    ) -> Message:
        """Check the key, answer, count; an error becomes the call's status and an empty message."""
        sent = {str(key).lower(): str(value) for key, value in context.invocation_metadata() or ()}
        named = request_id(sent)
        route, started_s, metrics = f"grpc/{name}", time.perf_counter(), self.desk.metrics
        code = "OK"
        try:
            with tracing.request_span(route, sent):
                self._admit(sent)
                if (size := request.ByteSize()) > self.desk.limits.max_request_bytes:
                    raise TooLarge(f"the message has {size} bytes, wanted {self.desk.limits.max_request_bytes} at most")
                return await answer(self.desk.deadline(sent.get("x-timeout-ms")))
        except Exception as error:  # an edge: the caller gets a status, whatever it is
            kind = kind_of(error)
            if kind is BUG:
                log.error("request %s: %s", named, bug_report(error))
            code = kind.code.name
            metrics.errors.labels("bug" if kind is BUG else type(error).__name__).inc()
            context.set_code(kind.code)
            context.set_details(line_of(error, named))
            return nothing
        finally:
            context.set_trailing_metadata([("x-request-id", named)])
            metrics.requests.labels(route, code).inc()
            metrics.request_s.labels(route).observe(time.perf_counter() - started_s)

    def _admit(self, sent: Mapping[str, str]) -> None:
        if not self.desk.keys.accept(sent_key(sent)):
            raise Unauthorised("no key that is accepted: send the metadata `authorization: Bearer KEY`")


def _asked(texts: Iterable[messages.Text]) -> list[Asked]:
    found: list[Asked] = []
    for text in texts:
        if text.token_ids:
            if text.text or text.HasField("second"):
                raise InvalidInput("a text has both token_ids and text; send one of them")
            found.append(tuple(text.token_ids))
        else:
            found.append((text.text, text.second) if text.HasField("second") else text.text)
    return found


def _references(read: list[AttendedReference] | None) -> list[messages.Reference]:
    return [
        messages.Reference(
            step=one.step,
            id=one.id or "",
            text=() if one.text is None else parts(one.text),
            score=one.score,
            attention_mass=one.attention_mass,
        )
        for one in read or ()
    ]


def _timing(answered: Answered) -> messages.Timing:
    return messages.Timing(**{f"{stage}_ms": took for stage, took in answered.timing_ms.items()})
