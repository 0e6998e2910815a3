"""python -m normnumba compile: fill the disk cache ahead of time, so that an image or a cluster starts warm."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import normnumba
from normnumba.kernels.cpu.compiling import cache_folder, kernels
from normnumba.kernels.cpu.launching import spread_tasks
from normnumba.views import STORAGE

DTYPES = {dtype.name: storage for dtype, storage in STORAGE.items()}

_BATCH = ("channels.{}", "columns.{}_sample")

KERNELS = {
    "add_": ("plain.add_rows_{}", "rows.add_{}"),
    "layer_norm": ("plain.rows_{}", "rows.{}", "strips.{}"),
    "rms_norm": ("plain.rows_{}", "rows.{}", "strips.{}"),
    "batch_norm_inference_backward": ("plain.channels_{}", "plain.columns_{}", *_BATCH),
    "batch_norm_inference": ("plain.channels_inference", "plain.columns_inference", *_BATCH),
    "batch_norm_backward_apply": ("plain.channels_apply", "plain.columns_apply", *_BATCH),
    "batch_norm_backward_": _BATCH,
    "batch_norm": ("plain.channels_{}", "plain.columns_{}", *_BATCH),
    "batch_moments": _BATCH,
    "group_norm": ("plain.groups_{}", "groups.{}", "columns.{}_sample", "columns.{}_own"),
    "instance_norm": ("plain.groups_{}", "groups.{}", "columns.{}_sample", "columns.{}_own"),
}
"""The kernels of an op, forward or backward, by how its name begins; the first that fits."""

BESIDES = {
    "batch_norm_forward": ("channels.moments",),
    "batch_moments": ("channels.moments",),
    "batch_norm_backward": ("channels.sums", "channels.forward", "columns.forward_sample"),
}
"""Further kernels: for few large channels, and for a gradient with a mask, which takes the moments again."""


def kernels_of(op: str) -> list[str]:
    """The names of the kernels that a public function calls."""
    names = next((n for start, n in KERNELS.items() if op.startswith(start)), ())
    which = "backward" if "backward" in op else "forward"
    wanted = {*(name.format(which) for name in names), *BESIDES.get(op, ())}
    return [name for name in kernels if name in wanted]


OPS = [name for name in normnumba.__all__ if kernels_of(name)]


def compile_kernels(names: Sequence[str], dtypes: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Compile or load the launcher of tasks and each kernel in turn; what it is, and whether it was in the cache."""
    yield _outcome("tasks.spread", "", spread_tasks())
    for dtype in dtypes:
        for name in names:
            variant, others, plain = kernels[name]
            if not plain or DTYPES[dtype].name == dtype:
                yield _outcome(name, dtype, variant(DTYPES[dtype], *[DTYPES[dtype]] * others))


def _outcome(name: str, dtype: str, dispatcher: Any) -> tuple[str, bool]:
    """A line of a table, and whether the cache had the kernel."""
    return f"{name:<24}{dtype:<10}", sum(dispatcher.stats.cache_hits.values()) > 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status to exit with."""
    options = _parse(arguments)
    reason = _unwritable()
    if reason:
        print(f"nothing compiled: {reason}; NUMBA_CACHE_DIR chooses another folder", file=sys.stderr)
        return 1
    start = last = time.perf_counter()
    found = []
    for what, there in compile_kernels(options.kernels, options.dtype):
        found.append(there)
        now = time.perf_counter()
        print(f"{what}{now - last:6.2f} s  {'already there' if there else 'compiled'}", flush=True)
        last = now
    total = f"{last - start:.1f} s, {found.count(False)} compiled and {found.count(True)} already there"
    print(f"{len(found)} kernels in {total}\n{cache_folder()}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m normnumba", description=__doc__)
    command = parser.add_subparsers(required=True, metavar="compile").add_parser(
        "compile",
        help="compile kernels into the disk cache",
        description="Compile kernels into the folder that NUMBA_CACHE_DIR, the CPU and the versions decide.",
    )
    names = ", ".join(DTYPES)
    command.add_argument(
        "--dtype",
        nargs="+",
        default=["float32"],
        choices=[*DTYPES, "all"],
        metavar="DTYPE",
        help=f"{names} or all (default: float32); a minute or so each",
    )
    command.add_argument(
        "--op", nargs="+", default=["*"], metavar="OP", help="functions, with * and ? as in a shell (default: all)"
    )
    options = parser.parse_args(arguments)
    unknown = [pattern for pattern in options.op if not any(fnmatchcase(op, pattern) for op in OPS)]
    if unknown:
        command.error(f"argument --op: {', '.join(unknown)} matches none of {', '.join(OPS)}")
    ops = [op for op in OPS if any(fnmatchcase(op, pattern) for pattern in options.op)]
    options.kernels = [name for name in kernels if any(name in kernels_of(op) for op in ops)]
    options.dtype = list(DTYPES) if "all" in options.dtype else list(dict.fromkeys(options.dtype))
    return options


def _unwritable() -> str | None:
    """Why kernels cannot be kept, if so: a compilation that is not kept would look like success."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_folder()):
            return None
    except OSError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
