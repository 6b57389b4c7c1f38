"""What the user asks of a search."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MIN_PSNR = 40.0  # dB; errors of that size are not seen in a photograph


@dataclass(frozen=True)
class SearchOptions:
    """Fields are named as the options of ``adr-compile``; None leaves the choice to the search.

    Attributes:
        metric: ``auto``, ``top1``, ``agreement``, ``nmse`` or ``psnr``.
        max_drop: budget in the metric's unit (``nmse``: a ceiling).
        min_psnr: floor in dB for ``psnr``.
        lossless: only `exact` rows.
        granularity, L, H, hash, scope: what the search is limited to.
        seed: of everything random.
        time_budget: seconds the search should take: it tries fewer layers and looks at fewer images to keep to it.
            Compiling the dense network and the result takes its time all the same.
    """

    metric: str = "auto"
    max_drop: float = 0.01
    min_psnr: float | None = None
    lossless: bool = False
    granularity: str | None = None
    L: int | None = None
    H: int | None = None
    hash: str | None = None
    scope: str | None = None
    seed: int = 0
    time_budget: float | None = None

    def budget(self, metric: str) -> float:
        """The budget in the unit of a metric."""
        if metric == "psnr":
            return DEFAULT_MIN_PSNR if self.min_psnr is None else self.min_psnr
        return self.max_drop
