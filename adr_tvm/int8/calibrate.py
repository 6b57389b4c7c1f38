"""Ranges of every tensor of a graph over calibration samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from adr_tvm.bare_c.graph import Graph
from adr_tvm.int8.float_operators import run_operator
from adr_tvm.int8.ranges import RangeObserver


def observe(graph: Graph, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, RangeObserver]:
    """Run a float graph on batches of inputs, by tensor; activations are counted and dropped."""
    ranges = {name: RangeObserver() for name in graph.tensors}
    last = {name: i for i, operator in enumerate(graph.operators) for name in operator.inputs}
    for batch in batches:
        values = {name: np.asarray(batch[name], np.float32) for name in graph.inputs}
        for name, value in values.items():
            ranges[name].update(value)
        for i, operator in enumerate(graph.operators):
            values[operator.output] = run_operator(graph, operator, values)
            ranges[operator.output].update(values[operator.output])
            for name in operator.inputs:
                if last[name] == i and name not in graph.outputs:
                    values.pop(name, None)
    return ranges
