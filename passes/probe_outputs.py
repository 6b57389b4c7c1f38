"""Outputs of layers get a term to differentiate by: y becomes y + probe, with a parameter of ``main`` for each layer.

The gradient by a probe of zeros is the gradient of the loss by the layer's output.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm import ops
from adr_tvm._tvm import static_shape, tensor_type


def probe_name(layer: str) -> str:
    """Name of the parameter of a layer."""
    return f"probe_{layer}"


@mutator
class _Prober(PyExprMutator):
    def __init__(self, mod: tvm.IRModule):
        super().__init__(mod)
        self.probes: list[relax.Var] = []

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if getattr(call.op, "name", None) not in ops.DENSE_OPS:
            return call
        probe = relax.Var(probe_name(ops.layer_name(call)), tensor_type(static_shape(call)))
        self.probes.append(probe)
        return relax.op.add(self.builder_.emit(call), probe)


@tvm.transform.module_pass(opt_level=0, name="ProbeOutputs")
class ProbeOutputs:
    """See the module: ``main(...)`` becomes ``main(..., probes)``, in network order."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite ``main``; its batch must be fixed."""
        flat = relax.transform.ToNonDataflow()(mod)
        prober = _Prober(flat)
        func = prober.visit_expr(flat["main"])
        whole = prober.builder_.get().clone()
        whole["main"] = relax.Function([*func.params, *prober.probes], func.body, func.ret_ty, attrs=func.attrs)
        return relax.transform.ConvertToDataflow()(relax.transform.Normalize()(whole))
