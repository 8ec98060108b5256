"""Chains of events: deep and endless ones, cancelled ones, superseded ones; nothing is left."""

import asyncio
import contextlib
import gc
import itertools
import sys
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar, copy_context
from dataclasses import dataclass

import pytest

from statemgr import StateToken
from statemgr.events import Event, EventContext, EventFuture, EventListener, EventProcessor
from statemgr.events.future import Scope

from .conftest import SOON

DEEP = 10_000  # links of a chain
SLACK = 64 * 1024  # bytes by which memory may differ: a dict that has grown, a cached object


class TroubleError(Exception):
    """What handlers fail with here."""


@dataclass
class Count:
    value: int = 0


def futures_alive() -> int:
    gc.collect()
    return sum(type(thing) is EventFuture for thing in gc.get_objects())


class Memory:
    """Tell by how many bytes memory has grown since `mark()`."""

    def __enter__(self) -> "Memory":
        tracemalloc.start()
        self.mark()
        return self

    def __exit__(self, *error: object) -> None:
        tracemalloc.stop()

    def mark(self) -> None:
        gc.collect()
        self.before = tracemalloc.get_traced_memory()[0]

    def grown(self) -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self.before


def register_links(app) -> None:
    """Register handlers of which each chains itself, `number` times."""

    @app.handler
    async def returned(number: int) -> Event | None:
        return Event("returned", {"number": number - 1}) if number else None

    @app.handler
    def yielded(count: Count, number: int) -> Iterator[Event]:
        count.value += 1
        if number:
            yield Event("yielded", {"number": number - 1})

    @app.handler
    async def by_context(ctx: EventContext, number: int) -> None:
        if number:
            await ctx.enqueue(Event("by_context", {"number": number - 1}))

    @app.handler
    async def from_ident_to_ident(ctx: EventContext, number: int) -> None:
        if number:
            await ctx.enqueue(
                Event("from_ident_to_ident", {"number": number - 1}), ident=f"i{number % 3}"
            )

    @app.handler(background=True)
    async def beside(number: int) -> Event | None:
        return Event("beside", {"number": number - 1}) if number else None


LINKS = ["returned", "yielded", "by_context", "from_ident_to_ident", "beside"]


@pytest.mark.parametrize("name", LINKS)
async def test_a_deep_chain(app, name):
    """It does not recurse, not even when it is dropped, and nothing stays of it."""
    register_links(app)
    processor = await app.start(emit_delta=None)

    async def run() -> EventFuture:
        root = await processor.enqueue("a", Event(name, {"number": DEEP}))
        await root.wait_all()
        assert sum(1 for _ in root.descendants()) == DEEP
        assert all(future.done() for future in root.descendants())
        return root

    before = futures_alive()
    await run()
    assert futures_alive() == before


async def test_memory_is_back_where_it_was_after_a_deep_chain(app):
    register_links(app)
    processor = await app.start()
    with Memory() as memory:
        for _ in range(2):
            memory.mark()  # the second time: dicts that have grown once stay large
            root = await processor.enqueue("a", Event("returned", {"number": DEEP}))
            await root.wait_all()
            assert memory.grown() > DEEP * 100  # else it measures nothing
            del root
            await asyncio.sleep(0)
        assert memory.grown() < SLACK


@pytest.mark.parametrize("name", ["returned", "yielded", "beside"])
async def test_a_chain_whose_root_nobody_keeps_does_not_accumulate(app, name):
    """A handler that chains itself for ever, as one that polls does, holds none of its past."""
    register_links(app)
    ended = asyncio.Event()
    most = 0

    @app.handler
    async def endless(number: int) -> Event | None:
        nonlocal most
        if number % 1000 == 0:
            most = max(most, futures_alive())
        if number:
            return Event("endless", {"number": number - 1})
        ended.set()
        return None

    processor = await app.start()
    before = futures_alive()
    processor.enqueue_nowait("a", Event("endless", {"number": 3000}))
    async with asyncio.timeout(SOON):
        await ended.wait()
    assert most - before < 5


async def test_a_stream_of_an_endless_chain_does_not_accumulate(app):
    """It may be open as long as a page is."""
    most = 0

    @app.handler
    async def poll(count: Count, number: int) -> Event | None:
        count.value += 1
        return Event("poll", {"number": number - 1}) if number else None

    processor = await app.start()
    before = futures_alive()
    async for delta in processor.enqueue_stream_delta("a", Event("poll", {"number": 3000})):
        if delta["Count"]["value"] % 1000 == 0:
            most = max(most, futures_alive())
    assert most - before < 10


async def test_errors_along_a_chain_do_not_accumulate(app):
    """A handler that fails and was to chain has chained by its context."""

    @app.handler
    async def fail(ctx: EventContext, number: int) -> None:
        if number:
            await ctx.enqueue(Event("fail", {"number": number - 1}))
        raise TroubleError

    processor = await app.start(exception_handler=lambda error: None)
    before = futures_alive()
    root = await processor.enqueue("a", Event("fail", {"number": 3000}))
    with pytest.raises(TroubleError):
        await root.wait_all()
    assert sum(isinstance(f.exception(), TroubleError) for f in root.descendants()) == 3000
    del root
    await asyncio.sleep(0)
    assert futures_alive() == before


@pytest.mark.parametrize("first", ["head", "tail"])
@pytest.mark.parametrize("idents", [1, 50])
async def test_cancelled_events_in_a_row(app, first, idents):
    """They neither run nor recurse nor stay; the one after them runs."""
    ran = []
    gate, begun = asyncio.Event(), asyncio.Event()

    @app.handler
    async def wait(count: Count) -> None:
        begun.set()
        await gate.wait()

    @app.handler
    async def note(number: int) -> None:
        ran.append(number)

    async def run() -> None:
        gate.clear()
        begun.clear()
        holding = [processor.enqueue_nowait(f"i{n}", Event("wait")) for n in range(idents)]
        await begun.wait()
        futures = [
            processor.enqueue_nowait(f"i{n % idents}", Event("note", {"number": n}))
            for n in range(5000)
        ]
        last = processor.enqueue_nowait("i0", Event("note", {"number": -1}))
        for future in futures if first == "head" else reversed(futures):
            assert future.cancel()
        assert all(future.cancelled() for future in futures)
        gate.set()
        await asyncio.wait((last, *holding))
        assert ran.pop() == -1
        assert ran == []

    processor = await app.start()
    before = futures_alive()
    if (first, idents) != ("head", 1):  # to count bytes takes its time: once is enough
        await run()
    else:
        with Memory() as memory:
            await run()  # dicts that have grown once stay large
            memory.mark()
            await run()
            await asyncio.sleep(0)
            assert memory.grown() < SLACK
    assert futures_alive() == before


@pytest.mark.parametrize("how", ["runs", "is cancelled", "is stopped"])
async def test_a_future_that_is_kept_keeps_nothing_that_it_ran_with(app, how):
    """Only its event and its outcome: a handler that runs for long keeps those of its children."""
    kept = []

    @app.registry.payload
    @dataclass
    class Item:
        name: str = ""

    class Variable: ...

    variable: ContextVar[Variable] = ContextVar("variable")

    @app.handler
    async def take(item: Item) -> None:
        kept.extend(map(weakref.ref, (item, asyncio.current_task())))

    def enqueue() -> EventFuture:
        of_request = Variable()
        kept.append(weakref.ref(of_request))
        variable.set(of_request)
        return processor.enqueue_nowait("a", Event("take", {"item": {"name": "tea"}}))

    @app.handler
    async def hold() -> None:
        await asyncio.Event().wait()

    processor = await app.start()
    if how != "runs":
        processor.enqueue_nowait("a", Event("hold"))
    future = copy_context().run(enqueue)
    if how == "is cancelled":
        future.cancel()
    elif how == "is stopped":
        await processor.stop(0)
    await asyncio.wait((future,))
    await asyncio.sleep(0)
    gc.collect()
    assert len(kept) == (3 if how == "runs" else 1)
    assert [ref() for ref in kept] == [None] * len(kept)
    assert future.event.payload == {"item": {"name": "tea"}}


async def test_cancelled_events_in_a_row_with_nothing_before_them(app):
    """Each is about to start when it is cancelled."""
    ran = []

    @app.handler
    async def note(number: int) -> None:
        ran.append(number)

    processor = await app.start()
    futures = [
        processor.enqueue_nowait("a", Event("note", {"number": number})) for number in range(5000)
    ]
    for future in futures[:-1]:
        future.cancel()
    await futures[-1]
    assert ran == [4999]


async def test_cancelled_while_the_head_of_the_queue_is_cancelled(app):
    """A done callback that cancels the next one: 5,000 deep it would be a recursion."""

    @app.handler
    async def note(number: int) -> None: ...

    processor = await app.start()
    futures = [
        processor.enqueue_nowait("a", Event("note", {"number": number})) for number in range(5000)
    ]
    for one, after in itertools.pairwise(futures):
        one.add_done_callback(lambda _, after=after: after.cancel())
    futures[0].cancel()
    async with asyncio.timeout(SOON):
        await asyncio.wait(futures)
    assert futures[0].cancelled()


# Cancelling a chain


async def test_cancel_reaches_all_that_came_of_an_event(app, settle):
    """What waits, what runs, what is of other idents; and what they would chain yet."""
    ran = []
    begun = asyncio.Event()

    @app.handler
    async def root(ctx: EventContext) -> None:
        await ctx.enqueue(Event("running"), ident="b")
        await ctx.enqueue(Event("queued"), ident="b")
        await ctx.enqueue(Event("queued"))

    @app.handler
    async def running(ctx: EventContext) -> Event:
        try:
            begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await ctx.enqueue(Event("queued"), ident="c")
        return Event("queued")

    @app.handler
    async def queued() -> None:
        ran.append("queued")

    @app.handler
    async def block() -> None:
        await begun.wait()
        await asyncio.sleep(0)
        future.cancel()

    processor = await app.start()
    future = await processor.enqueue("a", Event("root"))
    blocking = await processor.enqueue("a", Event("block"))
    await settle(blocking)
    await settle(future, *future.descendants())
    assert future.result() is None
    first, *others = future.children
    assert first.result() is None  # it refused
    assert all(one.cancelled() for one in [*others, *first.children])
    assert len(first.children) == 2
    assert ran == []
    assert not future.cancel()


async def test_cancel_does_not_reach_the_event_that_chained(app, settle):
    gate = asyncio.Event()

    @app.handler
    async def parent(ctx: EventContext) -> int:
        (await ctx.enqueue(Event("child"))).cancel()
        await gate.wait()
        return 1

    @app.handler
    async def child() -> None: ...

    processor = await app.start()
    future = await processor.enqueue("a", Event("parent"))
    gate.set()
    assert await future.wait_all() == 1
    assert future.children[0].cancelled()


@pytest.mark.parametrize("how", ["cancel", "stop"])
async def test_cancelling_handlers_that_wait_for_each_other(app, how, monkeypatch):
    """Each waits for the next: the work grows with their number, and nothing recurses."""
    depth = sys.getrecursionlimit() + 200
    begun = asyncio.Event()
    calls = gone_through = 0
    descendants = EventFuture.descendants

    def counted(self: EventFuture) -> Iterator[EventFuture]:
        nonlocal gone_through
        for future in descendants(self):
            gone_through += 1
            yield future

    @app.handler
    async def down(ctx: EventContext, number: int) -> None:
        nonlocal calls
        try:
            if number:
                await (await ctx.enqueue(Event("down", {"number": number - 1}), ident=f"i{number}"))
            else:
                begun.set()
                await asyncio.Event().wait()
        finally:
            calls += 1

    processor = await app.start()
    root = await processor.enqueue("a", Event("down", {"number": depth}))
    await begun.wait()
    with monkeypatch.context() as patched:
        patched.setattr(EventFuture, "descendants", counted)
        if how == "cancel":
            root.cancel()
        else:
            await processor.stop(0)
        async with asyncio.timeout(SOON):
            await asyncio.wait([root, *descendants(root)])
    assert gone_through <= depth
    assert root.cancelled()
    assert all(future.cancelled() for future in root.descendants())
    assert calls == depth + 1


async def test_stopping_handlers_that_wait_in_a_circle(app):
    """They can make one by the futures that they hand around: then only a deadline ends them."""
    futures: dict[str, EventFuture] = {}
    waiting = 0

    @app.handler
    async def wait_for(other: str) -> None:
        nonlocal waiting
        waiting += 1
        await futures[other]

    processor = await app.start()
    for ident, other in (("a", "b"), ("b", "c"), ("c", "a")):
        futures[ident] = await processor.enqueue(ident, Event("wait_for", {"other": other}))
    while waiting < 3:  # noqa: ASYNC110
        await asyncio.sleep(0)
    async with asyncio.timeout(SOON):
        await processor.stop(0)
    assert all(future.cancelled() for future in futures.values())
    for _ in range(5):
        await asyncio.sleep(0)


# Superseding


class Search:
    """Handlers of which the newest chain counts."""

    def __init__(self, app) -> None:
        self.ran: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

        @app.handler(supersedes=True)
        async def search(ctx: EventContext, text: str) -> Event:
            self.ran.append(f"search {text}")
            await self.gate(f"search {text}").wait()
            return Event("show", {"text": text})

        @app.handler
        async def show(text: str) -> Event:
            self.ran.append(f"show {text}")
            await self.gate(f"show {text}").wait()
            return Event("log", {"text": text})

        @app.handler
        async def log(text: str) -> None:
            self.ran.append(f"log {text}")

        @app.handler(background=True)
        async def type_in(ctx: EventContext, text: str) -> Event:
            await self.gate(f"type {text}").wait()
            return Event("search", {"text": text})

        @app.handler(supersedes=True)
        async def other(text: str) -> None:
            self.ran.append(f"other {text}")

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())


def text(name: str, value: str) -> Event:
    return Event(name, {"text": value})


async def test_the_newest_chain_cancels_older_ones_that_run_or_wait(app, settle, turns):
    search = Search(app)
    processor = await app.start()
    running = await processor.enqueue("a", text("search", "1"))
    await turns(3)
    queued = [await processor.enqueue("a", text("search", str(n))) for n in (2, 3)]
    newest = await processor.enqueue("a", text("search", "4"))
    assert [future.cancelled() for future in queued] == [True, True]
    await settle(running)
    assert running.cancelled()
    for name in ("search 4", "show 4"):
        search.gate(name).set()
    assert await newest.wait_all() is None
    assert search.ran == ["search 1", "search 4", "show 4", "log 4"]
    app.check_nothing_is_left()


@pytest.mark.parametrize("moment", ["show runs", "show waits"])
async def test_what_came_of_an_older_one_is_cancelled_too(app, settle, turns, moment):
    search = Search(app)
    search.gate("search 1").set()
    processor = await app.start()
    old = await processor.enqueue("a", text("search", "1"))
    if moment == "show waits":
        await processor.enqueue("a", text("show", "before"))
    while not old.children:  # noqa: ASYNC110
        await asyncio.sleep(0)
    if moment == "show runs":
        await turns(3)
    search.gate("search 2").set()
    search.gate("show 2").set()
    search.gate("show before").set()
    newest = await processor.enqueue("a", text("search", "2"))
    await settle(newest)
    await newest.wait_all()
    await settle(*old.descendants(), newest)
    assert old.result() is None
    assert [child.cancelled() for child in old.descendants()] == [True]
    assert "log 1" not in search.ran
    assert search.ran[-1] == "log 2"


async def test_other_idents_and_other_handlers_are_not_superseded(app, turns):
    search = Search(app)
    for name in ("search 1", "show 1", "search 2", "show 2"):
        search.gate(name).set()
    processor = await app.start()
    futures = [
        await processor.enqueue("a", text("search", "1")),
        await processor.enqueue("b", text("search", "2")),
        await processor.enqueue("a", text("other", "3")),
        await processor.enqueue("b", text("show", "2")),
    ]
    await asyncio.gather(*(future.wait_all() for future in futures))
    assert not any(future.cancelled() for future in futures)


async def test_what_a_chain_did_before_is_not_superseded(app, settle, turns):
    """Only its part from the handler on."""
    search = Search(app)
    search.gate("type 1").set()
    processor = await app.start()
    old = await processor.enqueue("a", text("type_in", "1"))
    beside = await processor.enqueue("a", text("log", "beside"))
    await turns(5)
    newest = await processor.enqueue("a", text("search", "2"))
    await settle(*old.descendants(), old, beside)
    assert old.result() is None
    assert old.children[0].cancelled()
    assert beside.result() is None
    newest.cancel()


async def test_an_older_chain_that_comes_late_is_dropped(app, settle, turns):
    """It began before the newest one, though it gets to the handler after that."""
    search = Search(app)
    processor = await app.start()
    old = await processor.enqueue("a", text("type_in", "old"))
    new = await processor.enqueue("a", text("type_in", "new"))
    search.gate("type new").set()
    await settle(new)
    await turns(3)
    assert search.ran == ["search new"]
    search.gate("type old").set()
    await settle(old)
    assert [child.cancelled() for child in old.children] == [True]
    search.gate("search new").set()
    search.gate("show new").set()
    await new.wait_all()
    assert search.ran == ["search new", "show new", "log new"]


async def test_a_chain_does_not_supersede_itself(app):
    ran = []

    @app.handler(supersedes=True)
    async def again(number: int) -> Event | None:
        ran.append(number)
        return Event("again", {"number": number - 1}) if number else None

    processor = await app.start()
    future = await processor.enqueue("a", Event("again", {"number": 5}))
    await future.wait_all()
    assert ran == [5, 4, 3, 2, 1, 0]
    assert not any(one.cancelled() for one in future.descendants())


async def test_a_superseded_handler_that_refuses_chains_nothing(app, settle):
    """It has its result, for what that is worth."""
    begun = asyncio.Event()
    ran = []

    @app.handler(supersedes=True)
    async def stubborn(count: Count, number: int) -> Event:
        count.value += 1
        if number == 1:
            begun.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return Event("after", {"number": number})

    @app.handler
    async def after(number: int) -> None:
        ran.append(number)

    processor = await app.start()
    old = await processor.enqueue("a", Event("stubborn", {"number": 1}))
    await begun.wait()
    new = await processor.enqueue("a", Event("stubborn", {"number": 2}))
    await new.wait_all()
    await settle(old)
    assert old.committed
    assert [child.cancelled() for child in old.children] == [True]
    assert ran == [2]
    assert (await app.manager.get_state(StateToken("a", Count))).value == 2


async def test_superseding_an_event_that_waits_for_room(app, turns):
    """Whoever waits for room gets the future, which is cancelled."""
    search = Search(app)
    processor = await app.start(max_queued_per_ident=1)
    holding = await processor.enqueue("a", text("show", "1"))
    outside = asyncio.create_task(processor.enqueue("a", text("search", "2")))
    await turns(2)
    newest = asyncio.create_task(processor.enqueue("a", text("search", "3")))
    async with asyncio.timeout(SOON):
        assert (await outside).cancelled()
    for name in ("show 1", "search 3", "show 3"):
        search.gate(name).set()
    await holding.wait_all()
    await (await newest).wait_all()
    assert search.ran == ["show 1", "log 1", "search 3", "show 3", "log 3"]


async def test_many_superseded_ones(app):
    """Of 2,000 the last one is left; nothing is kept of the others."""
    ran = []

    @app.handler(supersedes=True)
    async def latest(count: Count, number: int) -> AsyncIterator[None]:
        ran.append(number)
        yield
        await asyncio.sleep(0)
        count.value = number

    processor: EventProcessor = await app.start()
    futures = []
    for number in range(2000):
        futures.append(processor.enqueue_nowait("a", Event("latest", {"number": number})))
        if number % 3 == 0:
            await asyncio.sleep(0)
    await processor.stop()
    assert [future.cancelled() for future in futures] == [True] * 1999 + [False]
    assert (await app.manager.get_state(StateToken("a", Count))).value == 1999
    assert app.client("a") == {"Count": {"value": 1999}}
    app.check_nothing_is_left()


async def test_a_chain_that_is_over_keeps_none_of_what_it_would_have_been_superseded_by(app):
    """Its futures would keep, of each ident on the way, a list that grows with the way."""

    @app.handler(supersedes=True)
    async def hop(ctx: EventContext, left: int) -> None:
        if left:
            ctx.enqueue_nowait(Event("hop", {"left": left - 1}), ident=f"i{left}")

    processor = await app.start()
    root = await processor.enqueue("a", Event("hop", {"left": 20}))
    await root.wait_all()
    gc.collect()
    assert sum(1 for _ in root.descendants()) == 20
    assert not any(isinstance(thing, Scope) for thing in gc.get_objects())


async def test_a_listener_that_supersedes_from_inside(app):
    """It is told of a superseded event, and enqueues a newer one than that which superseded it."""
    ran = []

    @app.handler(supersedes=True)
    async def latest(number: int) -> None:
        ran.append(number)
        await asyncio.sleep(0)
        ran.append(-number)

    class Enqueuer(EventListener):
        def failed(self, context: EventContext, error: BaseException, seconds: float) -> None:
            if len(futures) == 1:
                futures.append(processor.enqueue_nowait("a", Event("latest", {"number": 3})))

    processor: EventProcessor = await app.start(listener=Enqueuer())
    futures = [processor.enqueue_nowait("a", Event("latest", {"number": 1}))]
    futures.append(processor.enqueue_nowait("a", Event("latest", {"number": 2})))
    await processor.stop()
    first, newest, second = futures
    assert first.cancelled()
    assert second.cancelled()
    assert newest.result() is None
    assert ran == [3, -3]
