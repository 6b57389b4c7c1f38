"""A rendered page of text through SqueezeNet without any loss: most rows of the first layers are bit-identical."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import adr_tvm
from adr_tvm import CompileOptions, ReusePlan, ReuseSetting, compile_model
from adr_tvm.compiler import CompileResult
from adr_tvm.deploy.bundle import file_sha256
from adr_tvm.deploy.runtime import LayerCounts
from adr_tvm.loaded_network import LoadedNetwork
from adr_tvm.plan import uniform_plan
from adr_tvm.report.results import NetworkResult
from benchmarks.validation.data_folder import for_squeezenet
from benchmarks.validation.row import Row, Run, percent

MODEL = "squeezenet1_1_imagenet"


def check_text_page(run: Run) -> Iterator[Row]:
    """The page at its full size, 896 x 896: every layer lossless by a plan file, then whatever ``lossless`` takes.

    ``lossless`` without calibration data lets a layer look for repetition where that costs 2 % or less on data that
    have none, as far as can be told on a machine that does other work too.
    """
    yield from check_every_layer(run)
    x = for_squeezenet(run.data.text_page())
    options = CompileOptions(input_shapes={"x": x.shape}, lossless=True, threads=run.threads)
    yield from _rows("--lossless", compile_model(run.data.model(MODEL), run.work / "lossless", options), x)


def check_every_layer(run: Run) -> Iterator[Row]:
    """Every layer reuses bit-identical rows, whether that pays or not: what there is to find."""
    x, model = for_squeezenet(run.data.text_page()), run.data.model(MODEL)
    shapes: dict[str, Any] = {"x": x.shape}
    layers = [layer.layer for layer in LoadedNetwork(model, CompileOptions(input_shapes=shapes)).layers]
    setting = ReuseSetting(granularity="row", hash="exact", L=1, H=1)
    plan: ReusePlan = uniform_plan(
        layers,
        setting,
        reason="to see what repeats",
        model_sha256=file_sha256(model),
        target="cpu",
        seed=0,
        metric="none",
    )
    file = plan.save(run.work / "every-layer-plan")
    options = CompileOptions(input_shapes=shapes, plan=file, threads=run.threads)
    yield from _rows("every layer", compile_model(model, run.work / "every-layer", options), x)


def _rows(what: str, compiled: CompileResult, x: np.ndarray) -> Iterator[Row]:
    model = adr_tvm.load(compiled.folder)
    y, counts = model.run_with_counts(x)
    same = np.array_equal(np.asarray(y).view(np.int32), np.asarray(model.dense(x)).view(np.int32))
    yield Row(f"text page, {what}: output", "bits of dense", "the same" if same else "others", same, {})
    left = multiply_adds_left(compiled.result, counts)
    measured = f"{percent(left)}, {len(compiled.plan.reused)} of {len(compiled.result.layers)} layers reuse"
    good = 0.30 <= left <= 0.36
    yield Row(f"text page, {what}: multiply-adds", "30 to 36 % left", measured, good, {"left": left})


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
