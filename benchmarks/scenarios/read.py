"""Reads of a state that is there, over many idents."""

from benchmarks.measure import measure_reads
from benchmarks.results import Case
from benchmarks.scenario import Scale, Scenario, has_store, without_server


def _cases(scale: Scale) -> list[Case]:
    return scale.cases("read", sizes=(0,))


SCENARIO = Scenario(
    name="read",
    summary="get_state of the reference state, over many idents",
    runs_on=has_store,
    usual_on=without_server,
    cases=_cases,
    measure=measure_reads,
)
