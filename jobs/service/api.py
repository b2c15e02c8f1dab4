"""The HTTP API of one desk, with its OpenAPI page.

Answers are serialised here, by orjson straight from the student's arrays: the models of `schema` only describe them.
"""

import base64
import copy
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from jobs.service import errors, schema
from jobs.service.inference import Answered, Desk
from jobs.service.metrics import CONTENT_TYPE
from jobs.service.student import Row

PAGE = Path(__file__).parent / "playground"
"""The page's files, and the only ones that are sent: by name, not by path."""

PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src data:; style-src 'self' 'unsafe-inline'",
    "cache-control": "no-cache",
}

TYPES = {404: "not_found_error", 405: "invalid_request_error"}

MetricsText = Callable[[], Awaitable[str]]


def http_api(desk: Desk, metrics_text: MetricsText | None = None) -> FastAPI:
    """The API of a desk. `metrics_text` says what /metrics shows where that is more than this desk's own."""
    api = FastAPIOffline(
        title="RefBERT",
        version="1",
        description="Embeddings and labels by a small student that reads references. Times in milliseconds.",
        redoc_url=None,
    )
    _answer_errors(api)
    refused = _refusals(400, 401, 408, 413, 422, 429, 503, 504)

    @api.post("/v1/embeddings", response_model=schema.EmbeddingResponse, responses=refused)
    async def embeddings(request: Request, asked: schema.EmbeddingRequest) -> Response:
        """Embed one text or several, as OpenAI's API does; a text may be a pair."""
        answered = await desk.ask(asked.input, request.state.deadline, asked.explain, asked.dimensions)
        encode = _as_base64 if asked.encoding_format == "base64" else _as_it_is
        data = [
            {"object": "embedding", "index": index, "embedding": encode(row), **_read(row)}
            for index, row in enumerate(answered.rows)
        ]
        return _response(request, answered, data)

    @api.post("/v1/classify", response_model=schema.ClassifyResponse, responses=refused)
    async def classify(request: Request, asked: schema.ClassifyRequest) -> Response:
        """Label one text or several; 422 where the student has no head."""
        answered = await desk.classify(asked.input, request.state.deadline, asked.explain)
        data = [
            {"index": index, **labelled(row, answered.labels or []), **_read(row)}
            for index, row in enumerate(answered.rows)
        ]
        return _response(request, answered, data)

    @api.post("/v1/similarity", response_model=schema.SimilarityResponse, responses=refused)
    async def similarity(request: Request, asked: schema.SimilarityRequest) -> Response:
        """Compare one text with others: cosines of their vectors."""
        if not asked.input:
            raise errors.InvalidInput("input: got 0 texts to compare the source with, wanted at least 1")
        answered = await desk.ask([asked.source, *asked.input], request.state.deadline, asked.explain)
        source, *others = answered.rows
        data = [
            {"index": index, "similarity": float(source.vector @ row.vector), **_read(row)}
            for index, row in enumerate(others)
        ]
        return _response(request, answered, data)

    @api.post("/v1/explain", response_model=schema.Explanation, responses=refused)
    async def explain(request: Request, asked: schema.ExplainRequest) -> Response:
        """Explain one text: what it read, attention by layer and token, and what it would have said without."""
        return _json(await desk.explain(asked.input, request.state.deadline))

    @api.get("/v1/models", responses=_refusals(401, 503))
    async def models() -> schema.ModelList:
        """The student that answers."""
        return schema.ModelList(data=desk.models())

    @api.get("/healthz")
    async def healthz() -> schema.Health:
        """Say that this replica answers."""
        return schema.Health(model=desk.config.name)

    @api.get("/readyz", responses=_refusals(503))
    async def readyz() -> schema.Readiness:
        """Say whether requests are taken, and whether they read the memory: `degraded` is still ready."""
        return desk.readiness()

    @api.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Count, for Prometheus."""
        text = await metrics_text() if metrics_text else desk.metrics.text()
        return Response(text, headers={"content-type": CONTENT_TYPE})

    @api.get("/", include_in_schema=False)
    @api.get("/playground.css", include_in_schema=False)
    @api.get("/playground.js", include_in_schema=False)
    async def playground(request: Request) -> FileResponse:
        """Show the page that tries the student out."""
        return FileResponse(PAGE / (request.url.path.rpartition("/")[2] or "index.html"), headers=PAGE_HEADERS)

    plain_openapi = api.openapi
    api.openapi = lambda: _as_served(plain_openapi(), desk)  # type: ignore[method-assign]
    return api


# ---------------------------------------------------------------- answers


def labelled(row: Row, labels: list[str]) -> dict[str, Any]:
    """A row's best label with its score, and every label's."""
    assert row.scores is not None
    scores = dict(zip(labels, row.scores.tolist(), strict=True))
    best = max(scores, key=lambda label: scores[label])
    return {"label": best, "score": scores[best], "scores": scores}


def _response(request: Request, answered: Answered, data: list[dict[str, Any]]) -> Response:
    request.state.answered = {"texts": len(answered.rows), "tokens": answered.tokens, "stages_ms": answered.timing_ms}
    usage = {"prompt_tokens": answered.tokens, "total_tokens": answered.tokens}
    return _json(
        {"object": "list", "data": data, "model": answered.model, "usage": usage, "timing_ms": answered.timing_ms}
    )


def _json(body: Any) -> Response:
    return Response(
        orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS), media_type="application/json"
    )


def _as_it_is(row: Row) -> Any:
    return row.vector


def _as_base64(row: Row) -> str:
    return base64.b64encode(row.vector.astype("<f4", copy=False).tobytes()).decode()


def _read(row: Row) -> dict[str, Any]:
    if row.references is None:
        return {"reference": None, "further_references": None}
    best, *others = (read.model_dump() for read in row.references)
    return {"reference": best, "further_references": others}


# ---------------------------------------------------------------- errors


def _answer_errors(api: FastAPI) -> None:
    """Answer what the API itself refuses as everything else is refused; bugs are the gate's."""

    async def known(request: Request, error: Exception) -> Response:
        request.state.error = type(error).__name__
        return _refusal(
            request, errors.kind_of(error).status, errors.kind_of(error).type, str(error), errors.headers_of(error)
        )

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        request.state.error = "InvalidInput"
        return _refusal(request, 422, "invalid_request_error", "; ".join(_mistakes(error)[:5]), {})

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = TYPES.get(error.status_code, "invalid_request_error")
        return _refusal(request, error.status_code, kind, str(error.detail), dict(error.headers or {}))

    async def bug(request: Request, error: Exception) -> Response:
        request.state.error = "bug"  # the gate, which gets the error too, logs it
        return _refusal(
            request, errors.BUG.status, errors.BUG.type, errors.line_of(error, request.state.request_id), {}
        )

    for kind in errors.KINDS:
        api.add_exception_handler(kind, known)
    api.add_exception_handler(Exception, bug)
    api.add_exception_handler(RequestValidationError, invalid)
    api.add_exception_handler(HTTPException, of_http)


def _refusal(request: Request, status: int, kind: str, message: str, headers: dict[str, str]) -> Response:
    body = errors.error_body(" ".join(message.split()), kind, request.state.request_id)
    return Response(orjson.dumps(body), status, headers, "application/json")


def _mistakes(error: RequestValidationError) -> list[str]:
    """One line per mistake: where, and what was wanted; never what was sent."""
    lines = []
    for detail in error.errors():
        where = ".".join(str(part) for part in detail["loc"][1:])
        message = str(detail["msg"]).removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = "is not known"
        elif detail["type"] == "missing":
            message = "is missing" if where else "the request has no body; send JSON"
        elif detail["type"] == "json_invalid":
            where, message = "", "the body is not JSON"
        lines.append(f"{where}: {message}" if where else message)
    return [line.encode("utf-8", "replace").decode() for line in lines]


# ---------------------------------------------------------------- the page


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What an operation may answer instead."""
    what = {
        400: "The body is not JSON in UTF-8.",
        401: "No key, or one that is not accepted.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        422: "The request cannot be answered as it stands.",
        429: "Too many texts wait; `Retry-After` says when to come back.",
        503: "Not ready; try again.",
        504: "The request's time was over.",
    }
    return {status: {"model": schema.ErrorResponse, "description": what[status]} for status in statuses}


def _as_served(page: dict[str, Any], desk: Desk) -> dict[str, Any]:
    """Say in the page what this service's limits are and what its student can, and how a key is sent."""
    page = copy.deepcopy(page)  # FastAPI keeps its own, and the student may change
    models, limits, student = page["components"]["schemas"], desk.limits, desk.student
    for name in ("EmbeddingRequest", "ClassifyRequest", "SimilarityRequest"):
        one, many, ids = models[name]["properties"]["input"]["anyOf"]
        string, pair, one_of_ids = many["items"]["anyOf"]
        many["maxItems"] = limits.max_texts - (name == "SimilarityRequest")
        for text in (one, string, pair["items"]):
            text["maxLength"] = limits.max_characters
        for several in (ids, one_of_ids):
            several["maxItems"] = limits.max_characters
            if student:
                several["items"]["maximum"] = student.vocabulary - 1
    if student:
        (number, *_) = models["EmbeddingRequest"]["properties"]["dimensions"]["anyOf"]
        number.update(minimum=student.dim, maximum=student.dim)
        if student.labels is None:
            del page["paths"]["/v1/classify"]
    page["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in page["paths"].items():
        if path.startswith("/v1/"):
            for operation in operations.values():
                operation["security"] = [{"key": []}, {}]
    return page
