"""The targets a network can be compiled for, by the name the user gives; one entry each.

``cpu`` is this machine. Every other target is *foreign*: its code is linked by a cross compiler
(``adr_tvm/deploy/toolchain.py``), nothing of it runs here, and planning predicts its times from its core
(``adr_tvm/planner/core_cost.py``; of bare C, which is all that a microcontroller without operating system takes,
``adr_tvm/bare_c/cost.py``) or its GPU (``adr_tvm/planner/gpu_cost.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adr_tvm.errors import UsageError

if TYPE_CHECKING:
    import tvm

    from adr_tvm.precision import Precision

AARCH64 = "aarch64-linux-gnu"
X86_64 = "x86_64-linux-gnu"
BARE_METAL = "arm-none-eabi"
TRIPLES = (AARCH64, X86_64)
MAX_CORES = 1024
MAX_JSON_BYTES = 1 << 16
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_FEATURE = re.compile(r"[+-][A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Core:
    """What predictions know of a processor core; from its maker's manuals, never measured here.

    Attributes:
        ghz: clock under load.
        multiply_adds: vectors of 128 bits of fp32 multiply-adds that it starts in a cycle.
        slowdown: cycles that other work takes, beside a current server core.
    """

    ghz: float
    multiply_adds: float
    slowdown: float


@dataclass(frozen=True)
class Gpu:
    """What code is made for, and what predictions know of it; from its maker's data sheet, never measured here.

    Attributes:
        architectures: that get machine code, such as ``sm_80``, ascending.
        ptx: virtual architecture whose PTX newer GPUs can compile; None: they cannot run it.
        teraflops: of fp32 without tensor cores.
        gigabytes: to and from memory in a second.
        tf32, half: teraflops of tensor cores, without sparsity: of tf32; of fp16, and of bf16 where they know it.
    """

    architectures: tuple[str, ...]
    ptx: str | None
    teraflops: float
    gigabytes: float
    tf32: float = 0.0
    half: float = 0.0


@dataclass(frozen=True)
class TargetEntry:
    """A target.

    Attributes:
        name: as on the command line and in plans.
        description: for the help.
        make: builds TVM's target for a number of threads (None: the target's own); imports TVM.
        triple: GNU name of the system; None: this machine.
        mcpu: LLVM's name of the core; empty: this machine's.
        mattr: LLVM's names of its features, where they are not left to ``mcpu``.
        cores: threads that work divides among by default; None: this machine's physical cores.
        core: what to predict times from; None where nothing is known.
        gpu: where kernels run, if not on the processor.
    """

    name: str
    description: str
    make: Callable[[int | None], tvm.target.Target]
    triple: str | None = None
    mcpu: str = ""
    cores: int | None = None
    core: Core | None = None
    gpu: Gpu | None = None
    mattr: tuple[str, ...] = ()

    @property
    def foreign(self) -> bool:
        """Whether nothing of it runs here, so that its times can only be predicted."""
        return self.triple is not None or self.gpu is not None

    @property
    def bare_metal(self) -> bool:
        """Whether it has no operating system, so that it takes bare C and nothing else."""
        return self.triple == BARE_METAL

    @property
    def has_half(self) -> bool:
        """Whether it is an Arm core that computes in fp16."""
        return self.triple == AARCH64 and self.gpu is None and "+fullfp16" in self.mattr

    @property
    def takes_bare_c(self) -> bool:
        """Whether bare C can be written for it: for a microcontroller, or a 64-bit Arm core."""
        return self.triple in (BARE_METAL, AARCH64) and self.gpu is None


def _this_cpu(_threads: int | None = None) -> tvm.target.Target:
    from adr_tvm._tvm import cpu_target
    from adr_tvm.deploy.threads import set_threads

    return cpu_target(threads=set_threads())


def _foreign(
    name: str, description: str, triple: str, mcpu: str, mattr: list[str], cores: int, core: Core | None
) -> TargetEntry:
    def make(threads: int | None = None) -> tvm.target.Target:
        from adr_tvm._tvm import foreign_target

        return foreign_target(triple, mcpu, mattr, threads or cores)

    return TargetEntry(name, description, make, triple, mcpu, cores, core, mattr=tuple(mattr))


def _microcontroller(name: str, description: str) -> TargetEntry:
    def make(_threads: int | None = None) -> tvm.target.Target:
        from adr_tvm._tvm import foreign_target

        return foreign_target("thumbv7em-none-eabihf", name, [], 1)

    return TargetEntry(name, description, make, BARE_METAL, name, 1)


def _cuda(name: str, description: str, gpu: Gpu, triple: str | None = None, mcpu: str = "") -> TargetEntry:
    def make(_threads: int | None = None) -> tvm.target.Target:
        from adr_tvm._tvm import cuda_target

        return cuda_target(gpu.architectures[0], triple, mcpu)

    return TargetEntry(name, description, make, triple, mcpu, None if triple is None else 1, gpu=gpu)


def has_tensor_cores(architecture: str, precision: Precision) -> bool:
    """Whether the tensor cores of an architecture, such as ``sm_80``, multiply a data type."""
    return ARCHITECTURES.index(architecture) >= ARCHITECTURES.index(precision.architecture)


def with_architectures(entry: TargetEntry, names: str) -> TargetEntry:
    """A CUDA target that gets machine code for other architectures than its own.

    Args:
        entry: the target.
        names: architectures, separated by commas, such as ``sm_80,sm_90``.

    Raises:
        UsageError: the target is no CUDA target, or an architecture is not known.
    """
    if entry.gpu is None:
        raise UsageError(f"--arch is for CUDA targets, not for {entry.name}")
    given = sorted({name.strip() for name in names.split(",")}, key=lambda name: (len(name), name))
    unknown = [name for name in given if name not in ARCHITECTURES]
    if unknown:
        raise UsageError(f"--arch {unknown[0]!r} is not known; there is {', '.join(ARCHITECTURES)}")
    gpu = replace(entry.gpu, architectures=tuple(given), ptx=None)
    return _cuda(entry.name, entry.description, gpu, entry.triple, entry.mcpu)


# The Raspberry Pi's cores up to the 4 lack the cryptographic instructions that Arm's own have.
_NEON, _NO_CRYPTO = ["+neon"], ["+neon", "-aes", "-sha2"]
_V8_2 = ["+neon", "+fullfp16", "+dotprod"]
# Two vector units of 64 bits up to the Cortex-A72, of 128 bits from the Cortex-A76 on.
_A53, _A72, _A76 = Core(1.4, 1, 4.0), Core(1.5, 1, 2.2), Core(2.4, 2, 1.6)
_A78, _N1 = Core(2.0, 2, 1.5), Core(2.5, 2, 1.6)

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90")
NEWEST = "compute_90"  # whose PTX later GPUs compile when they load it

_ENTRIES = (
    TargetEntry("cpu", "the processor of this machine", _this_cpu),
    _foreign("rpi3", "Raspberry Pi 3, 64-bit system", AARCH64, "cortex-a53", _NO_CRYPTO, 4, _A53),
    _foreign("rpi4", "Raspberry Pi 4, 64-bit system", AARCH64, "cortex-a72", _NO_CRYPTO, 4, _A72),
    _foreign("rpi5", "Raspberry Pi 5", AARCH64, "cortex-a76", _V8_2, 4, _A76),
    _foreign("jetson-cpu", "CPU of a Jetson Orin", AARCH64, "cortex-a78ae", _V8_2, 6, _A78),
    _foreign("cortex-a53", "boards with Cortex-A53", AARCH64, "cortex-a53", _NEON, 4, _A53),
    _foreign("cortex-a72", "boards with Cortex-A72", AARCH64, "cortex-a72", _NEON, 4, _A72),
    _foreign("cortex-a76", "boards with Cortex-A76", AARCH64, "cortex-a76", _V8_2, 4, _A76),
    _foreign("neoverse", "Arm servers, Neoverse N1 and later", AARCH64, "neoverse-n1", _V8_2, 4, _N1),
    _foreign("arm64", "any 64-bit Arm with Linux", AARCH64, "generic", _NEON, 4, _A53),
    _microcontroller("cortex-m4", "microcontrollers with Cortex-M4F, bare C"),
    _microcontroller("cortex-m7", "microcontrollers with Cortex-M7, bare C"),
    # Where the GPU is not known its times are predicted as those of an A100.
    _cuda("cuda", "NVIDIA GPUs from Turing on", Gpu(ARCHITECTURES, NEWEST, 19.5, 1555, 156, 312)),
    _cuda(
        "jetson-orin", "GPU of a Jetson Orin", Gpu(("sm_87",), None, 5.3, 204.8, 21.3, 42.5), AARCH64, "cortex-a78ae"
    ),
    _cuda("t4", "NVIDIA T4", Gpu(("sm_75",), None, 8.1, 320, 0, 65)),
    _cuda("a100", "NVIDIA A100", Gpu(("sm_80",), None, 19.5, 1555, 156, 312)),
    _cuda("h100", "NVIDIA H100", Gpu(("sm_90",), None, 67, 3350, 495, 989)),
    _cuda("h200", "NVIDIA H200", Gpu(("sm_90",), None, 67, 4800, 495, 989)),
)

TARGETS = {entry.name: entry for entry in _ENTRIES}


def find_target(name: str) -> TargetEntry:
    """The target of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in TARGETS:
        raise UsageError(f"--target {name!r} is not known; there is {', '.join(TARGETS)}; or give --target-json FILE")
    return TARGETS[name]


def read_target(path: str | Path) -> TargetEntry:
    """The target that a JSON file describes in TVM's words, named as the file is.

    Such as ``{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a57", "mattr": ["+neon"],
    "num-cores": 4}``; ``mattr`` may be left out.

    Raises:
        UsageError: the file cannot be read, or is not such a description.
    """
    path, where = Path(path), f"--target-json {path}"
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UsageError(f"{where} is larger than {MAX_JSON_BYTES >> 10} KiB: not a target")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not valid JSON: {error}") from error
    problem = _problem(content)
    if problem:
        raise UsageError(f"{where}: {problem}")
    triple, mcpu, cores = content["mtriple"], content["mcpu"], content["num-cores"]
    return _foreign(path.stem, f"{mcpu} of {path.name}", triple, mcpu, content.get("mattr", []), cores, None)


def _problem(content: Any) -> str:
    """What is wrong with a description of a target; empty if nothing is."""
    if not isinstance(content, Mapping):
        return 'expected an object, such as {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a57"}'
    known = ("kind", "mtriple", "mcpu", "mattr", "num-cores")
    missing = [key for key in known if key not in content and key != "mattr"]
    unknown = [key for key in content if key not in known]
    if missing or unknown:
        return f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is not known, there is {', '.join(known)}"
    cores, mattr = content["num-cores"], content.get("mattr", [])
    if content["kind"] != "llvm":
        return f"kind is {content['kind']!r}, only 'llvm' can be built"
    if content["mtriple"] not in TRIPLES:
        return f"mtriple is {content['mtriple']!r}, expected one of {', '.join(TRIPLES)}"
    if not isinstance(content["mcpu"], str) or not _NAME.fullmatch(content["mcpu"]):
        return f"mcpu is {content['mcpu']!r}, expected LLVM's name of a processor"
    if not isinstance(mattr, list) or not all(isinstance(each, str) and _FEATURE.fullmatch(each) for each in mattr):
        return f"mattr is {mattr!r}, expected a list such as ['+neon', '-aes']"
    if type(cores) is not int or not 1 <= cores <= MAX_CORES:
        return f"num-cores is {cores!r}, expected 1 to {MAX_CORES}"
    return ""
