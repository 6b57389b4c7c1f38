"""Further entries of a module: copies of a function under another name, perhaps with more outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import tvm
from tvm import relax


def add_entry(
    mod: tvm.IRModule,
    source: str,
    name: str,
    extra: Callable[[Iterable[relax.VarBinding]], list[relax.Expr]] | None = None,
) -> tvm.IRModule:
    """The module with a copy of one function.

    Args:
        mod: module with the Relax function ``source``.
        source: function to copy.
        name: name of the copy.
        extra: given the copy's bindings, the expressions it shall return too; the copy then returns
            ``(what source returns, (extra...))``.
    """
    copy = relax.utils.copy_with_new_vars(mod[source])
    copy = copy.with_attr("global_symbol", name)
    if extra is not None:
        single = tvm.IRModule({name: copy})
        flat = relax.transform.ToNonDataflow()(single)[name]
        blocks = list(flat.body.blocks)
        more = extra([b for block in blocks for b in block.bindings if isinstance(b, relax.VarBinding)])
        body = relax.SeqExpr(blocks, relax.Tuple([flat.body.body, relax.Tuple(more)]))
        returned = relax.TupleType([flat.ret_ty, relax.TupleType([expr.ty for expr in more])])
        single[name] = relax.Function(flat.params, body, returned, is_pure=flat.is_pure, attrs=flat.attrs)
        copy = relax.transform.ConvertToDataflow()(relax.transform.Normalize()(single))[name]
    result = mod.clone()
    result[name] = copy
    return result
