"""Copies functions so that what they name, however far away, means what emulates it on a host: see emulator.py."""

import functools
import sys
import types

import numpy as np
from numba.core import types as numba_types
from numba.np.numpy_support import as_dtype


class Integer:
    """A numba integer type: its NumPy scalar, but what is too large wraps around as in C."""

    __slots__ = ("dtype", "lowest", "mask")

    def __init__(self, dtype):
        self.dtype, self.lowest, self.mask = dtype, int(np.iinfo(dtype).min), (1 << 8 * dtype.itemsize) - 1

    def __call__(self, value):
        return self.dtype.type(((int(value) - self.lowest) & self.mask) + self.lowest)


@functools.cache
def _scalar(kind):
    """What a numba type becomes in an emulated function."""
    if not isinstance(kind, (numba_types.Integer, numba_types.Float, numba_types.Boolean)):
        return kind
    dtype = as_dtype(kind)
    return Integer(dtype) if dtype.kind in "iu" else dtype.type


class _Module:
    """A module whose attributes are converted as they are asked for."""

    def __init__(self, module, binder):
        self._module, self._binder = module, binder

    def __getattr__(self, name):
        converted = self._binder.attribute(self._module, name)
        setattr(self, name, converted)
        return converted


class Binder:
    """Copies functions, with what they name replaced by what emulates it."""

    def __init__(self, replacements):
        self.kept = replacements  # or their ids could be reused
        self.replacements = {id(original): new for original, new in replacements.items()}
        self.functions = {}
        self.seen = []

    def current(self):
        """Whether all names still mean what they meant; tests patch them."""
        return all(names.get(name) is value for names, name, value in self.seen)

    def look_up(self, names, name):
        self.seen.append((names, name, names[name]))
        return self.convert(names[name])

    def attribute(self, module, name):
        return self.look_up(vars(module), name) if name in vars(module) else self.convert(getattr(module, name))

    def convert(self, value):
        if id(value) in self.replacements:
            return self.replacements[id(value)]
        if isinstance(value, types.ModuleType):
            return _Module(value, self)
        if isinstance(value, numba_types.Type):
            return _scalar(value)
        function = getattr(value, "py_func", value)
        return self.bind(function) if isinstance(function, types.FunctionType) else value

    def bind(self, function):
        package = function.__module__.partition(".")[0]
        if package in ("numba", "numba_cuda"):
            return _not_replaced(function)
        if package in sys.stdlib_module_names:
            return function
        if function not in self.functions:
            names = {"__name__": function.__module__}
            cells = tuple(types.CellType() for _ in function.__closure__ or ()) or None
            bound = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, cells)
            self.functions[function] = bound  # before what it names: it may name itself
            for name in _names(function.__code__) & function.__globals__.keys():
                names[name] = self.look_up(function.__globals__, name)
            for cell, original in zip(cells or (), function.__closure__ or (), strict=True):
                cell.cell_contents = self.convert(original.cell_contents)
        return self.functions[function]


def _names(code):
    """All global names and attributes in a function and those within it."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)


def _not_replaced(value):
    def call(*args):
        raise NotImplementedError(f"{value} has no Python body: give launch a replacement for it")

    return call
