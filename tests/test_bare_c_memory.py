"""The arena of bare C: what lives at once never overlaps, and what may share a buffer does."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from adr_tvm.activation import Activation
from adr_tvm.bare_c.graph import Graph, Operator, Tensor
from adr_tvm.bare_c.kernel_calls import kernel_call
from adr_tvm.bare_c.memory_plan import Buffer, MemoryPlan, place, plan_memory

BUFFERS = st.builds(
    lambda size, first, span: Buffer(16 * size, first, first + span),
    st.integers(1, 40),
    st.integers(0, 12),
    st.integers(0, 5),
)


@given(st.lists(BUFFERS, max_size=14))
def test_no_overlap_in_time_and_space(buffers):
    offsets = place(buffers)
    for (a, at), (b, bt) in itertools.combinations(zip(buffers, offsets, strict=True), 2):
        assert not a.overlaps(b) or at + a.bytes <= bt or bt + b.bytes <= at
    size = max((o + b.bytes for o, b in zip(offsets, buffers, strict=True)), default=0)
    live = [sum(b.bytes for b in buffers if b.first <= t <= b.last) for t in range(20)]
    assert max(live) <= size <= sum(b.bytes for b in buffers)


def sums(*steps: tuple[str, tuple[str, ...]], outputs: tuple[str, ...]) -> MemoryPlan:
    """The plan of a graph of sums and of functions of one tensor of 64 floats each; x is the input."""
    operators = []
    for name, inputs in steps:
        kind = "view" if name.startswith("view") else "binary" if len(inputs) == 2 else "mean"
        attributes = {"function": "add", "swapped": False, "activation": Activation()}
        operators.append(Operator(kind, name, inputs, name, {}, attributes))
    names = {"x", *(name for name, _ in steps)}
    graph = Graph({name: Tensor(name, (1, 64)) for name in names}, tuple(operators), ("x",), outputs)
    return plan_memory(graph, [kernel_call(graph, operator) for operator in operators])


def test_a_sum_overwrites_what_nobody_reads_again():
    plan = sums(("a", ("x",)), ("b", ("a",)), ("c", ("a", "b")), ("d", ("c",)), ("y", ("d",)), outputs=("y",))
    assert plan.places["c"] == plan.places["a"] and plan.arena_bytes == 2 * 256
    assert plan.live_bytes == [256, 512, 512, 512, 256]


def test_a_sum_overwrites_nothing_that_is_read_later():
    plan = sums(("a", ("x",)), ("b", ("a",)), ("c", ("a", "b")), ("d", ("a", "c")), ("y", ("d",)), outputs=("y",))
    assert plan.places["c"] == plan.places["b"] and plan.places["d"] == plan.places["a"]
    plan = sums(("a", ("x",)), ("c", ("a", "a")), ("y", ("c",)), outputs=("y",))
    assert plan.places["c"] != plan.places["a"], "a kernel that reads a tensor twice must find it whole"


def test_views_share_and_keep_alive():
    plan = sums(("a", ("x",)), ("view_a", ("a",)), ("b", ("x",)), ("c", ("view_a", "b")), ("y", ("c",)), outputs=("y",))
    assert plan.places["view_a"] == plan.places["a"] != plan.places["b"] and not plan.copies


def test_memory_of_the_caller():
    plan = sums(("view_x", ("x",)), ("a", ("view_x",)), ("view_a", ("a",)), outputs=("view_x", "view_a"))
    assert plan.copies == {0}, "an input is not the output"
    assert (plan.places["x"].where, plan.places["view_x"].where) == ("input", "output")
    assert plan.places["a"] == plan.places["view_a"] and plan.places["a"].name == "view_a"
    assert np.all(np.array(plan.live_bytes) == 0)
