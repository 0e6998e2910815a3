"""The benchmarks for CUDA devices: their clock, contenders, results, page and script, without a device."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

import normnumba
from benchmarks import (
    asv_run,
    device,
    device_peers,
    device_time,
    every_op,
    figures,
    job,
    published,
    report,
    selection,
    suite,
    torch_peer,
)
from benchmarks.cases import OPS, Geometry, dtype_of
from benchmarks.device_job import CHECKS, RESULTS, DeviceJob
from benchmarks.device_time import DeviceTiming
from benchmarks.measure import Effort, Timing
from benchmarks.selection import Cell
from tests import pretend

BY_NAME = {op.name: op for op in OPS}
LAYER = Cell(BY_NAME["layer_norm_forward"], Geometry((33, 1024), -1), "bfloat16")
BRIEF = Effort(rounds=2, block=0.001, budget=1.0)

# --- time ------------------------------------------------------------------------------------------------------------


class Simulation:
    """A host and a device, each with a time of its own, that do what the clock of device_time asks for."""

    def __init__(self) -> None:
        self.host, self.free, self.piece = 0.0, 0.0, 1e-4
        """Now on the host, and when the device has done all that it was given."""

    def event(self) -> Any:
        return SimulatedEvent(self)

    def elapsed(self, start: Any, end: Any) -> float:
        return end.at - start.at

    def occupy(self, pieces: int) -> None:
        self.give(pieces * self.piece)

    def give(self, seconds: float) -> None:
        self.free = max(self.free, self.host) + seconds

    def synchronize(self) -> None:
        self.host = max(self.host, self.free)

    def call(self, kernel: float, host: float) -> Callable[[], object]:
        def call() -> object:
            self.host += host
            self.give(kernel)
            return object()

        return call


class SimulatedEvent:
    def __init__(self, simulation: Simulation) -> None:
        self.simulation, self.at = simulation, 0.0

    def record(self) -> None:
        self.at = max(self.simulation.free, self.simulation.host)

    def query(self) -> bool:
        return self.at <= self.simulation.host

    def synchronize(self) -> None:
        self.simulation.host = max(self.simulation.host, self.at)


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Simulation:
    found = Simulation()
    monkeypatch.setattr(device_time, "time", types.SimpleNamespace(perf_counter=lambda: found.host))
    return found


def test_kernel_and_call_time_are_told_apart(simulation: Simulation) -> None:
    contenders = {
        "short": [simulation.call(3e-6, 50e-6)] * 4,
        "long": [simulation.call(2e-3, 20e-6)] * 2,
        "slow": [simulation.call(9.0, 1e-3)] * 2,
    }
    timings = device_time.side_by_side(simulation, contenders, Effort(rounds=3, block=0.03, budget=1.0))
    for name, kernel, call in (("short", 3e-6, 50e-6), ("long", 2e-3, 20e-6), ("slow", 9.0, 1e-3)):
        assert timings[name].kernel.seconds == pytest.approx(kernel)
        assert timings[name].call.seconds == pytest.approx(call)
        assert not timings[name].waited
    assert len(timings["short"].kernel.blocks) == 3
    assert len(timings["slow"].kernel.blocks) == 1


def test_a_device_that_waits_for_the_host_is_marked(simulation: Simulation) -> None:
    simulation.piece = 1e-9
    timings = device_time.side_by_side(simulation, {"short": [simulation.call(3e-6, 50e-6)] * 2}, BRIEF)
    assert timings["short"].waited
    assert timings["short"].kernel.seconds == pytest.approx(50e-6, rel=0.1)


def test_contenders_take_turns_and_inputs_too(simulation: Simulation) -> None:
    made: list[str] = []

    def named(name: str) -> Callable[[], None]:
        call = simulation.call(1e-3, 1e-6)
        return lambda: (made.append(name), call())  # type: ignore[return-value]

    contenders = {who: [named(f"{who}{i}") for i in range(3)] for who in "ab"}
    device_time.side_by_side(simulation, contenders, Effort(rounds=2, block=0.02, budget=9.0))
    assert {made.count(name) > 5 for name in ("a0", "a1", "a2", "b0", "b1", "b2")} == {True}
    turns = [name[0] for i, name in enumerate(made) if not i or made[i - 1][0] != name[0]]
    assert "".join(turns) == "ababa"  # planning a and b, then a before b, then b before a
    assert all(a[1] != b[1] or "0" in a for a, b in itertools.pairwise(made) if a[0] == b[0])


def test_a_sample_takes_the_copies_in_turn(simulation: Simulation) -> None:
    made: list[int] = []
    calls = [partial(made.append, i) for i in range(3)]
    device_time.kernel_sample(simulation, calls, 7, 1)
    assert made == [0, 1, 2, 0, 1, 2, 0]
    made.clear()
    device_time.call_sample(simulation, calls, 4)
    assert made == [0, 1, 2, 0]


def test_results_live_until_their_inputs_return(simulation: Simulation) -> None:
    import weakref

    class Result:
        pass

    alive: list[int] = []
    results: list[Any] = []

    def call() -> Result:
        alive.append(sum(r() is not None for r in results))
        result = Result()
        results.append(weakref.ref(result))
        return result

    device_time.kernel_sample(simulation, [call] * 3, 9, 1)
    assert alive[:5] == [0, 1, 2, 3, 3]


def test_enough_copies_to_overflow_a_cache() -> None:
    assert device_peers.sets_of(1 << 20, 8 << 20) == 32
    assert device_peers.sets_of(1 << 30, 8 << 20) == 2
    assert device_peers.sets_of(1, 8 << 20) == device_time.MOST_CALLS
    x = np.arange(3)
    calls = device_peers.in_turn(partial(lambda **a: a, x=x, axis=1), np.copy, 3)
    given = [call() for call in calls]
    assert given[0]["x"] is x
    assert len({id(a["x"]) for a in given}) == 3
    assert all(a["axis"] == 1 and (a["x"] == x).all() for a in given)


# --- a device that is pretended --------------------------------------------------------------------------------------


class HostArray(pretend.OnDevice):
    """What numba's arrays can do, of which the benchmarks make use."""

    def copy_to_host(self) -> np.ndarray:
        return self.memory.copy()

    def copy_to_device(self, source: HostArray) -> None:
        np.copyto(self.memory, source.memory)

    def view(self, dtype: Any) -> HostArray:
        return HostArray(self.memory.view(dtype))


class HostEvent:
    def record(self) -> None:
        self.at = device_time.time.perf_counter()

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: HostEvent) -> float:
        return 1000 * (end.at - self.at)


def fake_cuda() -> types.SimpleNamespace:
    """What `Device` uses of numba.cuda."""
    current = types.SimpleNamespace(
        name="Pretended GPU", uuid="GPU-0", compute_capability=(9, 0), L2_CACHE_SIZE=1 << 16, MULTIPROCESSOR_COUNT=2
    )
    return types.SimpleNamespace(
        get_current_device=lambda: current,
        current_context=lambda: types.SimpleNamespace(get_memory_info=lambda: (1 << 30, 2 << 30)),
        event=HostEvent,
        synchronize=lambda: None,
        to_device=lambda array: HostArray(array.copy()),
        device_array_like=lambda array: HostArray(np.empty_like(array.memory)),
    )


@pytest.fixture(params=["numba", "torch"])
def pretended(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> device.Device:
    """A device whose memory is the host's, with kernels that are the CPU's."""
    pretend.install(monkeypatch)
    monkeypatch.setattr(pretend, "OnDevice", HostArray)
    pretend.Interface(monkeypatch)
    monkeypatch.setattr(numba, "cuda", fake_cuda(), raising=False)
    monkeypatch.setattr(device, "LEAST_SCRATCH", 1 << 16)
    monkeypatch.setattr(device, "TORCH_DEVICE", "cpu")
    monkeypatch.setattr(device, "_torch", lambda: None)
    if request.param == "torch":
        pytest.importorskip("torch")
        torch_peer.load(1)
        pretend.Torch(monkeypatch)
        monkeypatch.setattr(device, "_torch", lambda: torch_peer.torch)
    return device.Device()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_go_to_the_device_and_back(pretended: device.Device, dtype: str) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).astype(dtype_of(dtype))
    there = pretended.put(array)
    copy = pretended.clone(there)
    assert copy is not there
    for found in (pretended.get(there), pretended.get(copy)):
        assert found.dtype == array.dtype
        assert (found == array).all()
    assert pretended.get(7) == 7
    assert pretended.get(None) is None


def test_a_device_measures_seconds(pretended: device.Device) -> None:
    start, end = pretended.event(), pretended.event()
    start.at, end.at = 1.0, 3.0
    assert pretended.elapsed(start, end) == 2.0


def test_copies_move_their_bytes(pretended: device.Device) -> None:
    first, second = pretended.copies(1000, 2)
    first()
    assert second.func.__self__ is not first.func.__self__
    assert first.func.__self__.memory.nbytes == 1000
    assert (first.func.__self__.memory == first.args[0].memory).all()


def test_a_comparison_on_a_device(pretended: device.Device) -> None:
    found, missing = device_peers.load(pretended)
    found = {name: found[name] for name in ("torch",) if name in found}
    comparison = device_peers.Comparison(LAYER, pretended, found)
    row = comparison.time(BRIEF)
    moved = 2 * 33 * 1024 * 2
    assert {copy.args[0].memory.nbytes for copy in comparison.calls["copy"]} == {moved // 2}
    assert row["bytes_moved"] == moved
    assert row["gbs"] == pytest.approx(moved / row["seconds"]["ours"] / 1e9)
    assert row["copy_gbs"] == pytest.approx(moved / row["seconds"]["copy"] / 1e9)
    assert row["times"].keys() == row["call_times"].keys() == set(found)
    assert row["left_out"] == {}
    assert 0 <= row["error"] <= 2
    assert json.loads(json.dumps(row)) == row
    assert "cupy" in missing or "cupy" in sys.modules


def test_a_wrong_result_is_not_timed(pretended: device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    right = normnumba.layer_norm_forward

    def wrong(**arguments: Any) -> Any:
        _, mean, rstd = right(**arguments)
        return mean, mean, rstd

    monkeypatch.setattr(normnumba, "layer_norm_forward", wrong)
    with pytest.raises(device_peers.WrongResult, match="y is off by inf"):
        device_peers.Comparison(LAYER, pretended, {})


def test_peers_that_cannot_run_say_why(pretended: device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_peers.importlib.util, "find_spec", lambda name: None)
    missing = device_peers.load(pretended)[1]
    assert missing["cupy"] == "CuPy is not installed"
    assert missing["torch_compile"] == (
        "Triton is not installed" if pretended.torch else "torch is not installed, or sees no device"
    )


@pytest.mark.parametrize("name", ["batch_norm_forward", "batch_norm_backward"])
@pytest.mark.parametrize("pretended", ["torch"], indirect=True)
def test_batch_norm_by_cudnn(pretended: device.Device, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With the operators of the CPU in the place of cuDNN's, which have the same arguments and one more result."""
    aten = torch_peer.torch.ops.aten
    seen = []

    def forward(*arguments: Any) -> Any:
        return *torch_peer.torch.native_batch_norm(*arguments), "reserve"

    def backward(x: Any, dy: Any, weight: Any, mean: Any, var: Any, save_mean: Any, save_rstd: Any, eps: float, r: Any):  # type: ignore[no-untyped-def]
        seen.append(r)
        mask = [True, True, True]
        return aten.native_batch_norm_backward(dy, x, weight, mean, var, save_mean, save_rstd, True, eps, mask)

    fake = types.SimpleNamespace(cudnn_batch_norm=forward, cudnn_batch_norm_backward=backward)
    ops = types.SimpleNamespace(ops=types.SimpleNamespace(aten=fake))
    cell = Cell(BY_NAME[name], Geometry((3, 8, 8, 64), -1), "float32")
    arguments = cell.arguments()
    with monkeypatch.context() as patch:
        patch.setattr(device_peers, "torch_peer", types.SimpleNamespace(**vars(torch_peer) | {"torch": ops}))
        calls, left_out = device_peers.admit(cell, arguments, {"cudnn": device_peers.prepare_cudnn})
    assert (list(calls), left_out) == (["cudnn"], {})
    assert set(seen) == ({"reserve"} if name == "batch_norm_backward" else set())
    assert device_peers.prepare_cudnn(LAYER.op, LAYER.arguments()) is None


def test_cupy_runs_the_formula_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = types.SimpleNamespace(asarray=np.array, asnumpy=np.asarray, ndarray=np.ndarray)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for name in ("layer_norm_backward", "batch_norm_inference"):
        cell = Cell(BY_NAME[name], Geometry((6, 5), -1), "float32")
        calls, left_out = device_peers.admit(cell, cell.arguments(), {"cupy": device_peers.prepare_cupy})
        assert (list(calls), left_out) == (["cupy"], {})


def test_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(text: str) -> Callable[..., Any]:
        return lambda *_, **__: types.SimpleNamespace(stdout=text)

    monkeypatch.setattr(device.subprocess, "run", answer("580.1, 1980, 3201, 1980, 3201, 700.00\n"))
    found = device.nvidia_smi("GPU-0")
    assert (found["driver"], found["sm_clock_mhz"], found["max_memory_clock_mhz"]) == ("580.1", "1980", "3201")
    monkeypatch.setattr(device.subprocess, "run", answer("No devices were found\n"))
    assert device.nvidia_smi("GPU-0") == {}
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert device.nvidia_smi("GPU-0") == {}


# --- what is timed ---------------------------------------------------------------------------------------------------


def cells_of(*arguments: str) -> list[Cell]:
    return DeviceJob(job.parser().parse_args(["peers", "--device", "cuda", *arguments]), None).cells()  # type: ignore[arg-type]


def test_what_is_timed_on_a_device() -> None:
    cells = cells_of()
    assert {cell.op for cell in cells[: len(OPS)]} == set(OPS)
    assert {cell.dtype for cell in cells} == {"bfloat16"}
    assert len(set(cells)) == len(cells)
    assert len(cells_of("--quick")) == len(OPS)
    assert {cell.dtype for cell in cells_of("--full")} == {"bfloat16", "float32", "float16"}
    assert {cell.dtype for cell in cells_of("--dtype", "float16")} == {"float16"}
    (one,) = cells_of("--op", "rms_norm_backward", "--shape", "131072x128")
    assert selection.find_cell(str(one)) == one


def test_every_published_number_has_its_case() -> None:
    shown = {(str(cell), library): rate for cell in cells_of() for library, rate in published.published(cell).items()}
    assert len(shown) == 2 * sum(map(len, published._GBS.values()))
    assert shown["rms_norm_forward 16384x4096@-1 bfloat16", "cuDNN"] == 3708
    assert shown["rms_norm_backward 16384x4096@-1 bfloat16", "cuDNN"] == 3801
    assert published.published(cells_of("--dtype", "float32")[0]) == {}


def test_small_shapes_for_sanitizers_have_every_op() -> None:
    cells = every_op.chosen([], [], [])
    assert {cell.op for cell in cells} == set(OPS)
    assert max(cell.geometry.size for cell in cells) < 1 << 17
    assert {cell.dtype for cell in every_op.chosen([], [], ["float32"])} == {"float32"}
    assert [str(cell) for cell in every_op.chosen(["rms_norm_forward"], ["16384x4096"], [])] == [
        "rms_norm_forward 16384x4096@-1 bfloat16"
    ]


def test_every_op_is_called(
    pretended: device.Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(every_op, "problem", lambda: None)
    monkeypatch.setattr(every_op, "Device", lambda: pretended)
    assert every_op.main(["--op", "layer_norm*"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert every_op.main(["--op", "nothing"]) == 2
    monkeypatch.setattr(every_op, "problem", lambda: "no driver")
    assert every_op.main([]) == 2


def test_asv_skips_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(suite.Cuda.params).isdisjoint(map(str, selection.every_cell())), "a run of the CPU would choose them too"
    assert all(str(selection.find_cell(cell)) == cell for cell in suite.Cuda.params)
    suite.prepared_on_device.cache_clear()
    for backends in ({"cpu": None, "cuda": "no driver"}, {"cpu": None}):
        monkeypatch.setattr(normnumba, "backends", backends.copy)
        with pytest.raises(NotImplementedError, match=r"no driver|no CUDA backend"):
            suite.Cuda().setup(suite.Cuda.params[0])
    monkeypatch.delattr(normnumba, "backends")
    with pytest.raises(NotImplementedError, match="no CUDA backend"):
        suite.Cuda().setup(suite.Cuda.params[0])


def test_asv_times_a_device(pretended: device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    suite.prepared_on_device.cache_clear()
    monkeypatch.setattr(device, "problem", lambda: None)
    monkeypatch.setattr(device.Device, "synchronize", lambda self: waits.append(self))
    monkeypatch.setattr(suite, "find_cell", lambda text: LAYER)
    benchmark = suite.Cuda()
    benchmark.setup("any")
    before = len(waits)
    benchmark.time_cuda("any")
    assert len(waits) == before + 1
    suite.prepared_on_device.cache_clear()


# --- the job and its page --------------------------------------------------------------------------------------------


@pytest.fixture
def cuda_job(pretended: device.Device, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`python -m benchmarks --device cuda` on small shapes."""
    small = [LAYER, Cell(BY_NAME["batch_norm_backward"], Geometry((3, 64, 8, 8), 1), "bfloat16")]
    monkeypatch.setattr(device, "problem", lambda: None)
    monkeypatch.setattr(DeviceJob, "device", pretended)
    monkeypatch.setattr(DeviceJob, "cells", lambda self: small)
    monkeypatch.setattr(
        DeviceJob, "machine", lambda self: {"cpu": "a host", "system": "x", "python": "3", "date": "now", "doubts": []}
    )
    monkeypatch.setattr(device_peers, "PEERS", {"torch": device_peers.PEERS["torch"]})
    return lambda *arguments: job.main(["--device", "cuda", "--quick", *arguments])


def test_the_job_on_a_device(cuda_job: Callable[..., int], pretended: device.Device, tmp_path: Path) -> None:
    assert cuda_job("peers", "--output", str(tmp_path)) == job.DONE
    found = report.load(tmp_path / RESULTS)
    assert found is not None
    assert [case["op"] for case in found["cases"]] == ["layer_norm_forward", "batch_norm_backward"]
    assert found["planned"] == 2
    assert found["device"]["name"] == "Pretended GPU"
    assert found["device"]["arrays"] == pretended.kind
    assert found["clocks_before"] == found["clocks_after"] == {}
    assert found["failed"] == {}
    assert cuda_job("verify", "--output", str(tmp_path)) == job.DONE
    checks = report.load(tmp_path / CHECKS)
    assert checks is not None
    assert {check["op"] for check in checks["checks"]} == {"layer_norm_forward", "batch_norm_backward"}
    page = report.render(None, None, [], found, checks)
    assert "Pretended GPU" in page
    assert "all passed" in page


def test_everything_on_a_device(
    cuda_job: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cuda_job("--output", str(tmp_path)) == job.DONE
    shown = capsys.readouterr().out
    assert "name: Pretended GPU" in shown
    assert shown.index("check") < shown.index("verify") < shown.index("peers") < shown.index("report")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "what was measured on Pretended GPU" in page


def test_a_case_that_breaks_stops_none(
    cuda_job: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**arguments: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered\nand more")

    monkeypatch.setattr(normnumba, "layer_norm_forward", broken)
    assert cuda_job("peers", "--output", str(tmp_path)) == job.FAILED
    found = report.load(tmp_path / RESULTS)
    assert found is not None
    assert found["failed"] == {str(LAYER): "RuntimeError: an illegal memory access was encountered"}
    assert [case["op"] for case in found["cases"]] == ["batch_norm_backward"]
    assert f"Not timed: {LAYER}" in capsys.readouterr().out
    assert "an illegal memory access" in report.render(None, None, [], found)


def fake_results(**more: Any) -> dict[str, Any]:
    """Numbers that no device has shown."""
    kernels = {"ours": 2e-6, "copy": 1e-6, "torch": 6e-6, "torch_compile": 1e-6, "cupy": 80e-6}
    timings = {name: DeviceTiming(Timing([t]), Timing([5 * t])) for name, t in kernels.items()}
    cell = Cell(BY_NAME["rms_norm_forward"], Geometry((16384, 4096), -1), "bfloat16")
    case = {**device_peers.summarize(cell, timings), "error": 0.5, "left_out": {"cudnn": "it <broke>"}}
    clocks = dict.fromkeys(device.NVIDIA_SMI, "7")
    return {
        **{"format": report.FORMAT, "mode": "default", "selection": "", "commit": "0123456789", "clean": True},
        "machine": {"cpu": "a host", "system": "Linux", "python": "3.11", "date": "2026-01-01"},
        "device": {
            **{"name": "a <fake> GPU", "compute_capability": "9.0", "multiprocessors": 2, "l2_cache": 1 << 20},
            **{"memory": 1 << 30, "arrays": "torch", "clocks": clocks, "versions": {"torch": "2.13.0"}},
        },
        **{"missing": {}, "clocks_before": clocks, "clocks_after": clocks, "planned": 1, "cases": [case], "failed": {}},
        **more,
    }


def test_summary_of_a_case() -> None:
    (case,) = fake_results()["cases"]
    assert case["bytes_moved"] == 2 * 16384 * 4096 * 2
    assert case["gbs"] == pytest.approx(case["bytes_moved"] / 2e-6 / 1e9)
    assert case["percent_of_copy"] == pytest.approx(50)
    assert case["times"] == {name: pytest.approx(t) for name, t in (("torch", 3), ("torch_compile", 0.5), ("cupy", 40))}
    assert (case["fastest_peer"], case["times_fastest"]) == ("torch_compile", pytest.approx(0.5))
    assert case["published"] == {"cuDNN": 3708, "PyTorch": 3365, "torch.compile": 3523}


def test_results_of_a_device_come_back(tmp_path: Path) -> None:
    report.save(tmp_path / RESULTS, fake_results())
    assert report.load(tmp_path / RESULTS) == fake_results()
    page = report.write(tmp_path, tmp_path / "results").read_text(encoding="utf-8")
    assert "a &lt;fake&gt; GPU" in page


def test_page_shows_a_device() -> None:
    page = report.render(None, None, [], fake_results())
    assert "a &lt;fake&gt; GPU" in page
    assert "cuDNN 3708, PyTorch 3365, torch.compile 3523" in page
    assert '<td class="fastest loss" title="kernel 1 µs, call 5 µs">0.50x</td>' in page
    assert '<td class="" title="kernel 6 µs, call 30 µs">3.00x</td>' in page
    assert "<td>2 µs</td><td>10 µs</td>" in page
    assert "<td>50 %</td>" in page
    assert "Without cuDNN (it &lt;broke&gt;): rms_norm_forward 16384x4096@-1 bfloat16." in page
    assert "never been run or timed" not in page
    assert "Never timed on a device:" in page
    assert "<code>batch_norm_forward</code>" in page.partition("Never timed on a device:")[2].partition("</p>")[0]
    assert "@-1 ~" not in page
    assert "of 1 cases" not in page


def test_page_says_what_a_run_on_a_device_lacks() -> None:
    (case,) = fake_results()["cases"]
    cut = fake_results(planned=9, cases=[{**case, "waited": ["ours"]}], clocks_after={}, clean=False)
    page = report.render(None, None, [], cut)
    assert "1 of 9 cases that were asked for were timed" in page
    assert "16384x4096@-1 ~" in page
    assert "Clocks after</dt><dd>not readable" in page
    assert "in no commit" in page
    assert not figures.doubtful_on_device({**case, "spread": {"torch": 0.9}})
    assert figures.doubtful_on_device({**case, "spread": {"torch_compile": 0.9}})


def test_page_says_that_nothing_ran_on_a_device() -> None:
    page = report.render(None, None, [])
    assert "checked by compilation and in an emulator only" in page
    assert "<b>They have never been run or timed on a device</b>" in page


# --- the script ------------------------------------------------------------------------------------------------------

SCRIPT = asv_run.ROOT / "benchmarks" / "gpu_session.sh"
BASH = shutil.which("bash")


@pytest.fixture
def session(tmp_path: Path) -> Callable[..., tuple[int, list[str], list[str]]]:
    """Runs the script with stubs for all that needs a device; status, phases and commands."""
    if not BASH or not shutil.which("timeout"):
        pytest.skip("there is no bash, or no timeout")
    stubs, out = tmp_path / "bin", tmp_path / "out"
    stubs.mkdir()

    def run(*arguments: str, fails: str = "nothing", missing: str = "") -> tuple[int, list[str], list[str]]:
        for name in {"nvidia-smi", "compute-sanitizer", "ncu", "python3"} - {missing}:
            stub = stubs / name
            stub.write_text(
                f'#!{BASH}\nline="{name} $*"\necho "$line" >>"{tmp_path}/commands"\n[[ $line != *{fails}* ]]\n'
            )
            stub.chmod(0o755)
        tools = tmp_path / "tools"
        tools.mkdir(exist_ok=True)
        for name in ("timeout", "tee", "mkdir", "dirname", "cat"):
            (tools / name).symlink_to(shutil.which(name) or "")
        environment = {**os.environ, "PATH": f"{stubs}:{tools}", "OUT": str(out)}
        environment.pop("PYTHON", None)
        done = subprocess.run([str(BASH), str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)
        status = out / "status.txt"
        phases = status.read_text().splitlines() if status.exists() else []
        commands = tmp_path / "commands"
        return done.returncode, phases, commands.read_text().splitlines() if commands.exists() else []

    return run


PHASES = ("nvidia-smi", "backends", "tests", "memcheck", "racecheck", "time", "profile")


def test_session_script_is_valid() -> None:
    if not BASH:
        pytest.skip("there is no bash")
    assert subprocess.run([BASH, "-n", str(SCRIPT)], capture_output=True, text=True).stderr == ""


def test_session_runs_every_phase(session: Callable[..., tuple[int, list[str], list[str]]], tmp_path: Path) -> None:
    code, phases, commands = session()
    assert (code, phases) == (0, [f"{name}: passed" for name in PHASES])
    assert any("-m pytest -m gpu" in command for command in commands)
    assert any(command.startswith("compute-sanitizer --tool racecheck") for command in commands)
    assert any(f"-m benchmarks --device cuda --output {tmp_path}/out peers" in command for command in commands)
    assert sum("-m benchmarks.every_op" in command for command in commands) == 3
    assert len(list((tmp_path / "out").iterdir())) <= 8


@pytest.mark.parametrize("fails", ["nvidia-smi", "racecheck", "peers"])
def test_session_goes_on_after_a_failure(session: Callable[..., tuple[int, list[str], list[str]]], fails: str) -> None:
    code, phases, _ = session(fails=fails)
    assert code == 1
    assert [line.partition(":")[0] for line in phases] == list(PHASES)
    assert sum("passed" in line for line in phases) == len(PHASES) - 1


def test_session_without_tools(session: Callable[..., tuple[int, list[str], list[str]]]) -> None:
    assert session("profile", missing="ncu")[:2] == (0, ["profile: no ncu"])


def test_session_without_sanitizer_fails(session: Callable[..., tuple[int, list[str], list[str]]]) -> None:
    assert session("memcheck", missing="compute-sanitizer")[:2] == (1, ["memcheck: no compute-sanitizer"])


def test_session_runs_the_phases_that_were_named(session: Callable[..., tuple[int, list[str], list[str]]]) -> None:
    assert session("check", "time")[:2] == (0, [f"{name}: passed" for name in ("nvidia-smi", "backends", "time")])


def test_session_refuses_what_is_no_phase(session: Callable[..., tuple[int, list[str], list[str]]]) -> None:
    assert session("everything")[0] == 2


def test_the_limits_of_a_session_fit_nine_minutes() -> None:
    import re

    text = SCRIPT.read_text()
    limits = [int(n) for n in re.findall(r"^\s*(?:\w+\(\) \{ )?phase \S+ (\d+)", text, re.MULTILINE)]
    limits += [int(n) for n in re.findall(r"sanitize \w+ (\d+)", text)]
    limits += [int(n) for n in re.findall(r"TIME_LIMIT:-(\d+)", text)]
    assert len(limits) == len(PHASES)
    assert sum(limits) < 9 * 60
