"""The same bytes again: outputs under one plan at any number of threads, and plans of one search."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import adr_tvm
from adr_tvm import CompileOptions, compile_model
from benchmarks.validation.data_folder import for_resnet20, for_trec
from benchmarks.validation.row import Row, Run
from benchmarks.validation.trec_cifarnet import compile_trec

THREADS = (1, 2)
IMAGES = 100


def check_repeatable(run: Run) -> Iterator[Row]:
    """TREC's plan and a plan that a search finds for ResNet20."""
    images, _ = run.data.cifar10(0, IMAGES)
    yield _same_outputs("TREC batch scope", [compile_trec(run, "batch"), _again(run)], for_trec(images), run.work)
    planning, labels = run.data.cifar10(9500, 10000)
    x = {"x": for_resnet20(planning), "labels": labels}
    first = _search(run, x, "first", None)
    second = _search(run, x, "second", first / "timings.json")
    same = all((first / name).read_bytes() == (second / name).read_bytes() for name in ("plan.json", "planes.npz"))
    reused = len(adr_tvm.ReusePlan.load(first).reused)
    measured = f"{'the same' if same else 'others'}, {reused} layers reuse"
    yield Row("same search with its timings", "bytes of the plan", measured, same, {"reused": float(reused)})
    yield _same_outputs("ResNet20 after a search", [first, second], for_resnet20(images), run.work)


def _again(run: Run) -> Path:
    """The same plan compiled a second time, in a folder of its own."""
    folder = run.work / "again"
    folder.mkdir(exist_ok=True)
    return compile_trec(Run(run.data, folder, run.threads), "batch")


def _search(run: Run, x: dict[str, np.ndarray], name: str, timings: Path | None) -> Path:
    # A wide budget, so that some layers reuse with loss.
    options = CompileOptions(
        labels_name="labels", max_drop=0.2, timings=timings, threads=run.threads, time_budget=run.time_budget
    )
    return compile_model(run.data.model("resnet20_cifar10"), run.work / f"repeat-{name}", options, x).folder


def _same_outputs(what: str, bundles: list[Path], x: np.ndarray, work: Path) -> Row:
    inputs = work / "repeatable.npy"
    np.save(inputs, x)
    digests = {_digest_in_process(bundle, inputs, threads) for bundle in bundles for threads in THREADS}
    runs = len(bundles) * len(THREADS)
    return Row(
        f"{what}: compiled twice, 1 and 2 threads",
        "bytes of the output",
        "the same" if len(digests) == 1 else f"{len(digests)} different of {runs}",
        len(digests) == 1,
        {"different": float(len(digests))},
    )


def _digest_in_process(bundle: Path, inputs: Path, threads: int) -> str:
    """SHA-256 of a run's output; the number of threads is for the life of a process."""
    command = [sys.executable, "-m", "benchmarks.validation.repeatable", str(bundle), str(inputs), str(threads)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=root, env={**os.environ}).stdout


def main(bundle: str, inputs: str, threads: str) -> None:
    """Print the digest of one run."""
    model = adr_tvm.load(bundle, threads=int(threads))
    y = np.asarray(model(np.load(inputs, allow_pickle=False)))
    print(hashlib.sha256(y.tobytes()).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
