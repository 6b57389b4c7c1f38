"""How the products of centroids are kept in a table, added up and turned into sums again (``docs/algorithm.md``, clause
15).

A row of a table is one product: the channels of one block of one (cluster, tap). Rows are added far more often than
they are made, so what counts is how many bytes and instructions a row takes. A ``TableFormat`` emits the statements:

- ``float32``: a row is the products, an addition an addition.
- ``bfloat16``: 32 bits hold channels j and j + V: the upper half is j + V as it stands, the lower one j after a shift.
- ``int16``: q = round(p / step), added up in int16.
- ``int8``: 16 bits hold q + 128 of channels j and j + V. One 16-bit sum takes the pairs as they are (so it is lower +
  256 upper, modulo 65536), another the upper halves; the lower sum is what is left.

V is the number of 16- or 32-bit lanes of a stored vector. The integer sums cannot overflow: see ``levels``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.product_steps import integer_terms, levels
from adr_tvm.schedules.transpose_tile import lanes, splat

Vectors = list[Any]

_ROUND = 12582912.0  # 1.5 * 2^23: added to a float below 2^22, it leaves the nearest integer in the lower bits
_OFFSET = 128


class TableFormat(ABC):
    """A format of table rows for blocks of ``channels`` channels, handled as float32 vectors of ``width`` lanes.

    Attributes:
        dtype, row: element type and elements of a stored row.
        terms: products that may be added up before ``total``; None: any number.
        scaled: whether products are divided by a step.
    """

    dtype: str
    row: int
    terms: int | None = None
    scaled = False

    def __init__(self, channels: int, width: int):
        self.channels, self.width = channels, width
        self.vectors = channels // width

    @abstractmethod
    def encode(self, products: Vectors, inverse: Vectors) -> Vectors:
        """A row from its products; ``inverse`` is 1 / step, by channel."""

    @abstractmethod
    def start(self, partial: Vectors) -> Vectors:
        """Accumulators. Formats whose accumulators are floats start from the partial sums."""

    @abstractmethod
    def add(self, sums: Vectors, row: Any, factor: Any) -> Vectors:
        """The accumulators after one more row, times ``factor`` (floats only).

        ``row(first, count)`` loads ``count`` elements of it.
        """

    def total(self, sums: Vectors, partial: Vectors, terms: Any, step: Vectors) -> Vectors:
        """The partial sums after the ``terms`` products in the accumulators."""
        return sums

    @property
    def accumulator(self) -> tuple[int, str, int]:
        """(lanes, element type, number) of the accumulators' vectors."""
        return self.width, "float32", self.vectors

    @property
    def empty(self) -> Any:
        """The element of the row of pads, whose product is zero."""
        return tirx.const(0, self.dtype)


def _scaled(row: Any, factor: Any, width: int) -> Any:
    return row if factor is None else splat(factor, width) * row


class _Float32(TableFormat):
    dtype = "float32"

    @property
    def row(self) -> int:  # type: ignore[override]
        return self.channels

    def encode(self, products: Vectors, inverse: Vectors) -> Vectors:
        return products

    def start(self, partial: Vectors) -> Vectors:
        return partial

    def add(self, sums: Vectors, row: Any, factor: Any) -> Vectors:
        rows = (row(v * self.width, self.width) for v in range(self.vectors))
        return [T.bind(s + _scaled(r, factor, self.width)) for s, r in zip(sums, rows, strict=True)]


class _Bfloat16(TableFormat):
    dtype = "uint32"

    @property
    def row(self) -> int:  # type: ignore[override]
        return self.channels // 2

    def encode(self, products: Vectors, inverse: Vectors) -> Vectors:
        rounded = []
        for p in products:
            bits = T.bind(T.reinterpret(f"uint32x{self.width}", p))
            odd = T.shift_right(bits, self._const(16)) & self._const(1)
            rounded.append(T.bind(bits + (odd + self._const(0x7FFF))))
        half = self.vectors // 2
        return [
            T.shift_right(low, self._const(16)) | (high & self._const(0xFFFF0000))
            for low, high in zip(rounded[:half], rounded[half:], strict=True)
        ]

    def start(self, partial: Vectors) -> Vectors:
        return partial

    def add(self, sums: Vectors, row: Any, factor: Any) -> Vectors:
        half, as_float = self.vectors // 2, f"float32x{self.width}"
        lower, upper = [], []
        for v in range(half):
            pair = T.bind(row(v * self.width, self.width))
            low = T.reinterpret(as_float, T.shift_left(pair, self._const(16)))
            high = T.reinterpret(as_float, pair & self._const(0xFFFF0000))
            lower.append(T.bind(sums[v] + _scaled(low, factor, self.width)))
            upper.append(T.bind(sums[half + v] + _scaled(high, factor, self.width)))
        return lower + upper

    def _const(self, value: int) -> Any:
        return splat(T.uint32(value), self.width)


class _Integer(TableFormat):
    scaled = True

    def __init__(self, channels: int, width: int, table: str, taps: int, segments: int):
        super().__init__(channels, width)
        self.terms = integer_terms(table, taps)
        self.levels = levels(table, taps, segments)

    def _rounded(self, product: Any, inverse: Any, offset: int) -> Any:
        return T.bind(
            T.reinterpret(f"int32x{self.width}", product * inverse + splat(T.float32(_ROUND + offset), self.width))
        )


class _Int16(_Integer):
    dtype = "int16"

    @property
    def row(self) -> int:  # type: ignore[override]
        return self.channels

    def encode(self, products: Vectors, inverse: Vectors) -> Vectors:
        return [T.cast(self._rounded(p, i, 0), f"int16x{self.width}") for p, i in zip(products, inverse, strict=True)]

    @property
    def _wide(self) -> int:
        return 2 * self.width if self.vectors % 2 == 0 else self.width

    @property
    def accumulator(self) -> tuple[int, str, int]:
        return self._wide, "int16", self.channels // self._wide

    def start(self, partial: Vectors) -> Vectors:
        return [splat(T.int16(0), self._wide)] * (self.channels // self._wide)

    def add(self, sums: Vectors, row: Any, factor: Any) -> Vectors:
        return [T.bind(s + row(v * self._wide, self._wide)) for v, s in enumerate(sums)]

    def total(self, sums: Vectors, partial: Vectors, terms: Any, step: Vectors) -> Vectors:
        per = self._wide // self.width
        result = []
        for v, old in enumerate(partial):
            part = T.Shuffle([sums[v // per]], list(range(v % per * self.width, (v % per + 1) * self.width)))
            as_float = T.cast(part, f"float32x{self.width}")
            result.append(T.bind(old + as_float * step[v]))
        return result


class _Int8(_Integer):
    dtype = "uint16"

    @property
    def row(self) -> int:  # type: ignore[override]
        return self.channels // 2

    @property
    def _wide(self) -> int:
        return 2 * self.width if self.vectors % 4 == 0 else self.width

    @property
    def empty(self) -> Any:
        return tirx.const(_OFFSET * 257, self.dtype)

    def encode(self, products: Vectors, inverse: Vectors) -> Vectors:
        q = [self._rounded(p, i, _OFFSET) for p, i in zip(products, inverse, strict=True)]
        half, byte = self.vectors // 2, splat(T.int32(0xFF), self.width)
        return [
            T.cast((low & byte) | T.shift_left(high & byte, splat(T.int32(8), self.width)), f"uint16x{self.width}")
            for low, high in zip(q[:half], q[half:], strict=True)
        ]

    @property
    def accumulator(self) -> tuple[int, str, int]:
        return self._wide, "uint16", self.channels // self._wide

    def start(self, partial: Vectors) -> Vectors:
        return [splat(T.uint16(0), self._wide)] * (self.channels // self._wide)

    def add(self, sums: Vectors, row: Any, factor: Any) -> Vectors:
        half, eight = len(sums) // 2, splat(T.uint16(8), self._wide)
        pairs, upper = [], []
        for v in range(half):
            pair = T.bind(row(v * self._wide, self._wide))
            pairs.append(T.bind(sums[v] + pair))
            upper.append(T.bind(sums[half + v] + T.shift_right(pair, eight)))
        return pairs + upper

    def total(self, sums: Vectors, partial: Vectors, terms: Any, step: Vectors) -> Vectors:
        half, per = len(sums) // 2, self._wide // self.width
        lower = [T.bind(sums[v] - T.shift_left(sums[half + v], splat(T.uint16(8), self._wide))) for v in range(half)]
        wide = lower + sums[half:]
        offset = splat(T.cast(terms * _OFFSET, "float32"), self.width)
        result = []
        for v, old in enumerate(partial):
            part = T.Shuffle([wide[v // per]], list(range(v % per * self.width, (v % per + 1) * self.width)))
            as_float = T.cast(T.cast(part, f"int32x{self.width}"), f"float32x{self.width}")
            result.append(T.bind(old + (as_float - offset) * step[v]))
        return result


def table_format(table: str, channels: int, width: int, taps: int, segments: int) -> TableFormat:
    """The format of a ``ReuseSetting.table`` for blocks of ``channels`` channels in vectors of ``width`` floats.

    ``bfloat16`` and ``int8`` take an even number of vectors.
    """
    if table == "int16":
        return _Int16(channels, width, table, taps, segments)
    if table == "int8":
        return _Int8(channels, width, table, taps, segments)
    return (_Bfloat16 if table == "bfloat16" else _Float32)(channels, width)


def row_of(table, index: list[Any]):
    """A loader for ``TableFormat.add``: the row ``table[*index]``."""
    return lambda first, count: table[(*index, lanes(first, count))]
