"""The tiles of the GEMM kernels on a GPU that are worth a look.

All that the kernels can be made for and a multiprocessor has room for; those that the estimate gives much more time
than the best are left out.
"""

from __future__ import annotations

import itertools
from typing import TypeVar

from adr_tvm.geometry import ConvGeometry
from adr_tvm.precision import Precision
from adr_tvm.schedules.cuda.tensor_gemm import padded_k as padded_k_of_tensors
from adr_tvm.schedules.cuda.tensor_tile import TensorTile, tensor_cycles
from adr_tvm.schedules.cuda.thread_tile import MULTIPROCESSORS, ThreadTile, thread_cycles
from adr_tvm.schedules.cuda.unit_gather import entries_of_unit, whole_units

Tile = TypeVar("Tile", ThreadTile, TensorTile)

SHARED_BYTES = 48 << 10  # what every kernel may have
REGISTERS = 65536  # of a multiprocessor, for all threads of a block
MOST_OF_THREAD = 232  # registers; there are 255, and addresses take some
OTHERS = 40  # registers of a thread beside sums, factors and what is on its way
WARP = 32
MOST_LENGTH = 256  # of a tile
UNROLLED = 1024  # multiply-adds of a step, all of which are instructions
GATHERED = 32  # entries that a thread may have on their way, where they are read one by one
SLOWER = 3.0  # relative to the best estimate
COPIED = 40  # bytes that a multiprocessor gets from the cache in a cycle
UNHIDDEN = 0.2  # of a step's time, where only one is on its way


def fits_thread_tile(tile: ThreadTile, geometry: ConvGeometry) -> bool:
    """Whether ``implicit_gemm`` can be made with a tile, whatever its numbers are."""
    BM, BN, BK, TM, TN = tile.BM, tile.BN, tile.BK, tile.TM, tile.TN
    if min(BM, BN, BK, TM, TN) < 1 or max(BM, BN) > MOST_LENGTH or BM % 4 or BN % 4:
        return False
    if any((each > 4 and each % 4) or each == 3 for each in (TM, TN)) or BM % TM or BN % TN:
        return False
    threads, V = tile.threads, 4 if geometry.C % 4 == 0 else 1
    if threads % WARP or not WARP <= threads <= 1024 or BK % V or BK * BN % (4 * threads):
        return False
    across = BK // V
    if threads % across or BM * across % threads:
        return False
    rows, weights = BM * across // threads, BK * BN // threads
    registers = TM * TN + TM + TN + rows * (V + 4) + weights + OTHERS
    return (
        tile.shared_bytes <= SHARED_BYTES
        and registers <= MOST_OF_THREAD
        and registers * threads <= REGISTERS
        and TM * TN * BK <= UNROLLED
    )


def fits_tensor_tile(tile: TensorTile, geometry: ConvGeometry, precision: Precision) -> bool:
    """Whether ``tensor_gemm`` can be made with a tile, whatever its numbers are."""
    BM, BN, WM, WN, UK = tile.BM, tile.BN, tile.WM, tile.WN, tile.UK
    if min(BM, BN, WM, WN) < 16 or max(BM, BN) > MOST_LENGTH or UK not in (4, 8) or not 2 <= tile.stages <= 8:
        return False
    if WM % 16 or WN % 16 or BM % WM or BN % WN:
        return False
    threads = tile.threads
    if threads > 512 or any(length * UK % threads for length in (BM, BN)):
        return False
    rows, columns, dtype = BM * UK // threads, BN * UK // threads, precision.storage
    gathered = 0 if whole_units(geometry, dtype) else rows * entries_of_unit(dtype)
    registers = WM * WN // WARP + WM // 4 + WN // 4 + 4 * (2 * rows + columns) + gathered + OTHERS
    return (
        tile.shared_bytes <= SHARED_BYTES
        and gathered <= GATHERED
        and registers <= MOST_OF_THREAD
        and registers * threads <= REGISTERS
    )


def thread_tiles(geometry: ConvGeometry, rows: int) -> dict[ThreadTile, float]:
    """Tiles of ``implicit_gemm`` for a product of some rows, with estimates of their time."""
    lengths, parts = (16, 32, 64, 128, 256), (1, 2, 4, 8)
    tiles = itertools.starmap(ThreadTile, itertools.product(lengths, lengths, (8, 16, 32, 64), parts, parts))
    fitting = [tile for tile in tiles if fits_thread_tile(tile, geometry)]
    return _promising({tile: thread_cost(tile, geometry, rows) for tile in fitting})


def tensor_tiles(geometry: ConvGeometry, rows: int, precision: Precision) -> dict[TensorTile, float]:
    """Tiles of ``tensor_gemm`` for a product of some rows, with estimates of their time."""
    lengths, warps = (16, 32, 64, 128, 256), (16, 32, 64, 128)
    every = itertools.product(lengths, lengths, warps, warps, (4, 8), (2, 3, 4, 5, 6))
    fitting = [tile for tile in itertools.starmap(TensorTile, every) if fits_tensor_tile(tile, geometry, precision)]
    return _promising({tile: tensor_cost(tile, geometry, rows, precision) for tile in fitting})


def thread_cost(tile: ThreadTile, geometry: ConvGeometry, rows: int) -> float:
    """Cycles, about; beside the products, which the estimate counts, copies take instructions."""
    copies = _rounds(tile, rows, geometry.M) * 4 * (tile.BM + tile.BN) / COPIED
    return (thread_cycles(tile, rows, geometry.M) + copies) * -(-geometry.K // tile.BK) * tile.BK


def tensor_cost(tile: TensorTile, geometry: ConvGeometry, rows: int, precision: Precision) -> float:
    """Cycles, about; beside those of the estimate, what few steps on their way do not hide."""
    units = padded_k_of_tensors(geometry, tile, precision) // entries_of_unit(precision.storage)
    return tensor_cycles(tile, rows, geometry.M) * units * (1 + UNHIDDEN / (tile.stages - 1))


def _rounds(tile: ThreadTile, rows: int, M: int) -> int:
    """Blocks that a multiprocessor runs one after the other."""
    return -(-(-(-rows // tile.BM) * -(-M // tile.BN)) // MULTIPROCESSORS)


def _promising(costs: dict[Tile, float]) -> dict[Tile, float]:
    least = min(costs.values())
    return {tile: cost for tile, cost in costs.items() if cost <= SLOWER * least}
