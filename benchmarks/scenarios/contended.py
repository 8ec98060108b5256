"""Many tasks on one ident: what it costs to pass the lock on.

A body that never waits is over before another task runs, so in memory nobody would ever queue.
Here each body gives the loop one turn, and all other tasks wait for the lock.
"""

from benchmarks.measure import measure_changes
from benchmarks.results import Case, Point
from benchmarks.scenario import Scale, Scenario, has_store, without_server
from benchmarks.subject import Subject


def _cases(scale: Scale) -> list[Case]:
    tasks = max(2, *(scale.tasks or (64,)))
    return [Case("contended", tasks, 1, scale.seconds, size) for size in scale.sizes or (0,)]


def _measure(subject: Subject, case: Case) -> list[Point]:
    return measure_changes(subject, case, lambda store: store.change_slowly)


SCENARIO = Scenario(
    name="contended",
    summary="modify_state of one ident by 64 tasks, each body one turn of the loop long",
    runs_on=has_store,
    usual_on=without_server,  # for the others there is `hot`
    cases=_cases,
    measure=_measure,
)
