"""Two processes on the same few idents: what it costs to pass the lock from one to the other.

The processes are children of the measured one, which only waits. CPU/op is theirs.
"""

import asyncio
from collections.abc import Sequence

from benchmarks.clients import Job, work_together
from benchmarks.measure import (
    NEVER,
    build_tokens,
    check_changes,
    fill,
    latency_of,
    new_place,
    opener,
)
from benchmarks.results import Case, Point, Row
from benchmarks.scenario import Scale, Scenario
from benchmarks.server import Meter
from benchmarks.states import Cart, reference_cart
from benchmarks.subject import Subject

PROCESSES = 2

TASKS = 32
"""Tasks of all processes together."""

LONGER = 3
"""How many times as long it is measured as others are: an operation waits for many others."""

LEAST = 0.1
"""Seconds that it is measured at least: in less perhaps no operation would end."""


def _cases(scale: Scale) -> list[Case]:
    each = max(1, max(scale.tasks or (TASKS,)) // PROCESSES)
    counts = (scale.tokens,) if scale.tokens else (1,) if scale.brief else (1, 8)
    seconds = max(LEAST, scale.seconds * LONGER)
    return [Case("hot", each * PROCESSES, tokens, seconds) for tokens in counts]


def _measure(subject: Subject, case: Case) -> list[Point]:
    return asyncio.run(_change(subject, case))


async def _change(subject: Subject, case: Case) -> list[Point]:
    place = new_place(subject)
    open_store = opener(subject, place)
    async with open_store(NEVER) as store:
        await fill(store, build_tokens(store, case.tokens, Cart), reference_cart)
    job = Job(subject.module, subject.name, place, case.tokens, case.tasks // PROCESSES)
    meter = Meter(place) if subject.on_server else None
    crowd = await work_together(subject, job, PROCESSES, case.seconds, meter)
    async with open_store(NEVER) as store:
        tokens = build_tokens(store, case.tokens, Cart)
        await check_changes(store, tokens, crowd.result.changes, start=reference_cart().version)
    return [
        Point(
            operations=crowd.result.operations,
            seconds=case.seconds,
            cpu_seconds=crowd.result.cpu_seconds,
            latency=latency_of(crowd.result.samples),
            part="1 token" if case.tokens == 1 else f"{case.tokens} tokens",
            extra=crowd.load,
        )
    ]


def _notes(rows: Sequence[Row]) -> list[str]:
    each = rows[0].case.tasks // PROCESSES
    return [f"hot: {PROCESSES} processes with {each} tasks each; CPU/op is that of both together."]


SCENARIO = Scenario(
    name="hot",
    summary="modify_state of one ident and of 8 by 2 processes with 16 tasks each",
    runs_on=lambda subject: subject.shared,
    usual_on=lambda subject: subject.on_server,
    cases=_cases,
    measure=_measure,
    notes=_notes,
)
