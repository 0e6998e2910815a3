"""The emulator of CUDA kernels: right numbers of right kernels, and every planted bug is found."""

import gc
import math
import re
import types as python_types

import numpy as np
import pytest

pytest.importorskip("greenlet", reason="the emulator switches between greenlets")
pytest.importorskip("numba_cuda", reason="kernels are written for NVIDIA's numba-cuda")

from greenlet import getcurrent, greenlet
from numba import cuda, types
from numba.cuda import libdevice
from numba.cuda.extending import intrinsic

from tests.cuda.emulator import BarrierError, OutOfBounds, Pointer, RaceError, launch

pytestmark = pytest.mark.cuda_offline
FULL = 0xFFFFFFFF
ORDERS = ("forward", "reversed")


@intrinsic
def load(typing_context, pointer, index):
    """Has no Python body, as all that is in lowlevel.py."""


lowlevel = python_types.ModuleType("lowlevel")
lowlevel.load = load


@cuda.jit(device=True)
def warp_sum(value, mask, width):
    while width > 1:
        width //= 2
        value += cuda.shfl_xor_sync(mask, value, width)
    return value


def twice(value):
    return value + value


def run(kernel, *args, grid=1, block=32, size=32, dtype=np.float32, **options):
    """What a kernel writes to its first parameter, which holds -1 before."""
    out = np.full(size, -1, dtype)
    launch(kernel, grid, block, (Pointer(out), *args), **options)
    return out


# --- numbers ---------------------------------------------------------------------------------------------------------


def block_sum(barrier=True, second=True):
    def kernel(out, x, n):
        partial = cuda.shared.array(4, types.float32)
        thread = cuda.threadIdx.x
        for row in range(cuda.blockIdx.x, n, cuda.gridDim.x):
            total = warp_sum(x[row * cuda.blockDim.x + thread], FULL, 32)
            if thread % 32 == 0:
                partial[thread // 32] = total
            if barrier:
                cuda.syncthreads()
            total = types.float32(0)
            for warp in range(4):
                total += partial[warp]
            if thread == 0:
                out[row] = total
            if second:
                cuda.syncthreads()

    return kernel


@pytest.mark.parametrize("order", ORDERS)
def test_sum_of_a_block(order, rng):
    x = rng.integers(-9, 9, (5, 128)).astype(np.float32)
    out = run(block_sum(), Pointer(x.ravel()), 5, grid=2, block=128, size=5, order=order)
    np.testing.assert_array_equal(out, x.sum(axis=1))


@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("order", ORDERS)
def test_parts_of_a_warp_shuffle_on_their_own(order, width, rng):
    def kernel(out, x, n):
        part = cuda.threadIdx.x // width
        mask = ((1 << width) - 1) << (part * width % 32)
        if part == 1:
            return
        for _ in range(part + 1):  # As many steps as none of the others takes.
            x_sum = warp_sum(x[cuda.threadIdx.x], mask, width)
        out[cuda.threadIdx.x] = x_sum

    x = rng.integers(-9, 9, 64).astype(np.float32)
    expected = np.repeat(x.reshape(-1, width).sum(axis=1), width)
    expected[width : 2 * width] = -1
    np.testing.assert_array_equal(run(kernel, Pointer(x), 64, block=64, size=64, order=order), expected)


def test_each_shuffle_takes_from_its_lane():
    def kernel(out):
        lane = cuda.laneid
        out[lane] = cuda.shfl_sync(FULL, lane, 37)
        out[32 + lane] = cuda.shfl_xor_sync(FULL, lane, 3)
        out[64 + lane] = cuda.shfl_down_sync(FULL, lane, 5)
        out[96 + lane] = cuda.shfl_up_sync(FULL, lane, 5)

    lanes = np.arange(32)
    down, up = np.where(lanes < 27, lanes + 5, lanes), np.where(lanes < 5, lanes, lanes - 5)
    expected = np.concatenate([np.full(32, 5), lanes ^ 3, down, up])
    np.testing.assert_array_equal(run(kernel, size=128), expected)


def test_lanes_that_take_no_part_give_nothing():
    def kernel(out):
        lane = cuda.threadIdx.x
        if lane >= 24:
            return
        if lane < 16:
            out[lane] = cuda.shfl_down_sync(0xFFFF, types.float32(lane), 8)
        else:
            out[lane] = cuda.shfl_xor_sync(0xFFFF0000, types.int64(lane), 8)

    out = run(kernel)
    np.testing.assert_array_equal(out[:8], range(8, 16))
    assert np.isnan(out[8:16]).all(), "from lanes outside of the mask"
    assert (out[16:24] == -1).all(), "from lanes that have exited"


def test_places_in_three_dimensions():
    def kernel(out, seen):
        x, y, z = cuda.grid(3)
        width, height, _ = cuda.gridsize(3)
        at = x + width * (y + height * z)
        block, size = cuda.blockIdx, cuda.gridDim
        out[at] = block.x + size.x * (block.y + size.y * block.z)
        thread, size = cuda.threadIdx, cuda.blockDim
        seen[at] = thread.x + size.x * (thread.y + size.y * thread.z)

    seen = np.zeros(24 * 30)
    out = run(kernel, Pointer(seen), grid=(2, 3, 4), block=(5, 3, 2), size=seen.size)
    assert len(set(zip(out.tolist(), seen.tolist(), strict=True))) == seen.size
    assert (out.max(), seen.max()) == (23, 29)


def test_one_dimension_is_a_number():
    def kernel(out):
        out[cuda.grid(1)] = cuda.gridsize(1)

    assert (run(kernel, grid=3, block=4, size=12) == 12).all()


@pytest.mark.parametrize("order", ORDERS)
def test_tile_of_two_dimensions_and_poison_of_one_never_written(order):
    def kernel(out, x):
        tile, unused = cuda.shared.array((8, 9), types.float32), cuda.shared.array(1, types.uint8)
        row, column = cuda.threadIdx.y, cuda.threadIdx.x
        tile[row, column] = x[row * 8 + column]
        cuda.syncthreads()
        out[row * 8 + column] = tile[column, row]
        out[64] = unused[0]

    x = np.arange(64.0)
    out = run(kernel, Pointer(x), block=(8, 8), size=65, order=order)
    np.testing.assert_array_equal(out, [*x.reshape(8, 8).T.ravel(), 255])


def test_order_of_threads_warps_and_blocks():
    def kernel(order, count):
        order[count[0]] = cuda.grid(1)
        count[0] += 1

    for order in ORDERS:
        seen = run(kernel, Pointer(np.zeros(1, int)), grid=2, block=64, size=128, order=order)
        assert list(seen) == list(range(128))[:: 1 if order == "forward" else -1]


def test_exited_threads_do_not_count_at_a_barrier():
    def kernel(out):
        if cuda.threadIdx.x >= 40:
            return
        cuda.syncthreads()
        cuda.syncwarp()
        out[cuda.threadIdx.x] = cuda.shfl_xor_sync(FULL, 3, 1)

    assert (run(kernel, block=64, size=40) == 3).all()


# --- binding ---------------------------------------------------------------------------------------------------------


def test_replacements_reach_device_functions_and_modules():
    @cuda.jit(device=True)
    def inner(x, i):
        def doubled(value):
            return twice(value)

        return libdevice.rsqrtf(doubled(lowlevel.load(x, i)))

    def kernel(out, x):
        i = cuda.threadIdx.x
        out[i] = inner(x, i) + load(x, i) + math.sqrt(x[i])

    x = np.arange(1.0, 33)
    replacements = {load: lambda p, i: p[i] + 1, libdevice.rsqrtf: lambda value: 1 / value}
    np.testing.assert_allclose(
        run(cuda.jit(kernel), Pointer(x), replacements=replacements), 0.5 / (x + 1) + x + 1 + np.sqrt(x), rtol=1e-6
    )
    for one in replacements:
        with pytest.raises(NotImplementedError, match=r"load|rsqrtf"):
            run(kernel, Pointer(x), replacements={one: replacements[one]})
    with pytest.raises(NotImplementedError, match=r"cuda\.atomic is not emulated"):
        run(lambda out: cuda.atomic)


def test_changed_names_are_seen(monkeypatch):
    def kernel(out):
        out[0] = twice(lowlevel.three())

    for value in (3, 4):
        monkeypatch.setattr(lowlevel, "three", lambda value=value: value, raising=False)
        assert run(kernel, block=1)[0] == 2 * value
    monkeypatch.setitem(globals(), "twice", lambda value: 7)
    assert run(kernel, block=1)[0] == 7


@pytest.mark.parametrize("number", [types.float32, types.float64])
def test_numbers_of_a_closure(number):
    def kernel(out, kept):
        register = cuda.local.array(2, number)
        out[0] = register[0]
        register[1] = 1 / 3
        kept[0] = register[1] * number(3) + number(1e-9)
        kept[1] = number(1) / number(0)

    kept = np.zeros(2)
    assert np.isnan(run(kernel, Pointer(kept), block=1)[0])
    scalar = {types.float32: np.float32, types.float64: np.float64}[number]
    assert kept[0] == scalar(1 / 3) * scalar(3) + scalar(1e-9)
    assert kept[1] == np.inf, "and no warning"


def test_integers_wrap_and_a_product_is_fused():
    def kernel(out):
        out[0] = types.uint32(-1)
        out[1] = types.int32(2**31)
        out[2] = types.uint32(2**31) + types.uint32(2**31)
        out[3] = types.uint8(300.5)
        factor = types.float32(1 + 2**-12)
        out[4] = cuda.fma(factor, factor, types.float32(-1 - 2**-11)) * 2**24

    assert list(run(kernel, block=1, size=5, dtype=np.float64)) == [2**32 - 1, -(2**31), 0, 44, 1]


def sharer(at):
    @cuda.jit(device=True)
    def shared():
        return cuda.shared.array(1, types.float32)

    return shared


def test_a_shared_array_belongs_to_its_place_in_its_function():
    one, other = sharer(1), sharer(2)

    def kernel(out):
        for step in range(2):
            looped = cuda.shared.array(1, types.float32)
            if step == 0:
                one()[0], other()[0], looped[0] = 1, 2, 3
        out[0], out[1], out[2] = one()[0], other()[0], looped[0]
        if cuda.blockIdx.x == 0:
            again = cuda.shared.array(1, types.float32)
        else:
            again = cuda.shared.array(1, types.float32)
        out[3] = again[0]

    np.testing.assert_array_equal(run(kernel, grid=2, block=1, size=4), [1, 2, 3, np.nan])


# --- planted bugs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("missing", ["barrier", "second"])
def test_missing_barrier(missing, order):
    x = np.ones(5 * 128, np.float32)
    with pytest.raises(RaceError, match=r"shared array of kernel.* element \d.*thread \(\d+, 0, 0\)"):
        run(block_sum(**{missing: False}), Pointer(x), 5, grid=2, block=128, size=5, order=order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mask", [FULL, 0xFFFF << 8, None])
def test_missing_syncwarp(mask, order):
    def kernel(out):
        lane = cuda.threadIdx.x
        passed = cuda.shared.array(32, types.float32)
        passed[lane] = lane
        if mask is not None and mask >> lane & 1:
            cuda.syncwarp(mask)
        out[lane] = passed[lane ^ 8]

    if mask == FULL:
        assert list(run(kernel, order=order)) == [lane ^ 8 for lane in range(32)]
    else:
        with pytest.raises(RaceError):
            run(kernel, order=order)


@pytest.mark.parametrize("second", [1, 32])
def test_a_reader_and_a_later_writer_race(second):
    def kernel(out):
        passed = cuda.shared.array(1, types.float32)
        cuda.syncwarp()  # Before both: it orders nothing.
        if cuda.threadIdx.x == 0:
            out[0] = passed[0]
        if cuda.threadIdx.x == second:
            passed[0] = 1

    with pytest.raises(RaceError, match=rf"thread \({second}, 0, 0\) of block .* writes element 0"):
        run(kernel, block=64)


def test_two_writers_race():
    def kernel(out):
        passed = cuda.shared.array(1, types.float32)
        passed[0] = 1

    with pytest.raises(RaceError, match="writes element 0"):
        run(kernel)
    assert (run(kernel, block=1) == -1).all()


def test_meetings_of_lanes_add_up():
    def kernel(out, broken):
        lane = cuda.threadIdx.x
        passed = cuda.shared.array(1, types.float32)
        if lane == 0:
            passed[0] = 5
        if broken:
            if lane > 0:
                cuda.syncwarp(0b110)
            if lane < 2:
                cuda.syncwarp(0b011)
        else:
            if lane < 2:
                cuda.syncwarp(0b011)
            if lane > 0:
                cuda.syncwarp(0b110)
        if lane == 2:
            out[0] = passed[0]

    assert run(kernel, False, block=3)[0] == 5
    with pytest.raises(RaceError):
        run(kernel, True, block=3)


def test_unmasked_tail():
    def kernel(out, x, n):
        i = cuda.grid(1)
        out[i] = x[i]

    with pytest.raises(OutOfBounds, match=r"x\[100\]: x has 100 elements \(thread \(4, 0, 0\) of block \(3, 0, 0\)\)"):
        run(kernel, Pointer(np.zeros(100)), 100, grid=4, size=128)
    with pytest.raises(OutOfBounds, match=r"out\[100\]: out has 100 elements"):
        run(kernel, Pointer(np.zeros(128)), 100, grid=4, size=100)


def test_negative_index_null_pointer_and_given_name():
    def kernel(out, x, i):
        out[0] = x[i]

    with pytest.raises(OutOfBounds, match=r"x\[-1\]: x has 4 elements"):
        run(kernel, Pointer(np.zeros(4)), -1)
    with pytest.raises(OutOfBounds, match=r"weight\[0\]: weight is a null pointer"):
        run(kernel, Pointer(None, "weight"), 0)
    with pytest.raises(ValueError, match="contiguous"):
        Pointer(np.zeros(4)[::2])


@pytest.mark.parametrize("index", [4, -1])
@pytest.mark.parametrize("memory", ["shared", "local"])
def test_too_small_array(memory, index):
    def kernel(out):
        buffer = cuda.shared.array((2, 4), types.float32) if memory == "shared" else cuda.local.array(4, types.float32)
        if memory == "shared":
            buffer[0, index] = 1
        else:
            buffer[index] = 1

    with pytest.raises(OutOfBounds, match=rf"{memory} array.*{index}"):
        run(kernel)


def test_divergent_barrier():
    def kernel(out):
        if cuda.threadIdx.x < 16:
            cuda.syncthreads()
            out[0] = 1
        cuda.syncthreads()

    with pytest.raises(BarrierError, match=r"thread \(\d+, 0, 0\).* line \d+, thread .*test_emulator.py:\d+"):
        run(kernel)


def test_barrier_that_others_never_reach():
    def kernel(out):
        if cuda.threadIdx.x < 40:
            cuda.syncthreads()
        else:
            cuda.syncwarp()

    with pytest.raises(BarrierError, match=r"64 threads wait") as error:
        run(kernel, block=64)
    assert re.search(r"\(39, 0, 0\) wait for syncthreads at .*\n.*\(40, 0, 0\), .* wait for syncwarp", str(error.value))


def test_shuffle_under_divergence():
    def kernel(out):
        lane = cuda.threadIdx.x
        value = 1.0
        if lane % 2:
            value = cuda.shfl_xor_sync(FULL, value, 1)
        cuda.syncwarp()
        out[lane] = value

    with pytest.raises(BarrierError, match=r"\(1, 0, 0\).*shfl_xor_sync of the lanes 0xffffffff") as error:
        run(kernel)
    assert "(0, 0, 0), (2, 0, 0)" in str(error.value)
    assert "syncwarp" in str(error.value)


def test_lane_outside_of_its_own_mask():
    def kernel(out):
        cuda.shfl_xor_sync(0xFFFF, 1.0, 1)

    with pytest.raises(BarrierError, match="lane 16 is not in the mask 0xffff"):
        run(kernel)


@pytest.mark.parametrize("number", [types.float32, types.float64])
def test_uninitialised_shared_memory_is_nan(number):
    def kernel(out):
        partial = cuda.shared.array(2, number)
        if cuda.threadIdx.x == 0:
            partial[0] = 1
        cuda.syncthreads()
        out[cuda.threadIdx.x] = partial[0] + partial[1]

    assert np.isnan(run(kernel)).all()


def test_sizes_that_a_device_refuses():
    for grid, block in ((0, 1), ((1, 65536), 1), (1, 1025), (1, (1, 1, 65)), (1, (32, 33))):
        with pytest.raises(ValueError, match="CUDA takes"):
            launch(lambda: None, grid, block, ())


def test_after_an_error_the_next_launch_runs():
    def kernel(out, runs, start):
        runs[0] += 1
        cuda.syncthreads()
        out[start + cuda.threadIdx.x] = 1

    runs = np.zeros(1, int)
    with pytest.raises(OutOfBounds, match=r"out\[-1\]"):
        run(kernel, Pointer(runs), -1)
    current = getcurrent()
    assert (run(kernel, Pointer(runs), 0) == 1).all()
    assert runs[0] == 64
    left = [one for one in gc.get_objects() if issubclass(type(one), greenlet) and one and one is not current]
    assert not left
