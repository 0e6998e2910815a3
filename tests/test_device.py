"""Between the public functions and the kernels for devices: every kind of array, on devices that are pretended."""

import inspect
import re
import sys
import types

import ml_dtypes
import numpy as np
import pytest

import normnumba
from benchmarks.cases import DTYPES, OPS, RAGGED, Geometry, data_of
from normnumba.device import availability
from normnumba.device.array import DeviceArray, Place, may_share_memory, shares_memory
from tests import pretend
from tests.helpers import (
    BY_NAME,
    arguments_of,
    assert_identical,
    assert_matches,
    name_of,
    parameters_of,
    run_python,
    shared,
    takes_out,
    x_sized,
)

FORWARD, BATCH = BY_NAME["layer_norm_forward"], BY_NAME["batch_norm_forward"]

SMALL = shared(
    rows=(Geometry((4, 6, 10), (0, 2)), Geometry((3, 7), -1)),
    channels=(Geometry((3, 5, 7, 33), 1), Geometry((3, 5, 7, 33), -1), Geometry((0, 3, 4), 1)),
)

RAGGED_CASES = [(op, geometry, dtype) for op in OPS for geometry in RAGGED[op.family] for dtype in DTYPES]
SMALL_CASES = [(op, geometry, dtype) for op in OPS for geometry in SMALL[op.family] for dtype in DTYPES]
OUT_CASES = [(op, geometry) for op in OPS if takes_out(op) for geometry in SMALL[op.family][:2]]


def make(kind, monkeypatch):
    """A kind of array on a device that is pretended."""
    for module in {"torch": ["torch"], "jax": ["jax", "torch", "cuda.core"]}.get(kind, []):
        pytest.importorskip(module)
    pretend.install(monkeypatch)
    return pretend.KINDS[kind](monkeypatch)


@pytest.fixture
def torch_arrays(monkeypatch):
    return make("torch", monkeypatch)


@pytest.fixture(params=list(pretend.KINDS))
def arrays(request, monkeypatch):
    if request.param != "jax":
        yield make(request.param, monkeypatch)
        return
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield make("jax", monkeypatch)


def put(kind, arguments):
    return {k: kind.put(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}


def got_back(kind, results):
    assert all(isinstance(r, kind.type | int | None) for r in results), [type(r) for r in results]
    return tuple(kind.get(r) if isinstance(r, kind.type) else r for r in results)


def agrees(kind, op, arguments, **more):
    """The op gives on the device what the reference gives, and to the bit what the host does."""
    got = got_back(kind, op(normnumba, {**put(kind, arguments), **more}))
    assert_matches(op, arguments, got)
    assert_identical(got, op(normnumba, arguments))


# --- every op --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "geometry", "dtype"), RAGGED_CASES, ids=name_of)
def test_every_op(op, geometry, dtype, torch_arrays, rng):
    agrees(torch_arrays, op, arguments_of(op, geometry, dtype, rng))


@pytest.mark.parametrize(("op", "geometry", "dtype"), SMALL_CASES, ids=name_of)
def test_every_kind(op, geometry, dtype, arrays, rng):
    agrees(arrays, op, arguments_of(op, geometry, dtype, rng))


@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_layouts(op, torch_arrays, rng):
    for geometry in SMALL[op.family]:
        arguments = arguments_of(op, geometry, "float32", rng)
        for layout in (np.asfortranarray, lambda a: np.stack([a, a], -1)[..., 0], lambda a: a.repeat(2, 0)[::2]):
            strided = {k: layout(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
            agrees(torch_arrays, op, strided)


@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_layouts_come_back(op, torch_arrays, rng):
    if op.outputs[0] not in ("y", "dx"):
        pytest.skip("has no result like x")
    arguments = put(torch_arrays, arguments_of(op, SMALL[op.family][0], "float32", rng))
    for name in x_sized(op):
        arguments[name] = arguments[name].transpose(-1, 0).contiguous().transpose(-1, 0)
    assert op(normnumba, arguments)[0].stride() == arguments[x_sized(op)[0]].stride()


def test_backwards_strides(monkeypatch, rng):
    kind = make("interface", monkeypatch)
    arguments = {
        k: v[::-1] if k == "x" else v for k, v in arguments_of(FORWARD, RAGGED["layer_norm"][3], "float32", rng).items()
    }
    agrees(kind, FORWARD, arguments)


@pytest.mark.parametrize(("op", "geometry"), OUT_CASES, ids=name_of)
def test_out(op, geometry, torch_arrays, rng):
    torch = torch_arrays.torch
    arguments = arguments_of(op, geometry, "float32", rng)
    expected = op(normnumba, arguments)
    for kind in ("fresh", "strided", *x_sized(op)):
        inputs = put(torch_arrays, {k: np.copy(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()})
        out = inputs.get(kind, torch.full((*geometry.shape, 3), torch.nan)[..., 1])
        out = torch.full(geometry.shape, torch.nan) if kind == "fresh" else out
        version = out._version
        got = op(normnumba, {**inputs, "out": out})
        assert got[0] is out
        assert out._version > version, "autograd would not notice"
        assert_identical(got_back(torch_arrays, got), expected, f"out={kind}")


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 5), (0, 5, 2)])
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("masked", [False, True])
def test_masks_and_running_statistics(shape, axis, masked, arrays, rng):
    x = (rng.standard_normal(shape) * 2 + 1).astype(np.float32)
    dy = rng.standard_normal(shape).astype(np.float32)
    channels, kept = shape[axis], [n for a, n in enumerate(shape) if a != axis % len(shape)]
    mask = {"mask": rng.random([*kept[:-1], 1]) < 0.7} if masked else {}
    for value in mask.values():
        value[:2] = True
    options, more = {"channel_axis": axis}, put(arrays, mask)
    immutable = isinstance(arrays, pretend.Jax)
    running = {} if immutable else {k: np.ones(channels, np.float16) for k in ("running_mean", "running_var")}
    theirs = put(arrays, {k: v.copy() for k, v in running.items()})
    expected = normnumba.batch_norm_forward(x, **options, **mask, **running)
    got = normnumba.batch_norm_forward(arrays.put(x), **options, **more, **theirs)
    assert_identical(got_back(arrays, got), expected)
    assert_identical([arrays.get(r) for r in theirs.values()], list(running.values()))
    for residual, activation in ((None, None), (dy[::-1].copy(), "silu")):
        tail = {**options, "residual": residual, "activation": activation}
        expected_gradients = normnumba.batch_norm_backward(dy, x, *expected[1:], **tail, **mask)
        tensors = [arrays.put(a) for a in (dy, x, *expected[1:])]
        gradients = normnumba.batch_norm_backward(*tensors, **put(arrays, tail), **more)
        assert_identical(got_back(arrays, gradients), expected_gradients)
    moments = normnumba.batch_moments(arrays.put(x), **options, **more)
    assert_identical(got_back(arrays, moments), normnumba.batch_moments(x, **options, **mask))


@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm_forward"])
def test_weight_offset(name, arrays, rng):
    x, weight = rng.standard_normal((4, 7)).astype(np.float32), rng.standard_normal(7)
    more = {"residual": x} if name.startswith("add") else {}
    results = getattr(normnumba, name)(x, weight=weight, weight_offset=1.0, **more)
    theirs = {k: arrays.put(v) for k, v in more.items()}
    got = getattr(normnumba, name)(arrays.put(x), weight=arrays.put(weight), weight_offset=1.0, **theirs)
    pairs = zip(results, got, strict=True) if isinstance(got, tuple) else [(results, got)]
    for expected, a in pairs:
        assert_identical([arrays.get(a)], [expected])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_what_can_be_used_as_it_is_is_not_copied(op, dtype, arrays, monkeypatch, rng):
    if op.function.startswith("batch_norm_") and op.direction in ("backward", "moments"):
        pytest.skip("has float64 sums, and other types in its results")
    where = Geometry((3, 40), -1) if op.family in ("layer_norm", "rms_norm") else Geometry((3, 5, 7, 33), 1)
    arguments = put(arrays, arguments_of(op, where, dtype, rng))
    monkeypatch.setattr(sys.modules["normnumba.kernels.cuda.copying"], "convert", None)
    op(normnumba, arguments)


def test_dx_and_dresidual_are_one(torch_arrays, rng):
    op = BY_NAME["add_layer_norm_backward"]
    dx, dresidual, *_ = op(normnumba, put(torch_arrays, arguments_of(op, SMALL["layer_norm"][0], "float32", rng)))
    assert dx is dresidual


def test_calls_wait_for_jax(monkeypatch):
    kind = make("jax", monkeypatch)
    normnumba.layer_norm(kind.put(np.ones((2, 3), np.float32)))
    assert kind.waits == 1
    with pytest.raises(ValueError, match="axis"):
        normnumba.layer_norm(kind.put(np.ones((2, 3), np.float32)), axis=5)
    assert kind.waits == 2


def test_arrays_for_jax_are_in_c_order(monkeypatch):
    make("jax", monkeypatch)
    from normnumba.device.jax import JaxPlace

    assert JaxPlace(0, 0).empty((2, 3), (4, 8), np.dtype(np.float32)).strides == (12, 4)


def test_a_stream_other_than_that_of_x_is_waited_for(monkeypatch):
    make("interface", monkeypatch)
    from normnumba.device import numba

    waited = []
    monkeypatch.setattr(numba, "_synchronize", lambda *at: waited.append(at))
    x, weight = np.ones((2, 3), np.float32), np.ones(3, np.float32)
    normnumba.layer_norm(pretend.OnDevice(x, stream=7), pretend.OnDevice(weight, stream=7))
    assert waited == [(7, 0)], "an unknown library's call ends when the work is done"
    waited.clear()
    normnumba.layer_norm(pretend.OnDevice(x), pretend.OnDevice(weight, stream=9), pretend.OnDevice(weight, stream=1))
    assert waited == [(9, 0), (0, 0)]


def test_one_array_under_several_names(torch_arrays):
    x = torch_arrays.torch.arange(6.0).reshape(2, 3)
    expected = normnumba.add_layer_norm_forward(x.clone(), x.clone())
    y, summed, _, _ = normnumba.add_layer_norm_forward(x, x, out=x)
    assert y is x
    assert (y == expected[0]).all()
    assert (summed == expected[1]).all()


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_mixed_homes(op, arrays, rng):
    arguments = arguments_of(op, SMALL[op.family][1], "float32", rng)
    names = [k for k, v in arguments.items() if isinstance(v, np.ndarray)]
    for name in names if len(names) > 1 else ():
        for mixed in (
            {**arguments, name: arrays.put(arguments[name])},
            {**put(arrays, arguments), name: arguments[name]},
        ):
            with pytest.raises(TypeError, match="host and device arrays together"):
                op(normnumba, mixed)


def test_two_devices(monkeypatch):
    make("interface", monkeypatch)
    x, weight = (pretend.OnDevice(np.ones(3, np.float32)) for _ in range(2))
    there = weight.memory.ctypes.data
    monkeypatch.setattr("normnumba.device.numba._owning_device", lambda address: int(address == there))
    with pytest.raises(ValueError, match="x is on 0, weight on 1"):
        normnumba.layer_norm(x, weight)


def test_two_libraries(monkeypatch, torch_arrays):
    other = make("interface", monkeypatch)
    ones = np.ones(3, np.float32)
    with pytest.raises(TypeError, match=r"one library.*torch\.Tensor.*OnDevice"):
        normnumba.layer_norm(torch_arrays.put(ones), other.put(ones))


def test_gradients_that_torch_would_want(torch_arrays):
    torch = torch_arrays.torch
    x, weight = torch.ones(2, 3), torch.nn.Parameter(torch.ones(3))
    with pytest.raises(TypeError, match=r"weight requires a gradient.*weight\.detach\(\)"):
        normnumba.layer_norm(x, weight)
    expected = normnumba.layer_norm(x, weight.detach())
    with torch.no_grad():
        assert torch.equal(normnumba.layer_norm(x, weight), expected)


@pytest.mark.parametrize("name", ["out", "running_mean", "running_var"])
def test_arrays_of_jax_are_not_written(name, monkeypatch):
    kind = make("jax", monkeypatch)
    x = kind.put(np.ones((2, 3), np.float32))
    given = {name: x if name == "out" else kind.put(np.ones(3, np.float32))}
    with pytest.raises(TypeError, match=f"{name} would be written to, but arrays of JAX are immutable"):
        normnumba.batch_norm(x, **given)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool"])
@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_dtypes(op, dtype, torch_arrays, rng):
    arguments = arguments_of(op, SMALL[op.family][1], "float32", rng)
    for name in x_sized(op):
        arguments[name] = np.ones(arguments[name].shape, dtype)
    with pytest.raises(TypeError, match=f"must have one of the dtypes .*{dtype}"):
        op(normnumba, put(torch_arrays, arguments))


@pytest.mark.parametrize("op", [op for op in OPS if takes_out(op)], ids=name_of)
def test_out_that_overlaps(op, arrays, rng):
    if isinstance(arrays, pretend.Jax):
        pytest.skip("is never written to")
    arguments = arguments_of(op, SMALL[op.family][1], "float32", rng)
    name, shape, size = x_sized(op)[0], data_of(arguments).shape, data_of(arguments).size
    raw = np.zeros(2 * size, np.float32)
    arguments[name], out = raw[1 : 1 + size].reshape(shape), raw[:size].reshape(shape)
    with pytest.raises(ValueError, match="out shares memory"):
        op(normnumba, {**put(arrays, arguments), "out": arrays.put(out)})
    with pytest.raises(ValueError, match="out must have x's shape"):
        op(normnumba, {**put(arrays, arguments), "out": arrays.put(raw)})
    read_only = raw[size:].reshape(shape)
    read_only.flags.writeable = False
    if isinstance(arrays, pretend.Interface):
        with pytest.raises(ValueError, match="read-only"):
            op(normnumba, {**put(arrays, arguments), "out": arrays.put(read_only)})


def test_running_statistics_that_overlap(torch_arrays):
    one, x = torch_arrays.torch.ones(3), torch_arrays.torch.ones(4, 3)
    for given in ({"running_mean": one, "weight": one}, {"running_var": x[1]}):
        with pytest.raises(ValueError, match="shares memory"):
            normnumba.batch_norm(x, **given)


def test_masks_of_the_interface(monkeypatch):
    make("interface", monkeypatch)
    with pytest.raises(TypeError, match="x has a mask"):
        normnumba.layer_norm(pretend.OnDevice(np.ones(3, np.float32), mask=np.ones(3)))


def test_fold_and_layers_are_for_the_host(torch_arrays):
    one = torch_arrays.torch.ones(3)
    with pytest.raises(TypeError, match=r"numpy\.ndarray alone.*torch\.Tensor.*host"):
        normnumba.fold_batch_norm(torch_arrays.torch.ones(3, 3), one, one, one)
    with pytest.raises(TypeError, match=r"numpy\.ndarray, got torch\.Tensor"):
        normnumba.layers.LayerNorm(3)(one)


def test_a_cuda_that_cannot_be_used(monkeypatch, torch_arrays):
    monkeypatch.setattr(availability, "why_not", lambda: "the moon is in the way")
    assert normnumba.backends()["cuda"] == "the moon is in the way"
    with pytest.raises(RuntimeError, match="the CUDA backend cannot be used: the moon is in the way"):
        normnumba.layer_norm(torch_arrays.torch.ones(3))


# --- availability ----------------------------------------------------------------------------------------------------


def cuda(available=True, error=None, devices=((9, 0),), implementation="NVIDIA"):
    gpus = [types.SimpleNamespace(compute_capability=capability) for capability in devices]
    return types.SimpleNamespace(
        is_available=lambda: available, cuda_error=lambda: error, gpus=gpus, implementation=implementation
    )


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (types.SimpleNamespace(), r"numba's own.*normnumba\[cuda\]"),
        (cuda(available=False, error="no libcuda\nfound"), "no working CUDA driver: no libcuda found"),
        (cuda(available=False), "NVVM"),
        (cuda(devices=()), "no device"),
        (cuda(devices=((6, 1), (7, 5))), r"capability 7\.5, and 8\.0 is needed"),
    ],
)
def test_why_cuda_cannot_be_used(module, words):

    assert re.search(words, availability._why_no_device(module))


def test_why_cuda_can_be_used():
    assert availability._why_no_device(cuda()) is None


def test_numba_cuda_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install "normnumba[cuda]"' in availability.why_not.__wrapped__()


def test_importing_imports_no_library_of_devices():
    found = run_python(
        "import sys, numpy, normnumba; normnumba.layer_norm(numpy.ones((2, 3), 'f'))\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'jax', 'cupy', 'cuda', 'numba_cuda')"
        " or m.startswith('numba.cuda')])"
    )
    assert found.strip() == "[]"


# --- the public functions themselves ---------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_signatures_are_those_of_the_functions(op):
    function = getattr(normnumba, op.function)
    inside = function.__wrapped__
    assert inspect.signature(function) == inspect.signature(inside)
    assert (function.__doc__, function.__name__, function.__module__) == (
        inside.__doc__,
        inside.__name__,
        inside.__module__,
    )
    assert (function.__defaults__, function.__kwdefaults__) == (inside.__defaults__, inside.__kwdefaults__)
    assert function.__code__.co_varnames[: len(parameters_of(op))] == tuple(parameters_of(op))


def test_every_public_function_goes_everywhere():
    for name in normnumba.__all__:
        value = getattr(normnumba, name)
        if inspect.isfunction(value) and "_norm" in name and not name.startswith("fold"):
            assert hasattr(value, "__wrapped__"), name


# --- DeviceArray -----------------------------------------------------------------------------------------------------


def shown(a):
    """A device array at the address of an ndarray."""
    return DeviceArray(a.ctypes.data, a.shape, a.strides, a.dtype, a, Memory(0, 0))


class Memory(Place):
    __slots__ = ()

    def allocate(self, nbytes):
        memory = np.empty(nbytes, np.uint8)
        return memory.ctypes.data, memory


def layouts(a):
    return [a, a.T, a[::2], a[:, 1:], a[::-1], a[:, :1], np.broadcast_to(a[:1], a.shape), a[:0], a[:, None]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_device_arrays_are_like_ndarrays(dtype, monkeypatch, rng):
    pretend.install(monkeypatch)
    a = rng.standard_normal((4, 6)).astype(getattr(ml_dtypes, dtype, dtype))
    for x in layouts(a):
        d = shown(x)
        assert (d.ndim, d.size, d.nbytes) == (x.ndim, x.size, x.nbytes)
        for flag in ("c_contiguous", "f_contiguous", "aligned", "forc"):
            assert getattr(d.flags, flag) == getattr(x.flags, flag), (flag, x.shape, x.strides)
        like, expected = d.empty_like(np.float64), np.empty_like(x, np.float64)
        assert not x.size or like.strides == expected.strides or 1 in x.shape
        for got, wanted in (
            (d.reshape(-1), x.reshape(-1)),
            (d.reshape(1, x.size), x.reshape(1, -1)),
            (d.transpose((*range(1, x.ndim), 0)), x.transpose((*range(1, x.ndim), 0))),
            (d.astype(np.float64), x.astype(np.float64)),
            (d.copy(), x.copy()),
            (d[:1], x[:1]),
            (d[1:3], x[1:3]),
            (d[...], x),
            *([(d[-1], x[-1])] if x.size else []),
            (d.broadcast_to((2, *x.shape)), np.broadcast_to(x, (2, *x.shape))),
        ):
            np.testing.assert_array_equal(pretend.seen(got), wanted)


def test_overlap_of_device_arrays(rng):
    a = np.zeros((4, 6), np.float32)
    views = [*layouts(a), a[1:2], a[2:], np.zeros_like(a), a[1:, ::2], a[1:, 1::2]]
    for x in views:
        for y in views:
            assert shares_memory(shown(x), shown(y)) == np.shares_memory(x, y), (x.strides, y.strides)
            assert may_share_memory(shown(x), shown(y)) == np.may_share_memory(x, y), (x.strides, y.strides)
        assert not shares_memory(shown(x), x)
        assert not may_share_memory(x, shown(x))


def test_assigning_to_device_arrays(monkeypatch):
    pretend.install(monkeypatch)
    a, b = np.zeros((3, 4)), np.arange(4, dtype=np.float32)
    shown(a)[...] = 2
    assert (a == 2).all()
    shown(a)[1] = shown(b)
    assert a.tolist() == [[2] * 4, [0, 1, 2, 3], [2] * 4]
    shown(a)[:] = shown(b)
    assert a.tolist() == [[0, 1, 2, 3]] * 3
    with pytest.raises(ValueError, match=r"cannot reshape .*\(3, 4\)"):
        shown(a).reshape(5, 2)
    with pytest.raises(ValueError, match="another size"):
        shown(a).view(np.float32)
    with pytest.raises(IndexError):
        shown(a)[3]
