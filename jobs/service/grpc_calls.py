"""The gRPC API of an inference service: messages to inputs, results to messages, errors to status codes.

Each call checks the key and the message's size, and is counted. `proto/refbert_pb2*` are generated from `proto/refbert.proto`.
After a change of refbert.proto, generate them again:

    pip install grpcio-tools==1.85.1
    python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. jobs/service/proto/refbert.proto
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias, TypeVar

import numpy as np

from jobs.service import tracing
from jobs.service.api import best_label
from jobs.service.errors import BUG, InvalidInput, TooLarge, Unauthorised, kind_of, message_of, name_of
from jobs.service.inference import InferenceResult, InferenceService
from jobs.service.inputs import TextInput
from jobs.service.middleware import api_key, request_id, traceback_without_message
from jobs.service.proto import refbert_pb2 as messages
from jobs.service.schema import AttendedReference
from vector_store.schema import parts

log = logging.getLogger(__name__)

Response = TypeVar("Response")
Method: TypeAlias = Callable[..., Awaitable[Response]]

ADD_SERVICER = "jobs.service.proto.refbert_pb2_grpc.add_RefBertServicer_to_server"
"""What Ray Serve's gRPC proxy is told to serve."""


def _call(empty: type[Response]) -> Callable[[Method[Response]], Method[Response]]:
    """Make a gRPC call of a method that takes a message and a deadline: checks, metrics, and errors as status codes.

    An error becomes the status of the call and an `empty` message. `grpc_context` is Ray Serve's name for the call's context.
    """

    def decorate(method: Method[Response]) -> Method[Response]:
        route = f"grpc/{method.__name__.title()}"

        async def call(self: "GrpcCalls", request: Any, grpc_context: Any) -> Response:
            service, started_s = self.service, time.perf_counter()
            metadata = {str(key).lower(): str(value) for key, value in grpc_context.invocation_metadata() or ()}
            named, code, error_name = request_id(metadata), "OK", None
            try:
                with tracing.request_span(route, metadata):
                    self.check(request, metadata)
                    return await method(self, request, service.deadline(metadata.get("x-timeout-ms")))
            except Exception as error:  # an edge: the caller gets a status, whatever it is
                kind, error_name = kind_of(error), name_of(error)
                if kind is BUG:
                    log.error("request %s: %s", named, traceback_without_message(error))
                code = kind.code.name
                grpc_context.set_code(kind.code)
                grpc_context.set_details(message_of(error, named))
                return empty()
            finally:
                grpc_context.set_trailing_metadata([("x-request-id", named)])
                service.metrics.count_request(route, code, time.perf_counter() - started_s, error_name)

        return call

    return decorate


class GrpcCalls:
    """The calls of `proto/refbert.proto` on one service. Each takes a message and Ray Serve's context of the call."""

    def __init__(self, service: InferenceService) -> None:
        self.service = service

    def check(self, request: Any, metadata: dict[str, str]) -> None:
        """Raise Unauthorised for a key that is not accepted, TooLarge for a message over the limit."""
        most, size = self.service.limits.max_request_bytes, request.ByteSize()
        if not self.service.keys.accept(api_key(metadata)):
            raise Unauthorised("no accepted key: send the metadata `authorization: Bearer KEY`")
        if size > most:
            raise TooLarge(f"the message has {size} bytes, wanted {most} at most")

    @_call(messages.EmbedResponse)
    async def embed(self, request: messages.EmbedRequest, deadline: float) -> messages.EmbedResponse:
        """Return vectors."""
        model = request.model or None
        result = await self.service.infer(_inputs(request.texts), deadline, request.explain, model=model)
        return messages.EmbedResponse(
            model=result.model,
            dimensions=len(result.texts[0].vector),
            embeddings=[
                messages.Embedding(
                    vector=text.vector.astype("<f4", copy=False).tobytes(),
                    tokens=text.tokens,
                    references=_references(text.references),
                )
                for text in result.texts
            ],
            timing=_timing(result),
        )

    @_call(messages.ClassifyResponse)
    async def classify(self, request: messages.ClassifyRequest, deadline: float) -> messages.ClassifyResponse:
        """Return labels."""
        model = request.model or None
        result = await self.service.classify(_inputs(request.texts), deadline, request.explain, model)
        return messages.ClassifyResponse(
            model=result.model,
            classifications=[
                messages.Classification(
                    tokens=text.tokens,
                    references=_references(text.references),
                    **best_label(text, result.labels or []),
                )
                for text in result.texts
            ],
            timing=_timing(result),
        )

    @_call(messages.SimilarityResponse)
    async def similarity(self, request: messages.SimilarityRequest, deadline: float) -> messages.SimilarityResponse:
        """Return cosines."""
        texts = _inputs([request.source, *request.texts])
        result = await self.service.infer(texts, deadline, model=request.model or None)
        source, *others = (text.vector for text in result.texts)
        return messages.SimilarityResponse(
            model=result.model,
            similarities=np.array([source @ other for other in others], np.float32),
            timing=_timing(result),
        )

    @_call(messages.StatusResponse)
    async def status(self, request: messages.StatusRequest, deadline: float) -> messages.StatusResponse:
        """Return which student answers, and whether it reads its memory; NOT_FOUND for a name that is none."""
        model, readiness = self.service.model(request.model or None), self.service.readiness()
        state = readiness.models[model.id]
        refused = readiness.refused if model.id == readiness.model else None
        return messages.StatusResponse(
            model=model.id,
            dimensions=model.dimensions,
            max_tokens=model.max_tokens,
            labels=model.labels or [],
            status=state.status,
            memory=state.memory,
            reason="; ".join(filter(None, (state.reason, refused))),
            models=readiness.models,
        )


def _inputs(texts: Iterable[messages.Text]) -> list[TextInput]:
    inputs: list[TextInput] = []
    for text in texts:
        if text.token_ids:
            if text.text or text.HasField("second"):
                raise InvalidInput("a text has both token_ids and text; send one of them")
            inputs.append(tuple(text.token_ids))
        else:
            inputs.append((text.text, text.second) if text.HasField("second") else text.text)
    return inputs


def _references(read: list[AttendedReference] | None) -> list[messages.Reference]:
    return [
        messages.Reference(
            rung=one.rung,
            step=one.step,
            id=one.id or "",
            text=() if one.text is None else parts(one.text),
            score=one.score,
            attention_mass=one.attention_mass,
        )
        for one in read or ()
    ]


def _timing(result: InferenceResult) -> messages.Timing:
    return messages.Timing(**{f"{stage}_ms": took for stage, took in result.timing_ms.items()})
