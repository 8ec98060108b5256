"""`KeyedLocks`: one first-in-first-out lock per key, gone when nobody holds or waits.

A lock is handed over, never freed and raced for: `release` makes the first waiter the
holder in the same step. An `asyncio.Lock` does not: between a release and its waiter's turn

    task A   release()            locked() is now False
    task B                        (woken, but has not run yet)
    purge                         sees a free lock, drops it from the table
    task C                        makes a new lock for the key and takes it
    task B   runs, holds the old lock: B and C are both inside

Here a key is locked from the first acquire until nobody wants it any more, without a gap.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from statemgr.clock import Clock
from statemgr.errors import LockReentryError, LockTimeoutError, StateManagerError


class Holder(Protocol):
    """Whoever holds or wants a lock.

    Attributes:
        task: The task that asks, by which an acquire inside of another is known; None outside
            of a task.
        locked_since: The monotonic time since which the key is locked without a gap: by this
            holder, or by those before it in the queue. Set when the lock is taken.
    """

    task: "asyncio.Task[Any] | None"
    locked_since: float


class KeyedLocks:
    """Hold locks by key for the tasks of one event loop.

    Args:
        clock: What timeouts are measured by.
        name: Turns a key into what an error message may call it.

    Attributes:
        holders: Who holds each key that is locked. NOTE: the memory backend takes and frees a
            lock that nobody wants in here itself, and spares two calls on each change.
        queues: Who waits for it, first in first out; a key is here only while somebody does.
            A key in `queues` is always in `holders`.
    """

    __slots__ = ("_clock", "_name", "holders", "queues")

    def __init__(self, clock: Clock, name: Callable[[str], str]) -> None:
        self._clock = clock
        self._name = name
        self.holders: dict[str, Holder] = {}
        self.queues: dict[str, OrderedDict[asyncio.Future[None], Holder]] = {}

    @property
    def waiting(self) -> int:
        """How many acquires wait."""
        return sum(map(len, self.queues.values()))

    async def acquire(
        self,
        key: str,
        holder: Holder,
        timeout: float | None = None,
        on_free: Callable[[str], None] | None = None,
    ) -> None:
        """Take the lock, after those who asked before.

        Args:
            key: The key.
            holder: Who asks.
            timeout: The longest wait in seconds. None waits for ever; 0 or less does not wait.
            on_free: Called with the key if a cancel comes in the turn of the hand-over, so that
                the lock is free again without having been released by anybody who had it.

        Raises:
            LockReentryError: If the holder's task holds it already.
            LockTimeoutError: If it did not become free in time.
            asyncio.CancelledError: If cancelled. As after every error, the lock is not held
                and the place in the queue is given up.
        """
        current = self.holders.get(key)
        if current is None:
            holder.locked_since = self._clock.monotonic()
            self.holders[key] = holder
            return
        if holder.task is not None and holder.task is current.task:
            raise LockReentryError(
                f"this task holds the lock of {self._name(key)} already", lock_key=key
            )
        if timeout is not None and not timeout > 0:  # NaN does not wait either
            raise self._timed_out(key, timeout)
        # The task knows its loop; get_running_loop() asks the kernel for the process id on 3.11.
        loop = asyncio.get_running_loop() if holder.task is None else holder.task.get_loop()
        turn = loop.create_future()
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = OrderedDict()
        queue[turn] = holder
        timer = None
        try:
            if timeout is not None:
                timer = self._clock.call_later(timeout, self._expire, turn, key, timeout)
            await turn  # in this coroutine, not one more below it to be resumed when the turn comes
        except BaseException:
            self._give_up(key, turn, on_free)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def release(self, key: str) -> None:
        """Hand the lock to the first who waits, or free it."""
        queue = self.queues.get(key)
        while queue:
            turn, holder = queue.popitem(last=False)
            if not turn.done():  # else cancelled or timed out, and yet to be told
                if not queue:
                    del self.queues[key]
                holder.locked_since = self.holders[key].locked_since
                self.holders[key] = holder
                turn.set_result(None)
                return
        del self.holders[key]
        if queue is not None:
            del self.queues[key]

    def fail_waiters(self, error: Callable[[], StateManagerError]) -> None:
        """Make every wait end with an error. Holders keep their locks."""
        for queue in self.queues.values():
            for turn in queue:
                if not turn.done():
                    turn.set_exception(error())

    def _give_up(
        self, key: str, turn: asyncio.Future[None], on_free: Callable[[str], None] | None
    ) -> None:
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            self.release(key)  # it was handed to us before the cancel arrived
            if on_free is not None and key not in self.holders:
                on_free(key)
        else:
            self._withdraw(key, turn)

    def _withdraw(self, key: str, turn: asyncio.Future[None]) -> None:
        queue = self.queues.get(key)
        if queue is not None and turn in queue:
            del queue[turn]
            if not queue:
                del self.queues[key]

    def _expire(self, turn: asyncio.Future[None], key: str, timeout: float) -> None:
        if not turn.done():
            turn.set_exception(self._timed_out(key, timeout))

    def _timed_out(self, key: str, timeout: float) -> LockTimeoutError:
        return LockTimeoutError(
            f"the lock of {self._name(key)} was not free within {timeout:g} s",
            lock_key=key,
            timeout=timeout,
        )
