"""The optimizer behind a differentiated network: a training step as one function.

``main_adjoint``, which returns (loss, ..., gradients), becomes ``step``: for each parameter a kernel updates it and the
optimizer's state in place from its gradient, which is then no longer needed. ``step`` takes further the learning rate
and the number of the step, float32 [1], and the state; it returns (loss, ..., updated parameters, updated state), the
last two only so that no pass drops the updates: they are the tensors that were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import relax, tirx

from adr_tvm._tvm import static_shape
from adr_tvm.passes.extended import extended

STEP = "step"


@dataclass(frozen=True, eq=False)
class Update:
    """How a parameter is updated.

    Attributes:
        name: of the parameter's variable.
        kernel: PrimFunc of (parameter, state slots, gradient, rate, count); it changes the first and the slots.
        slots: names of the slots.
    """

    name: str
    kernel: tirx.PrimFunc
    slots: tuple[str, ...]


@tvm.transform.module_pass(opt_level=0, name="AppendUpdates")
class AppendUpdates:
    """See the module; after ``Gradient``.

    Args:
        updates: one for each gradient, in order.
    """

    def __init__(self, updates: Sequence[Update]):
        self.updates = tuple(updates)

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Replace ``main`` and ``main_adjoint`` by ``step``."""
        adjoint = mod["main_adjoint"]
        variables = {var.name: var for var in adjoint.params}
        slots = {
            update.name: [relax.Var(f"{update.name}_{slot}", variables[update.name].ty) for slot in update.slots]
            for update in self.updates
        }
        rate, count = (relax.Var(name, relax.TensorType([1], "float32")) for name in ("rate", "count"))

        def append(builder: relax.BlockBuilder, results: list[relax.Expr]) -> relax.Expr:
            kept, gradients = results[: -len(self.updates)], results[-len(self.updates) :]
            changed = []
            for update, gradient in zip(self.updates, gradients, strict=True):
                tensors = [variables[update.name], *slots[update.name]]
                flat = [_flat(builder, tensor) for tensor in [*tensors, gradient]]
                kernel = builder.add_func(update.kernel, "adr_update")
                call = relax.op.call_tir_inplace(
                    kernel, [*flat, rate, count], list(range(len(tensors))), [t.ty for t in flat[:-1]]
                )
                changed.append(builder.emit(call))
            return relax.Tuple([*kept, *changed])

        parameters = [*adjoint.params, rate, count, *(slot for each in slots.values() for slot in each)]
        result = extended(mod, "main_adjoint", parameters, append)
        step = result["main_adjoint"].with_attr("global_symbol", STEP)
        for name in ("main", "main_adjoint"):
            del result[name]
        result[STEP] = step
        return result


def _flat(builder: relax.BlockBuilder, tensor: relax.Expr) -> relax.Expr:
    shape = static_shape(tensor)
    if len(shape) == 1:
        return tensor
    size = 1
    for dim in shape:
        size *= dim
    return builder.emit(relax.op.reshape(tensor, relax.ShapeExpr([tirx.IntImm("int64", size)])))
