"""Build a CUDA kernel on a machine without a GPU, as its first launch would: what ptxas reports of it, and its SASS.

The steps are numba-cuda's own: Python is lowered to LLVM IR, which takes longest and holds the interpreter's lock; NVVM
makes LTO-IR of it and nvJitLink the cubin, in threads. numba asks for the architecture while lowering only where it
lowers atomics and tanh, and there it draws its lines below `OLDEST`: all architectures from there on share the IR.
"""

import collections
import dataclasses
import functools
import importlib.metadata
import itertools
import os
import re
import struct
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

ARCHITECTURES = ((8, 0), (9, 0), (10, 0))

OLDEST = (8, 0)

PACKAGES = ("numba-cuda", "nvidia-nvvm", "nvidia-cuda-nvrtc", "nvidia-nvjitlink", "nvidia-cuda-nvdisasm")

BYTES = 16
"""Of an instruction, on all architectures that CUDA 13 knows."""

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)
"""As in `        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;`."""

_lowering = threading.Lock()
"""Held while numba lowers: it shares the modules of device functions between kernels."""

_waiting = collections.defaultdict(list)
"""What was built for each architecture and not disassembled."""


@functools.cache
def missing():
    """Why no kernel can be built here, or None."""
    absent = [package for package in PACKAGES if not _installed(package)]
    if absent:
        return f"{', '.join(absent)}: not installed (pip install normnumba[cuda-offline])"
    from numba import cuda

    if getattr(cuda, "implementation", None) != "NVIDIA":
        return "numba.cuda is numba's own and not NVIDIA's numba-cuda, although that is installed"
    return None


def _installed(package):
    return bool(list(importlib.metadata.distributions(name=package)))


@dataclass(frozen=True)
class Built:
    """A kernel's machine code for one architecture."""

    name: str
    cc: tuple[int, int]
    registers: int
    """Per thread."""
    spill_stores: int
    """Bytes, as all below."""
    spill_loads: int
    stack: int
    shared: int
    """What is declared in the kernel."""
    cubin: bytes = field(repr=False)
    log: str = field(repr=False)

    @functools.cached_property
    def sass(self) -> tuple[str, ...]:
        """The instructions, with their predicates and operands, where jumps go to addresses of no meaning.

        nvdisasm takes a quarter of a second to start and little for a kernel, so that it runs when this is first read,
        and then for all that was built for the architecture.
        """
        waiting = tuple(_waiting[self.cc])
        for built, lines in zip(waiting, disassembled([b.cubin for b in waiting], self.cc), strict=True):
            built.__dict__["sass"] = lines
        del _waiting[self.cc][: len(waiting)]
        return self.__dict__["sass"]

    def count(self, *opcode_prefixes: str) -> int:
        """How many instructions have one of these opcodes; "LDG" is any LDG, "LDG.E.128" those of 16 bytes."""
        return sum(opcode(line).startswith(opcode_prefixes) for line in self.sass)


def build(kernel, cc=(9, 0), **options):
    """The `Built` of a kernel: a `Kernel`, or what has its name, function, signature and perhaps options.

    `options` are those of `cuda.jit` that change code: fastmath, max_registers, opt.
    """
    return _build(kernel, tuple(cc), _keywords(kernel, options))


def _keywords(kernel, options):
    return tuple(sorted((getattr(kernel, "options", {}) | options).items()))


def build_all(kernels, ccs=ARCHITECTURES, **options):
    """{(kernel, cc): Built} of every kernel on every architecture; what was built is known to `build` as well."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = {}
        for kernel in kernels:
            keywords = _keywords(kernel, options)
            # Here, one after the other, while NVVM and nvJitLink work without the interpreter on what is there.
            _lowered(kernel, keywords)
            futures |= {(kernel, cc): pool.submit(_build, kernel, tuple(cc), keywords) for cc in ccs}
        return {key: future.result() for key, future in futures.items()}


@functools.cache
def _build(kernel, cc, keywords):
    assert cc >= OLDEST, "lowered otherwise: see above"
    library = _lowered(kernel, keywords)
    linked = _linker()(cc=architecture(cc), max_registers=dict(keywords).get("max_registers"), lto=True)
    library._link_all(linked, linked.cc)
    cubin = bytes(linked.complete().code)
    built = Built(kernel.name, cc, **reported(linked.info_log), cubin=cubin, log=linked.info_log)
    _waiting[cc].append(built)
    return built


def architecture(cc):
    """What a launch builds for: with the instructions that only this architecture has, where there are such."""
    return (*cc, "a") if cc >= (9, 0) else cc


@functools.cache
def _lowered(kernel, keywords):
    """The code library of a kernel: its LLVM IR."""
    from numba.core import types
    from numba.cuda import compiler, dispatcher

    options = {name: value for name, value in keywords if name != "max_registers"}
    # Calling a device function asks the driver what it compiles for, even where nothing depends on it.
    device = SimpleNamespace(compute_capability=OLDEST)
    with _lowering, mock.patch.object(dispatcher, "get_current_device", return_value=device):
        library, _ = compiler._compile_pyfunc_with_fixup(
            kernel.function, types.void(*kernel.signature), device=False, abi="numba", cc=OLDEST, **options
        )
        assert library.llvm_strs  # made now, for the modules of device functions change with the next kernel
        library.needs_cudadevrt = library.use_cooperative
    return library


@functools.cache
def _linker():
    """numba's linker, but that it reports what it did."""
    from numba.cuda.cudadrv import driver

    class Linker(driver._Linker):
        def _get_linker_options(self, ptx):
            return dataclasses.replace(super()._get_linker_options(ptx), verbose=True)

    return Linker


def reported(log):
    """What ptxas says of a kernel, and of functions that were not inlined: stacks and spills are added up."""

    def total(pattern):
        return sum(map(int, re.findall(pattern, log)))

    assert log.count("Compiling entry function") == 1, log
    return {
        "registers": int(re.search(r"Used (\d+) registers", log)[1]),
        "spill_stores": total(r"(\d+) bytes spill stores"),
        "spill_loads": total(r"(\d+) bytes spill loads"),
        "stack": total(r"(\d+) bytes stack frame"),
        "shared": total(r"(\d+) bytes smem"),
    }


@functools.cache
def nvdisasm():
    """The tool's path, from the wheel that brings it."""
    files = importlib.metadata.files("nvidia-cuda-nvdisasm") or ()
    return next(Path(f.locate()) for f in files if f.stem == "nvdisasm")


def disassembled(cubins, cc):
    """The instructions of each cubin, without the padding behind the last."""
    codes = list(map(machine_code, cubins))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "instructions")
        file.write_bytes(b"".join(codes))
        # As raw instructions: several cubins are more than it takes.
        command = [nvdisasm(), "--binary", "SM" + "".join(map(str, architecture(cc))), "--no-dataflow", file]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = {int(offset, 16): re.sub(r"\s+", " ", line) for offset, line in INSTRUCTION.findall(text)}
    ends = list(itertools.accumulate(map(len, codes)))
    assert len(lines) * BYTES == ends[-1], text[:2000]
    found = [[lines[at] for at in range(end - len(code), end, BYTES)] for code, end in zip(codes, ends, strict=True)]
    return [tuple(line for line in kernel if opcode(line) != "NOP") for kernel in found]


def machine_code(cubin):
    """The kernel's, and behind it that of functions that were not inlined."""
    return b"".join(code for name, code in sections(cubin) if name.startswith(".text."))


def sections(elf):
    """The names and contents of an ELF file's sections."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, of_names = struct.unpack_from("<3H", elf, 0x3A)
    headers = [struct.unpack_from("<2I4Q", elf, table + i * size) for i in range(count)]
    names = headers[of_names][4]
    for name, _, _, _, start, length in headers:
        begin = names + name
        yield elf[begin : elf.index(0, begin)].decode(), elf[start : start + length]


def opcode(line):
    """LDG.E of "@!P0 LDG.E R4, ..."."""
    words = line.split()
    return words[1] if words[0].startswith("@") else words[0]
