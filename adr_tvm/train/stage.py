"""What every layer does during a stretch of training: a stage is a dict from layer to its reuse, None for dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from adr_tvm.settings import ReuseSetting
from adr_tvm.stream_table import DEFAULT_SLOTS, check_streaming

AVERAGED, SAMPLED, STRAIGHT_THROUGH = INPUT_GRADIENTS = ("averaged", "sampled", "straight-through")
"""Ways to the gradient of a reusing layer's input, cheapest and coarsest first."""


@dataclass(frozen=True)
class LayerReuse:
    """How one layer reuses in training.

    Attributes:
        setting: what is clustered and how it is hashed.
        input_gradient: ``averaged``: over the members of a cluster, the exact derivative with ids frozen;
            ``straight-through``: dX = dY W^T, as if the layer were dense; ``sampled``: that of a quarter of the images,
            times 4.
        stream: ids and centroids persist over batches (the papers' cluster reuse).
        slots: centroids of a segment that persist at most, the last used ones; without ``stream`` it says nothing.
        backward_only: the forward pass is dense, only the gradients reuse.
        forward_only: only the forward pass reuses: dW = X^T dZ and dX = dZ W^T, as if the layer were dense.

    Raises:
        ValueError: ``input_gradient`` is not known or does not go with ``forward_only``, only forward and only backward
            are asked for together, or the clusters of such a setting cannot persist.
    """

    setting: ReuseSetting
    input_gradient: str = AVERAGED
    stream: bool = False
    slots: int = DEFAULT_SLOTS
    backward_only: bool = False
    forward_only: bool = False

    def __post_init__(self) -> None:
        if self.input_gradient not in INPUT_GRADIENTS:
            allowed = ", ".join(INPUT_GRADIENTS)
            raise ValueError(f"input_gradient is {self.input_gradient!r}, expected one of {allowed}")
        if self.forward_only and (self.backward_only or self.input_gradient != STRAIGHT_THROUGH):
            other = "backward-only" if self.backward_only else self.input_gradient
            raise ValueError(f"forward-only has the gradients of the dense layer: it cannot go with {other}")
        if self.stream:
            check_streaming(self.setting, self.slots)

    def with_bits(self, H: int) -> LayerReuse:
        """The same with another number of hash bits."""
        return replace(self, setting=replace(self.setting, H=H))


Stage: TypeAlias = Mapping[str, LayerReuse | None]


def variant(stage: Stage, most_bits: Mapping[LayerReuse, int]) -> dict[str, LayerReuse | None]:
    """The stage that is compiled for ``stage``: the number of bits is a run-time input, compiled at its largest.

    Args:
        most_bits: largest H used with a reuse, by that reuse ``with_bits(1)``.
    """
    return {layer: reuse and reuse.with_bits(most_bits.get(reuse.with_bits(1), reuse.setting.H))
            for layer, reuse in stage.items()}  # fmt: skip


def reuse_text(reuse: LayerReuse | None) -> str:
    """``pixel L=16 H=8 averaged``, or ``dense``."""
    if reuse is None:
        return "dense"
    setting = reuse.setting
    length = "" if setting.granularity == "row" else f" L={setting.L}"
    table = "" if setting.table == "float32" else f" {setting.table}"
    gradient = "forward only" if reuse.forward_only else reuse.input_gradient
    words = f"{setting.granularity}{length} H={setting.H}{table} {gradient}"
    words += " stream" if reuse.stream else ""
    return f"{words}, backward only" if reuse.backward_only else words


def stage_text(stage: Stage) -> str:
    """``conv2 pixel L=16 H=8 averaged; the rest dense``."""
    reusing = [f"{layer} {reuse_text(reuse)}" for layer, reuse in stage.items() if reuse is not None]
    return "; ".join(reusing) if reusing else "all layers dense"


def reuse_record(reuse: LayerReuse | None) -> dict[str, Any] | None:
    """A reuse as JSON."""
    return None if reuse is None else asdict(reuse)
