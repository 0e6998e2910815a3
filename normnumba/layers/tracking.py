"""Layers over channels, and what those with running statistics share."""

from __future__ import annotations

from functools import partial
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels.cpu import update_running
from ..ops.batch import batch_norm_inference, batch_norm_inference_backward
from ..ops.checks import activation_code, finite
from ..views import NUMBERS, Array, integer
from .base import Layer, size
from .conventions import convention_of


class ChannelLayer(Layer):
    """A layer with a weight and a bias for each of the channels on `channel_axis`."""

    def __init__(
        self,
        channels: int,
        *,
        eps: float,
        affine: bool,
        weight: bool,
        bias: bool,
        channel_axis: int,
        activation: str | None,
        dtype: npt.DTypeLike,
    ) -> None:
        super().__init__((channels,), weight=affine and weight, bias=affine and bias, dtype=dtype)
        self.eps = finite("eps", eps)
        self.channel_axis = integer("channel_axis", channel_axis)
        activation_code(activation)  # is there one of that name?
        self.activation = activation

    def _settings(self, **arguments: Any) -> dict[str, Any]:
        """The keyword arguments that a forward and its backward have in common."""
        return {"channel_axis": self.channel_axis, "activation": self.activation, **arguments}


class TrackingLayer(ChannelLayer):
    """A layer with running statistics, unless `track_running_stats` is False.

    They are kept in float32, or float64 where the parameters are: in a half the small steps of an average round away.

    Attributes
    ----------
    running_mean, running_var : ndarray or None
        (C,), zeros and ones to begin with.
    num_batches_tracked : ndarray or None
        An int64 scalar array: how many batches went into them.
    """

    running_mean: Array | None = None
    running_var: Array | None = None
    num_batches_tracked: Array | None = None

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float | EllipsisType | None,
        track_running_stats: bool,
        convention: str,
        channel_axis: int | None,
        **settings: Any,
    ) -> None:
        self.num_features = size("num_features", num_features)
        self.convention = convention_of(convention)
        if momentum is not None:
            momentum = finite("momentum", self.convention.momentum if isinstance(momentum, EllipsisType) else momentum)
        self.momentum = momentum
        axis = self.convention.channel_axis if channel_axis is None else channel_axis
        super().__init__(self.num_features, channel_axis=axis, **settings)
        if track_running_stats:
            number = NUMBERS[self.dtype]
            self.running_mean, self.running_var = (
                np.zeros(self.num_features, number),
                np.ones(self.num_features, number),
            )
            self.num_batches_tracked = np.zeros((), np.int64)

    def _state(self) -> dict[str, Array]:
        names = ("running_mean", "running_var", "num_batches_tracked")
        buffers = {name: getattr(self, name) for name in names}
        return {**super()._state(), **{name: value for name, value in buffers.items() if value is not None}}

    def _infer(self, x: Array, **arguments: Any) -> Array:
        """Normalize by the running statistics, which the backward takes for constants."""
        assert self.running_mean is not None
        assert self.running_var is not None
        given = self._settings(**arguments, mean=self.running_mean.copy(), var=self.running_var.copy(), eps=self.eps)
        y = batch_norm_inference(x, weight=self.weight, bias=self.bias, **given)
        self._backward = partial(_inference_backward, x=x, **given)
        return y

    def _track(self, count: int, mean: Array, unbiased_var: Array) -> None:
        """Let a batch's float64 statistics into the running ones, unless it counted nothing."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None or not count:
            return
        self.num_batches_tracked += 1
        new = self.convention.weight_of_new(self.momentum, int(self.num_batches_tracked))
        var = unbiased_var if self.convention.unbiased else unbiased_var * ((count - 1) / count)
        update_running(self.running_mean, mean, new, 1.0)
        update_running(self.running_var, var, new, 1.0)


def _inference_backward(dy: Array, *, output_mask: tuple[bool, ...], **given: Any) -> tuple[Array | None, ...]:
    # Instance norm has no residual, and asks for three gradients.
    return batch_norm_inference_backward(dy, output_mask=(*output_mask, False)[:4], **given)
