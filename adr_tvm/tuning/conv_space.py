"""The schedules of a dense convolution that are worth a look."""

from __future__ import annotations

from dataclasses import replace

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.conv_schedule import ConvSchedule, k_steps, reads_directly
from adr_tvm.schedules.register_tile import MAX_VECTORS, Isa, RegisterTile

K_STEPS = (128, 256, 384, 512, 768, 1024)
MAX_CHUNK_ROWS = 512
MAX_TASKS = 64
SERIAL_FLOPS = 4_000_000  # above, threads always share the work
PADDED = 1.34  # rows and channels computed for those wanted, relative to the tile that wastes least


def fits_registers(tile: RegisterTile, isa: Isa) -> bool:
    """Whether the accumulators, a row of weights and one broadcast have registers of their own."""
    if tile.lanes < 1 or tile.MR < 1 or tile.NR < 1 or tile.NR % isa.lanes or tile.NR % tile.lanes:
        return False
    vectors = tile.NR // isa.lanes
    return vectors <= MAX_VECTORS and tile.MR * vectors + vectors + 1 <= isa.registers


def conv_schedules(isa: Isa, geometry: ConvGeometry, rows: int, serial: bool = True) -> list[ConvSchedule]:
    """All schedules of the space, in no order that means anything.

    Args:
        rows: of X in a call.
        serial: whether small kernels may leave all work to one thread.
    """
    found = [
        ConvSchedule(tile, panels, k_step, groups, fetch=fetch)
        for tile in tiles(isa, rows, geometry.M)
        for panels in panel_counts(tile, rows)
        for k_step in step_lengths(geometry)
        for groups in group_counts(tile, geometry, -(-rows // (panels * tile.MR)))
        for fetch in (False, True)
    ]
    if serial and 2 * rows * geometry.K * geometry.M <= SERIAL_FLOPS:
        found += [replace(s, parallel=False) for s in found if s.groups == 1]
    return found


def tiles(isa: Isa, rows: int, M: int) -> list[RegisterTile]:
    """Tiles that fit the registers and do not compute much more than there is."""
    fitting = [
        RegisterTile(MR, vectors * isa.lanes, isa.lanes)
        for vectors in range(1, MAX_VECTORS + 1)
        for MR in range(1, isa.registers)
        if rows >= MR and fits_registers(RegisterTile(MR, vectors * isa.lanes, isa.lanes), isa)
    ]

    def computed(tile: RegisterTile) -> int:
        return -(-rows // tile.MR) * tile.MR * -(-M // tile.NR) * tile.NR

    least = min(map(computed, fitting))
    return [tile for tile in fitting if computed(tile) <= PADDED * least]


def panel_counts(tile: RegisterTile, rows: int) -> list[int]:
    """Panels of a chunk: all rows in 1, 2, 3, 4, 6, 8, 12, ... chunks of nearly equal size."""
    panels = -(-rows // tile.MR)
    chunks = [n << shift for shift in range(20) for n in (2, 3)]
    counts = {-(-panels // n) for n in [1, *chunks] if n <= panels}
    return sorted(count for count in counts if count == 1 or count * tile.MR <= MAX_CHUNK_ROWS)


def step_lengths(geometry: ConvGeometry) -> list[int]:
    """Values of ``k_step`` that cut K differently."""
    kinds = {k_steps(geometry, length): length for length in (geometry.K, *reversed(K_STEPS)) if length <= geometry.K}
    return sorted(kinds.values())


def group_counts(tile: RegisterTile, geometry: ConvGeometry, chunks: int) -> list[int]:
    """Groups of blocks of output channels: powers of two, and all blocks apart where rows are not packed."""
    blocks = -(-geometry.M // tile.NR)
    most = min(blocks, max(1, MAX_TASKS // chunks))
    counts = {1 << shift for shift in range(7) if 1 << shift <= most}
    return sorted(counts | ({most} if reads_directly(geometry) else set()))
