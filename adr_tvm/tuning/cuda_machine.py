"""Which GPU's records a compile run takes."""

from __future__ import annotations

import re
from pathlib import Path

from adr_tvm.cuda.present import present_gpu, runs_here
from adr_tvm.errors import UsageError
from adr_tvm.targets import TargetEntry
from adr_tvm.tuning.database import machines_in
from adr_tvm.tuning.record import Machine


def gpu_machine(entry: TargetEntry, given: str | Path | None) -> Machine:
    """The GPU at hand, if it runs the code; else the one whose records a file has.

    Without a GPU the target decides which those are: they are for one of its architectures, and a target that is a
    product (``h200``) has its name in the GPU's.

    Args:
        entry: a CUDA target.
        given: the file; None: there is none.

    Raises:
        UsageError: the file cannot be read, or has records of several such GPUs.
    """
    assert entry.gpu is not None
    present = present_gpu() if runs_here(entry) else None
    if present is not None:
        return Machine(present.name, present.architecture, 1)
    found = [] if given is None else [m for m in machines_in(Path(given)) if _suits(m, entry, entry.gpu.architectures)]
    if len(found) > 1:
        names = ", ".join(f"{m.cpu} ({m.mcpu})" for m in found)
        raise UsageError(
            f"--tuning-db {given} has records of several GPUs for target {entry.name} ({names}): name the target or "
            "--arch of one"
        )
    return found[0] if found else Machine(entry.description, entry.gpu.architectures[-1], 1)


def _suits(machine: Machine, entry: TargetEntry, architectures: tuple[str, ...]) -> bool:
    word = entry.name.rpartition("-")[2]
    named = word == "cuda" or word in re.split("[^a-z0-9]+", machine.cpu.lower())
    return named and machine.mcpu in architectures
