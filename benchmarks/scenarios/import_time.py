"""The time to import what a program needs, in a fresh interpreter, and what came along."""

import subprocess
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

from benchmarks.measure import latency_of
from benchmarks.results import Case, Point, Row
from benchmarks.scenario import Scale, Scenario, has_store, without_server
from benchmarks.subject import Subject

WATCHED = ("redis", "pydantic")
"""Packages that a user who did not ask for them should not pay for."""

MOST = 10
"""The largest number of interpreters for one measurement."""

_PROGRAM = """\
import sys, time
started, cpu_started = time.perf_counter(), time.process_time()
{statement}
print(time.perf_counter() - started, time.process_time() - cpu_started)
print(*(name for name in {watched} if name in sys.modules))
"""


class _Import(NamedTuple):
    seconds: float
    cpu_seconds: float
    loaded: frozenset[str]


def _cases(scale: Scale) -> list[Case]:
    return [Case("import", 1, 0, scale.seconds)]


def _measure(subject: Subject, case: Case) -> list[Point]:
    assert subject.statement is not None
    _import_once(subject.statement)  # compiles to bytecode, fills the file cache
    imports: list[_Import] = []
    deadline = perf_counter() + case.seconds
    while not imports or (perf_counter() < deadline and len(imports) < MOST):
        imports.append(_import_once(subject.statement))
    return [
        Point(
            operations=len(imports),
            seconds=sum(once.seconds for once in imports),
            cpu_seconds=sum(once.cpu_seconds for once in imports),
            latency=latency_of([once.seconds for once in imports]),
            extra={name: name in imports[0].loaded for name in WATCHED},
        )
    ]


def _import_once(statement: str) -> _Import:
    program = _PROGRAM.format(statement=statement, watched=WATCHED)
    done = subprocess.run(  # noqa: S603 (a statement from a subject's file)
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    times, loaded = done.stdout.splitlines()[-2:]
    seconds, cpu_seconds = map(float, times.split())
    return _Import(seconds, cpu_seconds, frozenset(loaded.split()))


def _notes(rows: Sequence[Row]) -> list[str]:
    brought = ", ".join(
        f"{row.subject} {' and '.join(name for name in WATCHED if row.extra[name]) or 'neither'}"
        for row in rows
    )
    return [f"import: of {' and '.join(WATCHED)} came along: {brought}."]


SCENARIO = Scenario(
    name="import",
    summary="the import of what a program needs, in a fresh interpreter",
    runs_on=lambda subject: subject.statement is not None,
    usual_on=lambda subject: has_store(subject) and without_server(subject),
    cases=_cases,
    measure=_measure,
    notes=_notes,
)
