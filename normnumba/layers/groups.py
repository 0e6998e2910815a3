"""Group norm and instance norm as layers."""

from __future__ import annotations

from functools import partial
from types import EllipsisType

import numpy as np
import numpy.typing as npt

from ..ops.blocks import batch_moments
from ..ops.groups import group_norm_backward, group_norm_forward, instance_norm_backward, instance_norm_forward
from ..views import Array
from .base import size
from .conventions import convention_of
from .tracking import ChannelLayer, TrackingLayer


class GroupNorm(ChannelLayer):
    """Group norm: y = activation((x - mean) / sqrt(var + eps) * weight + bias) over groups of each sample's channels.

    Parameters
    ----------
    num_groups : int
        How many groups of neighbouring channels there are; it divides the number of channels.
    num_channels : int
        The number of channels C.
    eps : float, optional
        Added to the variance, which is the biased one. None stands for the convention's.
    affine : bool
        Whether there are parameters.
    weight, bias : bool
        Which of them, if so. They have the shape (C,) and start as ones and zeros.
    channel_axis : int, optional
        Where x, with its samples on axis 0, has its channels. None stands for the convention's.
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}
        Applied last.
    convention : {"torch", "keras", "flax"}
        Whose defaults: eps 1e-5 and channels on axis 1, eps 1e-3 and channels last, or eps 1e-6 and channels last.
    dtype : dtype
        Of the parameters: float16, bfloat16, float32 or float64. x may be of any of these, y is like x.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other, or in a forward an x that does not fit them.

    Notes
    -----
    Wu and He, Group Normalization, 2018 (arXiv:1803.08494). See `group_norm_forward`.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        *,
        eps: float | None = None,
        affine: bool = True,
        weight: bool = True,
        bias: bool = True,
        channel_axis: int | None = None,
        activation: str | None = None,
        convention: str = "torch",
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.num_groups, self.num_channels = size("num_groups", num_groups), size("num_channels", num_channels)
        if not num_groups or num_channels % num_groups:
            raise ValueError(f"num_groups must divide num_channels, got {num_groups} groups of {num_channels} channels")
        self.convention = convention_of(convention)
        super().__init__(
            self.num_channels,
            eps=self.convention.group_eps if eps is None else eps,
            affine=affine,
            weight=weight,
            bias=bias,
            channel_axis=self.convention.channel_axis if channel_axis is None else channel_axis,
            activation=activation,
            dtype=dtype,
        )

    def forward(self, x: Array) -> Array:
        """Normalize x; x itself is kept for `backward`."""
        self._require(x, (self.channel_axis,), (self.num_channels,))
        given = self._settings()
        y, mean, rstd = group_norm_forward(x, self.num_groups, self.weight, self.bias, eps=self.eps, **given)
        self._backward = partial(group_norm_backward, x=x, mean=mean, rstd=rstd, num_groups=self.num_groups, **given)
        return y


class InstanceNorm(TrackingLayer):
    """Instance norm: y = activation((x - mean) / sqrt(var + eps) * weight + bias) over each channel of each sample.

    With running statistics, evaluation normalizes by these, as PyTorch does.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float, optional
        Added to the variance, which is the biased one. None stands for the convention's.
    momentum : float or None, optional
        In the convention's own meaning; None averages all batches alike. By default the convention's.
    affine : bool, optional
        Whether there are parameters. None stands for the convention's: not in PyTorch.
    weight, bias : bool
        Which of them, if so. They have the shape (C,) and start as ones and zeros.
    track_running_stats : bool
        Whether there are running statistics: of the mean and the variance of instances, averaged over samples.
    channel_axis : int, optional
        Where x, with its samples on axis 0, has its channels. None stands for the convention's.
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}
        Applied last.
    convention : {"torch", "keras", "flax"}
        As in `GroupNorm`, and for running statistics as in `BatchNorm`.
    dtype : dtype
        Of the parameters: float16, bfloat16, float32 or float64. x may be of any of these, y is like x.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other, or in a forward an x that does not fit them.

    Notes
    -----
    Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016 (arXiv:1607.08022). See `instance_norm_forward`. Unlike
    PyTorch, `num_batches_tracked` counts, and momentum=None averages where PyTorch never updates. Tracking reads x once
    more, and copies it where its channels are not first.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float | None = None,
        momentum: float | EllipsisType | None = ...,
        affine: bool | None = None,
        weight: bool = True,
        bias: bool = True,
        track_running_stats: bool = False,
        channel_axis: int | None = None,
        activation: str | None = None,
        convention: str = "torch",
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        defaults = convention_of(convention)
        super().__init__(
            num_features,
            eps=defaults.group_eps if eps is None else eps,
            momentum=momentum,
            affine=defaults.instance_affine if affine is None else affine,
            weight=weight,
            bias=bias,
            track_running_stats=track_running_stats,
            channel_axis=channel_axis,
            activation=activation,
            convention=convention,
            dtype=dtype,
        )

    def forward(self, x: Array) -> Array:
        """Normalize x; x itself is kept for `backward`."""
        self._require(x, (self.channel_axis,), (self.num_features,))
        tracks = self.running_mean is not None
        if tracks and not self.training:
            return self._infer(x)
        if tracks and x.size and x.size == x.shape[0] * self.num_features:
            raise ValueError(
                f"x of shape {x.shape} has one value per channel of a sample, which has no variance to track; "
                "training with running statistics needs at least two"
            )
        given = self._settings()
        y, mean, rstd = instance_norm_forward(x, self.weight, self.bias, eps=self.eps, **given)
        self._backward = partial(instance_norm_backward, x=x, mean=mean, rstd=rstd, **given)
        if tracks and x.size:
            shape = (x.shape[0], self.num_features)
            count, means, variances = batch_moments(np.moveaxis(x, self.channel_axis, 1).reshape(1, np.prod(shape), -1))
            averages = [values.reshape(shape).mean(axis=0) for values in (means, variances)]
            self._track(count, averages[0], averages[1] * (count / (count - 1)))
        return y
