"""`VirtualLoop`: an event loop without a selector, which does something only when it is told to.

One stands for one process. All of them share a `VirtualTime`, which moves when the scheduler says
so. Tasks, futures and handles are asyncio's own or behave as these do; what is ready runs in the
order of its becoming so, a turn at a time, and timers in the order of their times.
"""

import asyncio
import contextlib
import contextvars
import heapq
from asyncio.events import _get_running_loop, _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from statemgr.clock import Clock


class VirtualTime:
    """What every clock shows.

    Attributes:
        now: Microseconds since the start: whole, so that sums come out the same in any order.
    """

    __slots__ = ("now",)

    EPOCH = 1_750_000_000_000_000  # the wall clock's microseconds at the start
    START = 1_000.0  # the monotonic clock's seconds at the start

    def __init__(self) -> None:
        self.now = 0

    def seconds(self) -> float:
        """Return the monotonic clock's time."""
        return self.START + self.now / 1_000_000

    def wall_us(self) -> int:
        """Return the wall clock's microseconds since the epoch."""
        return self.EPOCH + self.now


class VirtualHandle:
    """A call that is ready, or due later."""

    __slots__ = ("args", "callback", "cancelled_", "context", "due")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
        due: int,
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.due = due
        self.cancelled_ = False

    def cancel(self) -> None:
        """Call it off."""
        self.cancelled_ = True
        self.callback, self.args = _nothing, ()

    def cancelled(self) -> bool:
        """Whether it was called off."""
        return self.cancelled_

    def when(self) -> float:
        """Return when it is due, as the loop's `time()` has it."""
        return VirtualTime.START + self.due / 1_000_000


class VirtualLoop:
    """Run callbacks when told to.

    What asyncio and the client ask of a loop is here, and nothing else: an `AbstractEventLoop` has
    forty methods more, which would need sockets.

    Args:
        time: The time.

    Attributes:
        ready: What is to run in the next turn.
        tasks: All that were made, in this order.
        errors: What callbacks have raised.
        dead: Whether the process is gone: nothing is taken any more.
    """

    def __init__(self, time: VirtualTime) -> None:
        self.time_ = time
        self._myself: Any = self  # as asyncio is to see it
        self.ready: deque[VirtualHandle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []
        self.errors: list[BaseException] = []
        self.dead = False
        self._timers: list[tuple[int, int, VirtualHandle]] = []
        self._order = 0

    # What the scheduler uses

    def turn(self) -> None:
        """Run what is ready now. What that makes ready runs in the next turn."""
        ready = self.ready
        outer = _get_running_loop()
        _set_running_loop(self._myself)
        try:
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle.cancelled_:
                    try:
                        if handle.context is None:
                            handle.callback(*handle.args)
                        else:
                            handle.context.run(handle.callback, *handle.args)
                    except Exception as error:  # noqa: BLE001, RUF100  # as asyncio does: it goes on
                        self.errors.append(error)
        finally:
            _set_running_loop(outer)

    def next_due(self) -> int | None:
        """Return when the next timer is due, in microseconds; None without one."""
        timers = self._timers
        while timers and timers[0][2].cancelled_:
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def wake_timers(self) -> None:
        """Make ready what is due by now."""
        timers, now = self._timers, self.time_.now
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[2]
            if not handle.cancelled_:
                self.ready.append(handle)

    def die(self) -> None:
        """Let nothing run any more."""
        self.dead = True
        self.ready.clear()
        self._timers.clear()

    def bury(self) -> None:
        """Take apart what is left of a dead process, without any of it being heard of."""
        outer = _get_running_loop()
        _set_running_loop(self._myself)
        try:
            for task in self.tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    coroutine: Any = task.get_coro()
                    # Nobody is there to hear what it raises.
                    with contextlib.suppress(BaseException):
                        coroutine.close()
        finally:
            _set_running_loop(outer)
        self.ready.clear()
        self._timers.clear()
        self.tasks.clear()

    # What asyncio uses

    def call_soon(
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> VirtualHandle:
        """See asyncio, as for the others."""
        handle = VirtualHandle(callback, args, context, self.time_.now)
        if not self.dead:
            self.ready.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> VirtualHandle:
        """Call later; a timer is never early, and late by less than a microsecond."""
        due = self.time_.now + max(0, -int(-delay * 1_000_000 // 1))
        return self._call_when(due, callback, args, context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> VirtualHandle:
        """Call at a time of `time()`."""
        return self.call_later(when - self.time(), callback, *args, context=context)

    def _call_when(
        self,
        due: int,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
    ) -> VirtualHandle:
        handle = VirtualHandle(callback, args, context, due)
        if not self.dead:
            self._order += 1
            heapq.heappush(self._timers, (due, self._order, handle))
        return handle

    def time(self) -> float:
        return self.time_.seconds()

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self._myself)

    def create_task(self, coro: Coroutine[Any, Any, Any], **options: Any) -> "asyncio.Task[Any]":
        task = asyncio.Task(coro, loop=self._myself, **options)
        self.tasks.append(task)
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return _get_running_loop() is self._myself

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Take note of what nobody has handled, unless it is an error nobody has asked for."""
        if not self.dead and "future" not in context and "exception" in context:
            self.errors.append(context["exception"])


class VirtualClock(Clock):
    """The clock that a manager in a `VirtualLoop` tells time by."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.monotonic = loop.time_.seconds

    def time(self) -> float:
        """Return the wall clock's time."""
        return self._loop.time_.wall_us() / 1_000_000

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any
    ) -> VirtualHandle:
        """Call later."""
        return self._loop.call_later(delay, callback, *args)


def _nothing(*_: Any) -> None:
    """Stand in for what was called off."""
