"""Runs of output pixels of a sliding window, for kernels whose accumulators are vectors of channels.

A row of output pixels is cut into spans of a few pixels, so that loads shared by neighbouring windows and whatever
belongs to the channels alone stay in registers. The spans at the edges of the row are unrolled: there every question
whether a tap lies in the padding is answered at compile time. In between nothing is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.register_tile import Isa

TASK_WORK = 1 << 16  # operations of a task below which handing it to another thread does not pay
TASK_ROWS = 8  # output rows of a task: 1 of a 56x56x144 image took 1.4 times as long as 7


@dataclass(frozen=True)
class Spans:
    """How a row of ``OW`` output pixels is cut.

    Attributes:
        pixels: output pixels of a span; the last span of a row may have fewer.
        first, last: spans ``first`` to ``last - 1`` read no padding and are complete.
        count: number of spans.
    """

    pixels: int
    first: int
    last: int
    count: int


def spans_of(geometry: ConvGeometry, isa: Isa) -> Spans:
    """The spans of a geometry: as equal as they can be, with accumulators for a quarter of the registers."""
    g = geometry
    count = -(-g.OW // (isa.registers // 4))
    pixels = -(-g.OW // count)
    count = -(-g.OW // pixels)
    left, width = g.padding[1], g.dilation[1] * (g.KW - 1)
    inside = [
        s
        for s in range(g.OW // pixels)
        if s * pixels * g.strides[1] >= left and ((s + 1) * pixels - 1) * g.strides[1] - left + width < g.W
    ]
    return Spans(pixels, inside[0], inside[-1] + 1, count) if inside else Spans(pixels, count, count, count)


def rows_per_task(rows: int, row_work: int) -> int:
    """Rows of an image that make a task: worth starting, and small enough that input rows stay in L1 between uses.

    The number of tasks is a power of two, so that they share out evenly.
    """
    tasks = 1
    while rows > TASK_ROWS * tasks and 2 * tasks <= rows * row_work // TASK_WORK:
        tasks *= 2
    return -(-rows // tasks)


def loop_of(batch: int | None, image_work: int):
    """``T.parallel``, or ``T.serial`` where a call is known to have work for less than two tasks."""
    return T.serial if batch is not None and batch * image_work < 2 * TASK_WORK else T.parallel


def channel_blocks(C: int, lanes: int) -> tuple[int, int]:
    """(number of vectors, their width) that cover C channels.

    The last vector ends at the last channel, so it may overlap the one before: what both compute is the same.
    """
    return (-(-C // lanes), lanes) if C >= lanes else (1, C)
