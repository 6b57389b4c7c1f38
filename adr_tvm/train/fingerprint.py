"""Tells data sets apart, wherever they lie."""

from __future__ import annotations

import hashlib

import numpy as np

from adr_tvm.data.training_data import TrainingData

IMAGES = 8


def fingerprint(data: TrainingData) -> str:
    """SHA-256 of a data set's sizes, normalisation, labels and a few images of each part."""
    digest = hashlib.sha256(repr((data.shape, data.classes, data.mean, data.std)).encode())
    for part in (data.train, data.test):
        digest.update(part.labels.tobytes())
        some = np.unique(np.linspace(0, len(part.labels) - 1, IMAGES).astype(np.int64))
        digest.update(np.ascontiguousarray(part.read(some)).tobytes())
    return digest.hexdigest()
