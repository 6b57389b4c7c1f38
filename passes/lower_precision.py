"""A network in another data type than fp32 (``adr_tvm/precision.py``), whatever the target.

``fp16``, ``bf16``: convolutions and dense layers take and return 16 bits and add up in fp32; operators that only move
data move what they get. All others compute in fp32: their arguments are cast, and their result where a layer takes it.
Fusion puts these casts into their kernels, so what lies in memory around a layer has 16 bits, while a chain such as a
local response normalisation, whose squares might not fit, is fp32 within. Inputs and outputs of functions, biases, hash
planes and integers stay as they are. In a training step these are the parameters, which stay fp32 and are rounded anew
in each step. Gradients of layers take factors of 16 bits too: those of weights are fp32 sums, those of data come back
in 16 bits. Gradients of grouped convolutions stay fp32.

``tf32``: tensors stay fp32, and so does what is no convolution or dense layer. Weights are rounded here, data by the
kernels.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm import ops
from adr_tvm._tvm import calls, constant, dict_attrs, is_op, relax_functions
from adr_tvm.errors import ModelError
from adr_tvm.gradients.conv2d import INPUT_GRAD, WEIGHT_GRAD
from adr_tvm.precision import TF32_DROPPED, Precision

LAYERS = (*ops.DENSE_OPS, ops.CONV2D_ADD, *ops.REUSE_OPS)
RESIDUAL = 3  # argument of ``adr.conv2d_add``
# Operators whose results are entries of their arguments.
MOVES = frozenset(
    f"relax.{name}"
    for name in (
        "broadcast_to", "concat", "expand_dims", "flatten", "flip", "nn.max_pool2d", "permute_dims", "repeat",
        "reshape", "split", "squeeze", "stack", "strided_slice", "tile",
    )
)  # fmt: skip


def check_weights(mod: tvm.IRModule, precision: Precision) -> None:
    """See that all weights of layers fit a data type; apart from the pass, out of which errors come as others.

    Raises:
        ModelError: one does not.
    """
    for _, func in relax_functions(mod):
        for call in calls(func, *LAYERS, ops.GROUPED_CONV2D):
            value = constant(call.args[1])
            largest = 0.0 if value is None else float(np.abs(value).max(initial=0.0))
            if not largest <= precision.largest:
                raise ModelError(
                    f"layer {ops.layer_name(call)!r}: a weight of {largest:.3g} is beyond {precision.name}, whose "
                    f"largest number is {precision.largest:g}: use another --dtype"
                )


@tvm.transform.module_pass(opt_level=0, name="LowerPrecision")
class LowerPrecision:
    """See the module. It runs on operators of ours, after the rewrite and before they are lowered.

    Args:
        precision: what to run in; see ``check_weights``.
    """

    def __init__(self, precision: Precision):
        self.precision = precision

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Convert every Relax function."""
        lower = _Lowerer(mod, self.precision)
        for gv, func in relax_functions(mod):
            lower.casts.clear()
            func = func if lower.storage == "float32" else _with_cast_results(func)
            lower.builder_.update_func(gv, lower.visit_expr(func))
        result = lower.builder_.get()
        result = result.with_attrs(dict(mod.attrs)) if mod.attrs else result
        return relax.transform.DeadCodeElimination()(result)


@mutator
class _Lowerer(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, precision: Precision):
        super().__init__(mod)
        self.precision, self.storage = precision, precision.storage
        self.casts: dict[tuple[int, str], relax.Expr] = {}  # of variables, by hash and type

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        if not isinstance(call.op, tvm.ir.Op) or not _is_data(call):
            return self.visit_expr_post_order(call)
        args = [self.visit_expr(arg) for arg in call.args]
        if call.op.name in LAYERS:
            return self._layer(call, args)
        if call.op.name == ops.GROUPED_CONV2D:
            return self._grouped(call, args)
        if call.op.name in (WEIGHT_GRAD, INPUT_GRAD) and int(call.attrs["groups"]) == 1 and self.storage != "float32":
            return relax.Call(call.op, [self._cast(arg, self.storage) for arg in args], call.attrs)
        if self.storage == "float32":
            return relax.Call(call.op, args, call.attrs, call.ty_args)
        if call.op.name in MOVES and any(_has(arg.ty, self.storage) for arg in args):
            return relax.Call(call.op, [self._cast(arg, self.storage) for arg in args], call.attrs, call.ty_args)
        args = [self._cast(arg, "float32") for arg in args]
        return args[0] if _is_result(call) else relax.Call(call.op, args, call.attrs, call.ty_args)

    def _layer(self, call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
        args[0] = self._cast(args[0], self.storage)
        args[1] = self._weights(call, args[1])
        if call.op.name == ops.CONV2D_ADD:
            args[RESIDUAL] = self._cast(args[RESIDUAL], self.storage)
        attrs = dict_attrs(**ops.attributes(call), precision=self.precision.name)
        return relax.Call(call.op, args, attrs)

    def _grouped(self, call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
        """Without tensor cores: fp32 arithmetic on stored data and weights."""
        if self.storage != "float32":
            args[0], args[1] = self._cast(args[0], self.storage), self._weights(call, args[1])
        return relax.Call(call.op, args, call.attrs)

    def _weights(self, call: relax.Call, w: relax.Expr) -> relax.Expr:
        value = constant(w)
        if value is not None:
            return relax.const(self.precision.rounded(value))
        if self.storage != "float32":
            return self._cast(w, self.storage)
        return self.builder_.emit(self.builder_.call_te(te_round_tf32, w))

    def _cast(self, expr: relax.Expr, dtype: str) -> relax.Expr:
        """An expression with floating-point tensors of a type; tuples field by field, anything else as it is."""
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._cast(field, dtype) for field in expr.fields])
        type_ = expr.ty
        if isinstance(type_, relax.TupleType):
            if all(_is_tensor(t, (dtype,)) or not _is_tensor(t, FLOATS) for t in type_.fields):
                return expr
            parts = [self.builder_.emit(relax.TupleGetItem(expr, i)) for i in range(len(type_.fields))]
            return relax.Tuple([self._cast(part, dtype) for part in parts])
        if not _is_tensor(type_, FLOATS) or str(type_.dtype) == dtype:
            return expr
        value = constant(expr)
        if value is not None:
            return relax.const(self.precision.rounded(value) if dtype == self.storage else value.astype(dtype))
        key = hash(expr), dtype
        if key not in self.casts:
            self.casts[key] = self.builder_.emit(relax.op.astype(expr, dtype))
        return self.casts[key]


FLOATS = ("float32", "float16", "bfloat16")


def _is_tensor(type_: relax.Type, dtypes: tuple[str, ...]) -> bool:
    return isinstance(type_, relax.TensorType) and str(type_.dtype) in dtypes


def _has(type_: relax.Type, dtype: str) -> bool:
    """Whether a tensor, or one of a tuple, is of a type."""
    fields = type_.fields if isinstance(type_, relax.TupleType) else [type_]
    return any(_is_tensor(field, (dtype,)) for field in fields)


def _is_data(call: relax.Call) -> bool:
    """Whether a call makes tensors, and not a shape or an object."""
    types = call.ty.fields if isinstance(call.ty, relax.TupleType) else [call.ty]
    return all(isinstance(t, relax.TensorType) for t in types)


def _is_result(call: relax.Call) -> bool:
    """Whether a call is a cast that ``_with_cast_results`` has put in."""
    return is_op(call, "relax.astype") and str(call.ty.dtype) == str(call.args[0].ty.dtype)


def _with_cast_results(func: relax.Function) -> relax.Function:
    """A function whose fp32 results are casts to fp32, which stay when what is cast is not fp32 any more."""
    bindings: list[relax.Binding] = []

    def bound(value: relax.Expr, type_: relax.Type) -> relax.Var:
        var = relax.Var("result", type_)
        bindings.append(relax.VarBinding(var, value))
        return var

    def cast(expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([cast(field) for field in expr.fields])
        if isinstance(expr.ty, relax.TupleType):
            parts = [bound(relax.TupleGetItem(expr, i), t) for i, t in enumerate(expr.ty.fields)]
            return relax.Tuple([cast(part) for part in parts])
        if not _is_tensor(expr.ty, ("float32",)):
            return expr
        return bound(relax.op.astype(expr, "float32"), expr.ty)

    body = func.body
    result = cast(body.body)
    blocks = [*body.blocks, relax.BindingBlock(bindings)]
    changed = relax.Function(func.params, relax.SeqExpr(blocks, result), func.ret_ty, func.is_pure, func.attrs)
    return relax.transform.Normalize()(tvm.IRModule({"main": changed}))["main"]


def te_round_tf32(x: te.Tensor) -> te.Tensor:
    """fp32 to the nearest tf32, ties away from zero; what is not finite stays."""
    finite = tirx.const(0x7F800000, "uint32")
    half, kept = tirx.const(1 << (TF32_DROPPED - 1), "uint32"), tirx.const(2**32 - (1 << TF32_DROPPED), "uint32")

    def rounded(*index: tirx.Var) -> tirx.PrimExpr:
        bits = tirx.reinterpret("uint32", x[index])
        return tirx.Select((bits & finite) == finite, x[index], tirx.reinterpret("float32", (bits + half) & kept))

    return te.compute(x.shape, rounded, name="round_tf32")
