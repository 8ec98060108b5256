"""What this worker knows of the rooms that it has viewers in, and how it keeps that up to date.

A worker hears of changes in two ways:

- What its own events change comes as a delta from the processor, at once.
- Of what other workers change nobody tells it, neither the disk nor Redis. So a watcher for each
  room reads the state some times a second. That is simple, and the same on every backend.

Both may tell of the same change, or overtake each other. Two rules keep a view from going back:

    delta 7 -> 8    taken only if the view shows revision 7; else something is missing in between,
                    and the watcher reads at once
    a reading       taken only if no delta was taken while it was on its way; else it may be older
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from time import monotonic
from types import TracebackType
from typing import Any, Self

from statemgr.events import Delta, Event, EventProcessor

from .rooms import FORGOTTEN_AFTER, Room

INTERVAL = 0.2  # seconds between two readings
RETRY = 1.0  # seconds until the next one if one has failed
HEARTBEAT = FORGOTTEN_AFTER / 3  # seconds until a worker says again how many viewers it has
WORKER = f"{os.getpid()}-{os.urandom(4).hex()}"  # process ids repeat, and on other machines too

Fields = Mapping[str, Any]

logger = logging.getLogger(__name__)


class View:
    """A room as this worker knows it.

    Attributes:
        fields: The room's public fields, empty until they were read. They are replaced when
            something changes, and never changed, so that each socket can go on with what it has.
        viewers: How many sockets look at it.
        stale: Wakes the watcher.
    """

    def __init__(self) -> None:
        self.fields: Fields = {}
        self.viewers = 0
        self.stale = asyncio.Event()
        self._changed = asyncio.Event()

    def show(self, fields: Fields) -> None:
        """Let all sockets have these fields."""
        if fields != self.fields:
            self.fields = fields
            self._changed.set()
            self._changed = asyncio.Event()

    async def differing_from(self, known: Fields) -> Fields:
        """Wait until the fields are others than these, and return all of them.

        Who comes late gets the newest, so a slow client holds up nobody and misses nothing but
        what was in between.
        """
        while self.fields == known:
            await self._changed.wait()
        return self.fields


class Views:
    """The views of this worker, and their watchers. Leaving `async with` waits for these."""

    def __init__(self) -> None:
        self._views: dict[str, View] = {}
        self._watchers = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._watchers.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._watchers.__aexit__(exc_type, exc, traceback)

    def follow(self, room: str, delta: Delta) -> None:
        """Take what an event of this worker has changed: the processor's `emit_delta`."""
        view = self._views.get(room)
        if view is None:
            return
        changes = delta[Room.__name__]
        if view.fields and changes.get("revision") == view.fields["revision"] + 1:
            view.show({**view.fields, **changes})
        else:
            view.stale.set()

    @asynccontextmanager
    async def viewing(self, room: str, processor: EventProcessor) -> AsyncIterator[View]:
        """Be one more viewer of a room; the first one's watcher ends with the last one."""
        view = self._views.get(room)
        if view is None:
            view = self._views[room] = View()
            self._watchers.create_task(self._watch(room, view, processor))
        view.viewers += 1
        view.stale.set()
        try:
            yield view
        finally:
            view.viewers -= 1
            view.stale.set()

    async def _watch(self, room: str, view: View, processor: EventProcessor) -> None:
        said, say_again_at = 0, 0.0
        while view.viewers or said:
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await view.stale.wait()
            view.stale.clear()
            try:
                if view.viewers != said or monotonic() > say_again_at:
                    viewers = view.viewers
                    event = Event("attend", {"worker": WORKER, "viewers": viewers})
                    await (await processor.enqueue(room, event))
                    said, say_again_at = viewers, monotonic() + HEARTBEAT
                before = view.fields
                snapshot = await processor.snapshot(room, Room)
                if view.fields is before:
                    view.show(snapshot[Room.__name__])
            except Exception as error:  # the store is out of reach, or its disk is full
                logger.warning("a room cannot be read now: %r", error)
                said = 0  # if it was said or not: say it again, or be forgotten
                await asyncio.sleep(RETRY)
        del self._views[room]
