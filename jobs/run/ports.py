"""Find TCP ports that nobody listens on, for serve.port=0 (jobs/serve.py). Reserves none of them."""

import socket

from refbert.errors import InputError


def free_ports(count: int, host: str) -> list[int]:
    """Find ports that nobody listens on now. Raises InputError where `host` is not an address of this machine."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for opened in sockets:
            opened.bind((host, 0))
        return [opened.getsockname()[1] for opened in sockets]
    except OSError as error:
        raise InputError(f"cannot listen on {host}: {error.strerror}; give an address of this machine") from None
    finally:
        for opened in sockets:
            opened.close()
