"""Connecting to a board: straight to its RPC server, or by way of a tracker; and noticing that it is gone.

TVM's client waits for answers without limit. So its socket gets a limit here, and whoever listens at an address is
asked first: a tracker answers its own greeting, a server that is free hangs up on it, a server that serves another
client says nothing.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import closing
from typing import Any

from adr_tvm.errors import BoardError
from adr_tvm.remote.address import Address


def open_session(address: Address, timeout: float) -> tuple[Any, socket.socket]:
    """An RPC session with a board, and its socket, which ends the session when it is shut down.

    Args:
        address: of its server, or of a tracker.
        timeout: seconds that it may take to become free, and to answer any call later.

    Returns:
        TVM's ``RPCSession``, and a duplicate of its socket.

    Raises:
        BoardError: nobody is there, or the board does not become free, or it has another key.
    """
    if not _is_tracker(address, timeout):
        return _connect(address, address.host, address.port, address.key, timeout)
    if not address.key:
        known = _boards(address, timeout)
        raise BoardError(f"a tracker is at {address}: --key says which of its boards to take; it has {known}")
    host, port, match_key = _request(address, timeout)
    return _connect(address, host, port, match_key, timeout)


def _is_tracker(address: Address, timeout: float) -> bool:
    """Whether a tracker is there, not a server."""
    from tvm.rpc.base import RPC_TRACKER_MAGIC

    with closing(_dial(address, timeout)) as stream:
        try:
            stream.sendall(struct.pack("<i", RPC_TRACKER_MAGIC))
            answer = stream.recv(4)
        except ConnectionError:
            return False
        except TimeoutError:
            raise BoardError(
                f"the RPC server at {address} serves another client: it was not free within {timeout:g} s"
            ) from None
        return answer == struct.pack("<i", RPC_TRACKER_MAGIC)


def _dial(address: Address, timeout: float) -> socket.socket:
    try:
        return socket.create_connection((address.host, address.port), timeout)
    except OSError as error:
        raise BoardError(
            f"nothing answers at {address}: {error.strerror or error}; is the RPC server running there, and does it "
            "listen on that address (--host 0.0.0.0)?"
        ) from error


def _ask_tracker(address: Address, timeout: float, question: list[Any]) -> Any:
    from tvm.rpc.base import RPC_TRACKER_MAGIC, TrackerCode, recvall, recvjson, sendjson

    with closing(_dial(address, timeout)) as stream:
        stream.sendall(struct.pack("<i", RPC_TRACKER_MAGIC))
        recvall(stream, 4)
        sendjson(stream, question)
        code, answer = recvjson(stream)
    if code != TrackerCode.SUCCESS:
        raise BoardError(f"the tracker at {address} refused: {answer}")
    return answer


def _boards(address: Address, timeout: float) -> str:
    """The keys that a tracker has boards of, in words."""
    from tvm.rpc.base import TrackerCode

    summary = _ask_tracker(address, timeout, [TrackerCode.SUMMARY])
    keys = sorted({str(server["key"]).partition(":")[2] for server in summary["server_info"]} - {""})
    return ", ".join(keys) or "none"


def _request(address: Address, timeout: float) -> tuple[str, int, str]:
    """Host, port and match key of the next free board of a key."""
    from tvm.rpc.base import TrackerCode

    known = _boards(address, timeout)
    if address.key not in known.split(", "):
        raise BoardError(f"the tracker at {address} has no board of this key: it has {known}")
    try:
        host, port, match_key = _ask_tracker(address, timeout, [TrackerCode.REQUEST, address.key, "", 1])
    except TimeoutError:
        raise BoardError(f"no board of the tracker at {address} became free within {timeout:g} s") from None
    return str(host), int(port), str(match_key)


def _connect(address: Address, host: str, port: int, key: str, timeout: float) -> tuple[Any, socket.socket]:
    from tvm import rpc

    before = _sockets()
    try:
        session = rpc.connect(host, port, key)
    except Exception as error:  # TVM's errors have no common base
        said = str(error).strip().partition("\n")[0]
        reason = f"its key is another than {key!r}" if "cannot find server that matches key" in said else said
        raise BoardError(f"cannot open a session with the board at {address}: {reason}") from error
    new = [fd for inode, fd in _sockets().items() if inode not in before]
    stream = next(filter(None, (_socket_to(port, fd) for fd in new)), None)
    if stream is None:
        raise BoardError(f"the session with the board at {address} ended at once")
    limit = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return session, stream


def _sockets() -> dict[str, int]:
    """File descriptors of this process's sockets, by inode."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the folder's own
        if link.startswith("socket:"):
            found[link] = int(name)
    return found


def _socket_to(port: int, fd: int) -> socket.socket | None:
    """A duplicate of a socket if it is connected to a port."""
    stream = socket.socket(fileno=os.dup(fd))
    try:
        if stream.getpeername()[1] == port:
            return stream
    except (OSError, IndexError, TypeError):
        pass
    stream.close()
    return None
