"""What stands in for the data folder where none was given."""

from __future__ import annotations

from pathlib import Path

from adr_tvm.errors import UsageError
from benchmarks.validation.data_folder import DataFolder


class NoData(DataFolder):
    """Holds nothing; the bundled network needs nothing.

    Raises:
        UsageError: something of the folder is asked for.
    """

    def __init__(self) -> None:
        pass

    @property
    def root(self) -> Path:  # type: ignore[override]
        raise UsageError("--data DIR is needed for this: a folder as benchmarks/validation/data_folder.py describes it")
