"""What kernels hand to threads: each task once, with or without a launcher, and what a task cannot do is an error."""

import functools

import numba
import numpy as np
import pytest
from numba import types

import normnumba
from benchmarks.cases import OPS, data_of
from normnumba.kernels.cpu import launching
from normnumba.kernels.cpu.compiling import address, array_in, array_out
from normnumba.kernels.cpu.linking import KernelCompiler
from normnumba.kernels.cpu.lowlevel import OPTIONS, work
from normnumba.kernels.cpu.tasks import SPREAD, launch
from tests.helpers import name_of, takes_out
from tests.test_determinism import LARGE


@work
def _visit(task, tasks, values, pair, visits):
    (offset, weights), room = pair, np.empty(3)
    room[:] = values[task]
    visits[task, 0] += 1
    visits[task, 1] = tasks
    visits[task, 2] = room.sum() * weights[0] + offset


def _visit_all(launcher, tasks, values, visits):
    weights = np.full(1, 2.0)
    launch(launcher, _visit, tasks, (values, (10, weights), visits))
    launch(launcher, _visit, tasks // 2, (values, (20, weights), visits))


@work
def _allocate(task, tasks, size, sums):
    sums[task] = np.zeros(size)[-1:].sum()


def _allocate_all(launcher, size, sums):
    launch(launcher, _allocate, sums.size, (size, sums))


def compiled(source, *signature, **options):
    """A kernel that is not kept on the disk, where one of before an edit here would be found."""
    kernel = numba.njit(pipeline_class=KernelCompiler, **options, **OPTIONS)(source)
    kernel.compile(types.void(*signature))
    return kernel


@functools.cache
def visiting():
    return compiled(_visit_all, types.intp, types.intp, array_in(types.float64, 1), array_out(types.int64, 2))


@functools.cache
def allocating():
    return compiled(_allocate_all, types.intp, types.intp, array_out(types.float64, 1))


@functools.cache
def idle():
    """The address of a launcher that does no task."""
    return address(compiled(_do_nothing, *SPREAD.args))


def _do_nothing(entry, box, tasks):
    pass


def _fail(entry, box, tasks):
    raise RuntimeError("no threads")


@pytest.fixture(params=["threads", "in turn"])
def launcher(request):
    """The address of the launcher, or 0."""
    if request.param == "in turn":
        return 0
    launching.layer()
    return launching.launcher()


@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 300])
def test_each_task_is_done_once(tasks, launcher):
    visits = np.zeros((300, 3), np.int64)
    visiting()(launcher, tasks, np.arange(300.0), visits)
    done, again = np.arange(300) < tasks, np.arange(300) < tasks // 2
    np.testing.assert_array_equal(visits[:, 0], done.astype(int) + again)
    np.testing.assert_array_equal(visits[:, 1], np.where(again, tasks // 2, np.where(done, tasks, 0)))
    np.testing.assert_array_equal(visits[:, 2], np.where(done, 6 * np.arange(300) + np.where(again, 20, 10), 0))


def test_one_task_needs_no_launcher():
    for tasks in (1, 2, 300):
        visits = np.zeros((300, 3), np.int64)
        visiting()(idle(), tasks, np.arange(300.0), visits)
        assert visits[:, 0].sum() == (tasks in (1, 2))  # of two tasks, the second launch has one


def test_a_task_without_memory_is_an_error(launcher):
    with pytest.raises(MemoryError, match="task"):
        allocating()(launcher, 1 << 58, np.ones(3))
    sums = np.ones(3)
    allocating()(launcher, 5, sums)
    assert not sums.any()


def test_a_launcher_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match="no threads"):
        allocating()(address(compiled(_fail, *SPREAD.args)), 5, np.ones(3))


@pytest.mark.parametrize("op", [op for op in OPS if takes_out(op)], ids=name_of)
def test_every_op_leaves_its_work_to_the_launcher(op, rng, monkeypatch):
    if numba.get_num_threads() == 1:
        pytest.skip("one thread does one task after the other")
    monkeypatch.setattr(launching, "launcher", idle)
    untouched = []
    for geometry in LARGE[op.family]:
        arguments = op.arguments(geometry, np.dtype(np.float32), rng)
        out = np.full_like(data_of(arguments), 7)
        op(normnumba, {**arguments, "out": out})
        untouched.append(np.all(out == 7))
    assert any(untouched), "some have a single task, but not all"
