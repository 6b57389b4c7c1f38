"""The number of threads: who decides, and when it is too late."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from adr_tvm.deploy import threads
from adr_tvm.deploy.threads import VARIABLE, physical_cores, set_threads
from adr_tvm.errors import UsageError


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No runtime yet, and an environment that is put back."""
    monkeypatch.setenv(VARIABLE, "0")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delitem(sys.modules, "tvm", raising=False)
    monkeypatch.setattr(threads, "physical_cores", lambda: 6)
    monkeypatch.setattr(threads, "processors", lambda: set(range(12)))
    monkeypatch.setenv(threads.PINNING, "0")


def running(monkeypatch, count):
    """A runtime whose threads run already."""
    monkeypatch.setitem(sys.modules, "tvm", SimpleNamespace(runtime=SimpleNamespace(num_threads=lambda: count)))


def in_force():
    return os.environ.get(VARIABLE)


def test_default_is_physical_cores():
    assert set_threads() == 6
    assert in_force() == "6"
    assert set_threads() == 6


def test_environment_wins_over_default(monkeypatch):
    monkeypatch.setenv(VARIABLE, "3")
    assert set_threads() == 3


def test_argument_wins_over_environment(monkeypatch):
    monkeypatch.setenv(VARIABLE, "3")
    assert set_threads(2) == 2
    assert in_force() == "2"


@pytest.mark.parametrize("count", [0, -1, 13])
def test_senseless_number(count):
    with pytest.raises(UsageError, match=f"{count} threads asked for; this process may use 12 processors"):
        set_threads(count)


@pytest.mark.parametrize("text", ["many", "0", ""])
def test_senseless_environment(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UsageError, match=f"{VARIABLE} is '{text}', expected a whole number"):
        set_threads()


def test_environment_may_ask_for_more_than_there_is(monkeypatch):
    monkeypatch.setenv(VARIABLE, "64")
    assert set_threads() == 12


@pytest.mark.parametrize(("before", "after"), [(None, "0"), ("1", "1")])
def test_threads_are_not_pinned_unless_the_user_wants_it(monkeypatch, before, after):
    monkeypatch.delenv(threads.PINNING)
    if before is not None:
        monkeypatch.setenv(threads.PINNING, before)
    set_threads()
    assert os.environ[threads.PINNING] == after


def test_too_late(monkeypatch):
    monkeypatch.setenv(VARIABLE, "4")
    running(monkeypatch, 4)
    with pytest.raises(UsageError, match="2 threads asked for, but TVM's runtime already runs with 4"):
        set_threads(2)
    assert in_force() == "4"
    assert set_threads(4) == set_threads() == 4


def test_runtime_that_chose_itself_is_kept_unless_a_number_is_asked_for(monkeypatch):
    running(monkeypatch, 5)
    with pytest.raises(UsageError, match="already runs with 5"):
        set_threads(2)
    assert in_force() is None
    assert set_threads() == 5


def test_siblings_count_once(tmp_path):
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        name = "core_cpus_list" if cpu < 4 else "thread_siblings_list"
        (folder / name).write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert physical_cores(range(8), tmp_path) == 4
    assert physical_cores([0, 4, 1], tmp_path) == 2


def test_without_topology_each_processor_is_a_core(tmp_path):
    assert physical_cores([3, 5], tmp_path) == 2
    assert physical_cores([], tmp_path) == 1


def test_real_runtime_takes_the_number_and_leaves_the_affinity_alone():
    code = """
import os, sys
from adr_tvm.errors import UsageError
from adr_tvm.deploy.threads import processors, set_threads
before = processors()
assert set_threads(1) == 1 and "tvm" not in sys.modules
import tvm
assert tvm.runtime.num_threads() == 1
assert set_threads() == 1
assert processors() == before
if len(before) > 1:
    try:
        set_threads(2)
    except UsageError:
        pass
    else:
        raise SystemExit("not refused")
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stderr
