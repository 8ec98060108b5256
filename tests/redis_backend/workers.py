"""Programs that tests start, stop, kill and replace: they use a Redis server, and say what they do.

Each is a coroutine function that is given a `Report` and its arguments, and runs in a child of a
zygote, as those of tests/disk/workers.py do. What a test needs to start them is here too.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from disk import workers
from disk.programs import PATIENCE, Program, Programs, Zygote
from disk.workers import Report

from statemgr import StateManagerRedis, StateToken
from statemgr.backends.redis.channel import Inbox
from statemgr.backends.redis.grants import Grants
from statemgr.backends.redis.link import Link
from statemgr.backends.redis.wire import Wire
from statemgr.errors import LockExpiredError

_TESTS = Path(__file__).parents[1]

# States


@dataclass
class Counter:
    value: int = 0


@dataclass
class Tally:
    """How often each has changed it."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1


@dataclass
class Turns:
    """Who has had the lock, one after the other."""

    names: list[str] = field(default_factory=list)


def show(figures: str) -> None:
    """Show what was counted; pytest does with -s, and when the test fails."""
    print(figures)  # noqa: T201


# Programs


async def told(report: Report) -> None:
    """Wait until the test says `go`; the event loop, and what it renews, goes on meanwhile."""
    loop = asyncio.get_running_loop()
    said = loop.create_future()
    loop.add_reader(report._channel, said.set_result, None)
    try:
        await said
    finally:
        loop.remove_reader(report._channel)
    report.wait()


async def increment(
    report: Report,
    idents: list[str],
    times: int | None,
    seed: int = 0,
    **options: Any,
) -> None:
    """Add one to the counter of a random ident, so often, or until the test says `go` once more."""
    drawn = random.Random(seed)  # noqa: S311
    async with StateManagerRedis(**options) as manager:
        tokens = [StateToken(ident, Counter) for ident in idents]
        report("pid", os.getpid())
        report("ready")
        await told(report)
        for _ in itertools.count() if times is None else range(times):
            if times is None and select.select([report._channel], [], [], 0)[0]:
                break
            number = drawn.randrange(len(tokens))
            report("begin", number)
            try:
                async with manager.modify_state(tokens[number]) as counter:
                    counter.value += 1
            except LockExpiredError:
                report("expired", number)
            else:
                report("done", number)
    report("end")


async def share(
    report: Report, name: str, tasks: int, until: int, hold: float, **options: Any
) -> None:
    """Take one lock with several tasks, until all processes together had it often enough.

    Tell the waits, in microseconds.
    """
    waits: list[float] = []
    async with StateManagerRedis(**options) as manager:
        token = StateToken("shared", Turns)
        await manager.get_state(token)  # connected
        report("ready")
        await told(report)

        async def hammer() -> None:
            enough = False
            while not enough:
                asked_at = time.monotonic()
                async with manager.modify_state(token) as turns:
                    waits.append(time.monotonic() - asked_at)
                    turns.names.append(name)
                    enough = len(turns.names) >= until
                    await asyncio.sleep(hold)

        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(hammer())
    report("waits", *(round(wait * 1e6) for wait in waits))
    report("end")


async def hold(report: Report, ident: str, **options: Any) -> None:
    """Change a tally, and hold its lock until the test says `go`, or for ever."""
    async with StateManagerRedis(**options) as manager:
        report("pid", os.getpid())
        try:
            async with manager.modify_state(StateToken(ident, Tally)) as tally:
                tally.add("child")
                report("holds")
                await told(report)
        except LockExpiredError:
            report("expired")
        else:
            report("done", time.monotonic())
    report("end")


async def queue(report: Report, ident: str, name: str, deaf: bool = False, **options: Any) -> None:
    """Ask for a lock, and say so when it was found taken.

    With `deaf`, what is said to this process's inbox is lost, and it says so when it looks as
    seldom as it ever does.
    """
    looks = 0
    if deaf:
        Inbox._received = lambda self, reply: None  # type: ignore[method-assign]
        ask = Grants._ask

        def count(*args: Any, **options: Any) -> Any:
            nonlocal looks
            looks += 1
            return ask(*args, **options)

        Grants._ask = count  # type: ignore[method-assign]
    async with StateManagerRedis(**options) as manager:

        async def change() -> None:
            async with manager.modify_state(StateToken(ident, Tally)) as tally:
                report("got", time.monotonic())
                tally.add(name)

        changing = asyncio.ensure_future(change())
        while looks < 6 if deaf else not manager.statistics().waiters:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        report("waits")
        await changing
        report("done")
    report("end")


async def stop_at(
    report: Report, ident: str, point: str, step: int, times: int, **options: Any
) -> None:
    """Change a tally several times, and be stopped at the Nth step of all that takes.

    It says how each change has ended, how closing has, and how many errors were logged.
    """
    logged: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = logged.append  # type: ignore[method-assign]
    logging.getLogger("statemgr").addHandler(handler)
    report("pid", os.getpid())
    _stop_at(report, point, step)
    manager = StateManagerRedis(**options)
    for _ in range(times):
        try:
            async with manager.modify_state(StateToken(ident, Tally)) as tally:
                await asyncio.sleep(0)
                tally.add("child")
        except LockExpiredError:
            report("expired")
        else:
            report("done")
    try:
        await manager.close()
    except LockExpiredError:
        report("lost")
    report("logged", len(logged))
    report("end")


POINTS = {
    f"{when} {name}": (cls, name, when == "after")
    for cls, name in (
        (Link, "submit"),
        (Link, "_flush"),
        (Wire, "data_received"),
        (StateManagerRedis, "_load_from"),
        (StateManagerRedis, "_commit_nowait"),
        (StateManagerRedis, "_encode_states"),
        (StateManagerRedis, "_end"),
    )
    for when in ("before", "after")
}


def _stop_at(report: Report, point: str, step: int) -> None:
    cls, name, after = POINTS[point]
    original: Any = getattr(cls, name)
    left = itertools.count(step - 1, -1)

    def stopping(self: Any, *args: Any) -> Any:
        strikes = next(left) == 0
        if strikes and not after:
            _stop(report)
        result = original(self, *args)
        if strikes and after:
            _stop(report)
        return result

    setattr(cls, name, stopping)


def _stop(report: Report) -> None:
    report("stops")
    os.kill(os.getpid(), signal.SIGSTOP)
    report("goes")


# Processes


class RedisZygote(Zygote):
    """Forks the programs of this module."""

    def __init__(self) -> None:
        Programs.__init__(self)
        self._control, its = socket.socketpair()
        code = "from redis_backend import workers; workers.serve()"
        command = [sys.executable, "-W", "error", "-c", code, str(its.fileno())]
        with its:
            self._process = subprocess.Popen(command, cwd=_TESTS, pass_fds=[its.fileno()])


def serve() -> None:
    """Be the zygote."""
    programs = (increment, share, hold, queue, stop_at)
    vars(workers).update({program.__name__: program for program in programs})
    workers.serve()


def pid_of(program: Program) -> int:
    """Return the process id that a program has said. It is its own until the program is ended."""
    program.hear_until("pid")
    return int(next(line[1] for line in program.heard if line[0] == "pid"))


def stop(program: Program) -> None:
    """Stop a program where it is."""
    os.kill(pid_of(program), signal.SIGSTOP)


async def resume(program: Program) -> None:
    """Let a program go on that stops itself: it may be about to, so it is told until it does."""
    async with asyncio.timeout(PATIENCE):
        while ["goes"] not in program.heard:
            os.kill(pid_of(program), signal.SIGCONT)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await hear(program)


async def hear(program: Program) -> bool:
    """Wait for more lines, as `Program.hear` does; the event loop goes on meanwhile."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(program, ready.set)
    try:
        async with asyncio.timeout(PATIENCE):
            await ready.wait()
    finally:
        loop.remove_reader(program)
    return program.hear()


async def hear_word(program: Program, word: str) -> None:
    """Wait until a line begins with a word."""
    while not any(line[0] == word for line in program.heard):
        assert await hear(program), f"a program has ended without {word!r}: {program.heard[-3:]}"


async def hear_all(program: Program) -> None:
    """Wait until a program says nothing any more."""
    while await hear(program):
        pass


async def finish(*programs: Program) -> None:
    """Wait until programs have ended, as they should.

    All are heard at once: one that nobody listens to would stop, and with it its event loop.
    """
    await asyncio.gather(*map(hear_all, programs))
    for program in programs:
        program.finish()


def said(program: Program, word: str) -> list[list[str]]:
    """Return the lines that began with a word, without it."""
    return [line[1:] for line in program.heard if line[0] == word]
