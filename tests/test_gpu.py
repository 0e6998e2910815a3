"""The public functions on a CUDA device: numbers, layouts, errors and sizes. `test_gpu_torch` has streams and memory.

A device is a real one, or where a test says so also an emulated one, on which few and small cases show that the test
itself is right. A variant of a kernel takes half a second to compile, so that tests share their shapes and dtypes.
"""

import itertools
import math

import numpy as np
import pytest

import normnumba
from benchmarks.cases import DTYPES, OPS, RAGGED, X_SIZED, Geometry
from normnumba import reference
from tests import devices, test_hostile
from tests.helpers import (
    BY_NAME,
    ROWS,
    arguments_of,
    assert_identical,
    assert_matches,
    name_of,
    parameters_of,
    shared,
    takes_out,
    x_sized,
)
from tests.test_device import got_back
from tests.test_fused import ACTIVATIONS, fused
from tests.test_hostile import GEOMETRIES, LAYOUTS, both_ways

SMALL = shared(
    rows=(Geometry((4, 6, 10), (0, 2)), Geometry((3, 4, 20), 1)),
    channels=(Geometry((2, 6, 10), 1), Geometry((2, 3, 4, 6), -1)),
)
"""Copied and not, along lines and across them: what is cheap to emulate."""

EMPTY = shared(rows=(Geometry((0, 7), -1), Geometry((3, 0), -1)), channels=(Geometry((0, 3, 4), 1),))

FEW = tuple(BY_NAME[f"{family}_{way}"] for family in ("layer_norm", "batch_norm") for way in ("forward", "backward"))
"""Ops of both kinds, where all others would differ in nothing."""

DISTINCT = ((67, 1023), (4, 6, 10), (3, 5, 7, 33), (5, 3, 7))
"""Shapes enough for float16, which bfloat16 differs from in its conversions alone."""


def is_run(op, geometry, dtype):
    """Whether a real device runs a ragged case: all of float32 and bfloat16, so that 230 variants do for the table."""
    if dtype in ("float32", "bfloat16"):
        return True
    return not op.fused and (dtype == "float64" or geometry.shape in DISTINCT)


RAGGED_CASES = [c for op in OPS for c in itertools.product([op], RAGGED[op.family], DTYPES) if is_run(*c)]


def on_devices(names, real, emulated=()):
    """Cases for the device that is here, and those for the emulated one."""

    def cases(where, values, mark):
        tuples = (v if isinstance(v, tuple) else (v,) for v in values)
        return [pytest.param(where, *v, marks=mark, id="-".join(map(name_of, (where, *v)))) for v in tuples]

    every = cases("real", real, pytest.mark.gpu) + cases("emulated", emulated, pytest.mark.cuda_offline)
    return pytest.mark.parametrize(("device", *names.split()), every, indirect=["device"])


on_both = on_devices("", [()], [()])


@pytest.fixture
def device(request, monkeypatch):
    return devices.real() if request.param == "real" else devices.Emulated(monkeypatch)


@pytest.fixture(params=list(devices.KINDS))
def kind(request):
    return devices.real(request.param)


@pytest.fixture
def tensors(device):
    """A device with torch's tensors."""
    if not hasattr(device, "torch"):
        pytest.skip("needs torch")
    return device


def agrees(device, op, arguments, **on_device):
    """The op gives on the device what the reference gives; `on_device` is what is already there."""
    got = op(device, {**arguments, **on_device})
    assert_matches(op, arguments, got)
    return got


# --- every op --------------------------------------------------------------------------------------------------------


@on_devices(
    "op geometry dtype",
    RAGGED_CASES,
    [
        *((op, *case) for op in FEW for case in zip(SMALL[op.family], ("float32", "bfloat16"), strict=True)),
        (BY_NAME["layer_norm_backward"], Geometry((7,), 0), "float32"),
    ],
)
def test_every_op(device, op, geometry, dtype, rng):
    agrees(device, op, arguments_of(op, geometry, dtype, rng))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_every_kind_of_array(kind, op, dtype, rng):
    for geometry in (*SMALL[op.family], *EMPTY[op.family]):
        agrees(kind, op, arguments_of(op, geometry, dtype, rng))


@on_devices("op", OPS, OPS)
def test_nothing(device, op, rng):
    for geometry in EMPTY[op.family]:
        agrees(device, op, arguments_of(op, geometry, "float32", rng))


@on_devices(
    "name activation",
    [
        *itertools.product(("batch_norm_forward", "batch_norm_backward"), list(ACTIVATIONS)[1:]),
        *itertools.product(("batch_norm_inference", "batch_norm_inference_backward"), ("relu", "gelu_tanh")),
        *itertools.product(("group_norm_forward", "group_norm_backward"), list(ACTIVATIONS)[1:]),
    ],
    [("batch_norm_backward", "gelu_tanh"), ("group_norm_forward", "relu"), ("group_norm_backward", "gelu")],
)
def test_activations_and_residuals(device, name, activation, rng):
    op = BY_NAME[name]
    agrees(device, op, fused(op, SMALL[op.family][0], "float32", rng, activation, residual=op.family == "batch_norm"))


@on_devices("op", [op for op in OPS if "output_mask" in parameters_of(op)], FEW[1:2])
def test_gradients_that_are_not_wanted(device, op, rng):
    for geometry in SMALL[op.family]:
        arguments = device.put_all(arguments_of(op, geometry, "float32", rng))
        everything = op(device, arguments)
        for wanted in range(len(op.outputs)):
            mask = [i == wanted for i in range(len(op.outputs))]
            expected = [a if m else None for a, m in zip(everything, mask, strict=True)]
            assert_identical(op(device, {**arguments, "output_mask": mask}), expected, op.outputs[wanted])


@on_devices("name", ["rms_norm_forward", "rms_norm_backward", "add_rms_norm_forward"], ["rms_norm_forward"])
def test_options_of_rms_norm(device, name, rng):
    op = BY_NAME[name]
    arguments = arguments_of(op, SMALL["rms_norm"][0], "bfloat16", rng)
    for options in ({"weight_offset": 1.0}, {"casting": "input"}):
        agrees(device, op, {**arguments, **options})


@on_devices("axis share", list(itertools.product((1, -1), (0.0, 0.6, 1.0))), [(1, 0.6), (-1, 0.6), (1, 0.0)])
def test_masks_and_running_statistics(device, axis, share, rng):
    shape = (4, 5, 6)
    counted = rng.random((4, 30 // shape[axis])) < share
    counted[0] |= share > 0  # or one position alone might count
    x, residual, dy = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    common = {"x": x, "channel_axis": axis, "mask": counted, "residual": residual, "activation": "silu"}
    running = {"running_mean": np.full(shape[axis], 0.5, np.float16), "running_var": np.ones(shape[axis], np.float32)}
    there = {k: device.put(v) for k, v in running.items()}
    _, mean, rstd = agrees(device, BY_NAME["batch_norm_forward"], common, **there)
    reference.batch_norm_forward(**common, **running)
    for name, expected in running.items():
        np.testing.assert_allclose(device.get(there[name]), expected, rtol=2 * np.finfo(expected.dtype).eps)
    agrees(device, BY_NAME["batch_norm_backward"], {**common, "dy": dy, "mean": mean, "rstd": rstd})
    agrees(device, BY_NAME["batch_moments"], {k: common[k] for k in ("x", "channel_axis", "mask")})


# --- memory ----------------------------------------------------------------------------------------------------------


@on_devices(
    "op layout",
    list(itertools.product(OPS, ("fortran", "sliced", "channels last memory", "rolled axes", "odd unit strides"))),
    list(itertools.product(FEW, ("sliced", "channels last memory"))),
)
def test_layouts(device, op, layout, rng):
    geometry = SMALL[op.family][0]
    arguments = arguments_of(op, geometry, "float32", rng)
    strided = {k: device.laid_out(LAYOUTS[layout](v)) for k, v in arguments.items() if k in X_SIZED}
    agrees(device, op, arguments, **{k: strided[k] for k in x_sized(op)[:1]})
    agrees(device, op, arguments, **strided)


@on_devices("op", OPS, FEW[::3])
def test_arrays_between_the_addresses_for_wide_loads(device, op, rng):
    """x[1:] of a flat array."""
    geometry = SMALL[op.family][0]
    arguments = arguments_of(op, geometry, "float32", rng)
    moved = {k: device.laid_out(v, 1) for k, v in arguments.items() if k in X_SIZED}
    agrees(device, op, arguments, **{k: moved[k] for k in x_sized(op)[-1:]})
    agrees(device, op, arguments, **moved)
    vectors = {k: device.laid_out(v, 1) for k, v in arguments.items() if isinstance(v, np.ndarray) and k not in moved}
    agrees(device, op, arguments, **vectors)


@on_devices("op", [op for op in OPS if takes_out(op)], FEW[::3])
def test_out(device, op, rng):
    for geometry in SMALL[op.family]:
        arguments = arguments_of(op, geometry, "float32", rng)
        expected = op(device, arguments)
        blank = np.full(geometry.shape, np.nan, np.float32)
        fresh = {"fresh": device.put(blank), "strided": device.laid_out(LAYOUTS["sliced"](blank))}
        for name in (*fresh, *x_sized(op)):
            there = device.put_all(arguments)
            out = {**fresh, **there}[name]
            got = op(normnumba, {**there, "out": out})
            assert got[0] is out
            assert_identical(got_back(device, got), expected, f"out={name}")


@on_devices("name", ["batch_norm_forward", "batch_norm_backward", "group_norm_forward"], ["batch_norm_forward"])
def test_channels_last_of_torch_stays(tensors, name, rng):
    op, torch = BY_NAME[name], tensors.torch
    arguments = arguments_of(op, Geometry((2, 6, 3, 4), 1), "float32", rng)
    there = tensors.put_all(arguments)
    for key in {"x", "dy"} & set(there):
        there[key] = there[key].to(memory_format=torch.channels_last)
    got = op(normnumba, there)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert_matches(op, arguments, got_back(tensors, got))


# --- errors ----------------------------------------------------------------------------------------------------------


@on_devices("op", OPS, OPS[::4])
def test_arrays_of_the_host_are_refused(device, op, rng):
    arguments = arguments_of(op, SMALL[op.family][0], "float32", rng)
    names = [k for k, v in arguments.items() if isinstance(v, np.ndarray)]
    for name in names if len(names) > 1 else ():
        with pytest.raises(TypeError, match="host and device arrays together"):
            op(normnumba, {**device.put_all(arguments), name: arguments[name]})


@on_both
def test_tensors_that_require_gradients_are_refused(tensors):
    one, parameter = tensors.put(np.ones((2, 3), np.float32)), tensors.put(np.ones(3, np.float32))
    parameter.requires_grad_()
    with pytest.raises(TypeError, match=r"weight requires a gradient.*weight\.detach\(\)"):
        normnumba.layer_norm(one, parameter)
    with tensors.torch.no_grad():
        assert_identical([tensors.get(normnumba.layer_norm(one, parameter))], [np.zeros((2, 3), np.float32)])


@on_both
def test_tensors_of_other_dtypes_are_refused(tensors):
    for dtype in ("int32", "complex64", "bool"):
        with pytest.raises(TypeError, match=f"must have one of the dtypes .*{dtype}"):
            normnumba.layer_norm(tensors.put(np.ones((2, 3), dtype)))


@on_devices("", [()])
def test_tensors_of_the_host_are_refused(tensors):
    host, there = tensors.torch.ones(3), tensors.torch.ones(3, device="cuda")
    with pytest.raises(TypeError, match="host and device arrays together"):
        normnumba.layer_norm(there, host)
    with pytest.raises(TypeError, match=r"numpy\.ndarray, got torch\.Tensor"):
        normnumba.layer_norm(host)


@on_devices("", [()])
def test_tensors_of_another_device(tensors):
    torch = tensors.torch
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    x, weight = torch.arange(6.0, device="cuda:1").reshape(2, 3), torch.ones(3, device="cuda:0")
    with pytest.raises(ValueError, match="x is on 1, weight on 0"):
        normnumba.layer_norm(x, weight)
    y = normnumba.layer_norm(x)
    assert y.device == x.device
    assert torch.cuda.current_device() == 0
    np.testing.assert_allclose(y.cpu(), reference.layer_norm(x.cpu().numpy()), rtol=1e-5)


# --- hostile values --------------------------------------------------------------------------------------------------

HOSTILE = [*GEOMETRIES, ("layer_norm", Geometry((2, 65537), -1))]
TINY = [("layer_norm", Geometry((3, 40), -1)), ("batch_norm", Geometry((3, 2, 20), 1))]
"""The same for the emulated device."""

GROUPS = [("instance_norm", Geometry((2, 3, 777), 1)), ("instance_norm", Geometry((2, 3, 33_001), 1))]


def crossed(cases, *more):
    return [(*case, *values) for case in cases for values in itertools.product(*more)]


WIDE = ("float32", "float64")


@on_devices(
    "family geometry size",
    [*crossed([*HOSTILE, *GROUPS], (("float32", 1e4, 1e-2), ("float64", 1e8, 1e-4)))],
    crossed(TINY, (("float32", 1e4, 1e-2),)),
)
def test_large_mean(device, family, geometry, size, rng):
    test_hostile.test_large_mean(family, geometry, *size, rng, library=device)


@on_devices("family geometry size", crossed([*HOSTILE, *GROUPS], (1e19, 1e30, 1e37)), crossed(TINY, (1e30,)))
def test_squares_that_overflow(device, family, geometry, size, rng):
    test_hostile.test_squares_that_overflow(family, geometry, size, rng, library=device)


@on_devices("family geometry", [*HOSTILE, *GROUPS], TINY)
def test_float16_of_any_size(device, family, geometry, rng):
    for size in (6e4, 1e-6):
        x = rng.uniform(-size, size, geometry.shape).astype(np.float16)
        both_ways(family, geometry, x, rng, library=device)


@on_devices("family geometry dtype", crossed(HOSTILE, WIDE), crossed(TINY, ("float32",)))
def test_constant_data_gives_exactly_the_bias(device, family, geometry, dtype, rng):
    test_hostile.test_constant_data_gives_exactly_the_bias(family, geometry, dtype, rng, library=device)


@on_devices("family geometry dtype", crossed(HOSTILE, WIDE), crossed(TINY, ("float32",)))
def test_first_element_is_an_outlier(device, family, geometry, dtype, rng):
    test_hostile.test_first_element_is_an_outlier(family, geometry, dtype, rng, library=device)


@on_devices("family geometry dtype", crossed(HOSTILE, WIDE), crossed(TINY, ("float32",)))
def test_large_gradients(device, family, geometry, dtype, rng):
    test_hostile.test_large_gradients(family, geometry, dtype, rng, library=device)


@on_devices(
    "family shape", [("layer_norm", (3, 200_001)), ("batch_norm", (2, 3, 100_003)), ("batch_norm", (200_001, 3))]
)
def test_first_block_is_no_sample_of_the_rest(device, family, shape, rng):
    test_hostile.test_first_block_is_no_sample_of_the_rest(family, shape, "float32", rng, library=device)


@on_devices(
    "family geometry bad",
    crossed([c for c in HOSTILE if c[1].axis != 1 or c[0] == "batch_norm"], (np.nan, np.inf, -np.inf)),
    crossed(TINY[:1], (np.nan, np.inf)),
)
def test_nan_and_inf_stay_where_they_are(device, family, geometry, bad, rng):
    test_hostile.test_nan_and_inf_stay_where_they_are(family, geometry, "float32", bad, rng, library=device)


# --- sizes -----------------------------------------------------------------------------------------------------------


@on_devices("family shape", test_hostile.EXTREME)
def test_extreme_sizes(device, family, shape, rng):
    test_hostile.test_extreme_sizes(family, shape, rng, library=device)


@on_devices("family", ["layer_norm", "batch_norm"])
def test_long_sums_of_one_sign(device, family, rng):
    test_hostile.test_long_sums_of_one_sign(family, rng, library=device)


MANY = [Geometry((65_537, 4, 3), 1), Geometry((65_537, 3, 4), -1)]


@on_devices("name geometry", crossed([("group_norm_forward",), ("group_norm_backward",)], MANY))
def test_more_samples_than_a_grid_is_high(device, name, geometry, rng):
    agrees(device, BY_NAME[name], arguments_of(BY_NAME[name], geometry, "float32", rng))


# --- the same bits ---------------------------------------------------------------------------------------------------


@on_devices("family width", crossed([(f,) for f in ROWS], (7, 33, 1023, 65537)), [("layer_norm", 33), ("rms_norm", 7)])
def test_a_row_alone_is_the_row_in_a_batch(device, family, width, rng):
    rows = 67 if math.isqrt(width) < 64 else 3
    backward = BY_NAME[f"{family}_backward"]
    given = arguments_of(backward, Geometry((rows, width), -1), "float32", rng)
    forward = {k: v for k, v in given.items() if k not in ("dy", "mean", "rstd")}
    for op, arguments in ((BY_NAME[f"{family}_forward"], forward), (backward, given)):
        whole = op(device, arguments)
        for row in (slice(r, r + 1) for r in (0, rows // 2, rows - 1)):
            alone = {k: v[row] if np.ndim(v) and len(v) == rows else v for k, v in arguments.items()}
            of_rows = [i for i, name in enumerate(op.outputs) if name in ("y", "mean", "rstd", "dx")]
            got = op(device, alone)
            assert_identical([got[i] for i in of_rows], [whole[i][row] for i in of_rows], f"{op.name}, {row}")


@on_devices("op", OPS, FEW)
def test_the_same_call_again(device, op, rng):
    geometry = SMALL[op.family][0]
    there = device.put_all(arguments_of(op, geometry, "float32", rng))
    expected = op(device, there)
    for _ in range(3):
        assert_identical(op(device, there), expected)
