"""Vectors of as many elements as a cache line of an output holds, for loops that LLVM would not vectorize.

LLVM's vectorizer refuses streaming stores, and orders sums as it likes. So a loop that streams, or whose sums must have
the same bits beside another, goes by the line and says itself what a vector is:
`load(x, line)` gives `Lanes`, and the same formula that computes an element from numbers computes a line from those.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.core.typing.templates import AbstractTemplate, Signature, infer_global, signature
from numba.extending import lower_builtin, register_model

_I32 = ir.IntType(32)


class Lanes(types.Type):
    """`count` numbers of type `element`."""

    def __init__(self, element, count):
        self.element, self.count = element, count
        super().__init__(f"Lanes({element}, {count})")


class Line(types.Type):
    """The index of the first of `count` elements, which are stored at a multiple of `align` bytes."""

    def __init__(self, count, align):
        self.count, self.align = count, align
        super().__init__(f"Line({count}, {align})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.element).get_value_type(), kind.count))


@register_model(Line)
class _LineModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, manager.lookup(types.intp).get_value_type())


class _Arithmetic(AbstractTemplate):
    """Lanes with Lanes, or with a number, which then stands for all of them."""

    def generic(self, args: tuple, kws: dict) -> Signature | None:
        kinds = {kind for kind in args if isinstance(kind, Lanes)}
        if len(args) != 2 or len(kinds) != 1:
            return None
        (lanes,) = kinds
        return signature(lanes, *args) if {*args} <= {lanes, lanes.element} else None


def splat(builder, value, like):
    """A number in each lane of a vector of LLVM type `like`; a vector, and a number for a number, as it is."""
    if not isinstance(like, ir.VectorType) or isinstance(value.type, ir.VectorType):
        return value
    one = builder.insert_element(ir.Constant(like, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, like.count), [0] * like.count))


def total_of(builder, vector):
    """The sum of a vector's lanes, half by half: in the same order everywhere."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        parts = (ir.Constant(ir.VectorType(_I32, half), [*range(k, k + half)]) for k in (0, half))
        vector = builder.fadd(*(builder.shuffle_vector(vector, vector, part) for part in parts))
    return builder.extract_element(vector, _I32(0))


def shaped(element, like):
    """The LLVM type of `element` in as many lanes as `like`, a type, has."""
    return ir.VectorType(element, like.count) if isinstance(like, ir.VectorType) else element


def overload_of(name, kind):
    """The name of an LLVM intrinsic for that type of numbers, or vectors of them."""
    lanes, element = (f"v{kind.count}", kind.element) if isinstance(kind, ir.VectorType) else ("", kind)
    return f"llvm.{name}.{lanes}{element.intrinsic_name}"


def constant_like(element, like):
    """What makes constants of that type from numbers."""
    kind = shaped(element, like)
    if kind is element:
        return lambda number: ir.Constant(element, number)
    return lambda number: ir.Constant(kind, [number] * kind.count)


def _lower(name):
    def arithmetic(context, builder, sig, args):
        like = context.get_value_type(sig.return_type)
        return getattr(builder, name)(*(splat(builder, value, like) for value in args))

    return arithmetic


_OPERATIONS = {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul", operator.truediv: "fdiv"}

for _operation, _name in _OPERATIONS.items():
    infer_global(_operation)(_Arithmetic)
    for _kinds in ((Lanes, Lanes), (Lanes, types.Float), (types.Float, Lanes)):
        lower_builtin(_operation, *_kinds)(_lower(_name))
