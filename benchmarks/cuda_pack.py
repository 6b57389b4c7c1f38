"""Make a folder with all that ``benchmarks/cuda.sh`` needs on a machine with a GPU and no network.

    python -m benchmarks.cuda_pack PACK [--arch SM,...] [--python VERSION ...] [--batch N] [--layer NAME ...]

Libraries of layers (dense, and with reuse of every granularity), networks and training steps, what this machine's
processor makes of the same inputs, TVM's runtime files, wheels, and the runner. Inputs of layers are random numbers
that the runner makes again; of outputs some rows are kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import cpu_target, cuda_target, static_shape, tensor_type
from adr_tvm.build import build_module, build_plan, code_objects_of
from adr_tvm.cli.common import Parser, add_verbosity, run_cli
from adr_tvm.cuda import graph
from adr_tvm.errors import UsageError
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.library import Library
from adr_tvm.loaded_network import LoadedNetwork
from adr_tvm.models.bundled import cifarnet_path
from adr_tvm.models.light import light_model
from adr_tvm.options import CompileOptions
from adr_tvm.passes.append_updates import CONTROL_NAME, STEP
from adr_tvm.plan import LayerPlan, ReusePlan
from adr_tvm.precision import PRECISIONS
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import TARGETS, TargetEntry, with_architectures
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.optimizers import SGD
from adr_tvm.train.step import step_module
from benchmarks.cuda_runner import layer_input, sample_rows
from benchmarks.layer_module import layer_module

SAME = (1, 1, 1, 1)
LAYERS = {
    "resnet50-1x1-64-256": ConvGeometry(56, 56, 64, 1, 1, 256),
    "resnet50-3x3-128": ConvGeometry(28, 28, 128, 3, 3, 128, padding=SAME),
    "resnet50-1x1-1024-256": ConvGeometry(14, 14, 1024, 1, 1, 256),
    "resnet50-3x3-512": ConvGeometry(7, 7, 512, 3, 3, 512, padding=SAME),
    "vgg19-conv2": ConvGeometry(112, 112, 64, 3, 3, 128, padding=SAME),
    "vgg19-conv4": ConvGeometry(28, 28, 256, 3, 3, 512, padding=SAME),
    "vgg19-conv5": ConvGeometry(14, 14, 512, 3, 3, 512, padding=SAME),
}
NETWORKS = ("cifarnet", "squeezenet")
STEPS = {"cifarnet-step-fp32": None, "cifarnet-step-bf16": "bf16"}  # a training step, by its mixed precision
STEP_BATCH = 128
STEP_TOLERANCE = {None: 1e-4, "bf16": 2e-2}  # of the largest entry; the latter: some roundings to 2^-9 turn over
HOST = "x86-64-v3"
R_C = 0.1  # of exact rows, about
COPY_FLOATS, GEMM_SIZE = 1 << 26, 2048
LOSSLESS = ReuseSetting("row", L=1, H=1, hash="exact")
RUNTIME_LEFT_OUT = ("libtvm_compiler.so", "include", "3rdparty", "src", "web", "__pycache__", "licenses")


def settings_of(g: ConvGeometry) -> dict[str, ReuseSetting]:
    """Entries of a layer's library, dense apart."""
    found = {
        "row exact": LOSSLESS,
        "row": ReuseSetting("row", H=10, hash="gaussian"),
        "pixel": ReuseSetting("pixel", L=16, H=8, hash="gaussian"),
    }
    if g.KH * g.KW > 1:
        found["segment"] = ReuseSetting("segment", L=2 * g.KH * g.KW, H=8, hash="gaussian")
    return found


def block_of(g: ConvGeometry) -> list[int]:
    """Rows and columns of pixels that are to be equal, so that about ``R_C`` of the windows differ."""
    sizes = [(h, w) for h in range(1, g.H + 1) for w in range(1, g.W + 1)]

    def distinct(block: tuple[int, int]) -> float:
        return min(block[0], g.KH) * min(block[1], g.KW) / (block[0] * block[1])

    return list(min(sizes, key=lambda block: (abs(distinct(block) - R_C), abs(block[0] - block[1]))))


def layer_modules(g: ConvGeometry, batch: int, seed: int) -> Iterator[tuple[str, ReuseSetting | None, tvm.IRModule]]:
    """(entry, setting, module with it as ``main``) of a layer; weights and planes are random."""
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal((g.KH, g.KW, g.C, g.M)) / np.sqrt(g.K)).astype(np.float32)
    bias = rng.standard_normal(g.M).astype(np.float32)
    entries: dict[str, ReuseSetting | None] = {"dense": None, **settings_of(g)}
    for entry, setting in entries.items():
        planes = None
        if setting is not None and setting.hash != "exact":
            shape = g.segments(setting), g.vector_length(setting), setting.H
            planes = rng.standard_normal(shape).astype(np.float32)
        yield entry, setting, layer_module(g, batch, w, bias, setting, planes)


def together(modules: dict[str, tvm.IRModule]) -> tvm.IRModule:
    """One module with the ``main`` of each as a function of its name."""
    functions = {
        tvm.ir.GlobalVar(name.replace(" ", "_")): mod["main"].with_attr("global_symbol", name.replace(" ", "_"))
        for name, mod in modules.items()
    }
    return relax.transform.Normalize()(tvm.IRModule(functions))


def copy_module(count: int) -> tvm.IRModule:
    """``copy``: as many floats from one place to another."""
    x = relax.Var("x", tensor_type([count]))
    builder = relax.BlockBuilder()
    with builder.function("copy", [x]):
        with builder.dataflow():
            out = builder.emit_output(relax.op.negative(x))
        builder.emit_func_output(out)
    return builder.get()


class Packer:
    """Fills a folder.

    Args:
        folder: where to.
        entry: the target.
        batch: images of a call.
    """

    def __init__(self, folder: Path, entry: TargetEntry, batch: int):
        self.folder, self.entry, self.batch = folder, entry, batch
        # The machine with the GPU may have another processor than this one.
        self.target = cpu_target() if entry.gpu is None else cuda_target(entry.gpu.architectures[0], mcpu=HOST)
        self.items: dict[str, Any] = {}

    def _export(self, name: str, library: Library) -> None:
        code, weights = library.without_weights()
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        code.export_library(str(self.folder / name / "code.so"))
        weights.tofile(self.folder / name / "weights.bin")

    def _expect(self, name: str, entry: str, y: np.ndarray) -> None:
        flat = y.reshape(-1, y.shape[-1])
        np.save(self.folder / name / f"expected_{entry}.npy", flat[sample_rows(len(flat))])

    def layer(self, name: str, g: ConvGeometry, apart: bool) -> None:
        """A layer; ``apart``: also with its kernels called one by one, for phases."""
        shape, block, seed = [self.batch, g.H, g.W, g.C], block_of(g), len(self.items)
        made = list(layer_modules(g, self.batch, seed))
        module = together({entry: mod for entry, _, mod in made})
        with code_objects_of(self.entry):
            made_for_target = build_module(module, self.target)
            self._export(name, made_for_target)
            if apart:
                library = build_module(module, self.target, merge=False)
                library.export_library(str(self.folder / name / "apart.so"))
        library = made_for_target if self.entry.gpu is None else build_module(module, cpu_target())
        here = relax.VirtualMachine(library, tvm.cpu())
        x = tvm.runtime.tensor(layer_input(shape, block, seed))
        kinds: dict[str, Any] = {}
        for entry, setting, _ in made:
            symbol = entry.replace(" ", "_")
            out = here[symbol](x)
            self._expect(name, symbol, (out if setting is None else out[0]).numpy())
            exact = setting is None or setting.hash == "exact"
            kinds[symbol] = "lossless" if setting == LOSSLESS else "exact" if exact else ""
        self.items[name] = {
            "type": "layer",
            "entries": kinds,
            "shape": shape,
            "block": block,
            "seed": seed,
            "kernel": [g.KH, g.KW],
            "strides": list(g.strides),
            "padding": list(g.padding),
            "M": g.M,
            "flops": 2 * g.macs * self.batch,
            "bytes": 4 * (self.batch * (g.H * g.W * g.C + g.rows * g.M) + g.K * g.M),
            "vectors": {e.replace(" ", "_"): g.vectors(s) for e, s, _ in made if s is not None},
        }

    def network(self, name: str) -> None:
        """A network, dense and with lossless layers, on an image like a page of text."""
        from benchmarks.torch_network import TorchNetwork

        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        path = cifarnet_path()
        if name != "cifarnet":
            path = folder / "model.onnx"
            onnx.save(light_model(name), path)
        options = {} if self.entry.gpu is None else {"arch": ",".join(self.entry.gpu.architectures)}
        network = LoadedNetwork(path, CompileOptions(target=self.entry.name, **options))  # type: ignore[arg-type]
        candidates = [c for c in network.layers if not c.reason]
        layers = {c.layer: LayerPlan(c.layer, "reuse", LOSSLESS, "all layers are") for c in candidates}
        plan = ReusePlan(network.checked.sha256, self.entry.name, 0, "agreement", None, layers)
        (spec,) = network.checked.inputs
        x = page([d if isinstance(d, int) else 1 for d in spec.shape])
        with code_objects_of(self.entry):
            self._export(name, build_plan(network.mod, plan, self.target))
        here = relax.VirtualMachine(build_module(network.mod, network.host), tvm.cpu())["main"]
        y = here(tvm.runtime.tensor(x)).numpy()
        np.save(folder / "x.npy", x)
        for entry in ("dense", "main"):
            self._expect(name, entry, y)
        self.items[name] = {
            "type": "network",
            "entries": {"dense": "exact", "main": "lossless"},
            "shape": list(x.shape),
        }
        self._torch(folder, TorchNetwork(onnx.load(path)).eval(), x)
        (folder / "model.onnx").unlink(missing_ok=True)

    def step(self, name: str, amp: str | None) -> None:
        """A training step of CifarNet, of which momenta are compared: with none before, they are the gradients."""
        from benchmarks.torch_network import TorchNetwork

        precision, optimizer = None if amp is None else PRECISIONS[amp], SGD(momentum=0.9)
        folder, path = self.folder / name, cifarnet_path()

        def module_for(target: tvm.target.Target) -> tuple[TrainingNetwork, tvm.IRModule]:
            network = TrainingNetwork(path, target)
            return network, step_module(network, {}, optimizer, STEP_BATCH, precision=precision)

        on_gpu = precision if self.entry.gpu is not None else None
        with code_objects_of(self.entry):
            self._export(name, build_module(module_for(self.target)[1], self.target, precision=on_gpu))
        network, module = module_for(cpu_target())
        arguments = step_arguments(network, module)
        tensors = {key: tvm.runtime.tensor(value) for key, value in arguments.items()}
        machine = relax.VirtualMachine(build_module(module, cpu_target()), tvm.cpu())
        loss, logits, *_ = machine[STEP](*tensors.values())
        expected = {"loss": loss.numpy().reshape(1, 1), "logits": logits.numpy()}
        for key, tensor in tensors.items():
            if key.endswith("_momentum"):
                flat = tensor.numpy().reshape(-1, tensor.shape[-1])
                expected[key] = flat[sample_rows(len(flat))]
        np.savez(folder / "arguments.npz", **arguments)  # type: ignore[arg-type]
        np.savez(folder / "expected.npz", **expected)  # type: ignore[arg-type]
        x = next(iter(arguments.values()))
        facts = {"arguments": list(arguments), "tolerance": STEP_TOLERANCE[amp], "amp": amp, "shape": list(x.shape)}
        self.items[name] = {"type": "step", **facts}
        self._torch(folder, TorchNetwork(onnx.load(path)).train(), x)

    def _torch(self, folder: Path, module: Any, x: np.ndarray) -> None:
        import torch

        with nullcontext() if module.training else torch.no_grad():
            torch.export.save(torch.export.export(module, (torch.from_numpy(x),)), str(folder / "torch.pt2"))

    def ceilings(self, floats: int, gemm: int) -> dict[str, Any]:
        """A copy, and a product of square matrices; returns their sizes."""
        g = dense_geometry(gemm, gemm, gemm)
        x = relax.Var("x", tensor_type([1, gemm, 1, gemm]))
        w, bias = np.ones((1, 1, gemm, gemm), np.float32), np.zeros(gemm, np.float32)
        builder = relax.BlockBuilder()
        with builder.function("main", [x]):
            with builder.dataflow():
                call = ops.conv2d(x, relax.const(w), relax.const(bias), name="gemm", strides=g.strides)
                out = builder.emit_output(call)
            builder.emit_func_output(out)
        copy = copy_module(floats)
        module = together({"gemm": builder.get(), "copy": tvm.IRModule({"main": copy["copy"]})})
        with code_objects_of(self.entry):
            self._export("ceilings", build_module(module, self.target))
        return {"copy": [floats], "gemm": gemm}

    def finish(self, ceilings: dict[str, Any]) -> None:
        """The manifest and the scripts."""
        architectures = ["cpu"] if self.entry.gpu is None else list(self.entry.gpu.architectures)
        content = {"architectures": architectures, "ceilings": ceilings, "items": self.items}
        (self.folder / "manifest.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        for name in ("cuda_runner.py", "cuda.sh"):
            shutil.copy(Path(__file__).with_name(name), self.folder / name)
        shutil.copy(graph.__file__, self.folder / "cuda_graph.py")

    def runtime(self, versions: Sequence[str]) -> None:
        """TVM's runtime without its compiler, CUDA's, and wheels for some versions of Python.

        Raises:
            UsageError: pip does not find the wheels.
        """
        from importlib.metadata import version

        package = Path(tvm.__file__).parent
        shutil.copytree(
            package,
            self.folder / "site" / "tvm",
            ignore=lambda _, names: [name for name in names if name in RUNTIME_LEFT_OUT],
            dirs_exist_ok=True,
        )
        from cuda.pathfinder import load_nvidia_dynamic_lib

        (self.folder / "lib").mkdir(exist_ok=True)
        found = load_nvidia_dynamic_lib("cudart").abs_path
        shutil.copy(str(found), self.folder / "lib" / "libcudart.so.13")
        wanted = [f"{name}=={version(name)}" for name in ("apache-tvm-ffi", "numpy", "ml_dtypes", "typing_extensions")]
        for python in versions:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            command += ["--python-version", python, "--dest", str(self.folder / "wheels"), *wanted]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise UsageError(f"pip finds no wheels for Python {python}: {done.stderr.strip().splitlines()[-1]}")


def step_arguments(network: TrainingNetwork, module: tvm.IRModule) -> dict[str, np.ndarray]:
    """A value for each parameter of a training step, in order: random images, the file's weights, no momentum yet."""
    rng, initial = np.random.default_rng(0), network.initial_parameters()
    weights = {variable.name: initial[name] for name, variable in network.variables().items()}
    found = {}
    for index, var in enumerate(module[STEP].params):
        shape, dtype = static_shape(var), str(var.ty.dtype)
        if index == 0:
            found[var.name] = rng.standard_normal(shape, np.float32)
        elif var.name == "labels":
            found[var.name] = rng.integers(0, network.classes, shape).astype(dtype)
        elif var.name == CONTROL_NAME:
            found[var.name] = np.array([0.01, 1, 1, 1], np.float32)
        else:
            found[var.name] = np.ascontiguousarray(weights.get(var.name, np.zeros(shape, dtype)))
    return found


def page(shape: Sequence[int]) -> np.ndarray:
    """Float32 [B, C, H, W] like a page of text: white, with dark letters in lines."""
    rng = np.random.default_rng(0)
    x = np.ones(shape, np.float32)
    for top in range(4, shape[2] - 8, 16):
        x[:, :, top : top + 8, 4:-4] = rng.integers(0, 2, (*shape[:2], 8, shape[3] - 8))
    return x


def run(arguments: argparse.Namespace) -> None:
    """Make the pack."""
    for given, known in ((arguments.layer, LAYERS), (arguments.network, NETWORKS), (arguments.step, STEPS)):
        unknown = [name for name in given or () if name not in known and name != "none"]
        if unknown:
            raise UsageError(f"{unknown[0]!r} is not known; there is {', '.join(known)}, none")
    entry = TARGETS["cpu"] if arguments.cpu else TARGETS["cuda"]
    if not arguments.cpu:
        entry = with_architectures(entry, arguments.arch)
    arguments.pack.mkdir(parents=True, exist_ok=True)
    packer = Packer(arguments.pack, entry, arguments.batch)
    for index, name in enumerate(arguments.layer or LAYERS):
        if name != "none":
            print(f"layer {name}", file=sys.stderr)
            packer.layer(name, LAYERS[name], apart=index < 2)
    for name in arguments.network or NETWORKS:
        if name != "none":
            print(f"network {name}", file=sys.stderr)
            packer.network(name)
    for name in arguments.step or STEPS:
        if name != "none":
            print(f"training step {name}", file=sys.stderr)
            packer.step(name, STEPS[name])
    small = arguments.cpu
    packer.finish(packer.ceilings(1 << 16 if small else COPY_FLOATS, 64 if small else GEMM_SIZE))
    if not arguments.cpu:
        packer.runtime(arguments.python or [f"{sys.version_info.major}.{sys.version_info.minor}"])
    size = sum(path.stat().st_size for path in arguments.pack.rglob("*") if path.is_file())
    print(f"{arguments.pack}: {size / 1e6:.0f} MB; run cuda.sh there on a machine with a GPU")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = Parser(prog="python -m benchmarks.cuda_pack", description=__doc__.partition("\n")[0])
    parser.add_argument("pack", type=Path, help="the folder to make")
    parser.add_argument("--arch", metavar="SM,...", default="sm_90", help="architectures (default: sm_90)")
    parser.add_argument("--python", metavar="VERSION", action="append", help="of the machine with the GPU")
    parser.add_argument("--batch", type=int, metavar="N", default=32, help="images (default: 32)")
    parser.add_argument("--layer", metavar="NAME", action="append", help="only these (none: no layer)")
    parser.add_argument("--network", metavar="NAME", action="append", help="only these (none: no network)")
    parser.add_argument("--step", metavar="NAME", action="append", help="only these training steps (none: no step)")
    parser.add_argument("--cpu", action="store_true", help="for processors: a dry run of pack and runner")
    add_verbosity(parser)
    return run_cli(run, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
