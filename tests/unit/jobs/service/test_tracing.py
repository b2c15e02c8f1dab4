"""Spans of requests hold no text, whatever a request ends with."""

import pytest

from jobs.service import tracing

TEXT = "a text of somebody's"


def test_the_span_of_a_request_that_fails_has_the_errors_class_and_not_its_message(monkeypatch):
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracers", [provider.get_tracer("refbert")])
    with pytest.raises(ValueError, match=TEXT), tracing.request_span("grpc/Embed", {}):
        raise ValueError(TEXT)
    (span,) = exporter.get_finished_spans()
    assert span.status.description == "ValueError"
    assert not span.status.is_ok
    assert TEXT not in span.to_json()
