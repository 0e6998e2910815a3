"""What numba makes of a kernel and of the functions that it calls: machine code of the kernel alone.

numba makes machine code of every function that a kernel calls, and of all of them again for the kernel, into which it
links them: a quarter of the time that compiling took. And each that was not inlined stayed visible to all that the
process loads, under a name with a counter of the process that compiled it: kernels that two processes had put into the
cache could find each other's in a third, and a process that had just compiled a kernel ran other copies than one that
loaded it, with other last bits.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class _NoMachineCode:
    """What `get_executable` tells of the environment that a traceback would need."""

    @staticmethod
    def set_env(name: str, env: Any) -> None:
        """Nobody would find it."""


class _Part(JITCodeLibrary):
    """A module to be linked into others.

    It is optimized even so: without that, rows of 768 took 1.1 times as long. Not those that make arrays, which are
    most of a kernel: all kernels took 80 s to compile instead of 105, a run each, and as long to run.
    """

    composed = False
    codegen = _NoMachineCode

    def _optimize_final_module(self) -> None:
        if not self.composed:
            super()._optimize_final_module()

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


class _Whole(JITCodeLibrary):
    """A module that keeps to itself what was linked into it."""

    def _optimize_final_module(self) -> None:
        super()._optimize_final_module()
        for function in self._final_module.functions:
            # not before: what nobody else can call is inlined and specialized by other rules, which were not measured
            if function.linkage == binding.Linkage.linkonce_odr:
                function.linkage = binding.Linkage.internal


class HelperCompiler(Compiler):
    """numba's compiler, for functions that only kernels call."""

    def __init__(
        self, typingctx: Any, targetctx: Any, library: Any, args: Any, return_type: Any, flags: Any, names: Any
    ) -> None:
        library = _Part(targetctx.codegen(), "helper")
        library.composed = flags.nrt
        super().__init__(typingctx, targetctx, library, args, return_type, flags, names)


class KernelCompiler(Compiler):
    """numba's compiler, for kernels."""

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, *rest: Any) -> None:
        library = _Whole(targetctx.codegen(), "kernel")
        library.enable_object_caching()
        super().__init__(typingctx, targetctx, library, *rest)
