"""A machine's cost model as a file in the user's cache folder, named for the processor and the number of threads."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import adr_tvm
from adr_tvm.deploy.processor import processor_name
from adr_tvm.errors import AdrError, DataError, UsageError
from adr_tvm.jsonfile import read_json, write_json
from adr_tvm.planner.cost import TERMS, CostModel, default_seconds
from adr_tvm.progress import get_log
from adr_tvm.report.results import Timings

FORMAT_VERSION = 1
FIT_HINT = "adr-bench --fit-machine measures this machine once, for better guesses"


@dataclass(frozen=True)
class FittedKernel:
    """A kernel that a model was fitted to: seconds measured, and what the model says."""

    name: str
    measured: float
    predicted: float


@dataclass(frozen=True)
class FittedModel:
    """A fitted cost model and what it was fitted to.

    Attributes:
        cpu: the processor's name.
        threads: that the kernels ran on.
        seconds: by term of ``adr_tvm.planner.cost``.
        kernels: what was measured.
        adr_version: of the program that measured.
        version: of the file format.
    """

    cpu: str
    threads: int
    seconds: dict[str, float]
    kernels: list[FittedKernel] = field(default_factory=list)
    adr_version: str = adr_tvm.__version__
    version: int = FORMAT_VERSION

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    def __post_init__(self) -> None:
        if self.threads < 1 or not self.seconds:
            raise ValueError("a cost model needs threads and coefficients")
        for name, value in self.seconds.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name!r} takes {value} s, expected 0 to 1")
        if not any(self.seconds.values()):
            raise ValueError("no work takes any time")

    def save(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            UsageError: it cannot be written.
        """
        beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        try:
            write_json(beside, asdict(self))
            os.replace(beside, path)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
        finally:
            with suppress(OSError):
                beside.unlink()

    @classmethod
    def load(cls, path: Path) -> FittedModel:
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is missing or damaged.
        """
        return read_json(path, cls, FORMAT_VERSION, DataError)


def cache_folder() -> Path:
    """Where fitted models are kept: ``$XDG_CACHE_HOME/adr_tvm``, by default ``~/.cache/adr_tvm``.

    Raises:
        UsageError: the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise UsageError(f"there is no cache folder: {error}; set XDG_CACHE_HOME") from error
    return root / "adr_tvm"


def machine_file(threads: int) -> Path:
    """Where the model of this machine is kept."""
    name = re.sub("[^a-z0-9]+", "-", processor_name().lower()).strip("-") or "cpu"
    return cache_folder() / f"cost-{name[:80]}-{threads}-threads.json"


def record(cost: CostModel, timings: Timings) -> None:
    """Put a model's coefficients into the timings, so that these alone repeat a search."""
    for name, value in cost.seconds.items():
        if value > 0:
            timings.put(f"cost|{name}", value)


def recorded(timings: Timings | None, threads: int) -> CostModel | None:
    """The model in the timings of an earlier search, if they hold one."""
    if timings is None:
        return None
    found = {name: timings.get(f"cost|{name}") for name in TERMS}
    seconds = {name: value for name, value in found.items() if value is not None}
    return CostModel(seconds, threads, "of the given times") if seconds else None


def find_cost_model(given: str | Path | None, threads: int, lanes: int) -> CostModel:
    """The model of a file, by default of this machine's; the defaults, with a word in the log, where that is no good.

    Args:
        given: a file the user named.
        threads: that the kernels will run on.
        lanes: floats in a vector of the target.

    Raises:
        UsageError: the file the user named does not exist.
    """
    defaults = CostModel(default_seconds(lanes), threads, f"defaults for vectors of {lanes} floats")
    if given is not None and not Path(given).exists():
        raise UsageError(f"--cost-model {given} does not exist; {FIT_HINT}")
    try:
        path = machine_file(threads) if given is None else Path(given)
        if given is None and not path.exists():
            get_log().info("no cost model of this machine: %s", FIT_HINT)
            return defaults
        fitted = FittedModel.load(path)
    except (AdrError, OSError) as error:
        get_log().warning("cost model: %s; going on with the defaults", error)
        return defaults
    if fitted.cpu != processor_name():
        get_log().warning(
            "cost model: %s is for %r, this is %r; going on with the defaults", path, fitted.cpu, processor_name()
        )
        return defaults
    if set(fitted.seconds) != set(TERMS):
        get_log().warning(
            "cost model: %s is of another version of adr_tvm: %s; going on with the defaults", path, FIT_HINT
        )
        return defaults
    if fitted.adr_version != adr_tvm.__version__:
        get_log().warning(
            "cost model: %s was fitted with adr_tvm %s, this is %s; %s",
            path,
            fitted.adr_version,
            adr_tvm.__version__,
            FIT_HINT,
        )
    if fitted.threads != threads:
        get_log().warning(
            "cost model: %s was fitted with threads: %d, this run has %d; %s", path, fitted.threads, threads, FIT_HINT
        )
    get_log().info("cost model: %s", path)
    plural = "" if fitted.threads == 1 else "s"
    return CostModel(fitted.seconds, threads, f"fitted to {fitted.cpu}, {fitted.threads} thread{plural}")
