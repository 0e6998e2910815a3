"""What kernels need that numba.cuda has no word for: 16-byte accesses, halves, and the type of a pointer.

Kernels take pointers, since numba needs microseconds to take an array apart. float16 travels as uint16 and bfloat16 as
int16, as in the CPU's kernels, so that the type of a pointer says what to convert.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

BYTES = 16
"""The widest access that a thread can make."""

_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()


def pointer(dtype: np.dtype) -> types.CPointer:
    """A pointer to elements of that dtype; of bytes to bools."""
    names = {"bool": "uint8", "float16": "uint16", "bfloat16": "int16"}
    return types.CPointer(getattr(types, names.get(dtype.name, dtype.name)))


def _number(data: types.Type) -> types.Type:
    """What elements of this type are computed in."""
    return types.float64 if data is types.float64 else types.float32


def _assembly(builder: Any, result: ir.Type, text: str, constraints: str, *operands: Any) -> Any:
    function = ir.FunctionType(result, [o.type for o in operands])
    return builder.call(ir.InlineAsm(function, text, constraints), operands)


def _widened(builder: Any, data: types.Type, value: Any) -> Any:
    """The float of an element as it lies in memory."""
    if data is types.uint16:
        return builder.fpext(builder.bitcast(value, ir.HalfType()), _F32)
    if data is types.int16:
        return builder.bitcast(builder.shl(builder.zext(value, _I32), ir.Constant(_I32, 16)), _F32)
    return value


def _narrowed(builder: Any, data: types.Type, value: Any) -> Any:
    """An element as it lies in memory, rounded to nearest even."""
    if data is types.uint16:
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), _I16)
    if data is types.int16:
        return _assembly(builder, _I16, "cvt.rn.bf16.f32 $0, $1;", "=h,f", value)
    return value


@intrinsic
def load(typingctx, pointer, index):
    """The float of one element"""
    data = pointer.dtype

    def codegen(context, builder, signature, args):
        return _widened(builder, data, builder.load(builder.gep(args[0], [args[1]])))

    return _number(data)(pointer, types.int64), codegen


@intrinsic
def store(typingctx, pointer, index, value):
    """Round to one element"""
    data = pointer.dtype

    def codegen(context, builder, signature, args):
        builder.store(_narrowed(builder, data, args[2]), builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(pointer, types.int64, _number(data)), codegen


@intrinsic
def rounded(typingctx, pointer, value):
    """What storing a value there and loading it would give"""
    data = pointer.dtype

    def codegen(context, builder, signature, args):
        return _widened(builder, data, _narrowed(builder, data, args[1]))

    return _number(data)(pointer, _number(data)), codegen


def _cast(builder: Any, value: Any, wanted: ir.Type) -> Any:
    """A float in another precision, where that is wanted."""
    if value.type == wanted:
        return value
    return builder.fpext(value, wanted) if isinstance(wanted, ir.DoubleType) else builder.fptrunc(value, wanted)


def _registers(context, builder, array_type, array, at, count):
    """Pointers to some elements of a local array."""
    data = context.make_array(array_type)(context, builder, array).data
    return [builder.gep(data, [builder.add(at, ir.Constant(at.type, k))]) for k in range(count)]


def _loading(count: int) -> Any:
    @intrinsic
    def load_vector(typingctx, pointer, index, registers, at):
        """Some elements into a local array, by one access; `index` is a multiple of their number"""
        data = pointer.dtype

        def codegen(context, builder, signature, args):
            source = builder.gep(args[0], [args[1]])
            values = [builder.load(source)] if count == 1 else _split(builder, data, source, count)
            for value, target in zip(values, _registers(context, builder, registers, *args[2:], count), strict=True):
                builder.store(_cast(builder, _widened(builder, data, value), target.type.pointee), target)
            return context.get_dummy_value()

        return types.void(pointer, types.int64, registers, types.int64), codegen

    return load_vector


def _split(builder: Any, data: types.Type, source: Any, count: int) -> list[Any]:
    """Several elements, loaded at once."""
    halves = data in (types.uint16, types.int16)
    words = ir.VectorType(_I32, count // 2) if halves else ir.VectorType(source.type.pointee, count)
    vector = builder.load(builder.bitcast(source, words.as_pointer(source.type.addrspace)), align=_size(words))
    parts = [builder.extract_element(vector, ir.Constant(_I32, k)) for k in range(words.count)]
    if not halves:
        return parts
    shifts = (ir.Constant(_I32, 0), ir.Constant(_I32, 16))
    return [builder.trunc(builder.lshr(part, shift), _I16) for part in parts for shift in shifts]


def _size(vector: ir.VectorType) -> int:
    """Bytes"""
    return vector.count * (8 if isinstance(vector.element, ir.DoubleType) else 4)


def _storing(count: int) -> Any:
    @intrinsic
    def store_vector(typingctx, pointer, index, registers, at):
        """Some elements from a local array, rounded, by one access; `index` is a multiple of their number"""
        data = pointer.dtype

        def codegen(context, builder, signature, args):
            target, floating = builder.gep(args[0], [args[1]]), ir.DoubleType() if data is types.float64 else _F32
            sources = _registers(context, builder, registers, *args[2:], count)
            values = [_cast(builder, builder.load(source), floating) for source in sources]
            if count == 1:
                builder.store(_narrowed(builder, data, values[0]), target)
            else:
                _join(builder, data, values, target)
            return context.get_dummy_value()

        return types.void(pointer, types.int64, registers, types.int64), codegen

    return store_vector


def _join(builder: Any, data: types.Type, values: list[Any], target: Any) -> None:
    """Round several elements, halves by pairs, and store them at once."""
    if data in (types.uint16, types.int16):
        kind = "f16x2" if data is types.uint16 else "bf16x2"
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [_assembly(builder, _I32, f"cvt.rn.{kind}.f32 $0, $1, $2;", "=r,f,f", b, a) for a, b in pairs]
    vector = ir.Constant(ir.VectorType(values[0].type, len(values)), ir.Undefined)
    for k, value in enumerate(values):
        vector = builder.insert_element(vector, value, ir.Constant(_I32, k))
    builder.store(
        vector, builder.bitcast(target, vector.type.as_pointer(target.type.addrspace)), align=_size(vector.type)
    )


LOADS = {width: _loading(width) for width in (1, 2, 4, 8)}
STORES = {width: _storing(width) for width in (1, 2, 4, 8)}
"""By the number of elements."""
