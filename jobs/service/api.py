"""The HTTP API of an inference service, with its OpenAPI page and the page to try a student.

What a student answers is serialised here by orjson, vectors straight from their arrays: the response models of `schema`
describe it and are not run. Only the references of an answer with `explain`, and what describes the service (models, info,
health, readiness), are such models. What comes before the API, such as keys and limits of a body, is in `middleware`.
"""

import base64
import copy
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from jobs.service import errors, schema
from jobs.service.inference import InferenceResult, InferenceService
from jobs.service.metrics import CONTENT_TYPE
from jobs.service.middleware import PUBLIC_ROUTES
from jobs.service.student import ServedStudent, TextResult

PLAYGROUND = Path(__file__).parent / "playground"
"""Folder of the page to try the student."""

PLAYGROUND_FILES = {"/": "index.html", "/playground.css": "playground.css", "/playground.js": "playground.js"}
"""Its files by route. Each route has one, so no path and no host of a request can ask for another."""

PLAYGROUND_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src data:; style-src 'self' 'unsafe-inline'",
    "cache-control": "no-cache",
}

SEND_JSON = "send JSON with the header `content-type: application/json`"

MetricsText = Callable[[], Awaitable[str]]


def http_api(service: InferenceService, metrics_text: MetricsText | None = None) -> FastAPI:
    """Return the API of a service. `metrics_text` replaces the text of /metrics, which is otherwise this service's own."""
    api = FastAPIOffline(
        title="RefBERT",
        version="1",
        description="Embeddings and labels by small students that read references. Times in milliseconds.",
        redoc_url=None,
    )
    _add_error_handlers(api)
    refused = _refusals(400, 401, 408, 413, 422, 429, 503, 504)
    refused_model = refused | _refusals(404)

    @api.post("/v1/embeddings", response_model=schema.EmbeddingResponse, responses=refused_model)
    async def embeddings(request: Request, body: schema.EmbeddingRequest) -> Response:
        """Embed one text or several, as OpenAI's API does; a text may be a pair."""
        service.check_truncation(body.truncate_prompt_tokens, body.model)
        result = await service.infer(
            body.input, request.state.deadline, bool(body.explain), body.dimensions, body.model
        )

        def embedding(text: TextResult) -> dict[str, Any]:
            vector: Any = text.vector
            if body.encoding_format == "base64":
                vector = base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()
            return {"object": "embedding", "embedding": vector}

        return _response(request, result, result.texts, embedding)

    @api.post("/v1/classify", response_model=schema.ClassifyResponse, responses=refused_model)
    async def classify(request: Request, body: schema.ClassifyRequest) -> Response:
        """Label one text or several; 422 where the student has no head."""
        result = await service.classify(body.input, request.state.deadline, bool(body.explain), body.model)
        return _response(request, result, result.texts, lambda text: best_label(text, result.labels or []))

    @api.post("/v1/similarity", response_model=schema.SimilarityResponse, responses=refused_model)
    async def similarity(request: Request, body: schema.SimilarityRequest) -> Response:
        """Compare one text with others: cosines of their vectors."""
        if not body.input:
            raise errors.InvalidInput("input: got 0 texts to compare the source with, wanted at least 1")
        texts = [body.source, *body.input]
        result = await service.infer(texts, request.state.deadline, bool(body.explain), model=body.model)
        source, *others = result.texts
        return _response(request, result, others, lambda text: {"similarity": float(source.vector @ text.vector)})

    @api.post("/v1/rerank", response_model=schema.RerankResponse, responses=refused_model)
    async def rerank(request: Request, body: schema.RerankRequest) -> Response:
        """Rank documents by the cosine of their vectors with the query's, in Cohere's and Jina's form."""
        service.check_truncation(body.truncate_prompt_tokens, body.model)
        if not body.documents:
            raise errors.InvalidInput("documents: got 0 documents to rank, wanted at least 1")
        texts = [body.query, *(document["text"] for document in body.documents)]
        result = await service.infer(texts, request.state.deadline, model=body.model)
        query, *documents = (text.vector for text in result.texts)
        scores = [float(query @ document) for document in documents]
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
        ranked = [
            {"index": index, "relevance_score": scores[index]}
            | ({"document": body.documents[index]} if body.return_documents else {})
            for index in best
        ]
        return _json({"id": request.state.request_id, "results": ranked, **_result_fields(request, result)})

    @api.post("/embed", response_model=list[list[float]], responses=refused)
    async def embed(request: Request, body: schema.EmbedRequest) -> Response:
        """Embed one text or several by the run's own student, in the form of Hugging Face's text-embeddings-inference."""
        result = await service.infer(body.inputs, request.state.deadline, dimensions=body.dimensions)
        _result_fields(request, result)
        return _json([text.vector for text in result.texts])

    @api.post("/v1/explain", response_model=schema.Explanation, responses=refused_model)
    async def explain(request: Request, body: schema.ExplainRequest) -> Response:
        """Explain one text: what it read, attention by layer and token, and the answer without references."""
        explanation = await service.explain(body.input, request.state.deadline, body.model)
        for read in (*explanation["references"], *explanation["nearest"]):
            read["step"] = read["rung"]  # the old name, kept for one release
        return _json(explanation)

    @api.get("/v1/models", responses=_refusals(401, 503))
    async def models() -> schema.ModelList:
        """Describe the students of this service, the run's own first."""
        return schema.ModelList(data=service.models())

    @api.get("/v1/models/{model}", responses=_refusals(401, 404, 422, 503))
    async def model(model: str) -> schema.Model:
        """Describe a student by its name; 404 for a name that is none."""
        return service.model(model)

    @api.get("/info", responses=_refusals(401, 503))
    async def info() -> schema.ServiceInfo:
        """Describe the run's own student and the limits, in the form of text-embeddings-inference."""
        return service.info()

    @api.get("/health", responses=_refusals(503))
    async def health() -> schema.Readiness:
        """Tell whether requests are taken, as /readyz does, where text-embeddings-inference says it."""
        return service.readiness()

    @api.get("/healthz")
    async def healthz() -> schema.Health:
        """Tell that this replica's process answers."""
        return schema.Health(model=service.config.name)

    @api.get("/readyz", responses=_refusals(503))
    async def readyz() -> schema.Readiness:
        """Tell whether requests are taken, and whether they read their memories: `degraded` is still ready."""
        return service.readiness()

    @api.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        text = await metrics_text() if metrics_text else service.metrics.text()
        return Response(text, headers={"content-type": CONTENT_TYPE})

    for path, file in PLAYGROUND_FILES.items():
        api.add_api_route(path, _sends(PLAYGROUND / file), include_in_schema=False)

    plain_openapi = api.openapi
    api.openapi = lambda: _with_limits(plain_openapi(), service)  # type: ignore[method-assign]
    return api


# ---------------------------------------------------------------- responses


def best_label(text: TextResult, labels: list[str]) -> dict[str, Any]:
    """Return a text's best label with its score, and the scores of all labels."""
    assert text.scores is not None
    scores = dict(zip(labels, text.scores.tolist(), strict=True))
    best = max(scores, key=lambda label: scores[label])
    return {"label": best, "score": scores[best], "scores": scores}


def _response(
    request: Request,
    result: InferenceResult,
    texts: Sequence[TextResult],
    fields: Callable[[TextResult], dict[str, Any]],
) -> Response:
    """Return the response with an item for each of `texts`, and tell the request log about it."""
    data = [{"index": index, **fields(text), **_references(text)} for index, text in enumerate(texts)]
    return _json({"object": "list", "data": data, **_result_fields(request, result)})


def _result_fields(request: Request, result: InferenceResult) -> dict[str, Any]:
    """Return the fields of every response that was computed, and tell the request log about it."""
    tokens, timing_ms = result.tokens, result.timing_ms
    request.state.log = {
        "model": result.model, "texts": len(result.texts), "tokens": tokens, "stages_ms": timing_ms,
    }  # fmt: skip
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"model": result.model, "usage": usage, "timing_ms": timing_ms}


def _references(text: TextResult) -> dict[str, Any]:
    best, *others = [None] if text.references is None else [read.model_dump() for read in text.references]
    return {"reference": best, "further_references": None if best is None else others, "nearness": text.nearness}


def _sends(file: Path) -> Callable[[], Awaitable[FileResponse]]:
    """Return an endpoint that sends a file of the page."""

    async def playground() -> FileResponse:
        return FileResponse(file, headers=PLAYGROUND_HEADERS)

    return playground


def _json(body: Any) -> Response:
    return Response(
        orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS), media_type="application/json"
    )


# ---------------------------------------------------------------- errors


def _add_error_handlers(api: FastAPI) -> None:
    """Answer every error in the form of `errors.error_response`. The middleware gets a bug as well, and logs it."""

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            if isinstance(error.body, bytes):  # FastAPI leaves a body as it came, unless it is sent as JSON
                sent = request.headers.get("content-type")
                error = errors.InvalidInput(
                    f"the body was sent {'as ' + sent[:100] if sent else 'without a content type'}; {SEND_JSON}"
                )
            else:
                error = errors.InvalidInput("; ".join(_mistakes(error)[:5]))
        request.state.error = errors.name_of(error)
        return errors.error_response(error, request.state.request_id)

    async def refuse_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
        body = errors.error_body(str(error.detail), kind, request.state.request_id)
        return JSONResponse(body, error.status_code, error.headers)

    for kind in (*errors.KINDS, RequestValidationError, Exception):
        api.add_exception_handler(kind, refuse)
    api.add_exception_handler(HTTPException, refuse_route)


def _mistakes(error: RequestValidationError) -> list[str]:
    """Return one line per mistake: where, and what was wanted; never what was sent."""
    lines = []
    for detail in error.errors():
        where = ".".join(str(part) for part in detail["loc"][1:])
        message = str(detail["msg"]).removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = "is not known"
        elif detail["type"] == "missing":
            message = "is missing" if where else f"the request has no body; {SEND_JSON}"
        elif detail["type"] == "json_invalid":
            where, message = "", "the body is not JSON"
        lines.append(f"{where}: {message}" if where else message)
    return [line.encode("utf-8", "replace").decode() for line in lines]


# ---------------------------------------------------------------- the OpenAPI page


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the error responses of an operation."""
    described = {kind.status: (error.__doc__ or "").partition("\n")[0] for error, kind in errors.KINDS.items()}
    described |= {400: "The body is not JSON in UTF-8.", 422: errors.InvalidInput.__doc__ or ""}
    return {status: {"model": schema.ErrorResponse, "description": described[status]} for status in statuses}


def _fewest_dimensions(student: ServedStudent) -> int:
    """Return the fewest numbers that a student's vectors can be cut to."""
    correction = student.memory.reader.correction
    return 1 if correction is not None and correction.components is not None else student.dim


def _with_limits(page: dict[str, Any], service: InferenceService) -> dict[str, Any]:
    """Add to the page the service's limits, what its students can do, and how a key is sent.

    The page has one schema for all students: of several it says what at least one of them takes.
    """
    page = copy.deepcopy(page)  # FastAPI keeps its own, and the students may change
    models, limits, students = page["components"]["schemas"], service.limits, list(service.students.values())
    for name, field in (
        ("EmbeddingRequest", "input"), ("ClassifyRequest", "input"), ("SimilarityRequest", "input"), ("EmbedRequest", "inputs"),
    ):  # fmt: skip
        one, many, ids = models[name]["properties"][field]["anyOf"]
        string, pair, one_of_ids = many["items"]["anyOf"]
        many["maxItems"] = limits.max_texts - (name == "SimilarityRequest")
        for text in (one, string, pair["items"]):
            text["maxLength"] = limits.max_characters
        for several in (ids["properties"]["token_ids"], one_of_ids["properties"]["token_ids"]):
            several["maxItems"] = limits.max_characters
            if students:
                several["items"]["maximum"] = max(student.vocabulary for student in students) - 1
    ranked = models["RerankRequest"]["properties"]
    ranked["documents"]["maxItems"] = limits.max_texts - 1
    a_text, a_document = ranked["documents"]["items"]["anyOf"]
    for text in (ranked["query"], a_text, a_document["properties"]["text"]):
        text["maxLength"] = limits.max_characters
    if students:
        for name, asked in (("EmbeddingRequest", students), ("EmbedRequest", students[:1])):
            (number, *_) = models[name]["properties"]["dimensions"]["anyOf"]
            number.update(minimum=min(map(_fewest_dimensions, asked)), maximum=max(student.dim for student in asked))
        for name in ("EmbeddingRequest", "RerankRequest"):
            (number, *_) = models[name]["properties"]["truncate_prompt_tokens"]["anyOf"]
            number.update(minimum=min(student.reader.max_tokens for student in students))
        if limits.refuse_other_models:
            for name in (
                "EmbeddingRequest", "ClassifyRequest", "SimilarityRequest", "RerankRequest", "ExplainRequest",
            ):  # fmt: skip
                (string, *_) = models[name]["properties"]["model"]["anyOf"]
                string["enum"] = [student.name for student in students]
        if all(student.labels is None for student in students):
            del page["paths"]["/v1/classify"]
    page["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in page["paths"].items():
        if path not in PUBLIC_ROUTES:
            for operation in operations.values():
                operation["security"] = [{"key": []}, {}]
    return page
