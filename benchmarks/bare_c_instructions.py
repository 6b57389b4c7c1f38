"""Instructions of single layers in bare C under emulation, and the terms of ``adr_tvm.bare_c.cost`` fitted to them.

    python -m benchmarks.bare_c_instructions

Layers have random weights and planes, and images of a few kinds of noisy pixels; needs the packages gcc-arm-none-eabi,
libnewlib-arm-none-eabi and qemu-system-arm. Takes a few minutes.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np

from adr_tvm.activation import Activation
from adr_tvm.bare_c.cost import INSTRUCTIONS, dense_work, reuse_work
from adr_tvm.bare_c.emit import CNetwork, write_c
from adr_tvm.bare_c.graph import Graph, Operator, Tensor
from adr_tvm.bench.least_squares import nonnegative_least_squares
from adr_tvm.geometry import ConvGeometry
from adr_tvm.settings import ReuseSetting
from benchmarks.bare_c import run_on_board

COUNTED = ("products", "single products", "bits", "copies")  # in the code of inner loops
LAYERS = (
    ConvGeometry(14, 14, 64, 5, 5, 64),
    ConvGeometry(16, 16, 32, 3, 3, 32, padding=(1, 1, 1, 1)),
    ConvGeometry(8, 8, 64, 3, 3, 64, padding=(1, 1, 1, 1)),
    ConvGeometry(32, 32, 16, 3, 3, 16, padding=(1, 1, 1, 1)),
)
PIXEL, SEGMENT = ((4, 4), (8, 8), (16, 8), (32, 6), (16, 12)), ((9, 6), (10, 10), (18, 4), (25, 6))
SETTINGS = (
    None,
    *(ReuseSetting("pixel", L=L, H=H, hash="gaussian") for L, H in PIXEL),
    *(ReuseSetting("segment", L=L, H=H, hash="gaussian") for L, H in SEGMENT),
    ReuseSetting("row", H=8, hash="gaussian"),
    ReuseSetting("pixel", L=16, H=8, hash="gaussian", gain=True),
)


def layer(g: ConvGeometry, setting: ReuseSetting | None, rng: np.random.Generator) -> CNetwork:
    """One layer as a network."""
    constants = {"weight": rng.standard_normal((g.KH, g.KW, g.C, g.M)), "bias": rng.standard_normal(g.M)}
    attributes: dict = {"geometry": g, "activation": Activation.relu()}
    if setting is not None:
        S = g.segments(setting)
        constants |= {"planes": rng.standard_normal((S, g.vector_length(setting), setting.H))}
        constants |= {"thresholds": rng.standard_normal((S, setting.H))}
        attributes["setting"] = setting
    kind = "conv2d" if setting is None else "reuse_conv2d"
    floats = {name: array.astype(np.float32) for name, array in constants.items()}
    tensors = {"x": Tensor("x", (1, g.H, g.W, g.C)), "y": Tensor("y", (1, g.OH, g.OW, g.M))}
    graph = Graph(tensors, (Operator(kind, "layer", ("x",), "y", floats, attributes),), ("x",), ("y",))
    return CNetwork(graph, "layer", "", ("x",), ("y",))


def image(g: ConvGeometry, rng: np.random.Generator) -> np.ndarray:
    """Twelve kinds of pixels, each a little brighter or darker."""
    kinds = rng.standard_normal((12, g.C))[rng.integers(0, 12, (g.H, g.W))]
    return (kinds * (1 + 0.1 * rng.standard_normal((g.H, g.W, 1)))).astype(np.float32)[None]


def main() -> None:
    """Print predicted and counted instructions of every layer, and the fitted terms."""
    rng = np.random.default_rng(0)
    work, counted = [], []
    for g, setting in itertools.product(LAYERS, SETTINGS):
        with tempfile.TemporaryDirectory() as folder:
            write_c(Path(folder), layer(g, setting, rng))
            (instructions,), _, counts = run_on_board(Path(folder), image(g, rng), "cortex-m4")
        clusters = float(counts[0]) if setting is not None else 0.0
        work.append(dense_work(g) if setting is None else reuse_work(g, setting, clusters))
        counted.append(instructions)
        predicted = sum(INSTRUCTIONS[term] * units for term, units in work[-1].items())
        name = "dense" if setting is None else f"{setting.granularity} L={setting.L} H={setting.H}"
        ratio = predicted / instructions
        print(f"{g.H}x{g.C}, {g.KH}x{g.KW}, {g.M}: {name:20} {instructions / 1e6:7.2f} 10^6, predicted {ratio:.2f}x")
    terms = [term for term in INSTRUCTIONS if term not in COUNTED]
    known = np.array([sum(INSTRUCTIONS[term] * each.get(term, 0.0) for term in COUNTED) for each in work])
    rows = np.array([[each.get(term, 0.0) for term in terms] for each in work])
    total = np.array(counted, float)
    found = nonnegative_least_squares(rows / total[:, None], (total - known) / total)
    for term, value in zip(terms, found, strict=True):
        print(f"{term}: {value:.1f} fitted, {INSTRUCTIONS[term]} in use")


if __name__ == "__main__":
    main()
