"""Steps of integer product tables (``docs/algorithm.md``, clause 15): what kernels and the reference share.

A product p of output channel m is kept as q = round(p / step_m), |q| <= levels. Cauchy and Schwarz bound every product
by the norms of its centroid and of its weights, so the step needs no look at the products:

    step_m = max_s (max_c ||c_s|| * max_t ||w_{s, t, m}||) / levels
"""

from __future__ import annotations

INT16_TERMS = 64  # products whose sum fits 16 bits, unless one segment alone has more
INT8_TERMS = 257  # 257 * 255 is the largest sum of unsigned bytes in 16 bits


def integer_terms(table: str, taps: int) -> int:
    """Products that an integer sum of ``int16`` or ``int8`` takes: those of whole segments."""
    most = max(INT16_TERMS, taps) if table == "int16" else INT8_TERMS
    return most // taps * taps


def levels(table: str, taps: int, segments: int) -> int:
    """Largest |q|. The more products are added up in 16 bits, the fewer levels each may have."""
    if table == "int8":
        return 127
    return 32767 // min(integer_terms(table, taps), taps * segments)


def keeps_integers(table: str, taps: int) -> bool:
    """Whether a layer with this number of taps keeps its products in an integer table; else they stay ``float32``."""
    return table == "int16" or taps <= INT8_TERMS
