"""Ports of this machine that nobody else is given while this process lives.

A port that is only looked up may be another process's before its server listens. Here a socket
stays bound to it and never listens: a server that sets SO_REUSEADDR, as all of ours do, listens
beside it, and while none does, connections are refused."""

import socket

_held: list[socket.socket] = []


def free_port() -> int:
    """A port of 127.0.0.1 for one server of the caller, again and again."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _held.append(held)
    return held.getsockname()[1]
