"""The REST port of a server that runs: where it is named, which port it takes, and what is said where it cannot be had."""

import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from tests.chaos.faults import is_alive, server_pid, wait_until
from tests.store_clients import official_client
from vector_store.__main__ import main
from vector_store.errors import StoreUnavailable
from vector_store.server import process
from vector_store.server.access import split
from vector_store.server.process import embedded_server, rest_url


def test_log_info_and_address_name_both_ports_and_a_restart_takes_them_again(tmp_path, capsys, caplog):
    with embedded_server(tmp_path, rest_port=0) as url:
        grpc_port, rest = split(url)[0].rsplit(":", 1)[1], rest_url(tmp_path)
        assert httpx.get(f"{rest}/readyz").status_code == 200
        said = f"on 127.0.0.1:{grpc_port} (gRPC), REST {rest}; clients' key: {tmp_path}/key\n"
        assert said in (tmp_path / "server.log").read_text()
        assert main(["info", str(tmp_path)]) == 0
        assert capsys.readouterr().out == f"http://127.0.0.1:{grpc_port}: 0 collection(s)\n  REST: {rest}\n"
        with official_client(url, over_rest=True) as client:
            assert client.get_collections().collections == []
            assert client.info().title == "vector_store embedded server"
            assert client.cluster_status().status == "disabled"

        with embedded_server(tmp_path, rest_port=1) as same:
            assert same == url
        assert f"is already served, REST on {rest}, and this run wants REST on 1 port" in caplog.text
        caplog.clear()
        with embedded_server(tmp_path, rest_port=0), embedded_server(tmp_path):
            assert not caplog.records

        killed = server_pid(tmp_path)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: not is_alive(killed), "the server ended", 10)
        with embedded_server(tmp_path, rest_port=0) as again:
            assert (again, rest_url(tmp_path)) == (url, rest)
            assert json.loads((tmp_path / "address.json").read_text())["rest"] == rest


def test_a_rest_port_that_is_taken_is_named_in_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "vector_store", "serve", str(tmp_path), "--rest-port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        f"cannot listen on 127.0.0.1:{port} for REST; give an address of this machine and a free port\n"
    )
    assert not (tmp_path / "address.json").exists()


def test_without_its_packages_the_rest_port_is_refused_by_their_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(process, "REST_PACKAGES", ("starlette", "not_installed_here"))
    wanted = (
        "the REST port needs not_installed_here, not installed: pip install 'refbert[rest]', or leave the REST port out"
    )
    with pytest.raises(StoreUnavailable) as caught, embedded_server(tmp_path, rest_port=0):
        pass
    assert str(caught.value) == wanted
    assert main(["serve", str(tmp_path), "--rest-port", "0"]) == 3
    assert capsys.readouterr().err == f"{wanted}\n"
