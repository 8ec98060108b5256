"""Processes on the same few idents: what it costs to pass the lock from one to the other.

The processes are children of the measured one, which only waits. CPU/op is theirs.
"""

from collections.abc import Sequence

from benchmarks.clients import LEAST, measure_together
from benchmarks.results import Case, Row
from benchmarks.scenario import Scale, Scenario

PROCESSES = 2

TASKS = 32
"""Tasks of all processes together."""

LONGER = 3
"""How many times as long it is measured as others are: an operation waits for many others."""


def _cases(scale: Scale) -> list[Case]:
    tasks = max(scale.tasks or (TASKS,))
    seconds = max(LEAST, scale.seconds * LONGER)
    return [
        Case("hot", max(1, tasks // processes) * processes, tokens, seconds, size, processes)
        for size in scale.sizes or (0,)
        for tokens in scale.tokens or ((1,) if scale.brief else (1, 8))
        for processes in scale.processes or (PROCESSES,)
    ]


def _notes(rows: Sequence[Row]) -> list[str]:
    return ["hot: the tasks are those of all processes together, as is CPU/op."]


SCENARIO = Scenario(
    name="hot",
    summary="modify_state of one ident and of 8 by 2 processes with 16 tasks each",
    runs_on=lambda subject: subject.shared,
    usual_on=lambda subject: subject.on_server,
    cases=_cases,
    measure=measure_together,
    notes=_notes,
)
