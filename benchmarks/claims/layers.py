"""What the study's networks have besides norms: layers in NumPy, each with its gradient written by hand.

They have the interface of normnumba.layers. Calling one keeps what its backward needs; backward(dy) returns the
gradient of the input; parameters() and gradients() are dictionaries of arrays under the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

Array = Any


class Layer(Protocol):
    """What normnumba's layers and these have in common."""

    def __call__(self, x: Array) -> Array: ...

    def backward(self, dy: Array) -> Array: ...

    def parameters(self) -> dict[str, Array]: ...

    def gradients(self) -> dict[str, Array]: ...

    def train(self, mode: bool = True) -> Any: ...


class Plain:
    """A layer without parameters unless it says otherwise."""

    names: tuple[str, ...] = ()
    training = True

    def parameters(self) -> dict[str, Array]:
        return {name: getattr(self, name) for name in self.names}

    def gradients(self) -> dict[str, Array]:
        return {name: getattr(self, "d" + name) for name in self.names}

    def train(self, mode: bool = True) -> Plain:
        self.training = mode
        return self


class Linear(Plain):
    """y = x @ weight + bias, the weight drawn with variance gain^2 / inputs, the bias 0."""

    names = ("weight", "bias")

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator, gain: float = 1.0) -> None:
        self.weight = rng.standard_normal((inputs, outputs)) * (gain / np.sqrt(inputs))
        self.bias = np.zeros(outputs)

    def __call__(self, x: Array) -> Array:
        self.x = x
        y = x @ self.weight
        y += self.bias
        return y

    def backward(self, dy: Array) -> Array:
        inputs, outputs = self.weight.shape
        rows = dy.reshape(-1, outputs)
        self.dweight = self.x.reshape(-1, inputs).T @ rows
        self.dbias = rows.sum(axis=0)
        return dy @ self.weight.T


class Conv(Linear):
    """A 3 x 3 convolution of (N, H, W, C) with zeros around it: `Linear` of each pixel's neighbourhood (im2col)."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator, gain: float = 1.0, stride: int = 1) -> None:
        super().__init__(9 * inputs, outputs, rng, gain)
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        self.shape = padded.shape
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        windows = windows[:, :: self.stride, :: self.stride]  # (N, H', W', C, 3, 3)
        return super().__call__(windows.reshape(*windows.shape[:3], -1))

    def backward(self, dy: Array) -> Array:
        n, height, width = dy.shape[:3]
        dwindows = super().backward(dy).reshape(n, height, width, -1, 3, 3)
        dpadded = np.zeros(self.shape, dy.dtype)
        for i in range(3):
            for j in range(3):
                rows = slice(i, i + self.stride * (height - 1) + 1, self.stride)
                columns = slice(j, j + self.stride * (width - 1) + 1, self.stride)
                dpadded[:, rows, columns] += dwindows[..., i, j]
        return dpadded[:, 1:-1, 1:-1]


class Relu(Plain):
    """y = max(x, 0)"""

    gain = np.sqrt(2)  # He et al., 2015 (arXiv:1502.01852): keeps the second moment from layer to layer

    def __call__(self, x: Array) -> Array:
        self.positive = x > 0
        return x * self.positive

    def backward(self, dy: Array) -> Array:
        return dy * self.positive


class Tanh(Plain):
    """y = tanh(x)"""

    gain = 1.0

    def __call__(self, x: Array) -> Array:
        self.y = np.tanh(x)
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy * (1 - self.y * self.y)


class Sigmoid(Plain):
    """y = 1 / (1 + exp(-x)), as (1 + tanh(x / 2)) / 2, which does not overflow."""

    gain = 1.0

    def __call__(self, x: Array) -> Array:
        self.y = 0.5 + 0.5 * np.tanh(0.5 * x)
        return self.y

    def backward(self, dy: Array) -> Array:
        return dy * (self.y * (1 - self.y))


class Average(Plain):
    """The mean over height and width: (N, H, W, C) becomes (N, C)."""

    def __call__(self, x: Array) -> Array:
        self.shape = x.shape
        return x.mean(axis=(1, 2))

    def backward(self, dy: Array) -> Array:
        _, height, width, _ = self.shape
        return np.broadcast_to(dy[:, None, None] / (height * width), self.shape)


class Noise(Plain):
    """y = x * factor + offset in training, both of them random; y = x in evaluation."""

    def __init__(self, size: float, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng

    def draw(self, x: Array) -> tuple[Array, Array]:
        """The factor and the offset for one batch."""
        raise NotImplementedError

    def __call__(self, x: Array) -> Array:
        self.factor: Array | None = None
        if not self.training:
            return x
        self.factor, offset = self.draw(x)
        return x * self.factor + offset

    def backward(self, dy: Array) -> Array:
        return dy if self.factor is None else dy * self.factor


class Dropout(Noise):
    """y = x * m / (1 - size) in training, where m is 0 with probability `size` and else 1."""

    def draw(self, x: Array) -> tuple[Array, Array]:
        kept = self.rng.random(x.shape, np.float32) >= self.size
        return kept * x.dtype.type(1 / (1 - self.size)), x.dtype.type(0)


class Shift(Noise):
    """y = x * exp(a) + b in training, a and b normal with deviation `size`, drawn anew for every unit in every step.

    So the distribution of the input of the next layer moves from step to step, however well it was normalized before
    (Santurkar et al., 2018, arXiv:1805.11604).
    """

    def draw(self, x: Array) -> tuple[Array, Array]:
        a, b = self.size * self.rng.standard_normal((2, x.shape[-1]), np.float32)
        return np.exp(a).astype(x.dtype), b.astype(x.dtype)


class Recurrent(Plain):
    """h_t = tanh(norm(x_t @ weight_x + h_(t-1) @ weight_h + bias)) from h_0 = 0; y is the last h.

    Ba et al., 2016 (arXiv:1607.06450) normalize there, and Cooijmans et al., 2016 (arXiv:1603.09025) do so with batch
    norm, each step of time having running statistics of its own. All steps share the norm's weight and bias.

    Parameters
    ----------
    inputs, hidden : int
        x is (N, T, inputs), y is (N, hidden).
    steps : int
        T.
    norm : callable
        Makes the norm of one step, or None.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        steps: int,
        norm: Callable[[], Layer | None],
        rng: np.random.Generator,
        gain: float = 1.0,
    ) -> None:
        self.weight_x = rng.standard_normal((inputs, hidden)) * (gain / np.sqrt(inputs))
        self.weight_h = rng.standard_normal((hidden, hidden)) * (gain / np.sqrt(hidden))
        self.bias = np.zeros(hidden)
        self.norms: Sequence[Any] = [made for made in (norm() for _ in range(steps)) if made is not None]
        self.names = ("weight_x", "weight_h", "bias")
        if self.norms:
            self.names += ("norm_weight", "norm_bias")
            self.norm_weight, self.norm_bias = self.norms[0].weight, self.norms[0].bias

    def train(self, mode: bool = True) -> Recurrent:
        for norm in self.norms:
            norm.train(mode)
        return self

    def __call__(self, x: Array) -> Array:
        self.x = x
        driven = x @ self.weight_x + self.bias
        self.h = [np.zeros((len(x), len(self.bias)), x.dtype)]
        for t in range(x.shape[1]):
            z = driven[:, t] + self.h[t] @ self.weight_h
            if self.norms:
                norm = self.norms[t]
                norm.weight, norm.bias = self.norm_weight, self.norm_bias
                z = norm(z)
            self.h.append(np.tanh(z))
        return self.h[-1]

    def backward(self, dy: Array) -> Array:
        dx = np.empty_like(self.x)
        for name in self.names:
            setattr(self, "d" + name, np.zeros_like(getattr(self, name)))
        for t in reversed(range(self.x.shape[1])):
            dz = dy * (1 - self.h[t + 1] * self.h[t + 1])
            if self.norms:
                dz = self.norms[t].backward(dz)
                gradients = self.norms[t].gradients()
                self.dnorm_weight += gradients["weight"]
                self.dnorm_bias += gradients["bias"]
            self.dweight_x += self.x[:, t].T @ dz
            self.dweight_h += self.h[t].T @ dz
            self.dbias += dz.sum(axis=0)
            dx[:, t] = dz @ self.weight_x.T
            dy = dz @ self.weight_h.T
        return dx


ACTIVATIONS = {"relu": Relu, "tanh": Tanh, "sigmoid": Sigmoid}
