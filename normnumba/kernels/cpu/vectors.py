"""What is done with statistics and parameters between kernels: small, and hence plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np


def stacked(first: Any, second: Any) -> Any:
    """Two vectors (n) of any real dtype and stride as a new float64 array (2, n)."""
    result = np.empty((2, first.size))
    result[0], result[1] = first, second
    return result


def shifted(values: Any, offset: float) -> Any:
    """A vector plus a number, in the vector's dtype."""
    return values + values.dtype.type(offset)


def sum_samples(sums: Any, samples: int) -> Any:
    """Sums of each sample, float64 (2, N * C), added up to (2, C)."""
    return sums.reshape(2, samples, -1).sum(axis=1)


def count_positions(counted: Any) -> int:
    """How many elements of a vector are True."""
    return int(np.count_nonzero(counted))


def copy_finite(source: Any, target: Any) -> None:
    """Set a vector to another where that is finite."""
    np.copyto(target, source, where=np.isfinite(source))


def update_running(running: Any, statistic: Any, momentum: float, factor: float) -> None:
    """Average `running` with `statistic` times a factor in place, in float64, and round once."""
    running[...] = (1 - momentum) * running.astype(np.float64) + momentum * (statistic * factor)
