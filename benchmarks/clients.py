"""Several processes that change the same states at once, and what they found together.

The measured process starts them, waits until each is ready, and gives all the same window of the
monotonic clock, which the processes of a machine share. They work from before the window until
after its end, so that within it all of them are at work. An operation counts if it ended in it.
Its time is kept too if it only began there: else those that wait longest would not show.

A client is told what to do in an argument, and the window on standard input; it answers on
standard output, "ready" and at the end its result, a line of JSON each.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice, repeat
from time import monotonic, process_time
from typing import Any, NamedTuple

from benchmarks.discovery import load_subject
from benchmarks.measure import (
    NEVER,
    WARM_UP,
    build_tokens,
    check_changes,
    fill,
    in_shares,
    latency_of,
    new_place,
    opener,
)
from benchmarks.results import Case, Point
from benchmarks.server import Meter
from benchmarks.states import Cart, cart
from benchmarks.subject import Store, Subject

LEAST = 0.1
"""Seconds that the window is long at least: in less perhaps no operation would end."""

LEAST_WARM_UP = 0.1
"""Seconds that all clients work at least before the window."""


class ClientError(Exception):
    """A client ended without a result; the text is the last line it wrote about it."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one client does: `tasks` that go round and round through the same tokens.

    The tasks of all clients are numbered, from `first` on, and each begins `stride` tokens after
    the one before it: where there are enough tokens, each goes from one to the next alone.
    """

    module: str
    subject: str
    place: str
    tokens: int
    tasks: int
    first: int = 0
    stride: int = 1

    def starts(self) -> list[int]:
        """Return the number of the token that each task begins with."""
        numbers = range(self.first, self.first + self.tasks)
        return [number * self.stride % self.tokens for number in numbers]


@dataclass(frozen=True, slots=True)
class Result:
    """What one client found, or all of them.

    Attributes:
        changes: All that were made, before and after the window too.
        operations: Those of them that ended in the window.
        cpu_seconds: Processor time in the window.
        samples: The seconds that each took that went on in the window.
    """

    changes: int
    operations: int
    cpu_seconds: float
    samples: list[float]


class Crowd(NamedTuple):
    """What all clients found, and what the server did in the window, if there is one."""

    result: Result
    load: dict[str, float]


def measure_together(subject: Subject, case: Case) -> list[Point]:
    """Time changes of carts by several processes, and check that every change arrived.

    Args:
        subject: What all of them open, in the same place.
        case: How many processes, and how many tasks they have together.

    Raises:
        ClientError: A process failed.
        LostUpdateError: A change is missing, or was made twice.
    """
    return [asyncio.run(_measure(subject, case))]


async def _measure(subject: Subject, case: Case) -> Point:
    place = new_place(subject)
    open_store = opener(subject, place)
    async with open_store(NEVER) as store:
        tokens = build_tokens(store, case.tokens, Cart)
        await fill(store, tokens, partial(cart, case.size))
        await in_shares(store.change, tokens)  # what a first change makes is not timed
    tasks = case.tasks // case.processes
    stride = max(1, case.tokens // case.tasks)
    job = Job(subject.module, subject.name, place, case.tokens, tasks, stride=stride)
    meter = Meter(place) if subject.on_server else None
    crowd = await work_together(job, case.processes, case.seconds, meter)
    async with open_store(NEVER) as store:
        changes = len(tokens) + crowd.result.changes
        await check_changes(store, tokens, changes, start=cart().version)
    return Point(
        operations=crowd.result.operations,
        seconds=case.seconds,
        cpu_seconds=crowd.result.cpu_seconds,
        latency=latency_of(crowd.result.samples),
        extra=crowd.load,
    )


async def work_together(job: Job, processes: int, seconds: float, meter: Meter | None) -> Crowd:
    """Have several processes do the same job at once.

    Args:
        job: For the first of them; the others' tasks are numbered on.
        processes: How many.
        seconds: How long the window is.
        meter: That of the server at work, None if there is none.

    Raises:
        ClientError: One of them failed.
    """
    async with _started(job, processes) as clients:
        await asyncio.gather(*map(_ready, clients))
        begin = monotonic() + max(LEAST_WARM_UP, seconds * WARM_UP)
        end = begin + seconds
        working = asyncio.gather(*(_result(client, begin, end) for client in clients))
        loads = [await _at(time, meter) for time in (begin, end)] if meter else []
        results = await working
    result = Result(
        changes=sum(one.changes for one in results),
        operations=sum(one.operations for one in results),
        cpu_seconds=sum(one.cpu_seconds for one in results),
        samples=[sample for one in results for sample in one.samples],
    )
    if not result.operations:
        raise ClientError(f"no operation ended within {seconds:g} s: give it more --seconds")
    load = loads[1].per_operation(loads[0], result.operations) if loads else {}
    return Crowd(result, load)


@asynccontextmanager
async def _started(job: Job, processes: int) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    clients = []
    try:
        for number in range(processes):
            own = asdict(replace(job, first=job.first + number * job.tasks))
            clients.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "benchmarks.clients", json.dumps(own)),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                )
            )
        yield clients
    finally:
        for client in clients:
            if client.returncode is None:
                client.kill()
            await client.wait()


async def _ready(client: asyncio.subprocess.Process) -> None:
    assert client.stdout is not None
    if not await client.stdout.readline():
        _, errors = await client.communicate()
        raise ClientError(_last_line(errors))


async def _result(client: asyncio.subprocess.Process, begin: float, end: float) -> Result:
    output, errors = await client.communicate(json.dumps([begin, end]).encode() + b"\n")
    if client.returncode != 0:
        raise ClientError(_last_line(errors))
    return Result(**json.loads(output.splitlines()[-1]))


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "a client ended without a word"


async def _at(time: float, ask: Callable[[], Any]) -> Any:
    await asyncio.sleep(time - monotonic())
    return ask()


async def _work(job: Job) -> Result:
    """Do the job in this process, as a client."""
    subject = load_subject(job.module, job.subject)
    async with opener(subject, job.place)(NEVER) as store:
        tokens = build_tokens(store, job.tokens, Cart)
        await store.read(tokens[:1])  # which connects
        print("ready", flush=True)
        begin, end = json.loads(await asyncio.to_thread(sys.stdin.readline))
        started = asyncio.create_task(_at(begin, process_time))
        ended = asyncio.create_task(_at(end, process_time))
        rounds = [_Round(store, begin, end) for _ in range(job.tasks)]
        await asyncio.gather(*map(_Round.go, rounds, repeat(tokens), job.starts()))
        cpu_seconds = await ended - await started
    return Result(
        changes=sum(one.changes for one in rounds),
        operations=sum(one.operations for one in rounds),
        cpu_seconds=cpu_seconds,
        samples=[sample for one in rounds for sample in one.samples],
    )


class _Round:
    """One task, and what it has counted."""

    def __init__(self, store: Store, begin: float, end: float) -> None:
        self._store = store
        self._begin = begin
        self._end = end
        self.changes = 0
        self.operations = 0
        self.samples: list[float] = []

    async def go(self, tokens: Sequence[Any], first: int) -> None:
        """Change one token after the other, over and over, until the window has ended."""
        for token in islice(cycle(tokens), first, None):
            started = monotonic()
            await self._store.change((token,))
            now = monotonic()
            self.changes += 1
            if now >= self._begin:
                self.samples.append(now - started)
            if now > self._end:
                return
            self.operations += now >= self._begin
            await asyncio.sleep(0)  # one that never waits would keep all others from their turn


def main() -> None:
    """Be a client: do the job given as the only argument, in JSON."""
    job = Job(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(asyncio.run(_work(job)))))


if __name__ == "__main__":
    main()
