"""Where a board is: the address of an RPC server, or of a tracker that knows boards by key."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adr_tvm.errors import UsageError

_KEY = re.compile(r"[A-Za-z0-9._-]+")
MAX_PORT = 65535


@dataclass(frozen=True)
class Address:
    """What ``--rpc`` and ``--key`` say.

    Attributes:
        host, port: of a server or tracker.
        key: of the board; empty: the server has none.
    """

    host: str
    port: int
    key: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" + (f" ({self.key})" if self.key else "")


def parse_address(rpc: str, key: str | None) -> Address:
    """The address of ``HOST:PORT`` (IPv6: ``[HOST]:PORT``) and a key.

    Raises:
        UsageError: it is none.
    """
    host, colon, port = rpc.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not (colon and host and port.isdecimal() and 1 <= int(port) <= MAX_PORT):
        raise UsageError(f"--rpc is {rpc!r}, expected HOST:PORT, such as 192.168.0.7:9090")
    if key is not None and not _KEY.fullmatch(key):
        raise UsageError(f"--key is {key!r}, expected letters, digits and . _ -")
    return Address(host, int(port), key or "")
