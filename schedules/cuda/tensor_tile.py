"""Tiles of the GEMM on tensor cores: what a block and what a warp of it multiply, and how K is cut.

Lengths along K are counted in units of 16 bytes, what a thread copies at once: four entries of fp32, eight of 16 bits.
A tile never changes a result: an output is one chain of products of 32 bytes of K, in the order of K, whatever block
and warp it falls to. The estimate was never measured on a GPU; ``adr_tvm/tuning`` measures.
"""

from __future__ import annotations

from dataclasses import dataclass

from adr_tvm.schedules.cuda.thread_tile import MULTIPROCESSORS

UNIT = 16  # bytes
STEP_LATENCY = 60  # cycles that a step takes at least: a barrier, and the first products of its warps


@dataclass(frozen=True)
class TensorTile:
    """BM rows by BN output channels of a block, WM by WN of a warp; UK units of K in a step, of which ``stages`` are
    in shared memory, all but one on their way.
    """

    BM: int
    BN: int
    WM: int
    WN: int
    UK: int
    stages: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.BM // self.WM * (self.BN // self.WN) * 32

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block; at most the 48 KiB that every kernel may have."""
        return self.stages * (self.BM + self.BN) * self.UK * UNIT


TILES = (
    TensorTile(128, 128, 64, 32, 4, 3),
    TensorTile(128, 64, 64, 32, 4, 4),
    TensorTile(128, 32, 32, 32, 4, 4),
    TensorTile(64, 64, 32, 32, 4, 4),
    TensorTile(32, 32, 16, 32, 8, 4),
    TensorTile(16, 32, 16, 32, 8, 4),
)
# Where units are gathered entry by entry they pass through registers, so that more threads share the rows.
ENTRY_TILES = (TILES[0], TensorTile(128, 64, 32, 32, 4, 4), TensorTile(64, 32, 16, 32, 4, 4), *TILES[3:])


def tensor_tile(rows: int, M: int, whole: bool) -> TensorTile:
    """The tile for a product: the one of the shortest estimated time.

    Args:
        rows, M: rows and output channels.
        whole: whether whole units of rows are copied.
    """
    return min(TILES if whole else ENTRY_TILES, key=lambda tile: tensor_cycles(tile, rows, M))


def tensor_cycles(tile: TensorTile, rows: int, M: int) -> float:
    """Cycles for a unit of K: rounds of blocks over the multiprocessors.

    A multiprocessor takes one cycle for the products of 16 rows and 8 channels, reads 128 bytes of shared memory in a
    cycle, and gets about 40 from the cache.
    """
    blocks = -(-rows // tile.BM) * -(-M // tile.BN)
    products = tile.BM * tile.BN / 128
    fragments = tile.threads // 32 * (tile.WM + tile.WN) * UNIT / 128
    copies = (tile.BM + tile.BN) * UNIT / 40
    latency = STEP_LATENCY / tile.UK if blocks <= MULTIPROCESSORS else 0
    return -(-blocks // MULTIPROCESSORS) * max(products, fragments, copies, latency)
