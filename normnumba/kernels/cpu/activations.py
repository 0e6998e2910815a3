"""Activations, over a block of a norm's results that is still in L1.

Each is z * share(z), where the share that passes lies between 0 and 1. exp and erf are polynomials of our own, because
calls of the library's do not vectorize: a norm with silu took 16 ms through math.exp and 4 through these.
"""

from __future__ import annotations

from .. import GELU, GELU_TANH
from .lowlevel import constant, elementwise, inlined_elementwise, load, polynomial, scalar, store, two_to_minus

_SHIFT = constant(1.5 * 2.0**23, 1.5 * 2.0**52)
"""Added to a number that is much smaller, it rounds that to an integer."""

_LN2_HIGH = constant(0.693359375, 0.6931471805582987)
_LN2_LOW = constant(-2.1219444005469057e-4, 1.6465949582897082e-12)
"""ln 2 in two parts, the first so short that its products with exponents are exact."""

_LARGEST = constant(87.0, 708.0)
"""exp(-u) is a normal number for u up to here, and taken for 0 beyond."""

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
        1.2648382186889648, -0.12235680222511292, -0.09902424365282059, 0.15763099491596222, -0.10297054052352905,
        0.03275205194950104, 0.0009467596537433565, -0.004350492265075445, 0.0004633375210687518,
        0.0005757346516475081, -6.391786882886663e-05, -6.190752901602536e-05
    ),
    (
        1.2648381843668615, -0.12235676308240215, -0.09902453957360054, 0.1576299190229927, -0.10296705603863399,
        0.03276089327566133, 0.0009318928184352962, -0.004382078440847587, 0.0004918658041021489,
        0.0006321251464155949, -8.847920687669829e-05, -0.00011352632492718974, 6.266010784972976e-06,
        2.2712248592600015e-05, 2.6086713496937893e-06, -4.244612526599291e-06, -1.5844422539027936e-06,
        5.650897898007257e-07, 5.323857055177547e-07, -2.595789779732572e-09, -1.250612981958526e-07,
        -1.9529757279629242e-08, 1.928916211860086e-08, 3.3505549185349607e-09, -1.4759816086462547e-09
    ),
)
"""(1 + 2 * u) * exp(u^2) * erfc(u) in (u - 2.5) / (u + 2.5), from its Chebyshev series; error 6e-9 and 7e-17."""
# fmt: on


@inlined_elementwise
def _decay(u):
    """exp(-u) for u >= 0: 2^-k * exp(k * ln(2) - u)"""
    number = type(u)
    shifted = u * number(1.4426950408889634) + _SHIFT(u)
    k = shifted - _SHIFT(u)
    value = _exp((k * _LN2_HIGH(u) - u) + k * _LN2_LOW(u)) * two_to_minus(shifted)
    return number(0) if u > _LARGEST(u) else value


@inlined_elementwise
def _sigmoids(u):
    """sigmoid(u), sigmoid(-u), each without cancellation"""
    number = type(u)
    e = _decay(abs(u))
    large = number(1) / (number(1) + e)
    return (e * large, large) if u < number(0) else (large, e * large)


@inlined_elementwise
def _limited(z):
    """z between -40 and 40, beyond which a share is 0 or 1; keeps powers of z finite"""
    number = type(z)
    upper = number(40) if z > number(40) else z
    return number(-40) if upper < number(-40) else upper


@inlined_elementwise
def _silu(z):
    """share = sigmoid(z), and its slope"""
    share, rest = _sigmoids(z)
    return share, share * rest


@inlined_elementwise
def _gelu_tanh(z):
    """share = (1 + tanh(v)) / 2 = sigmoid(2 * v) with v = sqrt(2 / pi) * (z + 0.044715 * z^3), and its slope"""
    number = type(z)
    z = _limited(z)
    linear, cubic = number(1.5957691216057308), number(0.07135481627260025)
    share, rest = _sigmoids(z * (linear + cubic * z * z))
    return share, share * rest * (linear + number(3) * cubic * z * z)


@inlined_elementwise
def _gelu(z):
    """share = (1 + erf(z / sqrt(2))) / 2, the normal distribution, and its slope, the normal density"""
    number = type(z)
    z = _limited(z)
    u = abs(z) * number(0.7071067811865476)
    e = _decay(number(0.5) * z * z)
    tail = number(0.5) * e * _tail((u - number(2.5)) / (u + number(2.5))) / (number(1) + u + u)
    return tail if z < number(0) else number(1) - tail, e * number(0.3989422804014327)


def _loops(gate):
    @elementwise
    def activate(z, count, y, at):
        """y = z * share(z)"""
        for i in range(count):
            value = load(z, i)
            share, _ = gate(value)
            store(y, at + i, value * share)

    @elementwise
    def differentiate(dy, start, count, z, at):
        """z = dy * (z * share(z))'"""
        for i in range(count):
            value = load(z, at + i)
            share, slope = gate(value)
            store(z, at + i, load(dy, start + i) * (share + value * slope))

    return activate, differentiate


_activate_gelu, _differentiate_gelu = _loops(_gelu)
_activate_gelu_tanh, _differentiate_gelu_tanh = _loops(_gelu_tanh)
_activate_silu, _differentiate_silu = _loops(_silu)


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
