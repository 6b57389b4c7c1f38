"""Loop schedule for operators that have no kernel of their own: pooling, normalisation, elementwise, softmax, ...

Chains of elementwise blocks are inlined. What remains runs in parallel over its outer spatial loops and in vectors
over the innermost one; a reduction whose data are contiguous along the last spatial axis (pooling and means of NHWC
tensors) moves inside of a vector of that axis, so that no lane ever waits for another. Only as many outer loops are
fused as there must be tasks: each fused index costs divisions. An extent that is no multiple of the vector is cut into
a part that is, and a rest; without threads LLVM does that as well.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import SBlock, Schedule
from tvm.s_tir.schedule import ScheduleError

LANES = 16
SPATIAL, REDUCTION = 0, 2  # values of IterVar.iter_type
PARALLEL_WORK = 16 * 1024  # iterations below which starting threads costs more than it saves
TASKS = 16  # fewest tasks that share out evenly


def schedule_cpu_loops(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Schedule every block of a PrimFunc whose loops the rule understands; the others stay as they are."""
    sch = Schedule(tvm.IRModule({"main": func}))
    for block in _blocks(sch):
        with contextlib.suppress(ScheduleError):  # outputs and reductions cannot be inlined
            sch.compute_inline(block)
    for block in _blocks(sch):
        _schedule_block(sch, block)
    return sch.mod["main"]


def _blocks(sch: Schedule) -> list[Any]:
    return list(sch.get_child_blocks(sch.get_sblock("root", "main")))


def _schedule_block(sch: Schedule, block: Any) -> None:
    loops = sch.get_loops(block)
    iters = sch.get(block).iter_vars
    kinds = [int(v.iter_type) for v in iters]
    if len(iters) != len(loops) or not loops or any(k not in (SPATIAL, REDUCTION) for k in kinds):
        return
    work = math.prod(_extent(sch, loop) or 1 for loop in loops)
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == SPATIAL]
    reduction = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == REDUCTION]
    if not spatial:
        return
    last = [v for v, kind in zip(iters, kinds, strict=True) if kind == SPATIAL][-1].var
    lanes, contiguous = None, _contiguous(sch.get(block), last)
    if contiguous:
        lanes = _lanes(_extent(sch, spatial[-1]), short=bool(reduction) or (_extent(sch, spatial[-1]) or 0) < LANES)
    parallel, outer, rest = work >= PARALLEL_WORK, spatial[:-1], None
    if lanes is None and parallel and not reduction and (_extent(sch, spatial[-1]) or 0) > LANES and contiguous:
        whole, rest = sch.loop_partition(spatial[-1], [(_extent(sch, spatial[-1]) or 0) // LANES * LANES, None])
        chunk, vector = sch.split(whole, [None, LANES])
    elif lanes is not None:
        chunk, vector = sch.split(spatial[-1], [None, lanes])
    else:
        chunk, vector = spatial[-1], None
    inner = [] if vector is None else [vector]
    if rest is None:
        sch.reorder(*outer, chunk, *reduction, *inner)
    # Loop kinds first: once its initialisation is split off, TVM no longer knows the block as a reduction.
    if parallel:
        sch.parallel(sch.fuse(*_tasks(sch, outer)) if outer else chunk)
    for loop in (*inner, *([] if rest is None else [rest])):
        sch.vectorize(loop)
    if reduction:
        init = sch.decompose_reduction(block, reduction[0])
        if inner:
            sch.vectorize(sch.get_loops(init)[-1])


def _tasks(sch: Schedule, outer: list[Any]) -> list[Any]:
    """As many of the outermost loops as make `TASKS` iterations; a loop of unknown extent may have one alone."""
    iterations = 1
    for count, loop in enumerate(outer, 1):
        iterations *= _extent(sch, loop) or 1
        if iterations >= TASKS:
            return outer[:count]
    return outer


def _extent(sch: Schedule, loop: Any) -> int | None:
    extent = sch.get(loop).extent
    return int(extent) if isinstance(extent, tirx.IntImm) else None


def _lanes(extent: int | None, short: bool) -> int | None:
    """Largest vector that divides an extent, a whole one alone unless ``short``; None where there is none."""
    sizes = (LANES, 8, 4) if short else (LANES,)
    return next((n for n in sizes if extent is not None and extent % n == 0), None)


def _contiguous(block: SBlock, var: tirx.Var) -> bool:
    """Whether ``var`` is the last index of what the block writes, and at most that of what it reads."""
    if not _is_last(block.writes, var, required=True):
        return False
    return _is_last(block.reads, var, required=False)


def _is_last(regions: Any, var: tirx.Var, required: bool) -> bool:
    for region in regions:
        for axis, r in enumerate(region.region):
            found = tirx.analysis.undefined_vars(r.min, [])
            if any(v.same_as(var) for v in found) and (
                axis != len(region.region) - 1 or not (isinstance(r.min, tirx.Var) and r.min.same_as(var))
            ):
                return False
        if required and not (isinstance(region.region[-1].min, tirx.Var) and region.region[-1].min.same_as(var)):
            return False
    return True
