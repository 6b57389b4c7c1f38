"""Evaluate transposes and reshapes of constants with NumPy.

``FoldConstant`` does the same by compiling and running a kernel for each (3 s for ResNet20's 19 weights); what it
alone can fold is left to it, later in the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import constant, mutate, static_shape


def _permute(call: relax.Call, v: np.ndarray) -> np.ndarray:
    axes = range(v.ndim)[::-1] if call.attrs.axes is None else call.attrs.axes
    return np.ascontiguousarray(v.transpose([int(a) for a in axes]))


def _to_result_shape(call: relax.Call, v: np.ndarray) -> np.ndarray:
    return v.reshape([int(d) for d in static_shape(call)])


_FOLDS: dict[str, Callable[[relax.Call, np.ndarray], np.ndarray]] = {
    "relax.permute_dims": _permute,
    "relax.reshape": _to_result_shape,
    "relax.expand_dims": _to_result_shape,
    "relax.squeeze": _to_result_shape,
}


@mutator
class _Folder(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        fold = _FOLDS.get(call.op.name) if isinstance(call.op, tvm.ir.Op) else None
        if fold is None:
            return call
        source = call.args[0]
        if isinstance(source, relax.Var):
            source = self.lookup_binding(source)
        value = constant(source)
        call = self.builder_.normalize(call)
        if value is None or None in static_shape(call):
            return call
        return relax.const(fold(call, value))


@tvm.transform.module_pass(opt_level=0, name="FoldShapes")
class FoldShapes:
    """See the module."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Fold in every Relax function."""
        return mutate(relax.transform.CanonicalizeBindings()(mutate(mod, _Folder)), _Folder)
