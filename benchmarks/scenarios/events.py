"""Events over many idents, sent by many: each waits for its event before it sends the next.

So as many events are on their way as there are tasks, whoever is measured, and what counts is the
whole way: an event is made, enqueued, and awaited. The latency is that from before `enqueue` until
the task that waits for the future goes on. Ours checks the payload by the handler's annotations
and takes any state that there is; with a state, the event loads it, changes it, saves it and emits
a delta, which a coroutine takes that does nothing.
"""

from collections.abc import Sequence

from benchmarks.measure import Timing, time_operation
from benchmarks.measure_events import has_events, measure_events
from benchmarks.results import Case, Point
from benchmarks.scenario import Scale, Scenario
from benchmarks.server import Meter
from benchmarks.subject import Events, Subject

TASKS = 64


def _cases(scale: Scale) -> list[Case]:
    tasks = (TASKS,) if scale.brief else (1, TASKS)
    # As many in files as elsewhere: it is one case, in which all stand beside each other.
    return scale.cases("events", tasks=tasks, tokens=(1_000,))


def _measure(subject: Subject, case: Case) -> list[Point]:
    async def work(events: Events, idents: Sequence[str], meter: Meter | None) -> Timing:
        return await time_operation(events.send, idents, case.tasks, case.seconds, meter)

    return measure_events(subject, case, work)


SCENARIO = Scenario(
    name="events",
    summary="an event enqueued and awaited by each of 64 tasks, over many idents",
    runs_on=has_events,
    usual_on=lambda subject: subject.name in ("stateless", "memory"),
    cases=_cases,
    measure=_measure,
)
