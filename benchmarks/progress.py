"""How far a run is, on standard error: a bar on a terminal, else a line per case and round."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from benchmarks.plan import Step
from benchmarks.runner import Progress
from benchmarks.subject import Subject


class _Bar:
    def __init__(self, progress: RichProgress, total: int) -> None:
        self._progress = progress
        self._bar = progress.add_task("", total=total)
        self._step = ""
        self._begun = 0

    def begin(self, number: int, step: Step) -> None:
        self._step = str(step.case)

    def advance(self, subject: Subject) -> None:
        self._progress.update(
            self._bar, completed=self._begun, description=f"{self._step}: {subject.name}"
        )
        self._begun += 1

    def end(self, step: Step) -> None:
        self._progress.update(self._bar, completed=self._begun)


class _Lines:
    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._step = 0
        self._round = 0
        self._started = 0.0

    def begin(self, number: int, step: Step) -> None:
        self._step += 1
        self._round = number
        self._started = monotonic()

    def advance(self, subject: Subject) -> None:
        pass

    def end(self, step: Step) -> None:
        what = "measurements" if len(step) > 1 else "measurement"
        print(
            f"[{self._step}/{self._steps}] round {self._round}, {step.case}: "
            f"{len(step)} {what} in {monotonic() - self._started:.1f} s",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def shown(steps: Sequence[tuple[int, Step]]) -> Iterator[Progress]:
    """Show the progress through steps as fits where standard error goes."""
    if not sys.stderr.isatty():
        yield _Lines(len(steps))
        return
    columns = (
        TextColumn("{task.description:<40}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=2,  # drawing takes processor time from what is measured
    ) as progress:
        yield _Bar(progress, sum(len(step) for _, step in steps))
