"""Quantising a network: from its float graph and calibration data to integers, and how the two compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from adr_tvm.bare_c.graph import Graph
from adr_tvm.errors import ModelError
from adr_tvm.int8.calibrate import observe
from adr_tvm.int8.executor import run_integer
from adr_tvm.int8.float_operators import run_operator
from adr_tvm.int8.quantise import quantise_graph, stays_float, unsupported_reuse

COMPARED = 256  # samples

Batches = Iterable[Mapping[str, np.ndarray]]


def quantised(graph: Graph, batches: Batches, labels: np.ndarray | None) -> tuple[Graph, str]:
    """The integer form of a float graph, and a sentence on what it costs.

    Args:
        batches: calibration inputs by name of the graph, read twice.
        labels: of all samples; None: there are none.

    Raises:
        ModelError: a layer reuses in a way that int8 has not.
    """
    for layer in graph.reuse_layers:
        reason = unsupported_reuse(layer.attributes["geometry"], layer.attributes["setting"])
        if reason:
            raise ModelError(f"layer {layer.name!r} cannot reuse in int8: {reason}")
    integer = quantise_graph(graph, observe(graph, batches))
    kept = {stays_float(operator, graph) for operator in graph.operators} - {""}
    note = _compared(graph, integer, batches, labels)
    return integer, f"{note}; fp32 stays: {', '.join(sorted(kept))}" if kept else note


def _compared(graph: Graph, integer: Graph, batches: Batches, labels: np.ndarray | None) -> str:
    found: list[np.ndarray] = []
    expected: list[np.ndarray] = []
    for batch in batches:
        if sum(len(each) for each in found) >= COMPARED:
            break
        values = {name: np.asarray(batch[name], np.float32) for name in graph.inputs}
        integers = run_integer(integer, values)
        for operator in graph.operators:
            values[operator.output] = run_operator(graph, operator, values)
        expected.append(values[graph.outputs[0]].reshape(len(values[graph.inputs[0]]), -1))
        found.append(integers[integer.outputs[0]].reshape(len(values[graph.inputs[0]]), -1))
    y, reference = np.concatenate(found), np.concatenate(expected)
    variance = float(np.square(reference - reference.mean(axis=0)).sum())
    error = float(np.square(y - reference).sum()) / variance if variance > 0 else 0.0
    what = f"int8, against dense fp32 on {len(y)} calibration samples: NMSE {error:.2g}"
    if len(graph.tensors[graph.outputs[0]].shape) != 2:
        return what
    top, dense = y.argmax(axis=1), reference.argmax(axis=1)
    what += f", top-1 agreement {np.mean(top == dense):.1%}"
    if labels is not None:
        given = labels[: len(y)]
        what += f", top-1 {np.mean(top == given):.1%} (fp32 {np.mean(dense == given):.1%})"
    return what
