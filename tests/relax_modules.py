"""Small Relax modules for tests of passes: constants bound, operators listed, values computed."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from adr_tvm._tvm import cpu_target
from adr_tvm.build import build_module

TARGET = cpu_target()
# Two orders of summing some dozens of products of order 1 in fp32.
TOLERANCE = 1e-5


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """Reproducible float32 values of order 1."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("float32")


def bind(mod: tvm.IRModule, function: str = "main", **arrays: np.ndarray) -> tvm.IRModule:
    """The module with parameters replaced by constants."""
    return relax.transform.BindParams(function, arrays)(mod)


def operators(mod: tvm.IRModule, function: str = "main") -> list[str]:
    """Names of the operators that a function calls, in order, without ``relax.``."""
    return [
        b.value.op.name.removeprefix("relax.")
        for block in mod[function].body.blocks
        for b in block.bindings
        if isinstance(b.value, relax.Call) and isinstance(b.value.op, tvm.ir.Op)
    ]


def bound(mod: tvm.IRModule, operator: str, function: str = "main") -> list[relax.Call]:
    """Calls of one operator in a function."""
    name = f"relax.{operator}"
    return [
        b.value
        for block in mod[function].body.blocks
        for b in block.bindings
        if isinstance(b.value, relax.Call) and getattr(b.value.op, "name", None) == name
    ]


def named(mod: tvm.IRModule, names: list[str]) -> tvm.IRModule:
    """The module with its convolutions and matrix products named, in order, as the ONNX frontend does."""
    waiting = list(names)

    @relax.expr_functor.mutator
    class Namer(relax.PyExprMutator):
        def visit_call_(self, call):
            call = self.visit_expr_post_order(call)
            if getattr(call.op, "name", "") not in ("relax.nn.conv2d", "relax.nn.conv2d_transpose", "relax.matmul"):
                return call
            span = tvm.ir.Span(tvm.ir.SourceName(waiting.pop(0)), 0, 0, 0, 0)
            return relax.Call(call.op, list(call.args), call.attrs, list(call.ty_args), span)

    mutator = Namer(mod)
    mutator.builder_.update_func(mod.get_global_var("main"), mutator.visit_expr(mod["main"]))
    return mutator.builder_.get()


def evaluate(mod: tvm.IRModule, *inputs: np.ndarray, function: str = "main"):
    """What a function returns: an array, or a list of arrays."""
    found = machine(mod)[function](*map(tvm.runtime.tensor, inputs))
    return found.numpy() if hasattr(found, "numpy") else [each.numpy() for each in found]


def assert_equal(before: tvm.IRModule, after: tvm.IRModule, *inputs: np.ndarray) -> None:
    """``main`` of both modules computes the same; they are compiled together."""
    both = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in _renamed(before, after).items()})
    vm = machine(both)
    tensors = [tvm.runtime.tensor(x) for x in inputs]
    close(vm["after"](*tensors).numpy(), vm["before"](*tensors).numpy())


def _renamed(before: tvm.IRModule, after: tvm.IRModule) -> dict[str, relax.Function]:
    copies = [relax.utils.copy_with_new_vars(mod["main"]) for mod in (before, after)]
    return dict(zip(("before", "after"), copies, strict=True))


def machine(mod: tvm.IRModule) -> relax.VirtualMachine:
    """The module compiled as the whole compiler does."""
    return relax.VirtualMachine(build_module(relax.transform.DecomposeOpsForInference()(mod), TARGET), tvm.cpu())


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal within TOLERANCE of the largest value."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())))
