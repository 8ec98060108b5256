"""One field changed per modification, over many idents."""

from benchmarks.measure import measure_changes
from benchmarks.results import Case, Point
from benchmarks.scenario import Scale, Scenario, has_store
from benchmarks.subject import Subject


def _cases(scale: Scale) -> list[Case]:
    tokens = scale.tokens or 1_000
    return [Case("change", tasks, tokens, scale.seconds) for tasks in scale.tasks or (1, 64)]


def _measure(subject: Subject, case: Case) -> list[Point]:
    return measure_changes(subject, case, lambda store: store.change)


SCENARIO = Scenario(
    name="change",
    summary="modify_state of one field of the reference state, over 1,000 idents",
    runs_on=has_store,
    cases=_cases,
    measure=_measure,
)
