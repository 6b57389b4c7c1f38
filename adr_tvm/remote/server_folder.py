"""A folder with an RPC server that runs on a board as it is, without Python."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from adr_tvm.deploy.linux_bundle import compile_cxx, find_parts, tvm_includes, write_licences, write_runtime
from adr_tvm.errors import UsageError
from adr_tvm.targets import TargetEntry

PROGRAM = "bin/adr_rpc_server"


def write_server(folder: Path, entry: TargetEntry, runtime_dir: str | Path | None) -> None:
    """Compile the server for a target, and put TVM's runtime beside it.

    Args:
        folder: where to; new, empty, or one that was written here before.
        runtime_dir: TVM's runtime for the target, or its wheels; None: this machine's, where it fits.

    Raises:
        MissingDependencyError: the compiler or TVM's runtime for the target is missing.
        UsageError: the folder cannot be written, or holds something else.
    """
    parts = find_parts(entry, runtime_dir)
    if folder.exists() and not (folder / PROGRAM).is_file() and (not folder.is_dir() or os.listdir(folder)):
        raise UsageError(f"{folder} holds something else: give a new folder, nothing in it is touched")
    write_runtime(folder, parts)
    write_licences(folder)
    try:
        (folder / PROGRAM).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}") from error
    source = resources.files("adr_tvm.remote").joinpath("native").joinpath("rpc_server.cc")
    links = [f"-L{folder / 'lib'}", "-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", "-Wl,-rpath,$ORIGIN/../lib"]
    with resources.as_file(source) as path:
        compile_cxx(parts, path, folder / PROGRAM, [*tvm_includes(), *links], folder)
