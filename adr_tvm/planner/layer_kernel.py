"""One layer compiled alone, as the pipeline would lower it inside the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from adr_tvm import ops
from adr_tvm.build import build_module
from adr_tvm.precision import Precision
from adr_tvm.settings import ReuseSetting


class LayerKernel:
    """A callable layer: tensor in, (y, stats) out; stats int32 [units, 2], None for the dense layer.

    Args:
        call: the dense call (``adr.conv2d`` or ``adr.dense``) in its module.
        target: what to compile for.
        setting: how to reuse; None compiles the dense layer.
        planes: float32 [S, L, H], None for ``exact`` and dense.
        thresholds: float32 [S, H], likewise.
    """

    def __init__(
        self,
        call: relax.Call,
        target: Target,
        setting: ReuseSetting | None = None,
        planes: np.ndarray | None = None,
        thresholds: np.ndarray | None = None,
    ):
        self.setting, self.planes, self.thresholds = setting, planes, thresholds
        x = relax.Var("x", call.args[0].ty)
        alone = relax.Call(call.op, [x, *call.args[1:]], call.attrs)
        if setting is not None:
            alone = ops.with_reuse(alone, setting, planes, thresholds)
        builder = relax.BlockBuilder()
        with builder.function("main", [x]):
            with builder.dataflow():
                out = builder.emit_output(alone)
            builder.emit_func_output(out)
        self._mod = builder.get()
        self._run = relax.VirtualMachine(self.build(target), tvm.cpu())["main"]

    def build(self, target: Target, precision: Precision | None = None) -> relax.VMExecutable:
        """The layer for a target, as ``main``; in a data type, None: fp32."""
        return build_module(self._mod, target, precision=precision)

    def __call__(self, x: Any) -> tuple[Any, Any]:
        """Run on a TVM tensor."""
        out = self._run(x)
        return (out, None) if self.setting is None else (out[0], out[1])
