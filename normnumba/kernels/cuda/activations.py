"""Activations: each is z * share(z), where the share that passes lies between 0 and 1."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from numba import cuda, types

from .. import GELU, GELU_TANH, RELU, SILU


@functools.cache
def activating(activation: int, number: types.Type) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """Two device functions: z * share(z), and its derivative."""
    if activation == RELU:
        return _relu(number)
    share_and_slope = {GELU: _gelu, GELU_TANH: _gelu_tanh, SILU: _silu}[activation](number)

    @cuda.jit(device=True)
    def activate(z):
        return z * share_and_slope(z)[0]

    @cuda.jit(device=True)
    def derivative(z):
        share, slope = share_and_slope(z)
        return share + z * slope

    return activate, derivative


def _relu(number: types.Type) -> tuple[Callable[..., Any], None]:
    @cuda.jit(device=True)
    def activate(z):
        return number(0) if z < number(0) else z  # NaN stays

    return activate, None  # its gradient is chosen, not multiplied


@functools.cache
def _sigmoids(number: types.Type) -> Callable[..., Any]:
    @cuda.jit(device=True)
    def sigmoids(u):
        """sigmoid(u), sigmoid(-u), each without cancellation"""
        e = number(math.exp(-abs(u)))
        large = number(1) / (number(1) + e)
        small = e * large
        return (small, large) if u < number(0) else (large, small)

    return sigmoids


def _silu(number: types.Type) -> Callable[..., Any]:
    sigmoids = _sigmoids(number)

    @cuda.jit(device=True)
    def silu(z):
        """share = sigmoid(z), and its slope"""
        share, rest = sigmoids(z)
        return share, share * rest

    return silu


def _gelu_tanh(number: types.Type) -> Callable[..., Any]:
    sigmoids = _sigmoids(number)

    @cuda.jit(device=True)
    def gelu_tanh(z):
        """share = (1 + tanh(v)) / 2 = sigmoid(2 * v) with v = sqrt(2 / pi) * (z + 0.044715 * z^3), and its slope"""
        z = min(max(z, number(-40)), number(40))  # beyond, the share is 0 or 1; keeps powers of z finite
        linear, cubic = number(1.5957691216057308), number(0.07135481627260025)
        share, rest = sigmoids(z * (linear + cubic * z * z))
        return share, share * rest * (linear + number(3) * cubic * z * z)

    return gelu_tanh


def _gelu(number: types.Type) -> Callable[..., Any]:
    @cuda.jit(device=True)
    def gelu(z):
        """share = (1 + erf(z / sqrt(2))) / 2, the normal distribution, and its slope, the normal density"""
        share = number(0.5) * number(math.erfc(z * number(-0.7071067811865476)))
        return share, number(math.exp(number(-0.5) * z * z)) * number(0.3989422804014327)

    return gelu
