"""The benchmark suite runs, its selections stay small, its arithmetic is right, and its page opens offline."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import normnumba
from benchmarks import (
    asv_run,
    ceiling,
    figures,
    history,
    job,
    learning,
    measure,
    memory,
    numpy_peer,
    onnx_peer,
    peers,
    readme,
    report,
    selection,
    startup,
    suite,
    verify,
)
from benchmarks.cases import OPS, SHAPES, X_SIZED, Geometry, Op, dtype_of
from benchmarks.contender import Contender
from benchmarks.machine import last_level_cache, numba_threads
from benchmarks.selection import Cell
from normnumba import reference
from normnumba.kernels.cpu import compiling

BY_NAME = {op.name: op for op in OPS}
LAYER, BATCH = BY_NAME["layer_norm_forward"], BY_NAME["batch_norm_forward"]
SUITE = (suite.Forward, suite.Backward, suite.Inference, suite.Moments)


def smallest(op: Op) -> Cell:
    return Cell(op, min(op.shapes, key=lambda g: g.size), "float32")


# --- the suite -------------------------------------------------------------------------------------------------------


def timed_method(benchmarks: type) -> str:
    (name,) = (name for name in vars(benchmarks) if name.startswith(("time_", "timeraw_", "peakmem_")))
    return name


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_suite_runs_each_op(op: Op) -> None:
    cell = str(smallest(op))
    (owner,) = (benchmarks for benchmarks in SUITE if cell in benchmarks.params)
    instance = owner()
    instance.setup(cell)
    getattr(instance, timed_method(owner))(cell)


def test_suite_has_every_cell_once() -> None:
    params = [cell for benchmarks in SUITE for cell in benchmarks.params]
    assert sorted(params) == sorted(map(str, selection.every_cell()))
    assert len(set(params)) == len(params)


def test_suite_prepares_inputs_once() -> None:
    # asv calls setup before every timed call.
    instance = suite.Forward()
    instance.setup(str(smallest(LAYER)))
    first = instance.call
    instance.setup(str(smallest(LAYER)))
    assert instance.call is first


def test_suite_skips_what_an_old_commit_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    suite.prepared.cache_clear()
    monkeypatch.delattr(normnumba, LAYER.name)
    with pytest.raises(NotImplementedError, match=LAYER.name):
        suite.Forward().setup(str(smallest(LAYER)))
    with pytest.raises(NotImplementedError):
        startup.FirstCall().setup()
    with pytest.raises(NotImplementedError):
        memory.PeakLayerNorm().setup("2x3")


def test_learning_benchmarks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(learning, "SEEDS", range(1))
    steps = {}
    for net in learning.NETS:
        instance = learning.Learning()
        instance.setup(net)
        steps[net] = instance.track_steps(net)
    assert steps["mlp batch"] < steps["mlp none"] / 1.5
    assert max(steps.values()) < 300  # where the runs end


def test_learning_benchmarks_skip_what_an_environment_or_an_old_commit_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("sklearn.datasets", "normnumba.layers"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            with pytest.raises(NotImplementedError, match=missing):
                learning.Learning().setup("mlp none")


@pytest.mark.parametrize("benchmarks", [memory.PeakLayerNorm, memory.PeakBatchNorm])
def test_memory_benchmarks_run(benchmarks: type) -> None:
    shape = "6x4" if benchmarks is memory.PeakLayerNorm else "2x3x4x4"
    instance = benchmarks()
    instance.setup(shape)
    getattr(instance, timed_method(benchmarks))(shape)


def test_startup_benchmarks_are_valid_code() -> None:
    first = startup.FirstCall()
    first.setup()
    startup.fill_cache.cache_clear()
    for code in (startup.Import().timeraw_import(), *first.timeraw_compile_512x1024()):
        compile(code, "<timeraw>", "exec")
    # The one that counts on a cache runs, in the process that fills it.
    call, setup = first.timeraw_cached_512x1024()
    compile(f"{setup}\n{call}", "<timeraw>", "exec")


def test_every_kernel_is_timed() -> None:
    assert set(startup.KERNELS) == {*compiling.kernels, "tasks.spread"}
    seconds = startup.kernel_seconds(("rows.forward",))
    compiled, loaded = (seconds[step]["rows.forward"] for step in ("compile", "load"))
    assert 0 < loaded < compiled / 2
    startup.CompileKernel().setup(seconds, "rows.forward")
    startup.EveryKernel().setup(seconds)
    assert startup.CompileKernel().track_compile(seconds, "rows.forward") == compiled
    assert startup.EveryKernel().track_compile(seconds) == compiled
    assert startup.EveryKernel().track_load(seconds) == loaded


def test_kernels_that_an_old_commit_lacks_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotImplementedError, match=r"rows\.unknown"):
        startup.CompileKernel().setup({"compile": {"rows.forward": 1.0}}, "rows.unknown")
    monkeypatch.delattr(compiling, "kernels")
    with pytest.raises(NotImplementedError, match="by name"):
        startup.EveryKernel().setup(startup.kernel_seconds())


def test_asv_finds_the_suite_where_only_the_library_is_installed() -> None:
    """Discovery imports every module of the package; a benchmark environment has no rich, plotly, torch or pytest."""
    code = """
import json, sys
missing = "rich plotly jinja2 torch jax onnx onnxruntime pytest psutil scipy sklearn joblib threadpoolctl"
for name in missing.split():
    sys.modules[name] = None
from asv_runner.discovery import disc_benchmarks
print(json.dumps([benchmark.name for benchmark in disc_benchmarks("benchmarks")]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=asv_run.ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert sorted(found) == [
        "learning.Learning.track_steps",
        "memory.PeakBatchNorm.peakmem_batch_norm_forward",
        "memory.PeakLayerNorm.peakmem_layer_norm_forward",
        "startup.CompileKernel.track_compile",
        "startup.EveryKernel.track_compile",
        "startup.EveryKernel.track_load",
        "startup.FirstCall.timeraw_cached_512x1024",
        "startup.FirstCall.timeraw_compile_512x1024",
        "startup.Import.timeraw_import",
        "suite.Backward.time_backward",
        "suite.Cuda.time_cuda",
        "suite.Forward.time_forward",
        "suite.Inference.time_inference",
        "suite.Moments.time_moments",
    ]


def test_numba_cache_is_apart_for_each_commit(tmp_path: Path) -> None:
    code = "import benchmarks, os; print(os.environ['NUMBA_CACHE_DIR'])"
    folders = []
    for commit in ("aaa", "bbb"):
        environment = {"ASV_COMMIT": commit, "ASV_ENV_DIR": str(tmp_path), "PATH": ""}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=asv_run.ROOT, env=environment, capture_output=True, text=True, check=True
        )
        folders.append(Path(done.stdout.strip()))
    assert len(set(folders)) == 2
    assert all(folder.is_dir() for folder in folders)


# --- selections ------------------------------------------------------------------------------------------------------


def benchmark_names() -> list[str]:
    """What asv matches its --bench against."""
    names = [f"suite.{b.__name__}.{timed_method(b)}({cell!r})" for b in SUITE for cell in b.params]
    names += ["startup.Import.timeraw_import", "startup.FirstCall.timeraw_compile_512x1024"]
    names += [
        "startup.FirstCall.timeraw_cached_512x1024",
        "memory.PeakLayerNorm.peakmem_layer_norm_forward('65536x512')",
    ]
    names += [f"startup.CompileKernel.track_compile({kernel!r})" for kernel in startup.KERNELS]
    names += ["startup.EveryKernel.track_compile", "startup.EveryKernel.track_load"]
    names += [f"learning.Learning.track_steps({net!r})" for net in learning.NETS]
    return [*names, "memory.PeakBatchNorm.peakmem_batch_norm_forward('32x256x64x64')"]


def chosen(cells: list[Cell]) -> list[str]:
    patterns = list(selection.asv_patterns(cells))
    return [name for name in benchmark_names() if any(re.search(pattern, name) for pattern in patterns)]


def test_default_selection_is_small_and_has_every_op() -> None:
    from benchmarks.job import OTHER_BENCHMARKS

    cells = selection.default_cells(others=OTHER_BENCHMARKS)
    names = chosen(cells)
    assert len(names) == len(cells) + OTHER_BENCHMARKS
    assert len(names) <= selection.MAX_CELLS
    assert {cell.op for cell in cells} == set(OPS)


def test_default_selection_keeps_the_extremes_as_the_table_grows() -> None:
    ops = [LAYER] * 30
    assert len(selection._deal(ops, 60)) <= 60
    sizes = [geometry.size for geometry in selection.by_priority(SHAPES["layer_norm"])]
    assert sizes[0] == max(sizes)
    assert sizes[1] == min(sizes)


def test_only_a_full_run_compiles_every_kernel() -> None:
    patterns = list(selection.asv_patterns([], selection.FULL_STARTUP_BENCHMARKS))
    found = [name for name in benchmark_names() if any(re.search(p, name) for p in patterns)]
    assert len(found) == len(chosen([])) + len(startup.KERNELS) + 2


def test_pattern_chooses_one_cell() -> None:
    cell = Cell(LAYER, Geometry((32, 768), -1), "float32")
    patterns = list(selection.asv_patterns([cell], others=()))
    assert sum(bool(re.search(p, name)) for p in patterns for name in benchmark_names()) == 1


def test_filters() -> None:
    cells = selection.filter_cells(selection.every_cell(), ["layer*"], ["8192x768"], ["float32"])
    assert [str(cell) for cell in cells] == [
        "layer_norm_forward 8192x768@-1 float32",
        "layer_norm_backward 8192x768@-1 float32",
    ]
    assert selection.filter_cells(selection.every_cell(), [], ["8192x768@0"], []) == []
    assert selection.find_cell(str(cells[0])) == cells[0]


def cells_of(*arguments: str) -> list[Cell]:
    """What the job would time."""
    return job.Job(job.parser().parse_args(["peers", *arguments]), None).cells()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ("", "reports"),
        ("--full", "reports"),
        ("peers", "reports"),
        ("--quick", "reports/partial"),
        ("peers --sizes small", "reports/partial"),
        ("peers --op layer_norm_forward", "reports/partial"),
        ("--full --dtype float64", "reports/partial"),
        ("peers --quick --output elsewhere", "elsewhere"),
    ],
)
def test_a_part_of_the_table_does_not_take_the_place_of_the_whole(arguments, folder):
    made = job.Job(job.parser().parse_args(arguments.split()), None)  # type: ignore[arg-type]
    assert made.options.output == (Path(folder) if folder == "elsewhere" else asv_run.ROOT / folder)


def test_sizes() -> None:
    small, cache, memory = (cells_of("--sizes", size) for size in selection.SIZES)
    assert len(small) + len(cache) + len(memory) == len(
        selection.without_huge(selection.every_cell(dtypes=["float32"]))
    )
    assert max(cell.x_bytes for cell in small) < selection.SMALL_BYTES <= min(cell.x_bytes for cell in cache)
    assert max(cell.op.transfers * cell.x_bytes for cell in cache) <= last_level_cache()
    assert min(cell.op.transfers * cell.x_bytes for cell in memory) > last_level_cache()
    assert {cell.op.family for cell in cells_of("--sizes", "small", "--op", "rms*")} == {"rms_norm"}


def test_more_shapes_come_only_when_asked_for() -> None:
    big = Cell(BY_NAME["group_norm_forward"], Geometry((1, 128, 768, 768), 1), "float32")
    tiny = Cell(LAYER, Geometry((1, 64), -1), "float32")
    assert {big, tiny}.isdisjoint(cells_of())
    assert {big, tiny} <= set(cells_of("--full"))
    assert tiny in cells_of("--sizes", "small")
    assert big not in cells_of("--sizes", "memory")
    assert big in cells_of("--shape", "1x128x768x768")
    assert big.geometry not in {cell.geometry for cell in verify.cells_to_verify([big.op])}


# --- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "geometry", "dtype", "expected"),
    [
        (LAYER, Geometry((8, 16), -1), "float32", 2 * 8 * 16 * 4),
        (BY_NAME["layer_norm_backward"], Geometry((8, 16), -1), "float64", 3 * 8 * 16 * 8),
        # A row of 2 MiB does not stay in 1 MiB between the two passes over it.
        (LAYER, Geometry((4, 1 << 19), -1), "float32", 3 * 4 * (1 << 19) * 4),
        # A channel of 32 * 56 * 56 floats, 401 KB, does stay.
        (BATCH, Geometry((32, 256, 56, 56), 1), "float32", 2 * 32 * 256 * 56 * 56 * 4),
        # Channels last, nothing stays: the whole array is one unit.
        (BATCH, Geometry((32, 56, 56, 256), -1), "float32", 3 * 32 * 256 * 56 * 56 * 4),
        (BY_NAME["batch_moments"], Geometry((32, 56, 56, 256), -1), "float32", 32 * 256 * 56 * 56 * 4),
        # A group of ten channels last does not stay, for its lines are others' too. One of 64 has lines of its own.
        (BY_NAME["group_norm_forward"], Geometry((2, 96, 96, 320), -1), "float32", 3 * 2 * 96 * 96 * 320 * 4),
        (BY_NAME["group_norm_forward"], Geometry((2, 32, 32, 2048), -1), "float32", 2 * 2 * 32 * 32 * 2048 * 4),
        (BY_NAME["group_norm_forward"], Geometry((2, 320, 96, 96), 1), "float32", 2 * 2 * 96 * 96 * 320 * 4),
    ],
)
def test_bytes_moved(op: Op, geometry: Geometry, dtype: str, expected: int) -> None:
    assert op.bytes_moved(geometry, dtype_of(dtype), private_cache=1 << 20) == expected


def test_ratio_is_taken_round_by_round() -> None:
    # A machine that slows down fivefold in the second round changes both times and no ratio.
    ours, torch = measure.Timing([1.0, 5.0, 1.0]), measure.Timing([2.0, 10.0, 2.0])
    assert torch.ratio_to(ours) == 2.0
    assert ours.seconds == 1.0
    assert ours.spread > 0


def test_ratio_to_what_had_one_round_is_that_of_the_medians() -> None:
    ours, slow = measure.Timing([9.0, 1.0, 1.0]), measure.Timing([3.0])
    assert slow.ratio_to(ours) == 3.0
    assert ours.ratio_to(slow) == 1 / 3


def test_side_by_side_gives_each_contender_its_time() -> None:
    import time

    effort = measure.Effort(rounds=2, block=0.004, budget=0.2)
    calls = {"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.003)}
    timings = measure.side_by_side(calls, effort)
    assert 0.001 <= timings["short"].seconds < timings["long"].seconds
    assert len(timings["long"].blocks) == 2


@pytest.mark.parametrize(
    ("reads", "writes", "repeats"), [(1, 1, 0), (2, 1, 0), (1, 0, 0), (2, 1, 2), (2, 2, 0), (3, 1, 0)]
)
def test_ceiling_moves_what_the_op_moves(reads: int, writes: int, repeats: int) -> None:
    steps = ceiling._steps(reads, writes, repeats)
    assert sum(map(len, steps)) + writes == reads + writes + repeats
    assert {source for step in steps for source in step} == set(range(reads))


def test_ceiling_kernels_copy_add_and_read() -> None:
    n = 5 * ceiling.BLOCK + 3
    a, b = np.arange(n, dtype=np.float32) % 7, np.ones(n, np.float32)
    for name, (copy, add, read) in ceiling._KERNELS.items():
        out, sums = np.zeros(n, np.float32), np.zeros(ceiling.PARTS, np.float32)
        copy(a, out)
        np.testing.assert_array_equal(out, a, err_msg=name)
        add(a, b, out)
        np.testing.assert_array_equal(out, a + b, err_msg=name)
        read(a, sums)
        assert sums.sum() == a.sum(), name


BRIEF = measure.Effort(rounds=1, block=0.001, budget=0.05)


def test_one_cell_against_its_peers() -> None:
    cell = smallest(LAYER)
    row = peers.Comparison(cell, {}).time(BRIEF)
    assert row["bytes_moved"] == 2 * cell.x_bytes
    assert row["into_out"]
    assert row["gbs"] == pytest.approx(row["bytes_moved"] / row["seconds"]["ours_out"] / 1e9)
    assert row["times"] == {"numpy": pytest.approx(row["seconds"]["numpy"] / row["seconds"]["ours"])}
    assert row["fastest_peer"] is row["times_fastest"] is None
    assert row["left_out"] == {}
    assert row["size"] == "small"
    json.dumps(row)


def test_outputs_are_reused_in_the_call_that_says_so_alone() -> None:
    cell = Cell(LAYER, Geometry((512, 1024), -1), "float32")
    calls = peers.our_calls(cell, cell.arguments())
    assert calls["ours"]()[0].base is None
    places = {calls["ours_reused"]()[0].base.ctypes.data for _ in range(3)}
    assert len(places) == 1
    assert calls["ours"]()[0].base is None
    assert "ours_reused" not in peers.our_calls(smallest(LAYER), smallest(LAYER).arguments())


# --- peers -----------------------------------------------------------------------------------------------------------


def available(peer: str) -> peers.Prepare:
    problem = peers.obstacle(peer, numba_threads()[0])
    if problem:
        pytest.skip(problem)
    return peers.PEERS[peer][1]


def awkward(op: Op, dtype: str) -> Cell:
    """A cell whose layout is not the one that a framework prefers."""
    rows = op.family in ("layer_norm", "rms_norm")
    return Cell(op, Geometry((6, 10, 4), 1) if rows else Geometry((6, 4, 5, 12), -1), dtype)


def assert_admits(peer: str, cell: Cell) -> None:
    calls, left_out = peers.admit(cell, cell.arguments(), {peer: available(peer)})
    assert left_out == {}
    assert list(calls) == [peer]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("peer", ["torch", "jax"])
def test_peer_computes_the_op(peer: str, op: Op) -> None:
    assert_admits(peer, awkward(op, "float32"))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_onnx_runtime_computes_what_has_no_gradient(op: Op) -> None:
    if op.direction in ("forward", "inference"):
        assert_admits("onnxruntime", awkward(op, "float32"))
    else:
        cell = awkward(op, "float32")
        assert available("onnxruntime")(op, cell.arguments()) is None


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("peer", ["torch", "jax"])
@pytest.mark.parametrize(
    "name",
    ["layer_norm_forward", "add_rms_norm_backward", "batch_norm_backward+residual+relu", "batch_norm_backward_sums"],
)
def test_peer_computes_in_every_dtype(peer: str, name: str, dtype: str) -> None:
    assert_admits(peer, awkward(BY_NAME[name], dtype))


def test_onnx_runtime_binds_the_outputs_of_larger_arrays_anew() -> None:
    cell = Cell(LAYER, Geometry((300, 64), -1), "float32")
    assert cell.x_bytes >= onnx_peer.BIND_FROM
    assert_admits("onnxruntime", cell)
    contender = available("onnxruntime")(cell.op, cell.arguments())
    assert contender is not None
    first, second = contender.call(), contender.call()
    assert first[0].data_ptr() != second[0].data_ptr()


def test_compiled_torch_computes_the_op() -> None:
    assert_admits("torch_compile", awkward(BY_NAME["batch_norm_backward+relu"], "float32"))


def fake_peer(change: Callable[[dict[str, Any]], Any] = lambda outputs: None) -> peers.Prepare:
    """The reference as a peer, with its outputs changed."""

    def prepare(op: Op, arguments: dict[str, Any]) -> Contender:
        dtype = np.dtype(arguments["x"].dtype)
        small = np.float64 if dtype == np.float64 else np.float32

        def outputs(result: tuple[Any, ...]) -> tuple[Any, ...]:
            named = dict(zip(op.outputs, result, strict=True))
            named = {k: v.astype(dtype if k in X_SIZED else small) for k, v in named.items()}
            change(named)
            return tuple(named.get(name) for name in op.outputs)

        return Contender(lambda: op(reference, arguments), outputs)

    return prepare


def scaled(name: str, factor: float) -> Callable[[dict[str, Any]], None]:
    return lambda outputs: outputs.update({name: (outputs[name] * factor).astype(outputs[name].dtype)})


def converted(name: str, dtype: str) -> Callable[[dict[str, Any]], None]:
    return lambda outputs: outputs.update({name: outputs[name].astype(dtype)})


@pytest.mark.parametrize(
    ("change", "dtype", "reason"),
    [
        (lambda outputs: None, "float32", None),
        (lambda outputs: outputs.pop("mean"), "float32", None),
        (lambda outputs: outputs.pop("y"), "float32", "it returns no y"),
        (scaled("y", 1.0001), "float32", None),
        (scaled("y", 1.01), "float32", "y is off by 0.01"),
        (scaled("rstd", 1.01), "float32", "rstd is off by"),
        (scaled("y", math.nan), "float32", "y is off by inf"),
        (scaled("y", 1 + 1e-8), "float64", "y is off by 1e-08"),
        (scaled("y", 1.1), "float16", "y is off by 0.1"),
        (converted("y", "float64"), "float32", "y is float64"),
        (converted("mean", "float16"), "float16", "mean is float16"),
    ],
)
def test_a_peer_that_disagrees_is_left_out(change: Any, dtype: str, reason: str | None) -> None:
    cell = Cell(LAYER, Geometry((5, 40), -1), dtype)
    calls, left_out = peers.admit(cell, cell.arguments(), {"jax": fake_peer(change)})
    if reason is None:
        assert (list(calls), left_out) == (["jax"], {})
    else:
        assert calls == {}
        assert left_out["jax"].startswith(reason)


def test_a_peer_that_raises_is_left_out_and_the_others_are_timed() -> None:
    def broken(op: Op, arguments: dict[str, Any]) -> Contender:
        raise NotImplementedError("no kernel\nand much more")

    taking_part = {"torch": broken, "torch_compile": fake_peer(), "jax": fake_peer(), "onnxruntime": lambda *_: None}
    row = peers.Comparison(smallest(LAYER), taking_part, compile_from=math.inf).time(BRIEF)
    assert row["left_out"] == {"torch_compile": peers.NOT_COMPILED, "torch": "NotImplementedError: no kernel"}
    assert row["times"].keys() == {"jax", "numpy"}
    assert row["fastest_peer"] == "jax"
    assert row["times_fastest"] == row["times"]["jax"]


def test_the_fastest_peer_is_a_framework() -> None:
    steps = {"ours": 1.0, "torch": 3.0, "jax": 2.0, "onnxruntime": 4.0, "numpy": 0.5}
    blocks = {name: [step, 5 * step, step] for name, step in steps.items()}
    row = peers.against_peers({name: measure.Timing(times) for name, times in blocks.items()})
    assert row["times"] == {"torch": 3.0, "jax": 2.0, "onnxruntime": 4.0, "numpy": 0.5}
    assert (row["fastest_peer"], row["times_fastest"]) == ("jax", 2.0)
    blocks["ours_reused"] = [0.5, 2.5, 0.5]
    like = peers.against_peers({name: measure.Timing(times) for name, times in blocks.items()})
    assert like["times"] == {**row["times"], "onnxruntime": 2 * row["times"]["onnxruntime"]}
    alone = peers.against_peers({"ours": measure.Timing([1.0])})
    assert alone == {"times": {}, "fastest_peer": None, "times_fastest": None}


def test_a_missing_peer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    assert peers.obstacle("jax", numba_threads()[0]) == "jax is not installed"
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    assert peers.obstacle("torch_compile", 1) == "there is no g++"


# --- verification ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_numpy_peer_computes_the_op(op: Op) -> None:
    cell = Cell(op, Geometry((6, 10, 4), -1 if op.family == "layer_norm" else 1), "float64")
    assert max(verify.errors_of(cell, numpy_peer, reference).values()) <= verify.TOLERANCE["float64"]


def test_verify_finds_a_wrong_op(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [smallest(op) for op in (LAYER, BATCH)]
    assert not verify.failed_ops(verify.verify(cells, numpy_peer, reference))
    right = numpy_peer.layer_norm_forward

    def wrong(*args: Any, **kwargs: Any) -> Any:
        y, mean, rstd = right(*args, **kwargs)
        return y, mean, rstd * np.float32(1.0001)

    monkeypatch.setattr(numpy_peer, "layer_norm_forward", wrong)
    checks = verify.verify(cells, numpy_peer, reference)
    assert verify.failed_ops(checks) == {"layer_norm_forward"}
    assert checks[0].output == "rstd"


def test_errors_that_are_not_numbers_fail() -> None:
    x = np.dtype(np.float32)
    assert verify.error_of(np.full(4, np.nan), np.zeros(4), x) == math.inf
    assert verify.error_of(np.zeros(3), np.zeros(4), x) == math.inf
    assert verify.error_of(None, np.zeros(4), x) == math.inf
    assert verify.error_of(None, None, x) == 0.0


# --- asv and git -----------------------------------------------------------------------------------------------------


def test_what_counts_as_dirty() -> None:
    assert asv_run.dirty_paths(" M normnumba/ops.py\n?? benchmarks/new.py\n") == [
        "normnumba/ops.py",
        "benchmarks/new.py",
    ]
    assert asv_run.dirty_paths("R  tests/a.py -> normnumba/a.py\n") == ["normnumba/a.py"]
    assert asv_run.dirty_paths(" M README.md\n?? reports/peers.json\n M normnumba.txt\n") == []
    assert asv_run.dirty_paths(" M pyproject.toml\n M asv.conf.json\n") == ["pyproject.toml", "asv.conf.json"]


def test_a_dirty_tree_is_refused(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.invalid", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert "no git repository" in (asv_run.refusal(True, tmp_path) or "")
    git("init")
    (tmp_path / "normnumba").mkdir()
    (tmp_path / "normnumba" / "a.py").write_text("")
    git("add", ".")
    git("commit", "-m", "one")
    assert asv_run.refusal(True, tmp_path) is None

    (tmp_path / "normnumba" / "b.py").write_text("")
    message = asv_run.refusal(True, tmp_path) or ""
    assert "normnumba/b.py" in message
    assert "--no-save" in message
    assert asv_run.refusal(False, tmp_path) is None
    assert asv_run.run([], save=True, root=tmp_path) == asv_run.Outcome(False, False, message)


def test_cuda_is_refused_with_its_reason(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.job import MISUSED, main

    monkeypatch.setattr(normnumba, "backends", lambda: {"cpu": None, "cuda": "no driver."})
    monkeypatch.setattr(job.Job, "machine", None)

    for part in ([], ["verify"], ["peers"], ["report"]):
        assert main([*part, "--device", "cuda"]) == MISUSED
        assert capsys.readouterr().out == "CUDA cannot be used: no driver. Only --device cpu can be timed here.\n"
    assert main(["asv", "--device", "cuda"]) == MISUSED
    assert "asv has no --device cuda" in capsys.readouterr().out
    assert main(["peers", "--op", "no_such_op"]) != 0


# --- the page and the README -----------------------------------------------------------------------------------------


def fake_case(op: Op, geometry: Geometry, **times: float) -> dict[str, Any]:
    """A row of peers.json with these ratios, by peer."""
    x_bytes = geometry.size * 4
    times = times or {"torch": 2.0, "numpy": 8.0}
    seconds = {"ours": 2e-3, "ours_out": 1e-3, "ceiling": 0.8e-3} | {k: 2e-3 * ratio for k, ratio in times.items()}
    timings = {name: measure.Timing([second]) for name, second in seconds.items()}
    return {
        "op": op.name,
        "family": op.family,
        "direction": op.direction,
        "geometry": str(geometry),
        "dtype": "float32",
        "x_bytes": x_bytes,
        "size": selection.size_class(Cell(op, geometry, "float32")),
        "bytes_moved": 2 * x_bytes,
        "transfers": 2,
        "seconds": seconds,
        "spread": dict.fromkeys(seconds, 0.01),
        "into_out": True,
        "gbs": 2 * x_bytes / 1e-3 / 1e9,
        "ceiling_gbs": 2 * x_bytes / 0.8e-3 / 1e9,
        "ceiling_way": "streaming",
        "percent_of_ceiling": 80.0,
        "others": 0.0,
        "left_out": {},
        **peers.against_peers(timings),
    }


MACHINE = {
    "cpu": "a <fast> processor",
    "cores": 2,
    "logical_cores": 2,
    "caches": {"L2": 1 << 20},
    "memory": 1 << 34,
    "governor": None,
    "others": 0.1,
    "system": "Linux x86_64",
    "python": "3.11.0",
    "threads": 2,
    "threading_layer": "tbb",
    "versions": {"numba": "0.68.1", "numpy": "2.4.6", "torch": "2.13.0"},
    "date": "2026-01-01 00:00 UTC",
    "doubts": [],
}
ORIGIN = {
    "format": report.FORMAT,
    "mode": "default",
    "selection": "",
    "commit": "0123456789",
    "clean": True,
    "machine": MACHINE,
}
BIG, SMALL = Geometry((8192, 768), -1), Geometry((1, 768), -1)
LOST = fake_case(LAYER, SMALL, torch=2.0, torch_compile=4.0, jax=0.5, numpy=8.0)
PEERS = {
    **ORIGIN,
    "missing": {"onnxruntime": "onnx is not installed"},
    "cases": [
        fake_case(LAYER, BIG),
        {**LOST, "left_out": {"onnxruntime": "y is off by <0.1>"}},
        fake_case(BATCH, BIG, numpy=8.0),
    ],
}
CHECK = verify.Check(LAYER.name, "float32", 3, 1.5, "y", "3x7@-1", 32.0)
CHECKS = {**ORIGIN, "full": False, "checks": [CHECK.as_dict()]}


def asv_result(commit: str, date: int, value: float, version: str = "1") -> dict[str, Any]:
    return {
        "commit_hash": commit * 40,
        "env_name": "virtualenv-py3.11",
        "date": date,
        "result_columns": ["result", "params", "version", "samples"],
        "results": {
            "suite.Forward.time_forward": [[value, None, "NaN"], [["'op 1x1'", "'op 2x2'", "'op 3x3'"]], version],
            "startup.Import.timeraw_import": [[0.5], [], version],
        },
    }


def write_asv(folder: Path, *results: dict[str, Any]) -> Path:
    machine = folder / "results" / "a-machine"
    machine.mkdir(parents=True)
    (machine / "machine.json").write_text("{}")
    for result in results:
        (machine / f"{result['commit_hash'][:8]}-env.json").write_text(json.dumps(result))
    return folder / "results"


def test_history_reads_what_asv_writes(tmp_path: Path) -> None:
    newest, oldest = asv_result("b", 2000, 2.0), asv_result("a", 1000, 1.0)
    outdated = asv_result("c", 500, 9.0, version="0")
    points = history.read(write_asv(tmp_path, newest, oldest, outdated))
    (lines,) = history.lines(points).values()
    assert {name: [point.value for point in line] for name, line in lines.items()} == {
        "op 1x1": [1.0, 2.0],
        "timeraw_import": [0.5, 0.5],
    }


def test_page_opens_offline(tmp_path: Path) -> None:
    results = write_asv(tmp_path, asv_result("a", 1000, 1.0), asv_result("b", 2000, 2.0))
    report.save(tmp_path / "peers.json", PEERS)
    report.save(tmp_path / "verify.json", CHECKS)
    page = report.write(tmp_path, results).read_text(encoding="utf-8")

    loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]*?(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert loaded == [report.SCRIPT]
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?:https?:)?//|@import|url\(""", page)
    assert (tmp_path / report.SCRIPT).stat().st_size > 1 << 20

    assert page.count("Plotly.newPlot") == 3
    assert "<b>1 of 2</b><span>cases faster than the fastest framework" in page
    assert "layer_norm_forward 1x768@-1</code>: 2 ms against the 1 ms of JAX jit (0.50x in the median round)" in page
    assert '<td class="fastest loss" title="1 ms">0.50x</td>' in page
    assert "Without ONNX Runtime (y is off by &lt;0.1&gt;): layer_norm_forward 1x768@-1." in page
    assert "There is no comparison with ONNX Runtime: onnx is not installed." in page
    assert "JAX jit, the fastest" in page
    assert "A case is compared with the fastest of torch eager, torch.compile, JAX jit." in page
    assert "Small calls, x below 64 KiB, 1 case: against torch eager 2.00x on geometric average" in page
    assert "a &lt;fast&gt; processor" in page
    assert "never been run or timed on a device" in page


def test_page_says_what_is_missing(tmp_path: Path) -> None:
    page = report.write(tmp_path, tmp_path / "results").read_text(encoding="utf-8")
    assert "Nothing measured yet" in page
    assert "No saved times yet" in page
    alone = {**PEERS, "cases": [fake_case(LAYER, BIG, numpy=8.0)], "selection": "--op a<b", "clean": False}
    page = report.render(alone, None, history.read(write_asv(tmp_path, asv_result("a", 1000, 1.0))))
    assert "no comparison with ONNX Runtime" in page
    assert "fastest framework</span>" not in page
    assert "--op a&lt;b" in page
    assert "in no commit" in page
    assert "starts with the second" in page


def test_tally_is_honest() -> None:
    ratios = (0.5, 0.94, 0.96, 1.0, 1.04, 1.06, 3.0)
    tally = figures.tally([fake_case(LAYER, BIG, torch=ratio) for ratio in ratios], "torch")
    assert tally is not None
    assert (tally.faster, tally.level, len(tally.slower), tally.count) == (2, 3, 2, 7)
    assert [case["times"]["torch"] for case in tally.slower] == [0.5, 0.94]
    assert figures.tally([fake_case(LAYER, BIG, numpy=1.0)], "torch") is None
    fastest = figures.tally([LOST, fake_case(LAYER, BIG, jax=3.0), fake_case(LAYER, BIG, numpy=1.0)], "fastest")
    assert fastest is not None
    assert (fastest.faster, fastest.slower, fastest.count) == (1, [LOST], 2)
    assert (fastest.low, fastest.median, fastest.high) == (0.5, 1.75, 3.0)
    disturbed = {**fake_case(LAYER, BIG, torch=900.0), "others": 1.0}
    assert figures.tally([disturbed], "torch") is None
    assert figures.ceiling_median([disturbed]) is None


def test_an_unsteady_fastest_peer_makes_a_case_unsteady() -> None:
    spread = dict.fromkeys(LOST["spread"], 0.01)
    assert not figures.unsteady({**LOST, "spread": spread | {"torch_compile": 0.9}})
    assert figures.unsteady({**LOST, "spread": spread | {"jax": 0.9}})


def test_what_each_size_says() -> None:
    deep, backward = Geometry((32, 256, 56, 56), 1), BY_NAME["batch_norm_backward"]
    cases = [
        LOST,
        fake_case(LAYER, SMALL, torch=8.0),
        fake_case(LAYER, Geometry((512, 1024), -1), torch=0.9),
        fake_case(BATCH, deep, torch=3.0),
        {**fake_case(BATCH, deep, jax=3.0), "percent_of_ceiling": 60.0},
        {**fake_case(backward, deep, jax=3.0), "percent_of_ceiling": 50.0},
        {**fake_case(backward, deep, torch=0.01), "others": 1.0},
    ]
    small, cache, memory = figures.classes(cases)
    assert "2 cases: against torch eager 4.00x on geometric average, 2.00x at worst (layer_norm_forward 1x768" in small
    assert "against the fastest 2.00x on geometric average, 0.50x at worst" in small
    assert "1 case: against the fastest 0.90x" in cache
    assert "3 cases: median of the ceiling, forward 70 % (2 cases), backward 50 % (1 case)" in memory
    assert figures.classes([]) == []


def test_left_out_peers_are_listed_by_reason() -> None:
    cases = [{**LOST, "left_out": {"jax": "it is off", "torch": "it broke"}}] + [
        {**LOST, "left_out": {"jax": "it is off"}}
    ] * 4
    where = ", ".join(["layer_norm_forward 1x768@-1"] * 3)
    assert figures.left_out(cases) == [
        f"Without JAX jit (it is off): {where} and 2 more",
        "Without torch eager (it broke): layer_norm_forward 1x768@-1",
    ]


def test_files_of_an_older_format_are_not_read(tmp_path: Path) -> None:
    report.save(tmp_path / "peers.json", {**PEERS, "format": 1})
    assert report.load(tmp_path / "peers.json") is None
    report.save(tmp_path / "peers.json", PEERS)
    assert report.load(tmp_path / "peers.json") is not None


def test_how_numbers_are_written() -> None:
    assert [figures.seconds(s) for s in (1.5, 0.0123, 9.996e-6, 999.9e-6, 3e-9)] == [
        "1.5 s",
        "12.3 ms",
        "10 µs",
        "1000 µs",
        "3 ns",
    ]
    assert [figures.nbytes(n) for n in (100, 2048, 25165824)] == ["100 B", "2 KiB", "24 MiB"]
    assert [figures.times(t) for t in (0.5, 12.3, None)] == ["0.50x", "12x", "-"]


def test_readme_table(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    text = readme.results(PEERS)
    assert not readme.update(path, "results", text)
    assert not path.exists()
    path.write_text("before\n<!-- claims:begin -->\n<!-- claims:end -->")
    assert not readme.update(path, "results", text)
    assert path.read_text() == "before\n<!-- claims:begin -->\n<!-- claims:end -->"

    path.write_text("before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n")
    assert readme.update(path, "results", text)
    once = path.read_text()
    assert once.startswith("before\n")
    assert once.endswith("<!-- results:end -->\nafter\n")
    assert "old" not in once
    assert "| `layer_norm_forward` | 0.50x | - | 2.00x | 2.00x | - | 2.00x | 80 % |" in once
    assert "| `batch_norm_forward` | - | - | - | - | - | - | 80 % |" in once
    assert once.index("Against the fastest framework: 1 of 2 faster, 0 level, 1 slower") < once.index("| op |")
    assert "The fastest peer of a case is one of torch eager, torch.compile, JAX jit; NumPy" in once
    readme.update(path, "results", text)
    assert path.read_text() == once


def test_readme_says_what_reuse_gains_beside_a_peer_that_does_it() -> None:
    case = fake_case(LAYER, BIG, onnxruntime=2.0)
    assert "reuse" not in readme.results({**PEERS, "cases": [case]})
    case["seconds"]["ours_reused"] = 0.5e-3
    said = readme.results({**PEERS, "cases": [case]})
    assert "under `reuse_outputs`. Without that the same cases would be 2.00x (2.00x to 2.00x)." in said


def test_readme_says_what_the_memory_of_outputs_does() -> None:
    large, larger, largest, medium, small = (fake_case(LAYER, BIG) for _ in range(5))
    sizes = 32 << 20, 64 << 20, 128 << 20, 4 << 20, 3 << 10
    for case, nbytes in zip((large, larger, largest, medium, small), sizes, strict=True):
        case["x_bytes"], case["seconds"]["ours"] = nbytes, 1e-3
    large["seconds"]["ours_reused"], medium["seconds"]["ours_reused"] = 0.5e-3, 2e-3
    larger["seconds"]["ours_reused"], largest["seconds"]["ours_reused"] = 2e-3, 0.25e-3
    small["seconds"]["ours_out"] = 3e-3
    said = readme.results({**PEERS, "cases": [large, larger, largest, medium, small]})
    assert "- Speed under `reuse_outputs` on arrays of 32 MiB and more: 2.00x (0.50x to 4.00x).\n" in said
    assert "- On smaller ones whose outputs it takes, of 1 MiB and more: 0.50x (0.50x to 0.50x).\n" in said
    assert said.endswith(
        "- Time of small calls that write into `out=`, beside those that allocate: 3.00x (3.00x to 3.00x)."
    )


def test_readme_claims() -> None:
    source = {"cpu": "some CPU", "date": "2026-01-02 03:04 UTC"}
    verdicts = {"one": "supported", "two": "contradicted", "three": "supported"}
    entries = [{"id": id, "verdict": verdict, "n_seeds": 20, "source": source} for id, verdict in verdicts.items()]
    lines = readme.claims(entries).splitlines()
    assert lines[2:5] == ["| 2 supported | `one`, `three` |", "| 1 contradicted | `two` |", "| 0 undecided | - |"]
    assert lines[-1].startswith("20 seeds, some CPU, 2026-01-02.")
