"""Gradient of a layer's epilogue, y = activation(z + bias): dz = dy activation'(z), told from y, and dbias = sum of dz.

One pass over memory: what is written to dz joins the sum of its channel on the way. Rows (all but the last axis) are
cut into parts by shape alone; the sums of the parts are added in order, so the bytes do not depend on the threads.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.schedules.accumulators import across
from adr_tvm.schedules.epilogue import LIMIT
from adr_tvm.schedules.register_tile import Isa

PART_FLOATS = 64 * 1024  # of a part; fewer make tasks that are not worth starting
ROWS = 4  # summed in a register before the sum of the part is stored again: 12 streams of memory


def activation_gradient(activation: Activation, y: Any, dy: Any) -> Any:
    """dy activation'(z) of two TIR vectors; see ``gradients/epilogue.py`` for the edges."""
    if activation.kind == "leaky_relu":
        return tirx.Select(y > 0, dy, dy * tirx.const(activation.slope, "float32"))
    if activation.kind == "clip":
        zero = tirx.const(0, dy.ty.dtype)
        if activation.low > -LIMIT:
            dy = tirx.Select(y <= tirx.const(activation.low, "float32"), zero, dy)
        if activation.high < LIMIT:
            dy = tirx.Select(y >= tirx.const(activation.high, "float32"), zero, dy)
    return dy


@functools.cache
def epilogue_gradient(shape: tuple[int, ...], activation: Activation, isa: Isa) -> tirx.PrimFunc:
    """Returns: PrimFunc of Y and dY float32 ``shape``, dZ likewise, dbias float32 [M], M the last axis."""
    M, rows = shape[-1], math.prod(shape[:-1])
    parts, body, fold = _sums(rows, M, isa, activation)

    @T.prim_func(private=True)
    def kernel(y: T.handle, dy: T.handle, dz: T.handle, db: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        Y = T.match_buffer(y, [T.int64(d) for d in shape], "float32")
        DY = T.match_buffer(dy, [T.int64(d) for d in shape], "float32")
        DZ = T.match_buffer(dz, [T.int64(d) for d in shape], "float32")
        DB = T.match_buffer(db, (T.int64(M),), "float32")
        partial = T.alloc_buffer((parts, M), "float32")
        Yf = T.decl_buffer((rows * M,), "float32", data=Y.data)
        DYf = T.decl_buffer((rows * M,), "float32", data=DY.data)
        DZf = T.decl_buffer((rows * M,), "float32", data=DZ.data)
        for part in T.parallel(T.int64(parts)):
            body(Yf, DYf, DZf, partial, part)
        fold(partial, DB)

    return kernel


@functools.cache
def bias_gradient(shape: tuple[int, ...], isa: Isa) -> tirx.PrimFunc:
    """Of a linear epilogue, where dz = dy. Returns: PrimFunc of dY float32 ``shape`` and dbias float32 [M]."""
    M, rows = shape[-1], math.prod(shape[:-1])
    parts, body, fold = _sums(rows, M, isa, None)

    @T.prim_func(private=True)
    def kernel(dy: T.handle, db: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        DY = T.match_buffer(dy, [T.int64(d) for d in shape], "float32")
        DB = T.match_buffer(db, (T.int64(M),), "float32")
        partial = T.alloc_buffer((parts, M), "float32")
        DYf = T.decl_buffer((rows * M,), "float32", data=DY.data)
        for part in T.parallel(T.int64(parts)):
            body(DYf, DYf, DYf, partial, part)
        fold(partial, DB)

    return kernel


def _sums(rows: int, M: int, isa: Isa, activation: Activation | None) -> tuple[int, Any, Any]:
    """Number of parts, inline ``(Y, DY, DZ, partial, part)`` of one part, inline ``(partial, DB)`` of their sum.

    Without an activation Y is not read and DZ not written.
    """
    blocks = -(-rows // ROWS)
    in_part = min(blocks, max(1, PART_FLOATS // (M * ROWS)))
    parts, whole, lanes = -(-blocks // in_part), rows // ROWS, min(isa.lanes, 1 << (M.bit_length() - 1))
    rest = M // lanes * lanes

    def add_rows(Y, DY, DZ, partial, part, row, count, m, width):
        total = T.bind(partial[part, across(m, width)])
        for i in range(count):
            place = across((row + i) * M + m, width)
            d = T.bind(DY[place] if activation is None else activation_gradient(activation, Y[place], DY[place]))
            if activation is not None:
                T.buffer_store(DZ, d, [place])
            total = T.bind(total + d)
        T.buffer_store(partial, total, [part, across(m, width)])

    @T.inline
    def add_block(Y, DY, DZ, partial, part, row, count):
        for v in range(M // lanes):
            add_rows(Y, DY, DZ, partial, part, row, count, v * lanes, lanes)
        for m in range(M - rest):
            add_rows(Y, DY, DZ, partial, part, row, count, rest + m, 1)

    @T.inline
    def body(Y, DY, DZ, partial, part):
        for m in range(M):
            partial[part, m] = T.float32(0)
        for b in range(T.max(T.min(in_part, whole - part * in_part), 0)):
            add_block(Y, DY, DZ, partial, part, (part * in_part + b) * ROWS, ROWS)
        if part == parts - 1:
            for i in range(rows - whole * ROWS):
                add_block(Y, DY, DZ, partial, part, T.int64(whole * ROWS) + i, 1)

    @T.inline
    def fold(partial, DB):
        for m in range(M):
            DB[m] = partial[0, m]
        for part in range(parts - 1):
            for m in range(M):
                DB[m] = DB[m] + partial[part + 1, m]

    return parts, body, fold
