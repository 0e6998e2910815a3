"""That building without a device tells the truth: kernels whose machine code is known, written for these tests."""

import re
import subprocess
from dataclasses import dataclass

import pytest
from llvmlite import ir
from numba import types

from tests.cuda import offline

cuda = pytest.importorskip("numba.cuda")
intrinsic = pytest.importorskip("numba.cuda.extending").intrinsic

pytestmark = pytest.mark.cuda_offline

FLOATS, DOUBLES = types.CPointer(types.float32), types.CPointer(types.float64)


@pytest.fixture(scope="module", autouse=True)
def packages():
    if offline.missing():
        pytest.skip(offline.missing())


@dataclass(frozen=True)
class Kernel:
    name: str
    function: object
    signature: tuple


@intrinsic
def copy_16_bytes(typingctx, target, source, index):
    """target[index : index + 4] = source[index : index + 4]"""

    def codegen(context, builder, signature, arguments):
        *pointers, i = arguments
        four = ir.VectorType(ir.FloatType(), 4).as_pointer()
        to, origin = (builder.bitcast(builder.gep(p, [i]), four) for p in pointers)
        builder.store(builder.load(origin, align=16), to, align=16)
        return context.get_dummy_value()

    return types.void(target, source, index), codegen


def copy_vector(target, source):
    copy_16_bytes(target, source, cuda.threadIdx.x * 4)


def copy_scalar(target, source):
    i = cuda.threadIdx.x
    target[i] = source[i]


def reversed_row(n):
    """Every value is needed until the last is there: n of them at once."""

    def kernel(target, source):
        row = cuda.local.array(n, types.float32)
        for i in range(n):
            row[i] = source[i]
        cuda.syncthreads()
        for i in range(n):
            target[i] = row[n - 1 - i]

    return Kernel(f"reversed_row_{n}", kernel, (FLOATS, FLOATS))


def summed(target, source):
    part = cuda.shared.array(32, types.float32)
    i = cuda.threadIdx.x
    part[i] = source[i]
    cuda.syncthreads()
    target[i] = part[i] + part[(i + 7) % 32]


def hyperbolic(target, source):
    i = cuda.threadIdx.x
    target[i] = half_of(cuda.libdevice.tanhf(source[i]))


@cuda.jit(device=True)
def half_of(value):
    return value * types.float32(0.5)


@cuda.jit(device=True)
def in_float64(value):
    return value * 0.3 + 0.1


def careless(target, source):
    i = cuda.threadIdx.x
    target[i] = in_float64(source[i])


VECTOR = Kernel("copy_vector", copy_vector, (FLOATS, FLOATS))
SCALAR = Kernel("copy_scalar", copy_scalar, (FLOATS, FLOATS))
SUMMED = Kernel("summed", summed, (FLOATS, FLOATS))
HYPERBOLIC = Kernel("hyperbolic", hyperbolic, (FLOATS, FLOATS))
CARELESS = Kernel("careless", careless, (FLOATS, FLOATS))
DOUBLE = Kernel("copy_double", copy_scalar, (DOUBLES, DOUBLES))
ALL = (VECTOR, SCALAR, SUMMED, HYPERBOLIC, CARELESS, DOUBLE)


@pytest.mark.parametrize("cc", offline.ARCHITECTURES)
def test_widths_of_accesses(cc):
    vector, scalar, double = (offline.build(kernel, cc) for kernel in (VECTOR, SCALAR, DOUBLE))
    assert vector.count("LDG.E.128") == vector.count("STG.E.128") == 1
    assert scalar.count("LDG") == scalar.count("STG") == 1
    assert scalar.count("LDG.E.128", "STG.E.128", "LDG.E.64", "STG.E.64") == 0
    assert double.count("LDG.E.64", "STG.E.64") == 2


@pytest.mark.parametrize("cc", offline.ARCHITECTURES)
def test_spills(cc):
    kernel = reversed_row(64)
    fits, spills = offline.build(kernel, cc), offline.build(kernel, cc, max_registers=32)
    assert fits.registers > 64
    assert (fits.spill_stores, fits.spill_loads, fits.stack, fits.count("LDL", "STL")) == (0, 0, 0, 0)
    assert spills.registers <= 32
    assert min(spills.spill_stores, spills.spill_loads, spills.stack) >= 4 * 32
    assert spills.count("LDL") > 0
    assert spills.count("STL") > 0


@pytest.mark.parametrize("cc", offline.ARCHITECTURES)
def test_an_array_that_is_too_long_for_registers_is_no_spill_but_stack(cc):
    built = offline.build(reversed_row(300), cc)
    assert (built.spill_stores, built.spill_loads, built.stack) == (0, 0, 4 * 300)
    assert built.count("LDL") > 0
    assert built.count("STL") > 0


def test_launch_bounds_limit_the_registers():
    built = offline.build(reversed_row(64), launch_bounds=1024)
    assert built.registers <= 64 < offline.build(reversed_row(64)).registers
    assert built.spill_stores > 0


@pytest.mark.parametrize("cc", offline.ARCHITECTURES)
def test_double_precision_is_seen_in_functions_that_a_kernel_calls(cc):
    assert offline.build(CARELESS, cc).count("DADD", "DFMA", "DMUL") > 0
    for kernel in (VECTOR, SUMMED, HYPERBOLIC, DOUBLE):
        assert offline.build(kernel, cc).count("DADD", "DFMA", "DMUL") == 0


def test_shared_memory():
    assert offline.build(SUMMED).shared == 32 * 4
    assert offline.build(SUMMED).count("BAR.SYNC") == 1
    assert offline.build(SCALAR).shared == 0


def test_code_is_of_the_architecture_asked_for():
    built = [offline.build(SUMMED, cc) for cc in offline.ARCHITECTURES]
    assert [re.search(r"for '(\w+)'", b.log)[1] for b in built] == ["sm_80", "sm_90a", "sm_100a"]
    assert [b.cc for b in built] == list(offline.ARCHITECTURES)
    assert len({b.cubin for b in built}) == len(built)


@pytest.mark.parametrize("kernel", ALL, ids=lambda kernel: kernel.name)
def test_all_architectures_share_the_ir(kernel, monkeypatch):
    """Lowered for the architecture itself, a kernel becomes the same machine code."""
    newest = offline.ARCHITECTURES[-1]
    shared = offline.build(kernel, newest)
    monkeypatch.setattr(offline, "OLDEST", newest)
    monkeypatch.setattr(offline, "_lowered", offline._lowered.__wrapped__)
    own = offline._build.__wrapped__(kernel, newest, ())
    assert own.cubin != shared.cubin, "names of kernels are numbered: this is the cached one"
    assert offline.machine_code(own.cubin) == offline.machine_code(shared.cubin)


def test_numba_itself_links_the_same():
    """Without the option that makes it report, which leaves a trace in the file and none in the code."""
    from numba.cuda.cudadrv.driver import _Linker

    plain = _Linker(cc=(9, 0, "a"), lto=True)
    offline._lowered(SUMMED, ())._link_all(plain, plain.cc)
    linked = bytes(plain.complete().code)
    assert offline.machine_code(linked) == offline.machine_code(offline.build(SUMMED, (9, 0)).cubin) != b""


def test_kernels_are_disassembled_together_as_each_alone(tmp_path):
    built = [offline.build(kernel, (9, 0)) for kernel in ALL]
    file = tmp_path / "kernel.cubin"
    for one in built[::2]:
        file.write_bytes(one.cubin)
        text = subprocess.run([offline.nvdisasm(), file], capture_output=True, text=True, check=True).stdout
        alone = [line for _, line in offline.INSTRUCTION.findall(text)]
        assert [offline.opcode(line) for line in alone if line != "NOP"] == [offline.opcode(line) for line in one.sass]


def test_a_kernel_is_built_once():
    built = offline.build_all([SUMMED, SCALAR], [(8, 0), (9, 0)])
    assert set(built) == {(kernel, cc) for kernel in (SUMMED, SCALAR) for cc in ((8, 0), (9, 0))}
    for (kernel, cc), one in built.items():
        assert offline.build(kernel, cc) is one
        assert (one.name, one.cc) == (kernel.name, cc)


def test_predicates_are_no_opcodes():
    assert offline.opcode("@!P0 LDG.E R4, desc[UR4][R2.64]") == "LDG.E"
    assert offline.opcode("EXIT") == "EXIT"


def test_what_is_absent_is_named(monkeypatch):
    monkeypatch.setattr(offline, "PACKAGES", (*offline.PACKAGES, "no-such-package"))
    assert offline.missing.__wrapped__().startswith("no-such-package: not installed")
