"""The table, on a terminal and in Markdown, and the JSON file."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from chaos.analysis import Figures
from chaos.harness import Setting
from chaos.plan import FaultKind
from chaos.workload import TASKS

FORMAT = 1
"""The version of the JSON file's shape."""

WIDTH = 100
_ERRORS = 6  # that are named

NOTES = (
    "Acknowledged are changes that have returned. A counter has as many values as it has "
    "acknowledged changes; what is lost has left none, what is doubled is a value that nobody can "
    "have made, by the uncertain ones either. Registers are checked for one order that explains "
    "all that was seen; what has none is a violation, and so is everything else that must not be. "
    "So a lost change of a counter is counted as lost, and one of a register, which are the other "
    "acknowledged changes, as a violation once a read shows it. N in the bound is both together.",
    "The server appends each write to its file before it answers (appendfsync always), so nothing "
    "may be lost when it is killed. Odd-numbered processes reach it through a proxy.",
    "Of what is not acknowledged, TimeoutError stands for calls that were cancelled on purpose, a "
    "few milliseconds after they began, and Killed for those under way at a kill: both are "
    "uncertain. All other errors of ours but CommitUncertainError say that nothing was written, "
    "and are taken at their word; a peer's only if it says that a lock was lost.",
    "On disk a lock has no expiration: it is the kernel's, and stays with a process that is "
    "stopped. There the expiration says only for how long it is stopped.",
)


def rows_of(figures: Sequence[Figures]) -> list[tuple[str, list[str]]]:
    """Return the rows of the table: a heading, and a cell for each subject."""
    rows = [
        ("operations", [_count(one.operations) for one in figures]),
        ("acknowledged changes", [_count(one.acknowledged) for one in figures]),
        ("answered reads", [_count(one.reads) for one in figures]),
        ("failed", [_count(one.failed) for one in figures]),
        ("uncertain", [_count(one.uncertain) for one in figures]),
        ("stops", [_count(one.stops) for one in figures]),
        ("  beyond the expiration", [_count(one.beyond) for one in figures]),
        ("  of these, holding a lock", [_count(one.holding) for one in figures]),
    ]
    for kind in FaultKind:
        if kind is not FaultKind.STOP and any(kind in one.faults for one in figures):
            heading = {FaultKind.KILL: "kills"}.get(kind, str(kind))
            rows.append((heading, [_count(one.faults.get(kind)) for one in figures]))
    rows += [
        ("lost", [_count(one.lost) for one in figures]),
        ("  of changes of counters", [_count(one.counted) for one in figures]),
        ("doubled", [_count(one.doubled) for one in figures]),
        ("violations", [_count(one.violated) for one in figures]),
        ("histories checked", [_count(one.checked) for one in figures]),
        ("undecided", [_count(one.undecided) for one in figures]),
        ("lost at most (3/N, 95%)", [_bound(one) for one in figures]),
        ("locks held at the end", [_count(one.held) for one in figures]),
        ("all go on after", [f"{one.recovery:.2f} s" for one in figures]),
        ("lock expiration", [f"{one.expiration:g} s" for one in figures]),
        ("operations a second", [f"{one.rate:.0f}" for one in figures]),
        ("time of one, median", [_duration(one.median) for one in figures]),
        ("time of one, p99", [_duration(one.p99) for one in figures]),
        ("rounds", [_count(one.rounds) for one in figures]),
        ("seconds", [f"{one.seconds:.0f}" for one in figures]),
        ("seed", [str(one.seed) for one in figures]),
        ("verdict", [verdict(one) for one in figures]),
    ]
    return rows


def verdict(one: Figures) -> str:
    """Say in a word or two what was found."""
    if one.is_wrong:
        return "broken"
    if one.undecided:
        return "undecided"
    if one.window and one.lost:
        return "as promised" if one.is_ours else "loses"
    return "nothing found"


def remarks(figures: Sequence[Figures]) -> list[str]:
    """Return what is to be said beside the table."""
    said = []
    for one in figures:
        if one.window and one.lost:
            said.append(
                f"{one.subject}: may lose what was acknowledged in the last {one.window:g} s "
                "before a process is killed or loses its lock; "
                f"{one.lost} of {one.counted} were lost."
            )
        if one.errors:
            named = ", ".join(f"{name} {n}" for name, n in one.errors.most_common(_ERRORS))
            said.append(f"{one.subject}: not acknowledged: {named}.")
        if one.closings:
            named = ", ".join(f"{name} {n}" for name, n in one.closings.most_common(_ERRORS))
            said.append(f"{one.subject}: managers closed with: {named}.")
        said += [f"{one.subject}: {text}" for text in one.violations]
    return said


def describe(setting: Setting, environment: Mapping[str, Any]) -> str:
    """Say how and where it was run."""
    versions = ", ".join(f"{name} {text}" for name, text in environment["versions"].items())
    return (
        f"Up to {setting.processes} processes with {TASKS} tasks each, {setting.tokens} tokens, "
        f"seed {setting.seed}; {environment['implementation']} {environment['python']}, "
        f"{environment['processors']} x {environment['processor']}, {environment['system']}; "
        f"{versions}."
    )


def print_report(
    figures: Sequence[Figures], setting: Setting, environment: Mapping[str, Any]
) -> None:
    """Print the table and what belongs to it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    for one in figures:
        table.add_column(one.subject, no_wrap=True, justify="right")
    for heading, cells in rows_of(figures):
        table.add_row(heading, *cells)
    console = Console(width=2 * WIDTH, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(table)
    print(*map(str.rstrip, captured.get().splitlines()), sep="\n")
    print()
    for text in (*remarks(figures), describe(setting, environment)):
        print(textwrap.fill(text, WIDTH, subsequent_indent="  "))


def write_json(
    path: Path, figures: Sequence[Figures], setting: Setting, environment: Mapping[str, Any]
) -> None:
    """Write everything."""
    report = {
        "format": FORMAT,
        "environment": environment,
        "setting": {name: value for name, value in asdict(setting).items() if name != "directory"},
        "subjects": [
            _plain(one) | {"rate": one.rate, "bound": one.bound, "verdict": verdict(one)}
            for one in figures
        ],
    }
    path.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")


def _plain(one: Figures) -> dict[str, Any]:
    """Return all fields. `asdict` cannot copy a Counter."""
    plain = vars(one) | {name: dict(vars(one)[name]) for name in ("faults", "errors", "closings")}
    return plain | {name: [asdict(item) for item in plain[name]] for name in ("bins", "marks")}


def write_markdown(
    path: Path, figures: Sequence[Figures], setting: Setting, environment: Mapping[str, Any]
) -> None:
    """Write the report as Markdown."""
    names = " | ".join(one.subject for one in figures)
    lines = [
        "# A run of the chaos harness",
        "",
        _wrap(
            "Processes read and change counters and registers, while they are stopped, killed and "
            "cut off, and each writes down what it did. `make chaos MINUTES=10` does it here; "
            "`python -m chaos run --help` has more. This file is what such a run has written."
        ),
        "",
        f"| | {names} |",
        f"| --- | {' | '.join('---:' for _ in figures)} |",
    ]
    for heading, cells in rows_of(figures):
        indent = "&nbsp;&nbsp;" if heading.startswith(" ") else ""
        lines.append(f"| {indent}{heading.strip()} | {' | '.join(cells)} |")
    for text in (*NOTES, describe(setting, environment)):
        lines += ["", _wrap(text)]
    lines.append("")
    lines += [_wrap(f"- {text}", "  ") for text in remarks(figures)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent)


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _bound(one: Figures) -> str:
    return "-" if one.bound is None or one.lost else f"{one.bound:.1e}"


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
