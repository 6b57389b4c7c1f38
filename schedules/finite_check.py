"""Whether every entry of a gradient is finite: where one is not, ``control`` says that nothing is to be changed.

``control`` is that of ``schedules/optimizer_update.py``. An entry is NaN or Inf where its exponent is the largest, as
its bits tell: TVM takes 0 x for 0.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.optimizer_update import CONTROL, GO_ON
from adr_tvm.schedules.sliding_window import loop_of

LANES = 16
CHUNK = 16 * 1024  # entries of a task
EXPONENT = 0x7F800000


def exponent(value: tirx.PrimExpr) -> tirx.PrimExpr:
    """The bits of an fp32 number's exponent: uint32, ``EXPONENT`` where it is not finite."""
    return T.reinterpret("uint32", value) & T.uint32(EXPONENT)


@functools.cache
def finite_check(size: int) -> tirx.PrimFunc:
    """Returns: PrimFunc of g float32 [size] and control float32 [4], which it may change."""
    tasks = -(-size // CHUNK)
    loop = loop_of(tasks, CHUNK * 4)

    @T.prim_func(private=True)
    def kernel(g: T.handle, control: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        G = T.match_buffer(g, (T.int64(size),), "float32")
        C = T.match_buffer(control, (T.int64(CONTROL),), "float32")
        for task in loop(T.int64(tasks)):
            lanes = T.alloc_buffer((LANES,), "uint32")
            first = T.meta_var(task * CHUNK)
            count = T.meta_var(T.min(T.int64(CHUNK), size - first))
            for l in T.vectorized(LANES):
                lanes[l] = T.uint32(0)
            for v in range(count // LANES):
                for l in T.vectorized(LANES):
                    lanes[l] = T.max(lanes[l], exponent(G[first + v * LANES + l]))
            for i in range(count % LANES):
                lanes[0] = T.max(lanes[0], exponent(G[first + count // LANES * LANES + i]))
            for l in T.unroll(LANES):
                if lanes[l] == T.uint32(EXPONENT):
                    C[GO_ON] = T.float32(0)

    return kernel
