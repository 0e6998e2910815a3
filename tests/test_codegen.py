"""The machine code of kernels is vectorized and streams, on any x86-64: targets are fixed, and nothing is run."""

import platform
import re

import pytest

from tests.helpers import run_python

X86 = platform.machine() in ("x86_64", "AMD64")
pytestmark = pytest.mark.skipif(not X86, reason="looks for instructions of x86-64")

# numba cannot show the code of what it has loaded from a cache, hence the empty one of each run.
SHOW = """
import sys
import numpy as np
import normnumba
from normnumba.kernels.cpu.compiling import kernels
for name, dtype in (argument.split(":") for argument in sys.argv[1:]):
    variant = kernels[name].variant
    (text,) = variant(np.dtype(dtype)).inspect_asm().values()
    print(f"=== {name}:{dtype}", text, sep="\\n")
"""

AVX2 = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""}
AVX512 = {"NUMBA_CPU_NAME": "x86-64-v4", "NUMBA_CPU_FEATURES": "-prefer-256-bit"}
"""LLVM's general tuning keeps to half of the width that Zen 4 and later ones run at full speed."""


def assembly(folder, target, *kernels):
    """The text of each kernel."""
    parts = run_python(SHOW, *kernels, NUMBA_CACHE_DIR=folder, **target).split("=== ")[1:]
    return dict(part.split("\n", 1) for part in parts)


def count(pattern, text):
    return len(re.findall(pattern, text))


def multiply_adds(text, kind):
    return count(rf"vfn?m(?:add|sub)\d+{kind}", text)


@pytest.mark.parametrize(("target", "register"), [(AVX2, "ymm"), (AVX512, "zmm")], ids=["AVX2", "AVX-512"])
def test_float32_kernels_are_vectorized_and_stream(target, register, tmp_path):
    names = ("rows.forward", "rows.backward")
    code = assembly(tmp_path, target, *(f"{name}:float32" for name in names))
    for name, text in code.items():
        assert multiply_adds(text, rf"ps[^\n]*%{register}") >= 8, name
        assert count(rf"vsubps[^\n]*%{register}", text) >= 8, name
        assert count(rf"vaddps[^\n]*%{register}", text) >= 8, f"{name}: its sums are not vectorized"
        assert count(rf"vmovntps\s+%{register}", text) >= 2, f"{name} does not stream"
        assert ".weak" not in text, f"{name}: another kernel that has the same helper could run this one's"
    text = code["rows.backward:float32"]
    in_vectors = multiply_adds(text, rf"ps[^\n]*%{register}")
    assert multiply_adds(text, "ss") <= in_vectors, "more than the ends of loops: the one with three outputs is scalar"


def test_halves_are_converted_in_vectors(tmp_path):
    kernels = "rows.forward:uint16", "rows.forward:int16"
    float16, bfloat16 = assembly(tmp_path, AVX2, *kernels).values()
    assert count(r"vcvtph2ps[^\n]*%ymm", float16) >= 4
    assert count(r"vcvtps2ph[^\n]*%ymm", float16) >= 1
    assert count(r"vpmovzxwd[^\n]*%ymm", bfloat16) >= 4
    for name, text in zip(kernels, (float16, bfloat16), strict=True):
        assert multiply_adds(text, r"ps[^\n]*%ymm") >= 8, name
        assert count(r"vmovnt\w+\s+%ymm", text) >= 2, name
