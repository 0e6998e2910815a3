"""The same bits on any number of threads, alone or in a batch; and right results whoever else is running."""

import functools
import hashlib
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import normnumba
from benchmarks.cases import OPS, Geometry
from normnumba import reference
from normnumba.kernels.cpu import channels, launching, plain
from tests.helpers import (
    BY_NAME,
    WIDE,
    arguments_of,
    assert_identical,
    check,
    name_of,
    run_python,
    shared,
    takes_out,
)

LARGE = shared(
    rows=(
        Geometry((101, 777), -1),
        Geometry((2, 65537), -1),
        Geometry((25001, 3), -1),
        Geometry((97, 801), 0),
    ),
    channels=(
        Geometry((5, 7, 43, 47), 1),
        Geometry((3, 43, 47, 13), -1),
        Geometry((25001, 3), 1),
        Geometry((2, 3, 101, 151), 1),
        Geometry((1501, 70), 1),
        Geometry((70, 1023), 1),
    ),
)
"""Past the size from which threads are used, in every geometry, with blocks that are not all alike."""

LARGE_CASES = [(op, geometry, dtype) for op in OPS for geometry in LARGE[op.family] for dtype in WIDE]

LAYERS = ("tbb", "omp", "workqueue")

OUT_OF_REACH = 1 << 62


def digests():
    """A line for each case of float32: the op, the case, and a hash of everything that it returned."""
    lines = []
    for op, geometry, dtype in LARGE_CASES:
        if dtype != "float32":  # a part of the tests has compiled no others
            continue
        assert geometry.size >= launching.PARALLEL_FROM
        outputs = op(normnumba, arguments_of(op, geometry, dtype, np.random.default_rng(7)))
        digest = hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in outputs if a is not None))
        lines.append(f"{op.name} {geometry} {dtype} {digest.hexdigest()}")
    return lines


def test_any_number_of_threads_gives_the_same_bits():
    code = """
import numba
from tests.test_determinism import digests, launching
print("\\n".join(digests()))
print(numba.get_num_threads(), launching.spread_tasks.cache_info().currsize)
"""
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(run_python, code, NUMBA_NUM_THREADS=n, timeout=300) for n in (1, 2, 7)]
    one, *more = (run.result().splitlines() for run in runs)
    assert one.pop() == "1 0"
    for n, lines in zip((2, 7), more, strict=True):
        assert lines.pop() == f"{n} 1"
        assert lines == one, f"{n} threads"


def test_a_process_that_compiles_and_one_that_loads_give_the_same_bits(tmp_path):
    """They once ran different machine code for a helper that both call: see `linking`."""
    code = """
import hashlib
import numpy as np, normnumba as nn
x, dy = np.random.default_rng(0).standard_normal((2, 64, 33, 65)).astype(np.float32)
_, mean, rstd = nn.layer_norm_forward(x, axis=1)
for a in nn.layer_norm_backward(dy, x, mean, rstd, axis=1):
    print(hashlib.sha256(a.tobytes()).hexdigest())
"""
    first, second = (run_python(code, NUMBA_CACHE_DIR=tmp_path) for _ in range(2))
    assert first == second


def test_masked_threads_give_the_same_bits():
    code = """
import numba
from tests import test_determinism
test_determinism.LARGE_CASES = test_determinism.LARGE_CASES[::4]
every = test_determinism.digests()
numba.set_num_threads(1)
assert test_determinism.digests() == every
"""
    run_python(code, NUMBA_NUM_THREADS=3)


@pytest.mark.parametrize(("op", "geometry", "dtype"), LARGE_CASES, ids=name_of)
def test_threads_give_the_bits_of_one_task_after_the_other(op, geometry, dtype, rng, monkeypatch):
    arguments = arguments_of(op, geometry, dtype, rng)
    results = []
    for parallel_from in (0, OUT_OF_REACH):
        monkeypatch.setattr(launching, "PARALLEL_FROM", parallel_from)
        results.append(op(normnumba, arguments))
    assert_identical(*results)


SHARED_OPS = ("batch_norm_forward", "batch_norm_backward", "batch_norm_backward+residual+relu", "batch_moments")


@pytest.mark.parametrize("geometry", [Geometry(s, 1) for s in ((70, 3, 41), (5, 1, 9, 17), (38, 3, 90))], ids=name_of)
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("op", [BY_NAME[name] for name in SHARED_OPS], ids=name_of)
def test_channels_that_threads_share(op, offset, geometry, rng, monkeypatch):
    """Of few channels each is as good as a large one here; backwards must not lose what rounding a far mean costs."""
    monkeypatch.setattr(channels, "LARGE", 0)
    monkeypatch.setattr(plain, "_run", lambda *_: False)  # nothing large is a small call
    arguments = op.arguments(geometry, np.dtype(np.float32), rng)
    arguments["x"] += np.float32(offset)
    if "rstd" in arguments:
        forward = {k: v for k, v in arguments.items() if k not in ("dy", "mean", "rstd")}
        _, mean, rstd = reference.batch_norm_forward(**forward)
        arguments |= {"mean": mean.astype(np.float32), "rstd": rstd.astype(np.float32)}
    results = []
    for parallel_from in (0, OUT_OF_REACH):
        monkeypatch.setattr(launching, "PARALLEL_FROM", parallel_from)
        results.append(check(op, arguments))
    assert_identical(*results)


@pytest.mark.parametrize(("op", "geometry", "dtype"), LARGE_CASES[::2], ids=name_of)
def test_calling_again_gives_the_same_bits(op, geometry, dtype, rng):
    arguments = arguments_of(op, geometry, dtype, rng)
    first = op(normnumba, arguments)
    moved = {k: np.concatenate([v.ravel(), v.ravel()[:1]])[1:] if np.ndim(v) else v for k, v in arguments.items()}
    for k, v in arguments.items():  # the same values one element further in memory
        if np.ndim(v):
            moved[k] = moved[k][: v.size].reshape(v.shape)
            moved[k][...] = v
    for _ in range(3):
        assert_identical(op(normnumba, arguments), first)
    if takes_out(op):
        assert_identical(op(normnumba, moved), first, "at another alignment")


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("widths", [range(1, 131), (1023, 4095, 4096, 4097, 4098), (65537,)], ids=str)
def test_a_row_alone_is_the_row_in_a_batch(widths, dtype, rng, monkeypatch):
    rows, alone = 37, (0, 17, 36)
    for width in widths:
        x, dy = rng.standard_normal((2, rows, width)).astype(dtype) + np.dtype(dtype).type(3)
        weight, bias = rng.standard_normal((2, width)).astype(dtype)
        monkeypatch.setattr(launching, "PARALLEL_FROM", 0)
        forward = normnumba.layer_norm_forward(x, weight, bias)
        dx = normnumba.layer_norm_backward(dy, x, *forward[1:], weight)[0]
        for parallel_from in (0, OUT_OF_REACH):
            monkeypatch.setattr(launching, "PARALLEL_FROM", parallel_from)
            for row in (slice(r, r + 1) for r in alone):
                one = normnumba.layer_norm_forward(x[row], weight, bias)
                assert_identical(one, [a[row] for a in forward], f"width {width}, {row}")
                one = normnumba.layer_norm_backward(dy[row], x[row], *one[1:], weight, output_mask=(1, 0, 0))
                assert_identical(one[:1], [dx[row]], f"dx, width {width}, {row}")


# --- threads and processes -------------------------------------------------------------------------------------------

SHARED = [
    (BY_NAME[name], geometry)
    for name in ("layer_norm_forward", "layer_norm_backward", "batch_norm_forward", "batch_norm_backward")
    for geometry in LARGE[BY_NAME[name].family][:3]
]


@functools.cache
def shared_arguments():
    """Of a few ops that use threads, and of one that does not."""
    small = BY_NAME["layer_norm_forward"], Geometry((3, 5), -1)
    return [(op, arguments_of(op, g, "float32", np.random.default_rng(7))) for op, g in (*SHARED, small)]


def work():
    return [result for op, arguments in shared_arguments() for result in op(normnumba, arguments)]


def work_at_once(threads=4, repeats=10):
    """The same work in several Python threads, the very first calls among it; every result has to be the same."""
    failures, results = [], []
    shared_arguments()
    start = threading.Barrier(threads)

    def run():
        try:
            start.wait()
            results.extend(work() for _ in range(repeats))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures, failures
    assert len(results) == threads * repeats
    for one in results:
        assert_identical(one, results[0])
    return results[0]


def expected_work():
    """`work` without threads."""
    launching.PARALLEL_FROM, before = OUT_OF_REACH, launching.PARALLEL_FROM
    try:
        return work()
    finally:
        launching.PARALLEL_FROM = before


@functools.cache
def has_layer(layer):
    code = """
from tests.test_determinism import launching
try:
    print(launching.layer())
except ValueError:
    print("none")
"""
    return run_python(code, NUMBA_THREADING_LAYER=layer).strip() == layer


def run_on(layer, code):
    """Run code in a process of its own on one of numba's threading layers; skip where that is not installed."""
    if not has_layer(layer):
        pytest.skip(f"numba has no {layer} here")
    code = f"from tests.test_determinism import *\n{code}\nprint('done')"
    printed = run_python(code, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS=2)
    assert printed.endswith("done\n")  # numba has things to say about forks


@pytest.mark.parametrize("layer", LAYERS)
def test_python_threads_at_once(layer):
    run_on(layer, "assert_identical(work_at_once(), expected_work())")


def test_python_threads_at_once_in_this_process():
    assert_identical(work_at_once(), expected_work())


def in_child(check):
    """The exit status of a forked child that runs `check`, minus SIGALRM if it has not come back after a minute."""
    child = os.fork()
    if child == 0:
        status = 1
        signal.alarm(60)
        try:
            check()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def do_work(_):
    return work()


def grandchild_work():
    assert in_child(child_work) == 0


def child_work():
    assert_identical(work(), expected_work())


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


@needs_fork
@pytest.mark.parametrize("layer", LAYERS)
def test_forked_children(layer):
    code = """
assert in_child(child_work) == 0, "before the first launch"
expected = work()
assert in_child(child_work) == 0, "after it"
assert in_child(grandchild_work) == 0
process = multiprocessing.get_context("fork").Process(target=child_work)
process.start()
process.join(20)
assert process.exitcode == 0, process.exitcode
with multiprocessing.get_context("fork").Pool(2) as pool:
    for results in pool.map_async(do_work, range(4)).get(20):
        assert_identical(results, expected)
assert_identical(work(), expected)
"""
    run_on(layer, code)


@needs_fork
@pytest.mark.parametrize("layer", LAYERS)
def test_forked_while_other_threads_are_in_a_kernel(layer):
    code = """
expected = expected_work()
assert_identical(work(), expected)
done = threading.Event()
def keep_busy():
    while not done.is_set():
        work()
workers = [threading.Thread(target=keep_busy) for _ in range(2)]
for worker in workers:
    worker.start()
try:
    statuses = []
    while len(statuses) < 25 and not any(statuses):
        statuses.append(in_child(child_work))
finally:
    done.set()
for worker in workers:
    worker.join()
assert not any(statuses), statuses
assert_identical(work(), expected)
"""
    run_on(layer, code)


def test_spawned_children():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert_identical(pool.apply(work), work())
