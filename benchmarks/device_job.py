"""The main job on a CUDA device: the same parts, but for asv's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from benchmarks import figures, selection
from benchmarks.cases import DEVICE_DTYPES, OPS
from benchmarks.job import DONE, FAILED, Job
from benchmarks.selection import Cell

if TYPE_CHECKING:
    from benchmarks.device import Device

RESULTS, CHECKS = "cuda.json", "cuda-verify.json"


class DeviceJob(Job):
    """Where no shape is chosen, the table's shapes for devices; bfloat16 where no dtype is."""

    checks_file = CHECKS

    @cached_property
    def device(self) -> Device:
        from benchmarks.device import Device

        return Device()

    def cells(self) -> list[Cell]:
        """In the order of interest: see `selection.device_cells`."""
        options = self.options
        dtypes = DEVICE_DTYPES if options.full or options.dtype else DEVICE_DTYPES[:1]
        cells = selection.device_cells(OPS, dtypes, 1 if options.quick else None)
        return selection.filter_cells(cells, options.op, options.shape, options.dtype, options.sizes)

    def parts(self) -> tuple[Callable[[], int], ...]:
        return self.check, self.verify_small, self.peers, self.report

    def before_timing(self) -> int:
        return DONE  # every case is compared with the reference before it is timed

    # --- the parts ---

    def check(self) -> int:
        code = super().check()
        for name, value in self.device.describe().items():
            self.console.print(f"{name.replace('_', ' ')}: {value}", markup=False, highlight=False)
        return code

    def library(self) -> Any:
        from benchmarks.device import Library

        return Library(self.device)

    def cells_to_verify(self) -> list[Cell]:
        """Ragged and timed shapes; in quick runs one for each way through the kernels."""
        from benchmarks.verify import smallest_cells

        cells = self.cells()
        if self.options.quick:
            pairs = dict.fromkeys((cell.op, cell.dtype) for cell in cells)
            return [cell for op, dtype in pairs for cell in selection.small_device_cells([op], [dtype])]
        return list(dict.fromkeys([*smallest_cells(cells), *cells]))

    def verify_small(self) -> int:
        """The ragged shapes alone, since `peers` compares the others."""
        from benchmarks.verify import smallest_cells

        return self.verify(None if self.options.quick else smallest_cells(self.cells()))

    def peers(self) -> int:
        from benchmarks import device_peers
        from benchmarks.measure import Effort

        found, missing = device_peers.load(self.device)
        if self.options.quick:
            found.pop("torch_compile", None)
        for name, problem in missing.items():
            self.console.print(f"[yellow]No comparison with {figures.TITLES[name]}: {problem}.")
        effort = Effort(rounds=3, budget=0.3) if self.options.quick else Effort()
        cells, clocks = self.timed_cells(), self.device.clocks()
        content = {**self.origin(), "machine": self.machine(), "device": self.device.describe(), "missing": missing}
        content |= {"clocks_before": clocks, "planned": len(cells), "cases": [], "failed": {}}
        with self.progress("timing", len(cells)) as step:
            for cell in cells:
                step(str(cell), advance=0)
                self._time(cell, found, effort, content)
                step(str(cell))
        self._show_device_cases(content["cases"])
        for name, problem in content["failed"].items():
            self.console.print(f"Not timed: {name}: {problem}.", style="red", markup=False, highlight=False)
        return FAILED if content["failed"] else DONE

    def _time(self, cell: Cell, peers: dict[str, Any], effort: Any, content: dict[str, Any]) -> None:
        """Add a case to what the file holds, and write it: a run that is stopped leaves what it has."""
        from benchmarks import device_peers, report
        from benchmarks.peers import in_short

        try:
            content["cases"].append(device_peers.Comparison(cell, self.device, peers).time(effort))
        except Exception as problem:  # the others are timed
            content["failed"][str(cell)] = in_short(problem)
        self.device.release()
        content["clocks_after"] = self.device.clocks()
        report.save(self.options.output / RESULTS, content)

    # --- showing ---

    def _show_device_cases(self, cases: Sequence[dict[str, Any]]) -> None:
        from rich.table import Table

        peers = figures.peers_of(cases)
        table = Table(title="Median times; then every peer's kernel time over ours")
        table.add_column("case")
        for column in ("kernel", "call", "GB/s", "of copy", *(figures.SHORT[peer] for peer in peers)):
            table.add_column(column, justify="right", no_wrap=True)
        for case in cases:
            numbers = (figures.seconds(case["seconds"]["ours"]), figures.seconds(case["call_seconds"]["ours"]))
            rates = (figures.rate(case["gbs"]), figures.percent(case["percent_of_copy"]))
            ratios = (figures.times(figures.ratio(case, peer)) for peer in peers)
            table.add_row(figures.label(case), *numbers, *rates, *ratios)
        self.console.print(table)
        for line in figures.left_out(cases):
            self.console.print(line, style="dim", markup=False, highlight=False)
