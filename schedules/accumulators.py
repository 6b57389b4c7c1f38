"""Accumulators of a GEMM microkernel that LLVM keeps in registers.

TVM takes a buffer of 1 KiB or more from its workspace pool, even one of a single tile: two calls for each tile, and
each value that passes through is written to memory. So a tile is cut into buffers below that, which become stack slots
that LLVM promotes to registers.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr
from tvm.script import tirx as T

STACK_BYTES = 1024  # TVM's limit for a buffer on the stack


def across(start, lanes: int):
    """The index of ``lanes`` neighbouring entries from ``start`` on."""
    return T.Ramp(start, 1, lanes) if lanes > 1 else start


def splat(value, lanes: int):
    """A vector of equal entries; one lane is a scalar."""
    return T.Broadcast(value, lanes) if lanes > 1 else value


def cast(value: Expr, dtype: str, lanes: int) -> Expr:
    """A vector of ``lanes`` in another element type; one lane is a scalar."""
    return T.cast(value, dtype if lanes == 1 else f"{dtype}x{lanes}")


class Accumulators:
    """rows x vectors vectors of ``lanes`` numbers, of float32 or float16; made and used while a kernel is parsed.

    Every method emits the statements for all rows and vectors.
    """

    def __init__(self, rows: int, vectors: int, lanes: int, dtype: str = "float32"):
        self.rows, self.vectors, self.lanes, self.dtype = rows, vectors, lanes, dtype
        self._together = max(1, (STACK_BYTES - 1) // (4 * lanes))  # rows of one buffer
        parts = -(-rows // self._together)
        self._buffers = [
            [T.alloc_buffer((min(rows, self._together), lanes), dtype) for _ in range(vectors)] for _ in range(parts)
        ]

    def vector(self, i: int, v: int) -> Expr:
        """Vector v of row i."""
        return self.entries(i, v * self.lanes, self.lanes)

    def entries(self, i: int, start: int, count: int) -> Expr:
        """Entries start to start + count of row i, all in one vector."""
        buffer, row = self._place(i, start // self.lanes)
        return buffer[row, across(start % self.lanes, count)]

    def fill(self, value: Callable[[int, int], Expr]) -> None:
        """Set vector v of row i to the vector value(i, v)."""
        for i in range(self.rows):
            for v in range(self.vectors):
                self._set(i, v, value(i, v))

    def clear(self) -> None:
        """Set all to 0."""
        self.fill(lambda _i, _v: splat(tirx.const(0.0, self.dtype), self.lanes))

    def add_products(self, a: Callable[[int], Expr], b: Callable[[int], Expr]) -> None:
        """Add a(i) b(v) to vector v of row i: a(i) a scalar, b(v) a vector."""
        columns = [T.bind(b(v)) for v in range(self.vectors)]
        for i in range(self.rows):
            row = T.bind(a(i))
            for v, column in enumerate(columns):
                self._set(i, v, self.vector(i, v) + splat(row, self.lanes) * column)

    def add_outer(self, a: Callable[[int], Expr], b: Callable[[int], Expr]) -> None:
        """Add a(i) b(v), both vectors, lane by lane to vector v of row i."""
        columns = [T.bind(b(v)) for v in range(self.vectors)]
        for i in range(self.rows):
            row = T.bind(a(i))
            for v, column in enumerate(columns):
                self._set(i, v, self.vector(i, v) + row * column)

    def add(self, value: Callable[[int, int], Expr]) -> None:
        """Add the vector value(i, v) to vector v of row i."""
        for i in range(self.rows):
            for v in range(self.vectors):
                self._set(i, v, self.vector(i, v) + value(i, v))

    def _place(self, i: int, v: int) -> tuple[tirx.Buffer, int]:
        return self._buffers[i // self._together][v], i % self._together

    def _set(self, i: int, v: int, value: Expr) -> None:
        buffer, row = self._place(i, v)
        T.buffer_store(buffer, value, [row, across(0, self.lanes)])
