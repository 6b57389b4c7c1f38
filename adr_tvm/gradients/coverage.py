"""Which operators of a module have no gradient: all of them at once, so that a user is told once."""

from __future__ import annotations

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import node_name, relax_functions
from adr_tvm.gradients import register_all
from adr_tvm.gradients.registration import refused


def missing_gradients(mod: tvm.IRModule) -> list[tuple[str, str]]:
    """(ONNX node or layer, or operator; reason) of each call in the Relax functions that has no gradient.

    Calls whose result does not depend on a parameter of the function, or is no float, need none.
    """
    register_all()
    found = []
    for _, func in relax_functions(mod):
        active = {hash(var) for var in func.params}
        for block in func.body.blocks:
            for binding in block.bindings:
                if not any(hash(var) in active for var in relax.analysis.all_vars(binding.value)):
                    continue
                if not _has_float(binding.var.ty):
                    continue
                active.add(hash(binding.var))
                reason = _reason(binding.value)
                if reason is not None:
                    found.append((_name(binding.value), reason))
    return found


def _has_float(ty: relax.Type) -> bool:
    if isinstance(ty, relax.TupleType):
        return any(_has_float(field) for field in ty.fields)
    return isinstance(ty, relax.TensorType) and "float" in str(ty.dtype)


def _reason(value: relax.Expr) -> str | None:
    if isinstance(value, relax.If):
        return "control flow"
    if not isinstance(value, relax.Call):
        return None
    if not isinstance(value.op, tvm.ir.Op):
        return "a call of another function"
    if value.op.name in ("relax.call_tir", "relax.call_dps_packed", "relax.call_pure_packed"):
        return "a kernel that the importer made"
    if value.op.get_attr("FPrimalGradient") is None:
        return f"{value.op.name.removeprefix('relax.')} has no gradient"
    reason = refused(value)
    return None if reason is None else f"{value.op.name.removeprefix('relax.')}: {reason}"


def _name(value: relax.Expr) -> str:
    if isinstance(value, relax.If):
        return "if"
    given = node_name(value)
    if given:
        return given
    if isinstance(value.op, tvm.ir.Op):
        if value.op.name in (*ops.DENSE_OPS, ops.GROUPED_CONV2D, *ops.REUSE_OPS):
            return ops.layer_name(value)
        return str(value.op.name.removeprefix("relax."))
    return str(getattr(value.op, "name_hint", value.op))
