"""The GPU of this machine, if there is one."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from adr_tvm.cuda.tvm_runtime import load_cuda_runtime
from adr_tvm.errors import MissingDependencyError
from adr_tvm.targets import TargetEntry, with_architectures


@dataclass(frozen=True)
class PresentGpu:
    """A GPU as its driver describes it.

    Attributes:
        name: the maker's.
        architecture: such as ``sm_90``.
    """

    name: str
    architecture: str


@functools.cache
def present_gpu() -> PresentGpu | None:
    """This machine's first GPU; None without one, or without a driver or CUDA's runtime library."""
    try:
        load_cuda_runtime(driver_needed=True)
    except MissingDependencyError:
        return None
    import tvm

    device = tvm.cuda()
    if not device.exist:
        return None
    return PresentGpu(str(device.device_name), f"sm_{str(device.compute_version).replace('.', '')}")


def for_present_gpu(entry: TargetEntry) -> TargetEntry:
    """``cuda`` narrowed to the architecture of the GPU at hand; unchanged where none of its code is for that alone."""
    found = present_gpu()
    if found is None or entry.gpu is None or found.architecture not in entry.gpu.architectures:
        return entry
    return with_architectures(entry, found.architecture)


def runs_here(entry: TargetEntry) -> bool:
    """Whether this machine's GPU runs machine code of a CUDA target."""
    found = present_gpu()
    return found is not None and entry.gpu is not None and found.architecture in entry.gpu.architectures
