"""By the number of tokens: whether a change costs more the more of them are held or stored.

The states are the smallest there are. The tokens that are changed lie scattered among all, in an
order that is drawn: neither the processor's caches nor the kernel's can be ahead of it.
"""

import random
from collections.abc import Sequence
from functools import partial

from benchmarks.measure import measure_changes
from benchmarks.results import Case, Point
from benchmarks.scenario import Scale, Scenario, has_store
from benchmarks.states import Counter
from benchmarks.subject import Role, Subject

TASKS = 64

SPREAD, SPREAD_OUTLIVING = 100_000, 10_000
"""The most tokens that are changed, in memory and elsewhere: as many as the time is enough for."""


def _cases(scale: Scale) -> list[Case]:
    if scale.in_files or scale.on_server:  # filling these with 100,000 takes up to two minutes each
        most = 100_000 if scale.full and scale.named else 10_000
    else:
        most = 1_000_000 if scale.full else 100_000
    counts = [10**power for power in range(3, 7) if 10**power <= most]
    return scale.cases("by-tokens", tasks=(TASKS,), tokens=counts)


def scattered(count: int, most: int) -> Sequence[int]:
    """Draw numbers below a count, each once; no more than `most`, and the same ones every time."""
    return random.Random(count).sample(range(count), min(count, most))  # noqa: S311 (no secret)


def _measure(subject: Subject, case: Case) -> list[Point]:
    return measure_changes(
        subject,
        case,
        lambda store: store.change,
        factory=Counter,
        order=partial(scattered, most=SPREAD_OUTLIVING if subject.lasting else SPREAD),
    )


SCENARIO = Scenario(
    name="by-tokens",
    summary="modify_state by 64 tasks with 1,000 to 100,000 tokens (1,000,000 with --full)",
    # What grows is asked of ours: some peers take minutes to store what ours do in seconds.
    runs_on=lambda subject: (
        has_store(subject) and (subject.role is Role.OURS or not subject.lasting)
    ),
    optional=True,
    slow=True,
    cases=_cases,
    measure=_measure,
)
