"""What a token is kept in: bytes in memory, in files and on a server, for the reference state.

Each token is stored and then changed once, as any in use has been, and the growth is divided by the
number of tokens:

- memory: the resident memory of the process, as it is and not its peak, after a full collection;
- files: their lengths, once they are closed; what the file system has allocated for them is
  another figure, as is their number;
- server: its `used_memory`, after the last connection.

What the process itself keeps of states in files or on a server, an index or a cache, is a figure
too; under an oplock it is what is held at that moment. Some other tokens come first: they fill the
gaps that importing has left in the heap, and bring along what is there once, such as a script or a
journal. Each state has an owner of its own; what is the same word in all of them is one string, as
it would be in a program.
"""

import asyncio
import gc
import itertools
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from benchmarks.figures import count
from benchmarks.measure import NEVER, check_changes, fill, in_shares, new_place, opener
from benchmarks.resources import collector_time, peak_memory
from benchmarks.results import Case, Point, Row
from benchmarks.scenario import Scale, Scenario, has_store
from benchmarks.states import Cart, cart
from benchmarks.subject import Role, Store, Subject

FIRST, COUNTED = "first", "user"
"""What the idents of tokens begin with: of those that come first, and of those that are counted."""

MOST_FIRST = 500
"""How many come first: half as many as are counted, but not more than these."""

SHARE = 1_000
"""Tokens that exist at a time: the caller's own are garbage as soon as their states are kept."""

CHECKED = 1_000
"""About how many tokens are read back at the end."""


def _cases(scale: Scale) -> list[Case]:
    counts = [1_000, 10_000, 100_000] if scale.full else [1_000, 10_000]
    if (scale.in_files or scale.on_server) and not scale.named:
        counts = counts[:1]  # ten times as many take ten times as long, and as much room each
    return replace(scale, tasks=None).cases("footprint", tokens=counts, sizes=(0,))


def _measure(subject: Subject, case: Case) -> list[Point]:
    return [
        asyncio.run(_outliving(subject, case) if subject.lasting else _in_memory(subject, case))
    ]


async def _in_memory(subject: Subject, case: Case) -> Point:
    async with opener(subject)(NEVER) as store:
        point, resident = await _fill_all(store, case)
        await _change(store, COUNTED, case.tokens)
        point.extra["bytes_per_token"] = (_resident_memory() - resident) / case.tokens
        await _check(store, case.tokens)
    return point


async def _outliving(subject: Subject, case: Case) -> Point:
    place = new_place(subject)
    open_store = opener(subject, place)
    # One store fills and another one changes, or who writes late would write only once.
    async with open_store(NEVER) as store:
        await _fill(store, FIRST, _first(case), _maker(case.size))
    async with open_store(NEVER) as store:
        await _change(store, FIRST, _first(case))
    before = _stored(subject, place)
    async with open_store(NEVER) as store:
        point, resident = await _fill_all(store, case)
    async with open_store(NEVER) as store:
        await _change(store, FIRST, _first(case))
        await _change(store, COUNTED, case.tokens)
        grown = (_resident_memory() - resident) / case.tokens
    for name, value in _stored(subject, place).items():
        point.extra[name] = (value - before[name]) / case.tokens
    point.extra["process_bytes_per_token"] = grown
    async with open_store(NEVER) as store:
        await _check(store, case.tokens)
    return point


async def _fill_all(store: Store, case: Case) -> tuple[Point, int]:
    """Store all tokens; tell how long it took, and what memory was resident before."""
    new_state = _maker(case.size)
    await _fill(store, FIRST, _first(case), new_state)
    await _change(store, FIRST, _first(case))
    resident = _resident_memory()
    return await _fill(store, COUNTED, case.tokens, new_state), resident


def _first(case: Case) -> int:
    return min(MOST_FIRST, case.tokens // 2)


def _same_as_another(subject: Subject) -> bool:
    """Tell whether it is the variant of a floor, which stores what the floor does."""
    return subject.role is Role.FLOOR and subject.name != subject.backend


def _maker(size: int) -> Callable[[], Cart]:
    numbers = itertools.count()
    return lambda: replace(cart(size), owner=f"user-{next(numbers)}")


async def _fill(store: Store, prefix: str, tokens: int, new_state: Callable[[], Cart]) -> Point:
    """Store some tokens, and tell how long it took."""
    seconds = cpu_seconds = collector_seconds = 0.0
    for share in _shares(store, prefix, tokens):
        with collector_time() as collected:
            cpu_started, started = process_time(), perf_counter()
            await fill(store, share, new_state)
            seconds += perf_counter() - started
            cpu_seconds += process_time() - cpu_started
        collector_seconds += collected()
    return Point(tokens, seconds, cpu_seconds, collector_seconds=collector_seconds)


async def _change(store: Store, prefix: str, tokens: int) -> None:
    for share in _shares(store, prefix, tokens):
        await in_shares(store.change, share)


def _shares(store: Store, prefix: str, tokens: int) -> Iterator[list[Any]]:
    for first in range(0, tokens, SHARE):
        yield _tokens(store, prefix, range(first, min(tokens, first + SHARE)))


def _tokens(store: Store, prefix: str, numbers: Sequence[int]) -> list[Any]:
    return [store.token(f"{prefix}-{number}", Cart) for number in numbers]


async def _check(store: Store, tokens: int) -> None:
    some = _tokens(store, COUNTED, range(0, tokens, -(-tokens // CHECKED)))
    await check_changes(store, some, len(some), start=cart().version)


def _resident_memory() -> int:
    """Return the memory that is resident now, in bytes; where nobody tells, the most that was."""
    gc.collect()
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return peak_memory()
    return int(pages) * resource.getpagesize()


def _stored(subject: Subject, place: str) -> Mapping[str, int]:
    """Return what is in files or on the server."""
    if subject.in_files:
        found = os.walk(place)
        facts = [Path(directory, name).lstat() for directory, _, names in found for name in names]
        return {
            "bytes_per_token": sum(fact.st_size for fact in facts),
            "allocated_per_token": sum(fact.st_blocks * 512 for fact in facts),
            "files_per_token": len(facts),
        }
    if subject.on_server:
        from redis import Redis  # weighs something, and those in memory have no use for it

        with Redis.from_url(place) as client:
            return {"bytes_per_token": client.info("memory")["used_memory"]}
    return {}


def _notes(rows: Sequence[Row]) -> list[str]:
    most = max(row.case.tokens for row in rows)
    kept = ", ".join(
        f"{row.subject} {count(row.extra['bytes_per_token'])}"
        for row in rows
        if row.case.tokens == most
    )
    return [
        "footprint: op/s is tokens stored.",
        f"footprint: bytes for each of {most:,} tokens, in the process, in files or in the server, "
        f"wherever a subject keeps them: {kept}.",
    ]


SCENARIO = Scenario(
    name="footprint",
    summary="bytes that each of 1,000 and 10,000 tokens is kept in (100,000 with --full)",
    runs_on=lambda subject: has_store(subject) and not _same_as_another(subject),
    optional=True,
    slow=True,
    cases=_cases,
    measure=_measure,
    notes=_notes,
)
