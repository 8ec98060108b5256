"""The loops that time a store: a throughput pass and a latency pass.

One read of the clock costs as much as a fast operation does, so the two are apart: throughput is
the time of whole batches, each handed to the subject's own loop in one call; latency comes from
shorter runs with the clock read around every operation, and includes about 0.2 us for that.
"""

import asyncio
import gc
import itertools
import tempfile
from array import array
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

from benchmarks.resources import collector_time, peak_memory
from benchmarks.results import Case, Latency, Point
from benchmarks.server import Meter, server_url
from benchmarks.states import cart
from benchmarks.subject import Store, Subject

NEVER = 3600.0
"""An expiration, in seconds, that no measurement reaches."""

WARM_UP, THROUGHPUT, LATENCY = 0.2, 0.55, 0.25
"""How the time of a measurement is shared out."""

BATCH = 0.05
"""The shortest batch, as a share of the time: long enough to hide the start of its tasks."""

MAX_SAMPLES = 16_384

FILLERS = 64
"""Tasks that prepare states before anything is timed: on disk that is done sooner side by side."""

Operation = Callable[[Sequence[Any]], Coroutine[Any, Any, None]]
Batch = list[Sequence[Any]]  # the tokens of each task


class LostUpdateError(Exception):
    """Changes that were made did not arrive: a time for them would mean nothing."""


class NotSweptError(Exception):
    """Expired tokens were dropped too early or not at all."""


class _Work:
    """Deals tokens out to tasks.

    A task has tokens of its own as long as there are enough, and goes through them in order.
    """

    def __init__(self, tokens: Sequence[Any], tasks: int) -> None:
        self._tokens = len(tokens)
        self.tasks = tasks
        self._each = [
            itertools.cycle(tokens[i % len(tokens) :: max(tasks, 1)]) for i in range(tasks)
        ]

    def batch(self, per_task: int) -> Batch:
        """Deal the next `per_task` tokens to every task."""
        return [list(itertools.islice(tokens, per_task)) for tokens in self._each]

    def batches(self, per_task: int) -> list[Batch]:
        """Deal as many batches as it takes to come to every token."""
        return [self.batch(per_task) for _ in range(-(-self._tokens // (per_task * self.tasks)))]


async def _run(operation: Operation, batch: Batch) -> None:
    if len(batch) == 1:
        await operation(batch[0])
    else:
        await asyncio.gather(*map(operation, batch))


@dataclass(frozen=True, slots=True)
class Timing:
    """What the two passes found, and how many operations were done in all.

    `load` is what a server did for one operation of the throughput pass, if there is one.
    """

    operations: int
    seconds: float
    cpu_seconds: float
    latency: Latency
    operations_in_all: int
    collector_seconds: float
    load: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds

    def point(self, **fields: Any) -> Point:
        """Make a `Point` of the figures and the given other fields."""
        fields["extra"] = {**self.load, **fields.get("extra", {})}
        return Point(
            self.operations,
            self.seconds,
            self.cpu_seconds,
            self.latency,
            collector_seconds=self.collector_seconds,
            **fields,
        )


async def time_operation(
    operation: Operation,
    tokens: Sequence[Any],
    tasks: int,
    seconds: float,
    meter: Meter | None = None,
) -> Timing:
    """Time an operation over tokens, dealt out to tasks.

    Args:
        operation: Does one operation for each token it is given.
        tokens: What to go through, over and over.
        tasks: How many tasks share the tokens.
        seconds: About how long to take.
        meter: That of the server at work, None if there is none.
    """
    work = _Work(tokens, tasks)
    per_task, warmed = await _warm_up(operation, work, seconds)

    batches = itertools.cycle(work.batches(per_task))
    done = 0
    limit = seconds * THROUGHPUT
    load_before = meter() if meter else None
    with collector_time() as collected:
        cpu_started, started = process_time(), perf_counter()
        while (elapsed := perf_counter() - started) < limit:
            await _run(operation, next(batches))
            await asyncio.sleep(0)  # what the subject does in the background counts too
            done += 1
        cpu = process_time() - cpu_started
    operations = done * per_task * tasks
    load = meter().per_operation(load_before, operations) if meter and load_before else {}

    samples = await _sample(operation, work, seconds * LATENCY)
    in_all = warmed + operations + len(samples)
    return Timing(operations, elapsed, cpu, latency_of(samples), in_all, collected(), load)


async def _warm_up(operation: Operation, work: _Work, seconds: float) -> tuple[int, int]:
    """Run growing batches; return a good size per task, and how many operations were done."""
    per_task, done = 1, 0
    warm_up_started = perf_counter()
    while True:
        batch = work.batch(per_task)
        started = perf_counter()
        await _run(operation, batch)
        now = perf_counter()
        await asyncio.sleep(0)  # here an interrupt can end it
        done += per_task * work.tasks
        if now - started < seconds * BATCH:
            per_task *= 2
        elif now - warm_up_started > seconds * WARM_UP:
            return per_task, done


async def _sample(operation: Operation, work: _Work, seconds: float) -> list[float]:
    samples: list[float] = []
    deadline = perf_counter() + seconds

    async def one_by_one(tokens: Sequence[Any]) -> None:
        for token in tokens:
            started = perf_counter()
            await operation((token,))
            now = perf_counter()
            samples.append(now - started)
            if now > deadline:
                return

    await _run(one_by_one, work.batch(max(1, MAX_SAMPLES // work.tasks)))
    return samples


def latency_of(samples: Sequence[float]) -> Latency:
    """Sum up samples, at least one."""
    ranked = sorted(samples)
    last = len(ranked) - 1
    return Latency(
        p50=ranked[round(last * 0.50)],
        p99=ranked[round(last * 0.99)],
        max=ranked[last],
        samples=len(ranked),
    )


def new_place(subject: Subject) -> str:
    """Return where a subject's states can go, and nobody else's.

    For those that keep them in a directory it is a new one, which the parent process removes;
    for those that keep them on a server its URL; for others nothing.
    """
    if subject.in_files:
        return tempfile.mkdtemp()
    return server_url() if subject.on_server else ""


def opener(
    subject: Subject, place: str | None = None
) -> Callable[..., AbstractAsyncContextManager[Store]]:
    """Return what opens a subject's store; the scenario has made sure that it has one.

    Args:
        subject: What to open.
        place: Where its states are, for all stores opened by what is returned; None for a new one.
    """
    if place is None:
        place = new_place(subject)
    if subject.open_directory is not None:
        return partial(subject.open_directory, Path(place))
    if subject.open_server is not None:
        return partial(subject.open_server, place)
    assert subject.open_store is not None
    return subject.open_store


async def fill(store: Store, tokens: Sequence[Any], factory: Callable[[], Any]) -> None:
    """Store a state made by `factory` for each token. Never timed."""
    await in_shares(lambda share: store.fill(share, factory), tokens)


async def in_shares(operation: Operation, tokens: Sequence[Any]) -> None:
    """Do an operation once for each token, shared out to `FILLERS` tasks. Never timed."""
    each = max(1, -(-len(tokens) // FILLERS))
    shares = [tokens[start : start + each] for start in range(0, len(tokens), each)]
    await asyncio.gather(*map(operation, shares))


def build_tokens(store: Store, count: int, cls: type) -> list[Any]:
    """Build tokens for `count` idents."""
    return [store.token(f"user-{number}", cls) for number in range(count)]


class Part(NamedTuple):
    """One of the things that a process times, one after the other, on the same states.

    Attributes:
        name: Of the `Point`; empty if there is one part only.
        pick: What to time, of an opened store.
        changes: Whether each operation is a change, which has to arrive.
    """

    name: str
    pick: Callable[[Store], Operation]
    changes: bool


READ = Part("read", lambda store: store.read, changes=False)
CHANGE = Part("change", lambda store: store.change, changes=True)


def measure_reads(subject: Subject, case: Case) -> list[Point]:
    """Time reads of the reference state."""
    return measure_parts(subject, case, [READ._replace(name="")])


def measure_changes(
    subject: Subject,
    case: Case,
    pick: Callable[[Store], Operation],
    *,
    factory: Callable[[], Any] | None = None,
    order: Callable[[int], Sequence[int]] = range,
) -> list[Point]:
    """Time one kind of change, and check that every change arrived.

    Args:
        subject: What to open.
        case: How many tokens there are, and who changes them.
        pick: What to time, of an opened store.
        factory: Makes a state; None for a cart of the case's size.
        order: Given how many tokens there are, the numbers of those to change, one after the
            other and over and over; a number may be there twice, or not at all.

    Raises:
        LostUpdateError: A change is missing, or was made twice.
    """
    parts = [Part("", pick, changes=True)]
    return asyncio.run(_measure(subject, case, parts, factory or partial(cart, case.size), order))


def measure_parts(subject: Subject, case: Case, parts: Sequence[Part]) -> list[Point]:
    """Time some things one after the other, on carts of the case's size.

    Raises:
        LostUpdateError: A change is missing, or was made twice.
    """
    return asyncio.run(_measure(subject, case, parts, partial(cart, case.size), range))


async def _measure(
    subject: Subject,
    case: Case,
    parts: Sequence[Part],
    factory: Callable[[], Any],
    order: Callable[[int], Sequence[int]],
) -> list[Point]:
    open_store = opener(subject)
    meter = Meter(server_url()) if subject.on_server else None
    state = factory()
    points = []
    async with open_store(NEVER) as store:
        tokens = build_tokens(store, case.tokens, type(state))
        numbers = order(case.tokens)
        in_order = [tokens[number] for number in numbers]
        visited = [tokens[number] for number in sorted(set(numbers))]
        before = peak_memory()
        await fill(store, tokens, factory)
        expected = 0
        if subject.lasting and any(part.changes for part in parts):
            await in_shares(store.change, visited)  # what a first change makes is not timed
            expected += len(visited)
        gc.collect()  # with many tokens that takes long, and is the filling's affair
        for part in parts:
            operation = part.pick(store)
            timing = await time_operation(operation, in_order, case.tasks, case.seconds, meter)
            points.append(timing.point(part=part.name, memory_growth=peak_memory() - before))
            expected += timing.operations_in_all if part.changes else 0
        if not subject.lasting:
            await check_changes(store, visited, expected, start=state.version)
    if subject.lasting:
        async with open_store(NEVER) as store:  # what counts is what lies where they are kept
            await check_changes(store, visited, expected, start=state.version)
    return points


async def check_changes(store: Store, tokens: Sequence[Any], changes: int, start: int) -> None:
    """Check that the states show as many changes as were made.

    Args:
        store: The store that was changed.
        tokens: All tokens that were changed.
        changes: The number of changes made.
        start: The version that each state began with.

    Raises:
        LostUpdateError: They do not.
    """
    found = -start * len(tokens)

    async def add(share: Sequence[Any]) -> None:
        nonlocal found
        for token in share:
            version = await store.version(token)
            found += version  # not in one statement: another task adds meanwhile

    await in_shares(add, tokens)
    if found != changes:
        raise LostUpdateError(f"{changes:,} changes were made, {found:,} are in the states")


async def turns_until_swept(left: Callable[[], int], give_up: float) -> Sequence[float]:
    """Ask for turn after turn of the loop until nothing that has expired is left.

    Args:
        left: How much is left; asked between two turns.
        give_up: Seconds after which it is a failure that they are not.

    Returns:
        How long each turn was in coming: the latency that other tasks would see.

    Raises:
        NotSweptError: They are not.
    """
    gaps = array("d")
    deadline = perf_counter() + give_up
    while still := left():
        asked = perf_counter()
        await asyncio.sleep(0)
        now = perf_counter()
        gaps.append(now - asked)
        if now > deadline:
            raise NotSweptError(f"{still:,} expired tokens were still held after {give_up:g} s")
    return gaps
