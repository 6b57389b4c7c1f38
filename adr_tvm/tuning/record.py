"""What is kept of the tuning of one kernel, and what it is looked up by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.tuned import KernelShape
from adr_tvm.settings import ReuseSetting

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Machine:
    """What a schedule is good for beside the kernel.

    Attributes:
        cpu: the maker's name of the processor or GPU.
        mcpu: LLVM's name of what the code is for, which decides the instruction set; of a GPU its architecture, such
            as ``sm_90``.
        threads: that kernels run on; 1 of a GPU.
    """

    cpu: str
    mcpu: str
    threads: int

    @property
    def is_gpu(self) -> bool:
        """Whether it is an NVIDIA GPU."""
        return self.mcpu.startswith("sm_")


@dataclass(frozen=True)
class TuningRecord:
    """A line of the database.

    Attributes:
        machine: where it was measured.
        kind, geometry, batch, setting: the kernel; see ``KernelShape``.
        images: in a measured call.
        schedule: the fields of the schedule; None: none was found that is faster than the default.
        speedup: time of the default / time of the schedule; the median over rounds.
        gflops_before, gflops_after: of the default and of the schedule.
        trials: schedules that were asked for.
        measured: schedules that were measured; fewer where the space has no more.
        adr_version: of the program that measured.
        version: of the format.
    """

    machine: Machine
    kind: str
    geometry: ConvGeometry
    batch: int | None
    setting: ReuseSetting | None
    images: int
    schedule: dict[str, Any] | None
    speedup: float
    gflops_before: float
    gflops_after: float
    trials: int
    measured: int
    adr_version: str
    version: int = FORMAT_VERSION

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    def __post_init__(self) -> None:
        if self.version != FORMAT_VERSION:
            raise ValueError(f"format version {self.version}, expected {FORMAT_VERSION}")
        if min(self.images, self.machine.threads) < 1 or min(self.trials, self.measured) < 0 or not self.speedup > 0:
            raise ValueError("numbers of images and threads from 1 on are expected, and a speedup above 0")

    @property
    def kernel(self) -> KernelShape:
        """What the schedule is for."""
        return KernelShape(self.kind, self.geometry, self.batch, self.setting)
