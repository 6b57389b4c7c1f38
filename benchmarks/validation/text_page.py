"""A rendered page of text through SqueezeNet without any loss: most rows of the first layers are bit-identical."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import adr_tvm
from adr_tvm import CompileOptions, compile_model
from adr_tvm.results import NetworkResult
from adr_tvm.runtime import LayerCounts
from benchmarks.validation.data_folder import for_squeezenet
from benchmarks.validation.row import Row, Run, percent

MODEL = "squeezenet1_1_imagenet"


def check_text_page(run: Run) -> Iterator[Row]:
    """The page at its full size, 896 x 896, compiled with ``lossless``; mirrored pages are the calibration data.

    Without calibration data a layer may look for repetition only where that costs 2 % or less on data without any,
    which cannot be told on a machine that does other work too.
    """
    x = for_squeezenet(run.data.text_page())
    mirrored = np.concatenate([x[..., ::-1], x[..., ::-1, :]])
    options = CompileOptions(input_shapes={"x": x.shape}, lossless=True, threads=run.threads)
    compiled = compile_model(run.data.model(MODEL), run.work / "text-page", options, mirrored)
    model = adr_tvm.load(compiled.folder)
    y, counts = model.run_with_counts(x)
    same = np.array_equal(np.asarray(y).view(np.int32), np.asarray(model.dense(x)).view(np.int32))
    yield Row("text page, output", "bits of dense", "the same" if same else "others", same, {"same": float(same)})
    left = multiply_adds_left(compiled.result, counts)
    measured = f"{percent(left)}, {len(compiled.result.reused)} of {len(compiled.result.layers)} layers reuse"
    yield Row("text page, multiply-adds", "30 to 36 % left", measured, 0.30 <= left <= 0.36, {"left": left})


def multiply_adds_left(result: NetworkResult, counts: dict[str, LayerCounts]) -> float:
    """Share of the network's multiply-adds that one call did; a layer or unit that ran dense did all of them."""
    done = 0.0
    for layer in result.layers:
        found = counts.get(layer.layer)
        share = 1.0
        if found is not None:
            share = float(np.where(found.reused, found.clusters / found.vectors, 1.0).mean())
        done += share * layer.macs_dense
    return done / sum(layer.macs_dense for layer in result.layers)
