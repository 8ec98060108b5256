"""One field changed per modification, over many idents."""

from benchmarks.measure import measure_changes
from benchmarks.results import Case, Point
from benchmarks.scenario import Scale, Scenario, has_store
from benchmarks.subject import Subject


def _cases(scale: Scale) -> list[Case]:
    many = (256,) if scale.on_server and not scale.brief else ()
    return scale.cases("change", tasks=(1, 64, *many), sizes=(0,))


def _measure(subject: Subject, case: Case) -> list[Point]:
    return measure_changes(subject, case, lambda store: store.change)


SCENARIO = Scenario(
    name="change",
    summary="modify_state of one field of the reference state, over many idents",
    runs_on=has_store,
    cases=_cases,
    measure=_measure,
)
