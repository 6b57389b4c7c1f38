"""Runs a pack (``benchmarks/cuda_pack.sh``) on the machine at hand: checks it against CPU results, then times it.

    python cuda_runner.py PACK RESULTS.jsonl [--seconds 420] [--device cuda|cpu]
    python cuda_runner.py --print PACK RESULTS.jsonl

Needs NumPy and the pack's own runtime files; PyTorch, where it is installed, is compared with. Every result is a line
of JSON, written when it is known, so that a run which is cut off keeps what it has. Nothing here is compiled.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-4  # of the largest |y|: sums of fp32 in another order than the processor's
ALIKE = 0.99  # share of the samples that must agree where a hash bit may round the other way
SLICE = 0.05  # seconds that a timing takes
REPEATS = 5


def layer_input(shape: list[int], block: list[int], seed: int) -> np.ndarray:
    """Float32 [B, H, W, C], constant in blocks of ``block`` = (rows, columns) pixels, so that windows repeat."""
    batch, height, width, channels = shape
    rng = np.random.default_rng(seed)
    rows, columns = -(-height // block[0]), -(-width // block[1])
    values = rng.standard_normal((batch, rows, columns, channels), np.float32)
    return np.ascontiguousarray(values.repeat(block[0], 1)[:, :height].repeat(block[1], 2)[:, :, :width])


def sample_rows(rows: int, count: int = 256) -> np.ndarray:
    """Some rows of an output, in ascending order."""
    return np.unique(np.linspace(0, rows - 1, min(rows, count)).astype(np.int64))


class Results:
    """The file of results; one JSON object a line."""

    def __init__(self, path: Path):
        self.file = path.open("a", encoding="utf-8")

    def put(self, kind: str, **fields: Any) -> None:
        """Write one."""
        self.file.write(json.dumps({"kind": kind, **fields}) + "\n")
        self.file.flush()


def difference(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """(largest difference, share of rows that agree) relative to the largest |expected|; not finite: infinite, 0."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf"), 0.0
    error = np.abs(found.astype(np.float64) - expected).reshape(len(expected), -1).max(axis=1)
    error /= max(float(np.abs(expected).max()), 1e-30)
    return float(error.max()), float((error <= TOLERANCE).mean())


class Runner:
    """One run of a pack.

    Args:
        pack: its folder.
        results: where they go.
        device: ``cuda``, or ``cpu`` for a pack that was made for processors.
        seconds: after which nothing new begins.
    """

    def __init__(self, pack: Path, results: Results, device: str, seconds: float):
        self.pack, self.results, self.end = pack, results, time.monotonic() + seconds
        self.manifest = json.loads((pack / "manifest.json").read_text(encoding="utf-8"))
        self.tvm, self.device = _runtime(pack, device)
        self.torch = _torch() if device == "cuda" else None
        self.cuda = device == "cuda"
        name = str(self.device.device_name) if self.cuda else "this processor"
        version = None if self.torch is None else self.torch.__version__
        results.put("machine", name=name, torch=version, code=self.manifest["architectures"])

    def run(self) -> int:
        """All of it; returns how many checks failed."""
        failed = 0
        items = self.manifest["items"]
        for name, spec in items.items():
            check = self.check_step if spec["type"] == "step" else self.check
            failed += not self._guarded("check", name, check, spec)
        for part in (
            self.ceilings,
            self.layer_times,
            self.torch_layers,
            self.networks,
            self.graphs,
            self.steps,
            self.phases,
        ):
            part(items)
        self.results.put("end", complete=time.monotonic() < self.end, failed=failed)
        return failed

    def left(self) -> bool:
        """Whether there is time for something new."""
        return time.monotonic() < self.end

    def _guarded(self, kind: str, name: str, work: Callable[..., Any], *args: Any) -> Any:
        """What ``work`` returns; an error is a result, and the rest goes on."""
        if not self.left():
            self.results.put("skipped", what=kind, name=name, reason="no time left")
            return True
        try:
            return work(name, *args)
        except Exception as error:
            self.results.put("error", what=kind, name=name, error=str(error)[:500], where=traceback.format_exc()[-800:])
            return False

    def machine(self, name: str) -> tuple[Any, Any]:
        """A virtual machine with an item's code, and its weights on the device."""
        from tvm.runtime.vm import VirtualMachine

        folder = self.pack / name
        machine = VirtualMachine(self.tvm.runtime.load_module(str(folder / "code.so")), self.device)
        return machine, self.tensor(np.fromfile(folder / "weights.bin", np.uint8))

    def tensor(self, array: np.ndarray) -> Any:
        """An array on the device."""
        return self.tvm.runtime.tensor(array, self.device)

    def input(self, name: str, spec: dict[str, Any]) -> np.ndarray:
        """What goes into an item."""
        if spec["type"] == "network":
            return np.load(self.pack / name / "x.npy", allow_pickle=False)
        return layer_input(spec["shape"], spec["block"], spec["seed"])

    def outputs(self, machine: Any, entry: str, *tensors: Any) -> tuple[np.ndarray, Any]:
        """y and, of a layer that reuses, its stats."""
        out = machine[entry](*tensors)
        if hasattr(out, "numpy"):
            return out.numpy(), None
        return out[0].numpy(), out[1].numpy()

    def check(self, name: str, spec: dict[str, Any]) -> bool:
        """Every entry against the CPU's samples, twice for the same bytes; ``exact`` rows against dense in bits."""
        machine, weights = self.machine(name)
        x = self.tensor(self.input(name, spec))
        good, dense = True, b""
        for entry, exact in spec["entries"].items():
            y, stats = self.outputs(machine, entry, x, weights)
            again, _ = self.outputs(machine, entry, x, weights)
            expected = np.load(self.pack / name / f"expected_{entry}.npy", allow_pickle=False)
            flat = y.reshape(-1, y.shape[-1])
            error, alike = difference(flat[sample_rows(len(flat))], expected)
            same, lossless = y.tobytes() == again.tobytes(), None
            if entry == "dense":
                dense = y.tobytes()
            elif exact == "lossless":
                lossless = y.tobytes() == dense
            passed = same and lossless is not False and (error <= TOLERANCE if exact else alike >= ALIKE)
            r_c = None if stats is None else float(stats[:, 0].sum()) / (spec["vectors"][entry] * spec["shape"][0])
            self.results.put(
                "check",
                name=name,
                entry=entry,
                passed=bool(passed),
                error=error,
                alike=alike,
                same_bytes=same,
                lossless=lossless,
                r_c=r_c,
            )
            good &= bool(passed)
        return good

    def step_tensors(self, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a training step, on the device."""
        with np.load(self.pack / name / "arguments.npz", allow_pickle=False) as arrays:
            return {key: self.tensor(arrays[key]) for key in spec["arguments"]}

    def check_step(self, name: str, spec: dict[str, Any]) -> bool:
        """A training step twice from the same state: loss, logits and momenta, which are the gradients."""
        machine, weights = self.machine(name)
        runs: list[dict[str, np.ndarray]] = []
        for _ in range(2):
            tensors = self.step_tensors(name, spec)
            loss, logits, *_ = list(machine["step"](*tensors.values(), weights))
            found = {"loss": loss.numpy().reshape(1, 1), "logits": logits.numpy()}
            runs.append(found | {key: tensors[key].numpy() for key in tensors if key.endswith("_momentum")})
        good = True
        with np.load(self.pack / name / "expected.npz", allow_pickle=False) as expected:
            for key, value in runs[0].items():
                flat = value.reshape(-1, value.shape[-1])
                error, alike = difference(flat[sample_rows(len(flat))], expected[key])
                same = value.tobytes() == runs[1][key].tobytes()
                passed = bool(same and error <= spec["tolerance"])
                facts = {"passed": passed, "error": error, "alike": alike, "same_bytes": same}
                self.results.put("check", name=name, entry=key, lossless=None, r_c=None, **facts)
                good &= passed
        return good

    def seconds(self, machine: Any, entry: str, *tensors: Any) -> float:
        """Median seconds of a call, by the device's clock."""
        once = float(machine.time_evaluator(entry, self.device, number=1)(*tensors).results[0])
        number = max(1, min(1000, int(SLICE / REPEATS / max(once, 1e-6))))
        timed = machine.time_evaluator(entry, self.device, number=number, repeat=REPEATS)
        return statistics.median(float(t) for t in timed(*tensors).results)

    def ceilings(self, _items: dict[str, Any]) -> None:
        """A copy and a GEMM, of ours and of PyTorch; the faster is the ceiling."""

        def measure(name: str) -> None:
            spec = self.manifest["ceilings"]
            machine, weights = self.machine(name)
            x = self.tensor(np.zeros(spec["copy"], np.float32))
            time = self.seconds(machine, "copy", x, weights)
            self.results.put("ceiling", name="copy", gigabytes=8 * spec["copy"][0] / time / 1e9)
            n = spec["gemm"]
            a = self.tensor(np.ones((1, n, 1, n), np.float32))
            time = self.seconds(machine, "gemm", a, weights)
            self.results.put("ceiling", name="gemm", teraflops=2 * n**3 / time / 1e12)
            if self.torch is not None:
                t = self.torch.ones((n, n), device="cuda")
                time = _torch_seconds(self.torch, lambda: t @ t)
                self.results.put("ceiling", name="gemm of PyTorch", teraflops=2 * n**3 / time / 1e12)
                t = self.torch.zeros(spec["copy"], device="cuda")
                time = _torch_seconds(self.torch, t.clone)
                self.results.put("ceiling", name="copy of PyTorch", gigabytes=8 * spec["copy"][0] / time / 1e9)

        self._guarded("ceiling", "ceilings", measure)

    def layer_times(self, items: dict[str, Any]) -> None:
        """Every entry of every layer."""

        def measure(name: str, spec: dict[str, Any]) -> None:
            machine, weights = self.machine(name)
            x = self.tensor(self.input(name, spec))
            for entry in spec["entries"]:
                if not self.left():
                    return
                self.results.put("time", name=name, entry=entry, seconds=self.seconds(machine, entry, x, weights))

        for name, spec in _of_type(items, "layer"):
            self._guarded("time", name, measure, spec)

    def torch_layers(self, items: dict[str, Any]) -> None:
        """The dense layers with cuDNN, through PyTorch: eager and compiled, in NCHW and channels last, in fp32."""
        torch = self.torch
        if torch is None:
            self.results.put("skipped", what="PyTorch", name="layers", reason="no PyTorch with CUDA")
            return

        def measure(name: str, spec: dict[str, Any]) -> None:
            conv = torch.nn.Conv2d(
                spec["shape"][3], spec["M"], spec["kernel"], spec["strides"], spec["padding"][:2], device="cuda"
            )
            layer = torch.nn.Sequential(conv, torch.nn.ReLU()).eval()
            given = torch.from_numpy(self.input(name, spec)).cuda().permute(0, 3, 1, 2)
            for layout, format in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
                x = given.contiguous(memory_format=format)
                layer = layer.to(memory_format=format)
                for how, run in (("eager", layer), ("compiled", torch.compile(layer))):
                    if not self.left():
                        return
                    with torch.no_grad():
                        time = _torch_seconds(torch, lambda run=run, x=x: run(x))
                    self.results.put("time", name=name, entry=f"cudnn {how} {layout}", seconds=time)

        for name, spec in _of_type(items, "layer"):
            self._guarded("PyTorch", name, measure, spec)

    def networks(self, items: dict[str, Any]) -> None:
        """Whole networks, and the same in PyTorch."""

        def measure(name: str, spec: dict[str, Any]) -> None:
            machine, weights = self.machine(name)
            array = self.input(name, spec)
            x = self.tensor(array)
            for entry in spec["entries"]:
                self.results.put("time", name=name, entry=entry, seconds=self.seconds(machine, entry, x, weights))
            path = self.pack / name / "torch.pt2"
            if self.torch is None or not path.exists():
                return
            module = self.torch.export.load(str(path)).module().cuda()
            given = self.torch.from_numpy(array).cuda()
            for how, run in (("eager", module), ("compiled", self.torch.compile(module))):
                if self.left():
                    with self.torch.no_grad():
                        time = _torch_seconds(self.torch, lambda run=run: run(given))
                    self.results.put("time", name=name, entry=f"cudnn {how}", seconds=time)

        for name, spec in _of_type(items, "network"):
            self._guarded("network", name, measure, spec)

    def steps(self, items: dict[str, Any]) -> None:
        """Training steps on data that is there already, and the same in PyTorch: forward, backward, update."""

        def measure(name: str, spec: dict[str, Any]) -> None:
            machine, weights = self.machine(name)
            tensors = self.step_tensors(name, spec)
            time = self.seconds(machine, "step", *tensors.values(), weights)
            self.results.put("time", name=name, entry="step", seconds=time)
            torch = self.torch
            if torch is None:
                return
            module = torch.export.load(str(self.pack / name / "torch.pt2")).module().cuda()
            x, labels = (torch.from_numpy(tensors[key].numpy()).cuda() for key in spec["arguments"][:2])
            optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)

            def step(run: Any) -> None:
                optimizer.zero_grad()
                with torch.autocast("cuda", torch.bfloat16, enabled=spec["amp"] is not None):
                    loss = torch.nn.functional.cross_entropy(run(x), labels.long())
                loss.backward()
                optimizer.step()

            for how, run in (("eager", module), ("compiled", torch.compile(module))):
                if self.left():
                    time = _torch_seconds(torch, lambda run=run: step(run))
                    self.results.put("time", name=name, entry=f"cudnn {how}", seconds=time)

        for name, spec in _of_type(items, "step"):
            self._guarded("step", name, measure, spec)

    def graphs(self, items: dict[str, Any]) -> None:
        """Networks as one CUDA graph each: the bytes of plain calls, on data it was not captured with; and its time."""
        if not self.cuda:
            self.results.put("skipped", what="graph", name="networks", reason="no GPU")
            return

        def measure(name: str, spec: dict[str, Any]) -> None:
            import tvm_ffi

            graphs = importlib.import_module("cuda_graph")  # of the pack
            (machine, weights), array, driver = self.machine(name), self.input(name, spec), graphs.CudaGraphs()
            x, other = self.tensor(array), np.ascontiguousarray(array[..., ::-1])
            for entry in spec["entries"]:
                held, made = machine[f"{entry}{graphs.HELD}"], []
                held(x, weights)
                self.device.sync()

                def run(stream: int, held: Any = held, made: list[Any] = made) -> None:
                    with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), stream):
                        made.append(held(x, weights))

                graph = driver.capture(run)
                y, _arena = made[0]
                good = True
                for given in (other, array):
                    x.copyfrom(given)
                    driver.launch(graph)
                    good &= y.numpy().tobytes() == machine[entry](x, weights).numpy().tobytes()
                number = 1
                while (seconds := self._launches(driver, graph, number)) < SLICE and number < 1000:
                    number *= 2
                self.results.put("graph", name=name, entry=entry, passed=good)
                self.results.put("time", name=name, entry=f"{entry} (graph)", seconds=seconds / number)
                driver.drop(graph)
                if not good:
                    raise ValueError(f"the graph of {entry} gives other bytes than plain calls")

        for name, spec in _of_type(items, "network"):
            self._guarded("graph", name, measure, spec)

    def _launches(self, driver: Any, graph: Any, number: int) -> float:
        """Seconds until a graph ran some times."""
        self.device.sync()
        start = time.perf_counter()
        for _ in range(number):
            driver.launch(graph)
        self.device.sync()
        return time.perf_counter() - start

    def phases(self, items: dict[str, Any]) -> None:
        """Seconds of each kernel of the layers that reuse; a synchronisation after each makes them longer."""

        def measure(name: str, spec: dict[str, Any]) -> None:
            from tvm.runtime.vm import VirtualMachine

            machine = VirtualMachine(self.tvm.runtime.load_module(str(self.pack / name / "apart.so")), self.device)
            x = self.tensor(self.input(name, spec))
            spent: dict[str, list[float]] = {}
            begun = [0.0]

            def watch(_func: Any, symbol: str, before: bool, *_rest: Any) -> int:
                self.device.sync()
                if before:
                    begun[0] = time.perf_counter()
                elif str(symbol).startswith("adr_"):
                    spent.setdefault(str(symbol), []).append(time.perf_counter() - begun[0])
                return 0

            for entry in spec["entries"]:
                machine[entry](x)
                spent.clear()
                machine.set_instrument(watch)
                for _ in range(REPEATS):
                    machine[entry](x)
                machine.set_instrument(lambda *_: 0)
                seconds = {kernel: sum(times) / REPEATS for kernel, times in spent.items()}
                self.results.put("phases", name=name, entry=entry, seconds=seconds)

        for name, spec in _of_type(items, "layer"):
            if (self.pack / name / "apart.so").exists():
                self._guarded("phases", name, measure, spec)


def _of_type(items: dict[str, Any], kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, spec) for name, spec in items.items() if spec["type"] == kind)


def _runtime(pack: Path, device: str) -> tuple[Any, Any]:
    """TVM's runtime of the pack, else an installed one, and the device.

    Raises:
        RuntimeError: there is no such device.
    """
    if (pack / "site").is_dir():
        sys.path.insert(0, str(pack / "site"))
    import tvm

    if device == "cpu":
        return tvm, tvm.cpu()
    folder = Path(tvm.__file__).parent / "lib"
    for library in (pack / "lib" / "libcudart.so.13", folder / "libtvm_runtime_cuda.so"):
        ctypes.CDLL(str(library) if library.exists() else library.name, ctypes.RTLD_GLOBAL)
    if not tvm.cuda().exist:
        raise RuntimeError("no GPU that CUDA 13 can use: see nvidia-smi")
    return tvm, tvm.cuda()


def _torch() -> Any:
    """PyTorch in fp32 without tensor cores' shorter mantissas; None where it has no GPU."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    return torch


def _torch_seconds(torch: Any, run: Callable[[], Any]) -> float:
    """Median seconds by CUDA events."""

    def timed(number: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(number):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / number

    for _ in range(3):
        timed(1)
    number = max(1, min(1000, int(SLICE / REPEATS / max(timed(1), 1e-6))))
    return statistics.median(timed(number) for _ in range(REPEATS))


def read_results(path: Path) -> list[dict[str, Any]]:
    """The results of a file; a last line that was cut off does not count."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def tables(results: list[dict[str, Any]], items: dict[str, Any]) -> str:
    """What was found, as text."""
    lines: list[str] = []
    for each in results:
        if each["kind"] == "machine":
            lines.append(f"{each['name']}, code for {', '.join(each['code'])}, PyTorch {each['torch']}")
    checks = [each for each in results if each["kind"] == "check"]
    lines += [
        "",
        "checks against CPU results",
        _row(["item", "entry", "passed", "error", "alike", "same bytes", "r_c"]),
    ]
    for each in checks:
        values = (
            each["passed"],
            f"{each['error']:.1e}",
            f"{each['alike']:.3f}",
            each["same_bytes"],
            _share(each["r_c"]),
        )
        lines.append(_row([each["name"], each["entry"], *map(str, values)]))
    ceilings = [each for each in results if each["kind"] == "ceiling"]
    peak = max((each["teraflops"] for each in ceilings if "teraflops" in each), default=None)
    copy = max((each["gigabytes"] for each in ceilings if "gigabytes" in each), default=None)
    if ceilings:
        lines += ["", "ceilings"]
        for each in ceilings:
            what = f"{each['gigabytes']:.0f} GB/s" if "gigabytes" in each else f"{each['teraflops']:.2f} TFLOP/s"
            lines.append(_row([each["name"], what]))
    times: dict[str, dict[str, float]] = {}
    for each in results:
        if each["kind"] == "time":
            times.setdefault(each["name"], {})[each["entry"]] = each["seconds"]
    lines += ["", "times", _row(["item", "entry", "ms", "x dense", "x cuDNN", "TFLOP/s", "of GEMM", "GB/s", "of copy"])]
    for name, entries in times.items():
        best = min((t for entry, t in entries.items() if entry.startswith("cudnn")), default=None)
        for entry, seconds in entries.items():
            spec = items.get(name, {})
            speed, moved = spec.get("flops"), spec.get("bytes")
            flops, rate = (None if n is None else n / seconds for n in (speed, moved))
            lines.append(
                _row(
                    [
                        name,
                        entry,
                        f"{seconds * 1e3:.4f}",
                        _ratio(entries.get("dense"), seconds),
                        _ratio(best, seconds),
                        "" if flops is None else f"{flops / 1e12:.2f}",
                        "" if flops is None or peak is None else f"{flops / 1e12 / peak:.0%}",
                        "" if rate is None else f"{rate / 1e9:.0f}",
                        "" if rate is None or copy is None else f"{rate / 1e9 / copy:.0%}",
                    ]
                )
            )
    for each in results:
        if each["kind"] == "phases":
            lines += ["", f"kernels of {each['name']}, {each['entry']} (a synchronisation after each)"]
            lines += [_row([kernel, f"{s * 1e6:.1f} us"]) for kernel, s in each["seconds"].items()]
    problems = [each for each in results if each["kind"] in ("error", "skipped")]
    if problems:
        lines += ["", "errors and what was left out"]
        lines += [f"{e['what']} {e['name']}: {e.get('error') or e.get('reason')}" for e in problems]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "  ".join(f"{cell:<24}" if i < 2 else f"{cell:>10}" for i, cell in enumerate(cells)).rstrip()


def _ratio(reference: float | None, seconds: float) -> str:
    return "" if reference is None else f"{reference / seconds:.2f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 1 where a check failed, 2 for usage, 5 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="cuda_runner.py", description=__doc__.partition("\n")[0])
    parser.add_argument("pack", type=Path, help="the folder that cuda_pack.sh made")
    parser.add_argument("results", type=Path, help="JSON lines, appended to")
    parser.add_argument("--seconds", type=float, default=420.0, help="after which nothing new begins (default: 420)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a pack made for processors")
    parser.add_argument("--print", action="store_true", help="only print the tables of earlier results")
    arguments = parser.parse_args(argv)
    manifest = arguments.pack / "manifest.json"
    if not manifest.is_file():
        print(
            f"{arguments.pack} is no pack: it has no manifest.json; benchmarks/cuda_pack.sh makes one", file=sys.stderr
        )
        return 2
    failed = 0
    if not arguments.print:
        try:
            runner = Runner(arguments.pack, Results(arguments.results), arguments.device, arguments.seconds)
        except (OSError, RuntimeError, ImportError) as error:
            print(f"cannot run the pack here: {str(error).strip().splitlines()[0]}", file=sys.stderr)
            return 5
        failed = runner.run()
    items = json.loads(manifest.read_text(encoding="utf-8"))["items"]
    print(tables(read_results(arguments.results), items))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
