"""Reads of a state that is there, over many idents."""

from benchmarks.measure import measure_reads
from benchmarks.results import Case
from benchmarks.scenario import Scale, Scenario, has_store


def _cases(scale: Scale) -> list[Case]:
    tokens = scale.tokens or 1_000
    return [Case("read", tasks, tokens, scale.seconds) for tasks in scale.tasks or (1,)]


SCENARIO = Scenario(
    name="read",
    summary="get_state of the reference state, over 1,000 idents",
    runs_on=has_store,
    cases=_cases,
    measure=measure_reads,
)
