"""The table and the JSON file."""

import json
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.results import Failure, Ratio, Row
from benchmarks.runner import Outcome
from benchmarks.scenario import Scenario

WIDTH = 110

FORMAT = 1
"""The version of the JSON file's shape."""

_TEXT = ("scenario", "tasks", "subject")
_FIGURES = ("op/s", "min..max", "p50", "p99", "max", "CPU/op", "memory", "/peer", "/floor")
_LOAD = ("commands/op", "reads/op", "server CPU/op")


def _digits(value: float) -> str:
    """Write a number below 1000 in three digits."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def _scaled(value: float) -> tuple[float, str]:
    for unit in ("", "k", "M"):
        if value < 999.5:
            return value, unit
        value /= 1000
    return value, "G"


def _count(value: float) -> str:
    """Write a number as `1.95k` or `210k`."""
    value, unit = _scaled(value)
    return _digits(value) + unit


def _range(low: float, high: float) -> str:
    """Write two numbers with one unit, as `98.2..104k`."""
    scaled, unit = _scaled(high)
    return f"{_digits(low * scaled / high)}..{_digits(scaled)}{unit}"


def _duration(seconds: float) -> str:
    """Write a time as `1.95us` or `210ms`."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return _digits(seconds / size) + unit
    return _digits(seconds) + "s"


def _ratio(ratio: Ratio | None) -> str:
    return f"{_digits(ratio.value)}x" if ratio else "-"


def _cells(row: Row) -> list[str]:
    times = (row.latency.p50, row.latency.p99, row.latency.max) if row.latency else ()
    growth = row.memory_growth
    return [
        row.subject,
        _count(row.rate),
        _range(row.rate_min, row.rate_max),
        *([_duration(time) for time in times] or ["-"] * 3),
        _duration(row.cpu_per_operation),
        "-" if growth is None else f"{_digits(growth / 2**20)}M",
        _ratio(row.versus_peer),
        _ratio(row.versus_floor),
    ]


def _load_cells(row: Row) -> list[str]:
    load = row.extra
    return [
        row.subject,
        _digits(load["commands"]),
        _digits(load["reads"]),
        _duration(load["server_cpu"]),
    ]


def print_tables(rows: Sequence[Row], scenarios: Mapping[str, Scenario]) -> None:
    """Print the rows, what a server did for them, and below it what the scenarios have to add."""
    _print_table(rows, _FIGURES, _cells)
    if served := [row for row in rows if "commands" in row.extra]:
        print()
        _print_table(served, _LOAD, _load_cells)
    for scenario, group in groupby(rows, key=lambda row: row.case.scenario):
        for note in scenarios[scenario].notes(list(group)):
            print_wrapped(note)


def _print_table(
    rows: Sequence[Row], figures: Sequence[str], cells: Callable[[Row], list[str]]
) -> None:
    """Print the rows, a section for each case."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for heading in _TEXT:
        table.add_column(heading, no_wrap=True)
    for heading in figures:
        table.add_column(heading, no_wrap=True, justify="right")
    for (case, part), group in groupby(rows, key=lambda row: (row.case, row.part)):
        name = f"{case.scenario}/{part}" if part else case.scenario
        first = (name, str(case.tasks))
        for row in group:
            table.add_row(*first, *cells(row))
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
    """Print each reason once for each case and subject."""
    times = Counter((failure.case, failure.subject, failure.reason) for failure in failures)
    for (case, subject, reason), count in times.items():
        print_wrapped(f"failed {count}x: {case}, {subject}: {reason}")


def write_json(
    path: Path,
    outcome: Outcome,
    rows: Sequence[Row],
    environment: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Write everything: the environment, every raw measurement, and the rows of the table."""
    report = {
        "format": FORMAT,
        "environment": environment,
        "options": options,
        "complete": not outcome.interrupted,
        "measurements": [asdict(measured) for measured in outcome.measurements],
        "failures": [asdict(failure) for failure in outcome.failures],
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
