"""The Ray that a job starts for itself: no other machine reaches it, and it does nothing for who lacks its key or its token."""

import os
import stat
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import ray

from jobs.run.mutual_tls import tls_environment
from jobs.run.session import SESSION_PREFIX
from tests.chaos.faults import children
from tests.listeners import addresses_of, is_loopback

NODES = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
TOKEN = Path.home() / ".ray" / "auth_token"
"""Where a user's Rays find theirs."""


@pytest.mark.parametrize(
    ("credentials", "token", "code"),
    [
        (None, "the token", grpc.StatusCode.UNAVAILABLE),
        ("of the server", "the token", grpc.StatusCode.UNAVAILABLE),
        ("another's key", "the token", grpc.StatusCode.UNAVAILABLE),
        ("the key", None, grpc.StatusCode.UNAUTHENTICATED),
        ("the key", "0123456789abcdef0123456789abcdef", grpc.StatusCode.UNAUTHENTICATED),
        ("the key", "the token", grpc.StatusCode.OK),
    ],
    ids=["no TLS", "no key", "another's key", "no token", "a wrong token", "key and token"],
)
def test_a_jobs_own_ray_asks_every_caller_for_its_key_and_then_for_the_token(
    ray_cluster, tmp_path, monkeypatch, credentials, token, code
):
    ours = tls_files(tls_environment())
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {
        "of the server": {"root_certificates": ours["certificate"]},
        "another's key": {"root_certificates": ours["certificate"], **shown(tls_files(tls_environment()))},
        "the key": {"root_certificates": ours["certificate"], **shown(ours)},
    }
    with channel_to(ray.get_runtime_context().gcs_address, given.get(credentials)) as channel:
        call = channel.unary_unary(NODES)
        held = TOKEN.read_text().strip() if token == "the token" else token
        try:
            _, answered = call.with_call(
                b"", metadata=(("authorization", f"Bearer {held}"),) if held else (), timeout=10
            )
        except grpc.RpcError as refused:
            answered = refused
        assert answered.code() == code


def tls_files(variables):
    return {
        "certificate": Path(variables["RAY_TLS_SERVER_CERT"]).read_bytes(),
        "key": Path(variables["RAY_TLS_SERVER_KEY"]).read_bytes(),
    }


def shown(files):
    return {"private_key": files["key"], "certificate_chain": files["certificate"]}


def channel_to(address, given):
    if given is None:
        return grpc.insecure_channel(address)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(**given))


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
