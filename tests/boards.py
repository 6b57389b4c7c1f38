"""RPC servers for tests: the native one of this project, here or under emulation, and TVM's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adr_tvm.remote.server_folder import PROGRAM, write_server
from adr_tvm.targets import TargetEntry, read_target
from tests import aarch64

EMULATED = [aarch64.EMULATOR, "-L", aarch64.SYSROOT]


def this_board(folder: Path) -> Path:
    """A file that describes this machine as a board."""
    path = folder / "here.json"
    target = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3", "num-cores": 1}
    path.write_text(json.dumps(target))
    return path


def here(folder: Path) -> TargetEntry:
    """The target of ``this_board``."""
    return read_target(this_board(folder))


class Server:
    """A running server.

    Attributes:
        port: where it listens, on 127.0.0.1.
    """

    def __init__(self, process: subprocess.Popen[str]):
        self.process = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on 127.0.0.1:"), line
        self.port = int(line.rsplit(":", 1)[1])

    def signal_session(self, number: signal.Signals) -> None:
        """Send a signal to the process that serves the client."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        assert len(children) == 1
        os.kill(int(children[0]), number)


@contextmanager
def running(folder: Path, *options: object, emulator: Sequence[str] = ()) -> Iterator[Server]:
    """A native server that ``build`` made in a folder."""
    command = [*emulator, str(folder / PROGRAM), "--port", "0", "--threads", "1", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield Server(process)
    finally:
        process.kill()
        process.wait()


def build(folder: Path, entry: TargetEntry, runtime: Path | None = None) -> Path:
    """A native server for a target."""
    write_server(folder, entry, runtime)
    return folder


@contextmanager
def tvm_tool(name: str, *options: object) -> Iterator[None]:
    """A server or tracker of TVM's Python package."""
    command = [sys.executable, "-m", f"tvm.exec.{name}", "--host", "127.0.0.1", *map(str, options)]
    environment = {**os.environ, "TVM_NUM_THREADS": "1", "TVM_BIND_THREADS": "0"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
