"""What a scenario is: which cases it has, whom it runs on, and how it measures one case."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.results import Case, Point, Row
from benchmarks.subject import Subject


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to do, as asked on the command line.

    Attributes:
        seconds: Time for each measurement.
        tasks: Numbers of tasks that work side by side. None, as in the next three, leaves it to
            the scenario.
        tokens: Numbers of tokens.
        sizes: Bytes of a serialized state; 0 is the reference state.
        processes: Numbers of processes that work side by side.
        full: Whether to use the large numbers.
        named: Whether scenarios or backends were named, and not just everything.
        brief: Whether it is the usual run, of all backends within a minute: nothing was asked for.
        in_files: Whether it is for subjects that keep states in files; set by the plan.
        on_server: The same for those that keep them on a server.
    """

    seconds: float
    tasks: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None
    sizes: tuple[int, ...] | None = None
    processes: tuple[int, ...] | None = None
    full: bool = False
    named: bool = False
    brief: bool = False
    in_files: bool = False
    on_server: bool = False

    @property
    def idents(self) -> tuple[int, ...]:
        """How many idents to read or change: 1,000 unless asked otherwise.

        In files fewer: each is written twice before anything is timed, and within a short time
        more of them would hardly be come to.
        """
        return self.tokens or (200 if self.in_files else 1_000,)

    def cases(
        self,
        scenario: str,
        *,
        tasks: Sequence[int] = (1,),
        tokens: Sequence[int] = (),
        sizes: Sequence[int] | None = None,
    ) -> list[Case]:
        """Return a case for each combination of what was asked for.

        Args:
            scenario: The scenario's name.
            tasks: What to take if nothing was asked for, as in the next two.
            tokens: Empty for `idents`.
            sizes: Bytes of a serialized state; None if its states have one size.
        """
        of_size = (0,) if sizes is None else self.sizes or sizes
        return [
            Case(scenario, task, token, self.seconds, size)
            for size, token, task in product(
                of_size, self.tokens or tokens or self.idents, self.tasks or tasks
            )
        ]


def no_notes(rows: Sequence[Row]) -> list[str]:
    """Have nothing to add to the table."""
    return []


def everyone(subject: Subject) -> bool:
    """Choose every subject."""
    return True


def without_server(subject: Subject) -> bool:
    """Choose those that need no server, whose measurements take less time."""
    return not subject.on_server


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One kind of work.

    Attributes:
        name: Unique.
        summary: One line for `list`.
        runs_on: Whether a subject offers what the scenario needs.
        cases: The cases for a scale; called in the parent process.
        measure: Measure one case on one subject; called in a fresh process.
        usual_on: Whom of these the usual run measures, which is to take less than a minute.
        optional: Run it only if it is named, or with `--peers` or `--full`.
        slow: It takes so long that a run of everything, with the peers or large numbers, measures
            it in its first round only, and not on optional variants.
        notes: Lines to print below the table, from the scenario's rows.
        module: Where the scenario is defined; filled in by `discovery`.
    """

    name: str
    summary: str
    runs_on: Callable[[Subject], bool]
    cases: Callable[[Scale], Sequence[Case]]
    measure: Callable[[Subject, Case], Sequence[Point]]
    usual_on: Callable[[Subject], bool] = everyone
    optional: bool = False
    slow: bool = False
    notes: Callable[[Sequence[Row]], list[str]] = no_notes
    module: str = ""


def has_store(subject: Subject) -> bool:
    """Tell whether a subject can be opened as a store."""
    return subject.open_store is not None or subject.lasting
