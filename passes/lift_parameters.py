"""Weights become parameters of the function, so that a training step can change them.

``main(x)`` with constant weights becomes ``main(x, p0, p1, ...)``. A weight is a constant at a place of an operator
that holds one (``PLACES``); equal names are one parameter. Other constants, such as the mean that an input is centred
with, stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from adr_tvm import ops
from adr_tvm._tvm import constant

PLACES: dict[str, tuple[int, ...]] = {
    ops.CONV2D: (1, 2),
    ops.DENSE: (1, 2),
    ops.GROUPED_CONV2D: (1, 2),
    "relax.nn.conv2d_transpose": (1,),
    "relax.adr.batch_norm": (1, 2),
    "relax.nn.layer_norm": (1, 2),
}


@dataclass(frozen=True, eq=False)
class Place:
    """A constant that may be a parameter.

    Attributes:
        call: number of the call among those of ``PLACES``, in order.
        argument: which argument of it.
        operator: name of the operator.
        value: the constant.
    """

    call: int
    argument: int
    operator: str
    value: np.ndarray


def places(func: relax.Function) -> Iterator[Place]:
    """The constants of a function that may be parameters, in network order."""
    bound = (b.value for block in func.body.blocks for b in block.bindings if isinstance(b, relax.VarBinding))
    calls = [v for v in bound if isinstance(v, relax.Call) and getattr(v.op, "name", None) in PLACES]
    for index, call in enumerate(calls):
        for argument in PLACES[call.op.name]:
            value = constant(call.args[argument])
            if value is not None:
                yield Place(index, argument, call.op.name, value)


@mutator
class _Lifter(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, variables: dict[tuple[int, int], relax.Var]):
        super().__init__(mod)
        self.variables, self.count = variables, 0

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if getattr(call.op, "name", None) not in PLACES:
            return call
        index, self.count = self.count, self.count + 1
        args = [self.variables.get((index, i), arg) for i, arg in enumerate(call.args)]
        return relax.Call(call.op, args, call.attrs, list(call.ty_args), call.span)


@tvm.transform.module_pass(opt_level=0, name="LiftParameters")
class LiftParameters:
    """See the module; after the network is in canonical form.

    Args:
        names: for each of ``places(main)``, in order, the parameter's name; None leaves the constant.
    """

    def __init__(self, names: Sequence[str | None]):
        self.names = tuple(names)

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite ``main``.

        Raises:
            ValueError: as many names as places are expected, and places of one name must hold one value.
        """
        func = mod["main"]
        found = list(places(func))
        if len(found) != len(self.names):
            raise ValueError(f"{len(self.names)} names for {len(found)} places of weights")
        values: dict[str, np.ndarray] = {}
        parameters: dict[str, relax.Var] = {}
        variables: dict[tuple[int, int], relax.Var] = {}
        for place, name in zip(found, self.names, strict=True):
            if name is None:
                continue
            if not np.array_equal(values.setdefault(name, place.value), place.value):
                raise ValueError(f"parameter {name!r} is used in two layouts")
            if name not in parameters:
                type_ = relax.TensorType(list(place.value.shape), str(place.value.dtype))
                parameters[name] = relax.Var(f"p{len(parameters)}", type_)
            variables[place.call, place.argument] = parameters[name]
        lifter = _Lifter(mod, variables)
        body = lifter.visit_expr(func).body
        lifted = relax.Function([*func.params, *parameters.values()], body, func.ret_ty, attrs=func.attrs)
        result = mod.clone()
        result["main"] = lifted.with_attr("num_input", len(func.params))
        return relax.transform.Normalize()(result)
