"""`Stage`: managers on one store, and what must hold on it after a call was cancelled."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from chaos.cancels.stores import Store, standing
from statemgr import StateToken
from statemgr.errors import StateManagerClosedError
from statemgr.manager import StateManager

PATIENCE = 5.0  # seconds, after which what still waits is taken for stuck


class BrokenPromiseError(Exception):
    """Something that must hold after a cancel does not."""


@dataclass
class Counter:
    """What the calls change."""

    value: int = 0


@dataclass
class Total:
    """What `modify_states` changes with it."""

    value: int = 0


@dataclass
class Visits:
    """What others change, under the same lock."""

    value: int = 0


COUNTER, TOTAL = StateToken("user-1", Counter), StateToken("user-1", Total)
VISITS = StateToken("user-1", Visits)
ELSEWHERE = StateToken("user-2", Counter)


class Stage:
    """Two managers on a store, or one where only one may use it.

    Attributes:
        store: The store.
        manager: Whose calls are cancelled.
        other: What another process would have; None if there can be none.
        old: The value of `COUNTER` and `TOTAL` before the call,
        half: in the middle of a body,
        new: and after it. No two runs have a value in common.
        phase: What the call is at.
        finished: Whether its body has come to its end.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.other: StateManager | None = None
        self.manager = store.make()
        if store.shared:
            self.other = store.make()
        self.phase = ""
        self.finished = False
        self._number = 0
        self._visits = 0
        self._tasks = asyncio.all_tasks()
        self._others: list[asyncio.Task[None]] = []
        self._closed_is_fine = False

    @property
    def managers(self) -> list[StateManager]:
        """All managers that are open."""
        return [manager for manager in (self.manager, self.other) if manager is not None]

    # Before

    async def prepare(self, *, fresh: bool) -> None:
        """Have old values in the store; with `fresh` and a manager that was not used yet."""
        self._number += 10
        self.old, self.half, self.new = self._number, self._number + 1, self._number + 2
        self.phase = ""
        self.finished = False
        self._others = []
        self._closed_is_fine = False
        if fresh and not self.store.durable:
            await self.manager.close()
            self.manager = self.store.make()
            self._visits = 0
        async with self.manager.modify_states(COUNTER, TOTAL) as states:
            for state in states:
                state.value = self.old
        if fresh and self.store.durable:
            await self.manager.close()
            self.manager = self.store.make()

    async def occupy(self, manager: StateManager) -> Callable[[], None]:
        """Have a task hold the ident's lock; call what is returned to have it let go."""
        entered, leaving = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with manager.modify_state(VISITS) as visits:
                entered.set()
                await leaving.wait()
                visits.value += 1

        self._others.append(asyncio.create_task(hold()))
        await in_time(entered.wait(), "nobody can take the lock")
        return leaving.set

    def queue_others(self) -> None:
        """Have tasks ask for the lock: one here, and one of the other manager."""

        async def visit(manager: StateManager) -> None:
            async with manager.modify_state(VISITS) as visits:
                visits.value += 1

        self._others += [asyncio.create_task(visit(manager)) for manager in self.managers]

    def closing(self) -> None:
        """Let others be told that the manager is closed."""
        self._closed_is_fine = True

    # After

    async def settle(self) -> None:
        """Wait until all is quiet, and nothing is left that should not be.

        Raises:
            BrokenPromiseError: If it is not so in the end.
        """
        if self._others:
            _, waiting = await asyncio.wait(self._others, timeout=PATIENCE)
            if waiting:
                raise BrokenPromiseError(f"{len(waiting)} others never had their turn")
        for other in self._others:
            try:
                other.result()
                self._visits += 1
            except StateManagerClosedError:
                if not self._closed_is_fine:
                    raise
        await until(lambda: not self._left(), self._left)

    def _left(self) -> str:
        for manager in self.managers:
            if manager._refusal is not None:
                continue
            counted = manager.statistics()
            if counted.locks_held or counted.waiters:
                return f"{counted.locks_held} locks, {counted.waiters} waiters"
        tasks = [task for task in asyncio.all_tasks() - self._tasks if not task.done()]
        if not standing(tasks, len(self.managers)):
            return f"tasks: {[task.get_coro() for task in tasks]}"
        return self.store.leftovers()

    async def look(self, allowed: set[tuple[int, int]]) -> None:
        """Take the lock at once, find what is allowed, and change it with nothing coming after.

        Args:
            allowed: What `COUNTER` and `TOTAL` may be. 0 is none.

        Raises:
            BrokenPromiseError: If it is not so.
        """
        seen = await in_time(self._change(), "the lock is not free")
        if seen not in allowed:
            raise BrokenPromiseError(f"found {seen}, not one of {sorted(allowed)}")
        for manager in [*self.managers[::-1], self.manager]:
            async with manager.modify_states(COUNTER, TOTAL, VISITS) as (counter, total, visits):
                found = counter.value, total.value
                if found != (self.new + 1, self.new + 1):
                    raise BrokenPromiseError(f"a change made after it was lost: {found}")
                if visits.value != self._visits:
                    raise BrokenPromiseError(
                        f"others made {self._visits} changes, and {visits.value} are there"
                    )

    async def _change(self) -> tuple[int, int]:
        async with self.manager.modify_states(COUNTER, TOTAL) as (counter, total):
            seen = counter.value, total.value
            counter.value = total.value = self.new + 1
        return seen

    async def reopen(self) -> None:
        """Close the manager, if that was not done, and open another one."""
        await in_time(self.manager.close(), "close() does not end")
        self.manager = self.store.make()

    async def close(self) -> None:
        """Close the managers; no task is left of them.

        Raises:
            BrokenPromiseError: If one is.
        """
        for manager in self.managers:
            await in_time(manager.close(), "close() does not end")

        def left() -> str:
            tasks = [task for task in asyncio.all_tasks() - self._tasks if not task.done()]
            return f"after close(), tasks: {[task.get_coro() for task in tasks]}" if tasks else ""

        await until(lambda: not left(), left)

    async def abandon(self) -> None:
        """Close what can be closed of a stage on which a promise was broken."""
        for other in self._others:
            other.cancel()
        for manager in self.managers:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(manager.close(), 1.0)
        for task in asyncio.all_tasks() - self._tasks:
            task.cancel()


async def in_time(waiting: Coroutine[Any, Any, Any], else_: str) -> Any:
    """Await something that ends soon.

    Raises:
        BrokenPromiseError: If it does not.
    """
    limit = asyncio.timeout(PATIENCE)
    try:
        async with limit:
            return await waiting
    except TimeoutError:
        if not limit.expired():
            raise
        raise BrokenPromiseError(f"{else_} within {PATIENCE:g} s") from None


async def until(condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Wait until a condition holds.

    Raises:
        BrokenPromiseError: If it does not, for long; with what `otherwise` says.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    turns = 0
    while not condition():
        turns += 1
        if loop.time() > end:
            raise BrokenPromiseError(f"left after {PATIENCE:g} s: {otherwise()}")
        # What needs no thread and no socket is there after a few turns of the loop.
        await asyncio.sleep(0 if turns < 20 else 0.0005)
