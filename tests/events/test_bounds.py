"""Bounded queues: enqueue waits in order, enqueue_nowait raises, chained events always pass."""

import asyncio
import random
from dataclasses import dataclass

import pytest

from statemgr.errors import (
    EventPayloadError,
    EventQueueFullError,
    SettingsError,
    UnknownEventError,
)
from statemgr.events import Event, EventContext, EventFuture, EventProcessor

from .conftest import SOON

BOUNDS = [
    {"max_queued": 3},
    {"max_queued_per_ident": 3},
    {"max_queued": 3, "max_queued_per_ident": 2},
]


@dataclass
class Count:
    value: int = 0


class Slots:
    """A handler that waits until it is let go, and what has run of it."""

    def __init__(self, app) -> None:
        self.ran: list[int] = []
        self.gates: dict[int, asyncio.Event] = {}

        @app.handler
        async def hold(number: int) -> int:
            self.ran.append(number)
            await self.gate(number).wait()
            return number

        @app.handler(background=True)
        async def hold_beside(number: int) -> int:
            self.ran.append(number)
            await self.gate(number).wait()
            return number

    def gate(self, number: int) -> asyncio.Event:
        return self.gates.setdefault(number, asyncio.Event())


def hold(number: int) -> Event:
    return Event("hold", {"number": number})


async def turn(times: int = 4) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


@pytest.fixture
def slots(app):
    return Slots(app)


@pytest.mark.parametrize("bounds", [{"max_queued": 3}, {"max_queued_per_ident": 3}])
async def test_enqueue_nowait_raises_when_it_is_full(app, slots, bounds):
    """The one that runs counts too. There is room again when one is over."""
    processor = await app.start(**bounds)
    futures = [processor.enqueue_nowait("a", hold(number)) for number in range(3)]
    with pytest.raises(EventQueueFullError):
        processor.enqueue_nowait("a", hold(3))
    slots.gate(0).set()
    await futures[0]
    futures.append(processor.enqueue_nowait("a", hold(4)))
    with pytest.raises(EventQueueFullError):
        processor.enqueue_nowait("a", hold(5))
    futures[2].cancel()  # one that waits makes room at once
    processor.enqueue_nowait("a", hold(6))
    with pytest.raises(EventQueueFullError):
        processor.enqueue_nowait("a", hold(7))


async def test_the_bound_of_one_ident_is_not_another_ones(app, slots):
    processor = await app.start(max_queued_per_ident=1)
    for ident in "abc":
        processor.enqueue_nowait(ident, hold(0))
        with pytest.raises(EventQueueFullError):
            processor.enqueue_nowait(ident, hold(1))


@pytest.mark.parametrize("bounds", [{"max_queued": 2}, {"max_queued_per_ident": 2}])
async def test_enqueue_waits_in_order(app, slots, bounds):
    """Who asked first comes in first, one for each that is over; nobody overtakes."""
    processor = await app.start(**bounds)
    for number in range(2):
        processor.enqueue_nowait("a", hold(number))
    waiting = []
    for number in range(2, 8):
        waiting.append(asyncio.create_task(processor.enqueue("a", hold(number))))
        await turn(1)
    for number in range(2, 8):
        await turn()
        assert [task.done() for task in waiting] == [n < number for n in range(2, 8)]
        slots.gate(number - 2).set()
        async with asyncio.timeout(SOON):
            await asyncio.wait((waiting[number - 2],))
        with pytest.raises(EventQueueFullError):
            processor.enqueue_nowait("a", hold(99))
    for number in (6, 7):
        slots.gate(number).set()
    await processor.stop()
    assert slots.ran == list(range(8))


async def test_nobody_overtakes_those_that_wait_for_the_whole_queue(app, slots):
    """Another ident waits behind them, though its own queue is empty."""
    processor = await app.start(max_queued=1)
    processor.enqueue_nowait("a", hold(0))
    first = asyncio.create_task(processor.enqueue("a", hold(1)))
    await turn()
    second = asyncio.create_task(processor.enqueue("b", hold(2)))
    await turn()
    slots.gate(0).set()
    await first
    await turn()
    assert not second.done()
    slots.gate(1).set()
    await second
    assert slots.ran[:2] == [0, 1]


async def test_who_waits_for_its_ident_does_not_keep_others_out(app, slots):
    processor = await app.start(max_queued=3, max_queued_per_ident=1)
    processor.enqueue_nowait("a", hold(0))
    waiting = asyncio.create_task(processor.enqueue("a", hold(1)))
    await turn()
    processor.enqueue_nowait("b", hold(2))
    processor.enqueue_nowait("c", hold(3))
    assert not waiting.done()
    slots.gate(0).set()
    await waiting


@pytest.mark.parametrize("bounds", BOUNDS)
async def test_a_cancelled_waiter_gives_up_its_place(app, slots, bounds):
    """Its event never runs; those behind it move up."""
    processor = await app.start(**bounds)
    room = min(bounds.values())
    for number in range(room):
        processor.enqueue_nowait("a", hold(number))
    waiting = []
    for number in range(room, room + 4):
        waiting.append(asyncio.create_task(processor.enqueue("a", hold(number))))
        await turn(1)
    for task in (waiting[0], waiting[2]):
        task.cancel()
    await asyncio.wait((waiting[0], waiting[2]))
    assert waiting[0].cancelled()
    for gate in range(room + 4):
        slots.gate(gate).set()
    await asyncio.gather(waiting[1], waiting[3])
    await processor.stop()
    assert slots.ran == [*range(room), room + 1, room + 3]


@pytest.mark.parametrize("bounds", BOUNDS)
async def test_a_waiter_that_is_cancelled_at_any_moment(app, slots, bounds):
    """Also when it has got its place and does not know yet: then its event is cancelled."""
    for moment in range(8):
        processor = await app.start(**bounds)
        room = min(bounds.values())
        base = moment * 100
        for number in range(room):
            processor.enqueue_nowait("a", hold(base + number))
        task = asyncio.create_task(processor.enqueue("a", hold(base + 50)))
        await turn()
        slots.gate(base).set()
        await turn(moment)
        task.cancel()
        await asyncio.wait((task,))
        for number in range(room):
            slots.gate(base + number).set()
        if not task.cancelled():
            task.result().cancel()
        async with asyncio.timeout(SOON):
            await processor.stop()
        app.check_nothing_is_left()


async def test_wait_for_gives_up_the_place(app, slots):
    processor = await app.start(max_queued=1)
    processor.enqueue_nowait("a", hold(0))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(processor.enqueue("a", hold(1)), 0.01)
    waiting = asyncio.create_task(processor.enqueue("a", hold(2)))
    await turn()
    slots.gate(0).set()
    await waiting
    slots.gate(2).set()
    await processor.stop()
    assert slots.ran == [0, 2]


@pytest.mark.parametrize("how", ["returned", "yielded", "ctx", "ctx nowait", "processor"])
async def test_chained_events_pass(app, how):
    """A handler that waited for room would wait for itself."""
    ran = []

    @app.handler
    async def many(ctx: EventContext, count: Count):
        for number in range(10):
            event = Event("one", {"number": number})
            if how == "yielded":
                yield event
            elif how == "ctx":
                await ctx.enqueue(event)
            elif how == "ctx nowait":
                ctx.enqueue_nowait(event, ident="another")
            elif how == "processor":
                await ctx.processor.enqueue(ctx.ident, event)

    @app.handler
    async def returns() -> list[Event]:
        return [Event("one", {"number": number}) for number in range(10)]

    @app.handler
    async def one(number: int) -> None:
        ran.append(number)

    processor = await app.start(max_queued=1, max_queued_per_ident=1)
    future = await processor.enqueue("a", Event("returns" if how == "returned" else "many"))
    async with asyncio.timeout(SOON):
        await future.wait_all()
        await processor.stop()
    assert ran == list(range(10))


async def test_what_is_chained_is_counted(app, slots):
    """Those from outside wait until it has gone down to the bound again."""

    @app.handler
    async def many() -> list[Event]:
        return [hold(number) for number in range(3)]

    processor = await app.start(max_queued_per_ident=2)
    await (await processor.enqueue("a", Event("many")))
    waiting = asyncio.create_task(processor.enqueue("a", hold(3)))
    for number in range(2):
        await turn()
        assert not waiting.done()
        slots.gate(number).set()
    await waiting
    for number in (2, 3):
        slots.gate(number).set()
    await processor.stop()
    assert slots.ran == [0, 1, 2, 3]


async def test_events_in_the_background_count(app, slots):
    processor = await app.start(max_queued_per_ident=2)
    for number in range(2):
        processor.enqueue_nowait("a", Event("hold_beside", {"number": number}))
    with pytest.raises(EventQueueFullError):
        processor.enqueue_nowait("a", hold(2))
    waiting = asyncio.create_task(processor.enqueue("a", hold(2)))
    await turn()
    slots.gate(1).set()
    await waiting
    await turn()
    assert slots.ran == [0, 1, 2]


async def test_events_that_fail_at_once_need_no_room(app, slots):
    processor = await app.start(max_queued=1)
    processor.enqueue_nowait("a", hold(0))
    async with asyncio.timeout(SOON):
        future = await processor.enqueue("a", Event("missing"))
    assert future.done()


@pytest.mark.parametrize("bounds", [{"max_queued": 1}, {"max_queued_per_ident": 1}])
async def test_nor_do_they_without_waiting(app, slots, bounds):
    processor = await app.start(**bounds)
    processor.enqueue_nowait("a", hold(0))
    assert type(processor.enqueue_nowait("a", Event("missing")).exception()) is UnknownEventError
    refused = processor.enqueue_nowait("a", Event("hold", {"number": "x"}))
    assert type(refused.exception()) is EventPayloadError


@pytest.mark.parametrize("bounds", [{"max_queued": 1}, {"max_queued_per_ident": 1}])
async def test_an_event_takes_the_room_of_what_it_supersedes(app, bounds):
    """That of one that runs is free only when that has ended."""

    @app.handler(supersedes=True)
    async def search(text: str) -> str:
        await asyncio.sleep(0 if text == "c" else SOON)
        return text

    processor = await app.start(**bounds)
    first = processor.enqueue_nowait("a", Event("search", {"text": "a"}))
    second = processor.enqueue_nowait("a", Event("search", {"text": "b"}))
    assert first.cancelled()
    await turn()
    with pytest.raises(EventQueueFullError):
        processor.enqueue_nowait("a", Event("search", {"text": "c"}))
    await turn()
    assert second.cancelled()
    assert await processor.enqueue_nowait("a", Event("search", {"text": "c"})) == "c"


async def test_a_stream_waits_for_room(app, slots):
    """Leaving it meanwhile gives up the place."""
    processor = await app.start(max_queued=1)
    processor.enqueue_nowait("a", hold(0))
    streams = [processor.enqueue_stream_delta("a", hold(number)) for number in (1, 2)]
    tasks = [asyncio.create_task(anext(stream, None)) for stream in streams]  # type: ignore[var-annotated, arg-type]
    await turn()
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    slots.gate(0).set()
    slots.gate(2).set()
    async with asyncio.timeout(SOON):
        assert await tasks[1] is None
    assert slots.ran == [0, 2]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("bounds", BOUNDS)
async def test_bounds_hold_at_random(app, bounds, seed):
    """Never more than may be; per ident in order of asking; and all come in, or are cancelled."""
    dice = random.Random(seed)  # noqa: S311  # the same dice each time
    ran: dict[str, list[int]] = {}
    most = 0

    @app.handler
    async def work(ctx: EventContext, number: int, turns: int) -> None:
        nonlocal most
        ran.setdefault(ctx.ident, []).append(number)
        most = max(most, processor._queue._accepted)
        await turn(turns)

    @app.handler(background=True)
    async def work_beside(turns: int) -> None:
        await turn(turns)

    async def ask(ident: str, number: int) -> EventFuture:
        turns = dice.randrange(4)
        if dice.random() < 0.2:
            return await processor.enqueue(ident, Event("work_beside", {"turns": turns}))
        return await processor.enqueue(ident, Event("work", {"number": number, "turns": turns}))

    processor: EventProcessor = await app.start(**bounds)
    asking: list[asyncio.Task[EventFuture]] = []
    for number in range(150):
        asking.append(asyncio.create_task(ask(dice.choice("abcd"), number)))
        if dice.random() < 0.3:
            dice.choice(asking).cancel()
        if dice.random() < 0.3:
            for task in asking:
                if task.done() and not task.cancelled() and dice.random() < 0.2:
                    task.result().cancel()
        await turn(dice.randrange(3))
    async with asyncio.timeout(SOON):
        await asyncio.wait(asking)
        futures = [task.result() for task in asking if not task.cancelled()]
        await asyncio.wait(futures)
    assert all(numbers == sorted(numbers) for numbers in ran.values())
    if "max_queued" in bounds:
        assert most <= bounds["max_queued"]
    app.check_nothing_is_left()


@pytest.mark.parametrize("option", ["max_queued", "max_queued_per_ident"])
@pytest.mark.parametrize("value", [0, -1, 1.5, None, True, "3"])
def test_a_bound_that_is_none(app_without_loop, option, value):
    with pytest.raises(SettingsError) as caught:
        EventProcessor(*app_without_loop, **{option: value})
    assert caught.value.variable == option


@pytest.fixture
def app_without_loop():
    from statemgr import StateManagerMemory
    from statemgr.events import RegistrationContext

    return StateManagerMemory(), RegistrationContext()
