"""The time, read inside compiled code: where that runs on another machine, only its own clock is close enough."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm._tvm import packed_call, packed_tensor

STAMP = 2  # seconds and nanoseconds, int64
_MONOTONIC = 1  # of Linux's clocks
_MARK = 0xADA  # no system call of Linux: it returns -1


def clock_call(stamps: Any, at: int) -> Any:
    """In a PrimFunc: write a stamp into int64 [n] from an index on."""
    return tirx.Evaluate(tirx.call_extern("int32", "clock_gettime", _MONOTONIC, tirx.address_of(stamps[at])))


def seconds(stamps: Sequence[int]) -> float:
    """Between two stamps, of 4 numbers."""
    return int(stamps[2]) - int(stamps[0]) + 1e-9 * (int(stamps[3]) - int(stamps[1]))


@functools.cache
def stamp_behind(_number: int = 0) -> tirx.PrimFunc:
    """(x, of any shape) -> int64 [STAMP]: a stamp whose place in a program follows from what makes x."""

    @T.prim_func(private=True)
    def kernel(x: T.handle, stamp: T.Buffer((T.int64(STAMP),), "int64")):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        T.evaluate(T.call_extern("int32", "clock_gettime", _MONOTONIC, T.address_of(stamp[0])))

    return kernel


@functools.cache
def mark_behind(number: int) -> tirx.PrimFunc:
    """Like ``stamp_behind``, but makes a system call that only an emulator's plugin knows, with a number from 1 on."""

    @T.prim_func(private=True)
    def kernel(x: T.handle, stamp: T.Buffer((T.int64(STAMP),), "int64")):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        stamp[0] = T.call_extern("int64", "syscall", T.int64(_MARK), T.int64(number))

    return kernel


def timed_turn(kernel: str, tensors: Sequence[tuple[Sequence[int], str, int]]) -> tirx.PrimFunc:
    """``turn(tensors..., stamps, first, count)``: as ``plain_turn``; stamps int64 [4], before and after."""
    buffers, sizes, calls = _calls(kernel, tensors)
    stamps = tirx.decl_buffer((2 * STAMP,), "int64", name="stamps")
    return _host([*buffers, stamps, *sizes], [clock_call(stamps, 0), calls, clock_call(stamps, STAMP)])


def plain_turn(kernel: str, tensors: Sequence[tuple[Sequence[int], str, int]]) -> tirx.PrimFunc:
    """``turn(tensors..., first, count)``: calls a PrimFunc ``count`` times.

    Args:
        kernel: name of the PrimFunc, in the same library.
        tensors: (shape, dtype, copies) of its arguments. Those with several copies are given as [copies, *shape]: the
            n-th call takes copy (first + n) mod copies.
    """
    buffers, sizes, calls = _calls(kernel, tensors)
    return _host([*buffers, *sizes], [calls])


def _calls(
    kernel: str, tensors: Sequence[tuple[Sequence[int], str, int]]
) -> tuple[list[Any], list[tirx.Var], tirx.Stmt]:
    """Parameters for the tensors, ``first`` and ``count``, and the loop."""
    buffers = [
        tirx.decl_buffer(([copies] if copies > 1 else []) + list(shape), dtype, name=f"x{i}")
        for i, (shape, dtype, copies) in enumerate(tensors)
    ]
    first, count, n = (tirx.Var(name, "int64") for name in ("first", "count", "n"))

    def argument(buffer: Any, shape: Sequence[int], dtype: str, copies: int) -> Any:
        place = [tirx.floormod(first + n, tirx.const(copies, "int64"))] if copies > 1 else []
        return packed_tensor(tirx.address_of(buffer[(*place, *([0] * len(shape)))]), list(shape), dtype)

    call = packed_call(kernel, [argument(buffer, *each) for buffer, each in zip(buffers, tensors, strict=True)])
    return buffers, [first, count], tirx.For(n, tirx.const(0, "int64"), count, tirx.ForKind.SERIAL, call)


def _host(parameters: Sequence[Any], body: Sequence[Any]) -> tirx.PrimFunc:
    func = tirx.PrimFunc(list(parameters), body[0] if len(body) == 1 else tirx.SeqStmt(list(body)))
    return func.with_attrs({"global_symbol": "turn", "tirx.noalias": True, "tirx.is_scheduled": True})
