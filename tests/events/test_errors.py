"""Each error ends its own event, is reported once, and the next event runs."""

import asyncio
import contextlib
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis

from statemgr import StateManagerMemory, StateManagerRedis, StateToken
from statemgr.errors import (
    CommitUncertainError,
    EventHandlerError,
    EventPayloadError,
    EventTimeoutError,
    LockExpiredError,
    LockReentryError,
    StateEncodeError,
    UnknownEventError,
)
from statemgr.events import Event, EventContext, EventListener, body
from statemgr.modification import StateModification
from statemgr.testing.servers import DEFAULT
from tests.redis_backend.stores import server_url

from .conftest import SOON


class TroubleError(Exception):
    """What handlers fail with here."""


class Worse(BaseException):
    """What is no Exception."""


@dataclass
class Cart:
    count: int = 0
    note: Any = ""


@pytest.fixture(autouse=True)
def next_one(app: Any) -> None:
    """Register what runs after the trouble."""

    @app.handler
    async def next_one(cart: Cart) -> int:
        cart.count += 10
        return cart.count


async def ends(
    app: Any, event: Event, error: type[BaseException], *, count: int = 0, **options: Any
) -> BaseException:
    """Run an event that ends with an error, and one after it; `count` is what the first saves."""
    processor = await app.start(**options)
    future = await processor.enqueue("a", event)
    behind = await processor.enqueue("a", Event("next_one"))
    elsewhere = await processor.enqueue("b", Event("next_one"))
    async with asyncio.timeout(SOON):
        await asyncio.wait((future, behind, elsewhere))
    assert behind.result() == count + 10
    assert elsewhere.result() == 10
    found = future.exception()
    assert type(found) is error
    assert app.errors == [found]
    await processor.stop()
    stored = await app.manager.get_state(StateToken("a", Cart))
    assert stored.count == count + 10
    if "emit_delta" not in options:
        assert app.client("a")["Cart"]["count"] == stored.count
    app.check_nothing_is_left()
    return found


# Before it runs


async def test_an_unknown_event(app):
    found = await ends(app, Event("missing"), UnknownEventError)
    assert found.name == "missing"


@pytest.mark.parametrize(
    ("payload", "field"),
    [({}, "number"), ({"number": "three"}, "number"), ({"number": 3, "rest": 1}, "rest")],
)
async def test_a_bad_payload(app, payload, field):
    @app.handler
    async def take(number: int) -> None: ...

    found = await ends(app, Event("take", payload), EventPayloadError)
    assert found.field == field


async def test_a_bad_event_is_settled_before_those_that_wait(app):
    """It is not queued, and takes no room."""
    begun = asyncio.Event()

    @app.handler
    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    processor = await app.start(max_queued=2)
    processor.enqueue_nowait("a", Event("wait"))
    await begun.wait()
    for enqueued in (
        processor.enqueue_nowait("a", Event("missing")),
        await processor.enqueue("a", Event("wait", {"x": 1})),
    ):
        assert enqueued.done()
        assert not enqueued.cancelled()
    assert len(app.errors) == 2


async def test_bad_events_that_are_chained(app):
    """The event that chained them is done; they have failed."""

    @app.handler
    async def chain(cart: Cart) -> list[Event]:
        cart.count = 1
        return [Event("missing"), Event("next_one", {"x": 1}), Event("next_one")]

    processor = await app.start()
    future = await processor.enqueue("a", Event("chain"))
    await future.wait_all()
    kinds = [type(child.exception()) for child in future.children]
    assert kinds == [UnknownEventError, EventPayloadError, type(None)]
    assert [type(error) for error in app.errors] == kinds[:2]
    assert future.committed


class Broken(dict):  # type: ignore[type-arg]
    """A payload that cannot be read."""

    def items(self) -> Any:
        raise TroubleError


async def test_a_payload_that_cannot_be_read(app):
    """The event fails, whoever the error is told to; nothing of it stays."""
    processor = await app.start()
    try:
        future = await processor.enqueue("a", Event("next_one", Broken(x=1)))
    except TroubleError:
        pass
    else:
        assert future.done()
        assert future.exception() is not None
    async with asyncio.timeout(SOON):
        await processor.stop()


@pytest.mark.parametrize("ident", ["", 5, ["x"], b"a"])
async def test_a_chained_event_of_an_impossible_ident(app, ident):
    """It is refused where it is chained, as `enqueue` refuses it."""

    @app.handler
    async def chain(ctx: EventContext) -> None:
        await ctx.enqueue(Event("next_one"), ident=ident)

    processor = await app.start()
    future = await processor.enqueue("a", Event("chain"))
    with pytest.raises(ValueError, match="ident"):
        await future
    async with asyncio.timeout(SOON):
        await processor.stop()


# While it runs


def register_failing(app: Any, fail: Callable[[], Any]) -> None:
    """Register handlers of every kind, which change a state and fail by `fail`."""

    @app.handler
    def function(cart: Cart) -> None:
        cart.count += 1
        fail()

    @app.handler
    def simple() -> None:
        fail()

    @app.handler
    async def simple_coroutine() -> None:
        await asyncio.sleep(0)
        fail()

    @app.handler
    async def coroutine(cart: Cart) -> None:
        cart.count += 1
        await asyncio.sleep(0)
        fail()

    @app.handler
    def generator(cart: Cart) -> Iterator[Event]:
        cart.count += 1
        yield Event("never")
        fail()

    @app.handler
    async def async_generator(cart: Cart) -> AsyncIterator[Event]:
        cart.count += 1
        yield Event("never")
        fail()

    @app.handler(timeout=60)
    async def timed(cart: Cart) -> None:
        cart.count += 1
        fail()

    @app.handler(thread=True)
    def thread(cart: Cart) -> None:
        cart.count += 1
        fail()

    @app.handler
    async def by_context(ctx: EventContext) -> None:
        async with ctx.modify(Cart) as cart:
            cart.count += 1
            fail()

    @app.handler(background=True)
    async def beside(ctx: EventContext) -> None:
        async with ctx.modify(Cart) as cart:
            cart.count += 1
            fail()

    @app.handler
    async def never() -> None:
        raise AssertionError("a handler that failed has chained")


FAILING = [
    "function",
    "simple",
    "simple_coroutine",
    "coroutine",
    "generator",
    "async_generator",
    "timed",
    "thread",
    "by_context",
    "beside",
]


@pytest.mark.parametrize("name", FAILING)
async def test_a_failing_handler(app, name):
    """Nothing is saved, nothing chained, and the client knows what is stored."""

    def fail() -> None:
        raise TroubleError

    register_failing(app, fail)
    await ends(app, Event(name), TroubleError)


@pytest.mark.parametrize("name", FAILING)
async def test_a_handler_that_raises_stop_iteration(app, name):
    """It is a RuntimeError, as in every coroutine and generator."""

    def fail() -> None:
        next(iter(()))

    register_failing(app, fail)
    processor = await app.start()
    future = await processor.enqueue("a", Event(name))
    behind = await processor.enqueue("a", Event("next_one"))
    async with asyncio.timeout(SOON):
        await asyncio.wait((future, behind))
    assert isinstance(future.exception(), RuntimeError)
    assert behind.result() == 10
    assert len(app.errors) == 1


@pytest.mark.parametrize("kind", [Worse, GeneratorExit])
@pytest.mark.parametrize("name", FAILING)
async def test_a_handler_that_raises_a_base_exception(app, name, kind):
    """It is its future's too, and nobody else hears of it: not the loop, not the next event."""
    told_to_the_loop = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: told_to_the_loop.append(context))

    def fail() -> None:
        raise kind

    register_failing(app, fail)
    await ends(app, Event(name), kind)
    app.errors.clear()
    gc.collect()
    assert told_to_the_loop == []


@pytest.mark.parametrize("name", FAILING)
async def test_a_handler_that_raises_a_cancel_of_its_own(app, name):
    """Its event counts as cancelled; that is no error."""

    def fail() -> None:
        raise asyncio.CancelledError

    register_failing(app, fail)
    processor = await app.start()
    future = await processor.enqueue("a", Event(name))
    behind = await processor.enqueue("a", Event("next_one"))
    async with asyncio.timeout(SOON):
        await asyncio.wait((future, behind))
    assert future.cancelled()
    assert behind.result() == 10
    assert app.errors == []


@pytest.mark.parametrize("what", [KeyboardInterrupt, SystemExit])
def test_a_handler_that_ends_the_program(what):
    """These end the loop, as they do from any task; its event and the next one are in order."""
    loop = asyncio.new_event_loop()

    async def run() -> None:
        nonlocal future, behind, processor
        from statemgr.events import EventProcessor, RegistrationContext

        registry = RegistrationContext()

        @registry.handler
        async def end() -> None:
            raise what

        @registry.handler
        async def fine() -> int:
            return 1

        processor = EventProcessor(manager, registry, exception_handler=lambda error: None)
        await processor.start()
        future = await processor.enqueue("a", Event("end"))
        behind = await processor.enqueue("a", Event("fine"))
        await behind

    future = behind = processor = None
    manager = StateManagerMemory()
    try:
        running = loop.create_task(run())
        with pytest.raises(what):
            loop.run_until_complete(running)
        assert isinstance(future.exception(), what)
        loop.run_until_complete(running)
        assert behind.result() == 1
        loop.run_until_complete(processor.stop())
        loop.run_until_complete(manager.close())
    finally:
        loop.close()


async def test_a_handler_that_yields_what_is_no_event(app):
    @app.handler
    async def odd(cart: Cart) -> AsyncIterator[Any]:
        cart.count += 1
        yield "next_one"

    await ends(app, Event("odd"), EventHandlerError)


@pytest.mark.parametrize("name", ["odd", "odd_without_state"])
async def test_a_handler_that_returns_what_is_no_event_among_events(app, name):
    """None of them is chained."""

    @app.handler
    async def odd(cart: Cart) -> Any:
        cart.count += 1
        return [Event("never"), "next_one"]

    @app.handler
    async def odd_without_state() -> Any:
        return [Event("never"), "next_one"]

    await ends(app, Event(name), EventHandlerError)


@pytest.mark.parametrize("name", ["later", "later_as_well", "nested", "with_state"])
async def test_a_handler_that_returns_events_where_nobody_looks(app, name):
    """They are not dropped without a word."""

    @app.handler
    async def later() -> Any:
        return (Event("never") for _ in range(2))

    @app.handler
    async def later_as_well() -> Any:
        async def events() -> AsyncIterator[Event]:
            yield Event("never")

        return events()

    @app.handler
    async def nested() -> Any:
        return [[Event("never")]]

    @app.handler
    async def with_state(cart: Cart) -> Any:
        cart.count += 1
        return iter_events()

    def iter_events() -> Iterator[Event]:
        yield Event("never")

    await ends(app, Event(name), EventHandlerError)


async def test_a_state_that_cannot_be_saved(app):
    @app.handler
    async def spoil(cart: Cart) -> Event:
        cart.count += 1
        cart.note = object()
        return Event("never")

    found = await ends(app, Event("spoil"), StateEncodeError)
    assert found.path == "Cart.note"


async def test_a_state_that_cannot_be_told_half_way(app):
    @app.handler
    async def spoil(cart: Cart) -> AsyncIterator[None]:
        cart.count += 1
        yield
        cart.note = object()
        yield

    await ends(app, Event("spoil"), StateEncodeError)


async def test_a_lock_that_the_handler_holds_already(app):
    @app.handler
    async def twice(cart: Cart, ctx: EventContext) -> None:
        cart.count += 1
        async with ctx.modify(Cart):
            pass

    await ends(app, Event("twice"), LockReentryError)


async def test_the_same_error_object_again_and_again(app):
    """One that a handler keeps can be many futures' exception."""
    trouble = TroubleError()

    @app.handler
    async def fail() -> None:
        raise trouble

    processor = await app.start()
    futures = [processor.enqueue_nowait("a", Event("fail")) for _ in range(3)]
    await processor.stop()
    assert [future.exception() for future in futures] == [trouble] * 3
    assert app.errors == [trouble] * 3


# Timeouts


@pytest.mark.parametrize(
    "name", ["plain", "changing", "telling", "swallowing", "swallowing_without_state"]
)
async def test_a_handler_that_takes_too_long(app, name):
    """Nothing is saved, also if it hides that it was told to end."""

    @app.handler(timeout=0.01)
    async def plain() -> None:
        await asyncio.Event().wait()

    @app.handler(timeout=0.01)
    async def changing(cart: Cart) -> None:
        cart.count += 1
        await asyncio.Event().wait()

    @app.handler(timeout=0.01)
    async def telling(cart: Cart) -> AsyncIterator[None]:
        cart.count += 1
        yield
        await asyncio.Event().wait()

    @app.handler(timeout=0.01)
    async def swallowing(cart: Cart) -> None:
        cart.count += 1
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    @app.handler(timeout=0.01)
    async def swallowing_without_state() -> Event:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return Event("never")

    found = await ends(app, Event(name), EventTimeoutError)
    assert (found.name, found.timeout) == (name, 0.01)
    assert isinstance(found, TimeoutError)


async def test_a_timeout_counts_the_wait_for_the_lock(app):
    @app.handler(timeout=0.01)
    async def change(cart: Cart) -> None:
        cart.count += 1

    processor = await app.start()
    async with app.manager.modify_state(StateToken("a", Cart)) as cart:
        future = await processor.enqueue("a", Event("change"))
        with pytest.raises(EventTimeoutError):
            await future
        cart.count = 5
    assert await (await processor.enqueue("a", Event("next_one"))) == 15


async def test_a_timeout_does_not_count_the_commit(app):
    """What is to be saved is saved: its delta may take as long as it does."""

    @app.handler(timeout=0.02)
    async def change(cart: Cart) -> None:
        cart.count += 1

    async def emit(ident: str, delta: Any) -> None:
        await asyncio.sleep(0.05)  # longer than the timeout

    processor = await app.start(emit_delta=emit)
    future = await processor.enqueue("a", Event("change"))
    await future
    assert future.committed


async def test_a_timeout_error_of_its_own(app):
    """It is not taken for the handler's timeout."""

    @app.handler(timeout=60)
    async def impatient() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    await ends(app, Event("impatient"), TimeoutError)


async def test_a_timeout_of_a_thread(app):
    """It is told when the thread has ended: what that changes is not saved."""
    import threading

    release = threading.Event()

    @app.handler(timeout=0.01, thread=True)
    def block(cart: Cart) -> None:
        cart.count += 1
        release.wait(5)

    processor = await app.start()
    future = await processor.enqueue("a", Event("block"))
    behind = await processor.enqueue("a", Event("next_one"))
    await asyncio.wait((future,), timeout=0.05)
    assert not future.done()
    release.set()
    with pytest.raises(EventTimeoutError):
        await future
    assert await behind == 10


# Telling the client


def register_telling(app: Any) -> None:
    @app.handler
    async def tell(cart: Cart) -> AsyncIterator[Event | None]:
        cart.count += 1
        yield None
        cart.note = "half way"
        yield None
        cart.note = "done"
        yield Event("after")

    @app.handler
    async def tell_and_fail(cart: Cart) -> AsyncIterator[None]:
        cart.count += 1
        yield
        raise TroubleError

    @app.handler
    async def after() -> str:
        return "ran"


@pytest.mark.parametrize("emits", ["function", "coroutine"])
@pytest.mark.parametrize("failing", [{1}, {2}, {3}, {1, 2}, {2, 3}, {1, 3}, {1, 2, 3}])
async def test_a_failing_emit_delta(app, failing, emits):
    """The change stays, what is chained runs, and the next delta tells what was not told."""
    register_telling(app)
    calls = 0

    def emit(ident: str, delta: Any) -> None:
        nonlocal calls
        calls += 1
        if calls in failing:
            raise TroubleError(calls)
        app.emit(ident, delta)

    async def emit_later(ident: str, delta: Any) -> None:
        await asyncio.sleep(0)
        emit(ident, delta)

    processor = await app.start(emit_delta=emit if emits == "function" else emit_later)
    future = await processor.enqueue("a", Event("tell"))
    await asyncio.wait((future,))
    assert future.committed
    error = future.exception()
    assert isinstance(error, TroubleError)
    assert error.args == (min(failing),)
    assert app.errors == [error]
    assert any("what it changed is saved" in note for note in error.__notes__)
    assert [await child for child in future.children] == ["ran"]
    stored = await app.manager.get_state(StateToken("a", Cart))
    assert stored == Cart(1, "done")
    if 3 not in failing:
        assert app.client("a") == {"Cart": vars(stored)}
    await (await processor.enqueue("a", Event("next_one")))
    assert app.client("a")["Cart"]["count"] == 11


async def test_a_delta_that_failed_may_have_arrived(app):
    """A handler that fails afterwards puts the client right in any case."""
    register_telling(app)
    calls = 0

    def emit(ident: str, delta: Any) -> None:
        nonlocal calls
        calls += 1
        app.emit(ident, delta)
        if calls == 1:
            raise TroubleError("after it was sent")

    processor = await app.start(emit_delta=emit)
    future = await processor.enqueue("a", Event("tell_and_fail"))
    await asyncio.wait((future,))
    assert app.client("a")["Cart"]["count"] == 0


async def test_an_error_of_emit_delta_is_seen_though_the_handler_fails(app, caplog):
    """Its future can have one error; the other one is not lost without a trace."""
    register_telling(app)

    def emit(ident: str, delta: Any) -> None:
        raise ZeroDivisionError("emit")

    processor = await app.start(emit_delta=emit)
    future = await processor.enqueue("a", Event("tell_and_fail"))
    await asyncio.wait((future,))
    error = future.exception()
    assert isinstance(error, TroubleError)
    seen = [*app.errors, error.__context__, error.__cause__, *getattr(error, "__notes__", ())]
    seen += [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert any("ZeroDivisionError" in repr(one) or "emit" in str(one) for one in seen)


async def test_a_failing_emit_delta_for_a_handler_in_the_background(app):
    @app.handler(background=True)
    async def beside(ctx: EventContext) -> str:
        async with ctx.modify(Cart) as cart:
            cart.count += 1
        return "went on"

    def emit(ident: str, delta: Any) -> None:
        raise TroubleError

    processor = await app.start(emit_delta=emit)
    future = await processor.enqueue("a", Event("beside"))
    with pytest.raises(TroubleError):
        await future
    assert future.committed
    assert (await app.manager.get_state(StateToken("a", Cart))).count == 1


@pytest.mark.parametrize("which", ["emit_delta", "emit_event"])
async def test_emit_functions_that_fail_when_a_handler_calls_them(app, which):
    """The error is the handler's to catch, or its own."""

    @app.handler
    async def call(ctx: EventContext, cart: Cart) -> None:
        cart.count += 1
        if which == "emit_event":
            await ctx.emit_event(Event("x"), Event("y"))
        else:
            await ctx.emit_delta({"x": {"y": 1}})

    @app.handler
    async def call_and_catch(ctx: EventContext) -> str:
        try:
            await ctx.emit_event()
        except TroubleError:
            return "caught"
        return "nothing raised"

    def fail(ident: str, *rest: Any) -> None:
        raise TroubleError

    processor = await app.start(emit_event=fail, emit_delta=fail)
    future = await processor.enqueue("a", Event("call"))
    with pytest.raises(TroubleError):
        await future
    assert not future.committed
    assert await (await processor.enqueue("a", Event("call_and_catch"))) == "caught"
    assert len(app.errors) == 1


@pytest.mark.parametrize("emits", ["function", "coroutine"])
@pytest.mark.parametrize(("name", "note"), [("tell", "done"), ("beside", "")])
async def test_an_emit_delta_that_ends_cancelled_by_another(app, name, note, emits):
    """As one that waits for the task of a client that has gone: it is a failure like others."""
    register_telling(app)

    @app.handler(background=True)
    async def beside(ctx: EventContext) -> Event:
        async with ctx.modify(Cart) as cart:
            cart.count += 1
        return Event("after")

    gone = asyncio.get_running_loop().create_future()
    gone.cancel()

    def emit(ident: str, delta: Any) -> Any:
        return gone.result() if emits == "function" else gone

    processor = await app.start(emit_delta=emit)
    future = await processor.enqueue("a", Event(name))
    with pytest.raises(RuntimeError, match="emit_delta ended with a CancelledError") as caught:
        await future
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert app.errors == [caught.value]
    assert future.committed
    assert [await child for child in future.children] == ["ran"]
    assert await app.manager.get_state(StateToken("a", Cart)) == Cart(1, note)


async def test_a_cancel_while_emit_delta_waits_is_no_failure_of_it(app, settle):
    register_telling(app)
    waits = asyncio.Event()

    async def emit(ident: str, delta: Any) -> None:
        if not waits.is_set():
            waits.set()
            await asyncio.Event().wait()

    processor = await app.start(emit_delta=emit)
    future = await processor.enqueue("a", Event("tell"))
    await waits.wait()
    future.cancel()
    await settle(future)
    assert future.cancelled()
    assert not future.committed
    assert app.errors == []
    assert await (await processor.enqueue("a", Event("next_one"))) == 10


@pytest.mark.parametrize("newer", ["waits for the lock", "finds it free"])
@pytest.mark.parametrize("emits", ["function", "coroutine"])
async def test_what_is_undone_is_told_before_anything_newer(app, turns, emits, newer):
    register_telling(app)
    told: list[int] = []
    newest: list[asyncio.Future[Any]] = []

    def emit(ident: str, delta: Any) -> None:
        told.append(delta["Cart"]["count"])

    async def emit_later(ident: str, delta: Any) -> None:
        emit(ident, delta)
        await asyncio.sleep(0)

    @app.handler(background=True)
    async def beside(ctx: EventContext) -> None:
        async with ctx.modify(Cart) as cart:
            cart.count = 5

    @app.handler
    async def fail_as_another_begins(cart: Cart) -> AsyncIterator[None]:
        cart.count = 99
        yield
        newest.append(processor.enqueue_nowait("a", Event("beside")))
        await turns(10 if newer == "waits for the lock" else 0)
        raise TroubleError

    processor = await app.start(emit_delta=emit if emits == "function" else emit_later)
    future = await processor.enqueue("a", Event("fail_as_another_begins"))
    await asyncio.wait((future,))
    await newest[0]
    assert told == [99, 0, 5]


@pytest.mark.parametrize("is_new", [False, True])
async def test_a_manager_that_does_not_roll_back(app, is_new):
    """It keeps what a handler that failed has changed in place, and so does the client."""
    register_telling(app)
    await app.manager.close()
    app.manager = StateManagerMemory(rollback=False)
    processor = await app.start()
    if not is_new:
        await (await processor.enqueue("a", Event("next_one")))
    future = await processor.enqueue("a", Event("tell_and_fail"))
    await asyncio.wait((future,))
    stored = await app.manager.get_state(StateToken("a", Cart))
    assert stored.count == (0 if is_new else 11)
    assert app.client("a")["Cart"]["count"] == stored.count


@pytest.mark.parametrize("waits", [0, 1])
@pytest.mark.parametrize("when", [1, 2, 3])
async def test_an_emit_function_that_cancels_its_event(app, settle, when, waits):
    """All or nothing is saved, and the next event runs."""
    register_telling(app)
    calls = 0

    async def emit(ident: str, delta: Any) -> None:
        nonlocal calls
        calls += 1
        app.emit(ident, delta)
        if calls == when:
            future.cancel()
            for _ in range(waits):
                await asyncio.sleep(0)

    processor = await app.start(emit_delta=emit)
    future = await processor.enqueue("a", Event("tell"))
    behind = await processor.enqueue("a", Event("next_one"))
    await settle(future, behind)
    stored = await app.manager.get_state(StateToken("a", Cart))
    assert stored == (Cart(11, "done") if future.committed else Cart(10))
    assert app.client("a")["Cart"]["count"] == stored.count
    assert behind.result() == stored.count


# The commit


class Losing(StateManagerMemory):
    """Fail one commit, in one of the ways that a commit over a network fails."""

    fault: str | None = None

    def _commit_nowait(self, modification: StateModification[Any], now: float) -> bool:
        return self.fault is None and super()._commit_nowait(modification, now)

    async def _commit(self, modification: StateModification[Any], payloads: Any) -> None:
        fault, self.fault = self.fault, None
        if fault == "uncertain and saved":
            super()._commit_nowait(modification, self._monotonic())
        else:
            await self._abort(modification)
        if fault == "lost":
            raise LockExpiredError("the lock was lost", lock_key=modification.lock_key)
        raise CommitUncertainError("it broke", lock_key=modification.lock_key)


async def test_a_store_that_is_down_is_not_taken_for_an_emit_delta_that_hangs(
    app, caplog, monkeypatch
):
    """After a commit that failed it cannot be asked: the client is told what it was before."""

    @app.handler
    async def change(cart: Cart) -> AsyncIterator[None]:
        cart.count += 1
        yield

    async def hang(*tokens: Any) -> None:
        await asyncio.Event().wait()

    await app.manager.close()
    app.manager = Losing()
    app.manager.fault = "uncertain"
    processor = await app.start()
    with monkeypatch.context() as patched:
        patched.setattr(body, "_PATIENCE", 0.2)
        patched.setattr(app.manager, "get_states", hang)
        future = await processor.enqueue("a", Event("change"))
        await asyncio.wait((future,))
    assert type(future.exception()) is CommitUncertainError
    assert [delta["Cart"]["count"] for _, delta in app.deltas] == [1, 0]
    assert "its states cannot be read; its client is told what they were before" in caplog.text
    assert "a client could not be told" not in caplog.text
    assert "emit_delta" not in caplog.text


async def test_an_emit_delta_that_hangs_while_a_change_is_undone(app, caplog, monkeypatch):
    """It is not waited for for ever, and the next event runs."""
    register_telling(app)

    async def emit(ident: str, delta: Any) -> None:
        if delta["Cart"]["count"] == 0:
            await asyncio.Event().wait()

    monkeypatch.setattr(body, "_PATIENCE", 0.01)
    processor = await app.start(emit_delta=emit)
    future = await processor.enqueue("a", Event("tell_and_fail"))
    assert await (await processor.enqueue("a", Event("next_one"))) == 10
    assert type(future.exception()) is TroubleError
    assert "a client could not be told within 0.01 s that a change was undone" in caplog.text


@pytest.mark.parametrize("name", ["coroutine", "telling", "timed", "by_context", "beside"])
@pytest.mark.parametrize(
    ("fault", "error", "count"),
    [
        ("lost", LockExpiredError, 0),
        ("uncertain", CommitUncertainError, 0),
        ("uncertain and saved", CommitUncertainError, 1),
    ],
)
async def test_a_failing_commit(app, name, fault, error, count):
    """The event ends with the error and chains nothing; the client is told what is stored."""

    @app.handler
    async def coroutine(cart: Cart) -> Event:
        cart.count += 1
        return Event("never")

    @app.handler
    async def telling(cart: Cart) -> AsyncIterator[Event]:
        cart.count += 1
        yield Event("never")

    @app.handler(timeout=60)
    async def timed(cart: Cart) -> None:
        cart.count += 1

    @app.handler
    async def by_context(ctx: EventContext) -> None:
        async with ctx.modify(Cart) as cart:
            cart.count += 1

    @app.handler(background=True)
    async def beside(ctx: EventContext) -> None:
        async with ctx.modify(Cart) as cart:
            cart.count += 1

    @app.handler
    async def never() -> None:
        raise AssertionError("a handler whose commit failed has chained")

    await app.manager.close()
    app.manager = Losing()
    app.manager.fault = fault
    processor = await app.start()
    future = await processor.enqueue("a", Event(name))
    await asyncio.wait((future,))
    assert type(future.exception()) is error
    assert app.errors == [future.exception()]
    assert not future.committed
    assert not future.children
    assert app.client("a").get("Cart", {"count": 0})["count"] == count
    assert await (await processor.enqueue("a", Event("next_one"))) == count + 10
    assert app.client("a")["Cart"]["count"] == count + 10


async def test_a_lock_that_is_lost_on_a_real_server(app):
    """Somebody else changes the state meanwhile: theirs stays, and the client is told it."""
    url = server_url(DEFAULT)
    await app.manager.close()
    app.manager = StateManagerRedis(url, key_prefix="events")
    begun, go_on = asyncio.Event(), asyncio.Event()

    @app.handler
    async def slow(cart: Cart) -> AsyncIterator[Event]:
        cart.count += 1
        yield Event("never")
        begun.set()
        await go_on.wait()

    processor = await app.start()
    future = await processor.enqueue("a", Event("slow"))
    behind = await processor.enqueue("a", Event("next_one"))
    await begun.wait()
    async with Redis.from_url(url) as redis:
        for key in await redis.keys("events:*"):
            await redis.hdel(key, "lock")
    async with StateManagerRedis(url, key_prefix="events") as other:
        await other.set_state(StateToken("a", Cart), Cart(100))
    go_on.set()
    await asyncio.wait((future, behind))
    assert type(future.exception()) is LockExpiredError
    assert app.errors == [future.exception()]
    assert not future.children
    assert behind.result() == 110
    assert [delta["Cart"]["count"] for _, delta in app.deltas] == [1, 100, 110]
    await app.manager.delete_state(StateToken("a", Cart))


# What is told of errors, and by whom


async def test_an_exception_handler_finds_the_context(app):
    seen = []

    @app.handler
    async def fail() -> None:
        raise TroubleError

    async def report(error: BaseException) -> None:
        await asyncio.sleep(0)
        context = EventContext.get()
        seen.append((context.ident, context.name, context.txid, type(error)))

    processor = await app.start(exception_handler=report)
    futures = [processor.enqueue_nowait("a", Event(name)) for name in ("fail", "missing")]
    await processor.stop()
    assert sorted(seen) == sorted(
        [
            ("a", "fail", futures[0].txid, TroubleError),
            ("a", "missing", futures[1].txid, UnknownEventError),
        ]
    )


@pytest.mark.parametrize("raised", [TroubleError, asyncio.CancelledError])
@pytest.mark.parametrize("kind", ["function", "coroutine"])
async def test_a_failing_exception_handler(app, caplog, kind, raised):
    """It is logged, and changes nothing."""

    @app.handler
    async def fail() -> None:
        raise ZeroDivisionError

    def report(error: BaseException) -> None:
        calls.append(error)
        raise raised

    async def report_later(error: BaseException) -> None:
        report(error)

    calls: list[BaseException] = []
    processor = await app.start(exception_handler=report if kind == "function" else report_later)
    futures = [processor.enqueue_nowait("a", Event(name)) for name in ("fail", "missing", "fail")]
    assert await (await processor.enqueue("a", Event("next_one"))) == 10
    async with asyncio.timeout(SOON):
        await processor.stop()
    assert sorted(map(id, calls)) == sorted(id(future.exception()) for future in futures)
    if raised is TroubleError:
        assert caplog.text.count("the exception_handler failed") == 3


async def test_without_an_exception_handler_errors_are_logged(app, caplog):
    @app.handler
    async def fail() -> None:
        raise TroubleError

    processor = await app.start(exception_handler=None)
    future = await processor.enqueue("a", Event("fail"))
    await processor.stop()
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info[1] for record in records] == [future.exception()]


REFUSED = [Event("missing"), Event("next_one", {"x": 1})]


@pytest.fixture
def told(caplog) -> Callable[[], list[logging.LogRecord]]:
    """Return the log, with all that tells of futures which nobody has left."""

    def told() -> list[logging.LogRecord]:
        gc.collect()
        return caplog.records

    caplog.set_level(logging.DEBUG, "statemgr")
    caplog.set_level(logging.INFO, "asyncio")  # which tells of its selectors else
    return told


@pytest.mark.parametrize("how", ["enqueue", "enqueue_nowait", "wait_all", "stream"])
@pytest.mark.parametrize("event", REFUSED, ids=["name", "payload"])
async def test_a_refusal_that_the_caller_handles_is_not_logged(app, told, event, how):
    """A client can send what is refused at will: the log is not for it to fill."""
    processor = await app.start(exception_handler=None)
    for _ in range(3):
        try:
            if how == "enqueue":
                await (await processor.enqueue("a", event))
            elif how == "enqueue_nowait":
                await processor.enqueue_nowait("a", event)
            elif how == "wait_all":
                await (await processor.enqueue("a", event)).wait_all()
            else:
                async for _ in processor.enqueue_stream_delta("a", event):
                    pass
        except (EventPayloadError, UnknownEventError):
            continue
        raise AssertionError("it was not refused")
    await processor.stop()
    assert told() == []


@pytest.mark.parametrize("event", REFUSED, ids=["name", "payload"])
async def test_a_refusal_that_nobody_asks_for_is_logged(app, told, event):
    """A misspelt name is not to go unseen in a program that drops its futures."""
    processor = await app.start(exception_handler=None)
    await processor.enqueue("a", event)
    (record,) = told()
    assert (record.name, record.levelno) == ("asyncio", logging.ERROR)
    assert "EventFuture exception was never retrieved" in record.getMessage()
    assert event.name in record.getMessage()
    assert isinstance(record.exc_info[1], EventPayloadError | UnknownEventError)


async def test_a_refusal_of_what_a_handler_has_chained_is_logged(app, told):
    """It is the program's own mistake, and nobody else has its future."""

    @app.handler
    async def chain() -> list[Event]:
        return REFUSED

    processor = await app.start(exception_handler=None)
    future = await processor.enqueue("a", Event("chain"))
    await future.wait_all()
    kinds = [UnknownEventError, EventPayloadError]
    assert [type(record.exc_info[1]) for record in told()] == kinds


async def test_an_exception_handler_gets_refusals_and_nothing_logs_them(app, told):
    """It decides what they are worth, also if nobody asks the future."""
    processor = await app.start()
    for event in REFUSED:
        await processor.enqueue("a", event)
    assert [type(error) for error in app.errors] == [UnknownEventError, EventPayloadError]
    assert told() == []


async def test_an_exception_handler_that_enqueues_what_fails_at_once(app):
    """It is called for that one too, and does not recurse."""
    inside = deepest = calls = 0

    def report(error: BaseException) -> None:
        nonlocal inside, deepest, calls
        calls += 1
        inside += 1
        deepest = max(deepest, inside)
        if calls < 2000:
            processor.enqueue_nowait("a", Event("missing"))
        inside -= 1

    processor = await app.start(exception_handler=report)
    processor.enqueue_nowait("a", Event("missing"))
    async with asyncio.timeout(SOON):
        while calls < 2000:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert deepest < 5


class Failing(EventListener):
    """Fail in each call."""

    def __init__(self, raised: type[BaseException]) -> None:
        self.raised = raised
        self.calls: list[str] = []

    def fail(self, name: str) -> None:
        self.calls.append(name)
        raise self.raised

    def enqueued(self, context: EventContext) -> None:
        self.fail("enqueued")

    def started(self, context: EventContext, seconds: float) -> None:
        self.fail("started")

    def waited(self, context: EventContext, seconds: float) -> None:
        self.fail("waited")

    def committed(self, context: EventContext, seconds: float) -> None:
        self.fail("committed")

    def finished(self, context: EventContext, seconds: float) -> None:
        self.fail("finished")

    def failed(self, context: EventContext, error: BaseException, seconds: float) -> None:
        self.fail("failed")


@pytest.mark.parametrize("raised", [TroubleError, asyncio.CancelledError])
async def test_a_failing_listener(app, raised, caplog):
    """What it raises changes nothing: not a cancel either, such as that of a future it asks."""

    @app.handler
    async def fail(cart: Cart) -> None:
        cart.count += 1
        raise ZeroDivisionError

    listener = Failing(raised)
    processor = await app.start(listener=listener)
    failed = processor.enqueue_nowait("a", Event("fail"))
    fine = processor.enqueue_nowait("a", Event("next_one"))
    missing = processor.enqueue_nowait("a", Event("missing"))
    cancelled = processor.enqueue_nowait("a", Event("next_one"))
    cancelled.cancel()
    async with asyncio.timeout(SOON):
        await processor.stop()
    assert isinstance(failed.exception(), ZeroDivisionError)
    assert isinstance(missing.exception(), UnknownEventError)
    assert cancelled.cancelled()
    assert fine.result() == 10
    assert fine.committed
    assert len(app.errors) == 2
    assert {name: listener.calls.count(name) for name in listener.calls} == {
        "enqueued": 4,
        "started": 2,
        "waited": 2,
        "committed": 1,
        "finished": 1,
        "failed": 3,
    }


# What errors leave behind


@pytest.mark.parametrize(
    "name",
    [
        *FAILING,
        "missing",
        "never_saved",
        "not_told",
        "told_and_fails",
        "too_long",
        "two_timeouts",
    ],
)
async def test_errors_leave_no_reference_cycles(app, name):
    """With the last reference to its future, all of an event is gone, without the collector."""

    def fail() -> None:
        raise TroubleError

    register_failing(app, fail)

    @app.handler
    async def never_saved(cart: Cart) -> None:
        cart.note = object()

    @app.handler
    async def not_told(cart: Cart) -> None:
        cart.count += 1

    @app.handler
    async def told_and_fails(cart: Cart) -> AsyncIterator[None]:
        cart.count += 1
        yield
        raise TroubleError

    @app.handler(timeout=0.001)
    async def too_long(cart: Cart) -> None:
        await asyncio.Event().wait()

    @app.handler(timeout=60)
    async def two_timeouts(cart: Cart) -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    def emit(ident: str, delta: Any) -> None:
        if name in ("not_told", "told_and_fails"):
            raise TroubleError

    async def run() -> weakref.ref[Any]:
        future = await processor.enqueue("a", Event(name))
        await asyncio.wait((future,))
        return weakref.ref(future)

    processor = await app.start(emit_delta=emit, exception_handler=lambda error: None)
    gc.collect()
    gc.disable()
    try:
        left = await asyncio.create_task(run())
        for _ in range(3):
            await asyncio.sleep(0)
        assert left() is None
    finally:
        gc.enable()
