"""By the size of a state: from which size on encoding, copying and writing it take the time.

All states have the same shape, carts with more and more items: a state of 1 MB is some 40,000
objects, which take about 7 MB of memory. So there are few of them.
"""

from benchmarks.measure import CHANGE, READ, measure_parts
from benchmarks.results import Case, Point
from benchmarks.scenario import Scale, Scenario, has_store
from benchmarks.subject import Subject

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
"""Bytes of a serialized state."""

IDENTS = 8
"""As many for small states too, so that the cases differ in nothing but the size."""


def _cases(scale: Scale) -> list[Case]:
    # Each task has an ident of its own: what the sizes cost is asked, and not what a queue does.
    idents = max(IDENTS, *(scale.tasks or (1,)))
    return scale.cases("by-size", tokens=(idents,), sizes=SIZES)


def _measure(subject: Subject, case: Case) -> list[Point]:
    return measure_parts(subject, case, [READ, CHANGE])


SCENARIO = Scenario(
    name="by-size",
    summary="get_state, and then modify_state, of states of 100 B to 1 MB",
    runs_on=has_store,
    optional=True,
    slow=True,
    cases=_cases,
    measure=_measure,
)
