"""Which schedule a kernel gets: a tuned one where there is one, else the default of the instruction set."""

from __future__ import annotations

from tvm.target import Target

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.conv_schedule import ConvSchedule, default_conv_schedule
from adr_tvm.schedules.register_tile import isa_of


def conv_schedule(target: Target, geometry: ConvGeometry, batch: int | None) -> ConvSchedule:
    """The schedule of a dense convolution or layer.

    Args:
        batch: images in a call; None where it is known only then.
    """
    return default_conv_schedule(isa_of(target), geometry, batch)
