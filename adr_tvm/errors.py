"""Errors a user can meet, each with its documented exit code.

0 done; 1 internal; 2 usage; 3 bad, missing or unsupported model or data; 4 a stated goal unmet;
5 missing dependency or board; 130 interrupted.
"""

from __future__ import annotations

from typing import Any


class AdrError(Exception):
    """Base of all expected errors. The message is one line: what, why and the way on."""

    exit_code = 1


class UsageError(AdrError):
    """The command line or an argument does not make sense (unknown target, unwritable output)."""

    exit_code = 2


class ModelError(AdrError):
    """The model or plan file is bad, missing, unsupported, or belongs to something else."""

    exit_code = 3


class DataError(AdrError):
    """Calibration or evaluation data are bad or missing."""

    exit_code = 3


class GoalUnmetError(AdrError):
    """A stated goal (``--min-speedup``) was not reached; the best result was written and is ``result``."""

    exit_code = 4

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class MissingDependencyError(AdrError):
    """A package or program is not installed; the message says how to install it."""

    exit_code = 5


class BoardError(AdrError):
    """A board on the other side of an RPC session is missing, stopped answering, or is not what the target says."""

    exit_code = 5


class TrainingDivergedError(AdrError):
    """The loss became NaN or Inf; the last good checkpoint was kept."""

    exit_code = 4
