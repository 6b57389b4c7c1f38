"""What a dense convolution takes under a schedule, in vector multiply-adds; decides only what is tried first.

The model of ``conv_tile``, with the rest of a schedule: packing, partial sums, weights that come from beyond L2 again
for each chunk, and the thread that has most to do. Constants were fitted on a Zen 5 core, with weights that were not in
the caches: 14x14x512 -> 512 (3x3) ran at 217 GFLOP/s with 14 x 32 accumulators and at 243 with 6 x 64; all 196 rows in
a chunk were 12 % faster than half of them, and all of K at once 6 % faster than steps of 512.
"""

from __future__ import annotations

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.conv_schedule import ConvSchedule, k_steps, reads_directly
from adr_tvm.schedules.register_tile import IN_FLIGHT, Isa

L2_BYTES = 1 << 19  # of weights, beside rows of X
L2_VECTOR = 3.5  # of weights on its way from L2, which happens beside the multiply-adds
FAR_VECTOR = 5.0  # of weights that come from beyond L2
FETCHED = 0.5  # of that, where they are fetched meanwhile; as little as 0.1 where L3 is slow (Emerald Rapids)
TALL, TALL_ROW = 9, 0.015  # what each row of a tile above so many adds to its time
LOOP = 1.0  # of a step of K
PACK = 0.5  # an entry of a row of X
PARTIAL = 10.0  # a vector of partial sums, stored and loaded
TASK = 100.0
LAUNCH = 8000.0  # threads that start


def conv_cost(schedule: ConvSchedule, isa: Isa, geometry: ConvGeometry, rows: int, threads: int) -> float:
    """Multiply-adds of a vector, about, that the busiest thread's work takes as long as.

    Args:
        rows: of X in a call.
    """
    tile, steps = schedule.tile, k_steps(geometry, schedule.k_step)
    vectors, blocks = tile.NR // isa.lanes, -(-geometry.M // tile.NR)
    panels = -(-rows // tile.MR)
    chunks = -(-panels // schedule.panels)
    in_chunk, in_group = min(panels, schedule.panels), -(-blocks // schedule.groups)
    tall = 1 + TALL_ROW * max(0, tile.MR - TALL)
    step = max(tall * tile.MR * vectors, tile.MR + vectors, IN_FLIGHT, L2_VECTOR * vectors) + LOOP
    packed = 0.0 if reads_directly(geometry) else PACK * in_chunk * tile.MR * geometry.K
    partial = PARTIAL * (steps.count - 1) * in_chunk * tile.MR * in_group * vectors
    far = FAR_VECTOR if 4 * geometry.K * in_group * tile.NR > L2_BYTES else 0.0
    far *= FETCHED if schedule.fetch else 1.0
    task = in_chunk * in_group * geometry.K * step + packed + partial + far * geometry.K * in_group * vectors + TASK
    tasks = chunks * schedule.groups
    if not schedule.parallel:
        return tasks * task
    return -(-tasks // threads) * task + (LAUNCH if threads > 1 else 0)
