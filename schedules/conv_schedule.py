"""How a dense convolution is cut up: register tile, rows and entries packed at once, tasks.

Nothing here changes a result (``docs/algorithm.md``, clause 11): each output element is one FMA chain over K, in the
same order, whatever the schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.register_tile import Isa, RegisterTile, conv_tile

CHUNK_ROWS = 112  # with K_STEP entries each they take 240 KB: packed rows stay in L2 while the weights stream past
K_STEP = 512
HALF_K_STEP = 128  # entries that are added up in float16, between which sums are float32
ONE_CHUNK_ROWS = 224  # up to this many rows, weights too large for L2 are read once, for one chunk
SHORT_ROW = 256  # entries
LARGE_WEIGHTS = 1024 * 1024  # bytes
GROUP_CHANNELS = 64  # rows are packed again for each group of channels: it must pay
THREADS = 4  # where the target does not say
SERIAL_FLOPS = 1_000_000  # below, starting threads costs more than they save


@dataclass(frozen=True)
class ConvSchedule:
    """The parameters of ``dense_conv2d``.

    Attributes:
        tile: accumulators.
        panels: panels of ``tile.MR`` rows of X in a chunk, which is packed once for all blocks of output channels.
        k_step: entries of K packed at once, about; partial sums wait in a buffer between steps.
        groups: tasks that a chunk is shared among, each with blocks of output channels of its own.
        parallel: whether threads share the tasks.
        fetch: whether weights and pixels are fetched to L2 while those before them are multiplied.
    """

    tile: RegisterTile
    panels: int
    k_step: int = K_STEP
    groups: int = 1
    parallel: bool = True
    fetch: bool = False

    def __post_init__(self) -> None:
        if min(self.panels, self.k_step, self.groups) < 1:
            raise ValueError(f"{self}: numbers from 1 on are expected")


def default_conv_schedule(
    isa: Isa, geometry: ConvGeometry, batch: int | None = None, threads: int = THREADS, fetch: bool = False
) -> ConvSchedule:
    """A good schedule without any measurement.

    Args:
        batch: images in a call; None where it is known only then, and one is assumed.
        threads: that the work should divide among evenly.
        fetch: as in the schedule.
    """
    rows = geometry.rows * (batch or 1)
    # A dense layer may be called with one row or with thousands.
    seen = 1024 if batch is None and geometry.rows == 1 else rows
    tile = conv_tile(isa, seen, geometry.M, geometry.K <= SHORT_ROW and not reads_directly(geometry))
    schedule = replace(schedule_for_tile(tile, geometry, rows, threads), fetch=fetch)
    if batch is None or 2 * rows * geometry.K * geometry.M >= SERIAL_FLOPS:
        return schedule
    return replace(schedule, groups=1, parallel=False)


def schedule_for_tile(tile: RegisterTile, geometry: ConvGeometry, rows: int, threads: int = THREADS) -> ConvSchedule:
    """The rest of a schedule, given its tile.

    Args:
        rows: of X in a call.
        threads: that the work should divide among evenly.
    """
    panels = -(-rows // tile.MR)
    once = rows <= ONE_CHUNK_ROWS and 4 * geometry.K * geometry.M >= LARGE_WEIGHTS
    chunks = 1 if once else -(-panels // max(1, CHUNK_ROWS // tile.MR))
    if chunks >= threads:
        chunks = -(-chunks // threads) * threads
    width = tile.NR if reads_directly(geometry) else max(tile.NR, GROUP_CHANNELS)
    groups = max(1, min(-(-threads // chunks), geometry.M // width))
    if rows == 1:
        groups = -(-geometry.M // tile.NR)
    return ConvSchedule(tile, -(-panels // chunks), K_STEP, groups)


def reads_directly(geometry: ConvGeometry) -> bool:
    """Whether rows of X lie in the input as they are, so that none is packed."""
    return geometry.KH == geometry.KW == 1 and not any(geometry.padding)


@dataclass(frozen=True)
class KSteps:
    """K, cut into steps of whole units; a unit is a part of the channels of one tap.

    Attributes:
        parts: of the channels.
        entries: of K in a unit.
        units: in all.
        together: units of one step; the last step may have fewer.
    """

    parts: int
    entries: int
    units: int
    together: int

    @property
    def count(self) -> int:
        """Number of steps."""
        return -(-self.units // self.together)


def k_steps(geometry: ConvGeometry, k_step: int) -> KSteps:
    """Steps of about ``k_step`` entries each, all about as long."""
    C, taps = geometry.C, geometry.KH * geometry.KW
    if geometry.K <= 1.5 * k_step:
        return KSteps(1, C, taps, taps)
    least = -(-C // k_step)
    parts = next((p for p in range(least, 4 * least + 1) if C % p == 0), 1)
    units, entries = taps * parts, C // parts
    count = -(-units // max(1, k_step // entries))
    return KSteps(parts, entries, units, -(-units // count))
