"""Some idents that everybody wants: what it costs to wait for them, and what the others suffer.

The idents are drawn by Zipf's law: the second one is asked for half as often as the first, the
third a third as often. The exponent is 0.99, the one of YCSB, by which other stores are measured
too (Cooper et al., Benchmarking Cloud Serving Systems with YCSB, 2010): of 1,000 idents the first
gets 13% of all changes, the first ten 38%. Each body gives the loop one turn, as in `contended`,
for nobody would ever wait otherwise.
"""

import random
from collections.abc import Sequence
from itertools import accumulate

from benchmarks.measure import measure_changes
from benchmarks.results import Case, Point, Row
from benchmarks.scenario import Scale, Scenario, has_store
from benchmarks.subject import Subject

TASKS = 64

IDENTS = 1_000

EXPONENT = 0.99

DRAWS = 65_536
"""Idents that are drawn, before anything is timed. Who has changed them all begins again."""


def _cases(scale: Scale) -> list[Case]:
    return scale.cases("zipf", tasks=(TASKS,), tokens=(IDENTS,), sizes=(0,))


def _weights(count: int) -> list[float]:
    return [rank**-EXPONENT for rank in range(1, count + 1)]


def drawn(count: int) -> Sequence[int]:
    """Draw `DRAWS` numbers below a count, the smallest most often; the same ones every time."""
    weights = list(accumulate(_weights(count)))
    return random.Random(count).choices(range(count), cum_weights=weights, k=DRAWS)  # noqa: S311 (no secret)


def _measure(subject: Subject, case: Case) -> list[Point]:
    return measure_changes(subject, case, lambda store: store.change_slowly, order=drawn)


def _notes(rows: Sequence[Row]) -> list[str]:
    weights = _weights(rows[0].case.tokens)
    first, ten = weights[0] / sum(weights), sum(weights[:10]) / sum(weights)
    return [
        f"zipf: of {len(weights):,} idents the most wanted one gets {first:.0%} of the changes, "
        f"and the first ten get {ten:.0%}."
    ]


SCENARIO = Scenario(
    name="zipf",
    summary="modify_state by 64 tasks of 1,000 idents, some of them hot (Zipf, exponent 0.99)",
    runs_on=lambda subject: has_store(subject) and subject.exclusive,
    optional=True,
    slow=True,
    cases=_cases,
    measure=_measure,
    notes=_notes,
)
