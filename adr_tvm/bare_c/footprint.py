"""What a network in bare C takes of a microcontroller's memory, and what would help where that is too much."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adr_tvm.bare_c.emit import CNetwork
from adr_tvm.deploy.toolchain import c_toolchain_of
from adr_tvm.errors import MissingDependencyError
from adr_tvm.targets import TargetEntry

FPU = {"cortex-m4": "fpv4-sp-d16", "cortex-m7": "fpv5-sp-d16"}
GCC_FEATURES = {"+dotprod": "dotprod", "+fullfp16": "fp16"}  # by LLVM's name
MOST_NAMED = 3  # layers in a message


def compiler_flags(entry: TargetEntry) -> list[str]:
    """Options of the cross compiler (a GCC) for a target's core."""
    plain = ["-std=c99", "-O2"]
    if entry.bare_metal:
        return [*plain, "-mthumb", f"-mcpu={entry.mcpu}", "-mfloat-abi=hard", f"-mfpu={FPU[entry.mcpu]}"]
    return [*plain, "-mcpu=" + "+".join([entry.mcpu, *(GCC_FEATURES[f] for f in entry.mattr if f in GCC_FEATURES)])]


@dataclass(frozen=True)
class Footprint:
    """Bytes.

    Attributes:
        arena: of the arena.
        caller: inputs and outputs.
        constants: weights, planes and thresholds.
        code: everything else in flash, as the target's compiler makes it; not what the C library adds.
    """

    arena: int
    caller: int
    constants: int
    code: int

    @property
    def ram(self) -> int:
        """Arena, inputs and outputs; the stack comes on top."""
        return self.arena + self.caller

    @property
    def flash(self) -> int:
        """Constants and code."""
        return self.constants + self.code

    def __str__(self) -> str:
        return (
            f"RAM {self.ram} bytes (arena {self.arena}, inputs and outputs {self.caller}), "
            f"flash {self.flash} bytes (constants {self.constants}, code {self.code})"
        )


def measure(network: CNetwork, sources: Sequence[Path], entry: TargetEntry) -> Footprint:
    """Compile what was written, and add up.

    Raises:
        MissingDependencyError: the compiler is missing, or does not take the sources.
    """
    graph = network.graph
    caller = sum(graph.tensors[name].bytes for name in (*graph.inputs, *graph.outputs))
    text, constants = _text_bytes(sources, entry), network.weights_bytes
    return Footprint(network.memory.arena_bytes, caller, constants, text - (0 if network.blob else constants))


def _text_bytes(sources: Sequence[Path], entry: TargetEntry) -> int:
    tools = c_toolchain_of(entry)
    compiler = tools.check()
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]
        for source, made in zip(sources, objects, strict=True):
            _run([compiler, *compiler_flags(entry), "-c", "-o", made, str(source)], tools.package)
        listed = _run([re.sub("gcc$", "size", compiler), *objects], tools.package)
    return sum(int(line.split()[0]) for line in listed.splitlines()[1:])


def _run(command: list[str], package: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise MissingDependencyError(f"{command[0]} cannot run: {error.strerror}; apt install {package}") from error
    if done.returncode:
        said = " ".join(done.stderr.split())[-400:]
        raise MissingDependencyError(f"{command[0]} failed; apt install {package} (it said: {said})")
    return done.stdout


def ram_excess(network: CNetwork, footprint: Footprint, limit: int) -> str:
    """Why a network needs more RAM than it may have, and what would help; empty where it does not."""
    if footprint.ram <= limit:
        return ""
    graph, memory = network.graph, network.memory
    order = sorted(range(len(graph.operators)), key=lambda i: -memory.live_bytes[i])
    named = [f"{graph.operators[i].name} ({memory.live_bytes[i]} bytes alive)" for i in order[:MOST_NAMED]]
    hints = [] if _is_int8(network) else ["--dtype int8 takes about a quarter"]
    scratch = {op.name: call.scratch for op, call in zip(graph.operators, network.calls, strict=True) if call.counts}
    peaks = [graph.operators[i].name for i in order[:MOST_NAMED] if graph.operators[i].name in scratch]
    if peaks:
        hints.append(f"--skip {peaks[0]!r} saves its {scratch[peaks[0]]} bytes for reuse")
    hints.append("smaller inputs")
    return (
        f"the network needs {footprint.ram} bytes of RAM (arena {footprint.arena}, inputs and outputs "
        f"{footprint.caller}), --max-ram allows {limit}; most is taken at {', '.join(named)}; "
        f"what would help: {'; '.join(hints)}"
    )


def flash_excess(network: CNetwork, footprint: Footprint, limit: int) -> str:
    """Why a network needs more flash than it may have, and what would help; empty where it does not."""
    if footprint.flash <= limit:
        return ""
    sizes = {
        operator.name: sum(array.nbytes for array in (call.constants or {}).values() if array is not None)
        for operator, call in zip(network.graph.operators, network.calls, strict=True)
    }
    order = sorted(sizes, key=lambda name: -sizes[name])
    named = [f"{name} ({sizes[name]} bytes)" for name in order[:MOST_NAMED]]
    hints = ["fewer channels in these layers"] if _is_int8(network) else ["--dtype int8 takes about a quarter"]
    return (
        f"the network needs {footprint.flash} bytes of flash (constants {footprint.constants}, code "
        f"{footprint.code}), --max-flash allows {limit}; most is taken by {', '.join(named)}; "
        f"what would help: {'; '.join(hints)}"
    )


def _is_int8(network: CNetwork) -> bool:
    return any(tensor.dtype == "int8" for tensor in network.graph.tensors.values())
