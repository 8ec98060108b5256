"""Many tokens expire together: how long the sweep takes, and how long it holds the loop up.

The tokens are filled in and run out while the loop is blocked; then the loop is let go and a
ticker asks for every turn. The gaps between its turns are the latency that other tasks would see.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter, process_time, sleep

from benchmarks.measure import NotSweptError, build_tokens, latency_of, opener, turns_until_swept
from benchmarks.resources import peak_memory
from benchmarks.results import Case, Point, Row
from benchmarks.scenario import Scale, Scenario
from benchmarks.states import Counter
from benchmarks.subject import Subject

EXPIRATION = 0.1
"""Seconds until an untouched token is dropped."""

GIVE_UP = 120.0
"""Seconds after which tokens that are still held are a failure."""


def _cases(scale: Scale) -> list[Case]:
    tokens = 1_000_000 if scale.full else 30_000
    return replace(scale, tasks=None).cases("expiry", tokens=(tokens,))


def _measure(subject: Subject, case: Case) -> list[Point]:
    return asyncio.run(_sweep(subject, case.tokens))


async def _sweep(subject: Subject, count: int) -> list[Point]:
    async with opener(subject)(EXPIRATION) as store:
        tokens = build_tokens(store, count, Counter)
        before = peak_memory()
        await store.fill(tokens, Counter)
        if (held := store.held()) != count:
            raise NotSweptError(f"{held:,} of {count:,} tokens were held after the filling")
        sleep(EXPIRATION)  # noqa: ASYNC251 (no token may be dropped before the last has run out)
        cpu_started, started = process_time(), perf_counter()
        gaps = await turns_until_swept(store.held, GIVE_UP)
        seconds, cpu = perf_counter() - started, process_time() - cpu_started
        growth = peak_memory() - before
        return [Point(count, seconds, cpu, latency_of(gaps), growth)]


def _notes(rows: Sequence[Row]) -> list[str]:
    longest = ", ".join(
        f"{row.subject} {row.latency.max * 1e3:.1f} ms" for row in rows if row.latency
    )
    return [
        f"expiry: {rows[0].case.tokens:,} tokens run out at once; op/s is tokens dropped, and "
        f"p50, p99, max are turns of the loop. Longest stall: {longest}."
    ]


SCENARIO = Scenario(
    name="expiry",
    summary="the sweep of 30,000 expired tokens (1,000,000 with --full), and the loop's stalls",
    runs_on=lambda subject: subject.open_store is not None and subject.expires,
    slow=True,
    cases=_cases,
    measure=_measure,
    notes=_notes,
)
