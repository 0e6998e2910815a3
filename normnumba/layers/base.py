"""What every layer has: parameters and their gradients, a mode, and a state to save."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..views import NUMBERS, Array, Shape, integer

if TYPE_CHECKING:
    from typing_extensions import Self


class Layer(ABC):
    """A normalization that keeps its parameters, their gradients, and what its backward needs.

    Attributes
    ----------
    weight, bias : ndarray or None
        The parameters. An optimizer changes them in place.
    dtype : dtype
        That of the parameters.
    training : bool
        The mode, which matters to layers with running statistics alone.
    """

    weight: Array | None
    bias: Array | None = None
    training: bool

    _names: ClassVar[tuple[str, ...]] = ("weight", "bias")
    """The parameters that there can be, in the order in which the backward functions return their gradients."""

    def __init__(
        self, shape: Shape, *, weight: bool, bias: bool, dtype: npt.DTypeLike, initial_weight: float = 1
    ) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype not in NUMBERS:
            raise TypeError(f"dtype must be one of {', '.join(d.name for d in NUMBERS)}, got {self.dtype}")
        self.weight = np.full(shape, initial_weight, self.dtype) if weight else None
        self.bias = np.zeros(shape, self.dtype) if bias else None
        self.training = True
        self._backward: functools.partial[Any] | None = None
        self._gradients: dict[str, Array] | None = None

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Normalize x, and keep what `backward` needs: x itself, not a copy, until the next forward."""

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        """Return `forward` of the same arguments."""
        return self.forward(*args, **kwargs)

    def __repr__(self) -> str:
        """Return the settings, and the shapes of the arrays."""
        public = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        shown = {n: v.shape if isinstance(v, np.ndarray) else getattr(v, "name", v) for n, v in public.items()}
        return f"{self._name}({', '.join(f'{name}={value}' for name, value in shown.items())})"

    def backward(self, dy: Array) -> Any:
        """Return the gradient of the last forward's x, and keep those of the parameters for `gradients`.

        Parameters
        ----------
        dy : ndarray
            The gradient of y, in its shape and dtype.

        Returns
        -------
        dx : ndarray
            Of x's shape, dtype and memory layout.

        Raises
        ------
        RuntimeError
            Before a forward.
        TypeError, ValueError
            For a dy that is not like x.
        """
        return self._differentiate(dy)[0]

    def train(self, mode: bool = True) -> Self:
        """Set the mode, training or evaluation, and return the layer."""
        self.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Set the mode to evaluation and return the layer."""
        return self.train(False)

    def parameters(self) -> dict[str, Array]:
        """Return the parameters that there are by name: the layer's own arrays, to be changed in place."""
        values = {name: getattr(self, name) for name in self._names}
        return {name: value for name, value in values.items() if value is not None}

    def gradients(self) -> dict[str, Array]:
        """Return the parameters' gradients by name, as the last backward left them.

        Each backward replaces them by new arrays; nothing is added up, so there is nothing to reset.

        Raises
        ------
        RuntimeError
            Before a backward.
        """
        if self._gradients is None:
            raise RuntimeError(f"{self._name} has no gradients yet: call forward, then backward")
        return self._gradients

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters and running statistics, under PyTorch's names."""
        return {name: value.copy() for name, value in self._state().items()}

    def load_state_dict(self, state: Mapping[str, npt.ArrayLike]) -> None:
        """Copy a state into the layer's arrays, converted to their dtypes.

        Parameters
        ----------
        state : mapping of str to array
            Exactly the names and shapes of `state_dict`.

        Raises
        ------
        ValueError
            For names that are missing or unexpected, or a shape that differs. The layer is left as it was.
        TypeError
            For a dtype that is not real, or not an integer type where one is needed. The layer is left as it was.
        """
        own = self._state()
        missing, unexpected = [name for name in own if name not in state], [name for name in state if name not in own]
        if missing or unexpected:
            raise ValueError(
                f"the state of this {self._name} has the names {list(own)}: {missing} are missing, "
                f"{unexpected} are unexpected"
            )
        converted = {name: _converted(name, state[name], array) for name, array in own.items()}
        for name, array in own.items():
            array[...] = converted[name]

    def _state(self) -> dict[str, Array]:
        """The arrays that make up the layer."""
        return self.parameters()

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _require(self, x: Array, axes: Shape, shape: Shape) -> None:
        """Refuse x unless it has `shape` on `axes`, which a function without parameters could not tell."""
        if not isinstance(x, np.ndarray):
            kind = f"{type(x).__module__}.{type(x).__qualname__}"
            raise TypeError(f"x must be a numpy.ndarray, got {kind}; convert it with numpy.asarray(...)")
        inside = all(-x.ndim <= a < x.ndim for a in axes)
        if not inside or tuple(x.shape[a] for a in sorted(a % x.ndim for a in axes)) != shape:
            wanted = f"{shape[0]} on axis {axes[0]}" if len(axes) == 1 else f"{shape} on axes {axes}"
            raise ValueError(f"this {self._name} takes x with {wanted}, got x of shape {x.shape}")

    def _differentiate(self, dy: Array, *others: bool) -> tuple[Any, ...]:
        """The gradients of x and of whatever `others` ask for; those of the parameters are kept."""
        if self._backward is None:
            raise RuntimeError(f"{self._name}.backward needs a forward before it: call the layer on x first")
        values = {name: getattr(self, name) for name in self._names}
        wanted = (True, *(value is not None for value in values.values()), *others)
        dx, *rest = self._backward(dy, **values, output_mask=wanted)
        self._gradients = {name: g for name, g in zip(values, rest, strict=False) if g is not None}
        return (dx, *rest[len(values) :])


def size(name: str, value: Any) -> int:
    """`value` as an int that can be a length."""
    number = integer(name, value)
    if number < 0:
        raise ValueError(f"{name} must not be negative, got {number}")
    return number


def _converted(name: str, value: npt.ArrayLike, own: Array) -> Array:
    """`value` in the dtype of the layer's own array, if it can stand for it."""
    array = np.asarray(value)
    if array.dtype.kind not in ("iu" if own.dtype.kind == "i" else "fiub") and array.dtype.name != "bfloat16":
        kind = "an integer" if own.dtype.kind == "i" else "a real"
        raise TypeError(f"{name} must be of {kind} dtype, got {array.dtype}")
    if array.shape != own.shape:
        raise ValueError(f"{name} must have shape {own.shape}, got {array.shape}")
    return array.astype(own.dtype)
