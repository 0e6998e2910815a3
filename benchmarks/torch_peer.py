"""torch, eager and compiled: its own operators where it has them, else the formula that its user would write.

A function has the name of its op and takes the table's arguments as tensors, channels on axis 1 and normalized axes
last: the only places where torch takes them, and views at no cost.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.cases import X_SIZED, Arguments, Op
from benchmarks.contender import Contender

torch: Any = None
"""The module, once `load` has imported it: asv imports this file where there is no torch."""

Tensor = Any
MASK = [True, True, True]


def load(threads: int) -> None:
    """Import torch, with as many threads as numba has."""
    global torch
    import torch

    torch.set_num_threads(threads)


# --- to tensors and back ---------------------------------------------------------------------------------------------


def tensor_of(array: np.ndarray, device: str = "cpu") -> Tensor:
    """`array` as a tensor, which shares its memory on the CPU."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device)


def array_of(tensor: Tensor) -> np.ndarray:
    """A tensor as an array, which shares its memory on the CPU."""
    tensor = tensor.cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _axis(a: Arguments) -> tuple[int, int]:
    """The axis that the table means, and where torch wants it."""
    return (a["axis"], -1) if "axis" in a else (a["channel_axis"], 1)


def given_to(a: Arguments, device: str = "cpu") -> dict[str, Any]:
    """The arguments of the function in this file."""
    here, there = _axis(a)
    given = {k: v for k, v in a.items() if k not in ("axis", "channel_axis")}
    for name, array in a.items():
        if isinstance(array, np.ndarray):
            given[name] = tensor_of(array, device)
            if name in X_SIZED and array.ndim > 1:
                given[name] = given[name].movedim(here, there)
            elif there == -1 and name in ("mean", "rstd"):
                given[name] = given[name].unsqueeze(-1)
    return given


def outputs_of(op: Op, a: Arguments, result: Any) -> tuple[Any, ...]:
    here, there = _axis(a)
    found: list[Any] = []
    for name, value in zip(op.outputs, result if isinstance(result, tuple) else (result,), strict=False):
        if torch.is_tensor(value):
            if name in X_SIZED and value.ndim > 1:
                value = value.movedim(there, here)
            elif there == -1 and name in ("mean", "rstd"):
                value = value.squeeze(-1)
            value = array_of(value)
        found.append(value)
    return (*found, *[None] * (len(op.outputs) - len(found)))


def prepare(op: Op, arguments: Arguments, device: str = "cpu") -> Contender:
    """The op as eager torch runs it."""
    function, given = globals()[op.function], given_to(arguments, device)
    if op.direction == "backward" and "activation" in given:
        # Autograd has kept what went into the activation.
        forward = {k: v for k, v in given.items() if k not in ("dy", "mean", "rstd", "activation")}
        given["z"] = globals()[f"{op.family}_forward"](**forward)[0]
    return Contender(partial(function, **given), partial(outputs_of, op, arguments))


def prepare_compiled(op: Op, arguments: Arguments, device: str = "cpu") -> Contender:
    """The same function through torch.compile, from exactly the op's inputs."""
    # One code object serves all shapes, and after a few of them torch would quietly go on without compiling.
    torch.compiler.reset()
    compiled = torch.compile(globals()[op.function], dynamic=False, fullgraph=True)
    return Contender(partial(compiled, **given_to(arguments, device)), partial(outputs_of, op, arguments))


# --- what several ops share ------------------------------------------------------------------------------------------


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.itemsize == 2 else x


def _along(p: Tensor, x: Tensor) -> Tensor:
    """View a parameter of the channels so that it broadcasts against x."""
    return p.view(-1, *[1] * (x.ndim - 2))


def _not_channels(x: Tensor) -> list[int]:
    return [a for a in range(x.ndim) if a != 1]


def _xhat(x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    if mean.ndim == 1:
        return (_wide(x) - _along(mean, x)) * _along(rstd, x)
    grouped = _wide(x).reshape(*mean.shape, -1)
    return ((grouped - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)).reshape(x.shape)


def _followed(outputs: tuple[Tensor, ...], residual: Tensor | None, activation: str | None) -> tuple[Tensor, ...]:
    """A norm's outputs after a residual and an activation, in place where torch can."""
    z, *statistics = outputs
    if residual is not None:
        z = z.add_(residual)
    if activation == "relu":
        z = torch.relu_(z)
    elif activation == "silu":
        z = torch.nn.functional.silu(z, inplace=True)
    elif activation == "gelu":
        z = torch.nn.functional.gelu(z)
    return z, *statistics


def _before(dy: Tensor, activation: str | None, z: Tensor) -> Tensor:
    """The gradient before an activation."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(dy, z, 0)
    if activation == "silu":
        return torch.ops.aten.silu_backward(dy, z)
    raise NotImplementedError(activation)


def _recomputed(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """What went into the activation."""
    z = _xhat(x, mean, rstd) * _along(weight, x) + _along(bias, x)
    return (z if residual is None else z + residual).to(x.dtype)


# --- rows ------------------------------------------------------------------------------------------------------------


def layer_norm_forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return torch.native_layer_norm(x, weight.shape, weight, bias, 1e-5)


def layer_norm_backward(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, ...]:
    return torch.ops.aten.native_layer_norm_backward(dy, x, weight.shape, mean, rstd, weight, bias, MASK)


def rms_norm_forward(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.aten._fused_rms_norm(x, weight.shape, weight, 1e-6)


def rms_norm_backward(dy: Tensor, x: Tensor, rstd: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    dy, xhat = _wide(dy), _wide(x) * rstd
    dweight = (dy * xhat).sum(list(range(x.ndim - 1)))
    dxhat = dy * weight
    dx = (dxhat - xhat * (dxhat * xhat).mean(-1, keepdim=True)) * rstd
    return dx.to(x.dtype), dweight


def add_layer_norm_forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    summed = x + residual
    y, mean, rstd = layer_norm_forward(summed, weight, bias)
    return y, summed, mean, rstd


def add_layer_norm_backward(
    dy: Tensor, dsummed: Tensor, summed: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, ...]:
    dx, dweight, dbias = layer_norm_backward(dy, summed, mean, rstd, weight, bias)
    dx = dx.add_(dsummed)
    return dx, dx, dweight, dbias


def add_rms_norm_forward(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    summed = x + residual
    y, rstd = rms_norm_forward(summed, weight)
    return y, summed, rstd


def add_rms_norm_backward(
    dy: Tensor, dsummed: Tensor, summed: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, ...]:
    dx, dweight = rms_norm_backward(dy, summed, rstd, weight)
    dx = dx.add_(dsummed)
    return dx, dx, dweight


# --- channels --------------------------------------------------------------------------------------------------------


def batch_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, activation: str | None = None
) -> tuple[Tensor, ...]:
    normalized = torch.native_batch_norm(x, weight, bias, None, None, True, 0.1, 1e-5)
    return _followed(normalized, residual, activation)


def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
    z: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    if activation is not None:
        dy = _before(dy, activation, _recomputed(x, mean, rstd, weight, bias, residual) if z is None else z)
    backward = torch.ops.aten.native_batch_norm_backward
    gradients = backward(dy, x, weight, None, None, mean, rstd, True, 1e-5, MASK)
    return *gradients, None if residual is None else dy


def batch_norm_inference(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, activation: str | None = None
) -> Tensor:
    normalized = torch.native_batch_norm(x, weight, bias, mean, var, False, 0.1, 1e-5)
    return _followed(normalized, None, activation)[0]


def batch_norm_inference_backward(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, ...]:
    backward = torch.ops.aten.native_batch_norm_backward
    return backward(dy, x, weight, mean, var, None, None, False, 1e-5, MASK)


def batch_moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    var, mean = torch.var_mean(_wide(x), _not_channels(x), correction=0)
    return x.numel() // x.shape[1], mean, var


def batch_norm_backward_sums(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    over, dy = _not_channels(x), _wide(dy)
    return dy.sum(over), (dy * (_wide(x) - _along(mean, x))).sum(over) * rstd


def batch_norm_backward_apply(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    sum_dy: Tensor,
    sum_dy_xhat: Tensor,
    count: int,
) -> Tensor:
    # The sums come in float64 and would widen everything they touch.
    constant, slope = ((s / count).to(rstd.dtype) for s in (sum_dy, sum_dy_xhat))
    centered = _wide(x) - _along(mean, x)
    dx = (_wide(dy) - _along(constant, x) - centered * _along(slope * rstd, x)) * _along(weight * rstd, x)
    return dx.to(x.dtype)


# --- groups ----------------------------------------------------------------------------------------------------------


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])


def group_norm_forward(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, activation: str | None = None
) -> tuple[Tensor, ...]:
    return _followed(torch.native_group_norm(x, weight, bias, *_sizes(x), num_groups, 1e-5), None, activation)


def group_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    activation: str | None = None,
    z: Tensor | None = None,
) -> tuple[Tensor, ...]:
    if activation is not None:
        dy = _before(dy, activation, _recomputed(x, mean, rstd, weight, bias, None) if z is None else z)
    backward = torch.ops.aten.native_group_norm_backward
    return backward(dy, x, mean, rstd, weight, *_sizes(x), num_groups, MASK)


def instance_norm_forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return group_norm_forward(x, x.shape[1], weight, bias)


def instance_norm_backward(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, ...]:
    return group_norm_backward(dy, x, mean, rstd, x.shape[1], weight, bias)
