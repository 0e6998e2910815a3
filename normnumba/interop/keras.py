"""Keras 3's normalization layers as normnumba's, and back."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..layers import BatchNorm, GroupNorm, InstanceNorm, Layer, LayerNorm, RMSNorm
from ..views import Array, Shape
from . import refuse_if

_NAMES = {
    "gamma": "weight",
    "scale": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
"""Keras's names of variables, and ours."""

_SCALES_LAST = "Keras's RMS norm multiplies the last axes by its scale, whichever it normalizes over"


def from_layer(layer: Any) -> Layer:
    """Return a layer with the settings, parameters and running statistics of a layer of Keras, all copied.

    Parameters
    ----------
    layer : keras.layers.Layer
        A built LayerNormalization, RMSNormalization, BatchNormalization or GroupNormalization. With as many groups as
        channels, which is what Keras makes of groups=-1, the last becomes an `InstanceNorm`.

    Returns
    -------
    layer : Layer
        In evaluation mode if the layer of Keras is not trainable, for then a BatchNormalization uses its moving
        statistics in training as well. The dtype of y is that of x, whatever the compute dtype of the layer of Keras.

    Raises
    ------
    TypeError
        For a layer of another type, subclasses among them, or variables of a dtype that is not supported.
    ValueError
        For a layer that is not built, or that behaves as none here does.
    """
    name = type(layer).__name__
    if name not in _FROM or type(layer) is not getattr(_layers(), name):
        raise TypeError(f"{type(layer).__module__}.{name} is none of {', '.join(_FROM)} of keras.layers")
    extras = ("gamma_regularizer", "beta_regularizer", "gamma_constraint", "beta_constraint")
    refuse_if(
        name,
        (not layer.built, "it has no variables yet; call it first, or its build(input_shape)"),
        *((getattr(layer, extra, None) is not None, f"its {extra} has no counterpart") for extra in extras),
    )
    state = {_NAMES[v.name]: _to_array(v) for v in layer.variables if v.name in _NAMES}
    settings = {"eps": layer.epsilon, "dtype": layer.variable_dtype, "convention": "keras"}
    if name != "RMSNormalization":
        settings |= {"weight": "weight" in state, "bias": "bias" in state}
    converted = _FROM[name](layer, layer.get_build_config()["input_shape"], settings)
    if isinstance(converted, BatchNorm):
        state["num_batches_tracked"] = np.zeros((), np.int64)
    converted.load_state_dict(state)
    return converted.train(layer.trainable)


def to_layer(layer: Layer, *, ndim: int | None = None) -> Any:
    """Return a built layer of Keras with the settings, parameters and running statistics of a layer, all copied.

    Parameters
    ----------
    layer : Layer
        Anything but a BatchRenorm. Its mode is not copied: Keras takes it at each call.
    ndim : int, optional
        How many axes x has, samples and channels included. Needed for BatchNorm, GroupNorm and InstanceNorm.

    Returns
    -------
    layer : keras.layers.Layer

    Raises
    ------
    TypeError
        For what is not one of these layers.
    ValueError
        For a layer that behaves as none of Keras does, or a missing or impossible `ndim`.
    """
    kind = type(layer)
    if kind not in _TO:
        raise TypeError(f"Keras has no layer for {kind.__module__}.{kind.__qualname__}")
    settings: dict[str, Any] = {"dtype": layer.dtype.name}
    if kind is not RMSNorm:
        settings |= {"scale": layer.weight is not None, "center": layer.bias is not None}
    converted, axes, lengths = _TO[kind](layer, settings)
    if ndim is None and kind not in (LayerNorm, RMSNorm):
        raise ValueError(f"pass ndim, the number of x's axes, for a {kind.__name__}: Keras has to know it")
    rank = max(max(axes) + 1, -min(axes)) if ndim is None else ndim
    if any(not -rank <= a < rank for a in axes):
        raise ValueError(f"x with ndim={ndim} has not all of the axes {axes}")
    shape: list[int | None] = [None] * rank
    for axis, length in zip(sorted(a % rank for a in axes), lengths, strict=True):
        shape[axis] = length
    converted.build(tuple(shape))
    state = layer.state_dict()
    for variable in converted.variables:
        variable.assign(state[_NAMES[variable.name]])
    return converted


def _from_layer_norm(layer: Any, shape: Shape, settings: dict[str, Any]) -> Layer:
    refuse_if("LayerNormalization", (layer.rms_scaling, "rms_scaling has no counterpart; use RMSNormalization"))
    return LayerNorm(_lengths(layer, shape), axis=tuple(layer.axis), **settings)


def _from_rms_norm(layer: Any, shape: Shape, settings: dict[str, Any]) -> Layer:
    axes, last = [axis % len(shape) for axis in layer.axis], range(len(shape) - len(layer.axis), len(shape))
    refuse_if("RMSNormalization", (axes != list(last), _SCALES_LAST))
    return RMSNorm(_lengths(layer, shape), axis=tuple(layer.axis), **settings)


def _from_batch_norm(layer: Any, shape: Shape, settings: dict[str, Any]) -> Layer:
    refuse_if(
        "BatchNormalization",
        (layer.renorm, "with renorm it keeps statistics that BatchRenorm has not"),
        (layer.synchronized, "synchronized has no counterpart"),
    )
    return BatchNorm(shape[layer.axis], momentum=layer.momentum, channel_axis=layer.axis, **settings)


def _from_group_norm(layer: Any, shape: Shape, settings: dict[str, Any]) -> Layer:
    channels = shape[layer.axis]
    if layer.groups == channels:
        return InstanceNorm(channels, channel_axis=layer.axis, **settings)
    return GroupNorm(layer.groups, channels, channel_axis=layer.axis, **settings)


_FROM: dict[str, Callable[[Any, Shape, dict[str, Any]], Layer]] = {
    "LayerNormalization": _from_layer_norm,
    "RMSNormalization": _from_rms_norm,
    "BatchNormalization": _from_batch_norm,
    "GroupNormalization": _from_group_norm,
}


def _lengths(layer: Any, shape: Shape) -> Shape:
    axes = [axis % len(shape) for axis in layer.axis]
    ordered = axes == sorted(axes)
    refuse_if(type(layer).__name__, (not ordered, f"its axes {layer.axis} are not in the order in which they lie in x"))
    return tuple(shape[axis] for axis in axes)


def _to_layer_norm(layer: LayerNorm, settings: dict[str, Any]) -> tuple[Any, Shape, Shape]:
    made = _layers().LayerNormalization(axis=list(layer.axis), epsilon=layer.eps, **settings)
    return made, layer.axis, layer.normalized_shape


def _to_rms_norm(layer: RMSNorm, settings: dict[str, Any]) -> tuple[Any, Shape, Shape]:
    refuse_if(
        "RMSNorm",
        (layer.weight is None, "Keras always has a scale"),
        (layer.axis != tuple(range(-len(layer.axis), 0)), _SCALES_LAST),
        (layer.eps is None, "its eps depends on the dtype of x; set one"),
        (layer.weight_offset != 0, "Keras has no weight_offset; add it to the weight"),
        (layer.casting != "float32", f"Keras rounds as casting='float32' does, not {layer.casting!r}"),
    )
    made = _layers().RMSNormalization(axis=list(layer.axis), epsilon=layer.eps, **settings)
    return made, layer.axis, layer.normalized_shape


def _to_batch_norm(layer: BatchNorm, settings: dict[str, Any]) -> tuple[Any, Shape, Shape]:
    convention = layer.convention
    refuse_if(
        "BatchNorm",
        (layer.running_mean is None, "Keras always has moving statistics"),
        (layer.momentum is None, "Keras has no average over all batches; set a momentum"),
        (
            convention.unbiased,
            f"Keras keeps the biased moving variance, convention={convention.name!r} the unbiased one; load its state "
            "into a layer with convention='keras' to go on with that",
        ),
    )
    return _with_channels("BatchNormalization", layer, layer.num_features, {"momentum": layer.momentum, **settings})


def _to_group_norm(layer: GroupNorm, settings: dict[str, Any]) -> tuple[Any, Shape, Shape]:
    return _with_channels("GroupNormalization", layer, layer.num_channels, {"groups": layer.num_groups, **settings})


def _to_instance_norm(layer: InstanceNorm, settings: dict[str, Any]) -> tuple[Any, Shape, Shape]:
    refuse_if("InstanceNorm", (layer.running_mean is not None, "Keras has no instance norm with moving statistics"))
    return _with_channels("GroupNormalization", layer, layer.num_features, {"groups": -1, **settings})


def _with_channels(
    name: str, layer: BatchNorm | GroupNorm | InstanceNorm, channels: int, settings: dict[str, Any]
) -> tuple[Any, Shape, Shape]:
    activation = layer.activation
    refuse_if(type(layer).__name__, (activation is not None, f"Keras has no norm with the activation {activation!r}"))
    made = getattr(_layers(), name)(axis=layer.channel_axis, epsilon=layer.eps, **settings)
    return made, (layer.channel_axis,), (channels,)


_TO: dict[type[Layer], Callable[..., tuple[Any, Shape, Shape]]] = {
    LayerNorm: _to_layer_norm,
    RMSNorm: _to_rms_norm,
    BatchNorm: _to_batch_norm,
    GroupNorm: _to_group_norm,
    InstanceNorm: _to_instance_norm,
}


def _layers() -> Any:
    return importlib.import_module("keras").layers


def _to_array(variable: Any) -> Array:
    # Its value, for NumPy 2 warns about the __array__ of the variable itself.
    return np.asarray(importlib.import_module("keras").ops.convert_to_numpy(variable.value))
