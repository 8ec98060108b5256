"""By how many tasks: what one process gets done the more of its tasks are at work side by side.

Whoever waits for a file or a server has its other tasks ask meanwhile; whoever does not wait gains
nothing from them, and pays for the turns. Each task has idents of its own: none waits for a lock.
"""

from benchmarks.measure import measure_changes
from benchmarks.results import Case, Point
from benchmarks.scenario import Scale, Scenario, has_store
from benchmarks.subject import Subject

TASKS = (1, 8, 64, 256)

IDENTS = 1_000


def _cases(scale: Scale) -> list[Case]:
    return scale.cases("by-tasks", tasks=TASKS, tokens=(IDENTS,), sizes=(0,))


def _measure(subject: Subject, case: Case) -> list[Point]:
    return measure_changes(subject, case, lambda store: store.change)


SCENARIO = Scenario(
    name="by-tasks",
    summary="modify_state over 1,000 idents by 1, 8, 64 and 256 tasks",
    runs_on=has_store,
    optional=True,
    slow=True,
    cases=_cases,
    measure=_measure,
)
