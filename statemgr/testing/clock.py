"""`ManualClock`: time that a test moves."""

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

from statemgr.clock import Clock

_TURNS = 20  # of the loop: more than any chain of callbacks that one timer sets off here


class ManualTimer:
    """A call that a `ManualClock` makes when it is moved to its due time."""

    __slots__ = ("args", "callback", "cancelled", "due")

    def __init__(self, due: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.due = due
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        """Call it off. Does nothing when it has been made already."""
        self.cancelled = True


class ManualClock(Clock):
    """Stand still until moved.

    Args:
        wall: What the wall clock shows at first, in seconds since the epoch.
        monotonic: What the monotonic clock shows at first, in seconds.
    """

    def __init__(self, *, wall: float = 1_750_000_000.0, monotonic: float = 1_000.0) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._order = count()
        self._timers: list[tuple[float, int, ManualTimer]] = []

    def time(self) -> float:
        """Return the wall clock's time."""
        return self._wall

    def monotonic(self) -> float:
        """Return the monotonic clock's time."""
        return self._monotonic

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> ManualTimer:
        """Call `callback(*args)` when the clock has been moved on by `delay` seconds."""
        timer = ManualTimer(self._monotonic + max(delay, 0.0), callback, args)
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        return timer

    @property
    def timers(self) -> int:
        """How many calls are due later."""
        return sum(not timer.cancelled for _, _, timer in self._timers)

    def advance(self, seconds: float) -> None:
        """Move both clocks on, and make the calls that become due, in the order of their times.

        Each call sees its own due time as now. Tasks that a call wakes run when the caller next
        gives way to the loop: then all of `seconds` has passed.

        Raises:
            ValueError: If `seconds` is negative: use `step_wall_clock` to set a clock back.
        """
        if seconds < 0:
            raise ValueError("time does not run backwards; see step_wall_clock()")
        end = self._monotonic + seconds
        while (timer := self._next_timer(end)) is not None:
            self._move_to(timer.due)
            timer.callback(*timer.args)
        self._move_to(end)

    async def advance_and_settle(self, seconds: float) -> None:
        """Do what `advance` does, and let woken tasks run at each due time as it comes.

        So a task that sleeps, works and sleeps again does it as often as in real time.
        """
        end = self._monotonic + seconds
        while (due := self._next_due(end)) is not None:
            self.advance(due - self._monotonic)
            await self.settle()
        self.advance(end - self._monotonic)
        await self.settle()

    async def settle(self) -> None:
        """Let tasks that were woken run; for what waits for a thread or a socket, see
        `Harness.eventually`.
        """  # noqa: D205  # one sentence
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    def step_wall_clock(self, seconds: float) -> None:
        """Set the wall clock on or back, as an administrator would; nothing becomes due by it."""
        self._wall += seconds

    def _move_to(self, monotonic: float) -> None:
        self._wall += monotonic - self._monotonic
        self._monotonic = monotonic

    def _next_timer(self, end: float) -> ManualTimer | None:
        """Take the first call that is due by `end`."""
        if self._next_due(end) is None:
            return None
        return heapq.heappop(self._timers)[2]

    def _next_due(self, end: float) -> float | None:
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers and self._timers[0][0] <= end else None
