"""enqueue_stream_delta: all deltas of its chain for its ident, in order, and no others."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest

from statemgr import StateToken
from statemgr.errors import EventDeadlockError, UnknownEventError
from statemgr.events import Delta, Event, EventContext, EventFuture, EventProcessor

from .conftest import SOON


class TroubleError(Exception):
    """What handlers and readers fail with here."""


@dataclass
class Count:
    value: int = 0


@dataclass
class Other:
    text: str = ""


def step(delta: Delta) -> Any:
    return delta["Count"]["value"]


class Chain:
    """A chain that tells something at each of its links, and what has become of it."""

    def __init__(self, app) -> None:
        self.ended: list[str] = []
        self.gate = asyncio.Event()
        self.futures: list[EventFuture] = []

        @app.handler
        async def count(ctx: EventContext, count: Count, links: int) -> AsyncIterator[Event | None]:
            for _ in range(3):
                count.value += 1
                yield None
                await asyncio.sleep(0)
            if links:
                yield Event("count", {"links": links - 1})

        @app.handler
        async def beside(ctx: EventContext) -> None:
            self.futures.append(await ctx.enqueue(Event("count_slowly")))
            self.futures.append(await ctx.enqueue(Event("count", {"links": 1}), ident="another"))
            self.futures.append(await ctx.enqueue(Event("in_background")))

        @app.handler(background=True)
        async def in_background(ctx: EventContext) -> None:
            for _ in range(2):
                async with ctx.modify(Count) as count:
                    count.value += 100

        @app.handler
        async def count_slowly(count: Count) -> AsyncIterator[None]:
            try:
                count.value += 1
                yield
                await self.gate.wait()
                count.value += 1
            finally:
                self.ended.append("count_slowly")

        @app.handler
        async def endless(count: Count) -> AsyncIterator[Event | None]:
            count.value += 1
            yield None
            yield Event("endless")

        @app.handler
        async def fail_after(count: Count, told: int) -> AsyncIterator[None]:
            for _ in range(told):
                count.value += 1
                yield
            raise TroubleError

        @app.handler
        async def silent() -> str:
            return "silent"


@pytest.fixture
def chain(app):
    return Chain(app)


async def read(processor: EventProcessor, ident: str, event: Event) -> list[Delta]:
    async with asyncio.timeout(SOON):
        return [delta async for delta in processor.enqueue_stream_delta(ident, event)]


async def test_all_deltas_of_the_chain_in_order(app, chain):
    """They come in place of going to emit_delta."""
    processor = await app.start()
    deltas = await read(processor, "a", Event("count", {"links": 4}))
    assert deltas == [{"Count": {"value": value}} for value in range(1, 16)]
    assert app.deltas == []


async def test_they_need_no_emit_delta(app, chain):
    processor = await app.start(emit_delta=None)
    deltas = await read(processor, "a", Event("count", {"links": 1}))
    assert [step(delta) for delta in deltas] == [1, 2, 3, 4, 5, 6]


async def test_what_a_handler_emits_itself_is_among_them(app):
    @app.handler
    async def tell(ctx: EventContext, other: Other) -> AsyncIterator[None]:
        await ctx.emit_delta({"progress": {"percent": 50}})
        other.text = "done"
        yield

    processor = await app.start()
    deltas = await read(processor, "a", Event("tell"))
    assert deltas == [{"progress": {"percent": 50}}, {"Other": {"text": "done"}}]
    assert app.deltas == []


async def test_a_chain_that_tells_nothing_has_no_deltas(app, chain):
    processor = await app.start()
    assert await read(processor, "a", Event("silent")) == []


async def test_none_of_another_ident_or_chain(app, chain):
    """Those for other idents, of the chain too, go to emit_delta, as others of its ident do."""
    chain.gate.set()
    processor = await app.start()
    stream = asyncio.create_task(read(processor, "a", Event("beside")))
    while not chain.futures:  # noqa: ASYNC110
        await asyncio.sleep(0)
    strangers = [
        await processor.enqueue("a", Event("count", {"links": 0})),
        await processor.enqueue("b", Event("count", {"links": 0})),
    ]
    deltas = await stream
    await asyncio.wait(strangers)
    assert all(future.done() for future in chain.futures)

    mine = [step(delta) for delta in deltas]
    others = [step(delta) for ident, delta in app.deltas if ident == "a"]
    assert len(mine) == 2 + 2
    assert len(others) == 3
    assert sorted(mine + others) == mine[:0] + sorted(mine + others)
    assert [step(d) for ident, d in app.deltas if ident == "another"] == [1, 2, 3, 4, 5, 6]
    assert [step(d) for ident, d in app.deltas if ident == "b"] == [1, 2, 3]
    stored = await app.manager.get_state(StateToken("a", Count))
    assert stored.value == 2 + 200 + 3
    assert max(mine + others) == stored.value


async def test_two_streams_of_one_ident_share_nothing(app, chain):
    processor = await app.start()
    first, second = await asyncio.gather(
        read(processor, "a", Event("count", {"links": 2})),
        read(processor, "a", Event("count", {"links": 2})),
    )
    assert len(first) == len(second) == 9
    values = [step(delta) for delta in first + second]
    assert sorted(values) == list(range(1, 19))
    assert [step(d) for d in first] == sorted(step(d) for d in first)
    assert [step(d) for d in second] == sorted(step(d) for d in second)


async def test_it_ends_with_the_last_event_of_the_chain(app, chain):
    """Not with the first one, nor with those of its ident."""
    processor = await app.start()
    stream = asyncio.create_task(read(processor, "a", Event("beside")))
    while len(chain.futures) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.wait(chain.futures[1:2])
    assert not stream.done()
    chain.gate.set()
    await stream
    assert all(future.done() for future in chain.futures)


@pytest.mark.parametrize("told", [0, 1, 3])
@pytest.mark.parametrize("reader", ["quick", "slow"])
async def test_the_error_comes_after_the_last_delta(app, chain, told, reader):
    """The corrective delta of the handler that failed is the last one."""
    deltas = []
    processor = await app.start()
    with pytest.raises(TroubleError):
        async for delta in processor.enqueue_stream_delta("a", Event("fail_after", {"told": told})):
            deltas.append(step(delta))
            if reader == "slow":
                for _ in range(10):
                    await asyncio.sleep(0)
    assert deltas == ([*range(1, told + 1), 0] if told else [])
    assert [type(error) for error in app.errors] == [TroubleError]


async def test_the_error_is_told_to_a_reader_that_is_late_by_any_number_of_turns(app, chain):
    """Whenever it asks for the next delta: never an end as if all were well."""
    for turns in range(12):
        processor = await app.start()
        stream = processor.enqueue_stream_delta(f"i{turns}", Event("fail_after", {"told": 1}))
        with pytest.raises(TroubleError):
            async for _ in stream:
                for _ in range(turns):
                    await asyncio.sleep(0)


async def test_an_error_further_down_the_chain_is_not_the_streams(app, chain):
    """It is that event's, and goes to the exception handler."""

    @app.handler
    async def start() -> list[Event]:
        return [Event("fail_after", {"told": 1}), Event("count", {"links": 0})]

    processor = await app.start()
    deltas = await read(processor, "a", Event("start"))
    assert [step(delta) for delta in deltas] == [1, 0, 1, 2, 3]
    assert [type(error) for error in app.errors] == [TroubleError]


async def test_an_unknown_event(app):
    processor = await app.start()
    with pytest.raises(UnknownEventError):
        await read(processor, "a", Event("missing"))


async def test_an_event_that_is_cancelled_cancels_its_reader(app, chain):
    """As for whoever awaits its future."""

    @app.handler
    async def give_up() -> None:
        raise asyncio.CancelledError

    processor = await app.start()
    reader = asyncio.create_task(read(processor, "a", Event("give_up")))
    await asyncio.wait((reader,))
    assert reader.cancelled()


# Leaving early


async def leave_by_break(processor: EventProcessor) -> None:
    async with aclosing(processor.enqueue_stream_delta("a", Event("beside"))) as stream:
        async for _ in stream:
            break


async def leave_by_aclose(processor: EventProcessor) -> None:
    stream = processor.enqueue_stream_delta("a", Event("beside"))
    await anext(stream)
    await stream.aclose()


async def leave_by_an_error(processor: EventProcessor) -> None:
    with pytest.raises(ZeroDivisionError):
        async with aclosing(processor.enqueue_stream_delta("a", Event("beside"))) as stream:
            async for _ in stream:
                raise ZeroDivisionError


async def leave_by_a_cancel_of_the_task(processor: EventProcessor) -> None:
    begun = asyncio.Event()

    async def reading() -> None:
        async for _ in processor.enqueue_stream_delta("a", Event("beside")):
            begun.set()

    task = asyncio.create_task(reading())
    await begun.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()


async def leave_by_a_timeout(processor: EventProcessor) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            async for _ in processor.enqueue_stream_delta("a", Event("beside")):
                pass


async def leave_by_dropping_it(processor: EventProcessor) -> None:
    async for _ in processor.enqueue_stream_delta("a", Event("beside")):
        break
    for _ in range(5):
        await asyncio.sleep(0)  # the loop closes what nobody has


@pytest.mark.parametrize(
    "leave",
    [
        leave_by_break,
        leave_by_aclose,
        leave_by_an_error,
        leave_by_a_cancel_of_the_task,
        leave_by_a_timeout,
        leave_by_dropping_it,
    ],
)
async def test_leaving_it_early_cancels_the_chain(app, chain, settle, leave):
    """What runs, what waits and what would come; the rest of the ident goes on."""
    processor = await app.start()
    await leave(processor)
    assert len(chain.futures) == 3
    await settle(*chain.futures)
    assert chain.futures[0].cancelled()
    assert chain.ended == ["count_slowly"]
    # What was not saved is put right, by emit_delta: nobody reads the stream any more.
    stored = await app.manager.get_state(StateToken("a", Count))
    told = [step(delta) for ident, delta in app.deltas if ident == "a"]
    assert told[-1] == stored.value
    following = await processor.enqueue("a", Event("count", {"links": 0}))
    await settle(following)
    assert following.exception() is None


async def test_leaving_an_endless_chain(app, chain):
    processor = await app.start()
    async with aclosing(processor.enqueue_stream_delta("a", Event("endless"))) as stream:
        async for delta in stream:
            if step(delta) == 500:
                break
    async with asyncio.timeout(SOON):
        await processor.stop()
    stored = await app.manager.get_state(StateToken("a", Count))
    assert 499 <= stored.value <= 501


async def test_leaving_at_any_moment(app, chain, settle):
    """The task that reads is cancelled after any number of turns of the loop."""
    turns, done = 0, False
    while not done:
        ident = f"ident {turns}"
        processor = await app.start()
        reader = asyncio.create_task(read(processor, ident, Event("count", {"links": 1})))
        for _ in range(turns):
            await asyncio.sleep(0)
        done = not reader.cancel()
        await asyncio.wait((reader,))
        following = await processor.enqueue(ident, Event("silent"))
        async with asyncio.timeout(SOON):
            assert await following == "silent"
        await processor.stop()
        stored = await app.manager.get_state(StateToken(ident, Count))
        assert stored.value in (0, 3, 6)
        app.check_nothing_is_left()
        turns += 1
    assert turns > 10


async def test_a_reader_that_is_slow_does_not_hold_up_the_chain(app, chain, settle):
    """Deltas wait for it; the handlers do not."""
    processor = await app.start()
    stream = processor.enqueue_stream_delta("a", Event("count", {"links": 9}))
    first = await anext(stream)
    following = await processor.enqueue("a", Event("silent"))
    await settle(following)
    await processor.stop()
    rest = [delta async for delta in stream]
    assert [step(delta) for delta in [first, *rest]] == list(range(1, 31))


@pytest.mark.parametrize("how", ["emit_delta", "yield", "modify"])
async def test_it_is_read_while_a_handler_tells_on_and_on(app, how):
    """One that waits for nothing else does not keep its reader waiting."""
    told = 0

    @app.handler(name="emit_delta")
    async def by_context(ctx: EventContext) -> None:
        nonlocal told
        for told in range(1, 100):
            await ctx.emit_delta({"Count": {"value": told}})

    @app.handler(name="yield")
    def by_yields(count: Count) -> Iterator[None]:
        nonlocal told
        for told in range(1, 100):
            count.value = told
            yield

    @app.handler(name="modify", background=True)
    async def by_commits(ctx: EventContext) -> None:
        nonlocal told
        for told in range(1, 100):
            async with ctx.modify(Count) as count:
                count.value = told

    processor = await app.start()
    async for delta in processor.enqueue_stream_delta("a", Event(how)):
        assert told - step(delta) <= 1


async def test_a_generator_that_is_never_started_enqueues_nothing(app, chain):
    processor = await app.start()
    stream = processor.enqueue_stream_delta("a", Event("endless"))
    await stream.aclose()
    assert not processor._unfinished
    assert (await app.manager.get_state(StateToken("a", Count))).value == 0


async def test_a_handler_cannot_read_a_stream_of_its_own_ident(app, chain):
    """It would wait for itself; one of another ident it can read."""

    @app.handler
    async def reads(ctx: EventContext, ident: str) -> list[Any]:
        stream = ctx.processor.enqueue_stream_delta(ident, Event("count", {"links": 0}))
        return [step(delta) async for delta in stream]

    processor = await app.start()
    own = await processor.enqueue("a", Event("reads", {"ident": "a"}))
    other = await processor.enqueue("a", Event("reads", {"ident": "b"}))
    async with asyncio.timeout(SOON):
        with pytest.raises(EventDeadlockError):
            await own
        assert await other == [1, 2, 3]


@pytest.mark.parametrize("seed", range(10))
async def test_many_streams_at_random(app, chain, seed):
    """Each reader gets what its own chain told, whatever the others do."""
    dice = random.Random(seed)  # noqa: S311  # the same dice each time

    async def some(number: int) -> None:
        ident = f"ident {number % 3}"
        links = dice.randrange(3)
        leave_after = dice.choice([1, 2, 5, 100, 100])
        values = []
        stream = processor.enqueue_stream_delta(ident, Event("count", {"links": links}))
        async with aclosing(stream):
            async for delta in stream:
                values.append(step(delta))
                if len(values) == leave_after:
                    break
                for _ in range(dice.randrange(3)):
                    await asyncio.sleep(0)
        assert len(values) == min(3 * (links + 1), leave_after)
        for index in range(0, len(values) - 2, 3):  # one handler's, under its lock
            first, second, third = values[index : index + 3]
            assert (second, third) == (first + 1, first + 2)

    processor = await app.start(emit_delta=None)
    async with asyncio.timeout(SOON), asyncio.TaskGroup() as group:
        for number in range(40):
            group.create_task(some(number))
            await asyncio.sleep(0)
    await processor.stop()
    app.check_nothing_is_left()
