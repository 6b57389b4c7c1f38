"""Dropout for CUDA, a thread for each entry: the same mask as on processors (``schedules/dropout.py``)."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.dropout import dropout_entries, dropout_keys

THREADS = 256


@functools.cache
def dropout(size: int, rate: float, stream: int) -> tirx.PrimFunc:
    """Returns: PrimFunc of X float32 [size], seed int64 [1], Y float32 [size]."""
    keep, keys_of = dropout_entries(rate), dropout_keys(stream)

    @T.prim_func(private=True)
    def kernel(x: T.handle, s: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        X = T.match_buffer(x, (T.int64(size),), "float32")
        seed = T.match_buffer(s, (T.int64(1),), "int64")
        Y = T.match_buffer(y, (T.int64(size),), "float32")
        for block in T.thread_binding(-(-size // THREADS), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                keys = T.alloc_buffer((2,), "uint32", scope="local")
                keys_of(seed, keys)
                if block * THREADS + t < size:
                    keep(X, Y, keys, block * THREADS + t, 1)

    return kernel
