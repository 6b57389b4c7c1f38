"""The demonstration: ``python -m adr_tvm.demo`` compiles the bundled CifarNet and runs it beside ONNX Runtime.

Three quarters of the bundled CIFAR-10 sample, with its labels, are calibration data for the compiler and for ONNX
Runtime's 8-bit quantisation; the last quarter is what all are measured on. Writes the bundle to ``demo-out/``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adr_tvm.cli.common import Parser, add_verbosity, run_cli

MAX_DROP = 0.04
"""Default budget: 384 images verify a plan; where 0.01 is lost they show, at 90 %, only that it is below some 0.03."""

BATCH = 32


@dataclass(frozen=True)
class DemoOptions:
    """How long the demonstration takes, and where it writes.

    Attributes:
        out: folder of the bundle.
        max_drop: budget, as a fraction of top-1 accuracy.
        images: calibration images, at most 768; a third as many others are measured on.
        runs: timed runs of each engine.
        time_budget: seconds for the search.
        threads: None: all physical cores.
    """

    out: Path = Path("demo-out")
    max_drop: float = MAX_DROP
    images: int = 768
    runs: int = 20
    time_budget: float = 90
    threads: int | None = None


def demo(options: DemoOptions) -> None:
    """Compile, compare, and say where the results are.

    Raises:
        UsageError: ``options.out`` cannot be written, or holds something else than a bundle.
        MissingDependencyError: there is no C++ compiler to link with.
    """
    from adr_tvm.bench.run import AGAINST, BenchOptions, bench
    from adr_tvm.cli.bench import print_bench
    from adr_tvm.compiler import compile_model
    from adr_tvm.models.bundled import cifarnet_path
    from adr_tvm.options import CompileOptions
    from adr_tvm.report.terminal import print_result

    with tempfile.TemporaryDirectory(prefix="adr-demo-") as folder:
        calibration, unseen = _write_split(Path(folder), options.images)
        _headline(
            f"1/2  compiling CifarNet with {options.images} labelled CIFAR-10 images; "
            f"it may lose {options.max_drop:.1%} of top-1 accuracy"
        )
        compiled = compile_model(
            cifarnet_path(),
            options.out,
            CompileOptions(
                labels_name="labels",
                max_drop=options.max_drop,
                batch_size=BATCH,
                time_budget=options.time_budget,
                threads=options.threads,
            ),
            calibration,
        )
        print_result(compiled.result)
        _headline(f"2/2  side by side with ONNX Runtime, on {options.images // 3} other images, batches of {BATCH}")
        result = bench(
            BenchOptions(
                bundle=compiled.folder,
                model=cifarnet_path(),
                samples=unseen,
                labels_name="labels",
                calibration=calibration,
                against=AGAINST,
                threads=() if options.threads is None else (options.threads,),
                batch=min(BATCH, options.images // 3),
                runs=options.runs,
            )
        )
        print_bench(result)
    print(f'\nreport:  {compiled.folder / "report.html"}\nto use:  adr_tvm.load("{compiled.folder}")')


def _write_split(folder: Path, images: int) -> tuple[Path, Path]:
    """Calibration and unseen images with their labels, as .npz files; every fourth image is unseen."""
    import numpy as np

    from adr_tvm.models.bundled import cifar10_sample

    x, labels = cifar10_sample()
    paths = folder / "calibration.npz", folder / "unseen.npz"
    unseen = np.arange(len(x)) % 4 == 3
    parts = np.flatnonzero(~unseen)[:images], np.flatnonzero(unseen)[: images // 3]
    for chosen, path in zip(parts, paths, strict=True):
        np.savez(path, x=x[chosen], labels=labels[chosen])
    return paths


def _headline(text: str) -> None:
    print(f"\n{text}", flush=True)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="python -m adr_tvm.demo", description=__doc__, allow_abbrev=False)
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, default=DemoOptions.out, help="default: demo-out")
    parser.add_argument(
        "--max-drop",
        metavar="X",
        type=float,
        default=MAX_DROP,
        help=f"accuracy budget, as a fraction (default: {MAX_DROP})",
    )
    parser.add_argument("--threads", metavar="N", type=int, help="default: all cores")
    add_verbosity(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Run the demonstration."""
    demo(DemoOptions(out=arguments.out, max_drop=arguments.max_drop, threads=arguments.threads))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_cli(run, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
