"""Public models and real data that are no part of the repository: the quick parts of ``benchmarks/validate.py``.

Their folder is named by ``ADR_DATA``, else it is ``../shared/data`` beside the repository; without one these tests are
skipped. ``benchmarks/validation/data_folder.py`` says what the folder holds.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from adr_tvm.errors import DataError, MissingDependencyError
from benchmarks.validation.data_folder import DataFolder
from benchmarks.validation.dense import dense_row
from benchmarks.validation.row import Run
from benchmarks.validation.text_page import check_every_layer
from benchmarks.validation.trec_cifarnet import check_trec

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = Path(os.environ.get("ADR_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set ADR_DATA to one with public models and images")
    return Run(DataFolder(folder), tmp_path)


def check_or_skip(rows: Iterable) -> list:
    """The rows of a check; a test whose data are missing is skipped and says what is missing."""
    try:
        return list(rows)
    except (DataError, MissingDependencyError) as error:
        pytest.skip(str(error))


def test_the_cifarnet_that_trec_trained_with_reuse(run: Run) -> None:
    rows = check_or_skip(check_trec(run))
    assert len(rows) == 3
    assert all(row.passed for row in rows), rows


def test_keyword_network_equals_onnxruntime(run: Run) -> None:
    name = "mlperf_kws_dscnn"
    (row,) = check_or_skip(dense_row(run, name, run.data.model(name)) for _ in range(1))
    assert row.passed, row


def test_text_page_repeats_itself_and_stays_the_same_bit_for_bit(run: Run) -> None:
    rows = check_or_skip(check_every_layer(run))
    assert len(rows) == 2
    assert all(row.passed for row in rows), rows
