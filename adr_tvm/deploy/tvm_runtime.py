"""TVM's runtime for a target: the two libraries that a compiled network needs where it runs.

For this machine's system they are those that are installed here. For another they come from TVM's wheels for that
system, which ``--runtime-dir`` names: the folder of the wheels as ``pip download`` leaves them, or of the libraries.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath

from adr_tvm.deploy.toolchain import system_of, this_system
from adr_tvm.errors import MissingDependencyError, UsageError
from adr_tvm.targets import AARCH64, X86_64, TargetEntry

LIBRARIES = ("libtvm_runtime.so", "libtvm_ffi.so")
PACKAGES = ("apache-tvm", "apache-tvm-ffi")
MAX_LIBRARY = 64 << 20
_PLATFORMS = {AARCH64: "manylinux_2_28_aarch64", X86_64: "manylinux_2_28_x86_64"}
_ELF_MACHINES = {AARCH64: 183, X86_64: 62}


def find_runtime(entry: TargetEntry, given: str | Path | None) -> Mapping[str, bytes]:
    """The libraries by name.

    Args:
        entry: the target.
        given: folder of wheels or libraries; None: what is installed here, if that is for the target's system.

    Raises:
        MissingDependencyError: they are not there, or are for another system or version.
        UsageError: the folder cannot be read.
    """
    if given is None and system_of(entry) != this_system():
        raise MissingDependencyError(f"--emit bundle for {entry.name} needs TVM's runtime for it: {_hint(entry)}")
    found = _installed() if given is None else _from_folder(Path(given), entry)
    for name, data in found.items():
        machine = struct.unpack_from("<H", data, 18)[0] if data[:4] == b"\x7fELF" and len(data) > 20 else None
        if machine != _ELF_MACHINES[system_of(entry)]:
            raise MissingDependencyError(f"{name} in {given} is not for {system_of(entry)}: {_hint(entry)}")
    return found


def _installed() -> dict[str, bytes]:
    import tvm
    import tvm_ffi

    paths = (tvm.libinfo.find_libtvm_runtime(), tvm_ffi.libinfo.find_libtvm_ffi())
    return {name: Path(path).read_bytes() for name, path in zip(LIBRARIES, paths, strict=True)}


def _from_folder(folder: Path, entry: TargetEntry) -> dict[str, bytes]:
    if not folder.is_dir():
        raise UsageError(f"--runtime-dir {folder} is not a folder")
    found: dict[str, bytes] = {}
    try:
        for name in LIBRARIES:
            if (folder / name).is_file():
                found[name] = (folder / name).read_bytes()
        if len(found) < len(LIBRARIES):
            for package in PACKAGES:
                stem = f"{package.replace('-', '_')}-{metadata.version(package)}-"
                for wheel in sorted(folder.glob(f"{stem}*.whl")):
                    found |= _from_wheel(wheel)
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"--runtime-dir {folder} cannot be read: {error}") from error
    missing = [name for name in LIBRARIES if name not in found]
    if missing:
        raise MissingDependencyError(f"{' and '.join(missing)} not found in --runtime-dir {folder}: {_hint(entry)}")
    return {name: found[name] for name in LIBRARIES}


def _from_wheel(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as wheel:
        names = {PurePosixPath(info.filename).name: info for info in wheel.infolist() if info.file_size <= MAX_LIBRARY}
        return {name: wheel.read(names[name]) for name in LIBRARIES if name in names}


def _hint(entry: TargetEntry) -> str:
    """How to get the libraries."""
    system = system_of(entry)
    folder = f"tvm-{system.partition('-')[0]}"
    packages = " ".join(f"{package}=={metadata.version(package)}" for package in PACKAGES)
    return (
        f"pip download --no-deps --only-binary=:all: --python-version 3.11 --platform {_PLATFORMS[system]} "
        f"--dest {folder} {packages}, then add --runtime-dir {folder}"
    )
