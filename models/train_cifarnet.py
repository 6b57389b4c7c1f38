"""Train CifarNet on CIFAR-10 and export it: `python -m adr_tvm.models.train_cifarnet --data PATH`.

SGD with Nesterov momentum, a one-cycle learning rate, weight decay, label smoothing, dropout on the dense
layers; random crop (pad 4) and flip.  The last 1,024 training images are never trained on: they become the
bundled sample.  Writes `cifarnet_cifar10.onnx` and `cifar10_sample.npz`.  Needs the `[bench]` extra.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from adr_tvm.errors import MissingDependencyError

from .cifar10 import Cifar10, load_cifar10, normalise
from .cifarnet import LRN, MEAN, STD, build_cifarnet, initial_weights

if TYPE_CHECKING:
    import torch

EXPORT_TOLERANCE = 1e-4
"""Largest accepted |ONNX Runtime - PyTorch| of a logit; float32 sums of 4,096 terms reordered give ~1e-5."""


def forward(weights: dict[str, torch.Tensor], x: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
    """Logits (n, 10) of normalised images x (n, 3, 32, 32); `dropout` is the rate after fc1 and fc2."""
    from torch.nn import functional as F

    def layer(op, x, name, **options):
        return op(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    x = F.relu(layer(F.conv2d, x, "conv1", padding=2))
    x = _local_response_norm(F.max_pool2d(x, 3, 2, 1))
    x = F.relu(layer(F.conv2d, x, "conv2", padding=2))
    x = F.max_pool2d(_local_response_norm(x), 3, 2, 1).flatten(1)
    x = F.dropout(F.relu(layer(F.linear, x, "fc1")), dropout)
    x = F.dropout(F.relu(layer(F.linear, x, "fc2")), dropout)
    return layer(F.linear, x, "logits")


def _local_response_norm(x: torch.Tensor) -> torch.Tensor:
    """x * (bias + alpha / size * sum of squares over `size` channels)^-0.75 for x (n, c, h, w).

    The window sum is a 1x1 convolution with a band matrix and the power two square roots: with
    `torch.nn.LocalResponseNorm` an epoch takes twice the time.
    """
    import torch
    from torch.nn import functional as F

    reach = LRN["size"] // 2
    channel = torch.arange(x.shape[1])
    band = ((channel[:, None] - channel[None, :]).abs() <= reach).to(x.dtype)
    scale = LRN["bias"] + LRN["alpha"] / LRN["size"] * F.conv2d(x * x, band[:, :, None, None])
    return x * torch.rsqrt(scale * torch.sqrt(scale))


def augmented_batches(
    images: np.ndarray, labels: np.ndarray, batch: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One shuffled epoch of (uint8 (batch, 32, 32, 3), int64 (batch,)); the incomplete last batch is dropped.

    Each image is padded by 4 (mean colour), cropped at random to 32x32 and flipped with probability 1/2.
    """
    padded = np.empty((len(images), 40, 40, 3), np.uint8)
    padded[:] = np.round(np.array(MEAN) * 255)
    padded[:, 4:36, 4:36] = images
    order = rng.permutation(len(images))
    steps = np.arange(32)
    for start in range(0, len(order) - batch + 1, batch):
        chosen = order[start : start + batch]
        rows = rng.integers(0, 9, (batch, 1)) + steps
        columns = rng.integers(0, 9, (batch, 1)) + steps
        flipped = rng.random(batch) < 0.5
        columns[flipped] = columns[flipped, ::-1]
        yield padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]], labels[chosen]


def train(data: Cifar10, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Train on all but the held-out images; returns float32 arrays named as in `cifarnet.WEIGHT_SHAPES`.

    Raises:
        ValueError: there is less than one batch to train on.
    """
    images, labels = data.without_held_out()
    if len(images) < args.batch:
        total, spare = len(data.x_train), len(data.x_train) - len(images)
        raise ValueError(f"{total} training images, {spare} held out: less than a batch of {args.batch}")
    import torch

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    weights = {name: torch.from_numpy(array) for name, array in initial_weights(args.seed).items()}
    for name, weight in weights.items():
        if weight.ndim == 4:
            weights[name] = weight.contiguous(memory_format=torch.channels_last)
        weights[name].requires_grad_()
    decayed = [weight for weight in weights.values() if weight.ndim > 1]
    biases = [weight for weight in weights.values() if weight.ndim == 1]
    groups = [
        {"params": decayed, "weight_decay": args.weight_decay},
        {"params": biases, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=args.lr, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        args.lr,
        epochs=args.epochs,
        steps_per_epoch=len(images) // args.batch,
        pct_start=0.2,
        cycle_momentum=False,
    )
    mean, std = torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
    for epoch in range(args.epochs):
        start, losses = time.perf_counter(), []
        for batch_images, batch_labels in augmented_batches(images, labels, args.batch, rng):
            # NHWC seen through a permutation is exactly torch's channels_last.
            x = ((torch.from_numpy(batch_images) - mean) / std).permute(0, 3, 1, 2)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                logits = forward(weights, x, args.dropout)
            loss = torch.nn.functional.cross_entropy(
                logits.float(), torch.from_numpy(batch_labels), label_smoothing=args.label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(
            f"epoch {epoch + 1}/{args.epochs}: loss {np.mean(losses):.3f}, "
            f"test accuracy {_torch_accuracy(weights, data.x_test, data.y_test):.2%}, "
            f"{time.perf_counter() - start:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return {name: weight.detach().numpy() for name, weight in weights.items()}


def _torch_accuracy(weights: dict[str, torch.Tensor], images: np.ndarray, labels: np.ndarray) -> float:
    import torch

    correct = 0
    with torch.no_grad():
        for start in range(0, len(images), 500):
            logits = forward(weights, torch.from_numpy(normalise(images[start : start + 500])))
            correct += int((logits.argmax(1).numpy() == labels[start : start + 500]).sum())
    return correct / len(images)


def onnx_logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """Logits float32 (n, 10) that ONNX Runtime computes for uint8 images (n, 32, 32, 3)."""
    import onnxruntime

    run = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run
    batches = range(0, len(images), 500)
    return np.concatenate([run(None, {"x": normalise(images[i : i + 500])})[0] for i in batches])


def export(weights: dict[str, np.ndarray], data: Cifar10, out: Path) -> None:
    """Write the model and the sample to `out` and print the model's accuracies on stdout.

    Raises:
        RuntimeError: ONNX Runtime's logits differ from PyTorch's by `EXPORT_TOLERANCE` or more.
    """
    import torch

    model = build_cifarnet(weights)
    onnx.checker.check_model(model, full_check=True)
    logits = onnx_logits(model, data.x_test)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
        expected = forward(tensors, torch.from_numpy(normalise(data.x_test[:500]))).numpy()
    difference = float(np.abs(logits[:500] - expected).max())
    if not difference < EXPORT_TOLERANCE:
        raise RuntimeError(f"exported model differs from PyTorch by {difference:.1e} in a logit")

    out.mkdir(parents=True, exist_ok=True)
    onnx.save(model, out / "cifarnet_cifar10.onnx")
    images, labels = data.held_out()
    np.savez_compressed(out / "cifar10_sample.npz", images=images, labels=labels)
    held_out_accuracy = np.mean(onnx_logits(model, images).argmax(1) == labels)
    print(f"test accuracy {np.mean(logits.argmax(1) == data.y_test):.2%} ({len(logits)} images)")
    print(f"held-out accuracy {held_out_accuracy:.2%} ({len(images)} images)")
    print(f"largest difference to PyTorch {difference:.1e}")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or 3 for unusable data and 5 for a missing dependency."""
    parser = argparse.ArgumentParser(prog="python -m adr_tvm.models.train_cifarnet", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 folder, .tgz, .tar.gz or .npz")
    parser.add_argument("--out", type=Path, default=Path("models/pretrained"), help="output folder")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.05, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--label-smoothing", type=float, default=0.05)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast: faster on CPUs with AMX")
    args = parser.parse_args(argv)
    try:
        data = load_cifar10(args.data)
        export(train(data, args), data, args.out)
    except MissingDependencyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        print(f"{error}; this script needs: pip install 'adr-tvm[bench]'", file=sys.stderr)
        return MissingDependencyError.exit_code
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
