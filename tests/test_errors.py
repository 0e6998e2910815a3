"""What is wrong is said before anything is written: TypeError or ValueError, naming the shapes or dtypes at fault."""

import numpy as np
import pytest

import normnumba
from benchmarks.cases import OPS, Geometry, data_of
from tests.helpers import BY_NAME, arguments_of, assert_identical, name_of, parameters_of, shared, takes_out, x_sized

GEOMETRY = shared(rows=Geometry((4, 6), -1), channels=Geometry((4, 3, 5), 1))

LAYER = BY_NAME["layer_norm_forward"]
FORWARD = BY_NAME["batch_norm_forward"]
APPLY = BY_NAME["batch_norm_backward_apply"]


def valid(op, rng):
    """Arguments that work, with everything that a failing call must not touch: `out` and running statistics."""
    geometry = GEOMETRY[op.family]
    arguments = arguments_of(op, geometry, "float32", rng)
    if takes_out(op):
        arguments["out"] = np.full(geometry.shape, 7, np.float32)
    if op.function == FORWARD.function:
        arguments |= {"running_mean": np.full(3, 7, np.float32), "running_var": np.full(3, 7, np.float32)}
    return arguments


def refuses(op, arguments, error, match):
    arrays = {k: v for k, v in arguments.items() if type(v) is np.ndarray}
    before = {k: np.copy(v) for k, v in arrays.items()}
    with pytest.raises(error, match=match) as caught:
        op(normnumba, arguments)
    assert type(caught.value) is error
    assert_identical(list(arrays.values()), list(before.values()), "nothing is written by a call that fails")


def with_argument(*names):
    return [(op, name) for op in OPS for name in names if name in parameters_of(op)]


def test_valid_arguments_are_valid(rng):
    for op in OPS:
        op(normnumba, valid(op, rng))


# --- x and dy --------------------------------------------------------------------------------------------------------

X_DTYPES = {
    ">f4": r"byte order.*x\.astype\('float32'\)",
    ">f8": r"byte order.*x\.astype\('float64'\)",
    "int32": "float32.*int32",
    "bool": "float32.*bool",
    "complex64": "float32.*complex64",
    "object": "float32.*object",
    "U3": "float32.*<U3",
    "datetime64[s]": "float32.*datetime64",
    "longdouble": "float32.*(longdouble|float128|float96)",
}


@pytest.mark.parametrize("kind", X_DTYPES)
@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_x_of_a_dtype_that_is_not_supported(op, kind, rng):
    if np.dtype(kind) == np.float64:
        pytest.skip("long double is float64 here")
    arguments = valid(op, rng)
    for name in x_sized(op):
        arguments[name] = np.ones(arguments[name].shape).astype(kind)
    refuses(op, arguments, TypeError, X_DTYPES[kind])


NO_ARRAYS = {
    "list": ([[1.0, 2.0], [3.0, 4.0]], "numpy.ndarray, got builtins.list"),
    "float": (1.0, "numpy.ndarray, got builtins.float"),
    "scalar": (np.float32(1), "numpy.ndarray, got numpy.float32"),
    "none": (None, "(x|summed) .*(None|ndarray)"),
    "masked": (np.ma.masked_array(np.ones((4, 6), np.float32)), "masked arrays"),
}


@pytest.mark.parametrize("kind", NO_ARRAYS)
@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_x_that_is_no_array(op, kind, rng):
    value, match = NO_ARRAYS[kind]
    refuses(op, {**valid(op, rng), x_sized(op)[0]: value}, TypeError, match)


@pytest.mark.parametrize(
    ("op", "name"), with_argument("weight", "bias", "mean", "rstd", "var", "out", "dy"), ids=name_of
)
def test_other_arguments_that_are_no_arrays(op, name, rng):
    arguments = valid(op, rng)
    refuses(op, {**arguments, name: arguments[name].tolist()}, TypeError, "numpy.ndarray, got builtins.list")
    refuses(op, {**arguments, name: np.ma.masked_array(arguments[name])}, TypeError, "masked arrays")
    if name not in ("weight", "bias", "out"):
        refuses(op, {**arguments, name: None}, TypeError, name)


@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_torch_tensors(op, rng):
    torch = pytest.importorskip("torch")
    arguments = valid(op, rng)
    x = x_sized(op)[0]
    refuses(op, {**arguments, x: torch.tensor(arguments[x])}, TypeError, r"torch\.Tensor.*numpy\.asarray")


@pytest.mark.parametrize("op", [op for op in OPS if "dy" in x_sized(op)], ids=name_of)
def test_dy_unlike_x(op, rng):
    arguments = valid(op, rng)
    dy = arguments["dy"]
    refuses(op, {**arguments, "dy": dy.astype(np.float64)}, TypeError, "dy .*float32.*float64")
    refuses(op, {**arguments, "dy": dy.astype(">f4")}, TypeError, "dy .*float32.*>f4")
    refuses(op, {**arguments, "dy": dy[:-1]}, ValueError, r"dy .*\(4, .*\(3, ")
    refuses(op, {**arguments, "dy": dy[..., None]}, ValueError, r"dy .*\(4, .*1\)")


# --- parameters and statistics ---------------------------------------------------------------------------------------

VECTORS = ("weight", "bias", "mean", "rstd", "var", "sum_dy", "sum_dy_xhat", "running_mean", "running_var")


@pytest.mark.parametrize(("op", "name"), with_argument(*VECTORS), ids=name_of)
def test_vectors_of_another_shape(op, name, rng):
    arguments = valid(op, rng)
    value = arguments[name]
    right = str(value.shape).replace("(", r"\(").replace(")", r"\)")
    for wrong in (value[:-1], value[None], np.append(value, value[:1]), value[0:1], np.array(value[0])):
        shape = str(wrong.shape).replace("(", r"\(").replace(")", r"\)")
        refuses(op, {**arguments, name: wrong}, ValueError, f"{name} .*{right}.*{shape}")


@pytest.mark.parametrize("kind", ["complex64", "object", "U3"])
@pytest.mark.parametrize(("op", "name"), with_argument(*VECTORS), ids=name_of)
def test_vectors_of_no_real_dtype(op, name, kind, rng):
    arguments = valid(op, rng)
    wrong = arguments[name].astype(kind)
    refuses(op, {**arguments, name: wrong}, TypeError, f"{name} .*{np.dtype(kind)}")


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_running_statistics_that_cannot_be_updated(name, rng):
    arguments = valid(FORWARD, rng)
    refuses(FORWARD, {**arguments, name: np.ones(3, np.int64)}, TypeError, f"{name} .*float.*int64")
    read_only = np.ones(3, np.float32)
    read_only.flags.writeable = False
    refuses(FORWARD, {**arguments, name: read_only}, ValueError, f"{name} .*read-only")


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (3,), (1, 3, 1, 1)])
def test_one_value_per_channel_has_no_variance(shape):
    x, axis = np.ones(shape, np.float32), 0 if len(shape) == 1 else 1
    running = np.full(3, 7.0)
    out = np.full(shape, 7, np.float32)
    arguments = {"x": x, "running_var": running, "running_mean": running.copy(), "out": out, "channel_axis": axis}
    refuses(FORWARD, arguments, ValueError, r"\(.*3.*one value per channel.*batch_norm_inference")
    assert normnumba.batch_norm_inference(x, running, running, channel_axis=axis).shape == shape


# --- axes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "error", "match"),
    [
        (2, ValueError, r"axis=2 .*\(4, 6\)"),
        (-3, ValueError, r"axis=-3 .*\(4, 6\)"),
        ((0, 2), ValueError, r"axis=2 .*\(4, 6\)"),
        ((1, 1), ValueError, r"axis .*twice.*\(1, 1\).*\(4, 6\)"),
        ((1, -1), ValueError, r"axis .*twice.*\(4, 6\)"),
        ((), ValueError, r"axis .*at least one.*\(4, 6\)"),
        (1.0, TypeError, "axis must be an int or a tuple of ints, got 1.0"),
        ((0, 1.0), TypeError, r"axis must be an int or a tuple of ints, got \(0, 1.0\)"),
        ("01", TypeError, "axis must be an int or a tuple of ints"),
        (None, TypeError, "axis must be an int or a tuple of ints, got None"),
    ],
)
@pytest.mark.parametrize("name", ["layer_norm_forward", "layer_norm_backward"])
def test_axis(name, axis, error, match, rng):
    op = BY_NAME[name]
    op(normnumba, valid(op, rng))  # what was seen before is remembered, and 1.0 == 1
    refuses(op, {**valid(op, rng), "axis": axis}, error, match)


@pytest.mark.parametrize(
    ("axis", "error", "match"),
    [
        (3, ValueError, r"channel_axis=3 .*\(4, 3, 5\)"),
        (-4, ValueError, r"channel_axis=-4 .*\(4, 3, 5\)"),
        (1.0, TypeError, "channel_axis must be an int, got 1.0"),
        ((1,), TypeError, r"channel_axis must be an int, got \(1,\)"),
        ([1], TypeError, r"channel_axis must be an int, got \[1\]"),
        (None, TypeError, "channel_axis must be an int, got None"),
    ],
)
@pytest.mark.parametrize("op", [op for op in OPS if op.family == "batch_norm"], ids=name_of)
def test_channel_axis(op, axis, error, match, rng):
    op(normnumba, valid(op, rng))
    refuses(op, {**valid(op, rng), "channel_axis": axis}, error, match)


def test_arrays_without_axes():
    x = np.array(1, np.float32)
    refuses(LAYER, {"x": x}, ValueError, r"axis=-1 .*\(\)")
    refuses(FORWARD, {"x": x}, ValueError, r"channel_axis=1 .*\(\)")
    refuses(FORWARD, {"x": np.ones(3, np.float32)}, ValueError, r"channel_axis=1 .*\(3,\)")


def test_axis_of_a_numpy_int(rng):
    arguments = valid(LAYER, rng)
    for axis in (np.int64(1), [1], (np.int32(-1),), np.array([1]), range(1, 2)):
        LAYER(normnumba, {**arguments, "axis": axis})
    FORWARD(normnumba, {**valid(FORWARD, rng), "channel_axis": np.int8(1)})


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (np.nan, ValueError),
        (np.inf, ValueError),
        (-np.inf, ValueError),
        (10**400, ValueError),
        ("1e-5", TypeError),
        (None, TypeError),
        ([1e-5], TypeError),
        (1e-5j, TypeError),
        (np.array([1e-5, 1e-5]), TypeError),
    ],
    ids=["nan", "inf", "-inf", "huge int", "str", "None", "list", "complex", "two"],
)
@pytest.mark.parametrize(("op", "name"), with_argument("eps", "momentum"), ids=name_of)
def test_numbers_that_are_none(op, name, value, error, rng):
    refuses(op, {**valid(op, rng), name: value}, error, f"{name} must be")


@pytest.mark.parametrize("name", ["layer_norm", "batch_norm"])
def test_a_negative_eps_is_the_callers_business(name):
    y = getattr(normnumba, name)(np.float32([[1, 2], [3, 5]]), eps=-100)
    assert np.isnan(y).all()


@pytest.mark.parametrize(
    ("count", "error"), [(0, ValueError), (-1, ValueError), (None, TypeError), ("20", TypeError), (20.5, TypeError)]
)
def test_count(count, error, rng):
    refuses(APPLY, {**valid(APPLY, rng), "count": count}, error, "count")


@pytest.mark.parametrize("mask", [(), (True,), (True,) * 7])
@pytest.mark.parametrize("op", [op for op in OPS if "output_mask" in parameters_of(op)], ids=name_of)
def test_output_mask_of_another_length(op, mask, rng):
    refuses(op, {**valid(op, rng), "output_mask": mask}, ValueError, f"output_mask must have {len(op.outputs)} entries")


# --- out -------------------------------------------------------------------------------------------------------------

WITH_OUT = [op for op in OPS if takes_out(op)]


@pytest.mark.parametrize("op", WITH_OUT, ids=name_of)
def test_out_that_does_not_fit(op, rng):
    arguments = valid(op, rng)
    out = arguments["out"]
    refuses(op, {**arguments, "out": out.astype(np.float64)}, TypeError, "out .*float32.*float64")
    refuses(op, {**arguments, "out": out.astype(">f4")}, TypeError, "out .*float32.*>f4")
    refuses(op, {**arguments, "out": out[:-1].copy()}, ValueError, r"out .*\(4, .*\(3, ")
    refuses(op, {**arguments, "out": out[None]}, ValueError, r"out .*\(4, .*\(1, 4")
    read_only = out.copy()
    read_only.flags.writeable = False
    refuses(op, {**arguments, "out": read_only}, ValueError, "out is read-only")


@pytest.mark.parametrize("op", WITH_OUT, ids=name_of)
def test_out_that_shares_memory_with_an_input(op, rng):
    """Anything but exactly x, or dy in a backward."""
    arguments = valid(op, rng)
    shape, size = data_of(arguments).shape, data_of(arguments).size
    for name in [k for k, v in arguments.items() if isinstance(v, np.ndarray) and k != "out"]:
        value = arguments[name]
        raw = np.zeros(2 * size, np.float32)
        shared, out = raw[1 : 1 + value.size].reshape(value.shape), raw[:size].reshape(shape)
        shared[...] = value
        refuses(op, {**arguments, name: shared, "out": out}, ValueError, r"out shares memory.*\(")
    x = np.zeros((3, 3, 3), np.float32)
    square = {"x": x, "out": x.transpose(2, 1, 0)}
    if op in (LAYER, FORWARD):
        refuses(op, square, ValueError, "out shares memory")
        refuses(op, {"x": x, "out": x[::-1]}, ValueError, "out shares memory")
        op(normnumba, {"x": x, "out": x[:]})


def test_out_that_is_an_array_beside_the_input(rng):
    """Interleaved memory is not shared memory."""
    both = rng.standard_normal((2, 40, 6)).astype(np.float32)
    pairs = np.stack([both[0], both[0]], -1)
    expected = normnumba.layer_norm(both[0])
    assert_identical([normnumba.layer_norm(both[0], out=both[1])], [expected])
    normnumba.layer_norm(pairs[..., 0], out=pairs[..., 1])
    assert_identical([pairs[..., 1]], [expected])


@pytest.mark.parametrize("op", [op for op in WITH_OUT if "dy" in x_sized(op)], ids=name_of)
def test_out_that_is_a_part_of_dy(op, rng):
    arguments = valid(op, rng)
    raw = np.zeros(2 * arguments["dy"].size, np.float32)
    shape, size = arguments["dy"].shape, arguments["dy"].size
    dy, out = raw[3 : 3 + size].reshape(shape), raw[:size].reshape(shape)
    refuses(op, {**arguments, "dy": dy, "out": out}, ValueError, "out shares memory")


# --- devices ---------------------------------------------------------------------------------------------------------


class OnDevice:
    """Looks like an array in the memory of a CUDA device."""

    __cuda_array_interface__ = {"shape": (4, 6), "typestr": "<f4", "data": (0, False), "version": 3}  # noqa: RUF012
    shape, dtype, ndim = (4, 6), np.dtype(np.float32), 2


class OnDeviceByDlpack:
    def __dlpack_device__(self):
        return 2, 0


@pytest.mark.skipif(normnumba.backends()["cuda"] is None, reason="the CUDA backend can be used here")
@pytest.mark.parametrize("kind", [OnDevice, OnDeviceByDlpack])
def test_device_arrays_without_the_backend(kind):
    with pytest.raises(RuntimeError, match=r"CUDA backend cannot be used: \w+"):
        normnumba.layer_norm(kind())


@pytest.mark.parametrize("kind", [OnDevice, OnDeviceByDlpack])
@pytest.mark.parametrize(("op", "name"), with_argument("x", "dy", "weight", "mean", "out"), ids=name_of)
def test_arrays_in_two_places(op, name, kind, rng):
    if op.name == "batch_moments":
        return  # has a single array
    refuses(op, {**valid(op, rng), name: kind()}, TypeError, "host and device arrays together.*OnDevice.*ndarray")


def test_backends():
    found = normnumba.backends()
    assert set(found) == {"cpu", "cuda"}
    assert found["cpu"] is None
    assert found["cuda"] is None or len(found["cuda"]) > 10
    found["cpu"] = "changed by a caller"
    assert normnumba.backends()["cpu"] is None


def test_show_config(capsys):
    assert normnumba.show_config() is None
    printed = capsys.readouterr().out
    for word in (normnumba.__version__, np.__version__, "numba", "threads", "layer", "cache", "cpu", "cuda"):
        assert word in printed
    assert normnumba.backends()["cuda"] in (None, *printed.splitlines()[-1].split(maxsplit=1))


def test_outputs_that_overlap_themselves_are_refused(rng):
    x = rng.standard_normal((4, 6)).astype(np.float32)
    narrow = np.lib.stride_tricks.as_strided(np.zeros(6, np.float32), (4, 6), (0, 4))
    with pytest.raises(ValueError, match="out has elements that share memory"):
        normnumba.layer_norm(x, out=narrow)


def test_running_statistics_that_overlap_are_refused(rng):
    x, one = rng.standard_normal((6, 4)).astype(np.float32), np.ones(4, np.float32)
    same = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (4,), (0,))
    for arguments in (
        {"running_mean": x[0]},
        {"running_var": x[0]},
        {"running_mean": one, "weight": one},
        {"running_mean": one, "running_var": one},
        {"running_var": same},
    ):
        before = x.copy()
        with pytest.raises(ValueError, match="shares memory"):
            normnumba.batch_norm(x, **arguments)
        np.testing.assert_array_equal(x, before)
