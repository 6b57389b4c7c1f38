"""Files that ship with the package: a trained CifarNet and 1,024 CIFAR-10 images it was not trained on."""

from pathlib import Path

import numpy as np

from .cifar10 import normalise

_PRETRAINED = Path(__file__).parent / "pretrained"


def cifarnet_path() -> Path:
    """Path of the trained CifarNet: ONNX, input `x` (N, 3, 32, 32), output `logits` (N, 10), float32."""
    return _PRETRAINED / "cifarnet_cifar10.onnx"


def cifar10_sample() -> tuple[np.ndarray, np.ndarray]:
    """Normalised images float32 (1024, 3, 32, 32), as the bundled CifarNet takes them, and int64 labels.

    The images are the last 1,024 of CIFAR-10's training set, held out of the bundled network's training.
    """
    with np.load(_PRETRAINED / "cifar10_sample.npz", allow_pickle=False) as sample:
        return normalise(sample["images"]), sample["labels"]
