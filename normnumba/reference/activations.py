"""The activations that may follow a norm. All but relu are z * gate(z), where the gate rises from 0 to 1."""

from __future__ import annotations

import math

import numpy as np

from .numeric import Array

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), without overflow."""
    return np.exp(np.minimum(z, 0.0)) / (1.0 + np.exp(-np.abs(z)))


def _gelu(z: Array) -> tuple[Array, Array]:
    """(1 + erf(z / sqrt(2))) / 2, written with erfc because that sum cancels far below 0; and its slope."""
    return _erfc(-z / math.sqrt(2.0)) / 2.0, np.exp(-(z**2) / 2.0) / math.sqrt(2.0 * math.pi)


def _gelu_tanh(z: Array) -> tuple[Array, Array]:
    """(1 + tanh(v)) / 2 = sigmoid(2 * v) with v = sqrt(2 / pi) * (z + 0.044715 * z^3), and its slope."""
    scale = 2.0 * math.sqrt(2.0 / math.pi)
    v2 = scale * (z + 0.044715 * z**3)
    return _sigmoid(v2), _sigmoid(v2) * _sigmoid(-v2) * scale * (1.0 + 3.0 * 0.044715 * z**2)


def _silu(z: Array) -> tuple[Array, Array]:
    """sigmoid(z), and its slope."""
    return _sigmoid(z), _sigmoid(z) * _sigmoid(-z)


_GATES = {"gelu": _gelu, "gelu_tanh": _gelu_tanh, "silu": _silu}


def activate(z: Array, activation: str | None) -> Array:
    """activation(z)."""
    if activation is None:
        return z
    if activation == "relu":
        return np.maximum(z, 0.0)
    return z * _GATES[activation](z)[0]


def differentiate(dy: Array, z: Array, activation: str | None) -> Array:
    """dy * activation'(z); relu's slope at 0 is 0, and where it is 0 not even NaN passes, as in PyTorch."""
    if activation is None:
        return dy
    if activation == "relu":
        return np.where(z <= 0.0, 0.0, dy)
    gate, slope = _GATES[activation](z)
    return dy * (gate + z * slope)
