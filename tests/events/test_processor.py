"""What a processor runs, what its futures tell, and what it keeps apart."""

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pytest

from statemgr import StateManagerMemory, StateToken
from statemgr.errors import (
    EventDeadlockError,
    EventHandlerError,
    EventProcessorStoppedError,
    LockTimeoutError,
    WrongLoopError,
)
from statemgr.events import (
    Event,
    EventContext,
    EventFuture,
    EventListener,
    EventProcessor,
    RegistrationContext,
)

from .conftest import SOON


@dataclass
class Cart:
    items: dict[str, int] = field(default_factory=dict)


@dataclass
class Account:
    balance: int = 100


async def once(app: Any, name: str, payload: dict[str, Any] | None = None, **options: Any) -> Any:
    processor = await app.start(**options)
    future = await processor.enqueue("a", Event(name, payload or {}))
    async with asyncio.timeout(SOON):
        return await future.wait_all()


# Handlers of each kind


async def test_a_function(app):
    @app.handler
    def add(a: int, b: int = 2) -> int:
        return a + b

    assert await once(app, "add", {"a": 1}) == 3


async def test_a_coroutine_function(app):
    @app.handler
    async def add(a: int, b: int = 2) -> int:
        await asyncio.sleep(0)
        return a + b

    assert await once(app, "add", {"a": 1, "b": 5}) == 6


async def test_a_function_that_returns_an_awaitable(app):
    @app.handler
    def add(a: int) -> Any:
        async def later() -> int:
            return a + 1

        return later()

    assert await once(app, "add", {"a": 1}) == 2


async def test_a_generator_has_a_result(app):
    @app.handler
    def work(cart: Cart) -> Iterator[None]:
        cart.items["tea"] = 1
        yield
        return "result"

    assert await once(app, "work") == "result"


async def test_an_async_generator(app):
    @app.handler
    async def work(cart: Cart) -> AsyncIterator[None]:
        for number in range(3):
            cart.items["tea"] = number
            yield
            await asyncio.sleep(0)

    assert await once(app, "work") is None
    assert [d["Cart"]["items"]["tea"] for _, d in app.deltas] == [0, 1, 2]


async def test_objects_and_partials(app):
    class Adder:
        async def __call__(self, a: int) -> int:
            return a + 10

        async def method(self, a: int) -> int:
            return a + 20

    async def add(a: int, b: int) -> int:
        return a + b

    app.registry.handler(Adder(), name="object")
    app.registry.handler(Adder().method, name="method")
    app.registry.handler(functools.partial(add, b=30), name="partial")
    assert await once(app, "object", {"a": 1}) == 11
    assert await once(app, "method", {"a": 1}) == 21
    assert await once(app, "partial", {"a": 1}) == 31


async def test_a_thread(app):
    """It runs outside of the loop's thread; the loop goes on, and its ident waits."""
    here = threading.get_ident()
    release = threading.Event()

    @app.handler(thread=True)
    def block(cart: Cart, ctx: EventContext) -> tuple[int, str]:
        release.wait(5)
        cart.items["tea"] = 1
        return threading.get_ident(), EventContext.get().txid + ctx.txid

    @app.handler
    async def behind(cart: Cart) -> dict[str, int]:
        return dict(cart.items)

    processor = await app.start()
    future = await processor.enqueue("a", Event("block"))
    after = await processor.enqueue("a", Event("behind"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not after.done()
    release.set()
    thread, ids = await future
    assert thread != here
    assert ids == future.txid * 2
    assert await after == {"tea": 1}


@pytest.mark.parametrize("kind", ["coroutine", "async_generator", "generator"])
async def test_a_thread_for_what_only_looks_like_an_ordinary_function(app, kind):
    """A decorator's function hides what it wraps: what it returns nobody would run."""
    ran = []

    async def coroutine(n: int) -> None:
        ran.append(n)

    async def async_generator(n: int) -> AsyncIterator[None]:
        ran.append(n)
        yield

    def generator(n: int) -> Iterator[None]:
        ran.append(n)
        yield

    @app.handler(name="call", thread=True)
    @functools.wraps(fn := locals()[kind])
    def wrapper(**arguments: Any) -> Any:
        return fn(**arguments)

    processor = await app.start()
    future = await processor.enqueue("a", Event("call", {"n": 1}))
    with pytest.raises(EventHandlerError, match=kind):
        await future
    assert ran == []


async def test_a_thread_cannot_chain_by_its_context(app):
    """The loop is another thread's: it says so, in place of a chain that begins some day."""

    @app.handler(thread=True)
    def chain(ctx: EventContext) -> Event:
        with pytest.raises(WrongLoopError):
            ctx.enqueue_nowait(Event("after"), ident="b")
        return Event("after")

    @app.handler
    async def after() -> str:
        return "ran"

    processor = await app.start()
    future = await processor.enqueue("a", Event("chain"))
    await future.wait_all()
    assert [child.result() for child in future.children] == ["ran"]


async def test_several_states_under_one_lock(app):
    @app.handler
    async def buy(cart: Cart, account: Account, item: str, price: int) -> None:
        cart.items[item] = 1
        await asyncio.sleep(0)
        account.balance -= price

    await once(app, "buy", {"item": "tea", "price": 30})
    assert app.deltas == [("a", {"Cart": {"items": {"tea": 1}}, "Account": {"balance": 70}})]
    states = await app.manager.get_states(StateToken("a", Cart), StateToken("a", Account))
    assert states == (Cart({"tea": 1}), Account(70))


async def test_several_states_are_saved_all_or_none(app):
    @app.handler
    async def fail(cart: Cart, account: Account) -> None:
        cart.items["tea"] = 1
        account.balance = 0
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await once(app, "fail")
    states = await app.manager.get_states(StateToken("a", Cart), StateToken("a", Account))
    assert states == (Cart(), Account())


# Background handlers


async def test_background_handlers_take_the_lock_where_they_need_it(app):
    """Changes of several of them and of queued events are not lost."""

    @app.handler(background=True)
    async def beside(ctx: EventContext) -> None:
        for _ in range(5):
            async with ctx.modify(Account) as account:
                before = account.balance
                await asyncio.sleep(0)
                account.balance = before + 1
            await asyncio.sleep(0)

    @app.handler
    async def queued(account: Account) -> None:
        before = account.balance
        await asyncio.sleep(0)
        account.balance = before + 1

    processor = await app.start()
    for _ in range(10):
        await processor.enqueue("a", Event("beside"))
        await processor.enqueue("a", Event("queued"))
    await processor.stop()
    account = await app.manager.get_state(StateToken("a", Account))
    assert account.balance == 100 + 50 + 10
    assert [d["Account"]["balance"] for _, d in app.deltas] == list(range(101, 161))


async def test_modify_of_several_classes(app):
    @app.handler(background=True)
    async def beside(ctx: EventContext) -> None:
        async with ctx.modify(Cart, Account) as (cart, account):
            cart.items["tea"] = 1
            account.balance = 1

    await once(app, "beside")
    assert app.deltas == [("a", {"Cart": {"items": {"tea": 1}}, "Account": {"balance": 1}})]


async def test_modify_has_a_timeout(app):
    @app.handler(background=True)
    async def beside(ctx: EventContext) -> None:
        async with ctx.modify(Cart, timeout=0):
            pass

    async with app.manager.modify_state(StateToken("a", Account)):
        with pytest.raises(LockTimeoutError):
            await once(app, "beside")


async def test_modify_works_while_the_event_runs(app):
    """Not in a task that a handler has left behind: its event is over."""
    tasks = []
    gate = asyncio.Event()

    @app.handler
    async def leave(ctx: EventContext) -> None:
        async def later() -> None:
            await gate.wait()
            ctx.modify(Cart)

        tasks.append(asyncio.create_task(later()))

    await once(app, "leave")
    gate.set()
    with pytest.raises(EventHandlerError):
        await tasks[0]


async def test_a_task_that_was_left_behind_can_chain(app):
    """Its events are a chain of their own, whose parent is known; not after stop()."""
    gate = asyncio.Event()
    tasks = []

    @app.handler
    async def leave(ctx: EventContext) -> None:
        async def later() -> EventFuture:
            await gate.wait()
            return await ctx.enqueue(Event("after"))

        tasks.extend([asyncio.create_task(later()), asyncio.create_task(later())])

    @app.handler
    async def after() -> str:
        return "ran"

    processor = await app.start()
    root = await processor.enqueue("a", Event("leave"))
    await root
    tasks.pop().cancel()
    gate.set()
    chained = await tasks[0]
    assert await chained == "ran"
    assert chained.parent_txid == root.txid
    assert root.children == ()
    await processor.stop()
    with pytest.raises(EventProcessorStoppedError):
        await chained._context.enqueue(Event("after"))


# Futures


async def test_a_future_knows_its_event(app):
    @app.handler
    async def parent(ctx: EventContext) -> str:
        await ctx.enqueue(Event("child"))
        await ctx.enqueue(Event("child"), ident="b")
        return ctx.txid

    @app.handler
    async def child(ctx: EventContext) -> Event | None:
        return Event("leaf") if ctx.ident == "b" else None

    @app.handler
    async def leaf() -> None: ...

    processor = await app.start()
    event = Event("parent", {})
    future = await processor.enqueue("a", event)
    assert future.event is event
    assert future.ident == "a"
    assert future.parent_txid is None
    assert await future.wait_all() == future.txid
    assert [child.ident for child in future.children] == ["a", "b"]
    assert [child.parent_txid for child in future.children] == [future.txid] * 2
    assert [f.event.name for f in future.descendants()] == ["child", "child", "leaf"]
    assert not future.committed
    assert len({f.txid for f in [future, *future.descendants()]}) == 4


async def test_wait_all_raises_its_own_error_only(app):
    @app.handler
    async def parent(fails: bool) -> Event:
        ctx = EventContext.get()
        if fails:
            await ctx.enqueue(Event("child"))
            raise ZeroDivisionError("parent")
        return Event("child")

    @app.handler
    async def child() -> None:
        raise ZeroDivisionError("child")

    assert await once(app, "parent", {"fails": False}) is None
    with pytest.raises(ZeroDivisionError, match="parent"):
        await once(app, "parent", {"fails": True})
    assert [str(error) for error in app.errors] == ["child", "parent", "child"]


async def test_cancelling_wait_all_only_stops_the_waiting(app):
    gate = asyncio.Event()

    @app.handler
    async def parent() -> Event:
        return Event("child")

    @app.handler
    async def child() -> int:
        await gate.wait()
        return 1

    processor = await app.start()
    future = await processor.enqueue("a", Event("parent"))
    waiting = asyncio.create_task(future.wait_all())
    await future
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert waiting.cancelled()
    gate.set()
    assert await future.children[0] == 1


@pytest.fixture
async def slow(app):
    """Run a handler that takes as long as it is let; tell how it ends."""
    ended = []
    app.begun = asyncio.Event()
    app.gate = asyncio.Event()

    @app.handler
    async def slow(cart: Cart) -> str:
        try:
            app.begun.set()
            await app.gate.wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        ended.append("done")
        return "result"

    app.processor = await app.start()
    return ended


async def test_awaiting_it_and_being_cancelled_cancels_the_event(app, slow):
    future = await app.processor.enqueue("a", Event("slow"))

    async def wait() -> None:
        await future

    waiting = asyncio.create_task(wait())
    await app.begun.wait()
    waiting.cancel()
    await asyncio.wait((waiting, future))
    assert waiting.cancelled()
    assert future.cancelled()
    assert slow == ["cancelled"]


async def test_shield_keeps_the_event(app, slow):
    future = await app.processor.enqueue("a", Event("slow"))

    async def wait() -> None:
        await asyncio.shield(future)

    waiting = asyncio.create_task(wait())
    await app.begun.wait()
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert waiting.cancelled()
    app.gate.set()
    assert await future == "result"
    assert slow == ["done"]


@pytest.mark.parametrize("how", ["wait_for", "timeout"])
async def test_a_timeout_around_it_cancels_the_event(app, slow, how):
    """And waits until its handler has ended."""
    future = await app.processor.enqueue("a", Event("slow"))
    await app.begun.wait()
    with pytest.raises(TimeoutError):
        if how == "wait_for":
            await asyncio.wait_for(future, 0.01)
        else:
            async with asyncio.timeout(0.01):
                await future
    assert future.cancelled()
    assert slow == ["cancelled"]


async def test_wait_for_that_is_not_too_late(app, slow):
    future = await app.processor.enqueue("a", Event("slow"))
    app.gate.set()
    assert await asyncio.wait_for(future, 5) == "result"


async def test_gather(app, slow):
    """It collects results and errors, and a cancel of it cancels them all."""

    @app.handler
    async def fail() -> None:
        raise ZeroDivisionError

    futures = [
        await app.processor.enqueue(ident, Event(name))
        for ident, name in [("a", "slow"), ("b", "fail"), ("c", "slow")]
    ]
    together = asyncio.gather(*futures, return_exceptions=True)
    app.gate.set()
    first, error, last = await together
    assert (first, last) == ("result", "result")
    assert isinstance(error, ZeroDivisionError)

    app.gate.clear()
    app.begun.clear()
    futures = [await app.processor.enqueue(ident, Event("slow")) for ident in "ab"]
    together = asyncio.gather(*futures)
    await app.begun.wait()
    together.cancel()
    await asyncio.wait(futures)
    assert all(future.cancelled() for future in futures)


async def test_a_task_group_can_wait_for_it(app, slow):
    async def wait() -> str:
        return await (await app.processor.enqueue("a", Event("slow")))

    async with asyncio.TaskGroup() as group:
        task = group.create_task(wait())
        app.gate.set()
    assert task.result() == "result"


async def test_done_callbacks_and_several_waiters(app, slow):
    future = await app.processor.enqueue("a", Event("slow"))
    called = []
    future.add_done_callback(called.append)
    waiting = [asyncio.create_task(future.wait_all()) for _ in range(3)]
    app.gate.set()
    assert await asyncio.gather(*waiting) == ["result"] * 3
    assert called == [future]


async def test_the_next_one_runs_before_who_waits_can_block_it(app):
    """A done callback that raises is the loop's to tell, and changes nothing."""
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))

    @app.handler
    async def one(number: int) -> int:
        return number

    def fail(future: EventFuture) -> None:
        raise ZeroDivisionError

    processor = await app.start()
    futures = [await processor.enqueue("a", Event("one", {"number": n})) for n in range(3)]
    for future in futures:
        future.add_done_callback(fail)
    assert await asyncio.gather(*futures) == [0, 1, 2]
    assert len(told) == 3


async def test_its_text_shows_no_values(app, slow):
    future = await app.processor.enqueue("a", Event("missing", {"password": "secret"}))
    assert "secret" not in repr(future)
    assert "secret" not in repr(app.errors)


# Deadlocks


@pytest.mark.parametrize("how", ["await", "wait_all", "gather of tasks"])
async def test_a_handler_cannot_wait_for_an_event_behind_it(app, how):
    """It is told at once; the event that it chained runs."""
    ran = []

    @app.handler
    async def waits(ctx: EventContext) -> None:
        child = await ctx.enqueue(Event("child"))
        if how == "await":
            await child
        else:
            await child.wait_all()

    @app.handler
    async def child() -> None:
        ran.append("child")

    processor = await app.start()
    future = await processor.enqueue("a", Event("waits"))
    async with asyncio.timeout(SOON):
        with pytest.raises(EventDeadlockError):
            await future.wait_all()
    await processor.stop()
    assert ran == ["child"]


async def test_a_handler_cannot_wait_for_all_if_one_of_them_is_behind_it(app):
    @app.handler
    async def waits(ctx: EventContext) -> None:
        await (await ctx.enqueue(Event("elsewhere"), ident="b")).wait_all()

    @app.handler
    async def elsewhere(ctx: EventContext) -> None:
        await ctx.enqueue(Event("child"), ident="a")

    @app.handler
    async def child() -> None: ...

    processor = await app.start()
    future = await processor.enqueue("a", Event("waits"))
    async with asyncio.timeout(SOON):
        with pytest.raises(EventDeadlockError):
            await future


async def test_what_a_handler_can_wait_for(app):
    """An event of another ident, one in the background, one that is over."""

    @app.handler
    async def waits(ctx: EventContext) -> list[Any]:
        other = await ctx.enqueue(Event("child"), ident="b")
        beside = await ctx.enqueue(Event("beside"))
        over = await ctx.enqueue(Event("missing"))
        with contextlib.suppress(Exception):
            await over
        return [await other, await beside.wait_all()]

    @app.handler
    async def child(cart: Cart) -> str:
        return "child"

    @app.handler(background=True)
    async def beside() -> str:
        return "beside"

    assert await once(app, "waits") == ["child", "beside"]


async def test_a_background_handler_can_wait_for_events_of_its_ident(app):
    @app.handler(background=True)
    async def waits(ctx: EventContext) -> Any:
        return await (await ctx.enqueue(Event("child")))

    @app.handler
    async def child(cart: Cart) -> str:
        return "child"

    assert await once(app, "waits") == "child"


# What events do not share


variable: ContextVar[str] = ContextVar("variable", default="default")


async def test_context_variables_are_each_events_own(app):
    """An event begins with those of whoever enqueued it; what it sets is seen by what it chains."""
    seen = {}

    @app.handler
    async def first(cart: Cart) -> AsyncIterator[Event]:
        seen["first"] = variable.get()
        variable.set("set by first")
        yield Event("chained")

    @app.handler
    async def second() -> None:
        seen["second"] = variable.get()

    @app.handler
    async def chained() -> None:
        seen["chained"] = variable.get()

    @app.handler(thread=True)
    def thread() -> None:
        seen["thread"] = variable.get()
        variable.set("set by the thread")

    processor = await app.start()
    variable.set("outside")
    future = await processor.enqueue("a", Event("first"))
    variable.set("outside, later")
    for name in ("second", "thread", "second"):
        await (await processor.enqueue("a", Event(name)))
    await future.wait_all()
    assert variable.get() == "outside, later"
    assert seen == {
        "first": "outside",
        "second": "outside, later",
        "thread": "outside, later",
        "chained": "set by first",
    }


async def test_each_handler_finds_its_own_context(app):
    @app.handler
    async def parent(ctx: EventContext) -> Event:
        assert EventContext.get() is ctx
        await asyncio.sleep(0)
        assert EventContext.get() is ctx
        return Event("child")

    @app.handler
    async def child(ctx: EventContext) -> str:
        assert EventContext.get() is ctx
        return ctx.parent_txid or ""

    processor = await app.start()
    futures = [await processor.enqueue(f"i{n}", Event("parent")) for n in range(20)]
    for future in futures:
        await future.wait_all()
        assert await future.children[0] == future.txid
    with pytest.raises(LookupError):
        EventContext.get()


async def test_one_payload_for_many_events(app):
    """What a handler changes in its arguments of itself is no other event's, but for objects."""

    @app.handler
    async def change(numbers: list[int]) -> list[int]:
        numbers.append(len(numbers))
        return numbers

    processor = await app.start()
    event = Event("change", {"numbers": [1]})
    futures = [await processor.enqueue(ident, event) for ident in "ab"]
    assert await asyncio.gather(*futures) == [[1, 1], [1, 1]]
    assert event.payload == {"numbers": [1]}


# Starting, and what an ident and an event are


@pytest.mark.parametrize("ident", ["", 5, None, b"a"])
async def test_an_ident_is_a_string(app, ident):
    processor = await app.start()
    with pytest.raises(ValueError, match="ident"):
        await processor.enqueue(ident, Event("x"))
    with pytest.raises(ValueError, match="ident"):
        processor.enqueue_nowait(ident, Event("x"))
    with pytest.raises(ValueError, match="ident"):
        await anext(processor.enqueue_stream_delta(ident, Event("x")))


async def test_an_event_is_an_event(app):
    processor = await app.start()
    with pytest.raises(EventHandlerError):
        await processor.enqueue("a", "x")  # type: ignore[arg-type]


async def test_any_string_is_an_ident(app):
    @app.handler
    async def change(cart: Cart) -> None:
        cart.items["tea"] = 1

    processor = await app.start()
    idents = ["a/b", "{}", "..", "\n", "\0", "\ud800", "x" * 10_000, "ä"]
    for ident in idents:
        await (await processor.enqueue(ident, Event("change")))
    assert [ident for ident, _ in app.deltas] == idents


async def test_the_registry_may_come_from_its_context(app):
    @app.handler
    async def one() -> int:
        return 1

    with app.registry:
        processor = EventProcessor(app.manager)
    async with processor:
        assert await (await processor.enqueue("a", Event("one"))) == 1
    with pytest.raises(LookupError):
        EventProcessor(app.manager)


async def test_handlers_may_be_registered_while_it_runs(app):
    processor = await app.start()

    @app.handler
    async def late() -> int:
        return 1

    assert await (await processor.enqueue("a", Event("late"))) == 1


async def test_snapshot(app):
    """All fields, as deltas have them."""

    @app.handler
    async def change(account: Account) -> None:
        account.balance = 7

    await once(app, "change")
    whole = await app.processors[0].snapshot("a", Account, Cart)
    assert whole == {"Account": {"balance": 7}, "Cart": {"items": {}}}


async def test_snapshots_are_of_committed_states(app):
    """One that is taken in the middle of a handler shows nothing of it."""
    begun, gate = asyncio.Event(), asyncio.Event()

    @app.handler
    async def change(account: Account) -> None:
        account.balance = 7
        begun.set()
        await gate.wait()

    processor = await app.start()
    future = await processor.enqueue("a", Event("change"))
    await begun.wait()
    assert await processor.snapshot("a", Account) == {"Account": {"balance": 100}}
    gate.set()
    await future


async def test_without_emit_delta_nothing_is_told(app):
    @app.handler
    async def change(account: Account) -> AsyncIterator[None]:
        account.balance = 7
        yield

    await once(app, "change", emit_delta=None)
    assert (await app.manager.get_state(StateToken("a", Account))).balance == 7


async def test_emit_event(app):
    """It sends events to the ident's client; without emit_event it does nothing."""
    sent = []

    @app.handler
    async def send(ctx: EventContext) -> None:
        await ctx.emit_event(Event("x"), Event("y", {"z": 1}))

    async def emit(ident: str, *events: Event) -> None:
        await asyncio.sleep(0)
        sent.append((ident, events))

    await once(app, "send")
    await once(app, "send", emit_event=emit)
    assert sent == [("a", (Event("x"), Event("y", {"z": 1})))]


class Recorder(EventListener):
    """Write down each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.seconds: list[float] = []

    def enqueued(self, context: EventContext) -> None:
        self.calls.append(("enqueued", context.name))

    def started(self, context: EventContext, seconds: float) -> None:
        self.calls.append(("started", context.name))
        self.seconds.append(seconds)

    def waited(self, context: EventContext, seconds: float) -> None:
        self.calls.append(("waited", context.name))
        self.seconds.append(seconds)

    def committed(self, context: EventContext, seconds: float) -> None:
        self.calls.append(("committed", context.name))
        self.seconds.append(seconds)

    def finished(self, context: EventContext, seconds: float) -> None:
        self.calls.append(("finished", context.name))
        self.seconds.append(seconds)

    def failed(self, context: EventContext, error: BaseException, seconds: float) -> None:
        self.calls.append((f"failed {type(error).__name__}", context.name))
        self.seconds.append(seconds)


async def test_a_listener_is_told_the_whole_life_of_an_event(app):
    @app.handler
    async def change(account: Account) -> Event:
        account.balance = 7
        return Event("fail")

    @app.handler
    async def fail(account: Account) -> None:
        raise ZeroDivisionError

    recorder = Recorder()
    processor = await app.start(listener=recorder)
    await (await processor.enqueue("a", Event("change"))).wait_all()
    future = await processor.enqueue("a", Event("change"))
    future.cancel()
    await processor.enqueue("a", Event("missing"))
    lifes: dict[str, list[str]] = {}
    for call, name in recorder.calls:
        lifes.setdefault(name, []).append(call)
    assert lifes == {
        "change": [
            *("enqueued", "started", "waited", "committed", "finished"),
            *("enqueued", "failed CancelledError"),
        ],
        "fail": ["enqueued", "started", "waited", "failed ZeroDivisionError"],
        "missing": ["enqueued", "failed UnknownEventError"],
    }
    assert all(0 <= seconds < 60 for seconds in recorder.seconds)


async def test_two_processors_of_one_registry_do_not_know_each_other(app):
    @app.handler(supersedes=True)
    async def wait() -> None:
        await asyncio.Event().wait()

    one, other = await app.start(), await app.start()
    first = await one.enqueue("a", Event("wait"))
    second = await other.enqueue("a", Event("wait"))
    await one.stop(0)
    assert first.cancelled()
    assert not second.done()


def test_a_processor_that_nobody_stopped():
    """A program that ends without stop() ends: with its loop goes what has not run."""

    async def main() -> None:
        registry = RegistrationContext()

        @registry.handler
        async def wait() -> None:
            await asyncio.Event().wait()

        processor = EventProcessor(StateManagerMemory(), registry)
        await processor.start()
        futures.append(await processor.enqueue("a", Event("wait")))
        await asyncio.sleep(0)

    futures: list[EventFuture] = []
    asyncio.run(main())
    assert futures[0].cancelled()
