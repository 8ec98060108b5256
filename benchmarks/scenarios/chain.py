"""Chains of events: a handler chains the next, 100 deep, and one task waits for the whole chain.

Events per second count each event; the latency is that of whole chains. Ours returns the next event
from its handler, Reflex enqueues it there.
"""

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.measure import Timing, time_operation
from benchmarks.measure_events import has_events_here, measure_events
from benchmarks.results import Case, Point, Row
from benchmarks.scenario import Scale, Scenario
from benchmarks.server import Meter
from benchmarks.subject import Events, Subject

LENGTH = 100
"""Events of a chain."""


def _cases(scale: Scale) -> list[Case]:
    return scale.cases("chain")


def _measure(subject: Subject, case: Case) -> list[Point]:
    async def work(events: Events, idents: Sequence[str], meter: Meter | None) -> Timing:
        async def operation(idents: Sequence[str]) -> None:
            await events.chain(idents, LENGTH)

        chains = await time_operation(operation, idents, case.tasks, case.seconds)
        return replace(
            chains,
            operations=chains.operations * LENGTH,
            operations_in_all=chains.operations_in_all * LENGTH,
        )

    return measure_events(subject, case, work)


def _notes(rows: Sequence[Row]) -> list[str]:
    return [f"chain: op/s and CPU/op count events; p50, p99, max are of chains of {LENGTH}."]


SCENARIO = Scenario(
    name="chain",
    summary=f"chains of {LENGTH} events, each chained by the handler of the one before",
    runs_on=has_events_here,  # what a backend adds to an event, `events` shows
    optional=True,
    slow=True,
    cases=_cases,
    measure=_measure,
    notes=_notes,
)
