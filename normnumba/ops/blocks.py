"""The parts of batch norm, for batches that are spread over blocks or machines."""

from __future__ import annotations

from ..device.array import empty
from ..dispatch import everywhere, home
from ..kernels import CONSTANT, GIVEN
from ..views import Array, as_channels, integer
from . import plain
from .channels import Given, differentiate_channels, normalize_channels, statistics_of, tail_of
from .checks import EMPTY, FLOAT64, check_like, output
from .masks import differentiate_masked, masked_moments


@everywhere
def batch_moments(x: Array, *, channel_axis: int = 1, mask: Array | None = None) -> tuple[int, Array, Array]:
    """Count, mean and biased variance of each channel, to be merged with those of other blocks or machines.

    Parameters
    ----------
    x : ndarray
        float16, bfloat16, float32 or float64, with the channels on `channel_axis`.
    channel_axis : int
        1 for (N, C, ...), -1 for channels last.
    mask : ndarray of bool, optional
        Broadcasts to x without its channel axis; True counts. On a device the call waits until they are counted.

    Returns
    -------
    count : int
        Values per channel, those that count.
    mean, var : ndarray
        (C,), float64. 0 where the count is 0.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For an axis that x does not have, or a mask that does not fit.

    Notes
    -----
    Blocks a and b merge exactly: with d = mean_b - mean_a and n = n_a + n_b, mean = mean_a + d * n_b / n and
    var = (n_a * var_a + n_b * var_b) / n + d^2 * n_a * n_b / n^2 (Chan, Golub and LeVeque, 1983).
    """
    kernels = home(x, mask)
    view = as_channels(x, channel_axis)
    if mask is not None:
        counted = view.positions(mask)
        mean, var = _pair(masked_moments(kernels, view, x, counted))
        return kernels.count_positions(counted), mean, var
    none = EMPTY[view.number, 1]
    mean, var = _pair(normalize_channels(kernels, view, x, tail_of(view, x), 0.0, None, None, none, none))
    return view.count, mean, var


@everywhere
def batch_norm_backward_sums(
    dy: Array, x: Array, mean: Array, rstd: Array, *, channel_axis: int = 1, mask: Array | None = None
) -> tuple[Array, Array]:
    """The sums that `batch_norm_backward_apply` needs from every block of a batch: sum(dy) and sum(dy * xhat).

    xhat = (x - mean) * rstd with the statistics of the whole batch. Sums of blocks add up; the totals are dbias and
    dweight.

    Parameters
    ----------
    dy, x : ndarray
        A block of the gradient of y, and of x.
    mean, rstd : ndarray
        (C,), of the whole batch. Give float64: a mean rounded to float32 costs digits where it is large against 1 /
        rstd.
    channel_axis : int
        1 for (N, C, ...), -1 for channels last.
    mask : ndarray of bool, optional
        What the moments had. It changes nothing here: y is computed everywhere, and so are these sums.

    Returns
    -------
    sum_dy, sum_dy_xhat : ndarray
        (C,), float64.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes or axes that do not fit.
    """
    kernels = home(dy, x, mean, rstd, mask)
    view = as_channels(x, channel_axis)
    given = Given(statistics_of(kernels, view, "mean", mean, "rstd", rstd))
    check_like("dy", dy, x)
    if mask is not None:
        view.positions(mask)
    sums = empty(x, (2, view.channels), FLOAT64)
    differentiate_channels(kernels, view, dy, x, given, tail_of(view, x), CONSTANT, 1, None, None, sums)
    return _pair(sums)


@everywhere(short=plain.batch_norm_backward_apply)
def batch_norm_backward_apply(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    sum_dy: Array,
    sum_dy_xhat: Array,
    count: int,
    *,
    channel_axis: int = 1,
    mask: Array | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient of a block of a batch from the sums over all of it.

    dx = weight * rstd * (dy - (sum_dy + xhat * sum_dy_xhat) / count) with xhat = (x - mean) * rstd, and
    weight * rstd * dy at positions that do not count.

    Parameters
    ----------
    dy, x : ndarray
        A block of the gradient of y, and of x.
    mean, rstd : ndarray
        (C,), of the whole batch, preferably float64.
    weight : ndarray or None
        (C,), of any real dtype. None stands for ones.
    sum_dy, sum_dy_xhat : ndarray
        (C,), the sums of `batch_norm_backward_sums` over all blocks.
    count : int
        Values per channel in the whole batch, those that count.
    channel_axis : int
        1 for (N, C, ...), -1 for channels last.
    mask : ndarray of bool, optional
        What the moments of this block had.
    out : ndarray, optional
        Where dx is written: dy or x itself, or an array of their shape and dtype that shares no memory with the inputs.

    Returns
    -------
    dx : ndarray
        Of x's shape, dtype and memory layout.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes or axes that do not fit, a bad `out`, or a count below that of this block.
    """
    kernels = home(dy, x, mean, rstd, weight, sum_dy, sum_dy_xhat, mask, out)
    view = as_channels(x, channel_axis)
    given = Given(statistics_of(kernels, view, "mean", mean, "rstd", rstd))
    sums = statistics_of(kernels, view, "sum_dy", sum_dy, "sum_dy_xhat", sum_dy_xhat)
    check_like("dy", dy, x)
    tail = tail_of(view, x, weight)
    counted = None if mask is None else view.positions(mask)
    count = integer("count", count)
    least = view.count if counted is None else kernels.count_positions(counted)
    if not least <= count < 1 << 63 and x.size:
        raise ValueError(f"count is the values per channel in the whole batch, at least {least}, got {count}")
    dx = output(out, x, (x, dy), (mean, rstd, weight, sum_dy, sum_dy_xhat, mask))
    if counted is None:
        differentiate_channels(kernels, view, dy, x, given, tail, GIVEN, max(count, 1), dx, None, sums)
    else:
        differentiate_masked(kernels, view, dy, x, given, tail, max(count, 1), dx, None, sums, counted)
    return dx


def _pair(values: Array) -> tuple[Array, Array]:
    return values[0], values[1]
