"""python -m benchmarks.every_op: call ops on a CUDA device, for a sanitizer or a profiler to watch. Compares nothing.

Without options: every op, on small shapes that take each way through the kernels. With --shape: the table's shapes for
devices that match.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import selection
from benchmarks.cases import DEVICE_DTYPES
from benchmarks.device import Device, problem
from benchmarks.selection import Cell


def chosen(ops: Sequence[str], shapes: Sequence[str], dtypes: Sequence[str]) -> list[Cell]:
    """The cells to call."""
    table = selection.device_cells if shapes else selection.small_device_cells
    return selection.filter_cells(table(dtypes=dtypes or DEVICE_DTYPES[:1]), ops, shapes, ())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.every_op", description=__doc__)
    for name in ("op", "shape", "dtype"):
        parser.add_argument(f"--{name}", action="append", default=[], metavar="PATTERN")
    options = parser.parse_args(arguments)
    reason = problem()
    cells = chosen(options.op, options.shape, options.dtype)
    if reason or not cells:
        print(f"CUDA cannot be used: {reason}" if reason else "No case matches.", file=sys.stderr)
        return 2
    device = Device()
    for cell in cells:
        device.ours(cell.op.function, cell.arguments()).call()
        device.synchronize()
        print(cell, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
