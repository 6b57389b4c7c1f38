"""A function with more bindings behind its own: what passes that append to a network share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import relax

Append = Callable[[relax.BlockBuilder, list[relax.Expr]], relax.Expr]


def extended(mod: tvm.IRModule, name: str, parameters: Sequence[relax.Var], append: Append) -> tvm.IRModule:
    """The module with a function continued.

    Args:
        mod: module with the Relax function ``name``; its body is one dataflow block.
        name: of the function.
        parameters: of the new function; those of the old one must be among them.
        append: given a builder and what the function returns (of a tuple the fields, nested ones too), emits further
            bindings and returns the new result.
    """
    flat = relax.transform.ToNonDataflow()(tvm.IRModule({name: mod[name]}))[name]
    builder = relax.BlockBuilder(mod)
    builder.begin_scope(list(parameters))
    builder._begin_binding_block()
    for block in flat.body.blocks:
        for binding in block.bindings:
            builder.emit_normalized(binding)
    result = append(builder, fields(flat.body.body))
    if not isinstance(result, relax.Tuple):
        result = builder.emit(result)
    result = builder.normalize(result)
    block = builder._end_block()
    builder.end_scope()
    whole = builder.get().clone()
    body = relax.SeqExpr([block], result)
    function = relax.Function(list(parameters), body, result.ty, is_pure=flat.is_pure, attrs=flat.attrs)
    whole[name] = function
    return relax.transform.ConvertToDataflow()(relax.transform.Normalize()(whole))


def fields(result: relax.Expr) -> list[relax.Expr]:
    """The tensors of a result, those of nested tuples in order."""
    if isinstance(result, relax.Tuple):
        return [tensor for field in result.fields for tensor in fields(field)]
    return [result]
