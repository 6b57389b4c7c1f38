"""Properties of the kernels over random small operators."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import Layer, check, close, run, sample_input, sample_tensors

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.reference import conv2d
from adr_tvm.settings import GRANULARITIES, HASH_FAMILIES, SCOPES, TABLES, ReuseSetting

# Every example compiles its kernels, 0.5 to 1 s; a fixed seed keeps runs alike.
SEARCH = {"deadline": None, "derandomize": True, "database": None}


@st.composite
def geometries(draw):
    """A small convolution with at least one output."""
    kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    return ConvGeometry(
        H=draw(st.integers(5, 9)),
        W=draw(st.integers(5, 9)),
        C=draw(st.integers(1, 40)),
        KH=kernel[0],
        KW=kernel[1],
        M=draw(st.integers(1, 70)),
        strides=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=tuple(draw(st.integers(0, 3)) for _ in range(4)),
        dilation=dilation,
    )


@st.composite
def layers(draw):
    """A reuse layer; some have a guard."""
    granularity, family = draw(st.sampled_from(GRANULARITIES)), draw(st.sampled_from(HASH_FAMILIES))
    tables = family != "exact" and granularity != "row"
    table = draw(st.sampled_from(TABLES)) if tables else "float32"
    setting = ReuseSetting(
        granularity,
        L=draw(st.integers(1, 45)),
        H=draw(st.integers(1, 12)),
        hash=family,
        scope=draw(st.sampled_from(SCOPES)),
        gain=tables and table in ("float32", "bfloat16") and draw(st.booleans()),
        max_clusters=draw(st.sampled_from([None, None, 30])),
        table=table,
    )
    activation = draw(st.sampled_from([Activation(), Activation.relu(), Activation("leaky_relu", slope=0.5)]))
    return Layer(draw(geometries()), setting, activation)


def _compare_batch_mates(layer, tensors, x, together):
    for i in range(len(x)):
        alone = run(layer, tensors, x[i : i + 1])
        assert alone.y.tobytes() == together.y[i : i + 1].tobytes()
        np.testing.assert_array_equal(alone.stats, together.stats[i : i + 1])


@settings(max_examples=16, **SEARCH)
@given(layers(), st.integers(0, 2**16), st.sampled_from([0.0, 0.3, 0.9]))
def test_reuse_follows_the_reference_and_sees_no_batch_mates(layer, seed, zeros):
    tensors = sample_tensors(layer, seed)
    x = sample_input(layer.geometry, 3, seed, zeros)
    result, _ = check(layer, tensors, x)
    if layer.setting.scope == "image":
        _compare_batch_mates(layer, tensors, x, result)
    if layer.setting.hash == "exact":
        close(result.y, conv2d(x, tensors.w, tensors.bias, layer.geometry, layer.activation))
    if layer.activation.kind == "linear":
        x[seed % 3, seed % 5, seed % 4, 0] = np.nan
        check(layer, tensors, x)


@settings(max_examples=10, **SEARCH)
@given(geometries(), st.sampled_from(SCOPES), st.integers(0, 2**16), st.sampled_from([0.9, 0.97]))
def test_lossless_is_bit_identical_to_dense(geometry, scope, seed, zeros):
    layer = Layer(geometry, ReuseSetting("row", hash="exact", scope=scope))
    tensors, x = sample_tensors(layer, seed), sample_input(geometry, 3, seed, zeros)
    result, _ = check(layer, tensors, x)
    assert result.y.tobytes() == run(replace(layer, setting=None), tensors, x).y.tobytes()
