"""Which layers may be rewritten, and why the others may not.

A pure analysis (`find_candidates`) and a pass that records it on the module, attribute ``adr.candidates``: a map from
layer name to the reason against it, empty for a candidate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import calls, constant, is_op
from adr_tvm.geometry import ConvGeometry
from adr_tvm.passes.fuse_epilogue import FUSED_OPS, HEADS, convertible, layer_names

ATTRIBUTE = "adr.candidates"


@dataclass(frozen=True)
class Candidate:
    """One convolution or dense layer.

    Attributes:
        layer: its name.
        kind: ``conv2d`` or ``dense``.
        call: the call as it stands in the module.
        geometry: its shapes; None where it is not one of our operators.
        reason: why it stays dense; empty for a candidate.
    """

    layer: str
    kind: str
    call: relax.Call
    geometry: ConvGeometry | None
    reason: str = ""


@dataclass(frozen=True)
class CandidateRules:
    """Which layers the user allows, as regular expressions searched in the layer's name. Skip wins over only."""

    skip: Sequence[str] = field(default=())
    only: Sequence[str] = field(default=())

    def against(self, layer: str) -> str:
        """Why the user's patterns forbid a layer; empty if they do not."""
        for pattern in self.skip:
            if re.search(pattern, layer):
                return f"skipped by --skip {pattern}"
        if self.only and not any(re.search(pattern, layer) for pattern in self.only):
            return "not named by --only"
        return ""


def find_candidates(func: relax.Function, function: str, rules: CandidateRules) -> list[Candidate]:
    """All convolutions and matrix products of a function, in order.

    Args:
        func: Relax function, usually after ``FuseEpilogue``.
        function: its name, for layers that have none of their own.
        rules: the user's patterns.
    """
    found: list[Candidate] = []
    layers = calls(func, *HEADS, *FUSED_OPS, *ops.REUSE_OPS)
    for call, layer in zip(layers, layer_names(func, function), strict=True):
        if call.op.name in ops.DENSE_OPS:
            kind = call.op.name.removeprefix("relax.adr.")
            reason = _not_constant(call) or rules.against(layer)
            found.append(Candidate(layer, kind, call, ops.geometry_of(call), reason))
        elif call.op.name == ops.GROUPED_CONV2D:
            found.append(Candidate(layer, "conv2d", call, None, _grouped_reason(call)))
        elif call.op.name in HEADS:
            kind = "dense" if is_op(call, "relax.matmul") else "conv2d"
            reason = convertible(call) or "not in the form of adr.conv2d / adr.dense: run FuseEpilogue first"
            found.append(Candidate(layer, kind, call, None, reason))
    return found


def _grouped_reason(call: relax.Call) -> str:
    kind = "depthwise" if ops.geometry_of(call).C == 1 else "grouped"
    return f"{kind} convolution: too few products share a weight for reuse to save any"


def _not_constant(call: relax.Call) -> str:
    if all(constant(arg) is not None for arg in call.args[1:]):
        return ""
    return "its weights are not constant: bind the parameters first (relax.transform.BindParams)"


@tvm.transform.module_pass(opt_level=0, name="MarkCandidates")
class MarkCandidates:
    """Record the candidates of ``main`` on the module."""

    def __init__(self, rules: CandidateRules | None = None):
        self.rules = rules or CandidateRules()

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Add the attribute; the functions stay as they are."""
        marks = {c.layer: c.reason for c in find_candidates(mod["main"], "main", self.rules)}
        return mod.with_attr(ATTRIBUTE, marks)
