"""Planning and tuning on a board over RPC: on loopback, with TVM's server and the native one, and under emulation."""

from __future__ import annotations

import json
import signal
import socket
import time
from contextlib import closing

import numpy as np
import onnx
import pytest
from boards import EMULATED, build, here, running, this_board, tvm_tool
from bundles import classifier as small_classifier
from bundles import images as repeated
from planner_networks import SLOW, TARGET, classifier, images, network

from adr_tvm.cli.compile import main
from adr_tvm.cli.rpc_server import main as rpc_server
from adr_tvm.deploy.toolchain import this_system
from adr_tvm.errors import BoardError, UsageError
from adr_tvm.geometry import ConvGeometry
from adr_tvm.options import CompileOptions
from adr_tvm.passes.mark_candidates import CandidateRules, find_candidates
from adr_tvm.planner import board_clock
from adr_tvm.planner.board_clock import BoardClock
from adr_tvm.planner.cost import TERMS
from adr_tvm.planner.cost_file import FittedModel
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.network import PlanningNetwork
from adr_tvm.planner.options import SearchOptions
from adr_tvm.planner.search import search
from adr_tvm.remote.address import Address, parse_address
from adr_tvm.remote.board import Board
from adr_tvm.report.results import Timings
from adr_tvm.schedules.tuned import KernelShape
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import TARGETS, X86_64
from adr_tvm.tuning.board_trial import BoardTrial, BoardWatch
from adr_tvm.tuning.database import TuningDatabase, target_machine
from adr_tvm.tuning.dense_conv import DenseConvTask
from adr_tvm.tuning.race import runs_in_turn
from adr_tvm.tuning.search import search_schedule
from adr_tvm.tuning.trial import Trial
from tests import aarch64

pytestmark = pytest.mark.skipif(this_system() != X86_64, reason="the board on loopback is described as an x86-64 one")
needs_emulator = pytest.mark.skipif(aarch64.missing() is not None, reason=str(aarch64.missing()))


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    return here(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def server(tmp_path_factory, entry):
    folder = build(tmp_path_factory.mktemp("server"), TARGETS["cpu"])
    with running(folder) as server:
        server.folder = folder
        yield server


@pytest.fixture
def board(server, entry):
    found = Board(Address("127.0.0.1", server.port), entry, entry.make(1), 20)
    yield found
    found.close()


def free_port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def when_listening(port):
    for _ in range(1200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return port
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(port)


class TestOptions:
    def test_addresses(self):
        assert parse_address("pi:9090", "rpi4") == Address("pi", 9090, "rpi4")
        assert str(parse_address("[::1]:9090", None)) == "[::1]:9090"
        for wrong in ("pi", "pi:", ":9090", "pi:0", "pi:70000", "pi:x", "::1:9090"):
            with pytest.raises(UsageError, match="expected HOST:PORT"):
                parse_address(wrong, None)
        with pytest.raises(UsageError, match="--key is 'a b'"):
            parse_address("pi:9090", "a b")

    def test_what_goes_together(self, tmp_path):
        with pytest.raises(UsageError, match="--key names a board of --rpc"):
            CompileOptions(target="rpi4", key="rpi4")
        with pytest.raises(UsageError, match="needs the board's --target"):
            CompileOptions(rpc="pi:9090")
        with pytest.raises(UsageError, match="--rpc-timeout is 0"):
            CompileOptions(target="rpi4", rpc="pi:9090", rpc_timeout=0)
        with pytest.raises(UsageError, match="with --rpc HOST:PORT a board measures"):
            CompileOptions(target="rpi4", tune=1)
        assert CompileOptions(target="rpi4", rpc="pi:9090", tune=1, timings=tmp_path).board == Address("pi", 9090)


class TestConnecting:
    def test_nobody_there(self, entry):
        with pytest.raises(BoardError, match=r"nothing answers at 127\.0\.0\.1:1: Connection refused"):
            Board(Address("127.0.0.1", 1), entry, entry.make(1), 5)

    def test_busy_then_free(self, server, board, entry):
        with pytest.raises(BoardError, match=r"serves another client: it was not free within 0\.2 s"):
            Board(board.address, entry, entry.make(1), 0.2)
        board.close()
        Board(board.address, entry, entry.make(1), 20).close()

    def test_another_key(self, server, entry):
        with pytest.raises(BoardError, match="its key is another than 'rpi4'"):
            Board(Address("127.0.0.1", server.port, "rpi4"), entry, entry.make(1), 20)

    def test_wrong_triple(self, server):
        rpi4 = TARGETS["rpi4"]
        with pytest.raises(BoardError, match="cannot load code for aarch64-linux-gnu: --target rpi4 is not for it"):
            Board(Address("127.0.0.1", server.port), rpi4, rpi4.make(1), 20)

    def test_missing_extensions(self, server, entry, monkeypatch):
        monkeypatch.setattr("adr_tvm.remote.board.cpu_features", lambda target: ["avx2", "avx512vnni", "sve"])
        with pytest.raises(BoardError, match=r"lacks .*sve, which --target here uses"):
            Board(Address("127.0.0.1", server.port), entry, entry.make(1), 20)

    def test_trackers_and_the_server_of_tvm(self, server, entry):
        pytest.importorskip("tornado", reason="TVM's tracker needs tornado")
        tracker = free_port()
        with tvm_tool("rpc_tracker", "--port", tracker, "--port-end", tracker + 1):
            when_listening(tracker)
            at = ("--tracker", f"127.0.0.1:{tracker}")
            with pytest.raises(BoardError, match="no board of this key: it has none"):
                Board(Address("127.0.0.1", tracker, "x86"), entry, entry.make(1), 5)
            with (
                running(server.folder, *at, "--key", "x86"),
                tvm_tool("rpc_server", *at, "--key", "python", "--port", port := free_port(), "--port-end", port + 1),
            ):
                when_listening(port)
                with pytest.raises(BoardError, match=r"--key says which of its boards to take"):
                    Board(Address("127.0.0.1", tracker), entry, entry.make(1), 20)
                for key in ("x86", "python", "x86"):
                    board = None
                    while board is None:
                        try:
                            board = Board(Address("127.0.0.1", tracker, key), entry, entry.make(1), 20)
                        except BoardError as error:
                            assert "no board of this key" in str(error)  # it has not joined yet
                            time.sleep(0.2)
                    assert board.threads == 1 and board.name
                    with pytest.raises(BoardError, match=r"became free within 0\.5 s"):
                        Board(board.address, entry, entry.make(1), 0.5)
                    board.close()


class TestTimes:
    def test_of_layers_and_networks(self, board, entry, tmp_path):
        net = network(classifier(), tmp_path)
        timings = Timings()
        clock = BoardClock(board, net.mod, entry.make(1), timings)
        options = SearchOptions(max_drop=1.0, granularity="pixel", L=4, H=4, hash="pca")
        samples = net.calibration(images(16))
        outcome = search(net.mod, net.checked, CandidateRules(), samples, TARGET, options, timings, SLOW, clock)
        assert not outcome.result.predicted and outcome.result.cpu == board.name and outcome.result.threads == 1
        assert any(f"measured on {board.name} at {board.address}" in note for note in outcome.result.notes)
        assert timings.get("conv1|dense") and timings.get("network|dense")
        known = len(timings)
        again = search(net.mod, net.checked, CandidateRules(), samples, TARGET, options, timings, SLOW, clock)
        assert len(timings) == known
        assert again.plan.layers == outcome.plan.layers, "everything is in the timings"

    def test_in_place(self, board, entry, tmp_path):
        """Layers take part of the network's time, and what is slow takes long."""
        net = network(classifier(), tmp_path)
        target = entry.make(1)
        found = {c.layer: c for c in find_candidates(net.mod["main"], "main", CandidateRules()) if not c.reason}
        batch = {net.checked.inputs[0].name: images(8)}
        exact = ReuseSetting("segment", L=4, hash="exact")
        chosen = {layer: LayerKernel(found[layer].call, TARGET, exact) for layer in ("conv1", "conv2")}
        planning = PlanningNetwork(net.mod, list(found.values()), TARGET, [s.name for s in net.checked.inputs])
        clock = BoardClock(board, net.mod, target, Timings())
        times = clock.layers(planning, chosen, batch)
        assert list(times) == ["conv1", "conv2"] and all(0 < t < 1 for pair in times.values() for t in pair)
        assert times["conv1"][1] > times["conv1"][0], "looking for repeated segments of 4 costs more than it saves"
        whole = clock.network(None, net.checked, batch, board_clock._plan({}), 0)
        assert sum(dense for dense, _ in times.values()) < 3 * whole.dense


GEOMETRY = ConvGeometry(10, 10, 16, 3, 3, 24, padding=(1, 1, 1, 1))


class TestTuning:
    def task(self, target):
        return DenseConvTask(KernelShape("conv2d", GEOMETRY, 1, None), target, 1)

    def test_a_trial_computes_what_it_does_here(self, board, entry):
        task = self.task(entry.make(1))
        there = BoardTrial(board, task, task.default(), task.target, 1 << 20)
        assert there._copies > 1
        local = Trial(task, task.default(), task.target, 0)
        there()
        local()
        for ours, theirs in zip(local.outputs(), there.outputs(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        watch = BoardWatch()
        once = watch.seconds(there, 20)
        assert 1e-7 < once < 1e-1 and runs_in_turn(watch, there) >= 1

    def test_a_search(self, board, entry):
        task = self.task(entry.make(1))
        made = []

        def make(*arguments):
            made.append(BoardTrial(board, *arguments))
            return made[-1]

        found = search_schedule(task, task.target, 2, BoardWatch(), 1, 0, make_trial=make)
        assert found.measured == 2 and not found.wrong and len(made) == 3

    def test_schedules_are_for_the_board_alone(self, entry):
        target = entry.make(1)
        database = TuningDatabase(None, target_machine(target, 1, "a board"))
        assert database.machine.cpu == "a board"
        kernel = KernelShape("conv2d", GEOMETRY, 1, None)
        assert database.schedule(kernel, TARGETS["rpi4"].make(1)) is None and kernel not in database._schedules


class TestFailing:
    def compile(self, server, folder, *options):
        model = folder / "net.onnx"
        onnx.save(small_classifier(), model)
        np.savez(folder / "x.npz", x=repeated(8))
        out = folder / "out"
        argv = [model, "-o", out, "--target-json", this_board(folder), "--rpc", f"127.0.0.1:{server.port}", *options]
        return main([str(each) for each in [*argv, "-q", "--calib", folder / "x.npz"]]), out

    def test_a_board_that_dies(self, server, tmp_path, monkeypatch, capsys):
        time_kernels = BoardClock._kernels
        done = []

        def die(self, network, layer, batch, kernels):
            if done:
                server.signal_session(signal.SIGKILL)
            done.append(layer)
            return time_kernels(self, network, layer, batch, kernels)

        monkeypatch.setattr(BoardClock, "_kernels", die)
        options = ("--cost-model", self.cost_model(tmp_path), "--granularity", "pixel", "--max-drop", 1)
        code, out = self.compile(server, tmp_path, *options)
        said = capsys.readouterr().err.strip().splitlines()[-1]
        kept = tmp_path / "out-timings.json"
        assert code == 5 and "failed while" in said and f"go on with --timings {kept}" in said and not out.exists()
        assert f"{done[0]}|dense" in json.loads(kept.read_text())
        monkeypatch.undo()
        code, out = self.compile(server, tmp_path, *options, "--timings", kept)
        assert code == 0 and (out / "plan.json").exists()

    def test_a_board_that_hangs_while_tuning(self, server, tmp_path, monkeypatch, capsys):
        seconds = BoardWatch.seconds
        tuned = []

        def hang(self, run, count):
            if tuned:
                server.signal_session(signal.SIGSTOP)
            return seconds(self, run, count)

        add = TuningDatabase.add
        monkeypatch.setattr(TuningDatabase, "add", lambda self, record: (add(self, record), tuned.append(record)))
        monkeypatch.setattr(BoardWatch, "seconds", hang)
        path = tmp_path / "db.jsonl"
        code, out = self.compile(server, tmp_path, "--tune", 1, "--tuning-db", path, "--rpc-timeout", 2)
        said = capsys.readouterr().err
        assert (
            code == 5 and "no answer within 2 s (--rpc-timeout)" in said and "1 of 2 kernels are tuned and kept" in said
        )
        assert len(path.read_text().splitlines()) == 1 and not out.exists()
        server.signal_session(signal.SIGKILL)

    def test_threads(self, server, tmp_path, capsys):
        code, _ = self.compile(server, tmp_path, "--threads", 3)
        assert code == 2 and "--threads is 3, but the RPC server at" in capsys.readouterr().err

    def cost_model(self, folder):
        path = folder / "cost.json"
        FittedModel("paper", 1, {name: SLOW.seconds.get(name, 1e-12) for name in TERMS}).save(path)
        return path


class TestServerFolder:
    def test_what_is_in_the_way(self, tmp_path, capsys):
        (tmp_path / "mine.txt").write_text("x")
        assert rpc_server(["-o", str(tmp_path)]) == 2 and "holds something else" in capsys.readouterr().err
        assert rpc_server(["--target", "rpi4", "-o", str(tmp_path / "new")]) == 5
        assert "--runtime-dir" in capsys.readouterr().err and not (tmp_path / "new").exists()

    def test_options_of_the_server(self, server, capfd):
        with pytest.raises(AssertionError), running(server.folder, "--tracker", "127.0.0.1:1"):
            pass
        with pytest.raises(AssertionError), running(server.folder, "--key", 'a"b'):
            pass
        said = capfd.readouterr().err
        assert "--tracker needs --key" in said and "expected letters, digits" in said


@needs_emulator
def test_under_emulation(tmp_path):
    """What a Raspberry Pi 4 would do: the probe, a layer's time, a trial whose bytes are those of another schedule."""
    entry = TARGETS["rpi4"]
    folder = tmp_path / "rpc"
    assert rpc_server(["--target", "rpi4", "--runtime-dir", str(aarch64.runtime()), "-o", str(folder), "-q"]) == 0
    with running(folder, emulator=EMULATED) as server:
        board = Board(Address("127.0.0.1", server.port), entry, entry.make(1), 60)
        net = network(small_classifier(), tmp_path)
        plan = board_clock._plan({})
        times = BoardClock(board, net.mod, entry.make(1), Timings()).network(None, net.checked, None, plan, 0)
        assert 0 < times.dense < 10 and times.main == times.dense
        task = DenseConvTask(KernelShape("conv2d", ConvGeometry(4, 4, 8, 1, 1, 8), 1, None), entry.make(1), 1)
        trials = [BoardTrial(board, task, s, task.target, 0) for s in list(task.candidates(1))[:2]]
        assert trials[0].agrees(trials[1]) and np.isfinite(trials[0].outputs()[0]).all()
        board.close()
