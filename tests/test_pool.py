"""A pool of outputs: memory is used again, and never while anything can see it."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest

import normnumba
from benchmarks.cases import OPS, Geometry
from normnumba import layers, pool, views
from tests.helpers import arguments_of, assert_identical

SHAPE = (40, 50)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small outputs come from the pool as well, and no small call takes the shortcut past it."""
    monkeypatch.setattr(pool, "SMALLEST", 0)
    monkeypatch.setattr(views, "SMALL", 0)
    views._as_rows.cache_clear()
    yield
    views._as_rows.cache_clear()


@pytest.fixture
def x(rng):
    return rng.standard_normal(SHAPE, dtype=np.float32)


def address(array):
    return array.__array_interface__["data"][0]


def pooled(array):
    return not array.flags.owndata


def test_what_was_dropped_is_used_again(x):
    with normnumba.reuse_outputs() as kept:
        first = address(normnumba.layer_norm(x))
        assert [address(normnumba.layer_norm(x)) for _ in range(5)] == [first] * 5
        assert kept.nbytes == x.nbytes + pool.PAGE
        assert not [n for n in range(1, 40) if (address(normnumba.layer_norm(x[:n])) - address(x)) % pool.PAGE]
    assert not pooled(normnumba.layer_norm(x))


def in_a_cycle(y):
    cycle = [y]
    cycle.append(cycle)
    return cycle


HOLD = {
    "itself": lambda y: y,
    "slice": lambda y: y[3:5],
    "slice of a slice": lambda y: y[3:][:, ::2][1:],
    "transpose": lambda y: y.T,
    "other dtype": lambda y: y.view(np.int32),
    "row": lambda y: next(iter(y)),
    "flat iterator": lambda y: y.flat,
    "memoryview": memoryview,
    "slice of a memoryview": lambda y: memoryview(y)[2:],
    "frombuffer": lambda y: np.frombuffer(y, np.float32),
    "base": lambda y: y.base,
    "ctypes": lambda y: y.ctypes,
    "dlpack": np.from_dlpack,
    "closure": lambda y: lambda: y,
    "cycle": in_a_cycle,
    "stride trick": lambda y: np.lib.stride_tricks.as_strided(y, (2,), (4,)),
    "subclass": lambda y: y.view(np.recarray),
    "interface": lambda y: np.asarray(type("Foreign", (), {"__array_interface__": y.__array_interface__, "y": y})()),
}


@pytest.mark.parametrize("how", HOLD)
def test_what_can_be_seen_is_not_used_again(how, x):
    expected = normnumba.layer_norm(x)
    with normnumba.reuse_outputs():
        y = normnumba.layer_norm(x)
        place, held = address(y), HOLD[how](y)
        whole = weakref.ref(y)
        del y
        others = [normnumba.layer_norm(-x) for _ in range(3)]
        assert place not in map(address, others)
        del others
        if how in ("itself", "closure", "cycle"):
            np.testing.assert_array_equal(whole(), expected)
        del held
        if how in ("cycle", "interface"):  # a class refers to itself
            gc.collect()
        assert place in map(address, [normnumba.layer_norm(x) for _ in range(4)])


def test_what_is_kept_keeps_its_values(rng):
    """Outputs of several shapes and dtypes are kept and dropped at random, as views or whole."""
    kept = []
    with normnumba.reuse_outputs(max_bytes=100_000):
        for _ in range(200):
            shape = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
            x = rng.standard_normal(shape).astype(rng.choice(["float16", "float32", "float64"]))
            y = normnumba.layer_norm(x)
            view = (y, y[::2], y.T, y[:, :1])[rng.integers(4)]
            kept.append((view, view.copy()))
            del y, view
            while len(kept) > 8:
                kept.pop(int(rng.integers(len(kept))))
            assert all(a.tobytes() == b.tobytes() for a, b in kept)
    assert all(a.tobytes() == b.tobytes() for a, b in kept)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_same_bits_layouts_and_dtypes(op, rng):
    geometry = Geometry((6, 8, 5, 7), 1 if "batch" in op.name or op.family[0] in "gi" else -1)
    arguments = arguments_of(op, geometry, "float32", rng)
    for order in ("C", "F"):
        given = {k: np.array(v, order=order) if np.ndim(v) == 4 else v for k, v in arguments.items()}
        expected = op(normnumba, given)
        with normnumba.reuse_outputs():
            for _ in range(2):
                got = op(normnumba, given)
                assert_identical(got, expected)
                for a, e in zip(got, expected, strict=True):
                    if isinstance(e, np.ndarray):
                        assert (type(a), a.strides) == (type(e), e.strides)
                        assert pooled(a) or a.shape != geometry.shape


def test_memory_serves_other_shapes_dtypes_and_layouts(x):
    with normnumba.reuse_outputs():
        first = address(normnumba.layer_norm(x))
        for other in (x.reshape(50, 40), x.T, x.view(np.float64), x.view(np.float16), x[:30], x[:, ::2]):
            y = normnumba.layer_norm(other)
            assert abs(address(y) - first) < pool.PAGE
            assert (y.shape, y.dtype) == (other.shape, other.dtype)
            del y
        assert address(normnumba.layer_norm(x[:5])) != first, "too small for it"


@pytest.mark.parametrize("offset", [0, 4, 60, 1000])
def test_outputs_begin_as_far_in_a_page_as_x(x, offset):
    room = np.zeros(x.nbytes + pool.PAGE, np.uint8)
    moved = np.ndarray(x.shape, x.dtype, room, -address(room) % 16 + offset)
    with normnumba.reuse_outputs():
        y, summed, _, _ = normnumba.add_layer_norm_forward(moved, x.astype(np.float64))
        assert pooled(y)
        assert pooled(summed)
        assert [(address(a) - address(moved) // 16 * 16) % pool.PAGE for a in (y, summed)] == [0, 0]


def test_a_given_output_is_left_alone(x):
    out = np.empty_like(x)
    with normnumba.reuse_outputs() as kept:
        assert normnumba.layer_norm(x, out=out) is out
        assert not kept.nbytes


def test_no_more_is_kept_than_allowed(x):
    size = x.nbytes + pool.PAGE
    with normnumba.reuse_outputs(max_bytes=2 * size) as kept:
        ys = [normnumba.layer_norm(x) for _ in range(4)]
        assert [pooled(y) for y in ys] == [True, True, False, False]
        places = [address(y) for y in ys]
        del ys[0]
        small = normnumba.layer_norm(x[:5])  # room is made by letting go of what is idle
        assert pooled(small)
        assert kept.nbytes == size + small.nbytes + pool.PAGE
        huge = np.concatenate([x] * 3)
        assert not pooled(normnumba.layer_norm(huge))
        assert address(ys[0]) == places[1]
    with normnumba.reuse_outputs(max_bytes=0):
        assert not pooled(normnumba.layer_norm(x))


def test_what_is_idle_stays_while_there_is_room(x):
    with normnumba.reuse_outputs(max_bytes=x.nbytes + x[:5].nbytes + 2 * pool.PAGE) as kept:
        normnumba.layer_norm(x)
        normnumba.layer_norm(x[:5])
        assert kept.nbytes == x.nbytes + x[:5].nbytes + 2 * pool.PAGE


def test_the_memory_is_let_go(x):
    with normnumba.reuse_outputs() as kept:
        y = normnumba.layer_norm(x)
        owner, expected = weakref.ref(y.base), y.copy()
    assert kept.nbytes == 0
    assert owner() is y.base
    np.testing.assert_array_equal(y, expected)
    del y
    assert owner() is None


def test_errors_leave_no_pool_behind(x):
    with pytest.raises(ZeroDivisionError), normnumba.reuse_outputs() as kept:  # noqa: PT012
        y = normnumba.layer_norm(x)
        with pytest.raises(ValueError, match="weight"):
            normnumba.layer_norm(x, x[0, :3])
        assert pooled(normnumba.layer_norm(x))
        y = 1 / 0
    assert kept.nbytes == 0
    assert not pooled(normnumba.layer_norm(x))
    assert pooled(y)


def test_the_inner_of_two_pools_provides(x):
    with normnumba.reuse_outputs() as outer, normnumba.reuse_outputs() as inner:
        first = normnumba.layer_norm(x)
        assert (outer.nbytes, inner.nbytes) == (0, x.nbytes + pool.PAGE)
        with outer, inner, outer:
            second = normnumba.layer_norm(x)
        assert outer.nbytes > 0
        assert address(first) != address(second)
    with outer:
        with inner:
            pass
        assert pooled(normnumba.layer_norm(x)), "the outer one provides again"
    assert (outer.nbytes, inner.nbytes) == (0, 0)
    with outer:
        assert pooled(normnumba.layer_norm(x))


def test_a_block_may_end_where_it_did_not_begin(x):
    """As when a generator with a block in it is finished by someone else."""

    def outputs():
        with normnumba.reuse_outputs():
            while True:
                yield normnumba.layer_norm(x)

    generator = outputs()
    assert pooled(next(generator))
    ending = threading.Thread(target=generator.close)
    ending.start()
    ending.join()
    assert not pooled(normnumba.layer_norm(x)), "the pool has ended"


@pytest.fixture
def in_turns(monkeypatch):
    """Another thread runs wherever references were counted."""
    count = pool._references

    def counted(arrays, index):
        found = count(arrays, index)
        time.sleep(1e-5)
        return found

    monkeypatch.setattr(pool, "_references", counted)


@pytest.mark.usefixtures("in_turns")
def test_a_pool_is_of_the_threads_that_enter_it():
    errors, start = [], threading.Barrier(4)

    def work(shared, seed):
        x = np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32)
        expected = np.full(SHAPE, seed, np.float32)
        start.wait()
        try:
            assert not pooled(normnumba.layer_norm(x))
            with shared:
                for _ in range(100):
                    y = normnumba.layer_norm(x)
                    assert pooled(y)
                    y[...] = seed
                    view = y[::-1]
                    del y
                    z = normnumba.layer_norm(x)
                    np.testing.assert_array_equal(view, expected)
                    del view, z
        except BaseException as error:
            errors.append(error)

    with normnumba.reuse_outputs() as shared:
        threads = [threading.Thread(target=work, args=(shared, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert shared.nbytes <= 8 * (np.prod(SHAPE) * 4 + pool.PAGE)


def test_layers_keep_what_they_need(x):
    """A layer holds its input for the backward, so a stack of layers trains as it would without a pool."""

    def train():
        stack = [layers.LayerNorm(50), layers.RMSNorm(50), layers.LayerNorm(50)]
        kept = []
        for step in range(3):
            y = x * (step + 1)
            for layer in stack:
                y = layer(y)
            kept.append(y)
            for layer in reversed(stack):
                y = layer.backward(np.cos(y))
            kept.append(y)
        return kept

    expected = train()
    with normnumba.reuse_outputs():
        assert_identical(train(), expected)


@pytest.mark.parametrize(
    ("max_bytes", "error"), [(-1, ValueError), (1.5, TypeError), ("1 GB", TypeError), (None, TypeError)]
)
def test_wrong_sizes(max_bytes, error):
    with pytest.raises(error, match="max_bytes must"):
        normnumba.reuse_outputs(max_bytes)


def test_small_outputs_are_left_to_malloc(x, monkeypatch):
    monkeypatch.setattr(pool, "SMALLEST", x.nbytes + 1)
    with normnumba.reuse_outputs() as kept:
        normnumba.layer_norm(x)
        assert not kept.nbytes


def test_without_a_global_lock_nothing_is_used_again(x, monkeypatch):
    monkeypatch.setattr(pool, "_COUNTS", False)
    with normnumba.reuse_outputs() as kept:
        for n in range(1, 4):
            normnumba.layer_norm(x)
            assert kept.nbytes == n * (x.nbytes + pool.PAGE)
