"""Opens an event processor, has a scenario time it, and checks that every event was handled."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from benchmarks.measure import LostUpdateError, Timing, in_shares, new_place
from benchmarks.resources import peak_memory
from benchmarks.results import Case, Point
from benchmarks.server import Meter, server_url
from benchmarks.subject import Events, Subject

Work = Callable[[Events, Sequence[str], Meter | None], Awaitable[Timing]]
"""Times something; an operation is an event."""


def has_events(subject: Subject) -> bool:
    """Tell whether a subject can be opened as an event processor."""
    return subject.open_events is not None


def has_events_here(subject: Subject) -> bool:
    """Tell whether it can, and what its handlers change stays in the process."""
    return has_events(subject) and not subject.lasting


def measure_events(subject: Subject, case: Case, work: Work, **fields: Any) -> list[Point]:
    """Time some work of a processor, after one event for each ident.

    Args:
        subject: What to open.
        case: How many idents there are.
        work: What to time.
        fields: More of the `Point`.

    Raises:
        LostUpdateError: An event was not handled, or twice, or what it changed has not arrived.
    """
    return asyncio.run(_measure(subject, case, work, fields))


async def _measure(subject: Subject, case: Case, work: Work, fields: dict[str, Any]) -> list[Point]:
    assert subject.open_events is not None
    place = new_place(subject)
    meter = Meter(server_url()) if subject.on_server else None
    idents = [f"user-{number}" for number in range(case.tokens)]
    before = peak_memory()
    async with subject.open_events(place) as events:
        await in_shares(events.fill, idents)
        await in_shares(events.send, idents)  # what is made at a first event is not timed
        timing = await work(events, idents, meter)
        growth = peak_memory() - before
        if not subject.lasting:
            await _check(events, idents, len(idents) + timing.operations_in_all)
    if subject.lasting:
        async with subject.open_events(place) as events:
            await _check(events, idents, len(idents) + timing.operations_in_all)
    return [timing.point(memory_growth=growth, **fields)]


async def _check(events: Events, idents: Sequence[str], sent: int) -> None:
    handled = await events.handled(idents)
    if handled != sent:
        raise LostUpdateError(f"{sent:,} events were enqueued, {handled:,} were handled")
