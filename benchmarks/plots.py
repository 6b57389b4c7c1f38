"""How the plots of the benchmarks look."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adr_tvm.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind tell apart.
OURS, DENSE, ONNXRUNTIME, INT8 = "#0072B2", "#009E73", "#555555", "#D55E00"
STYLE = {
    "figure.dpi": 150,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
}


def prepare_folder(folder: Path) -> None:
    """See that plots can be drawn into ``folder``; makes it.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        UsageError: the folder cannot be written.
    """
    try:
        import matplotlib
    except ImportError:
        raise MissingDependencyError("--plot needs matplotlib: pip install 'adr-tvm[bench]'") from None
    matplotlib.use("Agg")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--plot {folder}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--plot {folder} cannot be written")


@contextmanager
def panels(path: Path, titles: list[str], heading: str) -> Iterator[list[Axes]]:
    """A figure of panels side by side, with equal y axes; written to ``path`` (PNG) at the end."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        figure, grid = plt.subplots(
            1, len(titles), figsize=(0.6 + 4.4 * len(titles), 3.8), sharey=True, squeeze=False, layout="constrained"
        )
        axes: list[Any] = list(grid[0])
        for each, title in zip(axes, titles, strict=True):
            each.set_title(title, fontsize=10, color="#333333")
        figure.suptitle(heading, fontsize=11, fontweight="bold", x=0.01, ha="left")
        yield axes
        figure.savefig(path)
        plt.close(figure)


def legend_below(axes: list[Axes]) -> None:
    """One legend for all panels, where it hides nothing."""
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2 * len(axes)))
