"""What this machine can do at best: the roof that kernels are held against.

Williams, Waterman, Patterson, "Roofline", CACM 2009: a kernel that does F operations on B bytes takes at least
max(F / peak, B / bandwidth). The peak is that of fused multiply-adds from registers; the bandwidths are those of reads
and of STREAM's triad (two reads and a write, 12 bytes an element; the read of a written line is not counted) from each
level of the memory. All are measured, by kernels of this compiler, as the best of some runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

FLOATS = 4  # bytes
FMA_STEPS = 400_000
STREAM_BYTES = 1 << 29  # moved in one timed run, so that starting the threads does not count
DRAM_BYTES = 256 << 20
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_DEFAULT_CACHES = {"L1": 32 << 10, "L2": 512 << 10, "L3": 16 << 20}


@dataclass(frozen=True)
class Level:
    """One level of the memory.

    Attributes:
        name: L1, L2, L3 or DRAM.
        bytes: that all threads together have there; None: no bound.
        read, triad: GB/s of all threads together.
    """

    name: str
    bytes: int | None
    read: float
    triad: float


@dataclass(frozen=True)
class Ceilings:
    """The roof for a number of threads.

    Attributes:
        threads: the number.
        gflops: fp32 multiply-adds from registers, 2 operations each, in GFLOP/s.
        levels: from L1 to DRAM.
    """

    threads: int
    gflops: float
    levels: list[Level]

    def level(self, size: float) -> Level:
        """The level of the memory that a working set of ``size`` bytes fits in."""
        return next(level for level in self.levels if level.bytes is None or size <= level.bytes)

    def roof(self, operations: float, size: float) -> float:
        """The least seconds for some floating-point operations on ``size`` bytes, each read once."""
        return max(operations / self.gflops, size / self.level(size).read) / 1e9


def cache_sizes() -> dict[str, int]:
    """Bytes of the data caches of one core (L3: as the system tells); guesses where the system does not tell."""
    sizes = dict(_DEFAULT_CACHES)
    for folder in sorted(_CACHES.glob("index*")):
        try:
            kind, level, size = (folder.joinpath(name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            sizes[f"L{level}"] = int(size[:-1]) << 10
    return sizes


def measure_ceilings(threads: int, seconds: float = 3.0) -> Ceilings:
    """Measure in this process, whose TVM runtime has ``threads`` threads.

    Args:
        seconds: about how long to take, compiling and filling the memory aside.
    """
    import tvm

    from adr_tvm._tvm import cpu_target
    from adr_tvm.schedules.register_tile import isa_of
    from benchmarks.ceiling_kernels import CHAINS, STREAMS, fma_kernel, read_kernel, triad_kernel

    target = cpu_target()
    lanes, sizes = isa_of(target).lanes, cache_sizes()
    each = seconds / 9

    def kernel(function: Any) -> Callable[..., Any]:
        return tvm.compile(function, target)[str(function.attrs["global_symbol"])]

    x = tvm.runtime.tensor(np.stack([np.full(lanes, 0.5, np.float32), np.ones(lanes, np.float32)]))
    sums = tvm.runtime.tensor(np.zeros((threads, CHAINS, lanes), np.float32))
    fma = kernel(fma_kernel(threads, lanes, FMA_STEPS))
    operations = 2 * threads * CHAINS * lanes * FMA_STEPS
    gflops = operations / _least_seconds(lambda: fma(x, sums), each) / 1e9

    levels = []
    # Half of a cache, so that what else lies there does not matter; L3 is shared by the threads.
    working_sets = [("L1", sizes["L1"] // 2), ("L2", sizes["L2"] // 2), ("L3", sizes["L3"] // 2 // threads)]
    for name, per_thread in [*working_sets, ("DRAM", max(DRAM_BYTES, 4 * sizes["L3"]) // threads)]:
        rates = []
        for make, arrays, block in ((read_kernel, 1, CHAINS * lanes), (triad_kernel, 3, STREAMS * lanes)):
            blocks = max(1, per_thread // (arrays * FLOATS * block))
            moved = arrays * FLOATS * blocks * block * threads
            repeats = max(1, STREAM_BYTES // moved)
            shape = (threads, blocks, block // lanes, lanes)
            tensors = [tvm.runtime.tensor(np.ones(shape, np.float32)) for _ in range(arrays)]
            run = kernel(make(threads, lanes, blocks, repeats))
            arguments = [*tensors, sums] if arrays == 1 else tensors
            rates.append(repeats * moved / _least_seconds(partial(run, *arguments), each) / 1e9)
        size = sizes.get(name)
        together = size * threads if size is not None and name in ("L1", "L2") else size
        levels.append(Level(name, together, *rates))
    return Ceilings(threads, gflops, levels)


def _least_seconds(run: Callable[[], object], seconds: float) -> float:
    run()
    least, begin = float("inf"), time.perf_counter()
    while least == float("inf") or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        least = min(least, time.perf_counter() - start)
    return least
