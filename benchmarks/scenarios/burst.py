"""A burst of events: all are enqueued, and then all awaited.

Enqueueing waits for nobody, so that whoever is measured has the whole burst on its way before the
first handler runs. It is the same number of events for 1,000 idents, 10 of each that run one after
the other, and for 10,000, where all could run at once. The latency is that of one event, from
before its `enqueue` until its future calls back: most of it is the wait for those before it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from time import perf_counter, process_time
from typing import Any

from benchmarks.measure import THROUGHPUT, Timing, latency_of
from benchmarks.measure_events import has_events_here, measure_events
from benchmarks.resources import collector_time
from benchmarks.results import Case, Point
from benchmarks.scenario import Scale, Scenario
from benchmarks.server import Meter
from benchmarks.subject import Events, Subject

EVENTS = 10_000
"""Events of a burst."""


def _cases(scale: Scale) -> list[Case]:
    return replace(scale, tasks=None).cases("burst", tokens=(1_000, EVENTS))


def _measure(subject: Subject, case: Case) -> list[Point]:
    async def work(events: Events, idents: Sequence[str], meter: Meter | None) -> Timing:
        burst = list(islice(cycle(idents), EVENTS))
        await _send(events, burst)
        done = 0
        with collector_time() as collected:
            cpu_started, started = process_time(), perf_counter()
            while (elapsed := perf_counter() - started) < case.seconds * THROUGHPUT:
                await _send(events, burst)
                done += 1
            cpu = process_time() - cpu_started
        samples = await _sample(events, burst)
        return Timing(
            operations=done * EVENTS,
            seconds=elapsed,
            cpu_seconds=cpu,
            latency=latency_of(samples),
            operations_in_all=(done + 2) * EVENTS,
            collector_seconds=collected(),
        )

    return measure_events(subject, case, work)


async def _send(events: Events, idents: Sequence[str]) -> None:
    for future in await events.enqueue(idents):
        await future


async def _sample(events: Events, idents: Sequence[str]) -> list[float]:
    samples: list[float] = []

    def settled(started: float, future: Any) -> None:
        samples.append(perf_counter() - started)

    futures: list[Any] = []
    for ident in idents:
        started = perf_counter()
        futures += await events.enqueue((ident,))
        futures[-1].add_done_callback(partial(settled, started))
    for future in futures:
        await future
    await asyncio.sleep(0)  # in which the last ones call back
    return samples


SCENARIO = Scenario(
    name="burst",
    summary="10,000 events enqueued and then awaited, for 1,000 and for 10,000 idents",
    runs_on=has_events_here,  # what a backend adds to an event, `events` shows
    optional=True,
    slow=True,
    cases=_cases,
    measure=_measure,
)
