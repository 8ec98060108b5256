"""What an `EventProcessor` waits for, cancelled at all of its awaits."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from chaos.cancels.calls import Situation, call_waits, occupied
from chaos.cancels.stage import (
    COUNTER,
    PATIENCE,
    TOTAL,
    BrokenPromiseError,
    Counter,
    Stage,
    Total,
    in_time,
)
from chaos.cancels.stepping import Cancel, Steps
from chaos.cancels.stores import Store
from statemgr.errors import EventProcessorStoppedError
from statemgr.events import (
    Delta,
    Event,
    EventContext,
    EventFuture,
    EventProcessor,
    RegistrationContext,
)

IDENT = COUNTER.ident


class SteppingProcessor(EventProcessor):
    """Run the first event of one name step by step."""

    steps: Steps | None = None
    stepped = ""

    async def _run(self, future: EventFuture) -> None:
        steps = self.steps
        if steps is None or future.event.name != self.stepped:
            await super()._run(future)
            return
        self.steps = None
        await steps.drive(super()._run(future))


class EventStage(Stage):
    """A stage with a processor, new for each run.

    Attributes:
        processor: The processor.
        gate: What events of the name "block" wait for.
        client: The states of the ident as its client has been told.
    """

    processor: SteppingProcessor
    gate: asyncio.Event
    client: dict[str, int]

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._registry = _registry(self)

    async def start(self, *, max_queued_per_ident: int, max_queued: int) -> None:
        """Have a processor."""
        self.gate = asyncio.Event()
        self.client = {"Counter": self.old, "Total": self.old}
        self.processor = SteppingProcessor(
            self.manager,
            self._registry,
            emit_delta=self._emit,
            max_queued=max_queued,
            max_queued_per_ident=max_queued_per_ident,
        )
        await self.processor.start()

    async def _emit(self, ident: str, delta: Delta) -> None:
        for name, fields in delta.items():
            self.client[name] = fields["value"]
        await asyncio.sleep(0)

    async def stop(self) -> None:
        """Let all events end, and see that they do."""
        self.gate.set()
        await in_time(self.processor.stop(), "stop() does not end")


def _registry(stage: EventStage) -> RegistrationContext:
    registry = RegistrationContext()

    @registry.handler
    async def change(counter: Counter) -> AsyncGenerator[Event | None, None]:
        counter.value = stage.half
        yield None
        await asyncio.sleep(0)
        counter.value = stage.new
        stage.finished = True
        yield Event("add_up")

    @registry.handler
    async def add_up(counter: Counter, total: Total) -> None:
        total.value = counter.value

    @registry.handler
    async def both(counter: Counter, total: Total) -> None:
        counter.value = stage.half
        await asyncio.sleep(0)
        counter.value = total.value = stage.new
        stage.finished = True

    @registry.handler(background=True)
    async def beside(context: EventContext) -> None:
        async with context.modify(Counter) as counter:
            counter.value = stage.half
            await asyncio.sleep(0)
            counter.value = stage.new
            stage.finished = True

    @registry.handler
    async def block() -> None:
        await stage.gate.wait()

    @registry.handler
    async def nothing() -> None:
        await asyncio.sleep(0)

    return registry


@dataclass(frozen=True)
class EventCall:
    """What is cancelled, as one of the application's own tasks runs it.

    Attributes:
        name: Its name in the report.
        run: Makes the coroutine.
        drops: Whether a cancel drops the event that it waits for.
        main: Whether it is cancelled twice as well.
        full: Whether the queue is full when it is called.
        blocked: Whether an event runs that goes on when the call is over.
    """

    name: str
    run: Callable[[EventStage], Coroutine[Any, Any, Any]]
    drops: bool = True
    main: bool = False
    full: str = ""
    blocked: bool = False

    def situations(self, stage: EventStage) -> list[Situation]:
        """Return those that there can be on a stage."""
        return [Situation.FREE] if self.full or self.blocked else _all_but_fresh(stage)

    async def attempt(self, stage: EventStage, situation: Situation, plan: Cancel) -> Steps:
        """Run it, cancelled as planned, and look at what it has left.

        Raises:
            BrokenPromiseError: If something does not hold that must.
        """
        await stage.prepare(fresh=False)
        await stage.start(
            max_queued=1 if self.full == "in all" else 1000,
            max_queued_per_ident=1 if self.full == "for the ident" else 1000,
        )
        blocker = stage.processor.enqueue_nowait(IDENT, Event("block")) if self._blocks else None
        let_go = await occupied(stage, situation)
        steps = Steps(plan, phase=lambda: stage.phase)
        if plan.number:
            subject = asyncio.create_task(steps.drive(self.run(stage)))
        else:
            subject = asyncio.create_task(self.run(stage))
            subject.cancel()
            steps.struck()
        later = asyncio.create_task(_enqueue_later(stage, stops="stop" in self.name))
        stage.queue_others()
        await call_waits(stage, subject)
        if let_go is not None:
            let_go()
        if blocker is not None:
            stage.gate.set()
        await in_time(asyncio.wait([subject]), "the call does not end")
        ended = not subject.cancelled()
        if ended and (error := subject.exception()) is not None:
            raise BrokenPromiseError(f"it ended with {error!r}") from error
        if ended and steps.cancels:
            raise BrokenPromiseError("the cancel was swallowed")
        await in_time(asyncio.wait([later]), "an event behind it never had its turn")
        later.result()
        await stage.stop()
        await stage.settle()
        allowed = self._allowed(stage, ended, started=plan.number > 0)
        # Who leaves a stream does not get the rest of it, and starts from a snapshot again.
        await _compare(stage, allowed, client=ended or self.name != "enqueue_stream_delta")
        return steps

    @property
    def _blocks(self) -> bool:
        return self.blocked or bool(self.full)

    def _allowed(self, stage: EventStage, ended: bool, *, started: bool) -> set[tuple[int, int]]:
        old, half_way, new = _values(stage)
        if self.name == "snapshot" or not started:
            return {old}
        if ended or not self.drops:
            return {new}
        if self.name.startswith("enqueue,"):
            return {old}  # it was still waiting for room
        return {old, half_way, new} if stage.finished else {old}


@dataclass(frozen=True)
class HandlerTask:
    """The task that runs a handler, cancelled by its event's future."""

    name: str
    event: str
    main: bool = True

    def situations(self, stage: EventStage) -> list[Situation]:
        """Return those that there can be on a stage."""
        return _all_but_fresh(stage)

    async def attempt(self, stage: EventStage, situation: Situation, plan: Cancel) -> Steps:
        """Run the event, cancelled as planned, and look at what it has left.

        Raises:
            BrokenPromiseError: If something does not hold that must.
        """
        await stage.prepare(fresh=False)
        await stage.start(max_queued=1000, max_queued_per_ident=1000)
        let_go = await occupied(stage, situation)
        processor = stage.processor
        future = processor.enqueue_nowait(IDENT, Event(self.event))
        steps = processor.steps = Steps(plan, cancel=future.cancel, phase=lambda: stage.phase)
        processor.stepped = self.event
        if plan.number == 0:
            future.cancel()
            steps.struck()
        behind = processor.enqueue_nowait(IDENT, Event("nothing"))
        beside = processor.enqueue_nowait("user-2", Event("nothing"))
        waiting = asyncio.create_task(asyncio.wait([future]))
        stage.queue_others()
        await call_waits(stage, waiting)
        if let_go is not None:
            let_go()
        _, late = await asyncio.wait([future, behind, beside], timeout=PATIENCE)
        if late:
            raise BrokenPromiseError(f"events that are never over: {late}")
        await waiting
        behind.result(), beside.result()
        if future.cancelled() != bool(steps.cancels):
            raise BrokenPromiseError(f"{steps.cancels} cancels, and the future is {future}")
        await stage.stop()
        await stage.settle()
        await _compare(stage, self._allowed(stage, future, started=plan.number > 0), client=True)
        return steps

    def _allowed(
        self, stage: EventStage, future: EventFuture, *, started: bool
    ) -> set[tuple[int, int]]:
        old, half_way, new = _values(stage)
        if self.event == "both":
            half_way = new
        if not started:
            return {old}
        if not future.cancelled():
            return {half_way if self.event == "beside" else new}
        if future.committed:
            return {half_way, new}
        return {old, half_way} if stage.finished else {old}


def _values(stage: Stage) -> tuple[tuple[int, int], ...]:
    return (stage.old, stage.old), (stage.new, stage.old), (stage.new, stage.new)


def _all_but_fresh(stage: Stage) -> list[Situation]:
    found = [Situation.FREE, Situation.HELD_HERE]
    return [*found, Situation.HELD_ELSEWHERE] if stage.store.shared else found


async def _enqueue_later(stage: EventStage, *, stops: bool) -> None:
    """Ask for room after the call did, and see the event done."""
    try:
        future = await stage.processor.enqueue(IDENT, Event("nothing"))
    except EventProcessorStoppedError:
        if stops:
            return
        raise
    await asyncio.wait([future])
    if future.cancelled() and not stops:
        raise BrokenPromiseError("an event that nobody cancelled was cancelled")


async def _compare(stage: EventStage, allowed: set[tuple[int, int]], *, client: bool) -> None:
    """See that the client has what is stored, if there is one, and look at the stage."""
    states = await stage.manager.get_states(COUNTER, TOTAL)
    stored = [state.value for state in states]
    if client and [stage.client["Counter"], stage.client["Total"]] != stored:
        raise BrokenPromiseError(f"the client has {stage.client}, the store {stored}")
    await stage.look(allowed)


# What an application's own tasks call


async def _enqueue(stage: EventStage) -> None:
    await stage.processor.enqueue(IDENT, Event("change"))


async def _future(stage: EventStage) -> None:
    await stage.processor.enqueue_nowait(IDENT, Event("change"))


async def _wait_all(stage: EventStage) -> None:
    await stage.processor.enqueue_nowait(IDENT, Event("change")).wait_all()


async def _stream(stage: EventStage) -> None:
    stream = stage.processor.enqueue_stream_delta(IDENT, Event("change"))
    async with aclosing(stream) as deltas:
        async for delta in deltas:
            await stage._emit(IDENT, delta)


async def _snapshot(stage: EventStage) -> None:
    found = await stage.processor.snapshot(IDENT, Counter, Total)
    if found != {"Counter": {"value": stage.old}, "Total": {"value": stage.old}}:
        raise BrokenPromiseError(f"it returned {found}")


async def _stop(stage: EventStage) -> None:
    stage.processor.enqueue_nowait(IDENT, Event("change"))
    await stage.processor.stop()


async def _leave(stage: EventStage) -> None:
    stage.processor.enqueue_nowait(IDENT, Event("change"))
    await stage.processor.__aexit__(None, None, None)


EVENT_CALLS = (
    EventCall("enqueue", _enqueue),
    EventCall("enqueue, ident full", _enqueue, full="for the ident", main=True),
    EventCall("enqueue, queue full", _enqueue, full="in all", main=True),
    EventCall("await future", _future, main=True),
    EventCall("wait_all", _wait_all, drops=False),
    EventCall("enqueue_stream_delta", _stream, main=True),
    EventCall("snapshot", _snapshot, drops=False),
    EventCall("stop", _stop, drops=False, blocked=True, main=True),
    EventCall("stop at the end of async with", _leave, drops=False, blocked=True),
    HandlerTask("handler, yields", "change"),
    HandlerTask("handler, two states", "both"),
    HandlerTask("handler, ctx.modify", "beside"),
)
