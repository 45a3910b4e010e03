"""What the user sees of a build: one line for each stage, with a live bar on a terminal, and the table at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ortserve.export.interrupt import Interrupt
from ortserve.manifest import Difference, ParityReport, Precision, Variant

# Where there is no terminal, a stage that can count says every few seconds how far it is.
LINE_EVERY_S = 5.0
# A file or a pipe has no width of its own: as wide as the table needs, so that no number is cut.
PLAIN_WIDTH = 160


class Stage:
    """A running stage. `advance(done, total)` moves its bar, `result` is what its line will say."""

    def __init__(self, name: str, console: Console, progress: Progress, task: TaskID) -> None:
        self.result = ""
        self._name = name
        self._console = console
        self._progress = progress
        self._task = task
        self._said = time.monotonic()

    def advance(self, done: int, total: int) -> None:
        """Show how far the stage is."""
        self._progress.update(self._task, completed=done, total=total)
        if not self._console.is_terminal and time.monotonic() - self._said > LINE_EVERY_S:
            self._said = time.monotonic()
            self._console.print(f"  {self._name:<14} {done} of {total}", highlight=False)


class Screen:
    """Where a build writes. On a terminal bars move; elsewhere plain lines appear one after the other.

    With `interrupt`, no stage begins after Ctrl-C.
    """

    def __init__(self, console: Console | None = None, interrupt: Interrupt | None = None) -> None:
        self._interrupt = interrupt
        self.console = console or Console()
        if not self.console.is_terminal:
            self.console = Console(file=self.console.file, width=PLAIN_WIDTH)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """A stage called `name`; its line is printed once it is done."""
        if self._interrupt is not None:
            self._interrupt.check()
        start = time.perf_counter()
        columns = (SpinnerColumn(), TextColumn("{task.description:<14}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            stage = Stage(name, self.console, progress, progress.add_task(name, total=None))
            if not self.console.is_terminal:
                self.console.print(f"  {name:<14} ...", highlight=False)
            yield stage
        self.console.print(f"  {name:<14} {time.perf_counter() - start:6.1f} s   {stage.result}", highlight=False)

    def line(self, text: str) -> None:
        """One line of text."""
        self.console.print(text, highlight=False, markup=False)

    def table(self, variants: Mapping[Precision, Variant]) -> None:
        """The parity table: the worst of every number for each precision, red where it failed, and every failure in words."""
        parity = next(iter(variants.values())).parity
        table = Table(title="Parity with " + parity.reference, title_justify="left")
        outputs = list(parity.checks[0].outputs)
        for heading in ("precision", "nodes", "size", "batches", *outputs, "cosine", "finite", parity.agreement.measure, "result"):
            table.add_column(heading, justify="left" if heading in ("precision", "result") else "right")
        for precision, variant in variants.items():
            table.add_row(precision, f"{variant.nodes}", size(variant.size_bytes), *_numbers(variant.parity))
        self.console.print(table)
        for precision, variant in variants.items():
            for failure in variant.parity.failures:
                self.console.print(Text(f"  {precision} failed: {failure}", style="red"))


def size(size_bytes: int) -> str:
    """Bytes for the reader: 97.5 MB, 310 KB."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} KB"


def _numbers(parity: ParityReport) -> list[Text]:
    batches = sorted({check.batch for check in parity.checks})
    agreement = parity.agreement
    value = "not measurable" if agreement.value is None else f"{agreement.value:.2%} >= {agreement.limit:.1%} ({agreement.samples})"
    finite = all(check.finite for check in parity.checks)
    cosine = min(difference.cosine_min for check in parity.checks for difference in check.outputs.values())
    return [
        Text(", ".join(map(str, batches))),
        *(_worst([check.outputs[name] for check in parity.checks]) for name in parity.checks[0].outputs),
        Text(f"{cosine:.6f}"),
        _coloured("yes" if finite else "NaN/Inf", finite),
        _coloured(value, agreement.passed),
        _coloured("passed" if parity.passed else "FAILED", parity.passed),
    ]


def _worst(differences: list[Difference]) -> Text:
    """The difference that comes nearest to its limit, with that limit."""
    worst = max(differences, key=lambda difference: difference.max_abs / difference.limit)
    sign = "<=" if worst.passed else ">"
    return _coloured(f"{worst.max_abs:.1e} {sign} {worst.limit:.0e}", worst.passed)


def _coloured(text: str, passed: bool) -> Text:
    return Text(text, style="" if passed else "bold red")
