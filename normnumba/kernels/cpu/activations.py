"""Activations, over a block of a norm's results that is still in L1.

Each is z * share(z), where the share that passes lies between 0 and 1. exp and erf are polynomials of our own, because
calls of the library's do not vectorize: a norm with silu took 16 ms through math.exp and 4 through these.

A formula is a chain of some forty operations that wait for each other, so it is written for pairs of lines, which the
processor can take in turn: by LLVM's vectors silu took 1.3 times as long, and gelu 1.6 times.
"""

from __future__ import annotations

from .. import GELU, GELU_TANH
from .lowlevel import (
    LINE,
    at_least,
    at_most,
    constant,
    elementwise,
    in_float32,
    in_pair,
    inlined_elementwise,
    load,
    magnitude,
    pair_of,
    polynomial,
    scalar,
    store,
    two_to_minus,
    where_negative,
    whole_pairs,
)

SPARE = LINE
"""Elements that a buffer for z needs behind the last: its last pair may begin there."""

_SHIFT = constant(1.5 * 2.0**23, 1.5 * 2.0**52)
"""Added to a number that is much smaller, it rounds that to an integer."""

_LOG2_E = constant(1.4426950408889634)
_LN2_HIGH = constant(0.693359375, 0.6931471805582987)
_LN2_LOW = constant(-2.1219444005469057e-4, 1.6465949582897082e-12)
"""ln 2 in two parts, the first so short that its products with exponents are exact."""

_LEAST, _MOST = constant(-89.0, -710.0), constant(88.0, 709.0)
"""From where on exp(-u) is taken for Inf, and for 0."""

_HUGE = constant(2.0**127, 2.0**1023)

_FAR = constant(40.0)
"""Where a share of either gelu is 0 or 1; keeps powers of z finite."""

_HALF, _ONE, _TWO_AND_A_HALF, _THIRTEEN = map(constant, (0.5, 1.0, 2.5, 13.0))
_ROOT_HALF, _DENSITY = constant(0.7071067811865476), constant(0.3989422804014327)
_LINEAR, _CUBIC, _SQUARE = constant(1.5957691216057308), constant(0.07135481627260025), constant(0.21406444881780075)

# fmt: off
_exp = polynomial(
    (
        0.9999999999595482, 1.0000000377274485, 0.5000000107749384, 0.16666415477235322, 0.04166621827440191,
        0.008375128890467473, 0.0013948580818093912
    ),
    (
        1.0, 1.0, 0.5000000000000019, 0.16666666666666702, 0.04166666666648808, 0.008333333333309526,
        0.0013888888952318045, 0.00019841269909219843, 2.480148547921643e-05, 2.755722495611072e-06,
        2.7632640675430235e-07, 2.5114870219497476e-08
    ),
)
"""exp(r) for |r| <= ln(2) / 2, from its Chebyshev series; relative error 3e-9 and 4e-18."""

_tail = polynomial(
    (
        1.2648381843668615, -0.12235676308240215, -0.09902453957360054, 0.1576299190229927, -0.10296705603863399,
        0.03276089327566133, 0.0009318928184352962, -0.004382078440847587, 0.0004918658041021489,
        0.0006321251464155949, -8.847920687669829e-05, -0.00011352632492718974, 6.266010784972976e-06,
        2.2712248592600015e-05, 2.6086713496937893e-06, -4.244612526599291e-06, -1.5844422539027936e-06,
        5.650897898007257e-07, 5.323857055177547e-07, -2.595789779732572e-09, -1.250612981958526e-07,
        -1.9529757279629242e-08, 1.928916211860086e-08, 3.3505549185349607e-09, -1.4759816086462547e-09
    ),
)
"""(1 + 2 * u) * exp(u^2) * erfc(u) in (u - 2.5) / (u + 2.5), from its Chebyshev series; error 7e-17."""

_minus_log_tail = polynomial(
    (
        0.6931471279, 0.7978869856, 0.3182917129, 0.03638656943, -0.004850011448, 6.932912731e-06, 0.0002054320092,
        -6.32905218e-05, 1.157995028e-05, -1.456990415e-06, 1.291747187e-07, -7.944749961e-09, 3.227873718e-10,
        -7.788925969e-12, 8.448645946e-14
    ),
)
"""-ln((1 - erf(a / sqrt(2))) / 2) for a from 0 to 13, where float32 ends: relative error of what it is the logarithm of
5e-8 * (1 + a^2 / 2), least by Lawson's iteration; rounding makes that 3e-6 at 6 and 3e-3 at 13."""
# fmt: on


@inlined_elementwise
def _exp_minus(u):
    """exp(-u) = 2^-k * exp(k * ln(2) - u)"""
    u = at_least(at_most(u, _MOST(u)), _LEAST(u))
    shifted = u * _LOG2_E(u) + _SHIFT(u)
    k = shifted - _SHIFT(u)
    return _exp((k * _LN2_HIGH(u) - u) + k * _LN2_LOW(u)) * two_to_minus(shifted)


@inlined_elementwise
def _sigmoid(u):
    """sigmoid(u), the share of silu, and its slope sigmoid(u) * sigmoid(-u), without cancellation"""
    e = _exp_minus(u)
    share = _ONE(u) / (_ONE(u) + e)
    return share, share * (share * at_most(e, _HUGE(u)))


@inlined_elementwise
def _gelu_tanh(z):
    """share = (1 + tanh(v)) / 2 = sigmoid(2 * v) with v = sqrt(2 / pi) * (z + 0.044715 * z^3), and its slope"""
    share, slope = _sigmoid(z * (_LINEAR(z) + _CUBIC(z) * z * z))
    a = at_most(magnitude(z), _FAR(z))
    return share, slope * (_LINEAR(z) + _SQUARE(z) * a * a)


@inlined_elementwise
def _tail_of(a, e):
    """(1 - erf(a / sqrt(2))) / 2 for a >= 0, where e = exp(-a^2 / 2)"""
    if in_float32(a):  # without the divisions; float64 would need a polynomial of three times the length
        return _exp_minus(_minus_log_tail(at_most(a, _THIRTEEN(a))))
    u = a * _ROOT_HALF(a)
    ratio = (u - _TWO_AND_A_HALF(u)) / (u + _TWO_AND_A_HALF(u))
    return _HALF(u) * e * _tail(ratio) / (_ONE(u) + u + u)


@inlined_elementwise
def _gelu(z):
    """share = (1 + erf(z / sqrt(2))) / 2, the normal distribution, and its slope, the normal density"""
    a = at_most(magnitude(z), _FAR(z))
    e = _exp_minus(_HALF(z) * a * a)
    tail = _tail_of(a, e)
    return where_negative(z, tail, _ONE(z) - tail), e * _DENSITY(z)


def _loops(gate):
    @elementwise
    def activate(z, count, y, at):
        """y = z * share(z); what z has in its last pair is lost"""
        whole = whole_pairs(z, count)
        for i in range(0, whole, in_pair(z)):
            value = load(z, pair_of(z, i))
            share, _ = gate(value)
            store(y, pair_of(y, at + i), value * share)
        if whole < count:
            value = load(z, pair_of(z, whole))
            share, _ = gate(value)
            store(z, pair_of(z, whole), value * share)
            for i in range(whole, count):
                store(y, at + i, load(z, i))

    @elementwise
    def differentiate(dy, start, count, z, at):
        """z = dy * (z * share(z))'"""
        for i in range(at, at + count, in_pair(z)):
            value = load(z, pair_of(z, i))
            share, slope = gate(value)
            store(z, pair_of(z, i), share + value * slope)
        for i in range(count):
            store(z, at + i, load(dy, start + i) * load(z, at + i))

    return activate, differentiate


_activate_gelu, _differentiate_gelu = _loops(_gelu)
_activate_gelu_tanh, _differentiate_gelu_tanh = _loops(_gelu_tanh)
_activate_silu, _differentiate_silu = _loops(_sigmoid)


@scalar
def activate(activation, z, count, y, at):
    """y = activation(z); relu is not among them, for that is a floor of the norm's own loop"""
    if activation == GELU:
        _activate_gelu(z, count, y, at)
    elif activation == GELU_TANH:
        _activate_gelu_tanh(z, count, y, at)
    else:
        _activate_silu(z, count, y, at)


@scalar
def differentiate(activation, dy, start, count, z, at):
    """z = dy * activation'(z), from `at` on; relu is not among them either"""
    if activation == GELU:
        _differentiate_gelu(dy, start, count, z, at)
    elif activation == GELU_TANH:
        _differentiate_gelu_tanh(dy, start, count, z, at)
    else:
        _differentiate_silu(dy, start, count, z, at)
