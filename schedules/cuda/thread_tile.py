"""Tiles of the GEMM kernels: what a block and what a thread of it multiply.

A tile never changes a result: each output element stays one FMA chain over K in one thread (``docs/algorithm.md``,
clause 11), so the choice is about speed alone. The estimate was never measured on a GPU; ``adr_tvm/tuning`` measures.
"""

from __future__ import annotations

from dataclasses import dataclass

TYPICAL_BATCH = 32  # where the batch is symbolic
SKEW = 4  # floats between rows of a tile in shared memory, so that its columns fall into different banks
MULTIPROCESSORS = 64  # of a GPU of middling size; a tile is to leave none of them without a block
LATENCY = 24  # cycles that a step over one entry of K takes at least, however small the tile


@dataclass(frozen=True)
class ThreadTile:
    """BM rows by BN output channels of a block, BK entries of K at a time; TM by TN accumulators of a thread."""

    BM: int
    BN: int
    BK: int
    TM: int
    TN: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.BM // self.TM * (self.BN // self.TN)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: two steps of rows and weights."""
        return 2 * 4 * self.BK * (self.BM + SKEW + self.BN)


TILES = (
    ThreadTile(128, 128, 8, 8, 8),
    ThreadTile(128, 64, 16, 8, 4),
    ThreadTile(64, 64, 16, 4, 4),
    ThreadTile(32, 32, 32, 4, 2),
    ThreadTile(16, 16, 64, 1, 1),
)


def gemm_tile(rows: int, M: int) -> ThreadTile:
    """The tile for a product of ``rows`` rows and M output channels: the one of the shortest estimated time."""
    return min(TILES, key=lambda tile: thread_cycles(tile, rows, M))


def thread_cycles(tile: ThreadTile, rows: int, M: int) -> float:
    """Cycles for one entry of K: rounds of blocks over the multiprocessors, of 128 multiply-adds a cycle each.

    A thread loads TM + TN numbers from shared memory, at 32 a cycle, for TM * TN multiply-adds.
    """
    blocks = -(-rows // tile.BM) * -(-M // tile.BN)
    work = tile.BM * tile.BN / 128 + tile.threads * (tile.TM + tile.TN) / 4 / 32
    return -(-blocks // MULTIPROCESSORS) * max(work, LATENCY if blocks <= MULTIPROCESSORS else 0)
