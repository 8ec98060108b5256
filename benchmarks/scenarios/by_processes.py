"""By how many processes: what a second worker brings, and an eighth, on states that they share.

There are enough idents for every task to have one, so two seldom ask for the same lock: that is
`hot`. More processes than processors, those of the server counted, can bring little more.
"""

from collections.abc import Sequence

from benchmarks.clients import LEAST, measure_together
from benchmarks.results import Case, Row
from benchmarks.scenario import Scale, Scenario

PROCESSES = (1, 2, 4, 8)

TASKS = 8
"""Tasks of each process."""

IDENTS = 1_000


def _cases(scale: Scale) -> list[Case]:
    seconds = max(LEAST, scale.seconds)
    return [
        Case("by-processes", tasks, tokens, seconds, size, processes)
        for size in scale.sizes or (0,)
        for tokens in scale.tokens or (IDENTS,)
        for processes in scale.processes or PROCESSES
        for tasks in _tasks(scale, processes)
    ]


def _tasks(scale: Scale, processes: int) -> Sequence[int]:
    """Return the tasks of all processes together, as many in each: what is asked for is, too."""
    if scale.tasks is None:
        return (TASKS * processes,)
    return list(dict.fromkeys(max(1, tasks // processes) * processes for tasks in scale.tasks))


def _notes(rows: Sequence[Row]) -> list[str]:
    return ["by-processes: the tasks are those of all processes together, as is CPU/op."]


SCENARIO = Scenario(
    name="by-processes",
    summary="modify_state over 1,000 idents by 1, 2, 4 and 8 processes with 8 tasks each",
    runs_on=lambda subject: subject.shared,
    optional=True,
    slow=True,
    cases=_cases,
    measure=measure_together,
    notes=_notes,
)
