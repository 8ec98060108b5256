"""A directory with few and with many stored tokens: its opening, a change, and the sweep.

One process does all parts, in this order, each with managers that were not there before:

    few-open     open a directory with a few tokens, until the first read has returned
    few-change   change these, over and over
    open         open it with many other tokens beside them
    change       change the same few
    sweep        the others have expired while nobody had the directory open; a manager whose
                 clock is ahead finds and drops them, and a ticker asks for every turn of the loop

What is in the directory has just been written: the kernel has it in its caches.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

from benchmarks.measure import (
    NEVER,
    Timing,
    build_tokens,
    check_changes,
    fill,
    latency_of,
    time_operation,
    turns_until_swept,
)
from benchmarks.results import Case, Point, Row
from benchmarks.scenario import Scale, Scenario
from benchmarks.states import Counter
from benchmarks.subject import Store, Subject

MOST_FEW = 1_000
"""Tokens that are there from the beginning: a fifth of all, but not more than these."""

FEW_OPEN, FEW_CHANGE, OPEN, CHANGE, SWEEP = "few-open", "few-change", "open", "change", "sweep"

LASTING = 10 * NEVER
"""Seconds after which the tokens that are changed expire: these outlast the sweep."""

AHEAD = 2 * NEVER
"""Seconds by which the clock of the manager that sweeps is ahead."""

GIVE_UP = 240.0
"""Seconds after which expired tokens that are still stored are a failure."""

OPENINGS = 20
"""The largest number of openings for one figure."""

SCAN_SHARE = 20
"""The harness counts the files at most for one part in so many of the time."""

Open = Callable[..., AbstractAsyncContextManager[Store]]


class _Opening(NamedTuple):
    seconds: float
    cpu_seconds: float


def _cases(scale: Scale) -> list[Case]:
    # The whole number takes minutes for each subject: too long where everything is measured.
    large = 200_000 if scale.named else 20_000
    counts = scale.tokens or (large if scale.full else 2_000,)
    return [Case("stored", 1, max(2, tokens), scale.seconds) for tokens in counts]


def _few(case: Case) -> int:
    return max(1, min(MOST_FEW, case.tokens // 5))


def _measure(subject: Subject, case: Case) -> list[Point]:
    return asyncio.run(_all_parts(subject, case))


async def _all_parts(subject: Subject, case: Case) -> list[Point]:
    assert subject.open_directory is not None
    directory = Path(tempfile.mkdtemp())
    open_store: Open = partial(subject.open_directory, directory)
    few_count = _few(case)

    few = await _store(open_store, 0, few_count)
    opened_few = await _open_repeatedly(open_store, few, case)
    changed_few = await _change(open_store, few, case)
    files = _count_files(directory)  # a token may have more than one
    await _store(open_store, few_count, case.tokens)
    opened = await _open_repeatedly(open_store, few, case)
    changed = await _change(open_store, few, case)
    points = [
        _opening(FEW_OPEN, opened_few, beside=opened_few),
        _changing(FEW_CHANGE, changed_few, beside=changed_few),
        _opening(OPEN, opened, beside=opened_few),
        _changing(CHANGE, changed, beside=changed_few),
    ]

    changes = 2 * len(few) + changed_few.operations_in_all + changed.operations_in_all
    if subject.expires:
        swept = _sweep(open_store, few, directory, files, case.tokens - few_count)
    else:
        swept = _no_sweep(open_store)
    async with swept as (store, sweeps):
        await check_changes(store, few, changes, start=0)
    return points + sweeps


async def _store(open_store: Open, start: int, stop: int) -> list[Any]:
    """Store some tokens and return them.

    Those that are not kept are gone before anything is timed: the garbage collector would walk
    over them all.
    """
    async with open_store(NEVER) as store:
        tokens = build_tokens(store, stop, Counter)[start:]
        await fill(store, tokens, Counter)
        return tokens


async def _open_repeatedly(open_store: Open, tokens: Sequence[Any], case: Case) -> list[_Opening]:
    openings: list[_Opening] = []
    deadline = perf_counter() + case.seconds
    while not openings or (perf_counter() < deadline and len(openings) < OPENINGS):
        cpu_started, started = process_time(), perf_counter()
        async with open_store(NEVER) as store:
            await store.read(tokens[:1])
            seconds, cpu = perf_counter() - started, process_time() - cpu_started
        openings.append(_Opening(seconds, cpu))
    return openings


async def _change(open_store: Open, tokens: Sequence[Any], case: Case) -> Timing:
    async with open_store(LASTING) as store:
        await store.change(tokens)  # whatever is read at a first change is not timed
        return await time_operation(store.change, tokens, case.tasks, case.seconds)


@asynccontextmanager
async def _sweep(
    open_store: Open, few: Sequence[Any], directory: Path, files: int, expired: int
) -> AsyncIterator[tuple[Store, list[Point]]]:
    """Open a store whose clock is ahead, and time it until no more than `files` are left."""
    cpu_started, started = process_time(), perf_counter()
    ticker = asyncio.create_task(turns_until_swept(_FilesLeft(directory, files), GIVE_UP))
    await asyncio.sleep(0)  # so that the opening is in one of its turns
    async with open_store(LASTING, ahead=AHEAD) as store:
        await store.read(few[:1])  # until it is used a manager does nothing
        gaps = await ticker
        seconds, cpu = perf_counter() - started, process_time() - cpu_started
        yield store, [Point(expired, seconds, cpu, latency_of(gaps), part=SWEEP)]


@asynccontextmanager
async def _no_sweep(open_store: Open) -> AsyncIterator[tuple[Store, list[Point]]]:
    async with open_store(LASTING) as store:
        yield store, []


class _FilesLeft:
    """Tells how many more files than a number of them a directory has, whatever they are.

    Counting takes time: an answer is given again until `SCAN_SHARE` times as long has passed.
    """

    def __init__(self, directory: Path, files: int) -> None:
        self._directory = directory
        self._files = files
        self._left = 0
        self._next = 0.0

    def __call__(self) -> int:
        started = perf_counter()
        if started >= self._next:
            self._left = max(0, _count_files(self._directory) - self._files)
            now = perf_counter()
            self._next = now + (now - started) * SCAN_SHARE
        return self._left


def _count_files(directory: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(directory))


def _opening(part: str, openings: Sequence[_Opening], beside: Sequence[_Opening]) -> Point:
    latency = latency_of([opening.seconds for opening in openings])
    few = latency_of([opening.seconds for opening in beside])
    return Point(
        operations=len(openings),
        seconds=sum(opening.seconds for opening in openings),
        cpu_seconds=sum(opening.cpu_seconds for opening in openings),
        latency=latency,
        part=part,
        extra={"grown": latency.p50 / few.p50},
    )


def _changing(part: str, timing: Timing, beside: Timing) -> Point:
    return timing.point(part=part, extra={"grown": beside.rate / timing.rate})


def _notes(rows: Sequence[Row]) -> list[str]:
    tokens = rows[0].case.tokens
    few = _few(rows[0].case)
    by_part = {(row.subject, row.part): row for row in rows}
    grown = ", ".join(
        f"{subject} x{row.extra['grown']:.2f} and x{by_part[subject, CHANGE].extra['grown']:.2f}"
        for (subject, part), row in by_part.items()
        if part == OPEN
    )
    longest = ", ".join(
        f"{row.subject} {row.latency.max * 1e3:.1f} ms"
        for row in rows
        if row.part == SWEEP and row.latency
    )
    return [
        f"stored: with {tokens:,} tokens in the directory, opening it and a change of the same "
        f"{few:,} take as many times as long as with {few:,}: {grown}.",
        f"stored: {tokens - few:,} tokens have run out when the directory is opened; op/s of the "
        f"sweep is tokens dropped, and p50, p99, max are turns of the loop. Longest stall: "
        f"{longest or 'none was measured'}.",
    ]


SCENARIO = Scenario(
    name="stored",
    summary="the opening, a change and the sweep with 2,000 stored (with --full 200,000 if named)",
    runs_on=lambda subject: subject.in_files,
    cases=_cases,
    measure=_measure,
    optional=True,
    slow=True,
    notes=_notes,
)
