"""The dense network as an entry ``dense`` beside ``main``, kept through the rewrite."""

from __future__ import annotations

import tvm

from adr_tvm.passes.entries import add_entry

ENTRY = "dense"


@tvm.transform.module_pass(opt_level=0, name="DenseEntry")
class DenseEntry:
    """Copy ``main`` before ``AdaptiveDeepReuse(plan, function="main")`` rewrites it."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Add the entry."""
        return add_entry(mod, "main", ENTRY)
