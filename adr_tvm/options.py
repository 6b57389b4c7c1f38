"""The options of a compile run: the command line's and the library's are the same.

Nothing heavy is imported here: the command line reads the defaults for its help.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from adr_tvm.errors import UsageError
from adr_tvm.precision import PRECISIONS, Precision
from adr_tvm.remote.address import Address, parse_address
from adr_tvm.settings import GRANULARITIES, HASH_FAMILIES, MAX_BITS, SCOPES
from adr_tvm.targets import (
    TARGETS,
    TargetEntry,
    find_target,
    has_tensor_cores,
    read_target,
    with_architectures,
)

if TYPE_CHECKING:
    from adr_tvm.plan import ReusePlan

EMITTED = ("library", "bundle", "c")
FLOAT32 = ("float32", "fp32")  # two names of the default
DTYPES = (*FLOAT32, "int8", *PRECISIONS)
WEIGHTS = ("arrays", "blob")
DEFAULT_C_TARGET = "cortex-m4"
METRIC_NAMES = ("auto", "top1", "agreement", "psnr", "nmse")


@dataclass(frozen=True)
class CompileOptions:
    """What to compile for, how accurate it must stay and what may be tried.

    Attributes:
        target: one of ``adr_tvm.targets``; None: this machine's ``cpu``, for ``c`` ``DEFAULT_C_TARGET``.
        target_json: file that describes another target in TVM's words; in place of ``target``.
        arch: architectures that a CUDA target gets machine code for, such as ``sm_80,sm_90``; None: the target's own.
        input_shapes: shapes to fix, by input name; a name as first dimension leaves the batch symbolic.
        labels_name: array of the calibration data that holds the class labels.
        metric: what the accuracy budget is measured in; ``auto`` is top1 with labels, else agreement for
            classifiers, psnr if ``min_psnr`` is given, else nmse.
        max_drop: budget: largest drop of top1 or agreement, as a fraction; for nmse its largest value.
        min_psnr: budget for psnr: its smallest value, in dB; None: 40 where the metric is psnr.
        lossless: allow bit-identical reuse only.
        skip: layers whose name one of these regular expressions finds stay dense; wins over ``only``.
        only: layers whose name none of these finds stay dense; empty allows all.
        plan: a plan (or its file or folder) to apply in place of a search.
        timings: file of measured times to search with in place of measuring.
        cost_model: file with the cost model that prunes the search; None: this machine's, fitted by
            ``adr-bench --fit-machine``, or defaults.
        tune: schedules to try for each kernel, on this machine (its GPU, for CUDA targets) or the board; None tunes
            nothing.
        tuning_db: file with tuned schedules, which ``tune`` adds to; None: where ``tune`` is given, one in the user's
            cache folder, else every kernel gets its default schedule.
        granularity, L, H, hash, scope: narrow the search to these; see ``ReuseSetting``.
        seed: everything random derives from it.
        threads: that kernels are measured with, or of a foreign target predicted; None: all physical cores.
        time_budget: seconds after which the search takes the best it has; None: no limit.
        batch_size: samples in a calibration batch; None: the model's own, 32 where it is free.
        min_speedup: goal for dense time / reuse time of the network.
        emit: ``library``: the folder that ``adr_tvm.load`` takes; ``bundle``: also what C and C++ need to run it;
            ``c``: self-contained C99, for a microcontroller or a 64-bit Arm core.
        dtype: of activations and weights: ``float32`` (or ``fp32``); for ``c`` ``int8``, quantised with the calibration
            data; for CUDA targets ``tf32``, ``bf16`` or ``fp16``, on tensor cores; ``fp16`` for Arm cores
            that compute in it.
        weights: where constants of ``c`` are: ``arrays`` of its sources, or ``blob``: in a file, ``weights.bin``.
        max_ram, max_flash: goals in bytes for ``c``: arena, inputs and outputs; constants and code.
        runtime_dir: folder with TVM's runtime for the target, or its wheels; None: this machine's, where it fits.
        dump_ir: folder that takes the module after each pass.
        rpc: address of a board, or of a tracker, as ``HOST:PORT``: times are measured there; None: they are measured
            here, or for another machine's target predicted.
        key: of the board.
        rpc_timeout: seconds that any call of the board may take.

    Raises:
        UsageError: a value out of range, or options that contradict each other.
    """

    target: str | None = None
    target_json: str | Path | None = None
    arch: str | None = None
    input_shapes: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    labels_name: str | None = None
    metric: str = "auto"
    max_drop: float = 0.01
    min_psnr: float | None = None
    lossless: bool = False
    skip: Sequence[str] = ()
    only: Sequence[str] = ()
    plan: ReusePlan | str | Path | None = None
    timings: str | Path | None = None
    cost_model: str | Path | None = None
    tune: int | None = None
    tuning_db: str | Path | None = None
    granularity: str | None = None
    L: int | None = None
    H: int | None = None
    hash: str | None = None
    scope: str | None = None
    seed: int = 0
    threads: int | None = None
    time_budget: float | None = None
    batch_size: int | None = None
    min_speedup: float | None = None
    emit: str = "library"
    dtype: str = "float32"
    weights: str = "arrays"
    max_ram: int | None = None
    max_flash: int | None = None
    runtime_dir: str | Path | None = None
    dump_ir: str | Path | None = None
    rpc: str | None = None
    key: str | None = None
    rpc_timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.dtype in FLOAT32:
            object.__setattr__(self, "dtype", FLOAT32[0])
        self._check_target()
        self._check_numbers()
        self._check_words()
        self._check_dtype()
        self._check_metric()
        self._check_search()

    @cached_property
    def entry(self) -> TargetEntry:
        """What to compile for; ``cuda`` alone is the GPU at hand, where there is one."""
        named = self.target or (DEFAULT_C_TARGET if self.emit == "c" else "cpu")
        found = find_target(named) if self.target_json is None else read_target(self.target_json)
        if self.arch is not None:
            return with_architectures(found, self.arch)
        if found.name != "cuda":
            return found
        from adr_tvm.cuda.present import for_present_gpu

        return for_present_gpu(found)

    @cached_property
    def board(self) -> Address | None:
        """Where times are measured; None: not on a board."""
        return None if self.rpc is None else parse_address(self.rpc, self.key)

    @property
    def precision(self) -> Precision | None:
        """The data type that tensor cores, or an Arm core, multiply; None: products are fp32 or integers."""
        return PRECISIONS.get(self.dtype)

    @property
    def narrowed(self) -> dict[str, object]:
        """The options that narrow the search, by flag, with their values."""
        named = {
            "--granularity": self.granularity,
            "--L": self.L,
            "--H": self.H,
            "--hash": self.hash,
            "--scope": self.scope,
        }
        return {flag: value for flag, value in named.items() if value is not None}

    def _check_target(self) -> None:
        if self.target_json is not None and self.target is not None:
            raise UsageError("--target and --target-json both say what to compile for: give one")
        if self.rpc is None and self.key is not None:
            raise UsageError("--key names a board of --rpc HOST:PORT, which is missing")
        if self.board is not None and not self.entry.foreign:
            raise UsageError("--rpc needs the board's --target, or its --target-json; cpu is this machine")
        if self.entry.bare_metal and self.emit != "c":
            raise UsageError(f"--target {self.entry.name} has no operating system to load a library: add --emit c")
        if self.emit == "c":
            if not self.entry.takes_bare_c:
                names = ", ".join(name for name, entry in TARGETS.items() if entry.takes_bare_c)
                raise UsageError(f"--emit c is for --target {names}; the C compiles for any machine")
            single = (("--threads", self.threads), ("--cost-model", self.cost_model), ("--rpc", self.rpc))
            needless = [flag for flag, value in single if value is not None]
            if needless:
                raise UsageError(f"{' and '.join(needless)} cannot go with --emit c: it runs on one core, unmeasured")
        if self.entry.gpu is not None:
            self._check_cuda()
            return
        if self.board is not None or not self.entry.foreign:
            return
        given = (("--tune", self.tune), ("--tuning-db", self.tuning_db), ("--timings", self.timings))
        measured = [flag for flag, value in given if value is not None]
        if measured:
            raise UsageError(
                f"{' and '.join(measured)} cannot go with target {self.entry.name}: its code does not run on this "
                "machine, so nothing is measured; with --rpc HOST:PORT a board measures, and --cost-model takes what "
                "adr-bench --fit-machine measured there"
            )

    def _check_cuda(self) -> None:
        from adr_tvm.cuda.present import runs_here

        if self.rpc is not None:
            raise UsageError(f"--rpc measures on processors, not on {self.entry.name}")
        for flag, value, way in (
            ("--timings", self.timings, ""),
            ("--tune", self.tune, "; --tuning-db takes what was tuned where there is one"),
        ):
            if value is not None and not runs_here(self.entry):
                raise UsageError(
                    f"{flag} cannot go with target {self.entry.name}: this machine has no GPU that runs its code, so "
                    f"nothing is measured{way}"
                )
        if self.emit == "bundle":
            raise UsageError(f"--emit bundle holds a runtime for processors, not for {self.entry.name}: use library")
        if self.cost_model is not None:
            raise UsageError(f"--cost-model is of a processor; times of {self.entry.name} do not")

    def _check_numbers(self) -> None:
        for flag, value, lowest, highest in (
            ("--max-drop", self.max_drop, 0, 1),
            ("--L", self.L, 1, None),
            ("--H", self.H, 1, MAX_BITS),
            ("--seed", self.seed, 0, 2**63 - 1),
            ("--threads", self.threads, 1, 1024),
            ("--batch-size", self.batch_size, 1, None),
            ("--tune", self.tune, 1, 1_000_000),
            ("--max-ram", self.max_ram, 1, None),
            ("--max-flash", self.max_flash, 1, None),
        ):
            if value is not None and not (value >= lowest and (highest is None or value <= highest)):
                to = "or more" if highest is None else f"to {highest}"
                raise UsageError(f"{flag} is {value}, expected {lowest} {to}")
        for flag, number in (
            ("--time-budget", self.time_budget),
            ("--min-speedup", self.min_speedup),
            ("--rpc-timeout", self.rpc_timeout),
        ):
            if number is not None and not (number > 0 and math.isfinite(number)):
                raise UsageError(f"{flag} is {number}, expected more than 0")
        if self.min_psnr is not None and not math.isfinite(self.min_psnr):
            raise UsageError(f"--min-psnr is {self.min_psnr}, expected a number of dB")

    def _check_words(self) -> None:
        for flag, value, allowed in (
            ("--metric", self.metric, METRIC_NAMES),
            ("--granularity", self.granularity, GRANULARITIES),
            ("--hash", self.hash, HASH_FAMILIES),
            ("--scope", self.scope, SCOPES),
            ("--emit", self.emit, EMITTED),
            ("--dtype", self.dtype, DTYPES),
            ("--weights", self.weights, WEIGHTS),
        ):
            if value is not None and value not in allowed:
                raise UsageError(f"{flag} is {value!r}, expected one of {', '.join(allowed)}")
        if self.emit != "c":
            if self.weights != "arrays":
                raise UsageError(f"--weights {self.weights} is for --emit c")
            for flag, limit in (("--max-ram", self.max_ram), ("--max-flash", self.max_flash)):
                if limit is not None:
                    raise UsageError(f"{flag} is for --emit c")
        if self.runtime_dir is not None and self.emit != "bundle":
            raise UsageError("--runtime-dir is for --emit bundle, which holds TVM's runtime")
        for flag, patterns in (("--skip", self.skip), ("--only", self.only)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except (re.error, RecursionError, OverflowError) as error:
                    raise UsageError(f"{flag} {pattern!r} is not a regular expression: {error}") from None

    def _check_dtype(self) -> None:
        if self.dtype == "int8" and self.emit != "c":
            raise UsageError(f"--dtype {self.dtype} is for --emit c")
        if self.precision is None:
            return
        gpu = self.entry.gpu
        if gpu is None:
            self._check_half()
            return
        if self.granularity not in (None, "row") or self.L is not None:
            flag = "--L" if self.granularity in (None, "row") else f"--granularity {self.granularity}"
            raise UsageError(f"{flag} cannot go with --dtype {self.dtype}: on tensor cores there is reuse of rows only")
        able = [name for name in gpu.architectures if has_tensor_cores(name, self.precision)]
        lacking = [name for name in gpu.architectures if name not in able]
        if lacking:
            way = f"compile for later ones, --arch {','.join(able)}" if able else "use --dtype fp16"
            raise UsageError(f"--dtype {self.dtype} is not known to the tensor cores of {', '.join(lacking)}: {way}")
        if self.dtype == "tf32" and not gpu.tf32:
            raise UsageError(f"--dtype tf32 is not known to the tensor cores of {self.entry.name}: use --dtype fp16")

    def _check_half(self) -> None:
        """Whether an Arm core computes in the data type."""
        if self.dtype != "fp16" or not self.entry.has_half or self.emit == "c":
            names = ", ".join(name for name, entry in TARGETS.items() if entry.gpu is not None)
            half = ", ".join(name for name, entry in TARGETS.items() if entry.has_half)
            also = f" and Arm cores that compute in it ({half})" if self.dtype == "fp16" else ""
            where = "--emit c" if self.emit == "c" else self.entry.name
            raise UsageError(f"--dtype {self.dtype} is for CUDA targets ({names}){also}, not for {where}")
        if self.rpc is not None:
            raise UsageError("--rpc cannot go with --dtype fp16: boards measure in fp32")
        if self.lossless:
            raise UsageError(
                f"--lossless cannot go with --dtype fp16 for {self.entry.name}: layers that reuse compute in fp32 there"
            )

    def _check_metric(self) -> None:
        if self.min_psnr is not None and self.metric not in ("auto", "psnr"):
            raise UsageError(f"--min-psnr is for --metric psnr, not for {self.metric}: use --max-drop")
        if self.metric == "top1" and self.labels_name is None:
            raise UsageError("--metric top1 needs class labels: add --labels-name, or use --metric agreement")

    def _check_search(self) -> None:
        if self.plan is not None:
            searching = [*self.narrowed]
            searching += ["--lossless"] if self.lossless else []
            searching += [flag for flag, on in (("--skip", self.skip), ("--only", self.only)) if on]
            searching += ["--time-budget"] if self.time_budget is not None else []
            searching += ["--cost-model"] if self.cost_model is not None and not self.entry.foreign else []
            if searching:
                raise UsageError(
                    f"{' and '.join(searching)} cannot go with --plan, which decides all layers: "
                    "edit the plan or search without it"
                )
        if self.lossless:
            for flag, value in self.narrowed.items():
                if value not in ("exact", "row") and flag != "--scope":
                    raise UsageError(f"{flag} {value} cannot go with --lossless, which is row with exact")
        if self.hash == "learned":
            raise UsageError("--hash learned needs planes trained with the network: give them by --plan")
        if self.hash == "exact" and self.H is not None:
            raise UsageError("--H cannot go with --hash exact, which has no hash bits")
        if self.granularity == "row" and self.L is not None:
            raise UsageError("--L cannot go with --granularity row, whose vectors are whole rows")
