"""The bundle: the folder that compiling writes and that ``adr_tvm.load`` reads.

| file | content |
|---|---|
| ``bundle.json`` | the manifest: what the library takes and returns, and what it was made from |
| ``model.so`` | the compiled network: entries ``main``, ``dense`` and, if a layer reuses, ``main_counts`` |
| ``weights.bin`` | the constants of all entries, which take them as their last argument |
| ``plan.json``, ``planes.npz`` | the plan |
| ``report.json``, ``report.html``, ``timings.json`` | what was measured |

A Linux bundle holds more: ``adr_tvm/deploy/linux_bundle.py``. Bare C (``adr_tvm/bare_c/bundle.py``) is a folder of
sources with plan and reports, whose manifest is ``model.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import adr_tvm
from adr_tvm.bare_c.files import C_MANIFEST, c_files
from adr_tvm.data.tensor_spec import TensorSpec
from adr_tvm.deploy.linux_bundle import LINUX_FILES, LINUX_LIBRARY, LinuxParts, write_linux_parts, write_runtime
from adr_tvm.deploy.processor import vector_extensions
from adr_tvm.deploy.toolchain import toolchain_of
from adr_tvm.errors import ModelError, UsageError
from adr_tvm.jsonfile import read_json, write_json
from adr_tvm.plan import PLAN_FILE, PLANES_FILE, ReusePlan, installed_tvm_version
from adr_tvm.report.results import REPORT_FILE
from adr_tvm.settings import Scope
from adr_tvm.targets import TARGETS, TargetEntry

if TYPE_CHECKING:
    import tvm

    from adr_tvm.frontend.onnx_model import CheckedModel
    from adr_tvm.library import Library

FORMAT_VERSION = 1
MANIFEST_FILE = "bundle.json"
LIBRARY_FILE = "model.so"
WEIGHTS_FILE = "weights.bin"
TIMINGS_FILE = "timings.json"
HTML_FILE = "report.html"
BUNDLE_FILES = (
    MANIFEST_FILE, LIBRARY_FILE, WEIGHTS_FILE, PLAN_FILE, PLANES_FILE, REPORT_FILE, TIMINGS_FILE, HTML_FILE,
)  # fmt: skip


@dataclass(frozen=True)
class ReuseLayer:
    """A layer that reuses.

    Attributes:
        layer: the ONNX node name.
        vectors: neuron vectors of one image, all segments together.
        scope: ``image``: every image is a unit; ``batch``: the call is one.
        max_clusters: clusters in a unit above which it runs dense; None never does.
    """

    layer: str
    vectors: int
    scope: Scope
    max_clusters: int | None


@dataclass(frozen=True)
class Manifest:
    """``bundle.json``.

    Attributes:
        model, model_sha256: file name and hash of the ONNX file.
        target: what was compiled for, as the user named it.
        cpu: LLVM's name of that processor.
        cpu_features: vector extensions that the library may use; without them it cannot run.
        device: ``cuda`` where the kernels run on a GPU, else ``cpu``.
        dtype: that it computes in, as in ``CompileOptions``; inputs and outputs are as they are listed.
        library_sha256, weights_sha256: of the library and ``weights.bin``.
        inputs, outputs: of the network, in order.
        reuse_layers: in the order of the counts of ``main_counts``.
        lossless: whether ``main`` returns the same bits as ``dense``.
        adr_version, tvm_version: of the programs that made the bundle.
        version: of the file format.
    """

    model: str
    model_sha256: str
    target: str
    cpu: str
    cpu_features: list[str]
    library_sha256: str
    weights_sha256: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    reuse_layers: list[ReuseLayer]
    lossless: bool
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: str = "float32"
    adr_version: str = adr_tvm.__version__
    tvm_version: str = field(default_factory=installed_tvm_version)
    version: int = FORMAT_VERSION

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    def save(self, folder: str | Path) -> Path:
        """Write ``bundle.json`` into ``folder``.

        Raises:
            UsageError: the folder cannot be written.
        """
        path = Path(folder) / MANIFEST_FILE
        write_json(path, asdict(self))
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Read ``bundle.json`` of a bundle.

        Raises:
            ModelError: the folder is no bundle, or the file is damaged or of a newer format.
        """
        path = Path(folder) / MANIFEST_FILE
        if not path.parent.is_dir():
            raise ModelError(f"{path.parent} is not a folder: give the one that adr-compile wrote")
        if not path.is_file():
            raise ModelError(f"{path.parent} is not a bundle, it has no {MANIFEST_FILE}: make one with adr-compile")
        return read_json(path, cls, FORMAT_VERSION, ModelError)


def write_bundle(
    folder: str | Path,
    executable: Library,
    checked: CheckedModel,
    plan: ReusePlan,
    mod: tvm.IRModule,
    target: tvm.target.Target,
    entry: TargetEntry | None = None,
    linux: LinuxParts | None = None,
) -> Manifest:
    """Write all of a bundle but the reports; returns the manifest.

    Args:
        folder: takes the files; usually from ``staged``.
        executable: what ``adr_tvm.build.build_plan`` made.
        checked: the model.
        plan: what was applied.
        mod: the canonical module, before the plan was applied.
        target: what the executable is for.
        entry: the same as the user named it; None: as the plan does, and linked on this machine.
        linux: what a Linux bundle is made with; None: none is.

    Raises:
        MissingDependencyError: there is no C++ compiler to link with, or it cannot compile the C API.
        UsageError: the folder cannot be written.
    """
    folder = Path(folder)
    if linux is None:
        write_library(executable, folder, entry)
    else:
        write_runtime(folder, linux)
        write_library(executable, folder, entry, LINUX_LIBRARY, linux.link_options(folder))
        write_linux_parts(folder, linux)
    plan.save(folder)
    manifest = describe(checked, plan, mod, target, folder)
    if entry is not None:
        manifest = replace(manifest, target=entry.name)
    manifest.save(folder)
    return manifest


def write_library(
    executable: Library,
    folder: str | Path,
    entry: TargetEntry | None = None,
    name: str = LIBRARY_FILE,
    options: Sequence[str] = (),
) -> Path:
    """Link an executable and write ``weights.bin``; returns the library's path.

    Args:
        executable: what was compiled.
        folder: takes the files.
        entry: the target it was compiled for; None: this machine.
        name: of the library in the folder.
        options: of the linker.

    Raises:
        MissingDependencyError: there is no C++ compiler to link with.
        UsageError: the folder cannot be written.
    """
    from tvm.support import cc

    compiler = toolchain_of(entry or TARGETS["cpu"]).check()
    path = Path(folder) / name
    code, weights = executable.without_weights()
    try:
        code.export_library(str(path), fcompile=cc.cross_compiler(compiler, list(options)))
        weights.tofile(Path(folder) / WEIGHTS_FILE)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def library_of(folder: Path) -> Path:
    """The library of a bundle, be it a Linux bundle or not."""
    linux = folder / LINUX_LIBRARY
    return linux if linux.is_file() else folder / LIBRARY_FILE


def describe(
    checked: CheckedModel, plan: ReusePlan, mod: tvm.IRModule, target: tvm.target.Target, folder: Path
) -> Manifest:
    """The manifest of a bundle whose library is written; arguments as for ``write_bundle``."""
    from adr_tvm._tvm import cpu_features, is_cuda, processor_target
    from adr_tvm.passes.mark_candidates import CandidateRules, find_candidates

    layers = [
        ReuseLayer(c.layer, c.geometry.vectors(setting), setting.scope, setting.max_clusters)
        for c in find_candidates(mod["main"], "main", CandidateRules())
        if (setting := plan.reused.get(c.layer)) is not None and c.geometry is not None
    ]
    bits_kept = is_cuda(target) or plan.dtype != "fp16"  # on Arm, layers that reuse compute in fp32 then
    return Manifest(
        model=checked.path.name,
        model_sha256=checked.sha256,
        target=plan.target,
        cpu=str(processor_target(target).attrs.get("mcpu", "")),
        cpu_features=vector_extensions(cpu_features(processor_target(target))),
        library_sha256=file_sha256(library_of(folder)),
        weights_sha256=file_sha256(folder / WEIGHTS_FILE),
        inputs=list(checked.inputs),
        outputs=list(checked.outputs),
        reuse_layers=layers,
        lossless=not plan.reused or (bits_kept and all(setting.lossless for setting in plan.reused.values())),
        device="cuda" if is_cuda(target) else "cpu",
        dtype=plan.dtype,
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


@contextmanager
def staged(folder: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``folder``, which takes its place when the context ends without an error.

    After an error or Ctrl-C ``folder`` is as it was. An existing ``folder`` is replaced only if it is empty
    or holds a bundle and nothing else.

    Raises:
        UsageError: ``folder`` cannot be written, or holds something else; on entry, before any work is done.
        ValueError: at the end, the temporary folder holds a file that is no part of a bundle.
    """
    goal = Path(os.path.realpath(folder))  # where ``folder`` is a link, the link stays
    _check_replaceable(goal)
    beside = f".{goal.name}.{os.getpid()}-{secrets.token_hex(4)}"
    staging, old = goal.with_name(f"{beside}.part"), goal.with_name(f"{beside}.old")
    try:  # entered before there is a folder: an interrupt may come as soon as it is made
        try:
            staging.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"cannot write {folder}: {error.strerror or error}") from error
        yield staging
        unknown = _foreign(staging)
        if unknown:
            raise ValueError(f"{unknown[0]} is not a file of a bundle")
        _check_replaceable(goal)
        _swap(staging, goal, old)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_replaceable(goal: Path) -> None:
    try:
        names = os.listdir(goal)
        foreign = _foreign(goal)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot write {goal}: {error.strerror or error}") from error
    if names and not _is_bundle(goal):
        raise UsageError(f"{goal} is not empty and not a bundle: give a new folder, nothing in it is touched")
    if foreign:
        raise UsageError(f"{goal} holds {foreign[0]!r}, which is no part of a bundle: move it away first")


def _foreign(folder: Path) -> list[str]:
    """Files and links in a folder that are no part of a bundle, by their path in it; so are folders without files."""
    found, known = [], {*BUNDLE_FILES, *LINUX_FILES, *c_files()}
    for path, folders, files in os.walk(folder):
        names = files if files or folders or path == str(folder) else [""]
        names = [*names, *(each for each in folders if os.path.islink(os.path.join(path, each)))]
        found += [os.path.normpath(os.path.relpath(os.path.join(path, name), folder)) for name in names]
    return sorted(set(found) - known)


def _is_bundle(folder: Path) -> bool:
    for name in (MANIFEST_FILE, C_MANIFEST):
        try:
            content = json.loads((folder / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict) and "adr_version" in content:
            return True
    return False


def _swap(staging: Path, goal: Path, old: Path) -> None:
    try:
        if goal.exists():
            os.rename(goal, old)
        os.rename(staging, goal)
    except BaseException as error:
        if old.exists() and not goal.exists():
            os.rename(old, goal)
        if isinstance(error, OSError):
            raise UsageError(f"cannot write {goal}: {error.strerror or error}") from error
        raise
    shutil.rmtree(old, ignore_errors=True)
