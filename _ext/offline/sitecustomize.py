"""Cuts the network of a Python process: only addresses of this machine itself can be reached."""

from __future__ import annotations

import socket
from typing import Any

_LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "", None}  # noqa: S104
_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


def _check(host: object) -> None:
    if isinstance(host, bytes):
        host = host.decode()
    if host not in _LOCAL:
        raise OSError(f"the network is cut while chapters are executed: no connection to {host}")


def _address(self: socket.socket, address: Any) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _check(address[0])


def connect(self: socket.socket, address: Any) -> None:
    _address(self, address)
    _connect(self, address)


def connect_ex(self: socket.socket, address: Any) -> int:
    _address(self, address)
    return _connect_ex(self, address)


def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
    _check(host)
    return _getaddrinfo(host, *arguments, **options)


socket.socket.connect = connect  # type: ignore[method-assign, assignment]
socket.socket.connect_ex = connect_ex  # type: ignore[method-assign, assignment]
socket.getaddrinfo = getaddrinfo
