"""The gRPC calls behind a real gRPC server: each asks for a key, whichever calls the API has."""

import asyncio

import grpc
import pytest
import torch

from jobs.config import RunConfig
from jobs.service.grpc_calls import GrpcCalls
from jobs.service.inference import InferenceService
from jobs.service.proto import refbert_pb2 as messages
from jobs.service.proto import refbert_pb2_grpc as stubs

CALLS = [method.name for method in messages.DESCRIPTOR.services_by_name["RefBert"].methods]


@pytest.fixture
def calls(tmp_path) -> GrpcCalls:
    """The calls of a service with one key, which loads no student: a call that gets in is told to wait."""
    (tmp_path / "keys").write_text("sk-one\n")
    config = RunConfig.model_validate({"corpus": {"path": "x"}, "serve": {"api_keys_file": str(tmp_path / "keys")}})
    return GrpcCalls(InferenceService(config, torch.device("cpu")))


async def codes(calls, metadata):
    """The status codes of every call of the API, by name."""
    server = grpc.aio.server()
    servicer = type("Servicer", (), {name: staticmethod(getattr(calls, name.lower())) for name in CALLS})
    stubs.add_RefBertServicer_to_server(servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    found = {}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = stubs.RefBertStub(channel)
        for name in CALLS:
            request = getattr(messages, f"{name}Request")()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await getattr(stub, name)(request, metadata=metadata)
            found[name] = refused.value.code().name
    await server.stop(None)
    return found


@pytest.mark.parametrize(
    "metadata",
    [(), [("authorization", "Bearer sk-two")], [("authorization", "sk-one")], [("x-api-key", "")],
     [("x-timeout-ms", "no number")]],
)  # fmt: skip
def test_no_call_gets_in_without_a_key(calls, metadata):
    assert asyncio.run(codes(calls, metadata)) == dict.fromkeys(CALLS, "UNAUTHENTICATED")


def test_every_call_gets_in_with_a_key(calls):
    for metadata in ([("authorization", "Bearer sk-one")], [("x-api-key", "sk-one")]):
        assert asyncio.run(codes(calls, metadata)) == dict.fromkeys(CALLS, "UNAVAILABLE")  # there is no student yet
