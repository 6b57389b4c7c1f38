"""What a family of kernels provides so that its schedules can be tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from tvm import tirx
from tvm.target import Target

from adr_tvm.schedules.tuned import KernelShape


@dataclass(frozen=True, eq=False)
class Arguments:
    """What a kernel is called with.

    Attributes:
        inputs: arrays, in the order of the kernel's parameters.
        weights: which of them hold weights; in a network they have left the caches since the call before.
        outputs: shape and dtype of each output; outputs are the last parameters.
    """

    inputs: list[np.ndarray]
    weights: tuple[int, ...]
    outputs: list[tuple[tuple[int, ...], str]]


class TuningTask(Protocol):
    """One kernel whose schedule is looked for; made as ``Family(kernel, target, images)``.

    Attributes:
        schedule_type: dataclass of a schedule.
        kernel: what the schedule is chosen for.
        images: in a measured call.
    """

    schedule_type: ClassVar[type]
    kernel: KernelShape
    images: int

    def __init__(self, kernel: KernelShape, target: Target, images: int) -> None: ...

    @property
    def name(self) -> str:
        """The kernel in words, for log and report."""

    @property
    def flops(self) -> float:
        """Floating-point operations of a call."""

    @property
    def weight_bytes(self) -> int:
        """Of the weights that a call reads, about."""

    def default(self) -> Any:
        """The schedule of an untuned kernel."""

    def candidates(self, threads: int) -> dict[Any, float]:
        """The default and all other schedules worth a trial, with what a cost model says of each, in any unit."""

    def accepts(self, schedule: Any) -> bool:
        """Whether code can be made for a schedule; one from a file may be anything."""

    def function(self, schedule: Any) -> tirx.PrimFunc:
        """The kernel under a schedule."""

    def arguments(self, schedule: Any) -> Arguments:
        """Data for a call, the same for all schedules but for their layout."""
