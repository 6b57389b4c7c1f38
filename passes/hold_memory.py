"""Entries beside the others that also return the memory they work in, so that the caller keeps it.

A CUDA graph starts kernels again with the addresses that they were captured with. Outputs are the caller's, and so are
inputs and weights; the arena, which lies between, would be given to others. ``main_held`` returns what ``main`` does,
and its arena. Only functions that are one merged call have such an entry: in others there may be work that is no
kernel, and memory of the virtual machine's.
"""

from __future__ import annotations

import tvm
from tvm import relax

from adr_tvm._tvm import is_op, relax_functions
from adr_tvm.cuda.graph import HELD
from adr_tvm.passes.call_sequence import ARENA
from adr_tvm.passes.entries import add_entry

VIEWS = ("relax.reshape",)


@tvm.transform.module_pass(opt_level=0, name="HoldMemory")
class HoldMemory:
    """Add ``NAME_held``, which returns (what NAME returns, (arena,)); after ``MergeCalls``."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Add an entry for each function that is one merged call."""
        result = mod
        for gv, func in relax_functions(mod):
            bindings = [b for block in func.body.blocks for b in block.bindings]
            made = _merged_call(mod, bindings)
            if made is None:
                continue
            place, arena = made

            def memory(bindings: list[relax.VarBinding], place: int = place, arena: int = arena) -> list[relax.Expr]:
                return [relax.TupleGetItem(list(bindings)[place].var, arena)]

            result = add_entry(result, gv.name_hint, f"{gv.name_hint}{HELD}", memory)
        return result


def _merged_call(mod: tvm.IRModule, bindings: list[relax.Binding]) -> tuple[int, int] | None:
    """Which binding is the only call, and which of its outputs the arena; None where there is more, or no arena."""
    found = None
    for place, binding in enumerate(bindings):
        value = binding.value if isinstance(binding, relax.VarBinding) else None
        if isinstance(value, (relax.TupleGetItem, relax.Var, relax.Tuple)) or any(is_op(value, op) for op in VIEWS):
            continue
        if not isinstance(value, relax.Call) or not is_op(value, "relax.call_tir") or found is not None:
            return None
        attrs = mod[value.args[0]].attrs
        if attrs is None or ARENA not in attrs:
            return None
        found = place, int(attrs[ARENA])
    return found
