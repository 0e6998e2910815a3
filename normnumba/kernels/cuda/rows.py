"""Rows: x (R, C), statistics over C, weight and bias (C). LayerNorm and RMSNorm, and groups that are as short as rows.

A row is kept in the registers of a team of threads, so it is read once, and its variance takes two passes. Rows that
registers do not hold are shared by many blocks instead, and read twice.
"""

from __future__ import annotations

import math
from typing import Any

from numba import cuda, types

from .. import GELU, GELU_TANH, NONE, RELU, SILU
from .activations import activating
from .elementwise import add_lines, affine
from .geometry import of_columns, of_rows
from .launching import (
    BIAS,
    DRESIDUAL,
    DX,
    NOTHING,
    OTHER,
    PARTS,
    WARP,
    WEIGHT,
    is_there,
    launch,
    number_of,
    pointers,
    power_of_two,
    variants,
    width_of,
)
from .lowlevel import LOADS, STORES, load, rounded
from .merging import sum_rows
from .pipeline import Gradients, forward, prepared
from .reductions import TINY, not_negative, summing

HELD = 32
"""Elements of a row that a thread keeps in registers in a forward."""

HELD_BACKWARD = 16
"""The same in a backward, which keeps them four times."""

HELD_OF_GROUPS = {NONE: 16, RELU: 16, GELU: 8, GELU_TANH: 8, SILU: 8}
"""The same of groups, by activation: with more, compilers leave a loop as it is, and then its array is no registers."""

ROOM = 1 << 19
"""Elements of dweight, and as many of dbias, that all teams together may have: 4 MiB of float32."""

ROWS = 16
"""Or, if that is more, as many that each team has this number of rows: an eighth of x."""

SHORT = 8
"""The same of rows that take less than a warp."""

BLOCK = 128
"""Threads of a block whose teams are no larger than a warp."""

BLOCKS = 512
"""Blocks with parameter gradients of their own: a few for each multiprocessor of a large device."""


def plan(cols: int, width: int, number: types.Type, held: int) -> tuple[int, int] | None:
    """Threads for a row, and times that each takes `width` elements of it; None where the row is too long.

    From the length of a row and the width of accesses, so that a row has the same bits in any batch. Short rows take
    few elements for each thread, or there would be too few threads. Single elements need addresses of their own, and
    float64 two registers.
    """
    steps, held = -(-cols // width), held // 2 if width == 1 or number is types.float64 else held
    for threads in (8, 16, 32, 64, 128, 256, 512):
        vectors = power_of_two(-(-steps // threads))
        if vectors * width <= (min(held, SHORT) if threads < WARP else held):
            return threads, vectors
    return None


def _teams(threads: int) -> int:
    """Teams in a block: with one that is larger than a warp, a block must not have others, whose barriers differ"""
    return BLOCK // threads if threads <= WARP else 1


def rows_forward(
    x: Any, weight: Any, bias: Any, eps: float, center: bool, rounding: bool, y: Any, mean: Any, rstd: Any
) -> None:
    """See the CPU's."""
    add_rows_forward(x, NOTHING, weight, bias, eps, center, rounding, NOTHING, y, mean, rstd)


def add_rows_forward(
    x: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    eps: float,
    center: bool,
    rounding: bool,
    summed: Any,
    y: Any,
    mean: Any,
    rstd: Any,
) -> None:
    """See the CPU's."""
    rows, cols = x.shape
    width, normalized = width_of(cols, x, residual, summed, y), summed if is_there(residual) else x
    planned = plan(cols, width, number_of(normalized.dtype), HELD)
    if planned:
        args = x, residual, weight, bias, eps, rows, cols, center, rounding, 1, 1, summed, y, mean, rstd
        _launch_forward(planned, width, NONE, False, *args)
        return
    if is_there(residual):
        add_lines(x, residual, summed)
    forward(of_rows(rows, cols), normalized, weight, bias, eps, center, rounding, NONE, y, mean, rstd)


def normalize_short(x: Any, weight: Any, bias: Any, eps: float, activation: int, y: Any, mean: Any, rstd: Any) -> bool:
    """`groups_forward` of groups that registers hold; whether they do."""
    samples, groups, members, size = x.shape
    rows, cols = samples * groups, members * size
    width = width_of(cols, x, y)
    planned = plan(cols, width, number_of(x.dtype), HELD_OF_GROUPS[activation])
    if planned:
        args = x, NOTHING, weight, bias, eps, rows, cols, True, False, groups, size, NOTHING, y, mean, rstd
        _launch_forward(planned, width, activation, True, *args)
    return planned is not None


def _launch_forward(
    planned: tuple[int, int],
    width: int,
    activation: int,
    spans: bool,
    x: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    eps: float,
    rows: int,
    cols: int,
    center: bool,
    rounding: bool,
    groups: int,
    inner: int,
    summed: Any,
    y: Any,
    mean: Any,
    rstd: Any,
) -> None:
    added, (threads, vectors) = is_there(residual), planned
    other, total = (residual.dtype, summed.dtype) if added else (x.dtype, x.dtype)
    constants = width, threads, vectors, added, rounding, spans, activation
    kernel = row_forward(x.dtype, other, total, number_of(total), *constants)
    present, teams = WEIGHT * is_there(weight) | BIAS * is_there(bias), _teams(threads)
    args = x, residual, weight, bias, present, eps, rows, cols, int(center), groups, inner
    launch(kernel, (-(-rows // teams),), (threads, teams), x.place, *args, summed, y, mean, rstd)


def rows_backward(
    dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, center: bool, rounding: bool, dx: Any, dweight: Any, dbias: Any
) -> None:
    """See the CPU's."""
    add_rows_backward(dy, NOTHING, x, mean, rstd, weight, center, rounding, dx, NOTHING, dweight, dbias)


def add_rows_backward(
    dy: Any,
    dsummed: Any,
    summed: Any,
    mean: Any,
    rstd: Any,
    weight: Any,
    center: bool,
    rounding: bool,
    dx: Any,
    dresidual: Any,
    dweight: Any,
    dbias: Any,
) -> None:
    """See the CPU's."""
    rows, cols = summed.shape
    width = width_of(cols, dy, dsummed, summed, dx, dresidual)
    planned = plan(cols, width, number_of(summed.dtype), HELD_BACKWARD)
    if not planned:
        given = dy, dsummed, summed, mean, rstd, weight, center, rounding
        _long_backward(*given, dx, dresidual, dweight, dbias)
        return
    threads, vectors = planned
    kernel = row_backward(dy.dtype, summed.dtype, number_of(summed.dtype), width, threads, vectors, rounding)
    present = WEIGHT * is_there(weight) | OTHER * is_there(dsummed) | PARTS * is_there(dweight)
    present |= DX * is_there(dx) | DRESIDUAL * is_there(dresidual)
    in_block = _teams(threads)
    blocks = _blocks(rows, cols, in_block)
    teams = blocks * in_block
    parts = summed.new((2, teams * cols), rstd.dtype) if is_there(dweight) else NOTHING
    args = dy, dsummed, summed, mean, rstd, weight, present, rows, cols, int(center), teams
    launch(kernel, (blocks,), (threads, in_block), summed.place, *args, dx, dresidual, parts)
    if is_there(dweight):
        sum_rows(parts, teams, cols, dweight, dbias)


def _long_backward(
    dy: Any,
    dsummed: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    weight: Any,
    center: bool,
    rounding: bool,
    dx: Any,
    dresidual: Any,
    dweight: Any,
    dbias: Any,
) -> None:
    """`add_rows_backward` of rows that registers do not hold."""
    rows, cols = x.shape
    view = of_rows(rows, cols)
    gradients = Gradients(view, dy, x, NOTHING, prepared(view, x, mean, rstd), weight, NOTHING, NONE)
    sums = gradients.row_sums(center)
    if is_there(dweight):
        parts, shares = gradients.parts(of_columns(1, rows, cols, cols), False, rounding)
        sum_rows(parts, shares.shares, cols, dweight, dbias)
    gradients._replace(other=dsummed).apply(sums, cols, True, dx, dresidual, summed=True)


def _blocks(rows: int, cols: int, teams: int) -> int:
    """Blocks of a backward, from the shape alone: few enough that their gradients of parameters take little room"""
    room = max(ROOM // cols, rows // ROWS) // teams
    return max(1, min(-(-rows // teams), BLOCKS, room))


def _moments(number: types.Type, width: int, threads: int, size: int) -> Any:
    team_sums, tiny = summing(threads, number, 2), TINY[number]

    @cuda.jit(device=True)
    def moments(values, cols, first, eps, center):
        """Of a row in registers: a pivot, what xhat = (x - pivot) * rstd - centre takes besides, and the mean"""
        lane, share, half = cuda.threadIdx.x * width, number(1) / number(cols), number(0.5)
        about, plain = number(0), number(0)
        if center:
            for k in range(size):
                if k // width * threads * width + lane + k % width < cols:
                    about += (values[k] * half - first * half) * share
                    plain += values[k] * share
            about, plain, _ = team_sums(about, plain, number(0))
        pivot = first + about + about if center else number(0)
        scale, shift, square = number(1), number(0), number(math.inf)
        for attempt in range(2):
            if not square < number(math.inf):
                scale = number(tiny) if attempt else number(1)
                shift, square = number(0), number(0)
                for k in range(size):
                    if k // width * threads * width + lane + k % width < cols:
                        t = values[k] * scale - pivot * scale
                        shift += t
                        square += t * t
                shift, square, _ = team_sums(shift, square, number(0))
        if not square < number(math.inf):  # not even scaled: there is an Inf or a NaN
            return pivot, number(math.nan), number(math.nan), plain
        shift = shift * share if center else number(0)
        root = number(1) / math.sqrt(not_negative(square * share - shift * shift) + eps * scale * scale)
        return pivot, root * scale, shift * root, pivot + shift / scale

    return moments


@variants
def row_forward(data, other, total, number, width, threads, vectors, added, rounding, spans, activation):
    """A row for each team; with `spans`, `inner` neighbouring elements share a weight and a bias."""
    size, load_vector, store_vector = vectors * width, LOADS[width], STORES[width]
    moments = _moments(number, width, threads, size)
    activate, z_of = activating(activation, number)[0] if activation else None, affine(number)

    def kernel(x, residual, weight, bias, present, eps, rows, cols, center, groups, inner, summed, y, mean, rstd):
        row = types.int64(cuda.blockIdx.x) * cuda.blockDim.y + cuda.threadIdx.y
        if row >= rows:
            return
        values, more = cuda.local.array(size, number), cuda.local.array(width, number)
        start, lane, half = row * cols, cuda.threadIdx.x * width, number(0.5)  # halves cannot overflow
        for k in range(vectors):
            i = k * threads * width + lane
            if i < cols:
                load_vector(x, start + i, values, k * width)
                if added:
                    load_vector(residual, start + i, more, 0)
                    for j in range(width):
                        values[k * width + j] = rounded(summed, values[k * width + j] + more[j])
                    store_vector(summed, start + i, values, k * width)
        first = number(load(x, start))
        if added:
            first = rounded(summed, first + load(residual, start))
        pivot, r, centre, average = moments(values, cols, first, eps, center)
        if cuda.threadIdx.x == 0:
            if center:
                mean[row] = average
            rstd[row] = r
        base = row % groups * (cols // inner) if spans else 0
        for k in range(vectors):
            i = k * threads * width + lane
            if i < cols:
                for j in range(width):
                    xhat = (values[k * width + j] * half - pivot * half) * (r + r) - centre
                    if rounding:
                        xhat = number(rounded(x, xhat))
                    w = base + types.int64(types.uint32(i + j) // types.uint32(inner)) if spans else i + j
                    z = z_of(xhat, w, weight, bias, present)
                    values[k * width + j] = activate(z) if activation else z
                store_vector(y, start + i, values, k * width)

    vector = types.CPointer(number)
    inputs = (*pointers(data, other), vector, vector, types.int64, number, *(types.int64,) * 5)
    return kernel, (*inputs, *pointers(total, data), vector, vector), threads * _teams(threads)


def _row_gradients(number: types.Type, width: int, threads: int, vectors: int) -> tuple[Any, Any]:
    step, load_vector, store_vector = threads * width, LOADS[width], STORES[width]

    @cuda.jit(device=True)
    def read(dy, x, start, cols, mean, rstd, weight, present, grads, values):
        """grads = dy, values = t = (x - mean) * rstd; parts of sum(g), sum(g * t) and sum(t) with g = dy * weight"""
        lane = cuda.threadIdx.x * width
        sum_g, sum_gt, sum_t = number(0), number(0), number(0)
        for k in range(vectors):
            i = k * step + lane
            if i < cols:
                load_vector(dy, start + i, grads, k * width)
                load_vector(x, start + i, values, k * width)
                for j in range(width):
                    t = (values[k * width + j] - mean) * rstd
                    g = grads[k * width + j] * (weight[i + j] if present & WEIGHT else number(1))
                    values[k * width + j] = t
                    sum_g += g
                    sum_gt += g * t
                    sum_t += t
        return sum_g, sum_gt, sum_t

    @cuda.jit(device=True)
    def write(dsummed, start, cols, rstd, line, weight, present, grads, values, dx, dresidual):
        """dx = rstd * (dy * weight - shift - xhat * slope), and dsummed added to it; values = xhat"""
        lane, (centre, slope, shift) = cuda.threadIdx.x * width, line
        results, more = cuda.local.array(width, number), cuda.local.array(width, number)
        for k in range(vectors):
            i = k * step + lane
            if i < cols:
                if present & OTHER:
                    load_vector(dsummed, start + i, more, 0)
                for j in range(width):
                    xhat = values[k * width + j] - centre
                    values[k * width + j] = xhat
                    w = weight[i + j] if present & WEIGHT else number(1)
                    results[j] = rstd * (grads[k * width + j] * w - shift - xhat * slope)
                    if present & OTHER:
                        results[j] += more[j]
                if present & DX:
                    store_vector(dx, start + i, results, 0)
                if present & DRESIDUAL:
                    store_vector(dresidual, start + i, results, 0)

    return read, write


@variants
def row_backward(given, data, number, width, threads, vectors, rounding):
    """Rows that are `teams` apart for each team, which adds up their dweight and dbias in registers."""
    team_sums, size = summing(threads, number), vectors * width
    read, write = _row_gradients(number, width, threads, vectors)

    def kernel(dy, dsummed, x, mean, rstd, weight, present, rows, cols, center, teams, dx, dresidual, parts):
        values, grads = cuda.local.array(size, number), cuda.local.array(size, number)
        dweight, dbias = cuda.local.array(size, number), cuda.local.array(size, number)
        for k in range(size):
            values[k], grads[k], dweight[k], dbias[k] = number(0), number(0), number(0), number(0)
        share, row = number(1) / number(cols), types.int64(cuda.blockIdx.x) * cuda.blockDim.y + cuda.threadIdx.y
        team = row
        while row < rows:
            m, r, start = mean[row] if center else number(0), rstd[row], row * cols
            sum_g, sum_gt, sum_t = team_sums(*read(dy, x, start, cols, m, r, weight, present, grads, values))
            centre = sum_t * share if center else number(0)  # what rounding the mean left in xhat
            line = centre, (sum_gt - centre * sum_g) * share, sum_g * share if center else number(0)
            write(dsummed, start, cols, r, line, weight, present, grads, values, dx, dresidual)
            for k in range(size):
                xhat = number(rounded(dy, values[k])) if rounding else values[k]
                dweight[k] += grads[k] * xhat
                dbias[k] += grads[k]
            row += teams
        if present & PARTS:
            for k in range(vectors):
                i = (k * threads + cuda.threadIdx.x) * width
                for j in range(width):
                    if i + j < cols:
                        parts[team * cols + i + j] = dbias[k * width + j]
                        parts[(teams + team) * cols + i + j] = dweight[k * width + j]

    vector = types.CPointer(number)
    inputs = (*pointers(given, data, data), vector, vector, vector, *(types.int64,) * 5)
    return kernel, (*inputs, *pointers(given, data), vector), threads * _teams(threads)
