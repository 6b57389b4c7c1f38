"""Clusters that persist over batches, against the reference, batch after batch."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import tvm
from kernel_harness import GEOMETRIES, Layer, Tensors, close, sample_input, sample_tensors
from reuse_gradients import ids_of
from reuse_gradients import run as run_alone
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import cpu_target, tensor_type
from adr_tvm.activation import Activation
from adr_tvm.build import build_module
from adr_tvm.geometry import dense_geometry
from adr_tvm.gradients import register_all, reuse
from adr_tvm.reference import reuse_conv2d
from adr_tvm.reference_gradients import activation_gradient, reuse_conv2d_gradients
from adr_tvm.reference_stream import ReferenceStream
from adr_tvm.settings import ReuseSetting
from adr_tvm.stream_table import StreamTable, check_streaming

BATCH, BATCHES = 3, 4
PIXEL = ReuseSetting("pixel", L=8, H=4, scope="batch")
SEGMENT = ReuseSetting("segment", L=10, H=6, scope="batch")


@functools.cache
def _machine(layer: Layer, input_gradient: str, slots: int) -> relax.VirtualMachine:
    """``main(x, w, bias, planes, thresholds, table, now, dy)`` -> (y, ids, centroids, streamed, dx, dw, dbias)."""
    register_all()
    g, setting = layer.geometry, layer.setting
    S, L, dense = g.segments(setting), g.vector_length(setting), layer.rank < 4
    shapes = {
        "x": [BATCH, g.C] if dense else [BATCH, g.H, g.W, g.C],
        "w": [g.C, g.M] if dense else [g.KH, g.KW, g.C, g.M],
        "bias": [g.M],
        "planes": [S, L, setting.H],
        "thresholds": [S, setting.H],
    }
    types = {name: tensor_type(shape) for name, shape in shapes.items()}
    parts = StreamTable.of(g, setting, slots).parts
    types |= {f"table_{name}": tensor_type(shape, dtype) for name, (shape, dtype) in parts.items()}
    types |= {"now": tensor_type([1], "int32"), "dy": tensor_type([BATCH, g.M] if dense else [BATCH, g.OH, g.OW, g.M])}
    variables = [relax.Var(name, type_) for name, type_ in types.items()]
    x, w, bias, planes, thresholds, *stream, dy = variables
    bb = relax.BlockBuilder()
    with bb.function("main", variables):
        if dense:
            call = ops.dense(x, w, bias, name="layer", activation=layer.activation)
        else:
            shape = {"strides": g.strides, "padding": g.padding, "dilation": g.dilation}
            call = ops.conv2d(x, w, bias, name="layer", activation=layer.activation, **shape)
        call = ops.with_reuse(
            call, setting, planes, thresholds, training=True, input_gradient=input_gradient, stream=stream
        )
        result = bb.emit(call)
        others = [bb.emit(relax.op.zeros(t.shape, t.dtype)) for t in result.ty.fields[1:]]
        gradients = reuse._gradient(result, call, relax.Tuple([dy, *others]), bb)
        forward = [bb.emit(relax.TupleGetItem(result, i)) for i in (0, 2, 3, 4)]
        bb.emit_func_output(relax.Tuple([*forward, *gradients[:3]]))
    return relax.VirtualMachine(build_module(bb.get(), cpu_target(layer.mcpu)), tvm.cpu())


class Stream:
    """The kernels with their table."""

    def __init__(self, layer: Layer, tensors: Tensors, slots: int, input_gradient: str = "averaged") -> None:
        self.layer, self.tensors, self.now = layer, tensors, 0
        self._main = _machine(layer, input_gradient, slots)["main"]
        parts = StreamTable.of(layer.geometry, layer.setting, slots).parts
        self._table = [tvm.runtime.tensor(np.zeros(*each)) for each in parts.values()]

    def run(self, x: np.ndarray, dy: np.ndarray) -> list[np.ndarray]:
        """The next batch."""
        self.now += 1
        g, t, dense = self.layer.geometry, self.tensors, self.layer.rank < 4
        arrays = [
            x.reshape(len(x), g.C) if dense else x,
            t.w.reshape(g.C, g.M) if dense else t.w,
            t.bias,
            t.planes,
            t.thresholds,
        ]
        now, gradient = np.array([self.now], np.int32), dy.reshape(len(x), g.M) if dense else dy
        before, after = ([tvm.runtime.tensor(a) for a in part] for part in (arrays, (now, gradient)))
        y, ids, centroids, streamed, dx, dw, db = (a.numpy() for a in self._main(*before, *self._table, *after))
        return [y.reshape(dy.shape), ids, centroids, streamed, dx.reshape(x.shape), dw.reshape(t.w.shape), db]

    @property
    def table(self) -> list[dict[int, tuple[np.ndarray, int]]]:
        """As the reference has it."""
        centroids, keys, used = (part.numpy() for part in self._table)
        return [
            {int(keys[s, i]): (centroids[s, i], int(used[s, i])) for i in np.flatnonzero(used[s])}
            for s in range(len(used))
        ]


def samples(layer: Layer, batches: int = BATCHES):
    """Batches (x, dy) of one and the same distribution."""
    g = layer.geometry
    for seed in range(batches):
        rng = np.random.default_rng(100 + seed)
        x = sample_input(g, BATCH, seed=seed)
        yield x, rng.standard_normal((BATCH, g.OH, g.OW, g.M)).astype(np.float32)


def check(layer: Layer, slots: int = 4096, input_gradient: str = "averaged", spoil=None, tensors=None) -> np.ndarray:
    """Some batches, each compared with the reference; returns clusters taken over, [batches, S]."""
    g, setting, tensors = layer.geometry, layer.setting, tensors or sample_tensors(layer)
    kernels = Stream(layer, tensors, slots, input_gradient)
    oracle = ReferenceStream(tensors.planes, tensors.thresholds, slots)
    L, taken = g.vector_length(setting), []
    for x, dy in samples(layer):
        if spoil is not None:
            spoil(x)
        y, ids, centroids, streamed, dx, dw, db = kernels.run(x, dy)
        expected = reuse_conv2d(
            x, tensors.w, tensors.bias, g, setting, tensors.planes, tensors.thresholds, layer.activation, oracle
        )
        np.testing.assert_array_equal(ids_of(layer, ids, BATCH), expected.ids)
        close(y, expected.y)
        for s, table in enumerate(expected.centroids[0]):
            close(centroids[0, s, : len(table), :L], table)
        np.testing.assert_array_equal(streamed, oracle.streamed)
        for found, known in zip(kernels.table, oracle.tables, strict=True):
            assert {key: used for key, (_, used) in found.items()} == {key: used for key, (_, used) in known.items()}
            for key, (centroid, _) in found.items():
                close(centroid, known[key][0])
        dz = activation_gradient(y, dy, layer.activation)
        own = expected.ids, input_gradient, expected.centroids
        gradients = reuse_conv2d_gradients(x, tensors.w, dz, g, setting, *own)
        close(dx, gradients.x)
        close(dw, gradients.w)
        close(db, gradients.bias)
        taken.append(oracle.streamed.copy())
    return np.array(taken)


@pytest.mark.parametrize(
    ("geometry", "setting", "input_gradient"),
    [
        ("3x3", PIXEL, "averaged"),
        ("asymmetric", replace(PIXEL, L=16, H=13), "straight-through"),
        ("asymmetric", SEGMENT, "averaged"),
        ("5x5_stride2", replace(SEGMENT, H=13), "averaged"),
    ],
)
def test_batch_after_batch(geometry, setting, input_gradient):
    taken = check(Layer(GEOMETRIES[geometry], setting, Activation.relu()), input_gradient=input_gradient)
    assert (taken[0] == 0).all() and taken[1:].all()


def test_a_dense_layer():
    assert check(Layer(dense_geometry(1, 37, 21), PIXEL, Activation.relu(), rank=2))[1:].any()


@pytest.mark.parametrize("setting", [PIXEL, replace(SEGMENT, H=13)])
def test_a_full_table_keeps_those_used_last(setting):
    """More keys than places: in a batch alone, and over batches."""
    layer = Layer(GEOMETRIES["asymmetric"], setting, Activation.relu())
    for slots in (1, 5):
        assert check(layer, slots).max() <= slots
    whole = Stream(layer, sample_tensors(layer), 4096)
    for x, dy in samples(layer):
        whole.run(x, dy)
    assert max(map(len, whole.table)) > 5


def test_vectors_without_a_key_are_never_kept():
    """NaN, Inf and zeros; a batch with them leaves the others as they are."""

    def spoil(x):
        x[1, 2, 3, 4], x[0, 0, 0, 12], x[2, 1] = np.nan, np.inf, 0

    layer, seen = Layer(GEOMETRIES["3x3"], PIXEL, Activation()), []
    check(layer, spoil=spoil)
    kernels = Stream(layer, sample_tensors(layer), 4096)
    for x, dy in samples(layer):
        spoil(x)
        kernels.run(x, dy)
        seen += [entry for table in kernels.table for entry in table.items()]
    assert all(key < 2**PIXEL.H and np.isfinite(centroid).all() for key, (centroid, _) in seen)


def test_fewer_bits_than_compiled():
    layer = Layer(GEOMETRIES["3x3"], PIXEL, Activation.relu())
    tensors = sample_tensors(layer)
    off = tensors.thresholds.copy()
    off[:, 2:] = np.inf
    assert check(layer, tensors=replace(tensors, thresholds=off)).max() <= 4


@pytest.mark.parametrize("setting", [PIXEL, SEGMENT])
def test_the_first_batch_is_that_without_a_table(setting):
    """Bit by bit, forward and backward."""
    layer = Layer(GEOMETRIES["asymmetric"], setting, Activation.relu())
    tensors = sample_tensors(layer)
    x, dy = next(iter(samples(layer)))
    y, ids, _, _, *gradients = Stream(layer, tensors, 4096).run(x, dy)
    for found, expected in zip((y, ids, *gradients), run_alone(layer, tensors, x, dy), strict=True):
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (replace(PIXEL, scope="image"), "need scope=batch"),
        (ReuseSetting("row", H=4, scope="batch"), "granularity=row .* only pixel and segment"),
        (replace(PIXEL, hash="exact"), "hash=exact has no keys"),
    ],
)
def test_what_cannot_persist_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        check_streaming(setting, 8)
