"""Clause 14 of ``docs/algorithm.md``: the same bytes at any number of threads."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernel_harness import Layer, run, sample_input, sample_tensors

from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.settings import ReuseSetting

# Large enough that every parallel loop has several tasks, some of them uneven.
GEOMETRY = ConvGeometry(25, 23, 20, 3, 3, 70, padding=(1, 1, 1, 1))
LAYERS = {
    "dense": Layer(GEOMETRY),
    "dense-small": Layer(dense_geometry(1, 200, 300), batch=1),
    "pixel": Layer(GEOMETRY, ReuseSetting("pixel", 7, 6, "gaussian", gain=True)),
    "pixel-guarded": Layer(GEOMETRY, ReuseSetting("pixel", 7, 6, "gaussian", max_clusters=0)),
    "segment-batch": Layer(GEOMETRY, ReuseSetting("segment", 30, 6, "gaussian", scope="batch")),
    "row-batch": Layer(GEOMETRY, ReuseSetting("row", H=6, hash="gaussian", scope="batch")),
    "row-exact": Layer(GEOMETRY, ReuseSetting("row", hash="exact", scope="batch")),
}


def _digest(layer: Layer) -> str:
    """SHA-256 of what a layer returns on a batch of 3 (or as many as it knows)."""
    result = run(layer, sample_tensors(layer), sample_input(layer.geometry, layer.batch or 3, zeros=0.9))
    stats = np.zeros(0, np.int32) if result.stats is None else result.stats
    return hashlib.sha256(result.y.tobytes() + stats.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def digests() -> dict[int, dict[str, str]]:
    """Digests of all layers for 1, 2 and 3 threads."""
    processes = {
        threads: subprocess.Popen(
            [sys.executable, Path(__file__)],
            env=os.environ | {"TVM_NUM_THREADS": str(threads)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads in (1, 2, 3)
    }
    outputs = {threads: process.communicate(timeout=900)[0] for threads, process in processes.items()}
    assert all(process.returncode == 0 for process in processes.values())
    return {threads: dict(line.split() for line in output.splitlines()) for threads, output in outputs.items()}


@pytest.mark.parametrize("name", LAYERS)
def test_the_number_of_threads_never_changes_a_byte(digests, name):
    assert len({found[name] for found in digests.values()}) == 1


def test_digests_tell_layers_apart(digests):
    assert digests[1].keys() == LAYERS.keys() and len(set(digests[1].values())) == len(LAYERS)


if __name__ == "__main__":
    for name, layer in LAYERS.items():
        print(name, _digest(layer))
