#!/usr/bin/env bash
# grpcio 1.85.0
#
# Guess: a server that is given the address of one that runs cannot have it. For a TCP port (without SO_REUSEPORT) that is so:
# `add_insecure_port` raises RuntimeError. For a Unix socket bind() itself fails with "Address already in use" as long as the
# file is there.
# Found: with `unix:PATH` grpcio removes the file first, whoever listens at it, and binds anew. `add_insecure_port` returns 1,
# the second server gets every new connection, and the first serves on without a word: clients that are connected keep it, and
# nobody else can reach it. Who wants one server to a path must lock something else.
# Output seen on 2026-11-30: `port: refused with RuntimeError; socket: second bound 1; known client first, new client second`.
# Ends with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "grpcio==1.85.0"
cat > ask.py <<'PY'
from concurrent.futures import ThreadPoolExecutor

import grpc


def server_named(name):
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    answer = grpc.unary_unary_rpc_method_handler(lambda request, context: name)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.Service", {"Ask": answer}),))
    return server


def ask(channel):
    return channel.unary_unary("/a.Service/Ask")(b"", timeout=10, wait_for_ready=True).decode()


first, second = server_named(b"first"), server_named(b"second")
port = first.add_insecure_port("127.0.0.1:0")
first.add_insecure_port("unix:socket")
first.start()
try:
    second.add_insecure_port(f"127.0.0.1:{port}")
    refused = "bound"
except RuntimeError as error:
    refused = f"refused with {type(error).__name__}"
pool = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own, as another process would have
with grpc.insecure_channel("unix:socket", pool) as known:
    ask(known)
    bound = second.add_insecure_port("unix:socket")
    second.start()
    with grpc.insecure_channel("unix:socket", pool) as new:
        print(f"port: {refused}; socket: second bound {bound}; known client {ask(known)}, new client {ask(new)}")
first.stop(0)
second.stop(0)
PY
found=$(venv/bin/python ask.py 2> /dev/null)
echo "$found"
[[ $found == "port: refused with RuntimeError; socket: second bound 1; known client first, new client second" ]]
