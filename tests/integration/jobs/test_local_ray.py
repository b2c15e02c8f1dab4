"""The Ray that a job starts for itself: no other machine reaches it, and it does nothing for who has no token."""

import os
import stat
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import ray

from jobs.run.session import SESSION_PREFIX
from tests.chaos.faults import children
from tests.listeners import addresses_of, is_loopback

NODES = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
TOKEN = Path.home() / ".ray" / "auth_token"
"""Where a user's Rays find theirs."""


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ((), grpc.StatusCode.UNAUTHENTICATED),
        ((("authorization", "Bearer 0123456789abcdef0123456789abcdef"),), grpc.StatusCode.UNAUTHENTICATED),
        (None, grpc.StatusCode.OK),
    ],
    ids=["no token", "a wrong token", "the token"],
)
def test_a_jobs_own_ray_asks_every_caller_for_the_token(ray_cluster, metadata, code):
    with grpc.insecure_channel(ray.get_runtime_context().gcs_address) as channel:
        call = channel.unary_unary(NODES)
        given = metadata if metadata is not None else (("authorization", f"Bearer {TOKEN.read_text().strip()}"),)
        try:
            _, answered = call.with_call(b"", metadata=given, timeout=10)
        except grpc.RpcError as refused:
            answered = refused
        assert answered.code() == code


def test_a_jobs_own_ray_listens_on_loopback_alone(ray_cluster):
    own = descendants(os.getpid())
    names = set()
    for pid in own:
        with suppress(FileNotFoundError):
            names.add(Path(f"/proc/{pid}/comm").read_text().strip())
    assert {"gcs_server", "raylet"} <= names
    addresses = addresses_of(own)
    assert addresses
    assert all(map(is_loopback, addresses)), addresses


def test_no_other_user_of_the_machine_enters_the_session_of_a_jobs_own_ray(ray_cluster):
    """Ray leaves the session itself open to every user: its sockets, and the code that it unpacks for a job."""
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    private = [folder for folder in session.parents if folder.name.startswith(SESSION_PREFIX)]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in private] == [0o700]


def descendants(pid: int) -> set[int]:
    """Processes that this one has started, and those that they have."""
    found = set(children(pid))
    return found.union(*map(descendants, found))
