"""`StateManagerExpiration`: when each token expires, and the task that purges them.

The expiration is one number per manager. So a token that is touched gets the latest deadline
of all, and moving it to the end of an ordered mapping keeps the mapping sorted: touching is
O(1), and the purge looks at the front only. An `OrderedDict` and not a dict: taking the first
entry of a dict again and again walks over all the holes that earlier ones left.

The task sleeps until the next deadline of a token that nobody holds. Tokens whose lock is
held or waited for are passed over, and looked at again when the lock is released.
"""

import asyncio
import contextvars
import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import islice
from time import perf_counter

from statemgr.clock import Clock

logger = logging.getLogger("statemgr")

_BATCH = 64  # tokens dropped between two looks at the time
_SLICE = 0.001  # seconds of purging before the loop gets its turn
_SHORTEST_SLEEP = 0.01  # seconds: deadlines microseconds apart do not wake the task one by one
_RETRY_DELAY = 1.0  # seconds until a purge is tried again after an error


class Deadline:
    """When a token expires: seconds, by the clock of `_init_expiration`."""

    __slots__ = ("expires_at",)

    expires_at: float


class StateManagerExpiration(ABC):
    """Mix into a `StateManager` to have its tokens expire.

    A backend calls `_init_expiration` when it is made, touches tokens as they are used, says by
    `_lock_released` when a lock is free, and supplies `_lock_held_of` and `_drop_tokens`.
    """

    token_expiration: float
    _clock: Clock

    def _init_expiration(self, now: Callable[[], float]) -> None:
        """Start with no tokens. `now` is the clock that deadlines are reckoned by, in seconds."""
        self._now = now
        self._token_expires_at: OrderedDict[str, Deadline] = OrderedDict()
        self._expiration_task: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        # By lock key, the tokens that a purge passed over, with their deadlines. They stand at
        # the end of the mapping, so that the next purge need not walk over them. When the lock
        # is released they go to a heap, for there they are out of order.
        self._passed_over: dict[str, dict[str, float]] = {}
        self._released: list[tuple[float, str]] = []

    @abstractmethod
    def _lock_held_of(self, key: str) -> str | None:
        """Return the lock key of a tracked token if it is held or waited for, else None."""

    @abstractmethod
    async def _drop_tokens(self, keys: Sequence[str]) -> None:
        """Drop the states of expired tokens and stop tracking them; never touch their locks.

        None of them is locked when this is called. One that turns out to live on, because
        another process has renewed or locked it, is tracked anew.
        """

    def _touch_token(self, key: str, now: float) -> Deadline:
        """Give a token its full time again, from `now`.

        Returns:
            Its deadline, the same object each time: who keeps it is spared a look-up.
        """
        deadlines = self._token_expires_at
        deadline = deadlines.get(key)
        if deadline is None:
            deadline = deadlines[key] = Deadline()
        deadline.expires_at = now + self.token_expiration
        deadlines.move_to_end(key)
        if self._expiration_task is None:
            self._start_expiration()
        return deadline

    def _track_token(self, key: str, deadline: float) -> Deadline:
        """Have a token expire at a time of its own, unless it is tracked already.

        NOTE: not later than a touch would give it now, or it holds up those behind it.

        Returns:
            Its deadline, the same object each time.
        """
        deadlines = self._token_expires_at
        if key in deadlines:
            return deadlines[key]
        deadlines[key] = box = Deadline()
        box.expires_at = deadline
        # Those before it in the mapping may expire later; the heap tells when this one is due.
        heappush(self._released, (deadline, key))
        if self._expiration_task is None:
            self._start_expiration()
        elif self._released[0][1] == key:
            self._wake_up()
        return box

    def _expires_at(self, key: str) -> float | None:
        """Return when a token expires; None if it is not tracked."""
        deadline = self._token_expires_at.get(key)
        return None if deadline is None else deadline.expires_at

    def _lock_released(self, lock_key: str) -> None:
        """Look again at the tokens that were passed over because of a lock that is free now."""
        deadlines = self._passed_over.pop(lock_key, None)
        if deadlines is None:
            return
        for key, deadline in deadlines.items():
            heappush(self._released, (deadline, key))
        if self._expiration_task is None:
            self._start_expiration()
        else:
            self._wake_up()

    def _start_expiration(self) -> None:
        # A context of its own: the task must not keep alive what the first caller had set.
        self._expiration_task = asyncio.get_running_loop().create_task(
            self._expire_tokens(),
            name=f"{type(self).__name__} expiration",
            context=contextvars.Context(),
        )
        self._expiration_task.add_done_callback(self._expiration_ended)

    def _expiration_ended(self, task: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first turn never gets to its finally.
        if self._expiration_task is task:
            self._expiration_task = None

    async def _stop_expiration(self) -> None:
        task = self._expiration_task
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _expire_tokens(self) -> None:
        try:
            while (delay := await self._purge_or_retry()) is not None:
                if delay > 0:  # else it has become due while others were dropped
                    await self._sleep(max(delay, _SHORTEST_SLEEP))
        finally:
            self._expiration_task = None

    async def _purge_or_retry(self) -> float | None:
        try:
            return await self._purge()
        except Exception:
            logger.exception("purging expired tokens failed; trying again in %g s", _RETRY_DELAY)
            return _RETRY_DELAY

    async def _purge(self) -> float | None:
        """Drop what has expired; return the seconds to the next deadline, None without one."""
        tokens = self._token_expires_at
        slice_end = perf_counter() + _SLICE
        unseen = len(tokens)
        while True:
            batch = self._pop_released()
            if not batch:
                first = islice(tokens.items(), min(_BATCH, unseen))
                batch = [(key, deadline.expires_at) for key, deadline in first]
                unseen -= len(batch)
            expired, next_one = self._sort_out(batch)
            if expired:
                await self._drop_tokens(expired)
            if next_one is not None or not batch:
                return self._until(next_one)
            if perf_counter() >= slice_end:
                last = self._last()
                await asyncio.sleep(0)
                if self._last() != last:
                    unseen = len(tokens)  # some were touched meanwhile
                slice_end = perf_counter() + _SLICE

    def _sort_out(self, batch: list[tuple[str, float]]) -> tuple[list[str], float | None]:
        """Return the expired ones of a batch, and the first other deadline.

        Those that are locked go to the end of the mapping.
        """
        now = self._now()
        expired: list[str] = []
        for key, deadline in batch:
            lock_key = self._lock_held_of(key)
            if lock_key is not None:
                self._passed_over.setdefault(lock_key, {})[key] = deadline
                self._token_expires_at.move_to_end(key)
            elif deadline <= now:
                expired.append(key)
            else:
                return expired, deadline
        return expired, None

    def _last(self) -> tuple[str, float] | None:
        """Return the token at the end of the mapping: the last that was touched."""
        key = next(reversed(self._token_expires_at), None)
        return None if key is None else (key, self._token_expires_at[key].expires_at)

    def _pop_released(self) -> list[tuple[str, float]]:
        """Return some tokens that were passed over, are free again, and are due."""
        now = self._now()
        batch: list[tuple[str, float]] = []
        while self._released and self._released[0][0] <= now and len(batch) < _BATCH:
            deadline, key = heappop(self._released)
            if self._expires_at(key) == deadline:  # nobody has touched it since
                batch.append((key, deadline))
        return batch

    def _until(self, deadline: float | None) -> float | None:
        """Return the seconds to a deadline, or to that of a released token if it is sooner."""
        released = self._released
        while released and self._expires_at(released[0][1]) != released[0][0]:
            heappop(released)
        if released:
            sooner = released[0][0]
            deadline = sooner if deadline is None else min(deadline, sooner)
        return None if deadline is None else deadline - self._now()

    async def _sleep(self, seconds: float) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(seconds, self._wake_up)
        try:
            await self._wake
        finally:
            timer.cancel()
            self._wake = None

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
