"""What a machine says of itself, asked by code that runs there: only libc is needed."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

PATH_BYTES, FILE_BYTES = 256, 4096
FACTS = 3  # hardware capabilities 1 and 2, processors that are online
_HWCAP, _HWCAP2, _ONLINE = 16, 26, 84  # of Linux's getauxval and sysconf


def read_file() -> tirx.PrimFunc:
    """Beginning of a file: path uint8 [PATH_BYTES], ended by 0 -> content uint8 [FILE_BYTES], left as it is without."""

    @T.prim_func
    def read_file(path: T.Buffer((PATH_BYTES,), "uint8"), content: T.Buffer((FILE_BYTES,), "uint8")):
        T.func_attr({"global_symbol": "read_file", "tirx.noalias": True})
        file: T.int32 = T.call_extern("int32", "open", T.address_of(path[0]), 0)
        if file >= 0:
            T.evaluate(T.call_extern("int64", "read", file, T.address_of(content[0]), T.int64(FILE_BYTES)))
            T.evaluate(T.call_extern("int32", "close", file))

    return read_file


def facts() -> tirx.PrimFunc:
    """Numbers: int64 [FACTS], in the order of ``FACTS``."""

    @T.prim_func
    def facts(found: T.Buffer((FACTS,), "int64")):
        T.func_attr({"global_symbol": "facts", "tirx.noalias": True})
        found[0] = T.call_extern("int64", "getauxval", T.int64(_HWCAP))
        found[1] = T.call_extern("int64", "getauxval", T.int64(_HWCAP2))
        found[2] = T.call_extern("int64", "sysconf", _ONLINE)

    return facts
