"""What NumPy code cannot say to the compiler: which memory is only read, element conversions, streaming stores.

Kernels call these and stay free of LLVM.

LLVM vectorizes a loop only where it can show that stores do not hit later loads, by checks at run time if there are at
most eight of them; a loop with three outputs needs more and stays scalar. So `load` and `store` say it in alias
metadata: what `load` reads from a read-only array is never what `store` or `accumulate` write. Kernels keep that
promise by taking every input as a read-only array, and by passing results through a buffer where an output is one of
the inputs.
"""

from __future__ import annotations

import inspect

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .halves import from_float16, to_float16
from .lanes import Lanes, Line, constant_like, overload_of, shaped, splat, total_of
from .linking import HelperCompiler

LINE = 64
"""Bytes in a cache line, and in most streaming stores."""

OPTIONS = {"nogil": True, "error_model": "numpy"}
"""How kernels are compiled. Strict arithmetic: which product LLVM fuses with which sum is its own choice, and another
where the same loop stands elsewhere."""

_INNER = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "fastmath": False, "forceinline": False}
_INNER |= {"_nrt": False}
"""Nothing is left out, because numba lets a function inherit these from whatever it is first compiled for.

Without numba's runtime nobody counts references to arrays: every count is a locked instruction, which waits for all
stores before it. Rows of 128 in L1 then took 35 ns instead of 63, unaligned 54 instead of 80. Such a function must not
make or return an array. A kernel or a task, which have the runtime, must not slice arrays or put them into a tuple in a
loop: gradients of rows of 128 took 62 ns instead of 45, a group norm of planes of 196 112 us instead of 80.
"""

_FAST = {**_INNER, "fastmath": {"nsz", "contract"}}


def _helper(**options):
    """A decorator of functions that only kernels call."""
    return numba.njit(pipeline_class=HelperCompiler, **options)


scalar = _helper(**_INNER)
"""Decorates functions that only kernels call."""

allocating = _helper(**{**_INNER, "_nrt": True})
"""The same for those that make arrays."""

work = _helper(**{**_INNER, "_nrt": True, "forceinline": True})
"""`allocating` for what a task does, inlined into the entry that `tasks.launch` makes of it."""

elementwise = _helper(**_FAST)
"""`scalar` for loops whose elements are independent: a product and the sum that follows become one instruction. Not
`reassoc`, which may turn (x - pivot) - shift into x - (pivot + shift). Never for the scalars around a loop: of two
products in a sum LLVM would fuse now the one, now the other."""

inlined = _helper(**{**_INNER, "forceinline": True})
"""`scalar` for what is done to one block: an array is passed as seven words, and a few of them take longer than a small
image."""

inlined_elementwise = _helper(**{**_FAST, "forceinline": True})
"""`elementwise` for short loops, and for what is done to one element: LLVM vectorizes no loop with a call in it."""

BLOCK = 4096
"""Elements that one loop takes: 16 KiB of float32, half of an L1 cache, and few enough roundings to ignore."""

STREAM_FROM = 8 << 20
"""Bytes of output from which it bypasses the caches: smaller ones are better left there for whoever reads them next."""

STREAM_RUN = 2048
"""Contiguous elements of a channel or a group from which it is streamed: rows of 768 lost through a buffer. By the
line, shorter ones were not measured."""

CHAINS = 16
"""Tasks for up to 256 units of which each is added up while the one before it in its task is written; of more units a
task has as many. The first of a task is read before anything is written: by 32 tasks of 8 channels instead of 16 of
16 a batch norm reached 78 % of the speed of a copy instead of 81, on two cores; more than 16 cores share no more."""

_SCOPES = 4


def accumulator(element):
    """The numba type that elements of type `element` are computed in.

    numba has no half types for CPUs: float16 travels as uint16, bfloat16 as int16, and both are computed in float32.
    """
    return types.float64 if element == types.float64 else types.float32


def _scopes(module, which):
    """Metadata naming these of the outputs of a loop."""
    domain = module.add_metadata(["normnumba"])
    return module.add_metadata([module.add_metadata([f"output {k}", domain]) for k in which])


def _pointer(context, builder, array_type, array, index):
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index], inbounds=True)


_FLOAT, _I16, _I32 = ir.FloatType(), ir.IntType(16), ir.IntType(32)


@intrinsic
def muladd(typingctx, a, b, c):
    """a * b + c in one rounding where the CPU has such an instruction, in two elsewhere.

    Of two products in a sum LLVM may fuse either; this says which, so that loops that must agree to the bit do.
    """
    lanes = next((kind for kind in (a, b, c) if isinstance(kind, Lanes)), None)
    kinds = [kind if isinstance(kind, Lanes) else lanes.element if lanes else a for kind in (a, b, c)]

    def codegen(context, builder, sig, args):
        like = context.get_value_type(sig.return_type)
        kind = ir.FunctionType(like, [like] * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, overload_of("fmuladd", like))
        return builder.call(function, [splat(builder, value, like) for value in args])

    return (lanes or a)(*kinds), codegen


def _limit(comparison):
    @intrinsic
    def limited(typingctx, value, limit):
        def codegen(context, builder, sig, args):
            bound = splat(builder, args[1], args[0].type)
            return builder.select(builder.fcmp_ordered(comparison, args[0], bound), bound, args[0])

        return value(value, limit), codegen

    return limited


at_least, at_most = _limit("<"), _limit(">")
"""max(value, limit) and min(value, limit), where NaN stays NaN."""


@intrinsic
def magnitude(typingctx, value):
    """|value|"""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(args[0].type, [args[0].type])
        function = cgutils.get_or_insert_function(builder.module, kind, overload_of("fabs", args[0].type))
        return builder.call(function, args)

    return value(value), codegen


@intrinsic
def where_negative(typingctx, value, below, above):
    """`below` where value < 0, `above` where it is not"""

    def codegen(context, builder, sig, args):
        zero = constant_like(args[0].type.element, args[0].type)(0.0)
        return builder.select(builder.fcmp_ordered("<", args[0], zero), args[1], args[2])

    return below(value, below, above), codegen


@intrinsic
def where_positive(typingctx, value, passed):
    """`passed`, and 0 where value <= 0"""

    def codegen(context, builder, sig, args):
        zero = splat(builder, context.get_constant(_number_of(value), 0.0), args[0].type)
        return builder.select(builder.fcmp_ordered("<=", args[0], zero), zero, args[1])

    return value(value, value), codegen


def _widen(builder, element, value):
    """An element, or a line of them, in the accumulator's type."""
    if element == types.uint16:
        return from_float16(builder, value)
    if element == types.int16:  # bfloat16 is the upper half of a float32
        bits = builder.zext(value, shaped(_I32, value.type))
        return builder.bitcast(builder.shl(bits, constant_like(_I32, value.type)(16)), shaped(_FLOAT, value.type))
    return value


def _narrow(builder, element, value):
    """A value of the accumulator's type, or a line of them, rounded to `element`, ties to even."""
    if element == types.uint16:
        return to_float16(builder, value)
    if element == types.int16:
        i32 = constant_like(_I32, value.type)
        bits = builder.bitcast(value, shaped(_I32, value.type))
        even = builder.and_(builder.lshr(bits, i32(16)), i32(1))
        rounded = builder.add(bits, builder.add(even, i32(0x7FFF)))
        quiet = builder.or_(bits, i32(0x400000))  # adding to a NaN could carry it over to 0
        bits = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
        return builder.trunc(builder.lshr(bits, i32(16)), shaped(_I16, value.type))
    return value


@intrinsic
def plus(typingctx, total, value):
    """total + value in a loop that sums, where LLVM may keep several partial sums.

    This addition alone has `reassoc`. With it on a whole function, products and differences were regrouped too, in ways
    that changed from one compilation to the next, and with them the last bits.
    """

    def codegen(context, builder, sig, args):
        return builder.fadd(*args, flags=("reassoc", "nsz", "contract"))

    return total(total, total), codegen


@intrinsic
def line_of(typingctx, array, index):
    """That index, as the first of as many elements as a cache line of `array` holds: a `store` there must begin one."""
    line = Line(LINE * 8 // array.dtype.bitwidth, LINE)
    return line(array, types.intp), lambda context, builder, sig, args: args[1]


@intrinsic
def parted(typingctx, array, count, first, second):
    """A line of `array` with `first` in the first `count` lanes and `second` behind them: numbers, or lines of them."""
    lanes = Lanes(_number_of(first), LINE * 8 // array.dtype.bitwidth)

    def codegen(context, builder, sig, args):
        like, i32 = context.get_value_type(lanes), ir.VectorType(_I32, lanes.count)
        ends = splat(builder, builder.trunc(args[1], _I32), i32)
        before = builder.icmp_signed("<", ir.Constant(i32, [*range(lanes.count)]), ends)
        return builder.select(before, splat(builder, args[2], like), splat(builder, args[3], like))

    return lanes(array, types.intp, first, second), codegen


def _pair(array):
    """How many numbers two lines hold of the type that `array` is computed in."""
    return 2 * LINE * 8 // accumulator(array.dtype).bitwidth


@intrinsic
def in_pair(typingctx, array):
    """How many elements `load` takes at a `pair_of`"""
    return types.intp(array), lambda context, builder, sig, args: context.get_constant(types.intp, _pair(sig.args[0]))


@intrinsic
def pair_of(typingctx, array, index):
    """That index, as the first of as many elements as make two lines of sums, which need not wait for each other."""
    line = Line(_pair(array), array.dtype.bitwidth // 8)
    return line(array, types.intp), lambda context, builder, sig, args: args[1]


@intrinsic
def zero_pair(typingctx, array):
    """What `load` of a pair of zeros gives."""
    lanes = Lanes(accumulator(array.dtype), _pair(array))

    def codegen(context, builder, sig, args):
        return context.get_value_type(sig.return_type)([0.0] * lanes.count)

    return lanes(array), codegen


@intrinsic
def lane_sum(typingctx, lanes):
    """The sum of a vector's elements."""
    return lanes.element(lanes), lambda context, builder, sig, args: total_of(builder, args[0])


@intrinsic
def load(typingctx, array, index):
    """array[index] in the accumulator's type. From a read-only array it may be moved across any `store` of an element.

    A number stands for an array that holds it everywhere, so that a loop serves one channel and rows of channels alike;
    and a line for one that holds it in every line.
    At a `Line`, the elements from there on.
    """
    at = index if isinstance(index, Line) else types.intp
    if isinstance(array, types.Float | Lanes):
        return array(array, at), lambda context, builder, sig, args: args[0]
    number = accumulator(array.dtype)
    signature = (Lanes(number, at.count) if isinstance(at, Line) else number)(array, at)

    def codegen(context, builder, sig, args):
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1])
        element = pointer.type.pointee
        if isinstance(sig.args[1], Line):
            pointer = builder.bitcast(pointer, ir.VectorType(element, sig.args[1].count).as_pointer())
        value = builder.load(pointer)
        value.align = context.get_abi_sizeof(element)
        if not sig.args[0].mutable:
            value.set_metadata("noalias", _scopes(builder.module, range(_SCOPES)))
        return _widen(builder, sig.args[0].dtype, value)

    return signature, codegen


def _number_of(kind):
    return kind.element if isinstance(kind, Lanes) else kind


def constant(low, high=None):
    """A number for float32 and one for float64, or one for both: call it with a value of that type, or a line."""

    @intrinsic
    def typed(typingctx, like):
        number = _number_of(like)
        value = high if number == types.float64 and high is not None else low
        return number(like), lambda context, builder, sig, args: context.get_constant(number, value)

    return typed


@intrinsic
def in_float32(typingctx, value):
    """Whether that is computed in float32: known when the kernel is compiled"""
    single = _number_of(value) == types.float32
    return types.boolean(value), lambda context, builder, sig, args: context.get_constant(types.boolean, single)


def _horner(builder, coefficients, x):
    *rest, total = coefficients
    for coefficient in reversed(rest):
        total = builder.fadd(builder.fmul(total, x, flags=("contract",)), coefficient, flags=("contract",))
    return total


def polynomial(low, high=None):
    """The polynomial with these coefficients, the constant one first, in float32, or in float64 if it has none there.

    Even and odd powers apart, in two chains half as long: silu took 5.8 ns for 16 elements instead of 7.
    """

    @intrinsic
    def evaluate(typingctx, x):
        number = _number_of(x)

        def codegen(context, builder, sig, args):
            coefficients = high if number == types.float64 and high is not None else low
            constants = [splat(builder, context.get_constant(number, c), args[0].type) for c in coefficients]
            square = builder.fmul(args[0], args[0])
            return _horner(builder, [_horner(builder, constants[k::2], square) for k in (0, 1)], args[0])

        return x(x), codegen

    return evaluate


@intrinsic
def two_to_minus(typingctx, shifted):
    """2^-k from k + 1.5 * 2^23 (float32) or k + 1.5 * 2^52, whose last bits are those of k.

    For k from -127 to 126, or -1023 to 1022. One more is 0, one less Inf.
    """

    def codegen(context, builder, sig, args):
        wide = _number_of(shifted) == types.float64
        element, mantissa, bias = (ir.IntType(64), 52, 1023) if wide else (_I32, 23, 127)
        bits, number = shaped(element, args[0].type), constant_like(element, args[0].type)
        power = builder.shl(builder.bitcast(args[0], bits), number(mantissa))
        return builder.bitcast(builder.sub(number(bias << mantissa), power), args[0].type)

    return shifted(shifted), codegen


@intrinsic
def widened(typingctx, value, like):
    """A number, or a line of them, in the type of another, which is no narrower."""
    number = _number_of(like)
    kind = Lanes(number, value.count) if isinstance(value, Lanes) else number

    def codegen(context, builder, sig, args):
        to = context.get_value_type(sig.return_type)
        return args[0] if args[0].type == to else builder.fpext(args[0], to)

    return kind(value, like), codegen


@intrinsic
def rounded(typingctx, array, value):
    """A value of an accumulator's type, or a line of them, rounded to what `array` stores, in the type that it had."""
    signature = value(array, value)

    def codegen(context, builder, sig, args):
        element = sig.args[0].dtype
        narrow = _narrow(builder, element, _as_accumulator(context, builder, element, args[1]))
        wide = _widen(builder, element, narrow)
        return wide if wide.type == args[1].type else builder.fpext(wide, args[1].type)

    return signature, codegen


def _as_accumulator(context, builder, element, value):
    """A value, or a line of them, in the accumulator's type of `element`: of a float32 sum computed in float64, say."""
    kind = shaped(context.get_value_type(accumulator(element)), value.type)
    return value if value.type == kind else builder.fptrunc(value, kind)


def _store(context, builder, array_type, array, index, value, scope, add):
    pointer = _pointer(context, builder, array_type, array, index)
    align = context.get_abi_sizeof(pointer.type.pointee)
    if isinstance(value.type, ir.VectorType):
        pointer = builder.bitcast(pointer, value.type.as_pointer())
    others = [k for k in range(_SCOPES) if k != scope]
    marks = {"alias.scope": _scopes(builder.module, [scope]), "noalias": _scopes(builder.module, others)}
    accesses = []
    if add:
        old = builder.load(pointer)
        accesses.append(old)
        value = builder.fadd(old, value, flags=("nsz", "contract"))
    accesses.append(builder.store(_narrow(builder, array_type.dtype, value), pointer))
    for access in accesses:
        access.align = align
        for name, nodes in marks.items():
            access.set_metadata(name, nodes)


@intrinsic
def store(typingctx, array, index, value):
    """array[index] = value, rounded to the array's type. Past the caches at a `Line`: call `fence` in the end."""
    if isinstance(index, Line):
        return types.void(array, index, value), _store_line
    signature = types.void(array, types.intp, accumulator(array.dtype))

    def codegen(context, builder, sig, args):
        _store(context, builder, sig.args[0], *args, scope=0, add=False)
        return context.get_dummy_value()

    return signature, codegen


def _store_line(context, builder, sig, args):
    element, pointer = sig.args[0].dtype, _pointer(context, builder, sig.args[0], args[0], args[1])
    value = _narrow(builder, element, _as_accumulator(context, builder, element, args[2]))
    _stream(builder, value, builder.bitcast(pointer, value.type.as_pointer()), sig.args[1].align)
    return context.get_dummy_value()


def _stream(builder, value, pointer, align):
    """Past the caches where it begins a line; the store of a pair, which may begin anywhere, is an ordinary one."""
    store = builder.store(value, pointer, align=align)
    if align == LINE:
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))


@intrinsic(prefer_literal=True)
def accumulate(typingctx, array, index, value, scope):
    """array[index] += value, where `scope` 1, 2 or 3 tells apart the arrays that one loop accumulates into."""
    at = index if isinstance(index, Line) else types.intp
    signature = types.void(array, at, value if isinstance(index, Line) else array.dtype, scope)

    def codegen(context, builder, sig, args):
        _store(context, builder, sig.args[0], *args[:3], scope=sig.args[3].literal_value, add=True)
        return context.get_dummy_value()

    return signature, codegen


def _retyped(context, builder, source_type, source, target_type):
    """A contiguous array under another type: one-dimensional, or read-only."""
    old = context.make_array(source_type)(context, builder, source)
    new = context.make_array(target_type)(context, builder)
    fields = {"shape": [old.nitems], "strides": [old.itemsize]} if target_type.ndim == 1 else {}
    populate_array(
        new,
        **{"data": old.data, "shape": old.shape, "strides": old.strides, **fields},
        itemsize=old.itemsize,
        meminfo=old.meminfo,
        parent=old.parent,
    )
    return impl_ret_borrowed(context, builder, target_type, new._getvalue())


@intrinsic
def flat(typingctx, array):
    """A contiguous array as a one-dimensional one."""

    def codegen(context, builder, sig, args):
        return _retyped(context, builder, sig.args[0], args[0], sig.return_type)

    return array.copy(ndim=1)(array), codegen


@intrinsic
def frozen(typingctx, array):
    """The array as a read-only one: what a kernel has computed and its loops from now on only `load`."""

    def codegen(context, builder, sig, args):
        return _retyped(context, builder, sig.args[0], args[0], sig.return_type)

    return array.copy(readonly=True)(array), codegen


@intrinsic
def assumed_contiguous(typingctx, array):
    """An array of any layout as a contiguous one, which it must be."""

    def codegen(context, builder, sig, args):
        return _retyped(context, builder, sig.args[0], args[0], sig.return_type)

    return array.copy(layout="C")(array), codegen


def _as_passed(kind):
    """What the machine code of a call knows of an argument's type."""
    return (kind.dtype, kind.ndim, kind.layout) if isinstance(kind, types.Array) else types.unliteral(kind)


def call_at(context, builder, address, kinds, values):
    """Call a compiled function without a result by its address, and pass on what it raises."""
    convention = context.call_conv
    function = builder.inttoptr(address, convention.get_function_type(types.none, kinds).as_pointer())
    status, _ = convention.call_function(builder, function, types.none, kinds, values)
    with cgutils.if_unlikely(builder, status.is_error):
        convention.return_status_propagate(builder, status)


def calling(signature):
    """An intrinsic that calls, by its address, a compiled kernel of that signature, which `variants` was given.

    It is the variant whose arrays all have one dtype.
    """
    others = len(inspect.signature(signature).parameters) - 2

    @intrinsic
    def call(typingctx, address, arguments):
        kinds = arguments.types
        data = next(kind.dtype for kind in kinds if isinstance(kind, types.Array))
        expected = signature(data, accumulator(data), *[data] * others)
        assert [*map(_as_passed, kinds)] == [*map(_as_passed, expected.args)], f"{kinds} for {expected}"

        def codegen(context, builder, sig, args):
            call_at(context, builder, args[0], kinds, cgutils.unpack_tuple(builder, args[1]))
            return context.get_dummy_value()

        return types.void(address, arguments), codegen

    return call


@intrinsic
def _copy_element(typingctx, dst, at, src, start):
    """dst[at] = src[start] without numba's handling of negative indices, which becomes gathers and scatters."""
    signature = types.void(dst, types.intp, src, types.intp)

    def codegen(context, builder, sig, args):
        value = builder.load(_pointer(context, builder, sig.args[2], args[2], args[3]))
        builder.store(value, _pointer(context, builder, sig.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _stream_line(typingctx, dst, at, src, start):
    """Store 64 bytes of src[start:] at dst[at:], which begins a cache line, past the caches."""
    signature = types.void(dst, types.intp, src, types.intp)

    def codegen(context, builder, sig, args):
        element = context.get_data_type(sig.args[0].dtype)
        size = context.get_abi_sizeof(element)
        vector = ir.VectorType(element, LINE // size).as_pointer()
        source = builder.bitcast(_pointer(context, builder, sig.args[2], args[2], args[3]), vector)
        target = builder.bitcast(_pointer(context, builder, sig.args[0], args[0], args[1]), vector)
        _stream(builder, builder.load(source, align=size), target, LINE)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of array[index], which need not exist: into L1, or at a `Line` no further than L2.

    What is asked for by the line lies so far ahead that L1 would lose it: 95 % of the speed of a copy, not 88.
    """
    signature = types.void(array, index)

    def codegen(context, builder, sig, args):
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        pointer = builder.bitcast(_pointer(context, builder, sig.args[0], args[0], args[1]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        for_reading, level, data = i32(0), i32(2 if isinstance(sig.args[1], Line) else 3), i32(1)
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(function, [pointer, for_reading, level, data])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def fence(typingctx):
    """Make this thread's streaming stores visible before anything that follows.

    Only where there were any: it waits for all stores. Without one behind every group, and with buffers for many groups
    instead of each, a group norm in cache took 49 us instead of 57.
    """

    def codegen(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def barrier(typingctx):
    """Keep the compiler from moving loads over it: a buffer that was filled by `store` may be `frozen` behind it."""

    def codegen(context, builder, sig, args):
        builder.fence("acq_rel", targetscope="singlethread")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def lanes_of(typingctx, array):
    """Elements in a line: a constant, as LINE // array.itemsize is not. By that, loops took up to twice as long."""
    count = LINE * 8 // array.dtype.bitwidth
    return types.intp(array), lambda context, builder, sig, args: context.get_constant(types.intp, count)


@inlined
def whole_pairs(array, count):
    """How many of `count` elements are in whole pairs"""
    return count // in_pair(array) * in_pair(array)


@inlined
def whole_lines(array, index, count):
    """How many of `count` elements lie before the first cache line of their own, and how many in all such lines"""
    lanes = lanes_of(array)
    head = min(count, (-(array.ctypes.data // (LINE // lanes) + index)) % lanes)
    return head, (count - head) // lanes * lanes


@scalar
def stream(dst, start, src, count, first, second, ahead):
    """dst[start : start + count] = src[:count] with streaming stores; call `fence` when a thread has done its share.

    Meanwhile it asks for first[ahead : ahead + count] and second[...], the inputs of what is computed next: a core that
    computes one row, then stores it, would otherwise leave the memory idle while it computes.

    An ordinary store first reads the line it overwrites, so that a copy moves three bytes for two. This is for results
    that are in a buffer anyway: of an output that is an input, or of an activation with loops of its own. Others go by
    the line: see `lanes`.
    """
    head, lines = whole_lines(dst, start, count)
    for i in range(head):
        _copy_element(dst, start + i, src, i)
    for i in range(head, head + lines, lanes_of(dst)):
        _stream_line(dst, start + i, src, i)
        prefetch(first, ahead + i)
        prefetch(second, ahead + i)
    for i in range(head + lines, count):
        _copy_element(dst, start + i, src, i)


@scalar
def bounds(part, parts, size):
    """Where a part of `size` things begins and where it ends: of rows, units, or groups of columns"""
    return part * size // parts, (part + 1) * size // parts


@scalar
def tasks_of(units, size):
    """How many tasks share units of `size` elements in all: a task allocates its buffers, at 0.06 us each"""
    return max(1, min(units, 256, size >> 12))


@scalar
def tasks_in_turn(units, size, chained):
    """`tasks_of`, or fewer where units of a task are `chained`: see CHAINS"""
    most = tasks_of(units, size)
    return min(most, max(CHAINS, units // CHAINS)) if chained else most


@scalar
def shares_memory(out, first, second):
    """Whether `out` is one of the inputs: results then go through a buffer"""
    return out.ctypes.data == first.ctypes.data or out.ctypes.data == second.ctypes.data


@scalar
def must_stream(out, contiguous):
    """Whether `out` is so large that it is better not left in the caches, and written in runs that are long enough"""
    return out.size * out.itemsize >= STREAM_FROM and contiguous >= STREAM_RUN
