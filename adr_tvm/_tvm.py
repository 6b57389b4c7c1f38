"""The one place that knows TVM's moving API (0.27): targets, module walks, small constructors."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.relax import vm_build

from adr_tvm import script_parser
from adr_tvm.errors import UsageError

script_parser.install()


def host_cpu() -> str:
    """LLVM's name of this machine's processor, e.g. ``znver5``."""
    return str(tvm.get_global_func("tvm.codegen.llvm.GetHostCPUName")())


def cpu_target(mcpu: str | None = None, threads: int | None = None) -> tvm.target.Target:
    """A CPU target with all features of a processor (default: this one).

    Args:
        mcpu: LLVM's name of the processor.
        threads: that work should divide among evenly; None leaves it to the kernels.
    """
    cores = {} if threads is None else {"num-cores": threads}
    return tvm.target.Target({"kind": "llvm", "mcpu": mcpu or host_cpu(), **cores})


def foreign_target(mtriple: str, mcpu: str, mattr: list[str], threads: int) -> tvm.target.Target:
    """A CPU target of another machine.

    Args:
        mtriple: GNU name of its system.
        mcpu: LLVM's name of its processor.
        mattr: features beyond (``+``) or short of (``-``) those of the processor.
        threads: that work should divide among evenly.

    Raises:
        UsageError: LLVM does not know the processor; it would silently compile for another.
    """
    system = tvm.target.Target({"kind": "llvm", "mtriple": mtriple})
    known = sorted(str(name) for name in tvm.target.codegen.llvm_get_cpu_archlist(system))
    if mcpu not in known:
        close = difflib.get_close_matches(mcpu, known, 3, 0.5)
        hint = f"; there is {', '.join(close)}" if close else ""
        raise UsageError(f"LLVM knows no processor {mcpu!r} of {mtriple}{hint}")
    return tvm.target.Target({"kind": "llvm", "mtriple": mtriple, "mcpu": mcpu, "mattr": mattr, "num-cores": threads})


def cuda_target(architecture: str, mtriple: str | None = None, mcpu: str = "") -> tvm.target.Target:
    """A CUDA target.

    Args:
        architecture: the oldest that code is made for, such as ``sm_75``.
        mtriple: GNU name of the system of the processor beside it; None: this machine's.
        mcpu: LLVM's name of that processor; empty: this machine's.
    """
    host = {"kind": "llvm", "mcpu": mcpu or host_cpu(), **({} if mtriple is None else {"mtriple": mtriple})}
    limits = {"max_threads_per_block": 1024, "max_num_threads": 1024, "thread_warp_size": 32}
    limits |= {"max_shared_memory_per_block": 48 << 10}
    return tvm.target.Target({"kind": "cuda", "arch": architecture, **limits, "host": host})


# The expressions that this pass names would stay where they were, and hundreds of variables be left that nothing reads.
CUDA_CONFIG = {"tirx.disable_cse_tir": True}


def is_cuda(target: tvm.target.Target | None) -> bool:
    """Whether kernels for a target run on a GPU."""
    return target is not None and str(target.kind.name) == "cuda"


def device_of(target: tvm.target.Target | None) -> tvm.runtime.Device:
    """Where kernels for a target of this machine run, and its tensors lie."""
    return tvm.cuda() if is_cuda(target) else tvm.cpu()


def processor_target(target: tvm.target.Target) -> tvm.target.Target:
    """The target of code that runs on the processor: that beside the GPU, else the target itself."""
    return target.host if is_cuda(target) else target


def target_threads(target: tvm.target.Target) -> int | None:
    """The number of threads that a target was made for, if it says."""
    cores = target.attrs.get("num-cores")
    return None if cores is None else int(cores)


def cpu_features(target: tvm.target.Target) -> list[str]:
    """LLVM's names of the features that code for a CPU target may use."""
    return [str(name) for name in tvm.target.codegen.llvm_get_cpu_features(target)]


def relax_functions(mod: tvm.IRModule) -> Iterator[tuple[Any, relax.Function]]:
    """(global variable, function) of the Relax functions of a module, PrimFuncs left out."""
    for gv, func in mod.functions_items():
        if isinstance(func, relax.Function):
            yield gv, func


def mutate(mod: tvm.IRModule, make: Callable[[tvm.IRModule], Any], only: str | None = None) -> tvm.IRModule:
    """Apply a ``PyExprMutator`` to every Relax function (or the one named ``only``) and drop dead code."""
    mutator = make(mod)
    for gv, func in relax_functions(mod):
        if only is None or gv.name_hint == only:
            mutator.builder_.update_func(gv, mutator.visit_expr(func))
    result = mutator.builder_.get()
    return result.with_attrs(dict(mod.attrs)) if mod.attrs else result


def is_op(expr: Any, name: str) -> bool:
    """Whether an expression is a call of the Relax operator ``name`` (with the ``relax.`` prefix)."""
    return isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) and expr.op.name == name


def calls(func: relax.Function, *names: str) -> list[relax.Call]:
    """Calls of the named operators, in the order of the bindings."""
    return [
        b.value
        for block in func.body.blocks
        for b in block.bindings
        if isinstance(b, relax.VarBinding) and any(is_op(b.value, n) for n in names)
    ]


def node_name(call: relax.Call) -> str | None:
    """Name of the ONNX node that a call came from; None if it came from elsewhere.

    The frontend's spans hold the name at line 0. TVMScript's hold a file, whose lines count from 1.
    """
    span = call.span
    return None if span is None or int(span.line) != 0 else str(span.source_name.name)


def constant(expr: Any) -> np.ndarray | None:
    """The value of a constant, else None."""
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def static_shape(expr: Any) -> tuple[Any, ...]:
    """Dimensions of a tensor expression as ints, None where symbolic."""
    return tuple(int(d) if isinstance(d, tvm.tirx.IntImm) else None for d in expr.ty.shape)


def dict_attrs(**values: Any) -> Any:
    """Attributes of an operator of ours."""
    return tvm.ir.make_node("ir.DictAttrs", **values)


def tensor_type(shape: Any, dtype: str = "float32") -> relax.TensorType:
    """The type of a tensor of a shape (ints and expressions)."""
    return relax.TensorType(list(shape), dtype)


def packed_tensor(pointer: Any, shape: list[Any], dtype: str) -> Any:
    """In a PrimFunc: a tensor at an address, as an argument of ``packed_call``; contiguous."""
    dims = tirx.op.tvm_stack_make_shape(*shape)
    return tirx.op.tvm_stack_make_array(pointer, dims, 0, len(shape), tirx.const(0, dtype), 0)


def packed_call(symbol: str, args: list[Any]) -> Any:
    """In a PrimFunc: a call of another PrimFunc of the library.

    A call of its ``GlobalVar`` would be turned into this with one argument too many, which the callee refuses.
    """
    call = tvm.ir.Op.get("tirx.tvm_call_cpacked")
    return tirx.Evaluate(tvm.ir.Call(call, [tvm.ir.StringImm(symbol), *args], ret_ty="int32"))


def with_functions_of(executable: relax.VMExecutable, mod: tvm.IRModule) -> relax.VMExecutable:
    """An executable of the Relax functions of ``mod``, whose PrimFuncs are those that ``executable`` has compiled."""
    builder = relax.ExecBuilder()
    vm_build._vmcodegen(builder, mod)
    library = executable.mod.imports[0]
    return relax.VMExecutable(vm_build._ffi_api.VMLink(builder, None, library, [], {}))


class Dataflow:
    """Who defines and who reads the variables of a module's functions, as they were before a mutator ran.

    Variables are told apart by identity: passes repeat names, and ``==`` of two variables builds an expression.
    """

    def __init__(self, mod: tvm.IRModule):
        self._values: dict[int, relax.Expr] = {}
        self._reads: dict[int, int] = {}
        for _, func in relax_functions(mod):
            for block in func.body.blocks:
                for binding in block.bindings:
                    self._values[hash(binding.var)] = binding.value
                    relax.analysis.post_order_visit(binding.value, self._count)
            relax.analysis.post_order_visit(func.body.body, self._count)

    def _count(self, expr: relax.Expr) -> None:
        if isinstance(expr, relax.Var):
            self._reads[hash(expr)] = self._reads.get(hash(expr), 0) + 1

    def read_once(self, expr: relax.Expr) -> bool:
        """Whether ``expr`` is a variable that exactly one expression reads."""
        return isinstance(expr, relax.Var) and self._reads.get(hash(expr)) == 1

    def value(self, expr: relax.Expr) -> relax.Expr:
        """What a variable is bound to; ``expr`` itself where it is bound to nothing."""
        return self._values.get(hash(expr), expr) if isinstance(expr, relax.Var) else expr
