"""`BusyPoll`: look for a reply without sleeping, for as long as that pays.

A loop that has nothing to do sleeps in the kernel, and a processor that has nothing to do halts.
To wake both takes about as long as a server on this machine takes to reply, most of all where the
processors are virtual. So after a call the loop takes empty turns for a moment: in each it looks
for what has come, and serves whoever else has something to do.

That pays where the server is near and processors are free. Elsewhere a reply does not come in
time, or somebody else had the processor between two looks, who would have had it anyway had the
loop slept. Many hits make up for one such miss; when none are left the loop sleeps through its
next calls, and then tries again. docs/decisions/0024-busy-polling.md says what that brings.
"""

import asyncio
import os
from time import monotonic
from typing import Final

_LONGEST: Final = 200e-6  # seconds to look for one reply
_GAP: Final = 100e-6  # seconds between two looks, unless somebody else had the processor
_MISS: Final = 32  # how many hits make up for a miss
_MOST: Final = 128  # the most hits that are saved
_SKIPPED: Final = 1000  # the writes after which the loop sleeps, when no hits are left

# Not every system has it. Without it we could keep the server itself from the processor.
CAN_YIELD: Final = hasattr(os, "sched_yield")


class BusyPoll:
    """Keep a loop from sleeping while a reply is due.

    Args:
        loop: The loop that would sleep.
    """

    __slots__ = ("_call_soon", "_hits", "_is_due", "_is_on", "_looked_at", "_skip", "_until")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._hits = _MOST
        self._skip = 0
        self._is_on = self._is_due = False
        self._until = self._looked_at = 0.0

    def begin(self) -> None:
        """Look for a reply from now on: something was sent."""
        if not CAN_YIELD:
            return
        if self._skip:
            self._skip -= 1
            return
        self._is_due = True
        self._looked_at = now = monotonic()
        self._until = now + _LONGEST
        if not self._is_on:
            self._is_on = True
            self._call_soon(self._look)

    def end(self) -> None:
        """Look no more: something has come."""
        if self._is_due:
            self._is_due = False
            if self._hits < _MOST:
                self._hits += 1

    def _look(self) -> None:
        if not self._is_due:
            self._is_on = False
            return
        os.sched_yield()
        now = monotonic()
        if now > self._until or now - self._looked_at > _GAP:
            self._miss()
        else:
            self._looked_at = now
            self._call_soon(self._look)

    def _miss(self) -> None:
        self._is_on = self._is_due = False
        self._hits -= _MISS
        if self._hits < 0:
            self._hits = 0
            self._skip = _SKIPPED
