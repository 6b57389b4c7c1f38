"""bfloat16 for product tables (``docs/algorithm.md``, clause 15), two in a word, by integer arithmetic."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.settings import ReuseSetting


def is_packed(geometry: ConvGeometry, setting: ReuseSetting) -> bool:
    """Whether tables hold pairs; else, where channels do not come in fours, rounded numbers in fp32."""
    return setting.table == "bfloat16" and geometry.M % 4 == 0


def bits_of(value: Any) -> Any:
    """The nearest bfloat16 of an fp32 number, ties to even, in the lower half of a word."""
    bits = T.reinterpret("uint32", value)
    odd = T.bitwise_and(T.shift_right(bits, T.uint32(16)), T.uint32(1))
    return T.shift_right(bits + T.uint32(0x7FFF) + odd, T.uint32(16))


def number_of(bits: Any) -> Any:
    """The fp32 number of a bfloat16 in the lower half of a word."""
    return T.reinterpret("float32", T.shift_left(bits, T.uint32(16)))
