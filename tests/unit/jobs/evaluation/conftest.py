"""A report as an evaluation writes it."""

import pytest


@pytest.fixture
def report() -> dict:
    speed = {"batch": 32, "latency_ms_p50": 10.0, "latency_ms_p99": 20.0, "examples_per_s": 100.0}
    fidelity = {
        "state_mse": 0.1, "sentence_cosine": 0.5, "mutual_information_nats": 3.0, "retrieval_top1": 0.4,
    }  # fmt: skip
    return {
        "teacher": {"name": "t", "params": 22_000_000, "layers": 6, "dim": 384},
        "student": {"params": 11_000_000, "layers": 4, "dim": 312, "compression": 2.0,
                    "bytes": 11_000_000, "bytes_compression": 8.0},
        "corpus": "tickets.jsonl",
        "memory": {
            "points": 5, "bytes": 10**6, "criterion": "keywords", "tokens": 32, "dim": 384, "datatype": "float16",
            "url_kind": "embedded", "references_per_text": 1,
        },
        "distill": {
            "steps": 3, "seconds": 2.0, "examples_per_s": 48.0, "data_wait_fraction": 0.01, "world_size": 1, "zero_stage": 0,
        },
        "fidelity": {
            "nearest": fidelity, "null": {**fidelity, "sentence_cosine": 0.4321}, "random": fidelity, "texts": 100,
            "mutual_information": {"pool": 100, "temperature": 0.05},
        },
        "speed": {
            "teacher": speed, "student": {**speed, "examples_per_s": 300.0}, "student_with_lookup": speed,
        },
        "run": {"commit": "abc", "versions": {"torch": "2"}, "hardware": "2 x CPU", "seconds": 3.0},
    }  # fmt: skip
