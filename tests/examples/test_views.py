"""What a worker of the live counter shows of a room, when readings and deltas overtake each other.

Here changes come in an order that is arranged; test_live_counter.py has real workers.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from examples.live_counter import rooms, views
from examples.live_counter.rooms import Click, Room, registry
from examples.live_counter.views import View, Views
from statemgr import StateManagerMemory, StateToken
from statemgr.events import Delta, Event, EventProcessor

NEVER = 3600.0  # seconds
PATIENCE = 30.0
ROOM = "lobby"
CLICK = Event("click", {"by": 1, "name": "Ada", "hue": 200})


class Processor(EventProcessor):
    """A processor whose readings can be held on their way back.

    Attributes:
        failure: What readings end with, if anything.
        may_return: Lets them.
        taken: Set while one is held.
        ended: Released once for each that has come to its end.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.failure: Exception | None = None
        self.may_return = asyncio.Event()
        self.may_return.set()
        self.taken = asyncio.Event()
        self.ended = asyncio.Semaphore(0)

    async def snapshot(self, ident: str, *classes: type[Any]) -> Delta:
        snapshot = await super().snapshot(ident, *classes)
        self.taken.set()
        await self.may_return.wait()
        self.taken.clear()
        self.ended.release()
        if self.failure is not None:
            raise self.failure
        return snapshot


class Worker:
    """What a worker has: its store, its processor, its views, and one view with all it showed."""

    def __init__(self) -> None:
        self.manager = StateManagerMemory()
        self.views = Views()
        self.processor = Processor(self.manager, registry, emit_delta=self.views.follow)
        self.shown: list[Any] = []

    def record(self, view: View) -> None:
        show = view.show

        def recording(fields: Any) -> None:
            show(fields)
            self.shown.append(view.fields)

        view.show = recording  # type: ignore[method-assign]

    async def click(self) -> None:
        await (await self.processor.enqueue(ROOM, CLICK))

    async def change_elsewhere(self, **fields: Any) -> None:
        """Change the room as another worker does: no delta comes of it."""
        async with self.manager.modify_state(StateToken(ROOM, Room)) as room:
            room.revision += 1
            for name, value in fields.items():
                setattr(room, name, value)


@asynccontextmanager
async def working() -> AsyncIterator[Worker]:
    """Run a worker; a test that takes too long has failed."""
    worker = Worker()
    async with asyncio.timeout(PATIENCE), worker.manager, worker.processor, worker.views:
        yield worker


@asynccontextmanager
async def watching() -> AsyncIterator[tuple[Worker, View]]:
    """Run a worker with a viewer, whose view is there."""
    async with working() as worker, worker.views.viewing(ROOM, worker.processor) as view:
        await shows(view, viewers=1, count=0)
        yield worker, view


async def shows(view: View, **expected: Any) -> None:
    """Wait until a view shows this."""
    while not expected.items() <= view.fields.items():
        await view.differing_from(view.fields)


async def another_reading(worker: Worker, view: View) -> None:
    """Wait until a reading that begins from now on is over."""
    while not worker.processor.ended.locked():
        await worker.processor.ended.acquire()  # for those before
    for _ in range(2):  # one may be on its way
        view.stale.set()
        await worker.processor.ended.acquire()


async def test_reading_that_a_delta_has_overtaken_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(views, "INTERVAL", NEVER)
    async with watching() as (worker, view):
        worker.record(view)
        worker.processor.may_return.clear()
        view.stale.set()
        await worker.processor.taken.wait()  # it has read 0
        await worker.click()
        assert view.fields["count"] == 1
        worker.processor.may_return.set()
        await another_reading(worker, view)
    assert {fields["count"] for fields in worker.shown} == {1}


async def test_delta_that_others_were_before_is_not_shown_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The room is read in its place, at once, with what the others have changed."""
    monkeypatch.setattr(views, "INTERVAL", NEVER)
    async with watching() as (worker, view):
        worker.record(view)
        await worker.change_elsewhere(milestone=10)
        await worker.click()
        await shows(view, count=1)
    assert {(fields["count"], fields["milestone"]) for fields in worker.shown} == {(1, 10)}


async def test_delta_that_a_reading_has_overtaken_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(views, "INTERVAL", NEVER)
    async with watching() as (worker, view):
        await worker.change_elsewhere(count=5)
        await worker.change_elsewhere(count=6)
        view.stale.set()
        await shows(view, count=6)
        worker.record(view)
        worker.views.follow(ROOM, {"Room": {"revision": view.fields["revision"] - 1, "count": 5}})
        await another_reading(worker, view)
    assert {fields["count"] for fields in worker.shown} == {6}


async def test_changes_of_others_are_found_without_being_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(views, "INTERVAL", 0.001)
    async with watching() as (worker, view):
        await worker.change_elsewhere(count=5)
        await shows(view, count=5)


async def test_readings_that_fail_are_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(views, "RETRY", 0.001)
    async with watching() as (worker, view):
        worker.processor.failure = OSError("no such disk")
        await worker.change_elsewhere(count=5)
        for _ in range(3):
            await worker.processor.ended.acquire()
        assert view.fields["count"] == 0
        worker.processor.failure = None
        await shows(view, count=5)
    warnings = [record for record in caplog.records if record.name == views.logger.name]
    assert warnings
    assert all(record.levelno == logging.WARNING for record in warnings)


async def test_last_viewer_takes_the_watcher_along() -> None:
    """The room is left without a viewer in the store, and with none here."""
    async with working() as worker:
        ending = Views()
        async with (
            ending,
            ending.viewing(ROOM, worker.processor) as view,
            ending.viewing(ROOM, worker.processor) as other,
        ):
            assert other is view
            await shows(view, viewers=2)
        assert not ending._views
        assert (await worker.manager.get_state(StateToken(ROOM, Room))).viewers == 0


async def test_viewer_that_leaves_during_a_reading_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "INTERVAL", NEVER)
    async with working() as worker:
        async with Views() as ending:
            async with ending.viewing(ROOM, worker.processor) as view:
                await shows(view, viewers=1)
                worker.processor.may_return.clear()
                view.stale.set()
                await worker.processor.taken.wait()
            worker.processor.may_return.set()
        assert (await worker.manager.get_state(StateToken(ROOM, Room))).viewers == 0


def test_worker_that_is_silent_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(rooms.time, "time", lambda: now)
    room = Room()
    rooms.attend(room, "dead", 3)
    rooms.attend(room, "alive", 2)
    assert room.viewers == 5
    now += rooms.FORGOTTEN_AFTER
    rooms.attend(room, "alive", 2)
    assert room.viewers == 5
    revision = room.revision
    now += 1
    rooms.attend(room, "alive", 2)
    assert room.viewers == 2
    assert room.revision == revision + 1
    rooms.attend(room, "alive", 0)
    assert room.viewers == 0
    assert not room._audiences


async def test_late_socket_gets_the_newest_and_nothing_in_between() -> None:
    view = View()
    for count in range(3):
        view.show({"count": count})
    assert await view.differing_from({"count": 0}) == {"count": 2}
    waiting = asyncio.create_task(view.differing_from({"count": 2}))
    await asyncio.sleep(0)
    view.show({"count": 3})
    assert await waiting == {"count": 3}


async def test_room_remembers_the_last_clicks_only() -> None:
    async with working() as worker:
        for _ in range(rooms.RECENT + 3):
            await worker.click()
        room = await worker.manager.get_state(StateToken(ROOM, Room))
    assert [click.count for click in room.clicks] == list(range(rooms.RECENT + 3, 3, -1))
    assert all(isinstance(click, Click) for click in room.clicks)
