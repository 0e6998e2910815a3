"""Layer norm and RMS norm as layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..ops.checks import finite
from ..ops.rows import layer_norm_backward, layer_norm_forward, rms_norm_backward, rms_norm_forward, rounds_first
from ..views import Array, Shape, integer
from .base import Layer, size
from .conventions import convention_of


class _RowLayer(Layer):
    """A layer over `axis`, on which x has `normalized_shape`."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        axis: int | Sequence[int] | None,
        weight: bool,
        bias: bool,
        dtype: npt.DTypeLike,
        initial_weight: float = 1,
    ) -> None:
        lengths = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
        self.normalized_shape: Shape = tuple(size("normalized_shape", n) for n in lengths)
        axes = range(-len(self.normalized_shape), 0) if axis is None else axis
        self.axis: Shape = tuple(integer("axis", a) for a in (axes if isinstance(axes, Sequence) else (axes,)))
        if len(self.axis) != len(self.normalized_shape) or not self.axis or len(set(self.axis)) != len(self.axis):
            raise ValueError(
                f"normalized_shape must have a length for each axis, and axis none twice, got {self.normalized_shape} "
                f"for axis {self.axis}"
            )
        super().__init__(self.normalized_shape, weight=weight, bias=bias, dtype=dtype, initial_weight=initial_weight)


class LayerNorm(_RowLayer):
    """Layer norm: y = (x - mean) / sqrt(var + eps) * weight + bias over `axis`.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        x's lengths on `axis`, in the order in which these axes lie in x.
    axis : int or tuple of int, optional
        The axes normalized over; by default the last ones, as many as `normalized_shape` has lengths.
    eps : float, optional
        Added to the variance, which is the biased one. None stands for the convention's.
    elementwise_affine : bool
        Whether there are parameters.
    weight, bias : bool
        Which of them, if so. They have the shape `normalized_shape` and start as ones and zeros.
    convention : {"torch", "keras", "flax"}
        Whose default eps: 1e-5, 1e-3 or 1e-6.
    dtype : dtype
        Of the parameters: float16, bfloat16, float32 or float64. x may be of any of these, y is like x.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other, or in a forward an x that does not fit them.

    Notes
    -----
    Ba, Kiros and Hinton, Layer Normalization, 2016 (arXiv:1607.06450). See `layer_norm_forward`.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        *,
        axis: int | Sequence[int] | None = None,
        eps: float | None = None,
        elementwise_affine: bool = True,
        weight: bool = True,
        bias: bool = True,
        convention: str = "torch",
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.convention = convention_of(convention)
        self.eps = finite("eps", self.convention.layer_eps if eps is None else eps)
        super().__init__(normalized_shape, axis, elementwise_affine and weight, elementwise_affine and bias, dtype)

    def forward(self, x: Array) -> Array:
        """Normalize x; x itself is kept for `backward`."""
        self._require(x, self.axis, self.normalized_shape)
        y, mean, rstd = layer_norm_forward(x, self.weight, self.bias, axis=self.axis, eps=self.eps)
        self._backward = partial(layer_norm_backward, x=x, mean=mean, rstd=rstd, axis=self.axis)
        return y


class RMSNorm(_RowLayer):
    """RMS norm: y = x / sqrt(mean(x^2) + eps) * (weight_offset + weight) over `axis`.

    Parameters
    ----------
    normalized_shape, axis
        As in `LayerNorm`.
    eps : float, optional
        Added to the mean square. None stands for the convention's.
    elementwise_affine : bool
        Whether there is a weight. It starts as 1 - weight_offset.
    weight_offset : float
        Added to the weight: 1.0 for Gemma's 1 + weight.
    casting : {"float32", "input"}
        For halves, whether x / rms is rounded after the weight has multiplied it (PyTorch, Keras, Flax) or also before
        (Llama).
    convention : {"torch", "keras", "flax"}
        Whose default eps: the machine epsilon of float32, or of float64 for float64 x, or 1e-6 in Keras and Flax.
    dtype : dtype
        Of the weight: float16, bfloat16, float32 or float64. x may be of any of these, y is like x.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other, or in a forward an x that does not fit them.

    Notes
    -----
    Zhang and Sennrich, Root Mean Square Layer Normalization, 2019 (arXiv:1910.07467). See `rms_norm_forward`.
    """

    _names = ("weight",)

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        *,
        axis: int | Sequence[int] | None = None,
        eps: float | None = None,
        elementwise_affine: bool = True,
        weight_offset: float = 0.0,
        casting: str = "float32",
        convention: str = "torch",
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.convention = convention_of(convention)
        eps = self.convention.rms_eps if eps is None else eps
        self.eps = None if eps is None else finite("eps", eps)
        self.weight_offset = finite("weight_offset", weight_offset)
        rounds_first(casting, np.dtype(dtype))  # is there one of that name?
        self.casting = casting
        super().__init__(normalized_shape, axis, elementwise_affine, False, dtype, 1 - self.weight_offset)

    def forward(self, x: Array) -> Array:
        """Normalize x; x itself is kept for `backward`."""
        self._require(x, self.axis, self.normalized_shape)
        eps = self.eps
        if eps is None:
            eps = float(np.finfo(np.float64 if x.dtype == np.float64 else np.float32).eps)
        settings: dict[str, Any] = {
            "axis": self.axis,
            "weight_offset": self.weight_offset,
            "casting": self.casting,
        }
        y, rstd = rms_norm_forward(x, self.weight, eps=eps, **settings)
        self._backward = partial(rms_norm_backward, x=x, rstd=rstd, **settings)
        return y
