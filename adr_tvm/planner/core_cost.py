"""The cost model of a foreign target: of a file measured there, else an estimate from what its core is known to have.

The estimate takes the coefficients of the server core that ``TERMS`` was fitted on and scales them: what fills a vector
unit by multiply-adds per second, all else by clock and by the cycles such work takes (``adr_tvm.targets.Core``).
Nothing of that was measured on a board: it orders settings, and its milliseconds are rough. Bare C has kernels, and so
a model, of its own (``adr_tvm/bare_c/cost.py``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from adr_tvm.errors import DataError, UsageError
from adr_tvm.geometry import ConvGeometry
from adr_tvm.planner.cost import TERMS, VECTORISED, CostModel, default_seconds, dense_work
from adr_tvm.planner.cost_file import FIT_HINT, FittedModel
from adr_tvm.targets import Core, TargetEntry

FITTED = Core(4.1, 8, 1.0)  # Zen 5 server core: two multiply-adds of 512 bits in a cycle


@dataclass(frozen=True)
class HalfCost(CostModel):
    """Dense layers compute in fp16, twice as many in a vector; those that reuse stay fp32."""

    @property
    def sha256(self) -> str:
        """See ``CostModel``."""
        return hashlib.sha256(f"{super().sha256} fp16".encode()).hexdigest()

    def dense_seconds(self, geometry: ConvGeometry, images: int) -> float:
        """See ``CostModel``."""
        work = dense_work(geometry, images, self.threads)
        return self.predicted({**work, "dense flops": work["dense flops"] / 2})


def core_seconds(core: Core) -> dict[str, float]:
    """Coefficients of a core, seconds per unit by term."""
    vectors = FITTED.ghz * FITTED.multiply_adds / (core.ghz * core.multiply_adds)
    others = FITTED.ghz / core.ghz * core.slowdown / FITTED.slowdown
    return {name: value * (vectors if name in VECTORISED else others) for name, value in TERMS.items()}


def foreign_cost_model(
    entry: TargetEntry, given: str | Path | None, threads: int, lanes: int, half: bool = False
) -> CostModel:
    """The model to predict a foreign target's times with.

    Args:
        entry: the target.
        given: a file that ``adr-bench --fit-machine`` wrote there; None: an estimate.
        threads: that the kernels will run on.
        lanes: floats in a vector of the target.
        half: dense layers compute in fp16, twice as many in a vector; those that reuse stay fp32.

    Raises:
        UsageError: the file does not exist.
        DataError: it is damaged, or of another version of adr_tvm.
    """
    if half:
        model = foreign_cost_model(entry, given, threads, lanes)
        return HalfCost(model.seconds, threads, f"{model.source}, dense layers in fp16")
    if given is None and entry.core is None:
        return CostModel(default_seconds(lanes), threads, f"defaults for vectors of {lanes} floats")
    if given is None:
        assert entry.core is not None
        return CostModel(core_seconds(entry.core), threads, f"estimated for {entry.mcpu} at {entry.core.ghz} GHz")
    if not Path(given).exists():
        raise UsageError(f"--cost-model {given} does not exist; {FIT_HINT}: run it on the board, and take the file")
    fitted = FittedModel.load(Path(given))
    if set(fitted.seconds) != set(TERMS):
        raise DataError(f"--cost-model {given} is of another version of adr_tvm: fit it again on the board")
    return CostModel(fitted.seconds, threads, f"fitted to {fitted.cpu}")
