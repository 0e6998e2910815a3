"""Batch norm and batch renormalization as layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dispatch import home
from ..ops.batch import batch_norm_backward, batch_norm_forward, batch_norm_inference, normalize_batch
from ..ops.blocks import batch_moments
from ..ops.channels import tail_of
from ..views import Array, as_channels
from .conventions import convention_of
from .tracking import TrackingLayer


class BatchNorm(TrackingLayer):
    """Batch norm: y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual) for each channel.

    In training mean and var are those of the batch, and go into the running statistics; in evaluation they are the
    running statistics, and backward takes them for constants (a frozen batch norm). Without running statistics they are
    the batch's in both modes.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float, optional
        Added to the variance, which is the biased one. None stands for the convention's.
    momentum : float or None, optional
        In the convention's own meaning; None averages all batches alike. By default the convention's.
    affine : bool
        Whether there are parameters.
    weight, bias : bool
        Which of them, if so. They have the shape (C,) and start as ones and zeros.
    track_running_stats : bool
        Whether there are running statistics.
    channel_axis : int, optional
        Where x has its channels. None stands for the convention's.
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}
        Applied last.
    convention : {"torch", "keras", "flax"}
        What momentum means and which variance is kept, beside the defaults. "torch": momentum 0.1 is the weight of the
        new value, the running variance is unbiased, eps 1e-5, channels on axis 1. "keras": momentum 0.99 is the weight
        of the old value, the running variance is biased, eps 1e-3, channels last. "flax": as Keras with eps 1e-5.
    dtype : dtype
        Of the parameters: float16, bfloat16, float32 or float64. x may be of any of these, y is like x.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other, or in a forward an x that does not fit them. The layer is left as it
        was.

    Notes
    -----
    Ioffe and Szegedy, Batch Normalization, 2015 (arXiv:1502.03167). See `batch_norm_forward`. Running statistics are
    averaged in float64 and rounded once per batch. An empty batch, or a mask that counts nothing, is not tracked.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float | None = None,
        momentum: float | EllipsisType | None = ...,
        affine: bool = True,
        weight: bool = True,
        bias: bool = True,
        track_running_stats: bool = True,
        channel_axis: int | None = None,
        activation: str | None = None,
        convention: str = "torch",
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(
            num_features,
            eps=convention_of(convention).batch_eps if eps is None else eps,
            momentum=momentum,
            affine=affine,
            weight=weight,
            bias=bias,
            track_running_stats=track_running_stats,
            channel_axis=channel_axis,
            activation=activation,
            convention=convention,
            dtype=dtype,
        )

    def forward(self, x: Array, *, mask: Array | None = None, residual: Array | None = None) -> Array:
        """Normalize x; x, mask and residual themselves are kept for `backward`.

        Parameters
        ----------
        x : ndarray
            With the channels on `channel_axis`.
        mask : ndarray of bool, optional
            Broadcastable to x without its channel axis: which positions count in the batch's statistics. Without
            meaning where the running statistics are used.
        residual : ndarray, optional
            Of x's shape and dtype, added before the activation.

        Returns
        -------
        y : ndarray
            Like x.
        """
        self._require(x, (self.channel_axis,), (self.num_features,))
        if self.training or self.running_mean is None:
            return self._normalize(x, mask, residual)
        return self._infer(x, residual=residual)

    def backward(self, dy: Array) -> Array | tuple[Array, Array]:
        """Return the gradient of the last forward's x, and keep those of the parameters for `gradients`.

        Parameters
        ----------
        dy : ndarray
            The gradient of y, in its shape and dtype.

        Returns
        -------
        dx : ndarray
            Of x's shape, dtype and memory layout; where the forward had a residual, the pair of dx and dresidual.

        Raises
        ------
        RuntimeError
            Before a forward.
        TypeError, ValueError
            For a dy that is not like x.
        """
        residual = self._backward is not None and self._backward.keywords["residual"] is not None
        dx, dresidual = self._differentiate(dy, True)
        return (dx, dresidual) if residual else dx

    def _normalize(self, x: Array, mask: Array | None, residual: Array | None) -> Array:
        """Normalize by the batch's statistics and track them."""
        given = self._settings(mask=mask, residual=residual)
        if mask is None and self.num_batches_tracked is not None and self.convention.unbiased:
            momentum = self.convention.weight_of_new(self.momentum, int(self.num_batches_tracked) + 1)
            running: dict[str, Any] = {"running_mean": self.running_mean, "running_var": self.running_var}
            y, mean, rstd = batch_norm_forward(
                x, self.weight, self.bias, eps=self.eps, momentum=momentum, **running, **given
            )
            self.num_batches_tracked += bool(x.size)
        else:  # statistics that the op does not keep, or positions that do not count
            kernels = home(x, self.weight, self.bias, mask, residual)
            view = as_channels(x, self.channel_axis)
            tail = tail_of(view, x, self.weight, self.bias, residual, self.activation)
            y, mean, rstd, stats, count = normalize_batch(kernels, view, x, tail, self.eps, mask)
            self._track(count, stats[0], stats[1] * (count / max(count - 1, 1)))
        self._backward = partial(batch_norm_backward, x=x, mean=mean, rstd=rstd, **given)
        return y


class BatchRenorm(BatchNorm):
    """Batch renormalization: in training y = (xhat * r + d) * weight + bias with xhat = (x - mean) / sqrt(var + eps).

    r = clip(sigma / running_sigma, 1 / rmax, rmax) and d = clip((mean - running_mean) / running_sigma, -dmax, dmax),
    where sigma = sqrt(var + eps) and running_sigma = sqrt(running_var + eps), before this batch goes into the running
    statistics. Where nothing is clipped, training normalizes as evaluation does. r and d are constants to the gradient:
    with S1 = sum(dy) and S2 = sum(dy * xhat), dx is that of batch norm with weight * r, dweight = r * S2 + d * S1 and
    dbias = S1.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    rmax, dmax : float
        At least 1 and at least 0; inf clips nothing. Attributes that a schedule may change: the paper starts with 1 and
        0, which is batch norm, and raises them to the defaults of 3 and 5 once the running statistics have settled.
    **settings
        Those of `BatchNorm`. There are always running statistics.

    Raises
    ------
    TypeError, ValueError
        As in `BatchNorm`.

    Notes
    -----
    Ioffe, Batch Renormalization, 2017 (arXiv:1702.03275). The paper averages sigma over batches; here the variance is
    averaged, as in `BatchNorm`, so that states and evaluation are those of batch norm.
    """

    def __init__(self, num_features: int, *, rmax: float = 3.0, dmax: float = 5.0, **settings: Any) -> None:
        if not settings.get("track_running_stats", True):
            raise ValueError("BatchRenorm corrects towards its running statistics and cannot do without; use BatchNorm")
        super().__init__(num_features, **settings)
        self.rmax = rmax
        self.dmax = dmax
        self._check_limits()

    def _check_limits(self) -> None:
        if not self.rmax >= 1 or not self.dmax >= 0:
            raise ValueError(f"rmax must be at least 1 and dmax at least 0, got rmax={self.rmax}, dmax={self.dmax}")

    def _normalize(self, x: Array, mask: Array | None, residual: Array | None) -> Array:
        assert self.running_mean is not None
        assert self.running_var is not None
        self._check_limits()
        count, mean, var = batch_moments(x, channel_axis=self.channel_axis, mask=mask)
        if count == 1:
            raise ValueError(
                f"x of shape {x.shape} has one value per channel on axis {self.channel_axis}"
                f"{'' if mask is None else ' that counts'}: its variance is 0. Training needs at least two; use eval() "
                "for a single one"
            )
        sigma, running_sigma = (np.sqrt(v.astype(np.float64) + self.eps) for v in (var, self.running_var))
        with np.errstate(divide="ignore", invalid="ignore"):  # eps may be 0
            r = np.clip(sigma / running_sigma, 1 / self.rmax, self.rmax)
            d = np.clip((mean - self.running_mean) / running_sigma, -self.dmax, self.dmax)
            rstd = 1 / sigma
        weight, bias = _corrected(self.weight, self.bias, r, d)
        y = batch_norm_inference(x, mean, var, weight, bias, eps=self.eps, **self._settings(residual=residual))
        given = self._settings(mask=mask, residual=residual)
        self._backward = partial(_renorm_backward, x=x, mean=mean, rstd=rstd, r=r, d=d, **given)
        self._track(count, mean, var * (count / max(count - 1, 1)))
        return y


def _corrected(weight: Array | None, bias: Array | None, r: Array, d: Array) -> tuple[Array, Array]:
    """The weight and bias of a batch norm that is the renormalization, in float64."""
    one = np.ones(r.shape) if weight is None else weight.astype(np.float64)
    zero = np.zeros(r.shape) if bias is None else bias.astype(np.float64)
    return one * r, zero + one * d


def _renorm_backward(
    dy: Array,
    *,
    weight: Array | None,
    bias: Array | None,
    r: Array,
    d: Array,
    output_mask: Sequence[bool],
    **given: Any,
) -> tuple[Array | None, ...]:
    scale, offset = _corrected(weight, bias, r, d)
    wanted = (True, True, True, output_mask[3])
    dx, s2, s1, dresidual = batch_norm_backward(dy, weight=scale, bias=offset, output_mask=wanted, **given)
    assert s1 is not None
    assert s2 is not None
    dweight = None if weight is None else (r * s2 + d * s1).astype(weight.dtype)
    dbias = None if bias is None else s1.astype(bias.dtype)
    return dx, dweight, dbias, dresidual
