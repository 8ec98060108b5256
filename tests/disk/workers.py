"""Programs that tests start, kill and replace: they use a state directory, and say what they do.

Each is a coroutine function that is given a `Report` and its arguments. It runs in a process of
its own: in one that was started for it (`main`), or in a child of the zygote (`serve`), a process
that has imported all of this, has no thread and no event loop, and forks when it is asked to. A
fork takes some milliseconds and a new interpreter a quarter of a second, so a test can afford
hundreds of kills.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import sys
import traceback
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from statemgr import StateManagerDisk, StateToken
from statemgr.backends.disk import files

# States


@dataclass
class Counter:
    value: int = 0


@dataclass
class Shares:
    """Who has had the lock how often, counted since each had it once."""

    total: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Page:
    """A state that tells by itself whether it is whole: the text follows from the number."""

    number: int = 0
    text: bytes = b""

    def turn(self, size: int) -> None:
        self.number += 1
        self.text = self._text(size)

    def is_whole(self) -> bool:
        return self.text == self._text(len(self.text))

    def _text(self, size: int) -> bytes:
        pattern = blake2b(f"{type(self).__name__} {self.number} {size}".encode()).digest()
        return (pattern * (size // len(pattern) + 1))[:size] if self.number else b""


@dataclass
class Sheet(Page):
    """Another class, to be changed together with a page."""


# Programs


class Report:
    """Tell the test what was done, a line each: what was told is not lost by a kill."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def __call__(self, *words: object) -> None:
        self._channel.sendall((" ".join(map(str, words)) + "\n").encode())

    def wait(self) -> None:
        """Stop this process, its event loop too, until the test says `go`."""
        if not self._channel.recv(1):
            raise SystemExit("the test has ended")


async def increment(
    report: Report, directory: str, idents: list[str], times: int, seed: int = 0, **mode: Any
) -> None:
    """Add one to the counter of a random ident, again and again."""
    drawn = random.Random(seed)  # noqa: S311
    async with StateManagerDisk(directory, **mode) as manager:
        tokens = [StateToken(ident, Counter) for ident in idents]
        report("ready")
        report.wait()
        for _ in range(times):
            number = drawn.randrange(len(tokens))
            report("begin", number)
            async with manager.modify_state(tokens[number]) as counter:
                counter.value += 1
            report("done", number)
    report("end")


async def share(
    report: Report, directory: str, name: str, tasks: int, until: int, hold: float
) -> None:
    """Take one lock with several tasks, until all processes together had it often enough.

    Each holds it for `hold` seconds: then it is nearly never free for who only looks now and then.
    """
    async with StateManagerDisk(directory) as manager:
        token = StateToken("shared", Shares)
        report("ready")
        report.wait()

        async def hammer() -> None:
            enough = False
            while not enough:
                async with manager.modify_state(token) as shares:
                    shares.seen[name] = shares.seen.get(name, 0) + 1
                    if len(shares.seen) == 2:
                        shares.counts[name] = shares.counts.get(name, 0) + 1
                        shares.total += 1
                    enough = shares.total >= until
                    await asyncio.sleep(hold)

        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(hammer())
    report("end")


async def hold(report: Report, directory: str, ident: str) -> None:
    """Add one to a counter, and hold its lock until the test says `go`, or for ever."""
    async with StateManagerDisk(directory) as manager:
        report("begin")
        async with manager.modify_state(StateToken(ident, Counter)) as counter:
            counter.value += 1
            report("holds")
            report.wait()
        report("done")
    report("end")


async def queue(report: Report, directory: str, ident: str) -> None:
    """Ask for a lock, and say so when it was found taken."""
    async with StateManagerDisk(directory) as manager:

        async def change() -> None:
            async with manager.modify_state(StateToken(ident, Counter)) as counter:
                counter.value += 1

        changing = asyncio.ensure_future(change())
        while not manager.statistics().waiters and not changing.done():  # noqa: ASYNC110
            await asyncio.sleep(0)
        report("waits")
        await changing
        report("done")
    report("end")


async def occupy(report: Report, directory: str, **mode: Any) -> None:
    """Use a directory until the test says `go`, or for ever."""
    async with StateManagerDisk(directory, **mode):
        report("open")
        report.wait()
    report("end")


async def turn_pages(
    report: Report, directory: str, idents: list[str], together: bool, seed: int, **mode: Any
) -> None:
    """Write pages of random sizes without end, with one task for each ident."""
    drawn = random.Random(seed)  # noqa: S311

    def size() -> int:
        return int(100 * 40_000 ** drawn.random())  # up to 4 MB; a third fits into one block

    async def turn(manager: StateManagerDisk, ident: str) -> None:
        page, sheet = StateToken(ident, Page), StateToken(ident, Sheet)
        number = idents.index(ident)
        while True:
            report("begin", number)
            if together:
                async with manager.modify_states(page, sheet) as states:
                    for one in states:
                        assert one.is_whole()
                        one.turn(size())
                    assert states[0].number == states[1].number
                    reached = states[0].number
            else:
                async with manager.modify_state(page) as one:
                    assert one.is_whole()
                    one.turn(size())
                    reached = one.number
            report("done", number, reached)
            if mode.get("debounce"):
                await asyncio.sleep(0.001)  # else the thread that writes hardly gets a turn

    async with StateManagerDisk(directory, **mode) as manager, asyncio.TaskGroup() as group:
        for ident in idents:
            group.create_task(turn(manager, ident))


async def die_at(
    report: Report, directory: str, ident: str, sizes: list[int], step: int, **mode: Any
) -> None:
    """Turn a page, or a page and a sheet, and be killed right before a call of the system."""
    async with StateManagerDisk(directory, **mode) as manager:
        tokens = (StateToken(ident, Page), StateToken(ident, Sheet))[: len(sizes)]
        async with manager.modify_states(*tokens) as states:
            for one, size in zip(states, sizes, strict=True):
                one.turn(size)
            files.os = _Deadly(step)  # type: ignore[assignment]
        report("done")
        files.os = os
    report("end")


class _Deadly:
    """The module `os`, whose Nth call of those that change files is not reached.

    A write that is not reached may have begun: it has written one half.
    """

    _CHANGES = frozenset({"open", "write", "utime", "link", "replace", "unlink", "close"})

    def __init__(self, step: int) -> None:
        self._steps = itertools.count(step, -1)

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        if name not in self._CHANGES:
            return call

        def counted(*args: Any, **options: Any) -> Any:
            if next(self._steps) == 0:
                if name == "write":
                    os.write(args[0], bytes(args[1][: len(args[1]) // 2]))
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return counted


# Processes


def main() -> None:
    """Run the program that the command line asks for: its channel, its name, its arguments."""
    descriptor, name, arguments = sys.argv[1:]
    with socket.socket(fileno=int(descriptor)) as channel:
        asyncio.run(globals()[name](Report(channel), **json.loads(arguments)))


def serve() -> None:
    """Fork a child for each program that is asked for, until the test has ended.

    Requests and answers are a line of JSON each. A program comes with its channel. To end one
    is for its parent to do: until it is waited for, its number is nobody else's.
    """
    children: set[int] = set()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        try:
            while True:
                line, descriptors, *_ = socket.recv_fds(control, 65536, 1)
                if not line:
                    return
                request = json.loads(line)
                pid = request.get("end")
                if pid is not None:
                    answer = _end(pid)
                    children.discard(pid)
                else:
                    program, arguments = request["program"], request["arguments"]
                    answer = _fork(control, descriptors[0], program, arguments)
                    children.add(answer)
                    os.close(descriptors[0])
                control.sendall(f"{answer}\n".encode())
        finally:
            for pid in children:
                _end(pid)


def _fork(control: socket.socket, descriptor: int, name: str, arguments: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        control.close()
        with socket.socket(fileno=descriptor) as channel:
            asyncio.run(globals()[name](Report(channel), **arguments))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _end(pid: int) -> int:
    """Kill a child, if it still runs; return what became of it, as `Popen.returncode` does."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
