"""Concatenation along the channels of NHWC tensors: one copy per input, no selection per element."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as B

from adr_tvm.schedules.im2col import LANES

TASK_ROWS = 64  # pixels one task copies


@functools.cache
def concat(rows: int, channels: tuple[int, ...], dtype: str) -> tirx.PrimFunc:
    """Y [B, rows, sum of channels] from the inputs [B, rows, channels_i]; B is symbolic.

    Args:
        rows: pixels of one image.
        channels: of each input, in order.
    """
    total, tasks = sum(channels), -(-rows // TASK_ROWS)
    with IRBuilder() as builder, B.prim_func(is_private=True):
        B.func_attr({"tirx.noalias": True, "op_pattern": 8})
        handles = [B.arg(f"x{i}", B.handle()) for i in range(len(channels))]
        out = B.arg("y", B.handle())
        batch = tirx.Var("B", "int64")
        sources = [
            B.match_buffer(h, (batch, tirx.IntImm("int64", rows), tirx.IntImm("int64", count)), dtype)
            for h, count in zip(handles, channels, strict=True)
        ]
        Y = B.match_buffer(out, (batch, tirx.IntImm("int64", rows), tirx.IntImm("int64", total)), dtype)
        with B.parallel(0, batch * tasks) as task, B.serial(0, TASK_ROWS) as i:
            image, row = task // tasks, task % tasks * TASK_ROWS + i
            with B.If(row < rows), B.Then():
                offset = 0
                for X, count in zip(sources, channels, strict=True):
                    if count >= LANES:
                        with B.serial(0, count // LANES) as c, B.vectorized(0, LANES) as j:
                            B.buffer_store(Y, X[image, row, c * LANES + j], [image, row, offset + c * LANES + j])
                    if count % LANES:
                        start = count // LANES * LANES
                        with B.serial(0, count % LANES) as j:
                            B.buffer_store(Y, X[image, row, start + j], [image, row, offset + start + j])
                    offset += count
    return builder.get()
