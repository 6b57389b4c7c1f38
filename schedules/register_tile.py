"""Register tiles of the GEMM microkernels, per instruction set.

A tile holds MR x NR accumulators in vector registers. The tile never changes a result: each output element stays
one FMA chain over K (``docs/algorithm.md``, clause 11), so the choice is about speed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.target import Target, codegen

A_CHUNK_BYTES = 256 * 1024  # packed rows that stay in L2 while the weight blocks stream past
MAX_CHUNK_ROWS = 96


@dataclass(frozen=True)
class Isa:
    """What the tiles depend on: lanes of a vector (of fp32 but for ``NEON_HALF``) and number of vector registers."""

    name: str
    lanes: int
    registers: int


AVX512 = Isa("avx512", 16, 32)
AVX2 = Isa("avx2", 8, 16)
NEON = Isa("neon", 4, 32)
NEON_HALF = Isa("neon", 8, 32)  # of float16 arithmetic
SSE = Isa("sse", 4, 16)


def isa_of(target: Target) -> Isa:
    """The instruction set that kernels for ``target`` may use."""
    if codegen.target_has_features("avx512f", target):
        return AVX512
    if codegen.target_has_features("avx2", target):
        return AVX2
    if codegen.target_has_features("neon", target):
        return NEON
    return SSE


def panels_left(rows_left: tirx.PrimExpr, chunk: int, MR: int) -> tirx.PrimExpr:
    """Panels of MR rows in a chunk that holds the next of ``rows_left`` rows; fewer than all in the last chunk.

    Without it a dense layer at batch 1 would multiply a chunk of zero rows: 64 times the work for 1024 -> 64.
    """
    return tirx.min((rows_left + (MR - 1)) // MR, chunk // MR)


@dataclass(frozen=True)
class RegisterTile:
    """MR rows by NR output channels of accumulators, which code handles ``lanes`` channels at a time."""

    MR: int
    NR: int
    lanes: int = 16

    @property
    def vectors(self) -> int:
        """Pieces of a row; vectors of more lanes than the processor has are cut up by the code generator."""
        return self.NR // self.lanes if self.NR % self.lanes == 0 else 1

    def chunk_rows(self, K: int) -> int:
        """Rows of X packed at once: a multiple of MR that fits ``A_CHUNK_BYTES``."""
        fitting = A_CHUNK_BYTES // (4 * K * self.MR)
        return self.MR * max(1, min(fitting, MAX_CHUNK_ROWS // self.MR))


def gemm_tile(isa: Isa, M: int) -> RegisterTile:
    """The tile for M output channels: least padding first, then the widest of one or two vectors.

    Two vectors by 12 rows measured 430-490 GFLOP/s on two Zen 5 cores, level with four vectors by 6; the
    narrower block gives twice as many blocks of output channels to share among threads.
    """
    one, two = isa.lanes, 2 * isa.lanes
    NR = min((one, two), key=lambda nr: (-(-M // nr) * nr, -nr))
    vectors = NR // isa.lanes
    # Each row needs `vectors` accumulators; the weights and one broadcast need `vectors + 1` more registers.
    MR = min(14, (isa.registers - vectors - 1) // vectors)
    return RegisterTile(12 if vectors == 2 and MR > 12 else MR, NR)


MAX_VECTORS = 4  # of output channels in a tile
IN_FLIGHT = 8  # multiply-adds that hide the latency of one: 4 cycles, two in each
# Costs in vector multiply-adds, fitted to one Zen 5 core with weights that are not in the cache.
LOAD = 0.2  # a load, beside the multiply-adds that hide it
WEIGHTS = 0.1  # a vector of weights, beside its load
L2_LIMIT = 3.2  # a vector of weights where L2 can give no more
ROWS, ROW = 8, 0.25  # each row beyond so many: too many streams of X at once


def conv_tile(isa: Isa, rows: int, M: int, short: bool = False) -> RegisterTile:
    """The tile that takes least time for ``rows`` rows of X and M output channels, padding counted.

    Args:
        short: whether rows are packed and short, so that many of them stay in L1.

    A step of K costs MR * vectors multiply-adds and MR + vectors loads, of which current processors start as many in a
    cycle. Measured on one Zen 5 core, GFLOP/s: 13x13x512 -> 1000 with 12 x 16 178, with 9 x 48 235; 14x14x512 -> 512
    with 14 x 32 224, with 6 x 64 248; 7x7x512 -> 512 with 12 x 32 125 (60 rows computed for 49), with 5 x 64 200.
    """

    def seconds(tile: RegisterTile) -> tuple[float, int]:
        products, loads = tile.MR * tile.vectors, tile.MR + tile.vectors
        step = max(products, loads, IN_FLIGHT, L2_LIMIT * tile.vectors)
        step += LOAD * loads + WEIGHTS * tile.vectors + (0 if short else ROW * max(0, tile.MR - ROWS))
        return -(-rows // tile.MR) * -(-M // tile.NR) * step, -products

    # Accumulators, a vector of weights for each of them in a row, and one broadcast.
    tiles = [
        RegisterTile(MR, vectors * isa.lanes, isa.lanes)
        for vectors in range(1, MAX_VECTORS + 1)
        for MR in range(1, (isa.registers - vectors - 1) // vectors + 1)
        if MR <= rows
    ]
    return min(tiles, key=seconds)
