"""Gradients of convolutions that skip zeros beside the dense kernels, by the share of dZ that is not zero, one thread.

    python -m benchmarks.nonzero_gradients [--layer NAME ...] [--json FILE]

dZ is normal noise of which each entry is kept with the probability *not zero*; beyond a quarter the dense kernels run.
*list* is what finding the entries takes, for both gradients together. All kernels of a row take turns; times are CPU
time of the thread, medians; ratios are the dense kernel's time by that of the skipping one, without the list.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from adr_tvm.report.formats import geometry_text
from benchmarks.command import Command, Settings
from benchmarks.conv_gradients import LAYERS
from benchmarks.processes import in_process

NAMES = ("cifarnet-conv1", "cifarnet-conv2", "alexnet-conv2", "alexnet-conv3", "vgg-conv2_2", "vgg-conv5")
SHARES = (0.03, 0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Row:
    """One layer and share.

    Attributes:
        layer, shape, batch: what it is.
        share: of dZ's entries that are not zero.
        list_ms: of ``list_nonzeros``.
        weight_ms, input_ms: dense and skipping, milliseconds.
    """

    layer: str
    shape: str
    batch: int
    share: float
    list_ms: float
    weight_ms: tuple[float, float]
    input_ms: tuple[float, float]


def measure(names: list[str], seconds: float) -> list[Row]:
    """Rows of the named layers, in this process."""
    import tvm

    from adr_tvm._tvm import cpu_target
    from adr_tvm.schedules.input_gradient import input_gradient, pack_phase_weights, packed_floats, phases
    from adr_tvm.schedules.nonzero_input_gradient import nonzero_input_gradient
    from adr_tvm.schedules.nonzero_lists import list_nonzeros, nonzero_lists
    from adr_tvm.schedules.nonzero_weight_gradient import nonzero_weight_gradient
    from adr_tvm.schedules.register_tile import isa_of
    from adr_tvm.schedules.tuned import conv_schedule, weight_gradient_schedule
    from adr_tvm.schedules.weight_gradient import weight_gradient
    from adr_tvm.tuning.trial import compiled

    target, rng, rows = cpu_target(), np.random.default_rng(0), []
    for name in names:
        g, batch = LAYERS[name]
        found, isa = phases(g), isa_of(target)
        schedules = tuple(None if p.geometry is None else conv_schedule(target, p.geometry, batch) for p in found)
        widths = tuple(1 if s is None else s.tile.NR for s in schedules)
        floats = sum(packed_floats(phase, NR) for phase, NR in zip(found, widths, strict=True))
        by_weights, lists = weight_gradient_schedule(target, g, batch), nonzero_lists(g, batch)
        kernels = {
            "list": list_nonzeros(lists),
            "pack": pack_phase_weights(g, widths),
            "dense dW": weight_gradient(g, batch, by_weights),
            "dW": nonzero_weight_gradient(g, batch, by_weights, isa),
            "dense dX": input_gradient(g, batch, schedules),
            "dX": nonzero_input_gradient(g, batch, schedules, isa),
        }
        run = {key: compiled(func, target) for key, func in kernels.items()}
        x = tvm.runtime.tensor(rng.standard_normal((batch, g.H, g.W, g.C), np.float32))
        w = tvm.runtime.tensor(rng.standard_normal((g.KH, g.KW, g.C, g.M), np.float32))
        packed, dw, dx = (tvm.runtime.tensor(np.zeros(shape, np.float32)) for shape in (floats, w.shape, x.shape))
        run["pack"](w, packed)
        for share in SHARES:
            shape = (batch, g.OH, g.OW, g.M)
            kept = rng.standard_normal(shape, np.float32) * (rng.random(shape) < share)
            dz = tvm.runtime.tensor(kept.astype(np.float32))
            parts = [tvm.runtime.tensor(np.zeros(*each)) for each in lists.shapes]
            times = _medians(
                {
                    "list": functools.partial(run["list"], dz, *parts),
                    "dense dW": functools.partial(run["dense dW"], x, dz, dw),
                    "dW": functools.partial(run["dW"], x, dz, parts[0], *parts[4:], dw),
                    "dense dX": functools.partial(run["dense dX"], dz, packed, dx),
                    "dX": functools.partial(run["dX"], dz, w, packed, *parts[:4], dx),
                },
                seconds,
            )
            pairs = [(times[f"dense {gradient}"], times[gradient]) for gradient in ("dW", "dX")]
            rows.append(Row(name, geometry_text(g), batch, share, times["list"], *pairs))
    return rows


def _medians(runs: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Milliseconds of CPU time, in turns after a first one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.thread_time()
    while min(map(len, times.values())) < 6 or time.thread_time() - begin < seconds:
        for name, each in runs.items():
            start = time.thread_time()
            each()
            times[name].append(1e3 * (time.thread_time() - start))
    return {name: float(np.median(found[1:])) for name, found in times.items()}


def run(settings: Settings) -> list[Row]:
    """All rows; one thread, whatever is asked for."""
    return in_process(measure, 1, list(settings.chosen or NAMES), settings.seconds)


def table(rows: list[Row]) -> list[list[str]]:
    """A line for each layer and share."""
    return [
        [
            f"{row.layer} {row.batch} x {row.shape}",
            f"{row.share:.0%}",
            f"{row.list_ms:.1f}",
            *(f"{value:.1f}" for value in row.weight_ms),
            f"{row.weight_ms[0] / row.weight_ms[1]:.1f}",
            *(f"{value:.1f}" for value in row.input_ms),
            f"{row.input_ms[0] / row.input_ms[1]:.1f}",
        ]
        for row in rows
    ]


COMMAND = Command(
    name="nonzero_gradients",
    description=__doc__,
    headings=["layer", "not zero", "list ms", "dW dense ms", "skipping", "ratio", "dX dense ms", "skipping", "ratio"],
    choices=list(NAMES),
    choice="layer",
    run=run,
    table=table,
)

if __name__ == "__main__":
    COMMAND.main()
