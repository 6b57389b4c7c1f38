"""The network with its candidate layers outlined, so that any layer can be swapped without compiling it again."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from adr_tvm import ops
from adr_tvm._tvm import mutate
from adr_tvm.build import build_module
from adr_tvm.passes.mark_candidates import Candidate
from adr_tvm.planner.layer_kernel import LayerKernel

Hook = Callable[[str, Any], None]


@mutator
class _Outliner(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, names: Mapping[str, str]):
        super().__init__(mod)
        self.names = names

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not isinstance(call.op, tvm.ir.Op) or call.op.name not in ops.DENSE_OPS:
            return call
        name = self.names.get(ops.layer_name(call))
        return call if name is None else relax.op.call_dps_packed(name, [call.args[0]], ops.output_type(call))


class PlanningNetwork:
    """Runs the network with any choice of kernels for its candidate layers.

    Args:
        mod: canonical module.
        layers: the candidates.
        target: what to compile for.
        inputs: names of the network's inputs, in order.
    """

    def __init__(self, mod: tvm.IRModule, layers: Sequence[Candidate], target: Target, inputs: Sequence[str]):
        self.inputs = list(inputs)
        self.dense = {c.layer: LayerKernel(c.call, target) for c in layers}
        self._kernels: dict[str, LayerKernel] = dict(self.dense)
        self._hook: Hook | None = None
        names = {c.layer: f"adr.planner.{id(self)}.{i}" for i, c in enumerate(layers)}
        for layer, name in names.items():
            tvm_ffi.register_global_func(name, _dispatcher(weakref.ref(self), layer), override=True)
            weakref.finalize(self, tvm_ffi.registry.remove_global_func, name).atexit = False
        outlined = mutate(mod, lambda m: _Outliner(m, names))
        self._main = relax.VirtualMachine(build_module(outlined, target), tvm.cpu())["main"]

    def dispatch(self, layer: str, x: Any, out: Any) -> None:
        """What the outlined network calls for a layer: input and output tensor."""
        if self._hook is not None:
            self._hook(layer, x)
        out.copyfrom(self._kernels[layer](x)[0])

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs of the network on a batch; the layers in use decide whether it is dense.

        The first axis of each is the image. An output without one, such as a sum over the batch, is one image.
        """
        out = self._main(*[tvm.runtime.tensor(inputs[name]) for name in self.inputs])
        images = len(next(iter(inputs.values())))
        arrays = [tensor.numpy() for tensor in ([out] if hasattr(out, "numpy") else out)]
        return [array if array.ndim and len(array) == images else array[None] for array in arrays]

    @contextmanager
    def using(self, kernels: Mapping[str, LayerKernel]) -> Iterator[None]:
        """Within the block the named layers run these kernels, the others the dense ones."""
        self._kernels = {**self.dense, **kernels}
        try:
            yield
        finally:
            self._kernels = dict(self.dense)

    @contextmanager
    def watching(self, hook: Hook) -> Iterator[None]:
        """Within the block ``hook(layer, x)`` sees the input tensor of every candidate layer before it runs."""
        self._hook = hook
        try:
            yield
        finally:
            self._hook = None


def _dispatcher(network: weakref.ref[PlanningNetwork], layer: str) -> Callable[[Any, Any], None]:
    """A global function for a layer, which does not keep the network and its kernels alive."""

    def dispatch(x: Any, out: Any) -> None:
        alive = network()
        assert alive is not None  # only the network's own virtual machine calls this
        alive.dispatch(layer, x, out)

    return dispatch


def seconds(kernel: Callable[[Any], Any], x: Any) -> float:
    """Time of one call."""
    start = time.perf_counter()
    kernel(x)
    return time.perf_counter() - start
