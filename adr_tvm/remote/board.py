"""A board: code compiled for it here is sent there, loaded and called.

Before anything else runs there, a probe that needs nothing but libc says which machine it is, and whether it has the
vector extensions that code for the target uses: their lack would end the server's process, not raise an error.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.support import cc
from tvm.target import Target

from adr_tvm._tvm import cpu_features
from adr_tvm.deploy.processor import cpu_properties, lacking, vector_extensions
from adr_tvm.deploy.toolchain import toolchain_of
from adr_tvm.errors import BoardError
from adr_tvm.remote.address import Address
from adr_tvm.remote.connection import open_session
from adr_tvm.schedules.board_facts import FACTS, FILE_BYTES, PATH_BYTES, facts, read_file
from adr_tvm.targets import AARCH64, TargetEntry

# Bits of the hardware capabilities 1 and 2 of 64-bit Arm, by Linux's names.
_ARM_BITS = ({"asimd": 1, "asimdhp": 10, "asimddp": 20, "sve": 22}, {"sve2": 1, "i8mm": 13})
_SILENT = "temporarily unavailable"  # in what TVM says when a socket's time is up


class Board:
    """See the module.

    Args:
        address: of the RPC server or tracker.
        entry: the target that code will be for.
        target: TVM's.
        timeout: seconds that a call may take.

    Attributes:
        name: the maker's, of board or processor.
        threads: that kernels run on there.
        device: TVM's, for tensors.

    Raises:
        BoardError: it cannot be reached, or is not what the target says.
        MissingDependencyError: there is no compiler for the target.
    """

    def __init__(self, address: Address, entry: TargetEntry, target: Target, timeout: float):
        self.address, self.timeout = address, timeout
        self._compiler = toolchain_of(entry).check()
        self._session, self._socket = open_session(address, timeout)
        self._loaded = 0
        self.device = self._session.cpu()
        try:
            with self.answers("telling its threads"):
                self.threads = int(self._session.get_function("runtime.NumThreads")())
            self.name = self._check(entry, target)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the session, so that the board serves the next client; nothing of it can be used any more."""
        with suppress(OSError):  # where the board hung up first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    @contextmanager
    def answers(self, what: str) -> Iterator[None]:
        """Errors of the session while ``what`` is done, as one line.

        Raises:
            BoardError: the board does not answer, or the code that it ran raised an error.
        """
        try:
            yield
        except BoardError:
            raise
        except Exception as error:  # TVM's and the socket's have no common base
            said = " ".join(str(error).split())
            if _SILENT in said:
                said = f"no answer within {self.timeout:g} s (--rpc-timeout)"
            raise BoardError(f"the board at {self.address} failed while {what}: {said[:300]}") from error

    def load(self, module: Any, what: str) -> Any:
        """Link compiled code, send it and load it there.

        Args:
            module: has ``export_library``.
            what: it is, for errors.

        Returns:
            The remote module.
        """
        self._loaded += 1
        name = f"code{self._loaded}.so"
        with tempfile.TemporaryDirectory() as folder, self.answers(f"loading {what}"):
            path = Path(folder) / name
            module.export_library(str(path), fcompile=cc.cross_compiler(self._compiler))
            self._session.upload(str(path))
            module = self._session.load_module(name)
            self._session.remove(name)
            return module

    def machine(self, executable: relax.VMExecutable, what: str) -> relax.VirtualMachine:
        """A virtual machine there, of an executable for the target."""
        module = self.load(executable, what)
        with self.answers(f"starting {what}"):
            return relax.VirtualMachine(module, self.device)

    def tensor(self, array: np.ndarray) -> Any:
        """An array, sent there."""
        with self.answers("sending data"):
            return tvm.runtime.tensor(array, self.device)

    def array(self, tensor: Any) -> np.ndarray:
        """A tensor from there."""
        with self.answers("sending results"):
            return tensor.numpy()

    def _check(self, entry: TargetEntry, target: Target) -> str:
        """The board's name; see the class."""
        plain = Target({"kind": "llvm", "mtriple": entry.triple})
        probe = tvm.compile(tvm.IRModule({"facts": facts(), "read_file": read_file()}), plain)
        try:
            module = self.load(probe, "a probe")
        except BoardError as error:
            if "dynamic shared library" not in str(error):
                raise
            raise BoardError(
                f"the board at {self.address} cannot load code for {entry.triple}: --target {entry.name} is not for it"
            ) from error
        found = self.tensor(np.zeros(FACTS, np.int64))
        with self.answers("telling what it is"):
            module["facts"](found)
        properties = cpu_properties(self._read(module, "/proc/cpuinfo"))
        if entry.triple == AARCH64:
            bits = zip(_ARM_BITS, self.array(found), strict=False)
            features = [name for names, word in bits for name, bit in names.items() if int(word) >> bit & 1]
        else:
            features = properties.get("flags", "").split()
        missing = lacking(vector_extensions(cpu_features(target)), features)
        if missing:
            raise BoardError(
                f"the board at {self.address} lacks {', '.join(missing)}, which --target {entry.name} uses"
            )
        model = self._read(module, "/proc/device-tree/model").strip()
        part = properties.get("CPU part")
        return model or properties.get("model name") or (f"Arm core {part}" if part else entry.name)

    def _read(self, module: Any, path: str) -> str:
        """The beginning of a text file there; empty without one."""
        name = np.zeros(PATH_BYTES, np.uint8)
        name[: len(path)] = np.frombuffer(path.encode(), np.uint8)
        content = self.tensor(np.zeros(FILE_BYTES, np.uint8))
        given = self.tensor(name)
        with self.answers(f"reading {path}"):
            module["read_file"](given, content)
        return self.array(content).tobytes().partition(b"\0")[0].decode(errors="replace")
