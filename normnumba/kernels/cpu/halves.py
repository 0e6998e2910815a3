"""float16 to float32 and back, as LLVM instructions: one each where the processor has them, else integer arithmetic.

For a processor without them (x86-64 before F16C, or NUMBA_CPU_NAME=generic) LLVM calls functions that numba does not
provide, and the missing symbol ends the process.
"""

from __future__ import annotations

import functools

import llvmlite.binding
from llvmlite import ir
from numba.core.registry import cpu_target

from .lanes import constant_like, shaped

_HALF, _FLOAT, _I16, _I32 = ir.HalfType(), ir.FloatType(), ir.IntType(16), ir.IntType(32)

_INFINITY = 0x7F800000
_REBIAS = (127 - 15) << 23
_SMALLEST_NORMAL = (127 - 14) << 23
_LIMIT = (127 + 16) << 23
"""Bits of float32: 65536, above all that float16 holds."""


def from_float16(builder, value):
    """The bits of a float16, or a vector of them, as float32."""
    single, bits32 = shaped(_FLOAT, value.type), shaped(_I32, value.type)
    if _has_instructions():
        return builder.fpext(builder.bitcast(value, shaped(_HALF, value.type)), single)
    i32 = constant_like(_I32, value.type)
    bits = builder.zext(value, bits32)
    sign = builder.shl(builder.and_(bits, i32(0x8000)), i32(16))
    magnitude = builder.shl(builder.and_(bits, i32(0x7FFF)), i32(13))
    normal = builder.add(magnitude, i32(_REBIAS))
    special = builder.or_(builder.add(normal, i32(_REBIAS)), i32(_INFINITY))
    one_up = builder.bitcast(builder.add(normal, i32(1 << 23)), single)
    smallest = constant_like(_FLOAT, value.type)(2.0**-14)
    subnormal = builder.bitcast(builder.fsub(one_up, smallest), bits32)  # exact, and has no subnormal operand
    result = builder.select(builder.icmp_unsigned("<", magnitude, i32(1 << 23)), subnormal, normal)
    is_special = builder.icmp_unsigned(">=", magnitude, i32(0x7C00 << 13))
    result = builder.select(is_special, special, result)
    return builder.bitcast(builder.or_(result, sign), single)


def to_float16(builder, value):
    """A float32, or a vector of them, rounded to float16, ties to even: its bits."""
    bits16, bits32 = shaped(_I16, value.type), shaped(_I32, value.type)
    if _has_instructions():
        return builder.bitcast(builder.fptrunc(value, shaped(_HALF, value.type)), bits16)
    i32 = constant_like(_I32, value.type)
    bits = builder.bitcast(value, bits32)
    sign = builder.and_(bits, i32(0x80000000))
    magnitude = builder.xor(bits, sign)
    odd = builder.and_(builder.lshr(magnitude, i32(13)), i32(1))
    normal = builder.lshr(builder.add(builder.add(magnitude, odd), i32(0xFFF - _REBIAS & 0xFFFFFFFF)), i32(13))
    half = constant_like(_FLOAT, value.type)(0.5)  # a sum with it ends where float16's subnormals do, rounded there
    sum_bits = builder.bitcast(builder.fadd(builder.bitcast(magnitude, value.type), half), bits32)
    subnormal = builder.sub(sum_bits, i32(126 << 23))
    result = builder.select(builder.icmp_unsigned("<", magnitude, i32(_SMALLEST_NORMAL)), subnormal, normal)
    payload = builder.or_(builder.and_(builder.lshr(magnitude, i32(13)), i32(0x3FF)), i32(0x7E00))
    special = builder.select(builder.icmp_unsigned(">", magnitude, i32(_INFINITY)), payload, i32(0x7C00))
    result = builder.select(builder.icmp_unsigned(">=", magnitude, i32(_LIMIT)), special, result)
    return builder.trunc(builder.or_(result, builder.lshr(sign, i32(16))), bits16)


@functools.cache
def _has_instructions():
    """Whether the processor that is compiled for converts float16 without a call."""
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    module = ir.Module()
    module.triple = triple
    kind = ir.FunctionType(ir.VoidType(), [_HALF.as_pointer(), _FLOAT.as_pointer()])
    function = ir.Function(module, kind, "convert")
    builder = ir.IRBuilder(function.append_basic_block())
    half, single = function.args
    widened, narrowed = builder.fpext(builder.load(half), _FLOAT), builder.fptrunc(builder.load(single), _HALF)
    builder.store(narrowed, half)
    builder.store(widened, single)
    builder.ret_void()
    target = llvmlite.binding.Target.from_triple(triple)
    machine = target.create_target_machine(cpu=cpu, features=features)
    text = machine.emit_assembly(llvmlite.binding.parse_assembly(str(module)))
    return not any(name in text for name in ("hfsf2", "sfhf2", "h2f", "f2h"))
