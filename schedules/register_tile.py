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
    """What the tiles depend on: fp32 lanes of a vector and the number of vector registers."""

    name: str
    lanes: int
    registers: int


AVX512 = Isa("avx512", 16, 32)
AVX2 = Isa("avx2", 8, 16)
NEON = Isa("neon", 4, 32)
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
    """MR rows by NR output channels of accumulators."""

    MR: int
    NR: int

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
