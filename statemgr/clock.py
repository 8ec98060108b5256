"""The clock that everything in statemgr tells time by.

There is one class so that a test can move time instead of sleeping: see
`statemgr.testing.clock.ManualClock`.
"""

import asyncio
from collections.abc import Callable
from time import monotonic, time
from typing import Any, Protocol


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Call it off. Does nothing when it has been made already."""


class Clock:
    """The system's clock. All times and durations are seconds.

    `time()` is the wall clock, seconds since the epoch: for deadlines that are stored.
    `monotonic()` is never set back: for waits and for deadlines of this process.
    """

    # The functions themselves, not methods around them: each change asks for the time twice.
    time = staticmethod(time)
    monotonic = staticmethod(monotonic)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call `callback(*args)` on the running loop after `delay` seconds."""
        return asyncio.get_running_loop().call_later(delay, callback, *args)
