"""The table of a run, and the notes below it."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.figures import MEASURES, cells, digits, duration, times
from benchmarks.results import AXES, Case, Failure, Ratio, Row
from benchmarks.scenario import Scenario
from benchmarks.subject import Role, Subject
from benchmarks.summary import failure_lines

WIDTH = 110

_TEXT = ("scenario", "tasks", "subject")
_BESIDE = ("ratio", "min..max", "beside")
_LOAD = ("commands/op", "reads/op", "server CPU/op")


class Line(NamedTuple):
    """A line of a table: what it is about, and its cells from the subject on."""

    case: Case
    part: str
    cells: list[str]


def _load_cells(row: Row) -> list[str]:
    load = row.extra
    return [
        row.subject,
        digits(load["commands"]),
        digits(load["reads"]),
        duration(load["server_cpu"]),
    ]


def _ratio_cells(ratio: Ratio) -> list[str]:
    return [times(ratio), f"{digits(ratio.low)}..{digits(ratio.high)}", ratio.against]


def print_tables(
    rows: Sequence[Row], scenarios: Mapping[str, Scenario], subjects: Mapping[str, Subject]
) -> None:
    """Print the rows, what a server did for them, and below it what there is to add."""
    print_table(MEASURES, [Line(row.case, row.part, list(cells(row, times))) for row in rows])
    served = [row for row in rows if "commands" in row.extra]
    if served:
        print()
        print_table(_LOAD, [Line(row.case, row.part, _load_cells(row)) for row in served])
    several = [row for row in rows if row.role == Role.OURS and len(row.versus_peers) > 1]
    if several:
        print()
        lines = [
            Line(row.case, row.part, [row.subject, *_ratio_cells(ratio)])
            for row in several
            for ratio in row.versus_peers
        ]
        print_table(_BESIDE, lines)
    for scenario, group in groupby(rows, key=lambda row: row.case.scenario):
        for note in scenarios[scenario].notes(list(group)):
            print_wrapped(note)
    if any(
        ratio and not ratio.told for row in rows for ratio in (row.versus_peer, row.versus_floor)
    ):
        print_wrapped(
            "~: the rounds do not agree on which of the two is faster, or there was only one; more "
            "--seconds or more --repeats may tell."
        )
    for name in dict.fromkeys(row.subject for row in rows):
        if lacks := subjects[name].lacks:
            print_wrapped(f"{name} lacks what ours promise: {'; '.join(lacks)}.")


def labels(lines: Iterable[Line]) -> dict[Case, str]:
    """Name each case by its scenario, and by what else tells it from the other ones of it.

    The number of tasks is left out: it has a column of its own.
    """
    cases = dict.fromkeys(line.case for line in lines)
    named = {}
    for case in cases:
        beside = [other for other in cases if other.scenario == case.scenario]
        axes = [axis for axis in AXES[1:] if len({getattr(other, axis) for other in beside}) > 1]
        named[case] = ", ".join((case.scenario, *case.setting(*axes)))
    return named


def print_table(figures: Sequence[str], lines: Sequence[Line]) -> None:
    """Print lines, a section for each case.

    Args:
        figures: The headings, those of the scenario, the tasks and the subject left out.
        lines: With a cell for the subject and one for each heading.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for heading in _TEXT:
        table.add_column(heading, no_wrap=True)
    for heading in figures:
        table.add_column(heading, no_wrap=True, justify="right")
    names = labels(lines)
    for (case, part), group in groupby(lines, key=lambda line: (line.case, line.part)):
        first = (f"{names[case]}/{part}" if part else names[case], str(case.tasks))
        for line in group:
            table.add_row(*first, *line.cells)
            first = ("", "")
        table.add_section()
    # Wide enough for any name: rich would cut figures short to fit a terminal.
    console = Console(width=2 * WIDTH, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(table)
    print(*map(str.rstrip, captured.get().splitlines()), sep="\n")


def print_wrapped(text: str) -> None:
    """Print a paragraph no wider than the table."""
    print(textwrap.fill(text, WIDTH, subsequent_indent="  "))


def print_failures(failures: Sequence[Failure]) -> None:
    """Print what failed and why."""
    for line in failure_lines(failures):
        print_wrapped(f"failed {line}")
