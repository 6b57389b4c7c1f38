"""All constants that kernels read, as one block of bytes, so that a library can be written without them.

In a library's own constants weights cost four times their size while it is loaded, and twice from then on: the file's
pages, the text that they are decoded from, and the tensors. As a file of their own they are read once, into memory that
the system may give huge pages to. Equal constants, such as those of ``main`` and ``dense``, are kept once.
"""

from __future__ import annotations

import hashlib

import numpy as np
import tvm
from tvm import relax

from adr_tvm._tvm import relax_functions
from adr_tvm.passes.arena import ALIGNMENT

ATTRIBUTE = "adr.weights"  # of a PrimFunc: which parameter takes the block


class Weights:
    """Collects constants; ``block`` is uint8 [size]."""

    def __init__(self) -> None:
        self._offsets: dict[bytes, int] = {}
        self._arrays: list[np.ndarray] = []
        self.size = 0

    def offset(self, array: np.ndarray) -> int:
        """Where an array lies; it is added if there is none like it."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        key = hashlib.sha256(data.data).digest()
        if key not in self._offsets:
            self._offsets[key] = self.size
            self._arrays.append(np.pad(data, (0, -data.size % ALIGNMENT)))
            self.size += self._arrays[-1].size
        return self._offsets[key]

    def block(self) -> np.ndarray:
        """All arrays, each at a multiple of 64 bytes."""
        return np.concatenate([np.zeros(0, np.uint8), *self._arrays])


def without_weights(mod: tvm.IRModule) -> tuple[tvm.IRModule, np.ndarray]:
    """A module in the virtual machine's form whose functions take the block as one more parameter, and the block.

    Types are kept by hand: ``Normalize`` would compare calls of functions with their types before.
    """
    result, blocks = mod.clone(), [relax.const(np.zeros(0, np.uint8))]
    for gv, func in relax_functions(mod):
        given = relax.Var("weights", relax.ObjectType())
        body = _Rewriter(mod, given, blocks).rewritten(func.body)
        result.update_func(gv, relax.Function([*func.params, given], body, func.ret_ty, func.is_pure, func.attrs))
    return result, blocks[-1].value.numpy()


class _Rewriter:
    """Hands the parameter ``given`` to every call that needs the block; the constants it replaces go to ``blocks``."""

    def __init__(self, mod: tvm.IRModule, given: relax.Var, blocks: list[relax.Expr]):
        self.mod, self.given, self.blocks = mod, given, blocks

    def rewritten(self, expr: relax.Expr) -> relax.Expr:
        """An expression in normal form with the parameter in place of the block."""
        if isinstance(expr, relax.SeqExpr):
            blocks = [
                relax.BindingBlock([relax.VarBinding(b.var, self.rewritten(b.value)) for b in block.bindings])
                for block in expr.blocks
            ]
            return relax.SeqExpr(blocks, self.rewritten(expr.body))
        if isinstance(expr, relax.If):
            return relax.If(expr.cond, self.rewritten(expr.true_branch), self.rewritten(expr.false_branch))
        if not isinstance(expr, relax.Call) or not isinstance(expr.op, tvm.ir.GlobalVar):
            return expr
        callee, args = self.mod[expr.op], list(expr.args)
        if isinstance(callee, relax.Function):
            args.append(self.given)
        elif callee.attrs is not None and ATTRIBUTE in callee.attrs:
            place = int(callee.attrs[ATTRIBUTE])
            self.blocks.append(args[place])
            args[place] = self.given
        return tvm.ir.Call(expr.op, args, expr.attrs, expr.ty_args, expr.span, ret_ty=expr.ty)
