"""A port to listen on, for whoever takes it over."""

import socket

_BACKLOG = 2048  # every rank connects at once


def listen_on(address: str) -> tuple[int, int]:
    """A free port of this address alone, and the descriptor of a socket that listens there, for who takes it over."""
    with socket.create_server((address, 0), backlog=_BACKLOG) as server:
        return server.getsockname()[1], server.detach()
