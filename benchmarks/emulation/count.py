"""Instructions of one run of a compiled network for 64-bit Arm, counted exactly under emulation."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm_ffi

from adr_tvm.deploy.toolchain import toolchain_of
from adr_tvm.deploy.tvm_runtime import LIBRARIES
from adr_tvm.errors import MissingDependencyError
from adr_tvm.targets import TARGETS
from benchmarks.emulation.phases import TOOLS, LibraryMap

COMPILER, EMULATOR, SYSROOT = f"{TOOLS}g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
PACKAGES = "apt install g++-aarch64-linux-gnu qemu-user g++"  # all that is needed


@dataclass(frozen=True)
class Counts:
    """What one run executed.

    Attributes:
        sections: instructions by section (see ``block_counts.c``) and phase.
        memory: the most bytes on the heap at once during the run, beyond the weights and inputs.
        result: a hash of all outputs.
    """

    sections: Mapping[int, Mapping[str, int]]
    memory: int
    result: str

    @property
    def phases(self) -> dict[str, int]:
        """Instructions by phase."""
        total: Counter[str] = Counter()
        for section in self.sections.values():
            total.update(section)
        return dict(total)

    @property
    def total(self) -> int:
        """All instructions of the run."""
        return sum(self.phases.values())


def counting_plugin(folder: Path) -> Path:
    """Compile ``block_counts.c`` for the emulator, into a folder.

    Raises:
        MissingDependencyError: there is no compiler for this machine.
    """
    made = folder / "block_counts.so"
    # The emulator itself has the functions that the plugin calls.
    options = ("-O2", "-fPIC", "-shared", "-Wl,-z,undefs")
    source = Path(__file__).with_name("block_counts.c")
    _compile(toolchain_of(TARGETS["cpu"]).check(), *options, "-x", "c", source, "-o", made)
    return made


class Emulator:
    """Runs compiled networks and counts; made for a folder, which takes what is compiled for that.

    Args:
        folder: for files.
        runtime: folder with TVM's runtime for 64-bit Arm (``make aarch64``).

    Raises:
        MissingDependencyError: a tool or the runtime is missing, or the emulator takes no plugins of its version.
    """

    def __init__(self, folder: Path, runtime: Path) -> None:
        self.folder = folder.resolve()
        for tool in (COMPILER, EMULATOR):
            if shutil.which(tool) is None:
                raise MissingDependencyError(f"{tool} is not installed: {PACKAGES}")
        missing = [name for name in LIBRARIES if not (runtime / name).is_file()]
        if missing:
            raise MissingDependencyError(f"{' and '.join(missing)} not found in {runtime}: make aarch64 fetches them")
        here, runtime = Path(__file__).parent, runtime.resolve()
        self.plugin, self.runner = counting_plugin(self.folder), self.folder / "count_run"
        headers = (tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path())
        includes = [f"-isystem{path}" for path in headers]
        links = [f"-L{runtime}", "-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", f"-Wl,-rpath,{runtime}"]
        _compile(COMPILER, "-std=c++17", "-O1", *includes, here / "count_run.cc", "-o", self.runner, *links)

    def count(self, library: Path, entry: str, inputs: Sequence[np.ndarray]) -> Counts:
        """Run an entry once, on one thread.

        Args:
            inputs: float32.

        Raises:
            MissingDependencyError: the emulator does not take the plugin.
        """
        given, counted = self.folder / "inputs", self.folder / "blocks"
        with given.open("wb") as file:
            for array in inputs:
                head = np.array([array.ndim, *array.shape], np.int64)
                file.write(head.tobytes() + np.ascontiguousarray(array, np.float32).tobytes())
        plugin = f"{self.plugin},out={counted}"
        command = [EMULATOR, "-L", SYSROOT, "-plugin", plugin, self.runner, library.resolve(), entry, given]
        environment = {**os.environ, "TVM_NUM_THREADS": "1", "TVM_BIND_THREADS": "0"}
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
        if done.returncode:
            said = " ".join(done.stderr.split())[-300:]
            raise MissingDependencyError(f"{EMULATOR} failed; its version must be 7.2, as Debian 12 has it: {said}")
        told = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
        base, places = int(told["base"], 16), LibraryMap(library)
        size = library.stat().st_size
        sections: dict[int, Counter[str]] = {}
        for line in counted.read_text().splitlines():
            section, address, instructions, times = line.split()
            at = int(address, 16) - base
            phase = places.phase(at, int(instructions)) if 0 <= at < size else "runtime"
            sections.setdefault(int(section), Counter())[phase] += int(instructions) * int(times)
        plain = {section: dict(phases) for section, phases in sections.items()}
        return Counts(plain, int(told["memory"]), told["result"])


def _compile(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise MissingDependencyError(
            f"{command[0]} failed; {PACKAGES} (it said: {' '.join(done.stderr.split())[-300:]})"
        )
