"""Which schedule a kernel gets: a tuned one where the source in force knows one, else the default of its ISA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tvm.target import Target

from adr_tvm._tvm import target_threads
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.conv_schedule import HALF_K_STEP, THREADS, ConvSchedule, default_conv_schedule
from adr_tvm.schedules.processor import fetches_ahead
from adr_tvm.schedules.register_tile import NEON_HALF, isa_of
from adr_tvm.schedules.reuse_schedule import BATCH_BANDS, ReuseSchedule, default_reuse_schedule, is_long
from adr_tvm.schedules.weight_gradient_schedule import WeightGradientSchedule, default_weight_gradient_schedule
from adr_tvm.settings import ReuseSetting


@dataclass(frozen=True)
class KernelShape:
    """What a schedule is chosen for. Bias, activation and where the result goes make no difference.

    Attributes:
        kind: of kernel, such as ``conv2d``.
        geometry: shapes of one image.
        batch: images in a call; None where it is known only then.
        setting: of a kernel that reuses.
    """

    kind: str
    geometry: ConvGeometry
    batch: int | None
    setting: ReuseSetting | None = None


class ScheduleSource(Protocol):
    """Where tuned schedules come from."""

    def schedule(self, kernel: KernelShape, target: Target) -> Any | None:
        """The schedule of a kernel, of the type that goes with its kind; None: its default."""


_source: ContextVar[ScheduleSource | None] = ContextVar("tuned_schedules", default=None)


@contextmanager
def tuned_schedules(source: ScheduleSource | None) -> Iterator[None]:
    """Within the block kernels get the schedules of ``source``; None: their defaults."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)


def conv_schedule(target: Target, geometry: ConvGeometry, batch: int | None) -> ConvSchedule:
    """The schedule of a dense convolution or layer.

    Args:
        batch: images in a call; None where it is known only then.
    """
    tuned = find_tuned(target, KernelShape("conv2d", geometry, batch))
    if tuned is not None:
        return tuned
    threads = target_threads(target) or THREADS
    return default_conv_schedule(isa_of(target), geometry, batch, threads, fetches_ahead(target))


def half_conv_schedule(target: Target, geometry: ConvGeometry, batch: int | None) -> ConvSchedule:
    """The same in float16, of which none is tuned: steps of K are short, since their sums are float16."""
    threads = target_threads(target) or THREADS
    return replace(default_conv_schedule(NEON_HALF, geometry, batch, threads), k_step=HALF_K_STEP)


def reuse_schedule(target: Target, geometry: ConvGeometry, setting: ReuseSetting, batch: int | None) -> ReuseSchedule:
    """The schedule of the GEMM and gather-add of ``pixel`` and ``segment``; the guard makes no difference.

    Args:
        batch: images in a call; None where it is known only then.
    """
    tuned = find_tuned(target, KernelShape("reuse", geometry, batch, replace(setting, max_clusters=None)))
    if tuned is not None:
        return tuned
    threads = (target_threads(target) or BATCH_BANDS) if is_long(setting) else THREADS
    return default_reuse_schedule(isa_of(target), geometry, setting, threads=threads)


def weight_gradient_schedule(target: Target, geometry: ConvGeometry, batch: int) -> WeightGradientSchedule:
    """The schedule of the gradient of a convolution's or dense layer's weights."""
    tuned = find_tuned(target, KernelShape("weight_gradient", geometry, batch))
    return default_weight_gradient_schedule(isa_of(target), geometry, batch) if tuned is None else tuned


def find_tuned(target: Target, kernel: KernelShape) -> Any | None:
    """The schedule that the source in force knows; None without one."""
    source = _source.get()
    return None if source is None else source.schedule(kernel, target)
