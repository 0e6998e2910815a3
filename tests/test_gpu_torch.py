"""What only torch can arrange on a CUDA device: streams, graphs, the memory that calls take, and arrays of any size."""

import math
import threading

import numpy as np
import pytest

import normnumba
from benchmarks.cases import OPS, RAGGED, X_SIZED, Geometry
from tests import devices
from tests.helpers import BY_NAME, ROWS, arguments_of, assert_identical, assert_matches, name_of
from tests.test_device import got_back
from tests.test_gpu import SMALL

pytestmark = pytest.mark.gpu

MIB = 1 << 20

LARGEST = {family: max(geometries, key=lambda g: g.size) for family, geometries in RAGGED.items()}
"""Ragged shapes of many blocks, whose variants other tests need as well."""

NAMES = ("layer_norm_forward", "layer_norm_backward", "batch_norm_forward", "batch_norm_backward")


@pytest.fixture
def tensors():
    return devices.real("torch")


@pytest.fixture
def torch(tensors):
    yield tensors.torch
    tensors.torch.cuda.synchronize()
    tensors.torch.cuda.empty_cache()


def given(tensors, op, rng, geometry=None):
    """The arguments of an op on the device, done with all copies."""
    there = tensors.put_all(arguments_of(op, geometry or LARGEST[op.family], "float32", rng))
    tensors.synchronize()
    return there


def like(torch, arguments, stream):
    """The same arguments as they are now, in memory of another stream."""
    with torch.cuda.stream(stream):
        return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_the_same_bits_while_the_device_is_busy(tensors, torch, op, rng):
    arguments, matrix, side = given(tensors, op, rng), torch.ones(2048, 2048, device="cuda"), torch.cuda.Stream()
    product, expected = torch.empty_like(matrix), op(tensors, arguments)
    results = []
    for _ in range(50):
        with torch.cuda.stream(side):
            torch.mm(matrix, matrix, out=product)
        results.append(op(normnumba, arguments))
    for result in results:
        assert_identical(got_back(tensors, result), expected)


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_call_follows_what_is_before_it_on_its_stream(tensors, torch, name, default, rng):
    """And waits for nothing itself."""
    op = BY_NAME[name]
    arguments = given(tensors, op, rng)
    expected = op(tensors, arguments)
    stream = torch.cuda.default_stream() if default else torch.cuda.Stream()
    late = like(torch, arguments, stream)
    with torch.cuda.stream(stream):
        for key in X_SIZED & set(late):
            late[key].fill_(math.nan)
        stream.synchronize()
        torch.cuda._sleep(200_000_000)
        for key in X_SIZED & set(late):
            late[key].copy_(arguments[key])
        got = op(normnumba, late)
        assert not stream.query(), "the call waited for the device"
        for key in X_SIZED & set(late):
            late[key].fill_(math.nan)  # nor does what comes after the call reach it
    stream.synchronize()
    assert_identical(got_back(tensors, got), expected)


@pytest.mark.parametrize("name", NAMES)
def test_two_streams_in_turn(tensors, torch, name, rng):
    op = BY_NAME[name]
    streams = torch.cuda.Stream(), torch.cuda.Stream()
    arguments = [given(tensors, op, rng) for _ in streams]
    expected = [op(tensors, a) for a in arguments]
    results = [[], []]
    for _ in range(20):
        for stream, there, found in zip(streams, arguments, results, strict=True):
            with torch.cuda.stream(stream):
                found.append(op(normnumba, there))
    tensors.synchronize()
    for found, wanted in zip(results, expected, strict=True):
        for result in found:
            assert_identical(got_back(tensors, result), wanted)


FRESH = {
    "layer_norm_forward": Geometry((50, 200), -1),
    "layer_norm_backward": Geometry((50, 400), -1),
    "group_norm_forward": Geometry((7, 2, 200), 1),
}
"""Of variants that no other test needs, so that they are compiled here."""


@pytest.mark.parametrize("name", FRESH)
def test_threads_at_once(tensors, torch, name, rng):
    """The first call among them."""
    op, workers, results, failures = BY_NAME[name], 6, [], []
    arguments = arguments_of(op, FRESH[name], "float32", rng)
    there, start = tensors.put_all(arguments), threading.Barrier(workers)
    tensors.synchronize()

    def work():
        try:
            stream = torch.cuda.Stream()
            start.wait()
            with torch.cuda.stream(stream):
                found = [op(normnumba, there) for _ in range(10)]
            stream.synchronize()
            results.extend(found)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    expected = op(tensors, there)
    assert_matches(op, arguments, expected)
    for result in results:
        assert_identical(got_back(tensors, result), expected)


# --- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_graphs(tensors, torch, op, rng):
    """A replay gives the bits of a call, for whatever is in the memory that was captured."""
    geometry = SMALL[op.family][0]
    first, second = (given(tensors, op, rng, geometry) for _ in range(2))
    expected = [op(tensors, arguments) for arguments in (first, second)]  # compiled, once it is captured
    captured = like(torch, first, torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = op(normnumba, captured)
    for arguments, wanted in zip((second, first), expected[::-1], strict=True):
        for key, value in captured.items():
            if isinstance(value, torch.Tensor):
                value.copy_(arguments[key])
        graph.replay()
        assert_identical(got_back(tensors, results), wanted)


# --- memory ----------------------------------------------------------------------------------------------------------

SIZED = [
    ("layer_norm", (16384, 1024), {"axis": -1}),
    ("layer_norm", (128, 131072), {"axis": -1}),
    ("layer_norm", (64, 256, 1024), {"axis": 1}),
    ("rms_norm", (16384, 1024), {"axis": -1}),
    ("batch_norm", (64, 64, 4096), {"channel_axis": 1}),
    ("batch_norm", (65536, 256), {"channel_axis": 1}),
    ("batch_norm", (64, 64, 4096), {"channel_axis": 1, "activation": "relu"}),
    ("instance_norm", (64, 64, 4096), {"channel_axis": 1}),
    ("instance_norm", (64, 4096, 64), {"channel_axis": -1}),
]
"""Of 64 MiB each, in float32."""


@pytest.mark.parametrize(("family", "shape", "options"), SIZED, ids=str)
def test_a_call_takes_no_memory_but_for_its_outputs(torch, family, shape, options):
    """And parts of sums, no more than an eighth of x here.

    They are 5 numbers for 16384 elements along lines or 128 across them (`sharing`); or in a backward of short rows 2
    for each column and team, 4 MiB or an eighth of x (`rows.ROOM`, `rows.ROWS`). Statistics in float64 come to less.
    """
    x, dy = (torch.randn(shape, device="cuda") for _ in range(2))
    forward, backward = (getattr(normnumba, f"{family}_{way}") for way in ("forward", "backward"))
    _, *statistics = peak_is_small(torch, x, lambda: forward(x, **options))
    peak_is_small(torch, x, lambda: backward(dy, x, *statistics, **options))
    peak_is_small(torch, x, lambda: forward(x, **options, out=x))


def peak_is_small(torch, x, call):
    """Run something for its results, and see what it took besides them."""
    call()  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = call()
    ours = [r for r in results if r is not None and r.data_ptr() != x.data_ptr()]
    most = sum(r.nbytes for r in ours) + x.nbytes // 8
    taken = torch.cuda.max_memory_allocated() - before
    assert taken <= most, f"{taken / MIB:.1f} MiB, {most / MIB:.1f} allowed"
    return results


LINES, ROW, STRIPE = Geometry((3, 2, 65_539), 1), Geometry((9, 1024), -1), Geometry((3, 65_539, 2), -1)

BEYOND = [
    *((f"layer_norm_{way}", ROW, (233_017, 1)) for way in ("forward", "backward")),
    *((f"batch_norm_{way}", LINES, (1, 1, 8192)) for way in ("forward", "backward")),
    *((f"batch_norm_{way}", ROW, (233_017, 1)) for way in ("forward", "backward")),
    *((f"instance_norm_{way}", LINES, (1, 1, 8192)) for way in ("forward", "backward")),
    *((f"instance_norm_{way}", STRIPE, (1, 8192, 1)) for way in ("forward", "backward")),
]
"""Arrays that repeat a small one, in periods that neither 2^31 nor 2^32 is a multiple of."""


@pytest.mark.parametrize(("name", "geometry", "repeats"), BEYOND, ids=str)
def test_more_than_2_to_the_31_elements(tensors, torch, name, geometry, repeats, rng):
    """What a norm of repeated data gives is that of the data, repeated; sums are as many times as large."""
    op, times, axis = BY_NAME[name], math.prod(repeats), int(np.argmax(repeats))
    needed = 2 * geometry.size * times * (2 if op.direction == "forward" else 3)
    assert geometry.size * times > 1 << 31
    if torch.cuda.mem_get_info()[0] < needed + (1 << 30):
        pytest.skip(f"needs {needed >> 30} GiB of the device's memory, and there are not as many free")
    arguments = arguments_of(op, geometry, "bfloat16", rng)
    there = tensors.put_all(arguments)
    repeated = X_SIZED | ({"mean", "rstd"} if op.family in ROWS else set())
    for key in repeated & set(there):
        there[key] = there[key].repeat(repeats[: there[key].ndim])
    out = torch.full_like(there["x"], math.nan)
    got = dict(zip(op.outputs, op(normnumba, {**there, "out": out}), strict=True))
    for key in {"dweight", "dbias"} & set(got):
        got[key] /= times
    length = geometry.shape[axis]
    for start in (0, length * (times // 2), length * (times - 1)):
        part = [a.narrow(axis, start, length) if name in repeated and a is not None else a for name, a in got.items()]
        assert_matches(op, arguments, got_back(tensors, part), note=f"from {start} on")
