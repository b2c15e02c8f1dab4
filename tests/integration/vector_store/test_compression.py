"""Servers that gzip their answers: a client accepts that only where it is asked to, or nothing else is to be had."""

from concurrent import futures

import grpc
import pytest
from qdrant_client import grpc as api

from vector_store.client import connect
from vector_store.config import StoreConfig


class Collections(api.CollectionsServicer):
    """Answers one call with 20 kB that compress well."""

    def List(self, request, context):  # noqa: N802 - the name of the call
        return api.ListCollectionsResponse(collections=[api.CollectionDescription(name="a" * 1000)] * 20, time=1.0)


@pytest.fixture(params=[grpc.Compression.NoCompression, grpc.Compression.Gzip], ids=["plain", "gzip"])
def server(request):
    started = grpc.server(futures.ThreadPoolExecutor(2), compression=request.param)
    api.add_CollectionsServicer_to_server(Collections(), started)
    port = started.add_insecure_port("127.0.0.1:0")
    started.start()
    yield f"http://127.0.0.1:{port}", request.param == grpc.Compression.Gzip
    started.stop(0)


@pytest.mark.parametrize("several", [False, True], ids=["call", "ask"])
def test_compressed_answers_are_accepted_only_from_a_server_that_sends_nothing_else(server, several, caplog):
    url, gzips = server
    config = StoreConfig(url=url)
    request = api.ListCollectionsRequest()
    with connect(config, url) as client:
        for _ in range(3):
            names = client.collections.List
            answers = client.ask(names, [request] * 2, 10) if several else [client.call(names, request, 10)]
            assert all(len(answer.collections) == 20 for answer in answers)
    assert caplog.text.count("compresses its answers, accepted or not") == int(gzips)
