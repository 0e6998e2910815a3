"""The short forms of small calls: what the ops behind them do, to the bit, and nothing that these would refuse."""

import inspect
import pickle
from fractions import Fraction

import numpy as np
import pytest

import normnumba
from benchmarks.cases import RAGGED, Geometry, data_of
from normnumba import layers
from normnumba.kernels.cpu import launching
from normnumba.kernels.cpu import plain as entries
from normnumba.ops import plain
from tests.helpers import BY_NAME, WIDE, arguments_of

SHORT = {name: f for name, f in vars(plain).items() if name in normnumba.__all__}

ACTIVATIONS = {"batch": (None, "relu", "silu"), "group": (None, "gelu"), "instance": (None, "relu")}

COPIED = {"batch_norm_backward_apply": ("mean", "rstd")}
"""What reaches the kernel in an array of ours."""


def activations_of(name):
    known = "activation" in inspect.signature(SHORT[name]).parameters
    return ACTIVATIONS[name.partition("_")[0]] if known else (None,)


def short_form(name, arguments):
    """What the short form makes of them, None where it leaves them to the op."""
    defaults = inspect.signature(getattr(normnumba, name)).parameters
    try:
        return SHORT[name](
            **{n: arguments.get(n, defaults[n].default) for n in inspect.signature(SHORT[name]).parameters}
        )
    except TypeError:
        return None


def assert_same(got, wanted):
    got, wanted = ((r if isinstance(r, tuple) else (r,)) for r in (got, wanted))
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert type(a) is type(b)
        if b is not None:
            assert (a.dtype, a.shape, a.strides) == (b.dtype, b.shape, b.strides)
            assert a.tobytes() == b.tobytes()


def outcome(function, arguments):
    try:
        return function(**arguments)
    except (TypeError, ValueError) as error:
        return type(error).__name__, str(error)


def test_ops_have_their_short_forms():
    assert len(SHORT) == 17
    assert all(getattr(normnumba, name).__globals__["short"] is short for name, short in SHORT.items())


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("name", SHORT)
def test_a_short_form_has_the_bits_of_its_op(name, dtype, rng):
    op, taken = BY_NAME[name], 0
    for geometry in RAGGED[op.family]:
        arguments = arguments_of(op, geometry, dtype, rng)
        for activation in activations_of(name):
            given = {**arguments, **({"activation": activation} if activation else {})}
            results = short_form(name, given)
            if results is None:
                continue
            taken += 1
            assert_same(results, getattr(normnumba, name).__wrapped__(**given))
            for lacking in ("weight", "bias"):
                less = {**given, **({lacking: None} if lacking in given else {})}
                assert_same(short_form(name, less), getattr(normnumba, name).__wrapped__(**less))
    assert taken >= 5


def test_a_block_takes_the_float64_statistics_of_its_batch(rng):
    name = "batch_norm_backward_apply"
    arguments = arguments_of(BY_NAME[name], Geometry((5, 7), 1), "float32", rng)
    arguments |= {n: arguments[n].astype(np.float64) * (1 + 1e-9) for n in ("mean", "rstd")}
    assert_same(short_form(name, arguments), getattr(normnumba, name).__wrapped__(**arguments))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 1e-30])
@pytest.mark.parametrize("name", SHORT)
def test_hostile_values_have_the_same_bits(name, value, rng):
    geometry = next(g for g in RAGGED[BY_NAME[name].family] if g.shape in ((3, 7), (5, 3, 7)))
    arguments = arguments_of(BY_NAME[name], geometry, "float32", rng)
    data_of(arguments).flat[4] = value
    assert_same(short_form(name, arguments), getattr(normnumba, name).__wrapped__(**arguments))


def spoiled(array):
    """Arrays in the place of one that is plain: of other types, strides, shapes, dtypes and alignments."""
    unaligned = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    unaligned[...] = array
    frozen = array.copy()
    frozen.flags.writeable = False
    yield np.repeat(array, 2, axis=-1)[..., ::2]
    yield array[..., ::-1]
    yield np.asfortranarray(array)
    yield unaligned
    yield frozen
    yield array.astype(np.float64)
    yield array.astype(np.int32)
    yield array.astype(array.dtype.newbyteorder())
    yield array[..., :-1]
    yield array[..., None]
    yield array.reshape(-1)
    yield array.reshape(-1)[0]
    yield pickle.loads(pickle.dumps(array))  # whose dtype is an object of its own
    yield np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
    yield np.ma.masked_array(array)
    yield array.view(np.matrix) if array.ndim == 2 else array.tolist()
    yield np.broadcast_to(array.reshape(-1)[:1], array.shape)


@pytest.fixture
def mistyped(monkeypatch):
    """The entries that numba refused to call: its TypeError takes 0.1 ms, which is for wrong arguments alone."""
    refused, run = [], entries._run

    def watched(entry, *arguments):
        try:
            return run(entry, *arguments)
        except TypeError:
            refused.append(entry)
            raise

    monkeypatch.setattr(entries, "_run", watched)
    return refused


@pytest.mark.parametrize("name", SHORT)
def test_other_arguments_are_taken_or_refused_as_the_op_does(name, mistyped, rng):
    geometry = next(g for g in RAGGED[BY_NAME[name].family] if g.shape in ((3, 7), (3, 2, 5, 7)))
    arguments = arguments_of(BY_NAME[name], geometry, "float32", rng)
    others = [{n: other} for n, a in arguments.items() if isinstance(a, np.ndarray) for other in spoiled(a)]
    if "eps" in inspect.signature(SHORT[name]).parameters:
        others += [{"eps": eps} for eps in (1, True, np.float32(0.5), np.array(0.5), np.nan, np.inf, "a", None, 1j)]
        others += [{"eps": eps} for eps in (np.array([1.0, 2.0]), np.ma.array(1.0), Fraction(1, 10), np.longdouble(1))]
    if "axis" in arguments:
        others += [{"axis": axis} for axis in (0, 2, -3, (1,), [1], (0, 1), 1.0, None, np.int64(1), True)]
    else:
        others += [{"channel_axis": axis} for axis in (0, -1, 9, 1.0, None, np.int64(1), True)]
    if "activation" in inspect.signature(SHORT[name]).parameters:
        others += [{"activation": activation} for activation in ("none", 1, ["relu"])]
    if "count" in arguments:
        others += [{"count": count} for count in (0, 1, 1000, 1 << 63, 2.0, None, np.int64(1000), True)]
    if "output_mask" in inspect.signature(getattr(normnumba, name)).parameters:
        others += [{"output_mask": (True, False, True, True)[-n:]} for n in (2, 3, 4)]
        others += [{"out": out} for out in (arguments["dy"].copy(), data_of(arguments).copy(), 3)]
    else:
        others += [{"out": out} for out in (np.empty_like(data_of(arguments)), 3)]
    if "num_groups" in arguments:
        others += [{"num_groups": groups} for groups in (0, -1, 9, 1.0, None, np.int64(1), True)]
    for other in others:
        given = {**arguments, **other}
        mistyped.clear()
        got, wanted = outcome(getattr(normnumba, name), given), outcome(getattr(normnumba, name).__wrapped__, given)
        if isinstance(wanted, tuple) and isinstance(wanted[0], str):
            assert repr(got) == repr(wanted), other
        else:
            assert_same(got, wanted)
            assert not mistyped, other


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("name", SHORT)
def test_unaligned_arrays_reach_no_kernel(name, dtype, rng):
    """Nobody sees it on this processor, but kernels promise their compiler otherwise; numba does not look."""
    for shape in ((3, 7), (3, 2, 5, 7)):
        geometry = Geometry(shape, -1 if "axis" in inspect.signature(SHORT[name]).parameters else 1)
        if len(shape) > 2 or BY_NAME[name].family not in ("group_norm", "instance_norm"):
            arguments = arguments_of(BY_NAME[name], geometry, dtype, rng)
            for n, array in arguments.items():
                unread = n == "bias" and "backward" in name
                if isinstance(array, np.ndarray) and not unread and n not in COPIED.get(name, ()):
                    unaligned = next(a for a in spoiled(array) if a.shape == array.shape and not a.flags.aligned)
                    assert short_form(name, {**arguments, n: unaligned}) is None, n


RUNNING = {
    "both": lambda mean, var, a: (mean, var),
    "of no memory of their own": lambda mean, var, a: (a["weight"], var),
    "in x": lambda mean, var, a: (mean, a["x"].reshape(-1)[2:5]),
    "one for both": lambda mean, var, a: (mean, mean),
    "neighbours": lambda mean, var, a: (*np.stack([mean, var]),),
    "overlapping": lambda mean, var, a: (mean, np.lib.stride_tricks.as_strided(mean[1:], (3,), (4,))),
    "one": lambda mean, var, a: (None, var),
    "float64": lambda mean, var, a: (mean.astype(float), var.astype(float)),
    "strided": lambda mean, var, a: (np.repeat(mean, 2)[::2], var),
    "too long": lambda mean, var, a: (np.resize(mean, 4), var),
    "read-only": lambda mean, var, a: (np.broadcast_to(mean, mean.shape), var),
    "lists": lambda mean, var, a: (mean.tolist(), var),
}


@pytest.mark.parametrize("momentum", [0.1, 0, 1.5, np.nan, "a"])
@pytest.mark.parametrize("kind", RUNNING)
@pytest.mark.parametrize("shape", [(7, 3), (5, 3, 7), (3, 3, 5, 7)])
def test_running_statistics_are_those_of_the_op(shape, kind, momentum, rng):
    outcomes = []
    for function in (normnumba.batch_norm_forward, normnumba.batch_norm_forward.__wrapped__):
        own = np.random.default_rng(7)
        arguments = arguments_of(BY_NAME["batch_norm_forward"], Geometry(shape, 1), "float32", own)
        statistics = (values.astype(np.float32)[:3] for values in own.random((2, 5)))
        mean, var = RUNNING[kind](*statistics, arguments)
        given = {**arguments, "running_mean": mean, "running_var": var, "momentum": momentum}
        outcomes.append((outcome(function, given), mean, var, arguments))
    (got, *others), (wanted, *wanted_others) = outcomes
    if isinstance(wanted[0], str):
        assert repr(got) == repr(wanted)
    else:
        assert_same(got, wanted)
    for a, b in zip(others[:2], wanted_others[:2], strict=True):
        assert np.array_equal(a, b)
    assert all(np.array_equal(a, wanted_others[2][n]) for n, a in others[2].items())


@pytest.mark.parametrize("name", SHORT)
def test_large_arrays_are_left_to_the_op(name, rng, monkeypatch):
    geometry = next(g for g in RAGGED[BY_NAME[name].family] if g.shape in ((3, 7), (5, 3, 7)))
    arguments = arguments_of(BY_NAME[name], geometry, "float32", rng)
    assert short_form(name, arguments) is not None
    monkeypatch.setattr(launching, "PARALLEL_FROM", data_of(arguments).size)
    assert short_form(name, arguments) is None


LAYERS = (
    (layers.LayerNorm(7), (3, 7)),
    (layers.LayerNorm(7), (5, 3, 7)),
    (layers.RMSNorm(7), (3, 7)),
    (layers.GroupNorm(2, 4), (3, 4, 5, 7)),
    (layers.InstanceNorm(4, affine=True), (3, 4, 5)),
    (layers.BatchNorm(4), (3, 4)),
    (layers.BatchNorm(4, activation="relu"), (3, 4, 5, 6)),
    (layers.BatchNorm(4).eval(), (3, 4)),
)


@pytest.fixture
def short_alone(monkeypatch):
    """The ops behind the short forms fail: a call that reached one would be as right, and slow."""
    for name in SHORT:
        refuse = lambda *_, name=name, **__: pytest.fail(name)  # noqa: E731
        monkeypatch.setitem(getattr(normnumba, name).__globals__, "function", refuse)


@pytest.mark.parametrize("name", SHORT)
def test_a_small_call_takes_its_short_form(name, short_alone, rng):
    op = getattr(normnumba, name)
    untaken = {
        n: tuple(p.default) if isinstance(p.default, tuple) else p.default
        for n, p in inspect.signature(op).parameters.items()
        if n not in inspect.signature(SHORT[name]).parameters
    }
    for shape in ((3, 7), (5, 3, 7), (3, 2, 5, 7)):
        geometry = Geometry(shape, -1 if "axis" in inspect.signature(op).parameters else 1)
        if len(shape) > 2 or BY_NAME[name].family not in ("group_norm", "instance_norm"):
            arguments = arguments_of(BY_NAME[name], geometry, "float32", rng)
            op(**arguments)
            op(**arguments, **untaken)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[f"{type(a).__name__}-{len(s)}d" for a, s in LAYERS])
def test_small_layers_take_short_forms(layer, shape, short_alone, rng):
    layer.backward(layer(rng.standard_normal(shape, dtype=np.float32)))


@pytest.mark.parametrize("dtype", WIDE)
def test_rows_have_the_same_bits_beside_rows_that_overflow(dtype, rng):
    """Narrow rows are normalized up to 16 together: one that takes the long way must not take others along."""
    for cols in (1, 2, 15, 16, 17, 63, 64, 65, 100, 128, 129, 255, 256, 257):
        x = rng.standard_normal((35, cols)).astype(dtype)
        x[2, cols // 2], x[5, 0], x[15, 0], x[16, -1], x[32, 0] = np.inf, 1e30, -np.inf, 1e30, np.inf
        together = normnumba.layer_norm_forward(x)
        for i in range(len(x)):
            for stop in (i + 1, i + 2):
                for own, beside in zip(normnumba.layer_norm_forward(x[i:stop]), together, strict=True):
                    assert_same(own[0], beside[i])
