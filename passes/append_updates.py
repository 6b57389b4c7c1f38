"""The optimizer behind a differentiated network: a training step as one function.

``main_adjoint``, which returns (loss, logits, statistics of batch norms, ..., gradients), becomes ``step``: for each
parameter a kernel updates it and the optimizer's state in place from its gradient, which is then no longer needed, and
so it goes with running statistics from those of the batch. ``step`` takes further ``control`` float32 [4]
(``schedules/optimizer_update.py``), the state and the running statistics; it returns (loss, logits, running statistics,
..., updated parameters, updated state), of which the updated ones are the tensors that were given: they are there so
that no pass drops the updates.

With a scaled loss (``AppendLoss``) the gradients are looked through first: where one holds NaN or Inf the last entry of
``control`` becomes 0, and the step changes nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import relax, tirx

from adr_tvm._tvm import static_shape
from adr_tvm.passes.extended import extended
from adr_tvm.schedules.optimizer_update import CONTROL

STEP, CONTROL_NAME = "step", "control"
KEPT = 2  # results before the statistics: loss and logits


@dataclass(frozen=True, eq=False)
class Update:
    """How a parameter is updated.

    Attributes:
        name: of the parameter's variable.
        kernel: PrimFunc of (parameter, state slots, gradient, control); it changes the first and the slots.
        slots: names of the slots.
        check: PrimFunc of (gradient, control), which sees whether all is finite; None: it is not asked.
    """

    name: str
    kernel: tirx.PrimFunc
    slots: tuple[str, ...]
    check: tirx.PrimFunc | None = None


@dataclass(frozen=True, eq=False)
class Tracking:
    """How a running statistic is updated.

    Attributes:
        name: of its variable.
        channels: its size.
        kernel: PrimFunc of (running, that of the batch, control); it changes the first.
    """

    name: str
    channels: int
    kernel: tirx.PrimFunc


@tvm.transform.module_pass(opt_level=0, name="AppendUpdates")
class AppendUpdates:
    """See the module; after ``Gradient``.

    Args:
        updates: one for each gradient, in order.
        tracked: one for each statistic that ``main`` returns behind the logits, in order.
        scaled: whether the first result is the scaled loss, which the step does not return.
    """

    def __init__(self, updates: Sequence[Update], tracked: Sequence[Tracking] = (), scaled: bool = False):
        self.updates, self.tracked, self.scaled = tuple(updates), tuple(tracked), scaled

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Replace ``main`` and ``main_adjoint`` by ``step``."""
        adjoint = mod["main_adjoint"]
        variables = {var.name: var for var in adjoint.params}
        slots = {
            update.name: [relax.Var(f"{update.name}_{slot}", variables[update.name].ty) for slot in update.slots]
            for update in self.updates
        }
        given = relax.Var(CONTROL_NAME, relax.TensorType([CONTROL], "float32"))
        running = [relax.Var(each.name, relax.TensorType([each.channels], "float32")) for each in self.tracked]

        def append(builder: relax.BlockBuilder, results: list[relax.Expr]) -> relax.Expr:
            kept, gradients = results[: -len(self.updates)], results[-len(self.updates) :]
            kept = kept[1:] if self.scaled else kept
            flat = [_flat(builder, gradient) for gradient in gradients]
            control: relax.Expr = given
            for update, gradient in zip(self.updates, flat, strict=True):
                if update.check is not None:
                    checked = [gradient, control]
                    control = _in_place(builder, update.check, "adr_finite_check", checked, [1])
            changed = []
            for update, gradient in zip(self.updates, flat, strict=True):
                tensors = [_flat(builder, each) for each in (variables[update.name], *slots[update.name])]
                places = list(range(len(tensors)))
                changed.append(_in_place(builder, update.kernel, "adr_update", [*tensors, gradient, control], places))
            for place, (each, variable) in enumerate(zip(self.tracked, running, strict=True), KEPT):
                arguments = [variable, kept[place], control]
                kept[place] = _in_place(builder, each.kernel, "adr_running_statistics", arguments, [0])
            return relax.Tuple([*kept, *changed])

        parameters = [*adjoint.params, given, *(slot for each in slots.values() for slot in each), *running]
        result = extended(mod, "main_adjoint", parameters, append)
        step = result["main_adjoint"].with_attr("global_symbol", STEP)
        for name in ("main", "main_adjoint"):
            del result[name]
        result[STEP] = step
        return result


def _in_place(
    builder: relax.BlockBuilder, kernel: tirx.PrimFunc, name: str, args: list[relax.Expr], changed: list[int]
) -> relax.Expr:
    """A call of a kernel that changes some of its arguments; the result is those."""
    call = relax.op.call_tir_inplace(builder.add_func(kernel, name), args, changed, [args[i].ty for i in changed])
    return builder.emit(call)


def _flat(builder: relax.BlockBuilder, tensor: relax.Expr) -> relax.Expr:
    shape = static_shape(tensor)
    if len(shape) == 1:
        return tensor
    size = 1
    for dim in shape:
        size *= dim
    return builder.emit(relax.op.reshape(tensor, relax.ShapeExpr([tirx.IntImm("int64", size)])))
