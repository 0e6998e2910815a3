"""The main job and its parts, behind `python -m benchmarks`."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import asv_run, figures, selection
from benchmarks.cases import DTYPES, OPS
from benchmarks.selection import Cell

if TYPE_CHECKING:
    from rich.console import Console

PARTS = {
    "check": "describe the machine, and say what makes its times doubtful",
    "verify": "compare every op with the float64 reference",
    "asv": "time the commit HEAD and save the times in reports/results",
    "peers": "time normnumba, NumPy, torch, JAX and ONNX Runtime side by side, next to the streaming ceiling",
    "ceiling": "measure how fast this machine reads, copies and adds",
    "report": "write reports/index.html and claims.html from what is there",
    "readme": "write the tables of results and of claims into README.md",
    "claims": "train small nets to see what is true of what is said about norms; with --quick, --only, --output",
}

OTHER_BENCHMARKS = 10
"""asv benchmarks beside the table's: import, two first calls, two memory peaks, five nets that learn."""

ASV_CELL_SECONDS = 2.5

PATIENCE, QUICK_PATIENCE = 45.0, 10.0
"""Seconds for timing disturbed cases once more."""

DONE, FAILED, MISUSED = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Verify, time and report. Without a part: check, verify, asv, peers and report, in this order.",
        epilog="parts:\n" + "\n".join(f"  {name:9}{text}" for name, text in PARTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("part", nargs="?", choices=PARTS, metavar="part", help="one of the parts below")
    size = made.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="few cells and rounds, and asv saves nothing")
    size.add_argument("--full", action="store_true", help="the whole table, every dtype")
    for name, example in (("op", "layer_norm*"), ("shape", "8192x768"), ("dtype", "float64")):
        made.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"only these; '{example}', say; repeatable",
        )
    made.add_argument(
        "--sizes",
        choices=selection.SIZES,
        help=f"only x below {figures.nbytes(selection.SMALL_BYTES)}, what fits the last-level cache, or what does not",
    )
    made.add_argument(
        "--device", "--backend", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)"
    )
    made.add_argument(
        "--no-save", action="store_true", help="let asv time HEAD without saving; changes need no commit then"
    )
    made.add_argument("--only", metavar="ID,ID", help="claims alone: just these")
    made.add_argument(
        "--output",
        type=Path,
        help="where the page and the figures go (default: reports; of a quick run or a selection, reports/partial)",
    )
    return made


class Job:
    """One run: what was asked, and the parts that do it. Each part returns an exit code."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options = options
        self.console = console
        if options.output is None:  # parts of the table never take the place of the whole
            partial = (options.quick or self.filtered) and options.part != "claims"
            options.output = asv_run.ROOT / "reports" / ("partial" if partial else "")
        self.failed: set[str] = set()
        """Ops that must not be timed."""

    # --- what to run ---

    @property
    def filtered(self) -> bool:
        return bool(self.options.op or self.options.shape or self.options.dtype or self.options.sizes)

    @property
    def selection_text(self) -> str:
        """The filters as they were typed."""
        given = [(f"--{kind}", text) for kind in ("op", "shape", "dtype") for text in getattr(self.options, kind)]
        given += [("--sizes", self.options.sizes)] if self.options.sizes else []
        return shlex.join(word for pair in given for word in pair)

    def cells(self) -> list[Cell]:
        """The cells to time."""
        options = self.options
        if self.filtered:
            dtypes = options.dtype or (DTYPES if options.full else DTYPES[:1])
            found = selection.filter_cells(selection.every_cell(), options.op, options.shape, dtypes, options.sizes)
            return found if options.full or options.shape else selection.without_huge(found)
        if options.full:
            return selection.every_cell()
        return selection.quick_cells() if options.quick else selection.default_cells(others=OTHER_BENCHMARKS)

    def timed_cells(self) -> list[Cell]:
        return [cell for cell in self.cells() if cell.op.name not in self.failed]

    def origin(self) -> dict[str, Any]:
        """Where numbers come from: stands in every file that this job writes."""
        from benchmarks import report

        commit = asv_run.commit()
        mode = "quick" if self.options.quick else "full" if self.options.full else "default"
        clean = commit is not None and not asv_run.uncommitted()
        return {
            "format": report.FORMAT,
            "mode": mode,
            "selection": self.selection_text,
            "commit": commit,
            "clean": clean,
        }

    # --- the parts ---

    def check(self) -> int:
        from rich.table import Table

        machine = self.machine()
        table = Table(show_header=False, box=None, padding=(0, 2))
        for name, value in machine.items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {figures.nbytes(v) if isinstance(v, int) else v}" for k, v in value.items())
            elif name == "memory":
                value = figures.nbytes(value)
            if name != "doubts":
                table.add_row(name.replace("_", " "), "not readable" if value is None else str(value))
        self.console.print(table)
        for doubt in machine["doubts"]:
            self.console.print(f"[yellow]Doubtful: {doubt}.")
        return DONE

    def machine(self) -> dict[str, Any]:
        from benchmarks import machine

        found = machine.describe()
        return {**found, "doubts": machine.doubts(found)}

    checks_file = "verify.json"

    def library(self) -> Any:
        """What is compared with the reference."""
        import normnumba

        return normnumba

    def cells_to_verify(self) -> list[Cell]:
        from benchmarks import verify

        ops = list(dict.fromkeys(cell.op for cell in self.cells()))
        # Kernels of one more dtype take long to compile, and the tests cover the halves.
        some = 1 if self.options.quick else len(DTYPES) if self.options.full else 2
        dtypes = self.options.dtype or DTYPES[:some]
        cells = verify.cells_to_verify(ops, dtypes, self.options.full)
        if self.options.quick:
            cells = [cell for cell in cells if cell.geometry.size <= verify.SMALL]
        return list(dict.fromkeys([*cells, *self.cells()]))

    def verify(self, cells: Sequence[Cell] | None = None, save: bool = True) -> int:
        import normnumba
        from benchmarks import report, verify
        from normnumba import reference

        missing = {cell.op.function for cell in self.cells() if not hasattr(normnumba, cell.op.function)}
        cells = self.cells_to_verify() if cells is None else cells
        with self.progress("verifying", len(cells)) as step:
            checks = verify.verify(cells, self.library(), reference, lambda cell: step(str(cell)))
        self.failed = verify.failed_ops(checks)
        self._show_checks(checks)
        if save:
            origin = {**self.origin(), "machine": self.machine(), "full": self.options.full}
            report.save(self.options.output / self.checks_file, {**origin, "checks": [c.as_dict() for c in checks]})
        if missing:
            self.console.print(f"[red]normnumba lacks: {', '.join(sorted(missing))}.")
        if self.failed:
            self.console.print(f"[red]Wrong beyond tolerance, so not timed: {', '.join(sorted(self.failed))}.")
        return FAILED if self.failed else DONE

    def asv(self) -> int:
        save = not (self.options.no_save or self.options.quick)
        cells = self.timed_cells()
        if self.options.quick:
            # Two processes a cell: the larger shape of each op is what two minutes allow.
            cells = list({cell.op: cell for cell in sorted(cells, key=lambda cell: cell.x_bytes)}.values())
        others = selection.FULL_STARTUP_BENCHMARKS if self.options.full else selection.STARTUP_BENCHMARKS
        others = () if self.filtered or self.options.quick else others
        if not cells:
            return DONE
        count = len(cells) + (OTHER_BENCHMARKS if others else 0)
        self.console.print(f"asv times HEAD: {count} cells, some {count * ASV_CELL_SECONDS / 60:.0f} minutes and more.")
        with self.progress("asv", 100) as step:
            outcome = asv_run.run(
                selection.asv_patterns(cells, others), save, lambda part, line: step(line, completed=100 * part)
            )
        self.console.print(outcome.message, style=None if outcome.ok else "red", markup=False, highlight=False)
        return DONE if outcome.ok else FAILED

    def compile_from(self) -> float:
        """Bytes of x from which torch.compile takes part: a second a cell, and the first takes ten."""
        if self.options.quick:
            return math.inf
        return 0 if self.options.full or self.filtered else selection.SMALL_BYTES

    def peers(self) -> int:
        from benchmarks import peers, report
        from benchmarks.measure import Effort

        found, missing = peers.load()
        for name, problem in missing.items():
            self.console.print(f"[yellow]No comparison with {figures.TITLES[name]}: {problem}.")
        effort = Effort(rounds=3, block=0.03, budget=0.5) if self.options.quick else Effort()
        machine, cells, cases = self.machine(), self.timed_cells(), []
        patience = QUICK_PATIENCE if self.options.quick else PATIENCE
        with self.progress("timing", len(cells)) as step:
            for cell in cells:
                step(str(cell), advance=0)
                comparison = peers.Comparison(cell, found, self.compile_from())
                case = comparison.time(effort)
                if figures.unsteady(case) and patience > 0:  # once more, and keep the one that was disturbed less
                    start = time.perf_counter()
                    case = min(case, comparison.time(effort), key=figures.disturbance)
                    patience -= time.perf_counter() - start
                cases.append(case)
                step(str(cell))
        content = {**self.origin(), "machine": machine, "missing": missing, "cases": cases}
        report.save(self.options.output / "peers.json", content)
        self._show_cases(cases)
        self.console.print(f"Wrote {self.options.output / 'peers.json'}", highlight=False, soft_wrap=True)
        return DONE

    def ceiling(self) -> int:
        from rich.table import Table

        from benchmarks import ceiling
        from benchmarks.measure import Effort

        table = Table(title="GB/s by size of one array, and the fastest kind of kernel")
        for column in ("size", "read", "copy", "add"):
            table.add_column(column, justify="right")
        effort = Effort(rounds=3 if self.options.quick else 7)
        for row in ceiling.sweep(effort):
            rates = (f"{row[kind]['gbs']:.1f} {row[kind]['way']}" for kind in ("read", "copy", "add"))
            table.add_row(figures.nbytes(row["nbytes"]), *rates)
        self.console.print(table)
        return DONE

    def report(self) -> int:
        from benchmarks import report

        path = report.write(self.options.output, asv_run.ROOT / "reports" / "results")
        self.console.print(f"Wrote {path}", highlight=False, soft_wrap=True)
        return DONE

    def readme(self) -> int:
        return max(self._readme_results(), self._readme_claims())

    def _readme_results(self) -> int:
        from benchmarks import readme, report

        peers = report.load(self.options.output / "peers.json")
        if peers is None:
            return self._refuse("No peers.json of this version: run `python -m benchmarks peers` first.")
        if peers["mode"] == "quick" or peers["selection"]:
            return self._refuse("peers.json is of a quick or filtered run; the README shows whole runs only.")
        unsteady = sum(map(figures.unsteady, peers["cases"]))
        if unsteady > len(peers["cases"]) / 4:
            return self._refuse(f"{unsteady} of {len(peers['cases'])} cases were unsteady: nothing for a README.")
        return self._write_section("results", readme.results(peers))

    def _readme_claims(self) -> int:
        from benchmarks import readme
        from benchmarks.claims import page
        from benchmarks.claims.study import CLAIMS

        found = page.load(self.options.output)
        if len(found) < len(CLAIMS) or page.preliminary(found) or page.source(found) is None:
            return self._refuse("claims.json is not of one whole, full study: run `python -m benchmarks claims`.")
        return self._write_section("claims", readme.claims(list(found.values())))

    def _write_section(self, section: str, text: str) -> int:
        from benchmarks import readme

        if not readme.update(asv_run.ROOT / "README.md", section, text):
            return self._refuse(f"README.md has no markers '{section}:begin' and '{section}:end': nothing written.")
        self.console.print(f"README.md: {section} written.")
        return DONE

    def _refuse(self, why: str) -> int:
        self.console.print(why, style="red", markup=False, highlight=False)
        return FAILED

    def claims(self) -> int:
        from benchmarks.claims import command

        ids = [id.strip() for id in (self.options.only or "").split(",") if id.strip()]
        try:
            if self.options.only is not None and not ids:
                raise ValueError(f"--only names no claim; there are {', '.join(command.CLAIMS)}")
            command.choose(ids)
        except ValueError as error:
            self.console.print(f"{error}", style="red", markup=False, highlight=False)
            return MISUSED
        checks = command.check(self.progress)
        wrong = [check for check in checks if not check["passed"]]
        for check in wrong:
            self.console.print(f"{check['what']}: {check['error']:.2g}, at most {check['tolerance']:g}", style="red")
        if wrong:
            self.console.print("[red]What trains wrongly says nothing about claims: nothing was trained.")
            return FAILED
        self.console.print(f"{len(checks)} checks of gradients and kernels passed.")
        try:
            entries = command.study(ids, self.options.quick, self.options.output, self.progress, self.origin())
        except KeyboardInterrupt:
            self.console.print("[yellow]Interrupted: the same command goes on with what is trained by now.")
            return FAILED
        self._show_claims(entries)
        return self.report()

    def everything(self) -> int:
        """All parts in order; a part that fails does not stop the others."""
        codes = []
        for part in self.parts():
            self.console.rule(part.__name__)
            start = time.perf_counter()
            codes.append(part())
            self.console.print(f"{time.perf_counter() - start:.0f} s", style="dim")
        return max(codes)

    def parts(self) -> tuple[Callable[[], int], ...]:
        return self.check, self.verify, self.asv, self.peers, self.report

    def before_timing(self) -> int:
        """Timing alone still refuses what is wrong, by the small shapes: those take a second."""
        from benchmarks.verify import smallest_cells

        return self.verify(smallest_cells(self.cells()), save=False)

    # --- showing ---

    @contextmanager
    def progress(self, text: str, total: int) -> Iterator[Callable[..., None]]:
        """A progress bar; the yielded function moves it by one cell and shows its name."""
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.fields[now]}"), console=self.console, transient=True) as bar:
            task = bar.add_task(text, total=total, now="")

            def step(now: str, advance: float = 1, completed: float | None = None) -> None:
                if completed is None:
                    bar.update(task, now=now, advance=advance)
                else:
                    bar.update(task, now=now, completed=completed)

            yield step

    def _show_checks(self, checks: Sequence[Any]) -> None:
        from rich.table import Table

        table = Table(title="Worst error against float64, in eps of the dtype")
        for column in ("op", "dtype", "cases", "error", "tolerance", "output, shape"):
            table.add_column(column, justify="left" if column in ("op", "dtype", "output, shape") else "right")
        for check in checks:
            cells = (check.op, check.dtype, str(check.cases), f"{check.error:.2g}", f"{check.tolerance:g}")
            table.add_row(*cells, f"{check.output}, {check.where}", style=None if check.passed else "red")
        self.console.print(table)

    def _show_claims(self, entries: Sequence[dict[str, Any]]) -> None:
        from rich.table import Table

        table = Table(title="Verdicts" + (", preliminary: of 3 seeds" if self.options.quick else ""))
        for column in ("claim", "verdict", "test", "verdict", "why"):
            table.add_column(column)
        for entry in entries:
            for i, test in enumerate(entry["tests"]):
                head = ("", "") if i else (entry["id"], entry["verdict"])
                table.add_row(
                    *head, test["test"], test["verdict"], test["reason"], end_section=i + 1 == len(entry["tests"])
                )
        self.console.print(table)

    def _show_cases(self, cases: Sequence[dict[str, Any]]) -> None:
        from rich.table import Table

        peers = figures.peers_of(cases)
        table = Table(title="Median times; then the fastest framework's time over ours, and every peer's")
        table.add_column("case")
        for column in ("time", "of ceiling", "fastest", *(figures.SHORT[peer] for peer in peers)):
            table.add_column(column, justify="right", no_wrap=True)
        for case in cases:
            numbers = (figures.seconds(case["seconds"]["ours"]), figures.percent(case["percent_of_ceiling"]))
            ratios = (figures.times(figures.ratio(case, peer)) for peer in peers)
            table.add_row(figures.label(case), *numbers, figures.fastest(case), *ratios)
        self.console.print(table)
        for line in figures.left_out(cases):
            self.console.print(line, style="dim", markup=False, highlight=False)
        unsteady = sum(map(figures.unsteady, cases))
        if unsteady:
            self.console.print(f"[yellow]{unsteady} of {len(cases)} cases were unsteady: is something else running?")
        for line in (*figures.tallies(cases), *figures.classes(cases)):
            self.console.print(line, markup=False, highlight=False)


def cuda_refusal(part: str | None) -> str | None:
    """Why `--device cuda` cannot run; None where it can."""
    from benchmarks import device

    if part in ("asv", "ceiling", "readme", "claims"):
        return f"The part {part} has no --device cuda. There are check, verify, peers and report."
    problem = device.problem()
    return problem and f"CUDA cannot be used: {problem}. Only --device cpu can be timed here."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, and return the exit code."""
    options = parser().parse_args(arguments)
    try:
        from rich.console import Console
    except ImportError:
        print('The job needs a few packages: pip install -e ".[bench]"', file=sys.stderr)
        return MISUSED
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a log has no width, and rich would cut the tables at 80
    job = Job(options, console)
    if (options.part == "claims" and (job.filtered or options.full)) or (
        options.part != "claims" and options.only is not None
    ):
        console.print("[red]claims takes --quick, --only and --output; --only is for claims alone.")
        return MISUSED
    if options.device == "cuda":
        refusal = cuda_refusal(options.part)
        if refusal:
            console.print(refusal, style="red", markup=False, highlight=False, soft_wrap=True)
            return MISUSED
        from benchmarks.device_job import DeviceJob

        job = DeviceJob(options, console)
    if not job.cells():
        console.print(f"[red]No case matches. Ops: {', '.join(op.name for op in OPS)}. Dtypes: {', '.join(DTYPES)}.")
        return MISUSED

    start = time.perf_counter()
    if options.part is None:
        code = job.everything()
    else:
        code = job.before_timing() if options.part in ("asv", "peers") else DONE
        code = max(code, getattr(job, options.part)())
    console.print(f"{time.perf_counter() - start:.0f} s", style="dim")
    return code
