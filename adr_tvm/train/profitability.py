"""Predicted cost of training one layer with reuse, against training it dense; orders the controller's candidates.

A dense training step of a layer is 3 N K M multiply-adds: forward, weight gradient, input gradient. With reuse:

    forward          hash + b r_c p + g / L + d      backward only: 1 + hash + d
    weight gradient         b r_c p + g / L          (cluster sums of dY, then centroids^T times them)
    input gradient   averaged: b r_c p               straight-through: 1      sampled: 1 / 4
    forward only     1 for each of the gradients

    hash = a H q / M      d = (v / L + e) q / M      p = P / N, q = P / (N KH KW) for `pixel`; p = q = 1 otherwise

relative to N K M, with N output pixels, P pixels read, and a, b, g, e the cost of a multiply-add of the hash, of a
product, of a gather-add and of loading an entry, and v that of numbering a vector, in dense multiply-adds. The papers'
model (ADR, ICDE 2019, section 4) has a = b = 1 and leaves g, v and e out (``PAPERS``); measured, the gather-add is
often the largest term. The first layer needs no input gradient: it is left out on both sides.

The remaining ratio is not known before training; its bound min(2^H, vectors) / vectors of one unit takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adr_tvm.geometry import ConvGeometry
from adr_tvm.train.stage import AVERAGED, SAMPLED, STRAIGHT_THROUGH, LayerReuse


@dataclass(frozen=True)
class Coefficients:
    """Costs in dense multiply-adds: ``hash`` a, ``product`` b, ``gather`` g, ``vector`` v, ``entry`` e."""

    hash: float
    product: float
    gather: float
    vector: float
    entry: float

    @classmethod
    def from_seconds(cls, seconds: Mapping[str, float]) -> Coefficients:
        """From the planner's cost model: ``seconds`` of a unit by term (`adr_tvm.planner.cost`)."""
        dense = 2 * seconds["dense flops"]
        return cls(
            hash=seconds["bits"] / dense,
            product=2 * seconds["product flops"] / dense,
            gather=seconds["adds float32"] / dense,
            vector=seconds["vectors"] / dense,
            entry=seconds["entries"] / dense,
        )


PAPERS = Coefficients(hash=1.0, product=1.0, gather=0.0, vector=0.0, entry=0.0)
DEFAULT = Coefficients(hash=3.6, product=1.25, gather=2.0, vector=500.0, entry=1.25)
"""Of the kernels here, on the machine of `adr_tvm.planner.cost.TERMS`."""


def bound_on_ratio(geometry: ConvGeometry, reuse: LayerReuse, batch: int) -> float:
    """The largest r_c that H bits allow: no unit has more clusters than keys."""
    setting = reuse.setting
    images = batch if setting.scope == "batch" else 1
    vectors = images * geometry.positions(setting)
    return min(2**setting.H, vectors) / vectors


def training_cost(
    geometry: ConvGeometry,
    reuse: LayerReuse | None,
    batch: int,
    r_c: float | None = None,
    coefficients: Coefficients = DEFAULT,
    input_gradient: bool = True,
) -> float:
    """Time of a training step of the layer over that of the dense layer; 1.0 for dense.

    Args:
        batch: images of a step.
        r_c: remaining ratio; None takes its bound.
        input_gradient: whether anything before the layer is trained.
    """
    if reuse is None:
        return 1.0
    setting, c = reuse.setting, coefficients
    ratio = bound_on_ratio(geometry, reuse, batch) if r_c is None else r_c
    pixel = setting.granularity == "pixel"
    p = geometry.positions(setting) / geometry.rows if pixel else 1.0
    q = p / (geometry.KH * geometry.KW) if pixel else 1.0
    L = geometry.vector_length(setting)
    adds = c.gather * geometry.segments(setting) / (geometry.C if pixel else geometry.K)
    products = c.product * ratio * p
    clustering = q * (c.hash * setting.H + c.vector / L + c.entry) / geometry.M
    forward = clustering + (1.0 if reuse.backward_only else products + adds)
    backward = 1.0 if reuse.forward_only else products + adds
    if not input_gradient:
        return (forward + backward) / 2
    to_input = {AVERAGED: products, SAMPLED: 1 / 4, STRAIGHT_THROUGH: 1.0}
    return (forward + backward + to_input[reuse.input_gradient]) / 3
