"""Calibration instrumentation: an entry ``observe`` that also returns the inputs of chosen layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import is_op
from adr_tvm.passes.entries import add_entry

ENTRY = "observe"


@tvm.transform.module_pass(opt_level=0, name="ObserveCandidates")
class ObserveCandidates:
    """Add the entry.

    Args:
        layers: names of layers, in the order in which their inputs are returned.
    """

    def __init__(self, layers: Sequence[str]):
        self.layers = tuple(layers)

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Add the entry.

        Raises:
            KeyError: a layer is not in ``main``.
        """

        def inputs(bindings: Iterable[relax.VarBinding]) -> list[relax.Expr]:
            found = {
                ops.layer_name(b.value): b.value.args[0]
                for b in bindings
                if any(is_op(b.value, op) for op in ops.DENSE_OPS)
            }
            return [found[layer] for layer in self.layers]

        return add_entry(mod, "main", ENTRY, inputs)
