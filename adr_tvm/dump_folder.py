"""The folder of ``--dump-ir``."""

from __future__ import annotations

from pathlib import Path

from adr_tvm.errors import UsageError

_HEADER = "# from tvm.script import ir as I\n"


def prepare_dump_folder(folder: str | Path) -> Path:
    """Make the folder and clear it of an earlier run's modules; other files stay.

    Raises:
        UsageError: it cannot be written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for file in path.glob("[0-9][0-9]-*.py"):
            with file.open(encoding="utf-8", errors="replace") as stream:
                ours = _HEADER in stream.read(200)
            if ours:
                file.unlink()
        probe = path / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--dump-ir: cannot write into {path}: {error.strerror or error}") from error
    return path
