"""How the centroid GEMM and the gather-add of ``pixel`` and ``segment`` are cut up: what a tuner may vary.

Nothing here changes what is computed, but it moves sums between registers and the output: fp32 results of two schedules
agree to rounding only. Bytes are the same at any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from adr_tvm.geometry import ConvGeometry
from adr_tvm.product_steps import integer_terms, keeps_integers
from adr_tvm.schedules.neuron_vectors import vector_source
from adr_tvm.schedules.register_tile import Isa
from adr_tvm.settings import ReuseSetting

BLOCK_CLUSTERS = 1024  # clusters of one segment in a table
TABLE_BYTES = 768 * 1024  # aim for the tables of the segments added up together, were they full
BYTES = {"float32": 4, "bfloat16": 2, "int16": 2, "int8": 1}
PAIRED = ("bfloat16", "int8")  # formats that need an even number of vectors
WIDEST = {"float32": 2, "bfloat16": 4, "int16": 2, "int8": 4}  # vectors of a block: wider ones measured no faster
MAX_ROWS = 16  # rows of centroids behind the last that a kernel may read
THREADS = 4  # there may be so many; the machine may have fewer
BAND_ROWS = 6144  # output pixels for which making the tables anew costs a few per cent
UNROLLED = 192  # vector additions written out at most
# `segment` over a whole batch: sums of all its pixels leave the cache between two groups of segments, so groups are
# larger, and so are blocks; their tables are hardly ever full.
BATCH_TOGETHER = 8
BATCH_TABLE_BYTES = 2 * 1024 * 1024
BATCH_WIDEST = 4
BATCH_BANDS = 2  # where the number of threads is not known


@dataclass(frozen=True)
class ReuseSchedule:
    """The parameters of ``gemm_scatter``.

    Attributes:
        channels: output channels of a block, whose tables one task makes and reads.
        together: segments whose products are added up before sums return to the output.
        columns: output pixels whose sums are in registers together.
        bands: parts of the output rows (``batch``: of those of all images). Each makes the tables anew, so more than
            one pays only where threads would have nothing to do.
        rows: clusters that the GEMM multiplies at once, at most 16.
    """

    channels: int
    together: int
    columns: int
    bands: int = 1
    rows: int = 6

    def __post_init__(self) -> None:
        if min(self.channels, self.together, self.columns, self.bands, self.rows) < 1 or self.rows > MAX_ROWS:
            raise ValueError(f"{self}: numbers from 1 on are expected, and at most {MAX_ROWS} rows")


def table_of(geometry: ConvGeometry, setting: ReuseSetting) -> str:
    """The table type that a layer gets: the setting's, or ``float32`` where integers could overflow."""
    taps = vector_source(geometry, setting).taps
    return setting.table if not setting.table.startswith("int") or keeps_integers(setting.table, taps) else "float32"


def table_clusters(geometry: ConvGeometry, setting: ReuseSetting) -> int:
    """Clusters of a segment in a table, from shapes alone; more take more rounds."""
    clusters = BLOCK_CLUSTERS if setting.hash == "exact" else min(2**setting.H + 1, BLOCK_CLUSTERS)
    if setting.scope == "image":
        clusters = min(clusters, vector_source(geometry, setting).per_image + 1)
    return clusters


def is_long(setting: ReuseSetting) -> bool:
    """Whether a unit is a batch of images that an output pixel reads once."""
    return setting.scope == "batch" and setting.granularity == "segment"


def default_reuse_schedule(
    isa: Isa, geometry: ConvGeometry, setting: ReuseSetting, units: int = 1, threads: int = THREADS
) -> ReuseSchedule:
    """A good schedule without any measurement.

    Args:
        units: that a call clusters, where it is known; each is a task, or several.
        threads: that will share the tasks.
    """
    table = table_of(geometry, setting)
    least = isa.lanes * (2 if table in PAIRED else 1)
    padded = -(-geometry.M // least) * least
    widths = [c for c in range(least, isa.lanes * WIDEST[table] + 1, least) if padded % c == 0]
    if is_long(setting):
        widths = [c for c in range(least, isa.lanes * BATCH_WIDEST + 1, least) if padded % c == 0]
        return fitted(ReuseSchedule(max(widths, default=least), 1, 1, threads), isa, geometry, setting)
    most_bands = max(1, geometry.rows // BAND_ROWS)
    enough = min(threads, 4)
    # Three blocks on two threads take as long as four.
    shared = [c for c in widths if most_bands > 1 or units * padded // c in (2, enough) or units * padded // c > enough]
    channels = max(widths if threads == 1 else shared, default=widths[0])
    bands = max(1, min(-(-enough // (units * padded // channels)), most_bands))
    return fitted(ReuseSchedule(channels, 1, 1, bands), isa, geometry, setting)


def fitted(schedule: ReuseSchedule, isa: Isa, geometry: ConvGeometry, setting: ReuseSetting) -> ReuseSchedule:
    """The schedule with as many segments and columns as caches and registers hold."""
    source, table = vector_source(geometry, setting), table_of(geometry, setting)
    row = schedule.channels * BYTES[table]
    table_bytes = source.taps * (table_clusters(geometry, setting) + 1) * row
    together = TABLE_BYTES // table_bytes
    if is_long(setting):
        together = max(together, min(BATCH_TOGETHER, BATCH_TABLE_BYTES // table_bytes))
    if table.startswith("int"):
        together = min(together, integer_terms(table, source.taps) // source.taps)
    together = max(1, min(together, source.segments))
    rounds = -(-source.segments // together)
    together = -(-source.segments // rounds)
    vectors = -(-schedule.channels // isa.lanes)
    columns = max(1, min((isa.registers - 8) // vectors, 4, UNROLLED // (source.taps * vectors)))
    rows = max(1, min((isa.registers - vectors - 1) // vectors, 12))
    return replace(schedule, together=together, columns=columns // 2 * 2 or 1, rows=rows)
