"""Events of one ident run in order, one at a time, whatever fails or is cancelled around them."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from statemgr import StateManagerMemory, StateToken
from statemgr.events import Event, EventContext, EventFuture, EventListener, EventProcessor

from .conftest import SOON

IDENTS = 2_000  # with 10,000 it takes five times as long
EVENTS = 20  # of each ident
KINDS = ["plain", "change", "tell", "step"]


class TroubleError(Exception):
    """What handlers fail with here."""


@dataclass
class Log:
    numbers: list[int] = field(default_factory=list)


class Witness:
    """Write down what runs, and what should not."""

    def __init__(self) -> None:
        self.ran: dict[str, list[int]] = {}
        self.inside: dict[str, int] = {}
        self.wrong: list[str] = []

    def enter(self, ident: str, number: int) -> None:
        if ident in self.inside:
            self.wrong.append(f"{ident}: {number} ran beside another one")
        self.inside[ident] = number
        ran = self.ran.setdefault(ident, [])
        if ran and ran[-1] >= number:
            self.wrong.append(f"{ident}: {number} ran after {ran[-1]}")
        ran.append(number)

    def leave(self, ident: str) -> None:
        self.inside.pop(ident, None)


def register(app: Any, witness: Witness) -> None:
    """Register handlers of several kinds, that take some turns of the loop and may fail."""

    @app.handler
    async def plain(ctx: EventContext, number: int, turns: int, fails: bool) -> int:
        witness.enter(ctx.ident, number)
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
            if fails:
                raise TroubleError
        finally:
            witness.leave(ctx.ident)
        return number

    @app.handler
    async def change(ctx: EventContext, log: Log, number: int, turns: int, fails: bool) -> int:
        witness.enter(ctx.ident, number)
        try:
            log.numbers.append(number)
            for _ in range(turns):
                await asyncio.sleep(0)
            if fails:
                raise TroubleError
        finally:
            witness.leave(ctx.ident)
        return number

    @app.handler
    async def tell(
        ctx: EventContext, log: Log, number: int, turns: int, fails: bool
    ) -> AsyncIterator[None]:
        witness.enter(ctx.ident, number)
        try:
            log.numbers.append(number)
            for _ in range(turns):
                yield
                await asyncio.sleep(0)
            if fails:
                raise TroubleError
        finally:
            witness.leave(ctx.ident)

    @app.handler
    def step(ctx: EventContext, log: Log, number: int, turns: int, fails: bool) -> Iterator[None]:
        witness.enter(ctx.ident, number)
        try:
            log.numbers.append(number)
            for _ in range(turns):
                yield
            if fails:
                raise TroubleError
        finally:
            witness.leave(ctx.ident)


@pytest.mark.parametrize(("idents", "seed"), [(IDENTS, 1), (100, 2), (100, 3), (100, 4), (1, 5)])
async def test_order_under_failures_and_cancellations(app, idents, seed):
    """Many idents at once; many events fail, or are cancelled while they wait or run."""
    dice = random.Random(seed)  # noqa: S311  # the same dice each time
    witness = Witness()
    register(app, witness)

    async def emit(ident: str, delta: Any) -> None:
        if dice.random() < 0.1:
            await asyncio.sleep(0)

    processor = await app.start(emit_delta=emit)
    futures: dict[str, list[EventFuture]] = {f"ident {number}": [] for number in range(idents)}
    doomed: list[EventFuture] = []
    ended = dict.fromkeys(["done", "failed", "cancelled waiting", "cancelled running"], 0)
    enqueued = False

    async def cancel_some() -> None:
        """Cancel what waits, what is about to start, and what runs."""
        while doomed or not enqueued:
            for _ in range(min(len(doomed), idents // 100 + 1)):
                doomed.pop(dice.randrange(len(doomed))).cancel()
            running = list(witness.inside.items())
            for ident, number in dice.sample(running, len(running) // 20):
                futures[ident][number].cancel()
            await asyncio.sleep(0)

    cancelling = asyncio.create_task(cancel_some())
    for number in range(EVENTS):
        for ident, its in futures.items():
            payload = {
                "number": number,
                "turns": dice.choice([0, 0, 1, 3]),
                "fails": dice.random() < 0.15,
            }
            future = await processor.enqueue(ident, Event(dice.choice(KINDS), payload))
            its.append(future)
            if dice.random() < 0.2:
                doomed.append(future)
            elif dice.random() < 0.02:
                future.cancel()
        await asyncio.sleep(0)
    enqueued = True
    await processor.stop()
    await cancelling

    assert witness.wrong == []
    assert not witness.inside
    for ident, its in futures.items():
        log = await app.manager.get_state(StateToken(ident, Log))
        assert log.numbers == [n for n, future in enumerate(its) if future.committed]
        for number, future in enumerate(its):
            ran = number in witness.ran.get(ident, ())
            if future.cancelled():
                ended["cancelled running" if ran else "cancelled waiting"] += 1
            elif future.exception() is None:
                ended["done"] += 1
                assert ran
                assert future.committed is (future.event.name != "plain")
            else:
                ended["failed"] += 1
                assert ran
                assert type(future.exception()) is TroubleError
                assert not future.committed
    assert idents < 1000 or all(ended.values())
    assert len(app.errors) == ended["failed"]
    app.check_nothing_is_left()


async def test_idents_run_side_by_side(app):
    """A handler of one ident can wait for what one of another does."""
    met = asyncio.Barrier(50)

    @app.handler
    async def meet(log: Log) -> None:
        await met.wait()

    processor = await app.start()
    futures = [processor.enqueue_nowait(f"ident {n}", Event("meet")) for n in range(50)]
    async with asyncio.timeout(SOON):
        await asyncio.gather(*futures)


async def test_a_background_handler_runs_beside_its_ident(app):
    """It neither waits for what is queued nor keeps that from running."""
    ran = []
    free = asyncio.Event()

    @app.handler(background=True)
    async def beside() -> None:
        ran.append("beside begins")
        await free.wait()
        ran.append("beside ends")

    @app.handler
    async def queued(number: int) -> None:
        ran.append(number)
        if number == 2:
            free.set()

    processor = await app.start()
    for number in range(3):
        processor.enqueue_nowait("a", Event("queued", {"number": number}))
        if number == 0:
            processor.enqueue_nowait("a", Event("beside"))
    await processor.stop()
    assert ran == [0, "beside begins", 1, 2, "beside ends"]


async def test_a_chained_event_runs_after_what_is_queued(app):
    ran = []

    @app.handler
    async def first(log: Log) -> Event:
        ran.append("first")
        return Event("chained")

    @app.handler
    async def queued() -> None:
        ran.append("queued")

    @app.handler
    async def chained() -> None:
        ran.append("chained")

    processor = await app.start()
    processor.enqueue_nowait("a", Event("first"))
    processor.enqueue_nowait("a", Event("queued"))
    await processor.stop()
    assert ran == ["first", "queued", "chained"]


# Cancels at every moment


@dataclass
class Cart:
    count: int = 0
    steps: list[int] = field(default_factory=list)


async def pause(number: int = 1) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def subjects(app: Any) -> None:
    """Register handlers that change a state step by step, and chain."""

    @app.handler
    async def coroutine(cart: Cart) -> Event:
        for step in range(3):
            cart.count += 1
            cart.steps.append(step)
            await pause()
        return Event("after")

    @app.handler
    async def async_generator(cart: Cart) -> AsyncIterator[Event | None]:
        for step in range(3):
            cart.count += 1
            cart.steps.append(step)
            yield None
            await pause()
        yield Event("after")

    @app.handler
    def generator(cart: Cart) -> Iterator[Event | None]:
        for step in range(3):
            cart.count += 1
            cart.steps.append(step)
            yield None
        yield Event("after")

    @app.handler(timeout=60)
    async def timed(cart: Cart) -> AsyncIterator[Event | None]:
        for step in range(3):
            cart.count += 1
            cart.steps.append(step)
            yield None
            await pause()
        yield Event("after")

    @app.handler
    async def by_context(ctx: EventContext) -> Event:
        async with ctx.modify(Cart) as cart:
            for step in range(3):
                cart.count += 1
                cart.steps.append(step)
                await pause()
        return Event("after")

    @app.handler(background=True)
    async def beside(ctx: EventContext) -> Event:
        async with ctx.modify(Cart) as cart:
            for step in range(3):
                cart.count += 1
                cart.steps.append(step)
                await pause()
        return Event("after")

    @app.handler
    async def after(cart: Cart) -> None:
        cart.steps.append(-1)

    @app.handler
    async def next_one(ctx: EventContext) -> str:
        return ctx.txid


SUBJECTS = ["coroutine", "async_generator", "generator", "timed", "by_context", "beside"]


def emit_first(app: Any) -> Callable[..., Any]:
    """Make an emit_delta that has sent the delta before it waits."""

    async def emit(ident: str, delta: Any) -> None:
        app.emit(ident, delta)
        await pause(2)

    return emit


def emit_last(app: Any) -> Callable[..., Any]:
    """Make an emit_delta that has sent the delta only when it ends."""

    async def emit(ident: str, delta: Any) -> None:
        await pause(2)
        app.emit(ident, delta)

    return emit


@pytest.mark.parametrize("emits", [emit_first, emit_last])
@pytest.mark.parametrize("name", SUBJECTS)
async def test_cancel_after_each_turn_of_the_loop(app, settle, name, emits):
    """All or nothing is saved, the client knows what is stored, and the next event runs."""
    subjects(app)
    processor = await app.start(emit_delta=emits(app))
    number, cancelled = 0, True
    committed = set()
    while cancelled:
        ident = f"ident {number}"
        subject = processor.enqueue_nowait(ident, Event(name))
        behind = processor.enqueue_nowait(ident, Event("next_one"))
        await pause(number)
        cancelled = subject.cancel()
        await settle(subject, behind)
        await settle(*subject.descendants(), behind)
        assert subject.cancelled() is cancelled
        assert behind.result() == behind.txid

        stored = await app.manager.get_state(StateToken(ident, Cart))
        committed.add(subject.committed)
        chained = [future for future in subject.descendants() if not future.cancelled()]
        after = [future for future in chained if future.committed]
        steps = [0, 1, 2] if subject.committed else []
        assert stored == Cart(len(steps), steps + [-1] * len(after))
        # A change that is saved while its delta is cancelled on the way is told by the next one.
        if emits is emit_first or not subject.committed or not cancelled:
            assert app.client(ident).get("Cart", {"count": 0, "steps": []}) == vars(stored)
        app.check_nothing_is_left()
        number += 1
    assert committed == {True, False}
    assert number > 5


@pytest.mark.parametrize("emits", [emit_first, emit_last])
@pytest.mark.parametrize("name", SUBJECTS)
async def test_two_cancels_at_any_two_turns(app, settle, name, emits):
    """A second cancel finds a handler that leaves its body and puts the client right."""
    subjects(app)
    processor = await app.start(emit_delta=emits(app))
    for first in range(14):
        for second in range(first, first + 4):
            ident = f"ident {first} {second}"
            subject = processor.enqueue_nowait(ident, Event(name))
            behind = processor.enqueue_nowait(ident, Event("next_one"))
            await pause(first)
            subject.cancel()
            await pause(second - first)
            subject.cancel()
            await settle(subject, behind)
            await settle(*subject.descendants(), behind)
            assert behind.result() == behind.txid
            stored = await app.manager.get_state(StateToken(ident, Cart))
            assert stored.count == (3 if subject.committed else 0)
            if not subject.committed:
                assert app.client(ident).get("Cart", {"count": 0})["count"] == 0
            app.check_nothing_is_left()


async def test_cancelling_queued_events_leaves_the_others_in_order(app):
    ran = []

    @app.handler
    async def note(number: int) -> None:
        ran.append(number)

    processor = await app.start()
    futures = [
        processor.enqueue_nowait("a", Event("note", {"number": number})) for number in range(9)
    ]
    for number in (0, 3, 4, 8):
        assert futures[number].cancel()
        assert futures[number].cancelled()
        assert not futures[number].cancel()
    await processor.stop()
    assert ran == [1, 2, 5, 6, 7]


async def test_a_handler_that_refuses_to_be_cancelled_is_not_overtaken(app, settle):
    """The next event of its ident waits until it has really ended."""
    ran = []
    free = asyncio.Event()
    begun = asyncio.Event()

    @app.handler
    async def stubborn(log: Log) -> str:
        begun.set()
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                ran.append("refused")
        ran.append("ended")
        return "done"

    @app.handler
    async def other(log: Log) -> None:
        ran.append("other")

    processor = await app.start()
    subject = processor.enqueue_nowait("a", Event("stubborn"))
    behind = processor.enqueue_nowait("a", Event("other"))
    await begun.wait()
    for _ in range(3):
        assert subject.cancel()
        await pause(5)
    assert not subject.done()
    free.set()
    await settle(subject, behind)
    assert subject.result() == "done"
    assert ran == ["refused"] * 3 + ["ended", "other"]


class Reenterer(EventListener):
    """Enqueue, and cancel, from inside of each call."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.processor: Any = None
        self.futures: list[EventFuture] = []

    def act(self, context: EventContext) -> None:
        if self.dice.random() < 0.3 and len(self.futures) < 600:
            name = self.dice.choice([*KINDS, "missing"])
            payload = {"number": len(self.futures), "turns": self.dice.randrange(3), "fails": False}
            ident = self.dice.choice([context.ident, "another"])
            self.futures.append(self.processor.enqueue_nowait(ident, Event(name, payload)))
        if self.futures and self.dice.random() < 0.3:
            self.dice.choice(self.futures).cancel()

    def enqueued(self, context: EventContext) -> None:
        self.act(context)

    def started(self, context: EventContext, seconds: float) -> None:
        self.act(context)

    def waited(self, context: EventContext, seconds: float) -> None:
        self.act(context)

    def committed(self, context: EventContext, seconds: float) -> None:
        self.act(context)

    def finished(self, context: EventContext, seconds: float) -> None:
        self.act(context)

    def failed(self, context: EventContext, error: BaseException, seconds: float) -> None:
        self.act(context)


@pytest.mark.parametrize("seed", range(5))
async def test_a_listener_and_an_exception_handler_may_enqueue_and_cancel(app, seed):
    listener = Reenterer(random.Random(seed))  # noqa: S311  # the same dice each time
    witness = Witness()
    register(app, witness)
    processor: EventProcessor = await app.start(
        listener=listener,
        exception_handler=lambda error: listener.act(EventContext.get()),
    )
    listener.processor = processor
    for number in range(200):
        payload = {"number": number, "turns": 1, "fails": number % 7 == 0}
        ident = f"ident {number % 10}"
        listener.futures.append(processor.enqueue_nowait(ident, Event(KINDS[number % 4], payload)))
        await asyncio.sleep(0)
    async with asyncio.timeout(SOON):
        await asyncio.wait(listener.futures)
    await processor.stop()
    assert all(future.done() for future in listener.futures)
    # Those that it enqueues have the next number of all, not of their ident.
    assert [wrong for wrong in witness.wrong if "beside" in wrong] == []


async def test_one_manager_can_serve_several_processors(app):
    """Their events of one ident exclude each other by the lock: no change is lost."""
    register(app, Witness())
    processors = [await app.start() for _ in range(4)]
    futures = [
        processor.enqueue_nowait("a", Event("change", {"number": n, "turns": 2, "fails": False}))
        for n in range(20)
        for processor in processors
    ]
    async with asyncio.timeout(SOON):
        await asyncio.gather(*futures)
    assert isinstance(app.manager, StateManagerMemory)
    log = await app.manager.get_state(StateToken("a", Log))
    assert sorted(log.numbers) == sorted(list(range(20)) * 4)
