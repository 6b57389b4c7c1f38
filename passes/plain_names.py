"""Parameters of functions and symbolic dimensions get names that C knows as such.

They carry those of the ONNX model, such as ``gpu_0/data_0``, and TVM names the parameters of CUDA kernels after them.
"""

from __future__ import annotations

import re

import tvm
from tvm import relax, tirx

from adr_tvm._tvm import relax_functions

_ODD = re.compile(r"\W|^(?=\d)", re.ASCII)


def _plain(name: str, others: set[str]) -> str:
    plain = _ODD.sub("_", name)
    while plain in others:
        plain += "_"
    others.add(plain)
    return plain


@tvm.transform.module_pass(opt_level=0, name="PlainNames")
class PlainNames:
    """See the module; functions whose names are all plain stay as they are."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rename in every Relax function."""
        result = mod.clone()
        for gv, func in relax_functions(mod):
            result.update_func(gv, _renamed(func))
        return result


def _renamed(func: relax.Function) -> relax.Function:
    dims = relax.analysis.defined_symbolic_vars(func)
    names = {p.name for p in func.params} | {d.name for d in dims}
    odd = {d: tirx.Var(_plain(d.name, names), d.ty) for d in dims if _ODD.search(d.name)}
    if odd:
        func = func.bind_symbolic_vars(odd)
    given = {p: relax.Var(_plain(p.name, names), p.ty) for p in func.params if _ODD.search(p.name)}
    if not given:
        return func
    bound = func.bind_params(given)
    params = [given.get(p, p) for p in func.params]
    return relax.Function(params, bound.body, func.ret_ty, func.is_pure, func.attrs)
