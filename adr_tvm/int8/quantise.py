"""From a float graph and ranges to a graph of int8 (``docs/algorithm.md``, I1 to I5).

Operators with an integer kernel get int8 tensors; others stay fp32 between ``dequantise`` and ``quantise``. Inputs and
outputs of the network stay fp32: it begins with ``quantise``, and a last dense layer gives its sums, scaled to reals,
which is one rounding less than int8.

| kind, with an int8 input | constants | attributes |
|---|---|---|
| ``conv2d``, ``grouped_conv2d``, ``dense`` | ``weight`` int8, ``bias`` int32 | also ``rescale``, ``low``, ``high`` |
| ``conv2d`` with a residual | | also ``residual_rescale`` |
| ``reuse_*`` | also ``planes`` int8, ``thresholds`` int32 | the same |
| ``logits`` | ``weight`` int8 [K, M], ``bias`` int32, ``scale`` float32 [M] | ``geometry`` |
| ``average`` | | ``window``, ``rescale`` of one factor |
| ``add`` | | ``multipliers``, ``shift``, ``low``, ``high`` |
| ``dequantise``, and ``quantise`` of float32 | | ``scale`` |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from adr_tvm.activation import Activation
from adr_tvm.bare_c.graph import Graph, Operator, Quantisation, Tensor, Window
from adr_tvm.geometry import ConvGeometry
from adr_tvm.int8.fixed_point import LARGEST_FACTOR, rescale_by
from adr_tvm.int8.ranges import RangeObserver
from adr_tvm.int8.reuse import quantise_planes, table_shift_of
from adr_tvm.settings import ReuseSetting

MOVES = ("max_pool2d", "view", "transpose", "strided_slice", "pad", "concat_part")
PRODUCTS = ("conv2d", "grouped_conv2d", "dense", "reuse_conv2d", "reuse_dense")
MAX_VECTORS = 2**16 - 2  # ids are uint16, and one stands for none
LARGEST_SUM = 2.0**29  # of a bias, and of a residual


def quantise_graph(graph: Graph, ranges: Mapping[str, RangeObserver]) -> Graph:
    """The integer form of a float graph."""
    return _Quantiser(graph, ranges).run()


def unsupported_reuse(geometry: ConvGeometry, setting: ReuseSetting) -> str:
    """Why a layer has no integer kernel for a setting; empty if it has one."""
    if setting.gain:
        return "gain scales each product on its own"
    if setting.granularity == "row" and setting.hash != "exact":
        return "row with hash planes"
    if setting.table != "float32":
        return f"table={setting.table}: int8 has tables of its own"
    vectors = geometry.H * geometry.W if setting.granularity == "pixel" else geometry.rows
    if vectors > MAX_VECTORS:
        return f"{vectors} neuron vectors in a segment: int8 numbers at most {MAX_VECTORS}"
    return ""


def stays_float(operator: Operator, graph: Graph) -> str:
    """Why an operator has no integer kernel; empty if it has one."""
    a = operator.attributes
    if operator.kind in PRODUCTS:
        if a["activation"].kind == "leaky_relu":
            return "leaky ReLU"
        if operator.kind == "grouped_conv2d" and not (a["geometry"].C == 1 and a["geometry"].M == 1):
            return "groups of more than one channel"
        return ""
    if operator.kind == "avg_pool2d":
        padded = any(a["window"].padding) and not a["count_pads"]
        return "the padding is not counted" if padded or a["window"].dilation != (1, 1) else ""
    if operator.kind == "binary":
        return "" if len(operator.inputs) == 2 and a["function"] == "add" else str(a["function"])
    if operator.kind == "pad":
        return "" if a["value"] == 0 else "padding with another value than 0"
    if operator.kind == "mean":
        return "" if len(graph.tensors[operator.inputs[0]].shape) == 4 else "not of an image"
    if operator.kind == "unary" and a["function"] == "activation":
        return "" if a["activation"].kind == "clip" and a["activation"].low == 0.0 else a["activation"].kind
    return "" if operator.kind in MOVES else operator.kind


def limits(activation: Activation, scale: float) -> tuple[int, int]:
    """[low, high] of int8 after a linear or clipping activation."""
    if activation.kind != "clip":
        return -128, 127
    low, high = (float(np.clip(np.rint(limit / scale), -128, 127)) for limit in (activation.low, activation.high))
    return int(low), int(high)


class _Quantiser:
    def __init__(self, graph: Graph, ranges: Mapping[str, RangeObserver]) -> None:
        self.graph = graph
        self.float_operators = {o.output for o in graph.operators if stays_float(o, graph)}
        self.scales = self._shared_scales(ranges)
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.integer: dict[str, str] = {}  # by tensor of the float graph: its int8 form
        self.real: dict[str, str] = {}  # its fp32 form

    def run(self) -> Graph:
        for name in self.graph.inputs:
            self._keep(self.graph.tensors[name])
        for operator in self.graph.operators:
            if self._is_last_dense(operator):
                self._logits(operator)
            elif operator.output in self.float_operators:
                self._add(replace(operator, inputs=tuple(self._as_real(name) for name in operator.inputs)))
                self._keep(self.graph.tensors[operator.output])
            else:
                inputs = tuple(self._as_integer(name) for name in operator.inputs)
                if operator.output not in self.integer:
                    self._integer_tensor(operator.output)
                self._add(self._integer(operator, inputs))
        outputs = tuple(self._as_real(name) for name in self.graph.outputs)
        return Graph(self.tensors, tuple(self.operators), self.graph.inputs, outputs)

    def _is_last_dense(self, operator: Operator) -> bool:
        linear = operator.kind == "dense" and operator.attributes["activation"].kind == "linear"
        rows = operator.attributes["geometry"].rows if linear else 0
        read = any(True for _ in self.graph.readers(operator.output))
        return rows == 1 and operator.output in self.graph.outputs and not read

    def _shared_scales(self, ranges: Mapping[str, RangeObserver]) -> dict[str, float]:
        """Scale by tensor; operators that move entries leave it as it is, so the largest of what they join counts."""
        group = {name: name for name in self.graph.tensors}

        def root(name: str) -> str:
            return name if group[name] == name else root(group[name])

        for operator in self.graph.operators:
            relu = operator.kind == "unary" and operator.output not in self.float_operators
            if (operator.kind in MOVES and operator.output not in self.float_operators) or relu:
                for name in operator.inputs:
                    group[root(name)] = root(operator.output)
        scales: dict[str, float] = {}
        for name in self.graph.tensors:
            if ranges[name].largest > 0:
                scales[root(name)] = max(scales.get(root(name), 0.0), ranges[name].scale())
        for operator in self.graph.operators:  # a factor of rescaling is less than 1/4
            if operator.output not in self.float_operators:
                x, y = root(operator.inputs[0]), root(operator.output)
                lowest = self._lowest_scale(operator, scales.get(x, 1 / 127))
                scales[y] = max(scales.get(y, 1 / 127), lowest)
        return {name: float(np.float32(scales.get(root(name), 1 / 127))) for name in self.graph.tensors}

    def _lowest_scale(self, operator: Operator, x_scale: float) -> float:
        if operator.kind in PRODUCTS:
            return 1.01 * x_scale * float(np.abs(operator.constants["weight"]).max()) / 127 / LARGEST_FACTOR
        if operator.kind in ("avg_pool2d", "mean"):
            return 1.01 * x_scale / math.prod(self._window(operator).size) / LARGEST_FACTOR
        return 0.0

    def _window(self, operator: Operator) -> Window:
        if operator.kind == "avg_pool2d":
            return operator.attributes["window"]
        _, H, W, _ = self.graph.tensors[operator.inputs[0]].shape
        return Window((H, W), (1, 1), (0, 0, 0, 0))

    def _add(self, operator: Operator) -> None:
        self.operators.append(operator)

    def _keep(self, tensor: Tensor) -> None:
        self.tensors[tensor.name] = tensor
        self.real[tensor.name] = tensor.name

    def _integer_tensor(self, name: str) -> str:
        plain = name not in self.graph.outputs and name not in self.tensors
        made = name if plain else f"{name}_int8"
        self.tensors[made] = Tensor(made, self.graph.tensors[name].shape, "int8", Quantisation(self.scales[name]))
        self.integer[name] = made
        return made

    def _as_integer(self, name: str) -> str:
        if name not in self.integer:
            made = self._integer_tensor(name)
            self._add(Operator("quantise", made, (self.real[name],), made, {}, {"scale": self.scales[name]}))
        return self.integer[name]

    def _as_real(self, name: str) -> str:
        if name not in self.real:
            made = name if name in self.graph.outputs else f"{name}_float"
            self.tensors[made] = replace(self.graph.tensors[name], name=made)
            self.real[name] = made
            self._add(Operator("dequantise", made, (self.integer[name],), made, {}, {"scale": self.scales[name]}))
        return self.real[name]

    def _weights(self, operator: Operator) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """int8 weights and int32 bias, and the real value of a sum's unit for each channel."""
        weight, bias = operator.constants["weight"], operator.constants["bias"].astype(np.float64)
        x_scale = self.scales[operator.inputs[0]]
        largest = np.abs(weight.reshape(-1, weight.shape[-1])).max(axis=0).astype(np.float64) / 127
        lowest = np.abs(bias) / (x_scale * LARGEST_SUM)
        if len(operator.inputs) > 1:
            lowest = np.maximum(lowest, 128 * self.scales[operator.inputs[1]] / (x_scale * LARGEST_SUM))
        steps = np.maximum(np.maximum(largest, lowest), 1e-30)
        units = steps * x_scale
        integers = np.clip(np.rint(weight / steps), -127, 127).astype(np.int8)
        return {"weight": integers, "bias": np.rint(bias / units).astype(np.int32)}, units

    def _logits(self, operator: Operator) -> None:
        x = self._as_integer(operator.inputs[0])
        constants, units = self._weights(operator)
        constants["scale"] = units.astype(np.float32)
        attributes = {"geometry": operator.attributes["geometry"]}
        self._keep(self.graph.tensors[operator.output])
        self._add(Operator("logits", operator.name, (x,), operator.output, constants, attributes))

    def _integer(self, operator: Operator, inputs: tuple[str, ...]) -> Operator:
        output, scale = self.integer[operator.output], self.scales[operator.output]
        made = replace(operator, inputs=inputs, output=output)
        if operator.kind in PRODUCTS:
            return self._products(operator, made, scale)
        first = self.scales[operator.inputs[0]]
        if operator.kind in ("avg_pool2d", "mean"):
            window = self._window(operator)
            factor = np.array([first / scale / math.prod(window.size)])
            return replace(made, kind="average", attributes={"window": window, "rescale": rescale_by(factor)})
        if operator.kind == "binary":
            ratios = [self.scales[name] / scale for name in operator.inputs]
            shift = int(np.clip(21 - math.floor(math.log2(max(ratios))), 1, 30))
            multipliers = tuple(round(math.ldexp(ratio, shift)) for ratio in ratios)
            values = {"multipliers": multipliers, "shift": shift, "low": -128, "high": 127}
            return replace(made, kind="add", attributes=values)
        if operator.kind == "unary":
            low, high = limits(operator.attributes["activation"], scale)
            values = {"multipliers": (1 << 20, 0), "shift": 20, "low": low, "high": high}
            return replace(made, kind="add", inputs=(inputs[0], inputs[0]), attributes=values)
        return made

    def _products(self, operator: Operator, made: Operator, scale: float) -> Operator:
        constants, units = self._weights(operator)
        low, high = limits(operator.attributes["activation"], scale)
        attributes: dict[str, Any] = dict(operator.attributes)
        attributes |= {"rescale": rescale_by(units / scale), "low": low, "high": high, "table_shift": -1}
        if len(operator.inputs) > 1:
            factors = self.scales[operator.inputs[1]] / units
            shift = np.clip(21 - np.floor(np.log2(factors)).astype(np.int64), 1, 24)
            multiplier = np.rint(np.ldexp(factors, shift)).astype(np.int32)
            attributes["residual_rescale"] = (multiplier, shift.astype(np.int32))
        if operator.kind.startswith("reuse_") and attributes["setting"].hash != "exact":
            floats = operator.constants["planes"], operator.constants["thresholds"]
            planes = quantise_planes(*floats, self.scales[operator.inputs[0]])
            constants |= {"planes": planes.planes, "thresholds": planes.thresholds}
            g = operator.attributes["geometry"]
            weight = constants["weight"].reshape(g.KH, g.KW, g.C, g.M)
            attributes["table_shift"] = table_shift_of(weight, g, operator.attributes["setting"])
        return replace(made, constants=constants, attributes=attributes)
