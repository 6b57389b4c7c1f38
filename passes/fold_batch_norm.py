"""Fold inference-time batch normalisation into the convolution before it.

With constants, ``bn(v) = v * a + b`` per channel, a = gamma / sqrt(var + eps), b = beta - mean * a. Behind a
convolution (with or without a bias) that only the normalisation reads: ``W' = W * a``, ``bias' = bias * a + b``.
Elsewhere the two constants remain as one multiply and one add. Activations are NCHW here.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm._tvm import Dataflow, constant, is_op, mutate


@mutator
class _Folder(PyExprMutator):
    def __init__(self, mod: tvm.IRModule):
        super().__init__(mod)
        self.dataflow = Dataflow(mod)

    def visit_tuple_getitem_(self, item: relax.TupleGetItem) -> relax.Expr:
        norm = self.dataflow.value(item.tuple_value)
        item = self.visit_expr_post_order(item)
        if item.index != 0 or not is_op(norm, "relax.nn.batch_norm"):
            return item
        parameters = [constant(a) for a in norm.args[1:5]]
        float32 = all(str(arg.ty.dtype) == "float32" for arg in norm.args)
        if not float32 or any(p is None for p in parameters) or int(norm.attrs.axis) != 1:
            return item
        gamma, beta, mean, var = (np.asarray(p, np.float64) for p in parameters)
        gamma = gamma if norm.attrs.scale else np.ones_like(gamma)
        beta = beta if norm.attrs.center else np.zeros_like(beta)
        a = gamma / np.sqrt(var + float(norm.attrs.epsilon))
        return self._scaled(norm.args[0], a, beta - mean * a)

    def _scaled(self, data: relax.Expr, a: np.ndarray, b: np.ndarray) -> relax.Expr:
        """``data * a + b`` per channel; ``data`` as it was before this pass."""
        ndim = len(data.ty.shape)
        conv, bias = self._convolution(data)
        if conv is not None:
            w = np.asarray(constant(conv.args[1]), np.float64) * a.reshape(-1, *[1] * (ndim - 1))
            folded = relax.Call(
                conv.op,
                [self.visit_expr(conv.args[0]), relax.const(w.astype(np.float32))],
                conv.attrs,
                list(conv.ty_args),
                conv.span,
            )
            shift = b if bias is None else bias * a + b
            return relax.op.add(self.builder_.emit(folded), _channels(shift, ndim))
        y = self.builder_.emit(relax.op.multiply(self.visit_expr(data), _channels(a, ndim)))
        return relax.op.add(y, _channels(b, ndim))

    def _convolution(self, data: relax.Expr) -> tuple[relax.Call | None, np.ndarray | None]:
        """The convolution that ``data`` is, through a constant bias; (None, None) if it has other readers."""
        bias = None
        for _ in range(2):
            value = self.dataflow.value(data)
            if not self.dataflow.read_once(data):
                return None, None
            if is_op(value, "relax.nn.conv2d") and constant(value.args[1]) is not None:
                layouts = (str(value.attrs.data_layout), str(value.attrs.kernel_layout), str(value.attrs.out_layout))
                return (value, bias) if layouts == ("NCHW", "OIHW", "NCHW") else (None, None)
            if not is_op(value, "relax.add") or bias is not None:
                return None, None
            added = constant(self.dataflow.value(value.args[1]))
            if added is None or added.ndim != len(data.ty.shape) or added.shape[1] != added.size:
                return None, None
            bias, data = added.reshape(-1).astype(np.float64), value.args[0]
        return None, None


def _channels(v: np.ndarray, ndim: int) -> relax.Expr:
    return relax.const(v.reshape(1, -1, *[1] * (ndim - 2)).astype(np.float32))


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm:
    """See the module."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Fold in every Relax function."""
        return relax.transform.DeadCodeElimination()(mutate(mod, _Folder))
