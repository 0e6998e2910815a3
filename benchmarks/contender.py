"""What a peer hands over for one cell, and whether that computes the same thing as the op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.cases import X_SIZED, Arguments, Op, accumulator, data_of
from benchmarks.measure import Call
from benchmarks.verify import error_of, least_scale

Outputs = tuple[Any, ...]

TOLERANCE = {"float32": 1e-3, "float64": 1e-10, "float16": 1e-2, "bfloat16": 5e-2}
"""How far a peer may be from the float64 reference, on the scale of `verify`. Wide, since this asks whether a peer
computes the same thing, not how well: some sum a million elements one after the other, and ONNX wants the parameters of
halves in halves."""


@dataclass(frozen=True)
class Contender:
    """A call to be timed, and how its result reads."""

    call: Call
    outputs: Callable[[Any], Outputs]
    """The result of `call` as arrays with the shapes of the op's outputs; None for what the peer does not return."""


def disagreement(op: Op, arguments: Arguments, want: Outputs, got: Outputs) -> str | None:
    """Why `got` is not what the op returns, in words; None where it is.

    An array of x's size that is missing, or is of another dtype, would be bytes not moved. Statistics may be missing,
    since some operators keep them to themselves, but must not be rounded to halves.
    """
    dtype = data_of(arguments).dtype
    for name, expected, found in zip(op.outputs, want, got, strict=True):
        if expected is None or (found is None and name not in X_SIZED):
            continue
        if found is None:
            return f"it returns no {name}"
        kind = np.asarray(found).dtype
        if kind != dtype if name in X_SIZED else kind.itemsize < accumulator(dtype).itemsize:
            return f"{name} is {kind}"
        # In eps, as `error_of` has it, no tolerance could be compared between dtypes.
        error = error_of(found, expected, dtype, least_scale(name, arguments, expected))
        error *= float(ml_dtypes.finfo(dtype).eps)
        if error > TOLERANCE[dtype.name]:
            return f"{name} is off by {error:.2g}"
    return None
