"""What a check has to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from benchmarks.validation.data_folder import DataFolder


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        check: what was looked at.
        expected: what it should be, in words.
        measured: what it is, in words.
        passed: whether that is as expected.
        values: the measured numbers, for the JSON file.
    """

    check: str
    expected: str
    measured: str
    passed: bool
    values: dict[str, float]


@dataclass(frozen=True)
class Run:
    """What a check runs on.

    Attributes:
        data: the models and images.
        work: an empty folder for what is compiled.
        threads: to compile and run with; None: all physical cores.
        time_budget: seconds for each search; None: no limit.
    """

    data: DataFolder
    work: Path
    threads: int | None = None
    time_budget: float | None = None


Check: TypeAlias = Callable[[Run], Iterator[Row]]


def percent(value: float) -> str:
    """A fraction with two decimals of a percent."""
    return f"{100 * value:.2f} %"
