"""Strips: x (O, C, I), statistics over C, weight and bias (C). LayerNorm and RMSNorm over axes before the last."""

from __future__ import annotations

from typing import Any

from .. import NONE
from .geometry import of_channels, of_strips
from .launching import NOTHING, is_there
from .merging import merge_parameters
from .pipeline import Gradients, forward, prepared


def strips_forward(
    x: Any, weight: Any, bias: Any, eps: float, center: bool, rounding: bool, y: Any, mean: Any, rstd: Any
) -> None:
    """See the CPU's."""
    forward(of_strips(*x.shape), x, weight, bias, eps, center, rounding, NONE, y, mean, rstd)


def strips_backward(
    dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, center: bool, rounding: bool, dx: Any, dweight: Any, dbias: Any
) -> None:
    """See the CPU's."""
    view = of_strips(*x.shape)
    gradients = Gradients(view, dy, x, NOTHING, prepared(view, x, mean, rstd), weight, NOTHING, NONE)
    sums = gradients.row_sums(center)
    if is_there(dweight):
        parts, shares = gradients.parts(of_channels(*x.shape), False, rounding)
        merge_parameters(parts, shares, 1, 0, NOTHING, 1, 1, dweight, dbias)
    gradients.apply(sums, view.elements, True, dx)
