"""What the layers do in one stage of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from adr_tvm.settings import ReuseSetting

InputGradient = Literal["averaged", "straight-through"]
INPUT_GRADIENTS: tuple[str, ...] = get_args(InputGradient)


@dataclass(frozen=True)
class LayerReuse:
    """How one layer reuses in training.

    Attributes:
        setting: as at inference; without ``max_clusters`` and ``gain``, tables float32.
        input_gradient: ``averaged``: one input gradient for each cluster, given to all members (Ning, Guan, Shen, ICDE
            2019); ``straight-through``: dX = dY W^T, as if there were no clusters.
    """

    setting: ReuseSetting
    input_gradient: InputGradient = "averaged"

    def __post_init__(self) -> None:
        if self.input_gradient not in INPUT_GRADIENTS:
            raise ValueError(f"input_gradient is {self.input_gradient!r}, expected one of {', '.join(INPUT_GRADIENTS)}")
        if self.setting.max_clusters is not None or self.setting.gain:
            raise ValueError("max_clusters and gain are for inference")

    def compiled(self, bits: int) -> LayerReuse:
        """The form that is compiled for all numbers of bits up to ``bits``: fewer are set at run time."""
        return replace(self, setting=replace(self.setting, H=bits))


Stage = Mapping[str, LayerReuse]  # by layer; layers it does not name are dense
