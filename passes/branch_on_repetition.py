"""A look at the data decides between two forms of the rest of a network: with lossless layers, or without.

Lossless layers hand each other compact activations (``passes/carried_ids.py``), and in data that hardly repeat there is
nothing to be gained in any of them. So a sample of the rows of the first one is looked at; where no unit of the call
repeats enough, what follows runs with these layers dense, in every respect as if they had never been lossless.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm import ops
from adr_tvm._tvm import is_op, mutate, relax_functions, tensor_type
from adr_tvm.schedules.cluster import units
from adr_tvm.schedules.match_rows import any_repeats


def _lossless(expr: relax.Expr) -> bool:
    return any(is_op(expr, op) for op in ops.REUSE_OPS) and ops.setting_of(expr).lossless


@mutator
class _WithoutLossless(PyExprMutator):
    """Lossless layers become dense ones that count nothing."""

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not _lossless(call):
            return call
        U, _ = units(ops.setting_of(call), call.args[0].ty.shape[0])
        counted = relax.op.zeros(relax.ShapeExpr([U, 2]), "int32")
        return relax.Tuple([self.builder_.emit(ops.without_reuse(call)), self.builder_.emit(counted)])


@tvm.transform.module_pass(opt_level=0, name="BranchOnRepetition")
class BranchOnRepetition:
    """See the module; functions without a lossless layer stay as they are."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Split every function before its first lossless layer."""
        builder = relax.BlockBuilder(mod)
        for gv, func in relax_functions(relax.transform.ToNonDataflow()(mod)):
            bindings = [b for block in func.body.blocks for b in block.bindings]
            first = next((i for i, b in enumerate(bindings) if _lossless(b.value)), None)
            if first is not None:
                builder.update_func(gv, _branched(builder, gv.name_hint, func, bindings[:first], bindings[first:]))
        return relax.transform.ConvertToDataflow()(relax.transform.Normalize()(builder.get()))


def _branched(
    builder: relax.BlockBuilder,
    name: str,
    func: relax.Function,
    before: list[relax.Binding],
    behind: list[relax.Binding],
) -> relax.Function:
    layer, result = behind[0].value, relax.Var("result", func.ret_ty)
    live = _read_from_before(behind, func.body.body)
    rest = relax.Function(live, relax.SeqExpr([relax.BindingBlock(behind)], func.body.body), func.ret_ty, func.is_pure)
    forms = [
        relax.Call(builder.add_func(_private(form), f"{name}_{suffix}"), live)
        for form, suffix in ((rest, "repeating"), (_without_lossless(rest), "not_repeating"))
    ]
    x, geometry = layer.args[0], ops.geometry_of(layer)
    if layer.op.name == ops.REUSE_DENSE:
        x = relax.Var("tokens", tensor_type([x.ty.shape[0], geometry.H, 1, geometry.C]))
        before = [*before, relax.VarBinding(x, relax.op.reshape(layer.args[0], x.ty.shape))]
    repeats = relax.Var("repeats", tensor_type([], "bool"))
    probe = builder.add_func(any_repeats(geometry, ops.setting_of(layer)), "adr_any_repeats")
    branch = relax.If(repeats, *(relax.SeqExpr([], form) for form in forms))
    blocks = [
        relax.BindingBlock([*before, relax.VarBinding(repeats, relax.call_tir(probe, [x], repeats.ty))]),
        relax.BindingBlock([relax.VarBinding(result, branch)]),
    ]
    return relax.Function(func.params, relax.SeqExpr(blocks, result), func.ret_ty, func.is_pure, func.attrs)


def _read_from_before(bindings: list[relax.Binding], result: relax.Expr) -> list[relax.Var]:
    """Variables that bindings and the result read but the bindings do not define, in order."""
    defined = {hash(b.var) for b in bindings}
    found: dict[int, relax.Var] = {}

    def note(expr: relax.Expr) -> None:
        tensors = isinstance(expr, relax.Var) and isinstance(expr.ty, (relax.TensorType, relax.TupleType))
        if tensors and hash(expr) not in defined:
            found.setdefault(hash(expr), expr)

    for binding in bindings:
        relax.analysis.post_order_visit(binding.value, note)
    relax.analysis.post_order_visit(result, note)
    return list(found.values())


def _without_lossless(func: relax.Function) -> relax.Function:
    mod = mutate(tvm.IRModule({"rest": func.with_attr("global_symbol", "rest")}), _WithoutLossless)
    return relax.transform.CanonicalizeBindings()(mod)["rest"]


def _private(func: relax.Function) -> relax.Function:
    copy = relax.utils.copy_with_new_vars(func).with_attr("global_symbol", "rest")
    passes = [relax.transform.Normalize(), relax.transform.ConvertToDataflow(), relax.transform.DeadCodeElimination()]
    return tvm.transform.Sequential(passes)(tvm.IRModule({"rest": copy}))["rest"].without_attr("global_symbol")
