"""Batch norm folded into the linear map before it."""

from __future__ import annotations

from ..dispatch import home
from ..views import NUMBERS, Array, axis_of, integer
from .checks import FLOAT64, as_gradient, finite, parameter, rsqrt


def fold_batch_norm(
    weight: Array,
    bias: Array | None,
    mean: Array,
    var: Array,
    bn_weight: Array | None = None,
    bn_bias: Array | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 0,
) -> tuple[Array, Array]:
    """The weight and bias of a convolution or linear layer that does the work of the batch norm after it, too.

    folded_weight = weight * scale and folded_bias = (bias - mean) * scale + bn_bias, with
    scale = bn_weight / sqrt(var + eps) along `axis`.

    Parameters
    ----------
    weight : ndarray
        Of a linear layer or a convolution, float16, bfloat16, float32 or float64. Not changed.
    bias : ndarray or None
        (C,) with C = weight.shape[axis]. None stands for zeros.
    mean, var : ndarray
        (C,), the batch norm's running statistics.
    bn_weight, bn_bias : ndarray, optional
        (C,), the batch norm's parameters. None stands for ones and zeros.
    eps : float
        The batch norm's.
    axis : int
        Where the weight has its output channels: 0 in PyTorch's linear layers and convolutions, 1 in its transposed
        convolutions of one group, -1 in Keras's and Flax's layers, -2 in Keras's transposed convolutions.

    Returns
    -------
    folded_weight, folded_bias : ndarray
        In the shape and dtype of weight, and (C,) in the dtype of bias, or weight's without one. Computed in float64.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes that do not fit.

    Notes
    -----
    Jacob et al., Quantization and Training of Neural Networks, 2018 (arXiv:1712.05877), equation 14. It holds for
    evaluation only, where the statistics are constants.
    """
    home(weight, bias, mean, var, bn_weight, bn_bias)
    if weight is None or weight.dtype not in NUMBERS:
        kinds = ", ".join(d.name for d in NUMBERS)
        raise TypeError(f"weight must have one of the dtypes {kinds}, got {None if weight is None else weight.dtype}")
    place = axis_of("axis", integer("axis", axis), weight.shape)
    channels = (weight.shape[place],)
    means, variances = (parameter(n, v, channels, FLOAT64) for n, v in (("mean", mean), ("var", var)))
    scale = parameter("bn_weight", bn_weight, channels, FLOAT64, 1) * rsqrt(variances + finite("eps", eps))
    shift = parameter("bn_bias", bn_bias, channels, FLOAT64, 0)
    before = parameter("bias", bias, channels, FLOAT64, 0)
    along = scale.reshape([-1 if a == place else 1 for a in range(weight.ndim)])
    folded = (weight.astype(FLOAT64) * along).astype(weight.dtype)
    return folded, as_gradient((before - means) * scale + shift, bias, weight.dtype)
