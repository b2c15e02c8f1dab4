#!/usr/bin/env bash
# grpcio 1.85.3
#
# Guess: a server made with compression=Gzip compresses for clients that accept gzip, which they say in `grpc-accept-encoding`, and
# answers the others without, as HTTP servers do.
# Found: it compresses for all. A client whose channel accepts identity alone (grpc.compression_enabled_algorithms_bitset=1, which
# saves the time of compression on a fast link) gets no answer, the call ends INTERNAL: as a bug of the server's would. What the
# client said it accepts is not in the handler's metadata either, so that no handler can do it by itself.
# Output seen on 2026-11-30:
#   a client by default: 3100 bytes
#   a client that accepts identity alone: INTERNAL: Compression algorithm not supported: gzip
#   a handler sees grpc-accept-encoding: None, None
# Ends with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "grpcio==1.85.3"
cat > ask.py <<'PY'
from concurrent.futures import ThreadPoolExecutor

import grpc

METHOD, TEXT = "/words/Echo", b"the same words again and again " * 100
IDENTITY_ALONE = [("grpc.compression_enabled_algorithms_bitset", 1)]
seen = []


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        seen.append(dict(details.invocation_metadata).get("grpc-accept-encoding"))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)


def asked(port, options):
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        try:
            return f"{len(channel.unary_unary(METHOD)(TEXT, timeout=10))} bytes"
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"


server = grpc.server(ThreadPoolExecutor(2), compression=grpc.Compression.Gzip)
server.add_generic_rpc_handlers([Echo()])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
usual, strict = asked(port, None), asked(port, IDENTITY_ALONE)
server.stop(None)
print("a client by default:", usual)
print("a client that accepts identity alone:", strict)
print("a handler sees grpc-accept-encoding:", ", ".join(map(str, seen)))
raise SystemExit(not (usual == f"{len(TEXT)} bytes" and strict.startswith("INTERNAL") and seen == [None, None]))
PY
venv/bin/python ask.py
