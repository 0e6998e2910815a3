"""What kernels hand to threads: each task once, with or without a launcher, and what a task cannot do is an error."""

import functools

import numpy as np
import pytest
from numba import types

from normnumba.kernels.cpu.compiling import address, array_in, array_out, compile_kernel
from normnumba.kernels.cpu.launching import layer, spread_tasks
from normnumba.kernels.cpu.lowlevel import work
from normnumba.kernels.cpu.tasks import launch


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


@functools.cache
def compiled():
    """Both kernels."""
    visit = types.void(types.intp, types.intp, array_in(types.float64, 1), array_out(types.int64, 2))
    allocate = types.void(types.intp, types.intp, array_out(types.float64, 1))
    return compile_kernel(_visit_all, "visit", visit), compile_kernel(_allocate_all, "allocate", allocate)


@pytest.fixture(params=["threads", "in turn"])
def launcher(request):
    """The address of the launcher, or 0."""
    if request.param == "in turn":
        return 0
    layer()
    return address(spread_tasks())


@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 300])
def test_each_task_is_done_once(tasks, launcher):
    visit, _ = compiled()
    visits = np.zeros((300, 3), np.int64)
    visit(launcher, tasks, np.arange(300.0), visits)
    done, again = np.arange(300) < tasks, np.arange(300) < tasks // 2
    np.testing.assert_array_equal(visits[:, 0], done.astype(int) + again)
    np.testing.assert_array_equal(visits[:, 1], np.where(again, tasks // 2, np.where(done, tasks, 0)))
    np.testing.assert_array_equal(visits[:, 2], np.where(done, 6 * np.arange(300) + np.where(again, 20, 10), 0))


def test_a_task_without_memory_is_an_error(launcher):
    _, allocate = compiled()
    with pytest.raises(MemoryError, match="task"):
        allocate(launcher, 1 << 58, np.ones(3))
    sums = np.ones(3)
    allocate(launcher, 5, sums)
    assert not sums.any()
