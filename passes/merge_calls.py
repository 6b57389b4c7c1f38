"""Successive kernel calls become one: a function on the host that calls the kernels with addresses in one arena.

The virtual machine takes up to a microsecond for each tensor that it allocates, views or drops; a small kernel runs for
less. A run of ``call_tir``, ``reshape`` and ``TupleGetItem`` becomes one ``call_tir`` of a PrimFunc

    (inputs..., weights, symbolic dimensions..., outputs..., arena)

whose body is the kernel calls in order; ``reshape`` is then only another shape at the same address. Tensors that are
not needed outside lie in the arena (``passes/arena.py``), constants in one block (``passes/weights.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import tvm
from tvm import relax

from adr_tvm._tvm import relax_functions
from adr_tvm.passes.call_sequence import CallSequence
from adr_tvm.passes.weights import Weights

LEAST_CALLS = 2  # one call alone stays as it is


@tvm.transform.module_pass(opt_level=0, name="MergeCalls")
class MergeCalls:
    """See the module; after lowering and loop schedules, before ``CallTIRRewrite``."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Merge in every Relax function."""
        functions = {gv: _Function(func) for gv, func in relax_functions(mod) if isinstance(func.body, relax.SeqExpr)}
        weights = Weights()
        for function in functions.values():
            for run in function.runs:
                run.keep_constants(weights)
        block = relax.const(weights.block()) if weights.size else None
        builder = relax.BlockBuilder(mod)
        for gv, function in functions.items():
            builder.update_func(gv, function.merged(f"{gv.name_hint}_calls", builder, block))
        result = relax.transform.Normalize()(builder.get())
        return result.with_attrs(dict(mod.attrs)) if mod.attrs else result


class _Function:
    """A function in parts: runs that merge, and the bindings between."""

    def __init__(self, func: relax.Function):
        self.func = func
        self.blocks = [(block, _parts(block.bindings)) for block in func.body.blocks]
        parts = [part for _, parts in self.blocks for part in parts]
        self.runs = [part for part in parts if isinstance(part, CallSequence)]
        self._readers = _readers(parts, func.body.body)

    def merged(self, name: str, builder: relax.BlockBuilder, block: relax.Expr | None) -> relax.Function:
        """The function with its runs merged; ``name`` is that of the PrimFuncs, ``block`` the constants."""
        blocks = []
        for before, parts in self.blocks:
            dataflow = isinstance(before, relax.DataflowBlock)
            bindings: list[relax.Binding] = []
            for part in parts:
                if isinstance(part, CallSequence):
                    needed = functools.partial(self._read_outside, part)
                    bindings += part.merged(builder, name, block, needed, dataflow)
                else:
                    bindings += part
            blocks.append(relax.DataflowBlock(bindings) if dataflow else relax.BindingBlock(bindings))
        func = self.func
        return relax.Function(func.params, relax.SeqExpr(blocks, func.body.body), func.ret_ty, func.is_pure, func.attrs)

    def _read_outside(self, run: CallSequence, var: relax.Var) -> bool:
        return bool(self._readers.get(hash(var), set()) - {id(run)})


def _parts(bindings: Sequence[relax.Binding]) -> list[CallSequence | list[relax.Binding]]:
    """The bindings of a block in order: runs that merge, and those between."""
    parts: list[CallSequence | list[relax.Binding]] = []
    run = CallSequence()

    def end() -> None:
        nonlocal run
        if len(run.calls) >= LEAST_CALLS:
            parts.append(run)
        elif run.bindings:
            parts.append(list(run.bindings))
        run = CallSequence()

    for binding in bindings:
        if run.take(binding):
            continue
        end()
        if not run.take(binding):
            parts.append([binding])
    end()
    return parts


def _readers(parts: Sequence[CallSequence | list[relax.Binding]], result: relax.Expr) -> dict[int, set[int]]:
    """Identities of the parts that read a variable, by its hash; 0 is the function's result."""
    found: dict[int, set[int]] = {}

    def visit(expr: relax.Expr, reader: int) -> None:
        def note(each: relax.Expr) -> None:
            if isinstance(each, relax.Var):
                found.setdefault(hash(each), set()).add(reader)

        relax.analysis.post_order_visit(expr, note)

    for part in parts:
        for binding in part.bindings if isinstance(part, CallSequence) else part:
            visit(binding.value, id(part))
    visit(result, 0)
    return found
