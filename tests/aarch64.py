"""Networks compiled for AArch64 and run under emulation, with the runtime of TVM's wheel for that machine.

``make aarch64`` fetches the runtime; the compiler and the emulator are Debian's g++-aarch64-linux-gnu and qemu-user.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.support import cc

ROOT = Path(__file__).parents[1]
COMPILER, EMULATOR, SYSROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
LIBRARIES = ("libtvm_runtime.so", "libtvm_ffi.so")
KINDS = {"float32": 4, "int32": -4, "int64": -8}


def target() -> tvm.target.Target:
    """A Cortex-A72, as in a Raspberry Pi 4."""
    return tvm.target.Target(
        {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "mattr": ["+neon"], "num-cores": 4}
    )


def runtime() -> Path:
    """Where ``make aarch64`` puts the runtime."""
    return Path(os.environ.get("ADR_AARCH64_RUNTIME", ROOT / ".aarch64"))


def missing() -> str | None:
    """What is not there to compile for AArch64 and run; None if all is."""
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (apt-get install g++-aarch64-linux-gnu qemu-user)"
    absent = [name for name in LIBRARIES if not (runtime() / name).is_file()]
    return f"{', '.join(absent)} not in {runtime()} (make aarch64)" if absent else None


class Emulated:
    """An executable for AArch64 that runs under emulation.

    Args:
        executable: compiled for ``target()``.
        folder: takes the library, the runner and its files.
    """

    def __init__(self, executable: relax.VMExecutable, folder: Path) -> None:
        self.folder = folder
        self.library = folder / "network.so"
        executable.export_library(str(self.library), fcompile=cc.cross_compiler(COMPILER))
        includes = [
            tvm.libinfo.find_include_path(),
            tvm_ffi.libinfo.find_include_path(),
            tvm_ffi.libinfo.find_dlpack_include_path(),
        ]
        self.runner = folder / "run"
        links = [f"-L{runtime()}", "-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", f"-Wl,-rpath,{runtime()}"]
        flags = ["-std=c++17", "-O1", *(f"-I{path}" for path in includes)]
        source = Path(__file__).with_name("aarch64_runner.cc")
        subprocess.run([COMPILER, *flags, str(source), "-o", str(self.runner), *links], check=True)

    def __call__(self, entry: str, arrays: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """(arguments as the entry left them, tensors that it returned)."""
        given, found = self.folder / "given", self.folder / "found"
        with given.open("wb") as file:
            for array in arrays:
                head = [KINDS[str(array.dtype)], array.ndim, *array.shape]
                file.write(np.array(head, np.int64).tobytes() + np.ascontiguousarray(array).tobytes())
        command = [EMULATOR, "-L", SYSROOT, str(self.runner), str(self.library), entry, str(given), str(found)]
        subprocess.run(command, check=True, timeout=600)
        tensors, data, at = [], found.read_bytes(), 0
        while at < len(data):
            kind, rank = np.frombuffer(data, np.int64, 2, at)
            shape = np.frombuffer(data, np.int64, rank, at + 16)
            dtype = next(name for name, value in KINDS.items() if value == kind)
            at += 16 + 8 * int(rank)
            size = int(np.prod(shape))
            tensors.append(np.frombuffer(data, dtype, size, at).reshape(shape))
            at += size * abs(int(kind))
        return tensors[: len(arrays)], tensors[len(arrays) :]
