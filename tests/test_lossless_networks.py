"""Whole networks with every layer lossless: the bits of dense, on data that repeat, do not, or do so in some images."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from onnx import helper
from onnx_graphs import make_model, save
from tvm import relax

from adr_tvm._tvm import cpu_target
from adr_tvm.build import build_plan, canonical_module
from adr_tvm.frontend.onnx_model import check_model
from adr_tvm.passes import pipeline
from adr_tvm.passes.lower_operators import LowerOperators
from adr_tvm.passes.mark_candidates import CandidateRules, find_candidates
from adr_tvm.plan import ReusePlan, uniform_plan
from adr_tvm.settings import ReuseSetting

TARGET = cpu_target()
SIDE = 22
THREADS = (1, 2, 3)


class _Graph:
    """A network put together node by node; tensors are named t0, t1, ..."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.weights = [], {}

    def add(self, kind: str, *inputs: str, **attributes) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], f"{kind}_{name}", **attributes))
        return name

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        scale = max(1, int(np.prod(shape[1:]))) ** 0.5
        self.weights[name] = (self.rng.standard_normal(shape) / scale).astype(np.float32)
        return name

    def conv(self, x: str, C: int, M: int, kernel: int = 3, groups: int = 1, **attributes) -> str:
        attributes.setdefault("pads", [kernel // 2] * 4)
        weights = self.weight(M, C // groups, kernel, kernel), self.weight(M)
        return self.add("Conv", x, *weights, group=groups, kernel_shape=[kernel] * 2, **attributes)


def _residual(g: _Graph) -> list[str]:
    """Sums of activations with the same ids (two 1x1 behind one tensor) and with other ids (a 3x3 beside a skip)."""
    x = g.add("Relu", g.conv("x", 3, 8))
    same = g.add("Relu", g.add("Add", g.conv(x, 8, 8, 1), g.conv(x, 8, 8, 1)))
    y = g.conv(g.add("Relu", g.conv(same, 8, 8)), 8, 8)
    y = g.add("Relu", g.add("Add", y, same))
    y = g.conv(y, 8, 16, strides=[2, 2])
    flat = g.add("Flatten", g.add("GlobalAveragePool", g.add("Relu", y)))
    return [g.add("Gemm", flat, g.weight(5, 16), g.weight(5), transB=1)]


def _branches(g: _Graph) -> list[str]:
    """Concatenations of maps of which one is finer, of which none is, and with one that has none; two results."""
    x = g.add("MaxPool", g.add("Relu", g.conv("x", 3, 8)), kernel_shape=[2, 2], strides=[2, 2])
    narrow, wide = g.conv(x, 8, 6, 1), g.conv(x, 8, 17)
    first = g.add("Concat", narrow, wide, axis=1)
    scaled = g.add("Mul", g.add("Sigmoid", first), g.weight(1, 23, 1, 1))
    dilated = g.conv(scaled, 23, 5, dilations=[2, 2], pads=[2, 2, 2, 2])
    smooth = g.add("AveragePool", scaled, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    second = g.add("Concat", g.conv(scaled, 23, 4), dilated, smooth, axis=1)
    return [g.conv(second, 32, 4, 1), scaled]


def _depthwise(g: _Graph) -> list[str]:
    x = g.add("Relu", g.conv("x", 3, 8, strides=[2, 2]))
    x = g.add("Relu", g.conv(x, 8, 8, groups=8))
    x = g.add("LeakyRelu", g.conv(x, 8, 12, 1), alpha=0.1)
    x = g.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    return [g.conv(x, 12, 4, pads=[0, 1, 1, 0])]


def _random(g: _Graph) -> list[str]:
    """Six operators in a row, drawn by chance."""
    x, C = g.conv("x", 3, 7, kernel=int(g.rng.choice([1, 3, 5]))), 7
    for kind in g.rng.choice(["conv", "conv", "point", "pool", "relu", "tanh", "twice", "strided"], 6):
        if kind == "conv":
            M = int(g.rng.integers(3, 20))
            x, C = g.conv(x, C, M, pads=[int(v) for v in g.rng.integers(0, 3, 4)]), M
        elif kind == "point":
            x, C = g.conv(x, C, 9, 1), 9
        elif kind == "strided":
            x, C = g.conv(x, C, 5, 1, strides=[2, 1]), 5
        elif kind == "pool":
            x = g.add("MaxPool", x, kernel_shape=[3, 2], pads=[1, 0, 1, 1])
        elif kind == "twice":
            x, C = g.add("Concat", x, g.conv(x, C, 6), axis=1), C + 6
        else:
            x = g.add("Relu" if kind == "relu" else "Tanh", x)
    return [g.conv(x, C, 4, 1)]


NETWORKS = {"residual": _residual, "branches": _branches, "depthwise": _depthwise, "random": _random}
SCOPES = {"residual": ("batch", 4), "branches": ("image", "N"), "depthwise": ("batch", "N"), "random": ("image", 4)}
_compiled: dict[str, tuple[tvm.runtime.Executable, list]] = {}


@pytest.fixture
def compiled(tmp_path):
    """A network by name with all layers lossless, and its layers; compiled once."""

    def get(name: str) -> tuple[tvm.runtime.Executable, list]:
        if name not in _compiled:
            _compiled[name] = _built(name, tmp_path, *SCOPES[name])
        return _compiled[name]

    return get


def _planned(name: str, folder: Path, scope: str, batch: int | str) -> tuple[tvm.IRModule, ReusePlan, list]:
    g = _Graph(len(name))
    outputs = NETWORKS[name](g)
    ranks = {node.output[0]: 2 if node.op_type == "Gemm" else 4 for node in g.nodes}
    shapes = {y: [f"{y}_{axis}" for axis in range(ranks[y])] for y in outputs}
    checked = check_model(save(make_model(g.nodes, {"x": [batch, 3, SIDE, SIDE]}, shapes, g.weights), folder))
    mod = canonical_module(checked, TARGET)
    layers = [c for c in find_candidates(mod["main"], "main", CandidateRules()) if not c.reason]
    setting = ReuseSetting(granularity="row", hash="exact", L=1, H=1, scope=scope)  # type: ignore[arg-type]
    plan = uniform_plan(
        [c.layer for c in layers],
        setting,
        reason="test",
        model_sha256=checked.sha256,
        target="cpu",
        seed=0,
        metric="none",
    )
    return mod, plan, layers


def _built(name: str, folder: Path, scope: str, batch: int | str) -> tuple[tvm.runtime.Executable, list]:
    mod, plan, layers = _planned(name, folder, scope, batch)
    return build_plan(mod, plan, TARGET), layers


def _images() -> np.ndarray:
    """[4, 3, SIDE, SIDE]: a blank page with marks, stripes, noise, tiles."""
    rng = np.random.default_rng(1)
    x = np.full((4, 3, SIDE, SIDE), 0.5, np.float32)
    for top, left in ((2, 3), (11, 9), (16, 2)):
        x[0, :, top : top + 3, left : left + 5] = rng.standard_normal((3, 3, 5))
    x[0, :, 11:14, 2:7] = x[0, :, 2:5, 3:8]
    x[1, :, ::2] = 0
    x[2] = rng.standard_normal(x[2].shape)
    x[3] = np.tile(rng.standard_normal((3, 4, 4)), (1, 6, 6))[:, :SIDE, :SIDE]
    return x


def _bits(result) -> list[bytes]:
    return [y.numpy().tobytes() for y in (result if hasattr(result, "__len__") else [result])]


@pytest.mark.parametrize("name", NETWORKS)
def test_same_bits_as_dense(compiled, name):
    executable, layers = compiled(name)
    machine, x = relax.VirtualMachine(executable, tvm.cpu()), _images()
    spoilt = x.copy()
    spoilt[0, 1, 20, 19] = np.nan
    for images in (x, spoilt, np.roll(x, 1, axis=0), np.random.default_rng(2).standard_normal(x.shape)):
        given = tvm.runtime.tensor(images.astype(np.float32))
        y, counts = machine["main_counts"](given)
        assert _bits(y) == _bits(machine["dense"](given)) == _bits(machine["main"](given))
        _check_counts(images.astype(np.float32), layers, [c.numpy() for c in counts], SCOPES[name][0])
    assert not any(c.numpy()[:, 1].any() for c in counts), "noise runs without a lossless layer"


def _check_counts(x: np.ndarray, layers: list, counts: list[np.ndarray], scope: str) -> None:
    units = len(x) if scope == "image" else 1
    for layer, found in zip(layers, counts, strict=True):
        assert found.shape == (units, 2)
        rows = layer.geometry.rows * len(x) // units
        reused = found[found[:, 1] != 0, 0]
        assert ((reused >= 1) & (reused <= rows)).all()
    expected = _distinct_windows(x, layers[0].geometry, units)
    reused = counts[0][:, 1] != 0
    np.testing.assert_array_equal(counts[0][reused, 0], expected[reused])


def _distinct_windows(x: np.ndarray, geometry, units: int) -> np.ndarray:
    """Distinct im2col rows of each unit; each that holds NaN counts."""
    top, left, bottom, right = geometry.padding
    padded = np.pad(x, [(0, 0), (0, 0), (top, bottom), (left, right)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (geometry.KH, geometry.KW), axis=(2, 3))
    windows = windows[:, :, :: geometry.strides[0], :: geometry.strides[1]].transpose(0, 2, 3, 1, 4, 5)
    rows = windows.reshape(units, -1, geometry.K)
    finite = np.isfinite(rows).all(axis=2)
    return np.array([len({r.tobytes() for r in unit[f]}) + (~f).sum() for unit, f in zip(rows, finite, strict=True)])


def test_sums_are_known_by_pairs_of_ids(tmp_path):
    mod, plan, _ = _planned("residual", tmp_path, "image", 2)
    script = LowerOperators(TARGET)(pipeline.run(pipeline.rewrite(plan), mod, TARGET)).script(show_meta=False)
    body = script[script.index("def main(") :].partition("def main_counts(")[0]
    # The first sum has one set of ids on both sides; data are hashed at the input and behind the global pooling.
    counts = {name: body.count(f"cls.adr_{name}") for name in ("row_pair(", "row_pair,", "row_cluster")}
    assert counts == {"row_pair(": 0, "row_pair,": 1, "row_cluster": 2}


def test_the_number_of_threads_never_changes_a_byte(compiled, tmp_path):
    executable, _ = compiled("branches")
    executable.export_library(str(tmp_path / "library.so"))
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, tmp_path / "library.so"],
            env=os.environ | {"TVM_NUM_THREADS": str(threads), "TVM_BIND_THREADS": "0"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads in THREADS
    ]
    found = {process.communicate(timeout=900)[0] for process in processes}
    assert found == {_digest(relax.VirtualMachine(executable, tvm.cpu()))}


def _digest(machine: relax.VirtualMachine) -> str:
    y, counts = machine["main_counts"](tvm.runtime.tensor(_images()))
    return hashlib.sha256(b"".join(_bits(y) + _bits(counts))).hexdigest()


if __name__ == "__main__":
    print(_digest(relax.VirtualMachine(tvm.runtime.load_module(sys.argv[1]), tvm.cpu())), end="")
