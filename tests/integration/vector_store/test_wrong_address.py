"""An address at which no gRPC answers: one line says so at once, where a store that is away would be waited for."""

import time

import pytest
from qdrant_client import grpc as api

from tests.store_clients import rest_address
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreError, StoreUnavailable


def test_a_stores_rest_port_is_refused_at_once_and_the_line_asks_for_the_grpc_port(server_url):
    if not (rest := rest_address(server_url)):
        pytest.skip("this server's REST address is not known: set QDRANT_REST_URL")
    started = time.monotonic()
    with connect(StoreConfig(), rest, api_key="any") as client:
        with pytest.raises(StoreError) as caught:
            client.call(client.collections.List, api.ListCollectionsRequest(), deadline_s=30)
        assert not isinstance(caught.value, StoreUnavailable)
        assert str(caught.value) == (
            f"{rest} answers HTTP and no gRPC, as Qdrant's REST port does (6333 by default); give the address of its gRPC "
            "port (6334 by default)"
        )
        with pytest.raises(StoreError, match="answers HTTP and no gRPC"):
            client.ask(client.collections.List, [api.ListCollectionsRequest()], deadline_s=30)
    assert time.monotonic() - started < 15
