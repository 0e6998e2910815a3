"""How far a kernel may be from the float64 reference: one table, and the function that applies it.

An element passes where

    |actual - expected| <= half an ulp of the dtype that it is stored in
                           + eps * (relative * |expected| + (absolute + growth * sqrt(reduced)) * scale)

eps is that of the accumulator, so that one row of the table serves every dtype. `scale` is the size of what was added
up to make an element, which is not the size of the element where terms cancel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

EPS = {
    "float16": 2.0**-23,  # accumulated in float32: the rounding to float16 is the half ulp
    "bfloat16": 2.0**-23,  # the same
    "float32": 2.0**-23,
    "float64": 2.0**-52,  # the reference itself errs as much, and both are inside the bound
}


@dataclass(frozen=True)
class Tolerance:
    """A row of the table: factors of eps (see the module's formula), and why they are what they are."""

    relative: float
    absolute: float
    growth: float
    reason: str


TABLE = {
    "y": Tolerance(4, 8, 0, "rstd, two products and a sum round once each; sums over blocks add a few eps"),
    "summed": Tolerance(0, 0, 0, "one sum, rounded once, of what is stored: the same bits"),
    "mean": Tolerance(0, 8, 0, "pivot + mean(x - pivot): rounding is that of deviations, never of a large mean"),
    "var": Tolerance(12, 0, 0, "a sum of squares has no cancellation, so its error is relative"),
    "rstd": Tolerance(6, 0, 0, "half of var's relative error, then a square root and a division"),
    "dx": Tolerance(4, 8, 0, "three terms that cancel, each as large as weight * dy * rstd"),
    "dresidual": Tolerance(4, 8, 0, "dy times the slope at a z that errs as y does; before a norm, as dx"),
    "dweight": Tolerance(2, 12, 0.1, "a sum of rows in blocks: its error is a random walk over a block's rows"),
    "dbias": Tolerance(2, 12, 0.1, "as dweight"),
    "sum_dy": Tolerance(2, 12, 0.1, "as dbias"),
    "sum_dy_xhat": Tolerance(2, 12, 0.1, "as dweight"),
    "count": Tolerance(0, 0, 0, "an int"),
}


def natural_scale(name: str, arguments: dict[str, Any], reduced: int = 1) -> float:
    """The size of the terms behind `name`, from the arguments of the op that returned it.

    The default of `assert_close`, the RMS of what is expected, is too strict where that cancels: the dx of two rows or
    of one column, the mean of centred data, the dbias of a single channel.
    """

    def rms(key: str, default: float) -> float:
        value = arguments.get(key)
        return default if value is None else math.sqrt(np.mean(np.asarray(value, dtype=np.float64) ** 2))

    rstd = xhat = 1.0
    if "var" in arguments:
        rstd = 1.0 / math.sqrt(np.min(arguments["var"]) + arguments.get("eps", 1e-5))
        xhat = (rms("x", 0.0) + rms("mean", 0.0)) * rstd
    elif "rstd" in arguments:
        rstd = float(np.max(arguments["rstd"]))

    def dx() -> float:
        return rms("weight", 1.0) * rms("dy", 0.0) * rstd + rms("dsummed", 0.0)

    return {
        "y": lambda: xhat * rms("weight", 1.0) + rms("bias", 0.0) + rms("residual", 0.0),
        "mean": lambda: float(np.std(np.asarray(arguments["x"], dtype=np.float64))),
        "dx": dx,
        "dresidual": lambda: dx() if "summed" in arguments else rms("dy", 0.0),
        "dweight": lambda: xhat * rms("dy", 0.0) * math.sqrt(reduced),
        "dbias": lambda: rms("dy", 0.0) * math.sqrt(reduced),
        "sum_dy": lambda: rms("dy", 0.0) * math.sqrt(reduced),
        "sum_dy_xhat": lambda: rms("dy", 0.0) * math.sqrt(reduced),
    }.get(name, lambda: 0.0)()


def assert_close(
    name: str, actual: Any, expected: Any, dtype: Any, *, reduced: int = 1, scale: Any = None, note: str = ""
) -> None:
    """Check one output of an op on data of `dtype` against the reference.

    `reduced`: how many terms were summed into an element. `scale`: the size of these sums where nothing cancels, a
    number or an array that broadcasts; by default the RMS of `expected`. `note` goes into the message.
    """
    label = f"{name} ({getattr(dtype, 'name', dtype)}{', ' if note else ''}{note})"
    if expected is None or name == "count":
        assert type(actual) is type(expected), f"{label}: {type(actual)} instead of {type(expected)}"
        assert actual == expected, f"{label}: {actual} instead of {expected}"
        return
    actual, expected = np.asarray(actual), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, f"{label}: shape {actual.shape} instead of {expected.shape}"
    if expected.size == 0:
        return
    with np.errstate(over="ignore"):
        stored = expected.astype(actual.dtype).astype(np.float64)  # what does not fit is Inf in both
    values = actual.astype(np.float64)
    finite = np.isfinite(stored)
    wrong = np.where(finite, ~np.isfinite(values), (values != stored) & ~(np.isnan(values) & np.isnan(stored)))
    assert not wrong.any(), f"{label}: {_at(int(np.argmax(wrong)), values, stored)}, NaN and Inf have to match"

    tolerance, info, eps = TABLE[name], ml_dtypes.finfo(actual.dtype), EPS[np.dtype(dtype).name]
    if scale is None:
        scale = np.sqrt(np.mean(stored[finite] ** 2)) if finite.any() else 0.0
    size = np.where(finite, np.abs(expected), 0.0)
    allowed = float(info.eps) / 2 * size + float(info.smallest_subnormal)
    allowed += eps * (tolerance.relative * size + (tolerance.absolute + tolerance.growth * math.sqrt(reduced)) * scale)
    error = np.abs(np.where(finite, values - expected, 0.0))
    outside = error > allowed
    if outside.any():
        worst = int(np.argmax(error / allowed))
        raise AssertionError(
            f"{label}: {_at(worst, values, expected)}, "
            f"error {error.flat[worst]:.3g}, allowed {allowed.flat[worst]:.3g} ({tolerance.reason}); "
            f"{np.count_nonzero(outside)} of {error.size} elements are outside"
        )


def _at(position: int, actual: np.ndarray, expected: np.ndarray) -> str:
    index = tuple(int(i) for i in np.unravel_index(position, actual.shape))
    return f"element {index} is {actual[index]:.9g} instead of {expected[index]:.9g}"
