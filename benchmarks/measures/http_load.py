"""Clients that send requests to an embeddings API without a pause, in a process apart from the service.

    echo '{"address": ..., "path": ..., "texts": [...], "clients": 8, "per_request": 1, "seconds": 5, "model": "x"}' |
        python http_load.py

Plain sockets and prepared bodies: a client library would take more of a small machine than the service. Prints the seconds
of each request, and of all, as JSON. Any status but 200 ends it.
"""

import asyncio
import itertools
import json
import sys
import time
from typing import Any
from urllib.parse import urlsplit


async def client(host: str, port: int, requests: Any, until_s: float, took_s: list[float]) -> None:
    """Send one request after the other over one connection."""
    reader, writer = await asyncio.open_connection(host, port, limit=2**24)
    while time.perf_counter() < until_s:
        started_s = time.perf_counter()
        writer.write(next(requests))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head.split(b" ", 2)[1])
        if b"transfer-encoding: chunked" in head:
            body = b""
            while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        else:
            body = await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
        if status != 200:
            raise SystemExit(f"answered {status}: {body[:300]!r}")
        took_s.append(time.perf_counter() - started_s)
    writer.close()


async def load(given: dict[str, Any]) -> dict[str, Any]:
    """Run all clients for the given time."""
    url = urlsplit(given["address"])
    texts, size = itertools.cycle(given["texts"]), given["per_request"]
    bodies = []
    for _ in range(max(1, len(given["texts"]) // size)):
        some = [next(texts) for _ in range(size)]
        body = json.dumps({"input": some if size > 1 else some[0], "model": given["model"]}).encode()
        head = (
            f"POST {given['path']} HTTP/1.1\r\nhost: {url.netloc}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        bodies.append(head.encode() + body)
    requests, took_s = itertools.cycle(bodies), list[float]()
    started_s = time.perf_counter()
    until_s = started_s + given["seconds"]
    async with asyncio.TaskGroup() as group:
        for _ in range(given["clients"]):
            group.create_task(client(url.hostname or "", url.port or 80, requests, until_s, took_s))
    return {"seconds": time.perf_counter() - started_s, "took_s": took_s}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(json.load(sys.stdin)))))
