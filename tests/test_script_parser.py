"""The parser's shortcuts give the same kernels, and still find scripts inside of classes."""

from __future__ import annotations

import inspect

import pytest
import tvm
import tvm_ffi
from tvm.script import ir as I
from tvm.script import tirx as T
from tvm.script.parser.core import doc
from tvm.script.parser.core.diagnostics import Source
from tvm.script.parser.core.parser import ScriptMacro
from tvm.tirx.script.parser import entry

from adr_tvm import script_parser
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import cluster
from adr_tvm.settings import ReuseSetting


def slow_find_parser(_macro):
    """As TVM does it."""
    for info in inspect.getouterframes(inspect.currentframe()):
        parser = info.frame.f_globals.get(ScriptMacro.parser_object_name)
        if parser is not None:
            return parser
    raise AssertionError("no parser")


def small_kernel(size):
    @T.inline
    def twice(X, i):
        X[i] = X[i] * T.float32(2)

    @T.prim_func(private=True)
    def kernel(X: T.Buffer((T.int64(size),), "float32")):
        for i in range(size):
            twice(X, i)
            twice(X, T.min(i, size - 1))

    return kernel


def test_same_kernels_as_with_tvms_own_parser(monkeypatch):
    geometry = ConvGeometry(H=8, W=8, C=8, M=16, KH=3, KW=3)
    setting = ReuseSetting("pixel", L=8, H=6, hash="gaussian")
    fast = [small_kernel(4), small_kernel(8), cluster.__wrapped__(geometry, setting)]
    monkeypatch.setattr(ScriptMacro, "_find_parser_def", slow_find_parser)
    monkeypatch.setattr(Source, "as_ast", lambda self: doc.parse(self.source))
    monkeypatch.setattr(entry, "inspect", inspect)
    slow = [small_kernel(4), small_kernel(8), cluster.__wrapped__(geometry, setting)]
    for one, other in zip(fast, slow, strict=True):
        assert tvm_ffi.structural_equal(one, other, map_free_vars=True)


def test_functions_of_a_class():
    script_parser.install()

    @I.ir_module
    class Module:
        @T.prim_func
        def main(X: T.Buffer((4,), "float32")):
            for i in range(4):
                X[i] = T.float32(1)

    assert isinstance(Module, tvm.IRModule)
    assert isinstance(Module["main"], tvm.tirx.PrimFunc)


def test_an_inline_function_alone_says_what_is_wrong():
    @T.inline
    def alone(X):
        X[0] = T.float32(1)

    with pytest.raises(RuntimeError, match=r"outside of a T\.prim_func"):
        alone(None)
