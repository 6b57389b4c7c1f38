"""An entry ``main_counts`` beside ``main`` that also returns what each reuse layer counted, in network order."""

from __future__ import annotations

from collections.abc import Iterable

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import calls, is_op
from adr_tvm.passes.entries import add_entry

ENTRY = "main_counts"


def counted_layers(mod: tvm.IRModule) -> list[str]:
    """Names of the reuse layers of ``main``, in the order of the counts."""
    return [ops.layer_name(call) for call in calls(mod["main"], *ops.REUSE_OPS)]


@tvm.transform.module_pass(opt_level=0, name="ExposeCounts")
class ExposeCounts:
    """Add the entry where ``main`` reuses at all; stats of a layer: int32 [units, 2] = clusters, 1 if reused."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Add the entry."""
        if not counted_layers(mod):
            return mod

        def stats(bindings: Iterable[relax.VarBinding]) -> list[relax.Expr]:
            return [relax.TupleGetItem(b.var, 1) for b in bindings if any(is_op(b.value, op) for op in ops.REUSE_OPS)]

        return add_entry(mod, "main", ENTRY, stats)
