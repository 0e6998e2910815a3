"""Which backend an array belongs to: where its memory is decides, never a setting, and never a silent fallback."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, ParamSpec, TypeVar, overload

import numpy as np

from .device import availability
from .device.array import DeviceArray, Place
from .device.kinds import kind_of
from .kernels import cpu

P = ParamSpec("P")
R = TypeVar("R")

_HOST = frozenset((np.ndarray, type(None)))
_DEVICE = frozenset((DeviceArray, type(None)))

_NO_ARRAYS = frozenset(
    (
        *("num_groups", "axis", "channel_axis", "eps", "momentum", "weight_offset"),
        *("casting", "activation", "output_mask", "x_dtype", "count"),
    )
)
"""The names of the arguments that are never arrays."""

_WRITTEN = ("out", "running_mean", "running_var")
"""The names of the arguments that are written to."""


def backends() -> dict[str, str | None]:
    """Return for each backend None, or why it cannot be used here.

    Returns
    -------
    dict
        Keys "cpu" and "cuda".
    """
    return {"cpu": None, "cuda": availability.why_not()}


def home(*arrays: Any) -> ModuleType:
    """Return the kernels for these arrays; None is at home everywhere.

    Raises
    ------
    TypeError
        If one is not an array, or they are not all in the same place.
    """
    if _HOST.issuperset(map(type, arrays)):
        return cpu
    if _DEVICE.issuperset(map(type, arrays)):
        return availability.kernels()
    return _uncommon_home(arrays)


def _uncommon_home(arrays: tuple[Any, ...]) -> ModuleType:
    present = [a for a in arrays if a is not None]
    on_device = [_is_on_device(a) for a in present]
    if any(on_device):
        if not all(on_device):
            raise _in_two_places(present)
        raise TypeError(f"this function takes numpy.ndarray alone, got {_full_name(present[0])}; copy it to the host")
    for array in present:
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError("masked arrays are not supported: their mask would be ignored; pass array.filled(...)")
        if not isinstance(array, np.ndarray):
            raise TypeError(f"arrays must be numpy.ndarray, got {_full_name(array)}; convert with numpy.asarray(...)")
    return cpu


def _is_on_device(array: Any) -> bool:
    return isinstance(array, DeviceArray) or kind_of(array) is not None


def _in_two_places(arrays: list[Any]) -> TypeError:
    kinds = ", ".join(sorted({type(a).__name__ for a in arrays}))
    return TypeError(f"all arrays must be in one place, got host and device arrays together ({kinds})")


def _full_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


@overload
def everywhere(function: Callable[P, R]) -> Callable[P, R]: ...


@overload
def everywhere(*, short: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def everywhere(function: Any = None, *, short: Any = None) -> Any:
    """Let a public function that is written for ndarrays and `DeviceArray` take every kind of array on a device.

    Its results are of the kind of its arguments, and those that are an argument are that very object.

    `short` is the function's short form in `ops.plain`. It is tried where all arrays that it takes are ndarrays or
    None, and all arguments that it does not take are at their defaults.
    """
    if function is None:
        return functools.partial(everywhere, short=short)
    # The parameters are written out, for packing and unpacking **kwargs takes 0.3 us longer, a tenth of a small call.
    parameters = inspect.signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.name not in positional]
    passed = ", ".join([*positional, *(f"{name}={name}" for name in keywords)])
    source = f"""
def {function.__name__}({", ".join([*positional, *(["*"] if keywords else []), *keywords])}):
    if type({positional[0]}) is ndarray:
        {_attempt(parameters, short) if short else ""}
        return function({passed})
    return elsewhere(function, dict({", ".join(f"{p.name}={p.name}" for p in parameters)}))
"""
    names: dict[str, Any] = {"ndarray": np.ndarray, "function": function, "elsewhere": _call_elsewhere, "short": short}
    names |= {f"default_{p.name}": p.default for p in parameters}
    exec(compile(source, f"<everywhere {function.__name__}>", "exec"), names)
    call = names[function.__name__]
    call.__defaults__, call.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return functools.update_wrapper(call, function)


def _attempt(parameters: Iterable[inspect.Parameter], short: Callable[..., Any]) -> str:
    """Code that returns what the short form does, if it does it."""
    taken = list(inspect.signature(short).parameters)
    conditions = [f"({_condition(p, taken)})" for p in parameters if p.name not in taken or p.name not in _NO_ARRAYS]
    return f"""
        if {" and ".join(conditions)}:
            try:
                results = short({", ".join(taken)})
            except TypeError:
                results = None
            if results is not None:
                return results
"""


def _condition(parameter: inspect.Parameter, taken: list[str]) -> str:
    """Under which argument the short form may be called."""
    name, default = parameter.name, f"default_{parameter.name}"
    if name in taken:
        return f"type({name}) is ndarray or {name} is {default}"
    if parameter.default is None:
        return f"{name} is None"
    return f"{name} is {default} or type({name}) is type({default}) and {name} == {default}"


def _call_elsewhere(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    arrays = {name: a for name, a in given.items() if a is not None and name not in _NO_ARRAYS}
    if DeviceArray in map(type, arrays.values()):  # one public function called another
        return function(**given)
    kinds: dict[str, Any] = {name: kind_of(a) for name, a in arrays.items()}
    if not any(kinds.values()):
        return function(**given)
    place, adopted = _adopt(arrays, kinds)
    try:
        result = function(**given | adopted)
        for name in _WRITTEN:
            if name in adopted:
                place.wrote(adopted[name])
    finally:
        place.finish()
    return tuple(map(_exported, result)) if isinstance(result, tuple) else _exported(result)


def _exported(value: Any) -> Any:
    return value.place.export(value) if type(value) is DeviceArray else value


def _adopt(arrays: dict[str, Any], kinds: dict[str, Any]) -> tuple[Place, dict[str, DeviceArray]]:
    """Where the arrays are, and what ops see of them."""
    if None in kinds.values():
        raise _in_two_places(list(arrays.values()))
    reason = availability.why_not()
    if reason is not None:
        raise RuntimeError(f"the CUDA backend cannot be used: {reason}")
    first, kind = next(iter(kinds.items()))
    place = kind.place_of(arrays[first])
    adopted: dict[str, DeviceArray] = {}
    for name, array in arrays.items():
        if kinds[name] is not kind:
            what = f"{first} is {_full_name(arrays[first])}, {name} is {_full_name(array)}"
            raise TypeError(f"all device arrays must be of one library, whose stream the call is on: {what}")
        device = kind.device_of(array)
        if device != place.device:
            raise ValueError(f"all arrays must be on one device: {first} is on {place.device}, {name} on {device}")
        if name in _WRITTEN and kind.IMMUTABLE is not None:
            raise TypeError(f"{name} would be written to, but {kind.IMMUTABLE}; leave it out and use what is returned")
        # One object is one array under every name: `out` may be x, and x the residual as well.
        known = next((adopted[other] for other in adopted if arrays[other] is array), None)
        adopted[name] = kind.adopt(array, place, name) if known is None else known
    return place, adopted
