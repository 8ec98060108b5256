"""What each process does: it reads and changes counters and registers, and writes that down."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from chaos.history import Kind, Outcome, Recorder
from chaos.subjects import Opened

TASKS = 8  # of each process
THINK = 0.02  # seconds from one operation to the next, on average
_CANCELLED = 0.02  # of the operations: after a few milliseconds, wherever they are
_IMPATIENT = 0.03  # of the changes: they wait for the lock for some milliseconds only
_SHARE = 10_000_000  # values of each process, so that no two write the same one


@dataclass
class Counter:
    """A state that is added to."""

    value: int = 0


@dataclass
class Register:
    """A state that is replaced."""

    value: int = 0


def class_of(token: int) -> type[Counter] | type[Register]:
    """Return what a token's state is: counters and registers by turns."""
    return Register if token % 2 else Counter


def ident_of(token: int) -> str:
    """Return a token's ident."""
    return f"chaos-{token}"


class Workload:
    """Work on all tokens with several tasks, until told to end.

    What is given as `in_body` is called in the body of each change.

    Args:
        opened: The subject.
        recorder: Where to write what was done.
        tokens: How many there are.
        worker: The number of this process.
        seed: What decides on what is done next.
        sets: Whether `set_state` is used, or else a change that does not look.
        reads: Whether to read.
    """

    def __init__(
        self,
        opened: Opened,
        recorder: Recorder,
        *,
        tokens: int,
        worker: int,
        seed: str,
        sets: bool,
        reads: bool,
    ) -> None:
        self.done = 0
        self.in_body: Callable[[], None] = lambda: None
        self._opened = opened
        self._manager = opened.manager
        self._recorder = recorder
        self._tokens = [opened.token(ident_of(n), class_of(n)) for n in range(tokens)]
        self._random = random.Random(seed)
        self._next = worker * _SHARE
        self._last = dict.fromkeys(range(tokens), 0)  # what was seen of each register
        self._sets = sets
        self._reads = reads
        self._ending = False

    async def run(self) -> None:
        """Work."""
        async with asyncio.TaskGroup() as group:
            for _ in range(TASKS):
                group.create_task(self._work())

    def end(self) -> None:
        """Begin nothing more."""
        self._ending = True

    async def _work(self) -> None:
        drawn = self._random
        while not self._ending:
            token = drawn.randrange(len(self._tokens))
            is_counter = class_of(token) is Counter
            chance = drawn.random()
            if self._reads and chance < (0.15 if is_counter else 0.35):
                await self._do(Kind.LOOK if is_counter else Kind.READ, token)
            elif is_counter:
                await self._do(Kind.ADD, token)
            else:
                await self._do(Kind.WRITE if chance < 0.65 else Kind.CHANGE, token)
            await asyncio.sleep(2 * THINK * drawn.random())

    async def _do(self, kind: Kind, token: int) -> None:
        value = expected = None
        if kind in (Kind.WRITE, Kind.CHANGE):
            self._next += 1
            value = self._next
        if kind is Kind.CHANGE:
            expected = self._last[token]
        call = self._call_of(kind, token, value, expected)
        patience = 0.008 * self._random.random() if self._random.random() < _CANCELLED else None
        number = self._recorder.invoke(kind, token, value, expected)
        seen = None
        try:
            async with asyncio.timeout(patience):
                seen = await call(number)
        except Exception as error:
            outcome = self._opened.outcome(error)
            self._recorder.end(number, outcome, None, type(error).__name__)
            if outcome is not Outcome.UNCERTAIN:
                await asyncio.sleep(0.005)  # what has failed at once would do so again
        else:
            self._recorder.end(number, Outcome.OK, seen)
            if kind is not Kind.ADD and seen is not None:
                self._last[token] = seen
            self.done += 1

    def _call_of(
        self, kind: Kind, token: int, value: int | None, expected: int | None
    ) -> Callable[[int], Coroutine[Any, Any, int | None]]:
        async def read(number: int) -> int | None:
            state = await self._manager.get_state(self._tokens[token])
            seen: int = state.value
            return seen

        async def write(number: int) -> int | None:
            assert value is not None
            if self._sets:
                await self._manager.set_state(self._tokens[token], Register(value))
                return None
            async with self._modify(token) as state:
                state.value = value
            return None

        async def change(number: int) -> int | None:
            async with self._modify(token) as state:
                entered = time.monotonic_ns()
                seen: int = state.value
                if self._random.random() < 0.5:
                    self.in_body()
                await asyncio.sleep(self._length_of_body())
                if kind is Kind.ADD:
                    left: int | None = seen + 1
                else:
                    left = value if seen == expected else None
                if left is not None:
                    state.value = left
                self._recorder.body(number, entered, seen, left)
                self.in_body()
            return seen

        return read if kind in (Kind.LOOK, Kind.READ) else write if kind is Kind.WRITE else change

    def _modify(self, token: int) -> AbstractAsyncContextManager[Any]:
        options: dict[str, Any] = {}
        if self._sets and self._random.random() < _IMPATIENT:
            options["timeout"] = 0.02 * self._random.random()
        found: AbstractAsyncContextManager[Any] = self._manager.modify_state(
            self._tokens[token], **options
        )
        return found

    def _length_of_body(self) -> float:
        chance = self._random.random()
        if chance < 0.6:
            return 0.0
        return (0.004 if chance < 0.95 else 0.02) * self._random.random()
