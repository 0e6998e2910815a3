"""PyTorch's normalization modules as normnumba's layers, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ..layers import BatchNorm, GroupNorm, InstanceNorm, Layer, LayerNorm, RMSNorm
from ..views import NUMBERS, Array
from . import refuse_if

if TYPE_CHECKING:
    import torch

_BATCH = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
_INSTANCE = {3: "InstanceNorm1d", 4: "InstanceNorm2d", 5: "InstanceNorm3d"}
"""PyTorch's names by the number of x's axes."""

_NEVER = "PyTorch never updates the running statistics of an instance norm with momentum=None; set a momentum"


def from_module(module: torch.nn.Module) -> Layer:
    """Return a layer with the settings, parameters, running statistics and mode of a module, all copied.

    Parameters
    ----------
    module : torch.nn.Module
        A LayerNorm, RMSNorm, GroupNorm, BatchNorm1d, 2d or 3d, or InstanceNorm1d, 2d or 3d, on any device.

    Returns
    -------
    layer : Layer

    Raises
    ------
    TypeError
        For a module of another type, subclasses among them, or parameters that are not of one supported dtype.
    ValueError
        For a module that behaves as no layer does.
    """
    from torch import nn

    name = type(module).__name__
    if name not in _FROM or type(module) is not getattr(nn, name):
        raise TypeError(f"{type(module).__module__}.{name} is none of {', '.join(_FROM)} of torch.nn")
    layer = _FROM[name](module, {"eps": module.eps, "dtype": _dtype_of(module)})
    layer.load_state_dict({key: _to_array(tensor) for key, tensor in module.state_dict().items()})
    return layer.train(module.training)


def to_module(layer: Layer, *, ndim: int | None = None) -> torch.nn.Module:
    """Return a module on the CPU with the settings, parameters, running statistics and mode of a layer, all copied.

    Parameters
    ----------
    layer : Layer
        Anything but a BatchRenorm.
    ndim : int, optional
        How many axes x has, samples and channels included. Needed for BatchNorm (2 or 3 make a BatchNorm1d, 4 a 2d, 5
        a 3d) and for InstanceNorm (3, 4 or 5).

    Returns
    -------
    module : torch.nn.Module

    Raises
    ------
    TypeError
        For what is not one of these layers.
    ValueError
        For a layer that behaves as no module does, or a missing or impossible `ndim`.
    """
    import torch

    kind = type(layer)
    if kind not in _TO:
        raise TypeError(f"PyTorch has no module for {kind.__module__}.{kind.__qualname__}")
    refuse_if(kind.__name__, (layer.weight is None and layer.bias is not None, "PyTorch has no bias without a weight"))
    module = _TO[kind](layer, ndim, {"dtype": getattr(torch, layer.dtype.name)})
    if layer.weight is not None and layer.bias is None and kind is not RMSNorm:
        module.register_parameter("bias", None)
    module.load_state_dict({key: _to_tensor(array) for key, array in layer.state_dict().items()})
    return module.train(layer.training)


def _from_layer_norm(module: Any, settings: dict[str, Any]) -> Layer:
    return LayerNorm(module.normalized_shape, **_affine(module), **settings)


def _from_rms_norm(module: Any, settings: dict[str, Any]) -> Layer:
    return RMSNorm(module.normalized_shape, elementwise_affine=module.weight is not None, **settings)


def _from_group_norm(module: Any, settings: dict[str, Any]) -> Layer:
    return GroupNorm(module.num_groups, module.num_channels, **_affine(module), **settings)


def _from_batch_norm(module: Any, settings: dict[str, Any]) -> Layer:
    return BatchNorm(module.num_features, **_affine(module), **_tracking(module), **settings)


def _from_instance_norm(module: Any, settings: dict[str, Any]) -> Layer:
    never = module.track_running_stats and module.momentum is None
    refuse_if(type(module).__name__, (never, _NEVER))
    return InstanceNorm(module.num_features, affine=True, **_affine(module), **_tracking(module), **settings)


_FROM: dict[str, Callable[[Any, dict[str, Any]], Layer]] = {
    "LayerNorm": _from_layer_norm,
    "RMSNorm": _from_rms_norm,
    "GroupNorm": _from_group_norm,
    **dict.fromkeys(_BATCH.values(), _from_batch_norm),
    **dict.fromkeys(_INSTANCE.values(), _from_instance_norm),
}


def _affine(module: Any) -> dict[str, Any]:
    return {"weight": module.weight is not None, "bias": module.bias is not None}


def _tracking(module: Any) -> dict[str, Any]:
    tracks = module.running_mean is not None
    changed = tracks != module.track_running_stats
    refuse_if(type(module).__name__, (changed, "its track_running_stats was changed after it was made"))
    return {"momentum": module.momentum, "track_running_stats": tracks}


def _dtype_of(module: torch.nn.Module) -> str:
    """The dtype of the parameters, or without any of the running statistics."""
    tensors = list(module.parameters()) or [b for b in module.buffers() if b.is_floating_point()]
    names = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}) or ["float32"]
    supported = [dtype.name for dtype in NUMBERS]
    if len(names) > 1 or names[0] not in supported:
        raise TypeError(f"the parameters must be of one dtype of {', '.join(supported)}, got {', '.join(names)}")
    return names[0]


def _to_layer_norm(layer: LayerNorm, ndim: int | None, settings: dict[str, Any]) -> Any:
    from torch import nn

    _require_trailing(layer)
    affine = layer.weight is not None
    return nn.LayerNorm(layer.normalized_shape, eps=layer.eps, elementwise_affine=affine, **settings)


def _to_rms_norm(layer: RMSNorm, ndim: int | None, settings: dict[str, Any]) -> Any:
    from torch import nn

    _require_trailing(layer)
    refuse_if(
        "RMSNorm",
        (layer.weight_offset != 0, "PyTorch has no weight_offset; add it to the weight"),
        (layer.casting != "float32", f"PyTorch rounds as casting='float32' does, not {layer.casting!r}"),
    )
    affine = layer.weight is not None
    return nn.RMSNorm(layer.normalized_shape, eps=layer.eps, elementwise_affine=affine, **settings)


def _to_group_norm(layer: GroupNorm, ndim: int | None, settings: dict[str, Any]) -> Any:
    from torch import nn

    _require_plain_channels(layer, ndim)
    affine = layer.weight is not None
    return nn.GroupNorm(layer.num_groups, layer.num_channels, eps=layer.eps, affine=affine, **settings)


def _to_batch_norm(layer: BatchNorm, ndim: int | None, settings: dict[str, Any]) -> Any:
    return _to_tracking(_BATCH, layer, ndim, settings)


def _to_instance_norm(layer: InstanceNorm, ndim: int | None, settings: dict[str, Any]) -> Any:
    never = layer.running_mean is not None and layer.momentum is None
    refuse_if("InstanceNorm", (never, _NEVER))
    return _to_tracking(_INSTANCE, layer, ndim, settings)


def _to_tracking(
    names: dict[int, str], layer: BatchNorm | InstanceNorm, ndim: int | None, settings: dict[str, Any]
) -> Any:
    from torch import nn

    _require_plain_channels(layer, ndim)
    tracks, convention = layer.running_mean is not None, layer.convention
    refuse_if(
        type(layer).__name__,
        (
            tracks and not convention.unbiased,
            f"PyTorch keeps the unbiased running variance, convention={convention.name!r} the biased one; load its "
            "state into a layer with convention='torch' to go on with that",
        ),
    )
    if ndim not in names:
        raise ValueError(f"pass ndim, the number of x's axes, one of {list(names)}, got {ndim}")
    momentum = None if layer.momentum is None else convention.weight_of_new(layer.momentum, 1)
    return getattr(nn, names[ndim])(
        layer.num_features,
        eps=layer.eps,
        momentum=momentum,
        affine=layer.weight is not None,
        track_running_stats=tracks,
        **settings,
    )


_TO: dict[type[Layer], Callable[..., Any]] = {
    LayerNorm: _to_layer_norm,
    RMSNorm: _to_rms_norm,
    GroupNorm: _to_group_norm,
    BatchNorm: _to_batch_norm,
    InstanceNorm: _to_instance_norm,
}


def _require_trailing(layer: LayerNorm | RMSNorm) -> None:
    others = layer.axis != tuple(range(-len(layer.axis), 0))
    refuse_if(type(layer).__name__, (others, f"PyTorch normalizes over the last axes, not {layer.axis}"))


def _require_plain_channels(layer: GroupNorm | BatchNorm | InstanceNorm, ndim: int | None) -> None:
    first = layer.channel_axis == 1 or (ndim is not None and layer.channel_axis == 1 - ndim)
    refuse_if(
        type(layer).__name__,
        (not first, f"PyTorch has channels on axis 1, not {layer.channel_axis}"),
        (layer.activation is not None, f"PyTorch has no norm with the activation {layer.activation!r}"),
    )


def _to_array(tensor: torch.Tensor) -> Array:
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _to_tensor(array: Array) -> torch.Tensor:
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
