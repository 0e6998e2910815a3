"""Any combination of arguments gives what the reference gives, or a ValueError or TypeError; never anything else."""

import math

import hypothesis.strategies as st
import numpy as np
from hypothesis import event, given, settings

import normnumba
from normnumba import reference
from tests.helpers import BY_NAME, WIDE, assert_matches

EXAMPLES = settings(max_examples=150)

LAYOUTS = ("C", "F", "permuted", "sliced", "reversed")
PARAMETERS = ("none", "float16", "float32", "float64", "int64", "bool", "strided")
OUTS = ("none", "fresh", "x", "dy")


def in_layout(values, layout, order):
    """`values` with other strides; `order` permutes the axes in memory."""
    if layout == "permuted":
        return np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))
    if layout == "sliced":
        wide = np.zeros(tuple(2 * n for n in values.shape), values.dtype)
        view = wide[tuple(slice(n % 2, None, 2) for n in values.shape)]
        view[...] = values
        return view
    if layout == "reversed":
        return np.flip(np.flip(values).copy())
    return np.array(values, order=layout)


def parameter(rng, shape, kind):
    if kind == "none":
        return None
    if kind == "strided":
        return rng.standard_normal((*shape, 2)).astype(np.float32)[..., 1]
    return np.round(rng.standard_normal(shape) * 4).astype(kind)


@st.composite
def arrays(draw):
    """x and dy, of the same shape and dtype, and the generator that filled them."""
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(WIDE))
    order = draw(st.permutations(range(len(shape))))
    x, dy = (
        in_layout(rng.standard_normal(shape).astype(dtype), draw(st.sampled_from(LAYOUTS)), order) for _ in range(2)
    )
    return x, dy, rng


def attempt(op, arguments):
    """The op's result, or None where it refused its arguments with the right kind of error."""
    try:
        return op(normnumba, arguments)
    except (ValueError, TypeError) as error:
        event(f"{op.name}: {type(error).__name__}")
        return None


def forward_and_backward(family, x, dy, affine, axis, eps, out, mask):
    """Run both ways and compare; whether the arguments were accepted."""
    forward, backward = BY_NAME[f"{family}_forward"], BY_NAME[f"{family}_backward"]
    arguments = {"x": x, **affine, **axis, "eps": eps}
    exact = {k: np.copy(v) if k == "x" else v for k, v in arguments.items()}
    extra = {"fresh": {"out": np.empty_like(x)}, "x": {"out": x}}.get(out, {})
    original = x.copy(order="K")
    got = attempt(forward, {**arguments, **extra})
    if got is None:
        return False
    assert_matches(forward, exact, got)
    if "out" in extra:
        assert got[0] is extra["out"]
    x[...] = original

    given = {"dy": dy, "x": x, "mean": got[1], "rstd": got[2], **affine, **axis, "output_mask": mask}
    exact = {k: np.copy(v) if k in ("x", "dy") else v for k, v in given.items()}
    extra = {"fresh": {"out": np.empty_like(x)}, "x": {"out": x}, "dy": {"out": dy}}.get(out, {})
    assert_matches(backward, exact, backward(normnumba, {**given, **extra}))
    return True


@EXAMPLES
@given(
    data=arrays(),
    axis=st.one_of(st.integers(-5, 4), st.lists(st.integers(-5, 4), max_size=3).map(tuple)),
    kinds=st.tuples(*[st.sampled_from(PARAMETERS)] * 2),
    eps=st.sampled_from([1e-5, 1e-2, 1, np.float32(1e-3)]),
    out=st.sampled_from(OUTS),
    mask=st.tuples(*[st.booleans()] * 3),
)
def test_layer_norm(data, axis, kinds, eps, out, mask):
    x, dy, rng = data
    axes = [a % x.ndim for a in np.atleast_1d(np.array(axis, int)) if -x.ndim <= a < x.ndim]
    valid = len(set(axes)) == len(axes) == np.size(axis) > 0
    inside = tuple(x.shape[a] for a in sorted(set(axes)))
    affine = dict(zip(("weight", "bias"), (parameter(rng, inside, kind) for kind in kinds), strict=True))
    assert forward_and_backward("layer_norm", x, dy, affine, {"axis": axis}, eps, out, mask) == valid


@EXAMPLES
@given(
    data=arrays(),
    axis=st.integers(-5, 4),
    kinds=st.tuples(*[st.sampled_from(PARAMETERS)] * 2),
    eps=st.sampled_from([1e-5, 1e-2, 1, np.float32(1e-3)]),
    out=st.sampled_from(OUTS),
    mask=st.tuples(*[st.booleans()] * 4),
)
def test_batch_norm(data, axis, kinds, eps, out, mask):
    x, dy, rng = data
    inside = -x.ndim <= axis < x.ndim
    channels = x.shape[axis] if inside else 3
    count = math.prod(x.shape) // channels if channels else 0
    affine = dict(zip(("weight", "bias"), (parameter(rng, (channels,), kind) for kind in kinds), strict=True))
    accepted = forward_and_backward("batch_norm", x, dy, affine, {"channel_axis": axis}, eps, out, mask)
    assert accepted == (inside and (count != 1 or channels == 0))
    if not inside:
        return
    statistics = {"mean": rng.standard_normal(channels), "var": rng.random(channels) + 0.5}
    for name, more in (("batch_norm_inference", {}), ("batch_norm_inference_backward", {"dy": dy})):
        arguments = {"x": x, **more, **statistics, **affine, "channel_axis": axis, "eps": eps}
        assert_matches(BY_NAME[name], arguments, BY_NAME[name](normnumba, arguments))
    arguments = {"x": x, "channel_axis": axis}
    assert_matches(BY_NAME["batch_moments"], arguments, BY_NAME["batch_moments"](normnumba, arguments))


@EXAMPLES
@given(
    data=arrays(),
    shape=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    kind=st.sampled_from(["float32", "float64", ">f4", "int32", "complex64", "bool", "O"]),
    name=st.sampled_from(["x", "dy", "mean", "rstd", "weight", "bias", "out"]),
)
def test_one_wrong_argument(data, shape, kind, name):
    x, dy, rng = data
    arguments = {"x": x, "dy": dy, "mean": rng.standard_normal(x.shape[:-1]), "rstd": rng.random(x.shape[:-1])}
    arguments |= {"weight": rng.random(x.shape[-1:]), "bias": rng.random(x.shape[-1:]), "out": np.empty_like(x)}
    wrong = np.ones(shape).astype(kind)
    got = attempt(BY_NAME["layer_norm_backward"], {**arguments, name: wrong})
    if got is not None:
        assert wrong.shape == arguments[name].shape
        assert wrong.dtype == x.dtype or name not in ("x", "dy", "out")
        given = {k: v for k, v in {**arguments, name: wrong}.items() if k != "out"}
        expected = reference.layer_norm_backward(**given)
        np.testing.assert_allclose(
            got[0], expected[0], rtol=1e-3, atol=1e-3 * max(1, np.abs(expected[0]).max(initial=0))
        )
