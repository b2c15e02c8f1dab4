"""OpenTelemetry spans of requests, where opentelemetry is installed and `serve.tracing` is set; otherwise nothing.

Spans go to the process's tracer provider; none is set here. What this module writes into spans is routes, counts and times, no
texts.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

try:
    from opentelemetry import propagate, trace
except ImportError:  # optional: the service runs without
    trace = None  # type: ignore[assignment]

_tracers: list[Any] = []


def enable() -> None:
    """Turn tracing on for this process, where opentelemetry is installed."""
    if trace is not None:
        _tracers[:] = [trace.get_tracer("refbert")]


@contextlib.contextmanager
def request_span(route: str, headers: Mapping[str, str]) -> Iterator[None]:
    """Open a span for one request, a child of the caller's span where `headers` name one.

    Of an exception it has the class alone: OpenTelemetry would write the message, too, which may quote a text.
    """
    if not _tracers:
        yield
        return
    made = _tracers[0].start_as_current_span(
        f"refbert {route}", propagate.extract(headers), record_exception=False, set_status_on_exception=False
    )
    with made as span:
        try:
            yield
        except Exception as error:
            span.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise


def record_stages(texts: int, **took_ms: float) -> None:
    """Record in the current span how many texts were answered, and each stage of its time as a child span."""
    if not _tracers:
        return
    trace.get_current_span().set_attribute("refbert.texts", texts)
    end_ns = time.time_ns()
    for name, stage_ms in reversed(took_ms.items()):  # one after another, ending now
        start_ns = end_ns - int(1e6 * stage_ms)
        _tracers[0].start_span(f"refbert {name}", start_time=start_ns).end(end_time=end_ns)
        end_ns = start_ns
