"""Tasks: what a kernel has done one after the other, or by several threads at a time.

A kernel says which function does a task and how many there are. `launch` hands that to a launcher, the only function
compiled with `parallel=True`, once for all kernels. Of a kernel with a parallel loop of its own, numba compiled the
body four times (the loop, two wrappers of it, and the kernel around them), and again for its serial twin. With what
`linking` saves, layer norm's first call took 7.8 s instead of 19.5, all kernels of float32 80 s instead of 262 (a run
each), and launches 4 to 5 us less. And one machine code has the same bits wherever it runs.
"""

from __future__ import annotations

from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from .lowlevel import call_at

_BYTES, _I8, _I64 = ir.IntType(8).as_pointer(), ir.IntType(8), ir.IntType(64)
_ENTRY = ir.FunctionType(ir.VoidType(), [_BYTES, _I64, _I64])
_WORDS = (types.intp,) * 3


def _borrowed(context, builder, kind, value):
    """A value without the counters of its arrays' references, which all threads would want to write.

    Tasks take numbers, arrays and tuples of them.
    """
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        parts = zip(kind.types, cgutils.unpack_tuple(builder, value), strict=True)
        return context.make_tuple(builder, kind, [_borrowed(context, builder, k, v) for k, v in parts])
    return value


def _entry(context, builder, function, signature, box):
    """A function of (address of a box, task, tasks) that calls `function` on what is in the box."""
    name = builder.module.get_unique_name(f"{builder.function.name}.{function.fndesc.mangled_name}")
    entry = ir.Function(builder.module, _ENTRY, name)
    entry.linkage = "internal"
    entry.attributes.add("noinline")  # or tasks in turn would run a copy of their own, perhaps with other last bits
    inside = ir.IRBuilder(entry.append_basic_block())
    address, *part = entry.args
    fields = inside.bitcast(address, box.as_pointer())
    failed, *values = (cgutils.gep_inbounds(inside, fields, 0, k) for k in range(len(box.elements)))
    kinds = signature.args[2:]
    values = [_borrowed(context, inside, k, inside.load(v)) for k, v in zip(kinds, values, strict=True)]
    status, _ = context.call_internal_no_propagate(inside, function.fndesc, signature, (*part, *values))
    with inside.if_then(status.is_error):
        inside.store(_I8(1), failed)
    inside.ret_void()
    return entry


@intrinsic
def launch(typingctx, launcher, function, tasks, arguments):
    """function(task, tasks, *arguments) for task < tasks: by the launcher at that address, or in turn where it is 0.

    A single task is done here, without waking the other threads. A task may lack memory, and nothing else goes wrong in
    one: whatever it raises is a MemoryError, and the others are done all the same.
    """
    kinds = types.intp, types.intp, *map(types.unliteral, arguments.types)
    signature = function.get_call_type(typingctx, kinds, {})

    def codegen(context, builder, sig, args):
        compiled = function.dispatcher.overloads[signature.args]
        context.active_code_library.add_linking_library(compiled.library)
        address, _, count, packed = args
        parts = zip(sig.args[3].types, cgutils.unpack_tuple(builder, packed), kinds[2:], strict=True)
        values = [context.cast(builder, v, k, to) for k, v, to in parts]
        box = ir.LiteralStructType([_I8, *(value.type for value in values)])
        entry = _entry(context, builder, compiled, signature, box)
        room = cgutils.alloca_once(builder, box)
        for k, value in enumerate((_I8(0), *values)):
            builder.store(value, cgutils.gep_inbounds(builder, room, 0, k))
        where = builder.bitcast(room, _BYTES)
        several = builder.and_(cgutils.is_not_null(builder, address), builder.icmp_signed(">", count, _I64(1)))
        with builder.if_else(several) as (on_threads, in_turn):
            with on_threads:
                words = builder.ptrtoint(entry, _I64), builder.ptrtoint(where, _I64), count
                call_at(context, builder, address, _WORDS, words)
            with in_turn, cgutils.for_range(builder, count) as loop:
                builder.call(entry, [where, loop.index, count])
        failed = builder.load(cgutils.gep_inbounds(builder, room, 0, 0))
        with cgutils.if_unlikely(builder, cgutils.is_not_null(builder, failed)):
            context.call_conv.return_user_exc(builder, MemoryError, ("no memory for what a task computes with",))
        return context.get_dummy_value()

    return types.void(launcher, function, tasks, arguments), codegen


@intrinsic
def _enter(typingctx, entry, box, task, tasks):
    """Call the entry of a task by its address"""

    def codegen(context, builder, sig, args):
        entry, box, *part = args
        builder.call(builder.inttoptr(entry, _ENTRY.as_pointer()), [builder.inttoptr(box, _BYTES), *part])
        return context.get_dummy_value()

    return types.void(*_WORDS, types.intp), codegen


SPREAD = types.void(*_WORDS)


def spread(entry, box, tasks):
    """The launcher: all tasks, on numba's threads"""
    for task in prange(tasks):
        _enter(entry, box, task, tasks)
