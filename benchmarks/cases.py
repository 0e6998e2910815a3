"""The table: one row per public op, and the shapes each family is tested and timed on.

Tests, benchmarks and reports all iterate `OPS`. A row names a public function, which exists under the same name in
`normnumba` and in `normnumba.reference`, builds arguments for it, and says what the fastest possible run must move.
Peers know a row by the same name, each in a module of its own. Rows with a "+" in their name are the same function
fused with what the "+" says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from normnumba import reference

Shape = tuple[int, ...]
Arguments = dict[str, Any]

DTYPES = ("float32", "float64", "float16", "bfloat16")
"""Names of the dtypes every op takes, the default of every benchmark first."""


def dtype_of(name: str) -> np.dtype:
    """The NumPy dtype of a name in `DTYPES` (bfloat16 comes from ml_dtypes)."""
    return np.dtype(getattr(ml_dtypes, name, name))


def accumulator(dtype: np.dtype) -> np.dtype:
    """The dtype of statistics and parameters for data of `dtype`."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


@dataclass(frozen=True)
class Geometry:
    """A shape and the axes an op works on: those normalized over, or the one that holds the channels."""

    shape: Shape
    axis: int | tuple[int, ...]

    def __str__(self) -> str:
        axis = ",".join(map(str, np.atleast_1d(self.axis)))
        return "x".join(map(str, self.shape)) + f"@{axis}"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes as non-negative ints, in order."""
        return tuple(sorted(a % len(self.shape) for a in np.atleast_1d(self.axis)))


Builder = Callable[[Geometry, np.dtype, np.random.Generator], Arguments]


@dataclass(frozen=True)
class Op:
    """A row of the table."""

    name: str
    """The public function's name, in normnumba and in normnumba.reference; then "+" and what is fused with it."""
    family: str
    direction: str
    """forward, backward, inference or moments: which benchmark class times it."""
    outputs: tuple[str, ...]
    """What it returns, in order."""
    arguments: Builder
    """Keyword arguments for both implementations."""
    transfers: int
    """How many times x's bytes must cross the memory bus, reads and writes together, while what shares statistics
    fits a private cache."""
    extra_transfers: int
    """How many more where it does not fit."""
    fused: bool = False
    """Whether it is made of ops with rows of their own, and timed on few shapes for that reason."""

    @property
    def function(self) -> str:
        return self.name.partition("+")[0]

    @property
    def shapes(self) -> tuple[Geometry, ...]:
        """What it is timed on, and verified on, in every run."""
        return (FUSED_SHAPES if self.fused else SHAPES)[self.family]

    @property
    def more_shapes(self) -> tuple[Geometry, ...]:
        """What it is timed on besides, in runs that ask for it."""
        return () if self.fused else MORE_SHAPES.get(self.family, ())

    @property
    def device_shapes(self) -> tuple[Geometry, ...]:
        """What it is timed on where x is on a CUDA device: all of them for a family's own forward and backward."""
        shapes = DEVICE_SHAPES[self.family]
        return shapes if self.name in (f"{self.family}_forward", f"{self.family}_backward") else shapes[:2]

    def __call__(self, library: ModuleType, arguments: Arguments) -> tuple[Any, ...]:
        """Run the op as `library` (normnumba or its reference) has it; always a tuple, one entry per output."""
        result = getattr(library, self.function)(**arguments)
        return result if isinstance(result, tuple) else (result,)

    def bytes_moved(self, geometry: Geometry, dtype: np.dtype, private_cache: int = 1 << 20) -> int:
        """The bytes that the op cannot avoid moving on a machine whose cores have `private_cache` bytes each."""
        unit = unit_size(self.family, geometry) * dtype.itemsize
        passes = self.transfers + (self.extra_transfers if unit > private_cache else 0)
        return passes * geometry.size * dtype.itemsize


X_SIZED = frozenset({"x", "residual", "dy", "dsummed", "summed", "y", "dx", "dresidual"})
"""The names of arguments and outputs that have x's shape and dtype; the others are parameters and statistics."""


def data_of(arguments: Arguments) -> np.ndarray:
    """The input that an op's large outputs are like: x, or the sum that it went into."""
    return arguments["x"] if "x" in arguments else arguments["summed"]


LINE_ELEMENTS = 16
"""float32 elements in a cache line."""


def unit_size(family: str, geometry: Geometry) -> int:
    """How many elements share one mean: what a core would like to keep in its private cache between two passes.

    Channels-last data cannot be taken a channel at a time, so there the unit is the whole array; nor a group at a time
    where several share a cache line, and there it is a sample.
    """
    if family in ("layer_norm", "rms_norm"):
        return math.prod(geometry.shape[a] for a in geometry.axes)
    (channel,) = geometry.axes
    inner = math.prod(geometry.shape[channel + 1 :])
    if family in ("group_norm", "instance_norm"):
        groups = _groups(geometry) if family == "group_norm" else geometry.shape[channel]
        shared = inner == 1 and geometry.shape[channel] < LINE_ELEMENTS * groups
        return geometry.size // max(geometry.shape[0] * (1 if shared else groups), 1)
    return geometry.size if inner == 1 else geometry.size // max(geometry.shape[channel], 1)


# --- arguments -------------------------------------------------------------------------------------------------------


def _normal(
    rng: np.random.Generator, shape: Shape, dtype: np.dtype, scale: float = 1.0, shift: float = 0.0
) -> np.ndarray:
    draws = rng.standard_normal(shape, dtype=np.float32)
    return (draws * np.float32(scale) + np.float32(shift)).astype(dtype)


def _affine(rng: np.random.Generator, shape: Shape, dtype: np.dtype) -> Arguments:
    kind = accumulator(dtype)
    return {"weight": _normal(rng, shape, kind, 0.5, 1.0), "bias": _normal(rng, shape, kind)}


def _layer_forward(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
    normalized = tuple(g.shape[a] for a in g.axes)
    return {"x": _normal(rng, g.shape, dtype, 2.0, 0.5), **_affine(rng, normalized, dtype), "axis": g.axis}


def _layer_backward(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
    forward = _layer_forward(g, dtype, rng)
    _, mean, rstd = reference.layer_norm_forward(**forward)
    kind = accumulator(dtype)
    return {"dy": _normal(rng, g.shape, dtype), "mean": mean.astype(kind), "rstd": rstd.astype(kind), **forward}


def _rms_forward(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
    forward = _layer_forward(g, dtype, rng)
    return {k: forward[k] for k in ("x", "weight", "axis")}


def _rms_backward(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
    forward = _rms_forward(g, dtype, rng)
    _, rstd = reference.rms_norm_forward(**forward)
    return {"dy": _normal(rng, g.shape, dtype), "rstd": rstd.astype(accumulator(dtype)), **forward}


def _with_residual(build: Builder) -> Builder:
    """The arguments of `build`, and a residual."""
    return lambda g, dtype, rng: {**build(g, dtype, rng), "residual": _normal(rng, g.shape, dtype)}


def _add_backward(build: Builder, forward: str) -> Builder:
    """The arguments for the gradients of `forward`, which takes what `build` makes and a residual."""

    def arguments(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
        given = _with_residual(build)(g, dtype, rng)
        _, summed, *statistics = getattr(reference, forward)(**given)
        names = ("mean", "rstd")[-len(statistics) :]
        return {
            **{name: _normal(rng, g.shape, dtype) for name in ("dy", "dsummed")},
            "summed": summed.astype(dtype),
            **{name: a.astype(accumulator(dtype)) for name, a in zip(names, statistics, strict=True)},
            **{k: v for k, v in given.items() if k not in ("x", "residual")},
        }

    return arguments


def _batch_forward(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
    channels = (g.shape[g.axes[0]],)
    return {"x": _normal(rng, g.shape, dtype, 2.0, 0.5), **_affine(rng, channels, dtype), "channel_axis": g.axis}


def _batch_backward(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
    forward = _batch_forward(g, dtype, rng)
    _, mean, rstd = reference.batch_norm_forward(**forward)
    kind = accumulator(dtype)
    return {"dy": _normal(rng, g.shape, dtype), "mean": mean.astype(kind), "rstd": rstd.astype(kind), **forward}


def _batch_inference(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
    forward = _batch_forward(g, dtype, rng)
    channels, kind = (g.shape[g.axes[0]],), accumulator(dtype)
    return {
        "mean": _normal(rng, channels, kind),
        "var": np.abs(_normal(rng, channels, kind)) + kind.type(0.5),
        **forward,
    }


def _batch_inference_backward(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
    return {"dy": _normal(rng, g.shape, dtype), **_batch_inference(g, dtype, rng)}


def _moments(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
    return {"x": _normal(rng, g.shape, dtype, 2.0, 0.5), "channel_axis": g.axis}


def _backward_sums(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
    backward = _batch_backward(g, dtype, rng)
    return {k: backward[k] for k in ("dy", "x", "mean", "rstd", "channel_axis")}


def _backward_apply(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
    sums = _backward_sums(g, dtype, rng)
    sum_dy, sum_dy_xhat = reference.batch_norm_backward_sums(**sums)
    count = g.size // max(g.shape[g.axes[0]], 1)
    weight = _affine(rng, sum_dy.shape, dtype)["weight"]
    return {**sums, "weight": weight, "sum_dy": sum_dy, "sum_dy_xhat": sum_dy_xhat, "count": count}


def _groups(g: Geometry) -> int:
    """32 groups as in most networks, or as many as that number and the channels have in common."""
    return math.gcd(32, g.shape[g.axes[0]])


def _group_forward(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
    return {**_batch_forward(g, dtype, rng), "num_groups": _groups(g)}


def _group_backward(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
    forward = _group_forward(g, dtype, rng)
    _, mean, rstd = reference.group_norm_forward(**forward)
    kind = accumulator(dtype)
    return {"dy": _normal(rng, g.shape, dtype), "mean": mean.astype(kind), "rstd": rstd.astype(kind), **forward}


def _instance_backward(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
    forward = _batch_forward(g, dtype, rng)
    _, mean, rstd = reference.instance_norm_forward(**forward)
    kind = accumulator(dtype)
    return {"dy": _normal(rng, g.shape, dtype), "mean": mean.astype(kind), "rstd": rstd.astype(kind), **forward}


def _followed(plain: Op, activation: str, residual: bool) -> Builder:
    """The arguments of a row with an activation, and a residual added before it."""
    build = _with_residual(plain.arguments) if residual else plain.arguments

    def arguments(g: Geometry, dtype: np.dtype, rng: np.random.Generator) -> Arguments:
        given = build(g, dtype, rng)
        if "dy" in given and activation == "relu":
            # A rounding can take z across the kink, where the gradient is dy on one side and 0 on the other.
            forward = {k: v for k, v in given.items() if k not in ("dy", "mean", "rstd", "residual")}
            z = getattr(reference, plain.family)(**forward) + given.get("residual", 0)
            given["dy"][np.abs(z) < 1e-3] = 0
        return given | {"activation": activation}

    return arguments


# --- the rows --------------------------------------------------------------------------------------------------------

GRADIENTS = ("dx", "dweight", "dbias")

OPS = (
    Op("layer_norm_forward", "layer_norm", "forward", ("y", "mean", "rstd"), _layer_forward, 2, 1),
    Op("layer_norm_backward", "layer_norm", "backward", GRADIENTS, _layer_backward, 3, 2),
    Op("rms_norm_forward", "rms_norm", "forward", ("y", "rstd"), _rms_forward, 2, 1),
    Op("rms_norm_backward", "rms_norm", "backward", ("dx", "dweight"), _rms_backward, 3, 2),
    Op("batch_norm_forward", "batch_norm", "forward", ("y", "mean", "rstd"), _batch_forward, 2, 1),
    Op(
        "batch_norm_backward",
        "batch_norm",
        "backward",
        (*GRADIENTS, "dresidual"),
        _batch_backward,
        3,
        2,
    ),
    Op("batch_norm_inference", "batch_norm", "inference", ("y",), _batch_inference, 2, 0),
    Op(
        "batch_norm_inference_backward",
        "batch_norm",
        "backward",
        (*GRADIENTS, "dresidual"),
        _batch_inference_backward,
        3,
        0,
    ),
    Op("group_norm_forward", "group_norm", "forward", ("y", "mean", "rstd"), _group_forward, 2, 1),
    Op("group_norm_backward", "group_norm", "backward", GRADIENTS, _group_backward, 3, 2),
    Op(
        "instance_norm_forward",
        "instance_norm",
        "forward",
        ("y", "mean", "rstd"),
        _batch_forward,
        2,
        1,
    ),
    Op(
        "instance_norm_backward",
        "instance_norm",
        "backward",
        GRADIENTS,
        _instance_backward,
        3,
        2,
    ),
    Op("batch_moments", "batch_norm", "moments", ("count", "mean", "var"), _moments, 1, 0),
    Op("batch_norm_backward_sums", "batch_norm", "moments", ("sum_dy", "sum_dy_xhat"), _backward_sums, 2, 0),
    Op("batch_norm_backward_apply", "batch_norm", "backward", ("dx",), _backward_apply, 3, 0),
    Op(
        "add_layer_norm_forward",
        "layer_norm",
        "forward",
        ("y", "summed", "mean", "rstd"),
        _with_residual(_layer_forward),
        4,
        1,
        fused=True,
    ),
    Op(
        "add_layer_norm_backward",
        "layer_norm",
        "backward",
        ("dx", "dresidual", "dweight", "dbias"),
        _add_backward(_layer_forward, "add_layer_norm_forward"),
        4,
        2,
        fused=True,
    ),
    Op(
        "add_rms_norm_forward",
        "rms_norm",
        "forward",
        ("y", "summed", "rstd"),
        _with_residual(_rms_forward),
        4,
        1,
        fused=True,
    ),
    Op(
        "add_rms_norm_backward",
        "rms_norm",
        "backward",
        ("dx", "dresidual", "dweight"),
        _add_backward(_rms_forward, "add_rms_norm_forward"),
        4,
        2,
        fused=True,
    ),
)


def _fused(name: str) -> Op:
    """The row of the function that `name` begins with, and of the activation that it ends with."""
    plain = next(op for op in OPS if op.name == name.partition("+")[0])
    *_, activation = name.split("+")
    residual = "+residual+" in name
    written = residual and plain.direction == "backward"
    return replace(
        plain,
        name=name,
        arguments=_followed(plain, activation, residual),
        transfers=plain.transfers + residual + written,
        extra_transfers=plain.extra_transfers + written,  # by then, a backward has to read the residual twice
        fused=True,
    )


OPS += tuple(
    map(
        _fused,
        (
            "batch_norm_forward+relu",
            "batch_norm_backward+relu",
            "batch_norm_forward+residual+relu",
            "batch_norm_backward+residual+relu",
            "batch_norm_inference+silu",
            "group_norm_forward+silu",
            "group_norm_backward+silu",
            "group_norm_forward+gelu",
        ),
    )
)

SHAPES = {
    "layer_norm": (
        Geometry((1, 768), -1),
        Geometry((32, 768), -1),
        Geometry((512, 1024), -1),
        Geometry((8192, 768), -1),
        Geometry((65536, 128), -1),
        Geometry((64, 65536), -1),
        Geometry((8, 96, 56, 56), 1),
    ),
    "batch_norm": (
        Geometry((8, 16), 1),
        Geometry((4096, 256), 1),
        Geometry((32, 64, 28, 28), 1),
        Geometry((32, 28, 28, 64), -1),
        Geometry((32, 256, 56, 56), 1),
        Geometry((32, 56, 56, 256), -1),
    ),
}
SHAPES["group_norm"] = (
    Geometry((1, 32, 4, 4), 1),
    Geometry((8, 64, 32, 32), 1),
    Geometry((8, 32, 32, 64), -1),
    Geometry((2, 320, 96, 96), 1),
    Geometry((2, 96, 96, 320), -1),
)
SHAPES["instance_norm"] = (Geometry((8, 64, 32, 32), 1), Geometry((8, 32, 32, 64), -1), Geometry((8, 64, 128, 128), 1))
SHAPES["rms_norm"] = SHAPES["layer_norm"]
"""What each family is timed on in every run, from calls that fit a cache to arrays that do not."""

MORE_SHAPES = {
    "layer_norm": (
        Geometry((1, 64), -1),
        Geometry((4, 4096), -1),
        Geometry((4096, 1023), -1),
        Geometry((16, 1 << 20), -1),
    ),
    "batch_norm": (
        Geometry((2, 8, 7, 7), 1),
        Geometry((262144, 3), 1),
        Geometry((512, 4096), 1),
        Geometry((16384, 64), 1),
    ),
    "group_norm": (Geometry((1, 128, 768, 768), 1),),
}
MORE_SHAPES["rms_norm"] = MORE_SHAPES["layer_norm"]
"""What --full adds: the smallest calls, odd widths, few or many channels, units that no private cache holds."""

FUSED_SHAPES = {
    "layer_norm": (Geometry((32, 768), -1), Geometry((512, 1024), -1), Geometry((8192, 768), -1)),
    "batch_norm": (Geometry((32, 64, 28, 28), 1), Geometry((32, 28, 28, 64), -1), Geometry((32, 256, 56, 56), 1)),
    "group_norm": (Geometry((8, 64, 32, 32), 1), Geometry((8, 32, 32, 64), -1), Geometry((2, 320, 96, 96), 1)),
}
FUSED_SHAPES["rms_norm"] = FUSED_SHAPES["layer_norm"]
"""The same for rows that are `fused`."""

DEVICE_DTYPES = ("bfloat16", "float32", "float16")
"""What is timed on a CUDA device, the default first. Few of these devices are made for float64."""

DEVICE_SHAPES = {
    # Those that NVIDIA publishes the bandwidth of: see benchmarks/published.py.
    "layer_norm": (
        Geometry((16384, 4096), -1),
        Geometry((1024, 12288), -1),
        Geometry((8192, 128), -1),
        Geometry((4096, 16384), -1),
        Geometry((2048, 4096), -1),
        Geometry((131072, 128), -1),
        Geometry((8192, 8192), -1),
    ),
    # ResNet-50 with 64 images.
    "batch_norm": (
        Geometry((64, 256, 56, 56), 1),
        Geometry((64, 56, 56, 256), -1),
        Geometry((64, 2048, 7, 7), 1),
        Geometry((64, 7, 7, 2048), -1),
        Geometry((64, 64, 112, 112), 1),
        Geometry((64, 112, 112, 64), -1),
        Geometry((64, 512, 28, 28), 1),
        Geometry((64, 28, 28, 512), -1),
        Geometry((64, 1024, 14, 14), 1),
        Geometry((64, 14, 14, 1024), -1),
    ),
    # Stable Diffusion.
    "group_norm": (Geometry((2, 320, 96, 96), 1), Geometry((2, 96, 96, 320), -1)),
    "instance_norm": (Geometry((8, 64, 128, 128), 1),),
}
DEVICE_SHAPES["rms_norm"] = DEVICE_SHAPES["layer_norm"]
"""What each family is timed on where x is on a CUDA device, the most telling first."""

SMALL_ON_DEVICE = {
    "layer_norm": (Geometry((67, 1023), -1), Geometry((33, 1024), -1), Geometry((4, 6, 10), (0, 2))),
    "batch_norm": (Geometry((3, 5, 7, 33), 1), Geometry((3, 64, 8, 8), 1), Geometry((3, 8, 8, 64), -1)),
}
SMALL_ON_DEVICE["group_norm"] = SMALL_ON_DEVICE["instance_norm"] = SMALL_ON_DEVICE["batch_norm"]
SMALL_ON_DEVICE["rms_norm"] = SMALL_ON_DEVICE["layer_norm"]
"""One for each way through the kernels for devices: what a sanitizer can watch in a minute."""

RAGGED = {
    "layer_norm": (
        Geometry((7,), 0),
        Geometry((1, 1), -1),
        Geometry((5, 1), -1),
        Geometry((3, 7), -1),
        Geometry((67, 1023), -1),
        Geometry((2, 65537), -1),
        Geometry((300, 33), 1),
        Geometry((4, 6, 10), (1, 2)),
        Geometry((4, 6, 10), 1),
        Geometry((4, 6, 10), (0, 2)),
        Geometry((2, 3, 4, 5, 6), (-2, -1)),
        Geometry((2, 3, 4, 5, 6), 0),
        Geometry((300, 33), 0),
        Geometry((3, 37, 7, 9), 1),
        Geometry((2, 3, 5, 4, 6), (1, 2)),
    ),
    "batch_norm": (
        Geometry((2, 1), 1),
        Geometry((7, 3), 1),
        Geometry((1023, 5), 1),
        Geometry((65537, 2), 1),
        Geometry((9, 1023), 1),
        Geometry((5, 3, 7), 1),
        Geometry((3, 2, 5, 7), 1),
        Geometry((3, 5, 7, 33), -1),
        Geometry((2, 3, 65, 67), 1),
        Geometry((1, 1, 257, 259), 1),
        Geometry((4, 3, 2, 3, 5), 2),
        Geometry((6, 10), 0),
    ),
}
RAGGED["group_norm"] = tuple(g for g in RAGGED["batch_norm"] if g.axes != (0,))
RAGGED["instance_norm"] = RAGGED["group_norm"]
RAGGED["rms_norm"] = RAGGED["layer_norm"]
"""Small awkward shapes for tests: one row, one column, odd widths, ranks 1 to 5, reductions that are not trailing."""
