"""What a network under training is compiled for: this machine's processor, or the GPU at hand."""

from __future__ import annotations

from dataclasses import replace

from adr_tvm.errors import MissingDependencyError, UsageError
from adr_tvm.precision import PRECISIONS
from adr_tvm.targets import (
    ARCHITECTURES,
    NEWEST,
    TARGETS,
    TargetEntry,
    find_target,
    has_tensor_cores,
    with_architectures,
)


def training_entry(name: str | None, amp: str | None = None) -> TargetEntry:
    """The target of a name; for CUDA narrowed to the architecture of this machine's GPU, whatever the name.

    Args:
        name: ``cpu``, or a CUDA target; None: this machine's processor.
        amp: data type of mixed precision, if any.

    Raises:
        MissingDependencyError: there is no GPU, driver or CUDA runtime library.
        UsageError: the GPU is of another architecture than the target, or does not know the data type.
    """
    entry = find_target(name or "cpu")
    if entry.gpu is None:
        return entry
    from adr_tvm.cuda.present import present_gpu
    from adr_tvm.deploy.device import cuda_device

    found = present_gpu()
    if found is None:
        cuda_device()  # says what is missing
        raise MissingDependencyError("no NVIDIA GPU")
    here = f"this machine's GPU, {found.name}, is {found.architecture}"
    known = found.architecture if found.architecture in ARCHITECTURES else _older(found.architecture)
    if known is None:
        raise UsageError(f"--target {entry.name} needs {ARCHITECTURES[0]} or newer; {here}")
    if entry.name != "cuda" and found.architecture not in entry.gpu.architectures:
        raise UsageError(f"--target {entry.name} is {', '.join(entry.gpu.architectures)}; {here}: use --target cuda")
    if amp is not None and not has_tensor_cores(known, PRECISIONS[amp]):
        raise UsageError(f"--amp {amp} needs {PRECISIONS[amp].architecture} or newer; {here}: use --amp fp16")
    narrowed = with_architectures(TARGETS["cuda"], known)
    assert narrowed.gpu is not None
    # A newer GPU compiles the code for the newest that is known when it loads it.
    return narrowed if known == found.architecture else replace(narrowed, gpu=replace(narrowed.gpu, ptx=NEWEST))


def _older(architecture: str) -> str | None:
    """The newest known architecture, if this one is newer; else None."""
    number, newest = (int(name.removeprefix("sm_")) for name in (architecture, ARCHITECTURES[-1]))
    return ARCHITECTURES[-1] if number > newest else None
