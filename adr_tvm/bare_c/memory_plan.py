"""Where each tensor lives: one arena, planned before anything runs, and the caller's inputs and outputs.

A buffer lives from the operator that writes it to the last that reads it; two that live at once never overlap. Buffers
are placed one after the other at the lowest free offset, in several orders, of which the smallest arena is kept (the
usual order is by size: Pisarchyk, Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020). Tensors
share a buffer where one is a view of the other, or where a kernel may write over an input that nothing else reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from adr_tvm.bare_c.graph import Graph
from adr_tvm.bare_c.kernel_call import KernelCall
from adr_tvm.lifetimes import Lifetime, lowest_offsets

ALIGNMENT = 16


@dataclass(frozen=True)
class Buffer(Lifetime):
    """A piece of the arena.

    Attributes:
        bytes: its size.
        first, last: positions of the first and the last operator that it must hold its content for.
    """

    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Place:
    """Where a tensor is.

    Attributes:
        where: the arena, or memory of the caller, who gives one pointer for each input and output.
        offset: bytes from the arena's start.
        name: the input or output.
    """

    where: Literal["arena", "input", "output"]
    offset: int = 0
    name: str = ""


@dataclass(frozen=True)
class MemoryPlan:
    """The places of all tensors.

    Attributes:
        places: by tensor.
        scratch: offset of the scratch memory of each operator; 0 where it needs none.
        arena_bytes: size of the arena; never 0.
        live_bytes: what is alive while each operator runs, its scratch included; not the caller's memory.
        copies: positions of the views that must copy, since both sides are the caller's.
    """

    places: dict[str, Place]
    scratch: list[int]
    arena_bytes: int
    live_bytes: list[int]
    copies: frozenset[int]


def plan_memory(graph: Graph, calls: Sequence[KernelCall]) -> MemoryPlan:
    """Place the tensors of a graph whose operators run these kernels, one each."""
    owner, copies = _shared(graph, calls)
    caller = {owner[name]: Place("output", name=name) for name in graph.outputs}
    caller |= {owner[name]: Place("input", name=name) for name in graph.inputs}
    spans: dict[str, Buffer] = {}
    for i, operator in enumerate(graph.operators):
        for name in (*operator.inputs, operator.output):
            root, size = owner[name], _aligned(graph.tensors[name].bytes)
            before = spans.get(root, Buffer(0, i, i))
            spans[root] = Buffer(max(size, before.bytes), before.first, i)
    spans = {root: span for root, span in spans.items() if root not in caller}
    scratch = {i: Buffer(_aligned(call.scratch), i, i) for i, call in enumerate(calls) if call.scratch}
    buffers = [*spans.values(), *scratch.values()]
    offsets = place(buffers)
    at = dict(zip(spans, offsets, strict=False))
    places = {name: caller.get(owner[name]) or Place("arena", at[owner[name]]) for name in graph.tensors}
    scratch_at = dict(zip(scratch, offsets[len(spans) :], strict=True))
    return MemoryPlan(
        places,
        [scratch_at.get(i, 0) for i in range(len(calls))],
        max((offset + buffer.bytes for offset, buffer in zip(offsets, buffers, strict=True)), default=ALIGNMENT),
        [sum(b.bytes for b in buffers if b.first <= i <= b.last) for i in range(len(calls))],
        copies,
    )


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _shared(graph: Graph, calls: Sequence[KernelCall]) -> tuple[dict[str, str], frozenset[int]]:
    """By tensor the one whose buffer it shares (itself where it has its own), and the views that must copy."""
    owner = {name: name for name in graph.tensors}
    outside = set(graph.inputs) | set(graph.outputs)
    copies = set()

    def join(old: str, new: str) -> None:
        """``new`` shares the buffer of ``old``; the buffer is the caller's if either was."""
        outer = owner[new] if owner[new] in outside else owner[old]
        for name, root in list(owner.items()):
            if root in (owner[old], owner[new]):
                owner[name] = outer

    for i, operator in enumerate(graph.operators):
        if operator.kind == "view":
            if owner[operator.inputs[0]] in outside and operator.output in outside:
                copies.add(i)
            else:
                join(operator.inputs[0], operator.output)
    for i, (operator, call) in enumerate(zip(graph.operators, calls, strict=True)):
        for name in call.in_place:
            root = owner[name]
            sharing = [other for other in graph.tensors if owner[other] == root]
            read_later = any(reader > i for other in sharing for reader in graph.readers(other))
            read_twice = sum(owner[other] == root for other in operator.inputs) > 1
            free = root not in outside and owner[operator.output] not in outside
            fits = graph.tensors[name].bytes >= graph.tensors[operator.output].bytes
            if free and fits and not read_later and not read_twice:
                join(name, operator.output)
                break
    return owner, frozenset(copies)


def place(buffers: Sequence[Buffer]) -> list[int]:
    """Offsets of buffers, of which no two that overlap in time overlap in space."""
    orders = (
        lambda i: (-buffers[i].bytes, buffers[i].first),
        lambda i: (-buffers[i].bytes * (buffers[i].last - buffers[i].first + 1), i),
        lambda i: (buffers[i].first, -buffers[i].bytes),
        lambda i: (buffers[i].first - buffers[i].last, -buffers[i].bytes),
    )
    sizes = {i: buffer.bytes for i, buffer in enumerate(buffers)}
    placed = [lowest_offsets(buffers, sizes, sorted(sizes, key=order)) for order in orders]
    found = [[offsets[i] for i in sizes] for offsets in placed]
    return min(found, key=lambda offsets: max((o + b.bytes for o, b in zip(offsets, buffers, strict=True)), default=0))
