"""`EventProcessor`: run events, each ident's in order, those of different idents side by side.

Each event runs in a task of its own, so that a cancel, a context variable or a lock held by one
is never another's. The task ends by starting the next event of its ident: nothing recurses, and
no task waits in between.
"""

import asyncio
import itertools
import logging
import os
from _thread import get_ident
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextvars import copy_context
from functools import cache, lru_cache, partial
from inspect import isawaitable
from time import monotonic
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from statemgr.errors import (
    EventDeadlockError,
    EventHandlerError,
    EventProcessorStoppedError,
    EventQueueFullError,
    WrongLoopError,
)
from statemgr.events.body import StatesBody, modification_of
from statemgr.events.checks import (
    check_event,
    check_ident,
    check_positive,
    check_timeout,
    registry_of,
)
from statemgr.events.context import EventContext
from statemgr.events.delta import Delta
from statemgr.events.event import Event
from statemgr.events.future import EventFuture, Place, Progress
from statemgr.events.handler import Handler
from statemgr.events.queue import EventQueue
from statemgr.events.registry import RegistrationContext
from statemgr.events.reports import ExceptionHandler, Reports
from statemgr.events.running import chain_yielded, events_in, outcome_of, run_handler
from statemgr.events.stream import DeltaStream
from statemgr.events.superseding import Superseding
from statemgr.events.tracing import EventListener, notify
from statemgr.manager import StateManager
from statemgr.serialization.fields import Fields

if TYPE_CHECKING:
    from statemgr.token import StateToken

EmitDelta = Callable[[str, Delta], Awaitable[object] | object]
EmitEvent = Callable[..., Awaitable[object] | object]

_GRACE: Final = 0.02  # seconds that cancelled handlers have after a deadline
_TOKENS: Final = 16_384  # kept ready to be used again, with the states' keys in them

logger = logging.getLogger("statemgr.events")


class EventProcessor:
    """Run the events of an application on the server.

        async with EventProcessor(manager, registry) as processor:
            future = await processor.enqueue("user-42", Event("add", {"item": "tea"}))
            await future

    The events of one ident run one at a time, in the order of asking; those of different idents
    side by side. What a handler changes in the states it takes is saved when it ends, all or
    nothing. Then what changed is emitted as a delta, and the events that it yielded or returned
    are chained; those of a handler that fails are not.

    Each event ends in its future with a result, with the error that kept it from being done, or
    cancelled. An error also goes to `exception_handler`. Neither keeps other events from running.

    Args:
        manager: Keeps the states. Closing it is the caller's, after `stop()`.
        registry: The handlers; None takes `RegistrationContext.get()`.
        emit_delta: Called with an ident and a delta, when there is one; may be a coroutine
            function. The event is over only when it has returned, so that a client which may not
            answer needs a timeout in it. If it raises, the change stays, and the event's future
            ends with the error.
        emit_event: Called with an ident and events for its client: what `ctx.emit_event` does.
        exception_handler: Called with each error that a future ends with, a cancel not among
            them, while `EventContext.get()` is the event's; may be a coroutine function. None
            logs the errors; that of an event from outside which is refused, for its name or its
            payload, only if nobody asks the future, as asyncio does.
        listener: Is told of all that happens to events.
        max_queued: How many events may be accepted and not over: `enqueue` waits then, and
            `enqueue_nowait` raises. Events that handlers chain are always accepted.
        max_queued_per_ident: The same for one ident.
        stop_timeout: Seconds that leaving `async with` may take, as `stop` describes; None for
            as long as it takes.

    Raises:
        SettingsError: If an argument cannot have its value.
        LookupError: If no registry is given, and there is none in the context.
    """

    _token: "Callable[[str, type[Any]], StateToken[Any]]"
    _fields: Callable[[type[Any]], Fields]

    def __init__(
        self,
        manager: StateManager,
        registry: RegistrationContext | None = None,
        *,
        emit_delta: EmitDelta | None = None,
        emit_event: EmitEvent | None = None,
        exception_handler: ExceptionHandler | None = None,
        listener: EventListener | None = None,
        max_queued: int = 250_000,
        max_queued_per_ident: int = 25_000,
        stop_timeout: float | None = None,
    ) -> None:
        check_positive("max_queued", max_queued)
        check_positive("max_queued_per_ident", max_queued_per_ident)
        check_timeout("stop_timeout", stop_timeout)
        self.manager = manager
        self.registry = registry_of(registry)
        self._emit_delta_to = emit_delta
        self._emit_event_to = emit_event
        self._listener = listener
        self._stop_timeout = stop_timeout
        self._queue = EventQueue(self._start, max_queued, max_queued_per_ident)
        self._unfinished: dict[int, EventFuture] = {}  # by number
        self._reports = Reports(exception_handler, self._end_if_idle)
        self._superseding = Superseding(self._cancel_all)
        self._cancelling: set[EventFuture] = set()  # by a cancel() that has not returned yet
        self._new_number = itertools.count(1).__next__
        self._txid_prefix = os.urandom(6).hex()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread_id = 0
        self._ended: asyncio.Future[None] | None = None
        self._accepts = False
        self._expired = False
        self._deadline: asyncio.TimerHandle | None = None
        # What is made for one event serves the next one of its ident or class.
        self._token = lru_cache(_TOKENS)(self.registry.token)  # type: ignore[assignment]  # cls has a hash
        self._fields = cache(self._fields_of)  # type: ignore[assignment]  # cls has a hash

    # Starting and stopping

    async def start(self) -> None:
        """Take events from now on. `async with` calls it.

        Raises:
            EventProcessorStoppedError: If the processor was started before.
        """
        if self._ended is not None:
            raise EventProcessorStoppedError("a processor is started once: make another one")
        self._loop = asyncio.get_running_loop()
        self._thread_id = get_ident()
        self._ended = self._loop.create_future()
        self._accepts = True

    async def stop(self, timeout: float | None = None) -> None:
        """Take no more events, and wait until all that were accepted are over.

        Events that these chain are still run. At the deadline nothing more is started: events
        that wait are cancelled, and the handlers that run too. One that does not end then is
        left behind after 20 ms, its future cancelled, and this is logged.

        May be called from any task and several times: each call waits for the same end, and the
        earliest deadline counts. Cancelling it only stops the waiting.

        Args:
            timeout: The deadline in seconds from now; None for none, 0 to end at once.

        Raises:
            SettingsError: If the timeout is negative.
            EventDeadlockError: If a handler calls it, which it would have to wait for.
        """
        check_timeout("timeout", timeout)
        if self._loop is None or self._ended is None:
            return
        self._check_loop()
        if self._ended.done():
            return
        if self._running_here() is not None or asyncio.current_task() in self._reports.tasks:
            raise EventDeadlockError(
                "stop() waits until its caller, a handler, has ended: call it from another task"
            )
        if self._accepts:
            self._accepts = False
            for future in [f for f in self._unfinished.values() if f._place is Place.OUTSIDE]:
                self._finish(future, asyncio.CancelledError())
        if timeout is not None and not self._expired:
            due = self._loop.time() + timeout
            if self._deadline is None or due < self._deadline.when():
                if self._deadline is not None:
                    self._deadline.cancel()
                self._deadline = self._loop.call_at(due, self._expire)
        self._end_if_idle()
        await asyncio.shield(self._ended)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop(self._stop_timeout)

    # Enqueueing

    async def enqueue(self, ident: str, event: Event) -> EventFuture:
        """Accept an event, and return its future.

        Waits while as many events are queued as may be. An event that no handler is registered
        for, or whose payload does not fit, is not queued: its future has failed already.

        Cancelling it while it waits drops the event.

        Raises:
            EventProcessorStoppedError: If the processor takes no events, or stops taking them
                while this waits.
            InvalidTokenError: If the ident is not a string, or empty.
            WrongLoopError: If it is called on another event loop than `start()` was.
        """
        self._check(ident, event)
        future = self._new_root(ident, event)
        if future._place is Place.NEW and not self._queue.add_if_room(future):
            await self._wait_for_room(future)
        return future

    def enqueue_nowait(self, ident: str, event: Event) -> EventFuture:
        """Do what `enqueue` does, without waiting.

        Raises:
            EventQueueFullError: If as many events are queued as may be. What the event supersedes
                is cancelled all the same.
        """
        self._check(ident, event)
        future = self._new_root(ident, event)
        if future._place is Place.NEW and not self._queue.add_if_room(future):
            self._finish(future, asyncio.CancelledError())
            raise EventQueueFullError(
                "the queue is full: wait with `await enqueue(...)`, or raise max_queued or "
                "max_queued_per_ident"
            )
        return future

    async def enqueue_stream_delta(self, ident: str, event: Event) -> AsyncGenerator[Delta, None]:
        """Enqueue an event, and yield the deltas of its whole chain for this ident.

        They are yielded in place of going to `emit_delta`; those for other idents go there. Those
        that are not read yet are kept, and nothing bounds them: no handler waits for the reader,
        who may be waiting for the handler, or for the lock that it holds.

        The generator ends when the chain is over. Leaving it early cancels the chain: leave it by
        `async with contextlib.aclosing(...)`, so that this happens at once.

        Raises:
            As `enqueue` does; and, after the last delta, whatever the event itself ended with.
        """
        self._check(ident, event)
        number = self._new_number()
        stream = DeltaStream(ident, number)
        future = self._new(
            EventContext(ident, event.name, number, None, self), event, stream=stream
        )
        try:
            if future._place is Place.NEW and not self._queue.add_if_room(future):
                await self._wait_for_room(future)
            if not future.done():
                self._waits_in_handler(future)
            del future  # it holds all that comes of it, which may never end
            while (delta := await stream.get()) is not None:
                yield delta
            if stream.outcome is not None:
                raise stream.outcome
        finally:
            stream.open = False
            self._cancel_all(list(stream.members.values()))

    async def snapshot(self, ident: str, *classes: type[Any]) -> Delta:
        """Return all fields of an ident's states: what a client starts from, as one delta.

        Raises:
            As `StateManager.get_states` does.
        """
        states = await self.manager.get_states(*(self._token(ident, cls) for cls in classes))
        whole = {}
        for cls, state in zip(classes, states, strict=True):
            fields = self._fields(cls)
            whole[self.registry.name_of(cls)] = fields.values(fields.image(state))
        return whole

    async def _wait_for_room(self, future: EventFuture) -> None:
        """Queue an event that there is no room for, as soon as there is.

        Raises:
            EventProcessorStoppedError: If the processor stops before.
        """
        if self._running_here() is not None:  # which it might wait for
            self._queue.add(future)
            return
        waiter = self._queue.add_outside(future)
        try:
            await waiter
        except asyncio.CancelledError:
            self._cancel(future)
            raise
        if future.done() and not self._accepts:
            raise EventProcessorStoppedError("the processor was stopped")

    def _check(self, ident: str, event: Event) -> None:
        if not self._accepts:
            if self._ended is None:
                raise EventProcessorStoppedError(
                    "the processor is not started: enter it by `async with`, or await start()"
                )
            raise EventProcessorStoppedError("the processor was stopped")
        self._check_loop()
        check_ident(ident)
        check_event(event)

    def _check_loop(self) -> None:
        # In one thread only one loop runs at a time. (get_running_loop() asks the kernel for the
        # process id each time on Python 3.11.)
        if get_ident() != self._thread_id or self._loop is None or not self._loop.is_running():
            raise WrongLoopError(
                "the processor belongs to another event loop; in a thread, return events instead"
            )

    def _txid(self, number: int) -> str:
        return f"{self._txid_prefix}-{number:x}"

    def _new_root(self, ident: str, event: Event) -> EventFuture:
        return self._new(EventContext(ident, event.name, self._new_number(), None, self), event)

    def _chain(self, parent: EventContext, event: Event, ident: str | None = None) -> EventFuture:
        """Accept an event that a handler has chained."""
        check_event(event)
        if ident is not None:
            check_ident(ident)
        self._check_loop()
        by = self._unfinished.get(parent._number)
        if by is None:  # a task that a handler left behind: what it chains is a chain of its own
            self._check(parent.ident, event)
        future = self._new(parent.fork(event.name, ident), event, by)
        if future._place is Place.NEW:
            self._queue.add(future)
        return future

    def _new(
        self,
        context: EventContext,
        event: Event,
        parent: EventFuture | None = None,
        stream: DeltaStream | None = None,
    ) -> EventFuture:
        """Make the future of an event, which is over at once, or else is to be queued."""
        assert self._loop is not None  # noqa: S101  # nothing is accepted before the start
        handler, found = self._prepared(event)
        number = context._number
        if parent is None:
            future = EventFuture(context, event, self._loop, number)
            if stream is not None:
                future._stream = stream
                future._scopes = (stream,)
        else:
            future = EventFuture(context, event, self._loop, parent._root)
            future._stream = parent._stream
            future._scopes = parent._scopes
            if parent._children is None:
                parent._children = []
            parent._children.append(future)
        self._unfinished[number] = future
        for scope in future._scopes:
            scope.members[number] = future
        if self._listener is not None:
            future._enqueued_at = monotonic()
            notify(self._listener.enqueued, context)
        if handler is None:
            self._finish(future, found)
            return future
        future._handler = handler
        if (
            self._expired
            or (parent is not None and parent._is_cancelling())
            or (handler.supersedes and not self._superseding.admit(future))
        ):
            self._finish(future, asyncio.CancelledError())
        else:
            future._arguments = found
            future._variables = copy_context()
        return future

    def _prepared(self, event: Event) -> tuple[Handler | None, Any]:
        """Return the handler and its arguments; or None and what keeps it from being called."""
        try:
            handler = self.registry.find(event.name)
            return handler, handler.payload.arguments(event.payload)
        except Exception as error:  # also what a payload's own methods raise
            # Tracebacks would lead to the future that is to hold it.
            error.__context__ = None
            return None, error.with_traceback(None)

    # Running

    def _start(self, future: EventFuture) -> None:
        """Run an event: its turn has come."""
        # Not by create_task(): a task factory may run the handler here, before this has returned.
        future._task = asyncio.Task(
            self._run(future),
            loop=self._loop,
            name=future._event.name,
            context=future._variables,
        )

    async def _run(self, future: EventFuture) -> None:
        if future._place is Place.OVER:  # cancelled before the task's first step
            return
        future._place = Place.RUNNING
        context = future._context
        handler = future._handler
        EventContext._variable.set(context)
        if self._listener is not None:
            notify(self._listener.started, context, monotonic() - future._enqueued_at)
        outcome: BaseException | None = None
        result = None
        try:
            if handler.simple:  # what run_handler does, in fewer steps
                result = handler.fn(**future._arguments)
                if type(result) is CoroutineType:
                    result = await result
                elif result is not None:
                    result = await outcome_of(result, partial(chain_yielded, context, handler))
            else:
                progress = future._progress = Progress(future._stream)
                result = await run_handler(handler, future._arguments, context, progress)
            if result is not None and (events := events_in(result)):
                result = None
                for event in events:
                    self._chain(context, event)
        except BaseException as error:
            outcome = error
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
        finally:
            self._finish(future, outcome, result)
            # The error's traceback leads here: nothing is to lead back to the error.
            del outcome, future

    def _finish(
        self, future: EventFuture, outcome: BaseException | None, result: Any = None
    ) -> None:
        """Settle a future, let the next event run, and tell who is to know."""
        assert self._loop is not None  # noqa: S101  # nothing is accepted before the start
        if future._place is Place.OVER or self._loop.is_closed():
            return  # it was left behind at the deadline, or with the loop
        context = future._context
        progress = future._progress
        not_sent = None if progress is None else progress.emission_error
        if not_sent is not None and progress is not None:
            progress.emission_error = None
            if progress.committed:
                not_sent.add_note(f"{context.name!r}: what it changed is saved, and was not told")
            if outcome is None:
                outcome = not_sent
        is_new = future._place is Place.NEW
        stream = future._stream
        # NOTE: a client can send what is refused as often as it likes. Whoever enqueues it has the
        # future at once, with the error: it is logged, by asyncio, only if nobody asks for it.
        is_left_to_caller = is_new and context._parent_number is None and self._reports.only_logs
        if not future.done():
            if outcome is None:
                future.set_result(result)
            elif isinstance(outcome, asyncio.CancelledError):
                asyncio.Future.cancel(future)
            else:
                future.set_exception(_settable(outcome))
                if not is_left_to_caller or stream is not None:  # whose reader gets it
                    future.exception()  # it is told otherwise, also if nobody waits for it
        if stream is not None and stream.root == context._number:
            stream.outcome = outcome
        del self._unfinished[context._number]
        if not self._unfinished:
            self._unfinished.clear()  # gives back the room that so many events took
        for scope in future._scopes:
            scope.leave(context._number)
        future._forget()
        if is_new or self._expired:
            future._place = Place.OVER
        else:
            self._queue.remove(future)
        if self._listener is not None:
            seconds = monotonic() - future._enqueued_at
            if outcome is None:
                notify(self._listener.finished, context, seconds)
            else:
                notify(self._listener.failed, context, outcome, seconds)
        if (
            outcome is not None
            and not isinstance(outcome, asyncio.CancelledError)
            and not is_left_to_caller
        ):
            self._reports.report(outcome, context, self._loop)
        if not_sent is not None and not_sent is not outcome:
            self._reports.report(not_sent, context, self._loop)
        if not self._accepts:
            self._end_if_idle()

    def _cancel(self, future: EventFuture, msg: Any | None = None) -> bool:
        """Cancel an event and all that came of it; return whether it was not over."""
        # NOTE: to cancel a handler's task that waits for a future is to cancel that future. What
        # is on its way to be cancelled is not gone through again, or chains would recurse.
        if future in self._cancelling:
            return not future.done()
        was_over = future.done()
        self._cancel_all([future, *future.descendants()], msg)
        return not was_over

    def _cancel_all(self, futures: list[EventFuture], msg: Any | None = None) -> None:
        """Cancel events, the last first, so that who waits for another finds it cancelled."""
        fresh = [f for f in futures if not f.done() and f not in self._cancelling]
        self._cancelling.update(fresh)
        try:
            for future in reversed(fresh):
                if future._place is Place.RUNNING:
                    assert future._task is not None  # noqa: S101  # it runs in one
                    future._task.cancel(msg)
                else:
                    self._finish(future, asyncio.CancelledError())
        finally:
            self._cancelling.difference_update(fresh)

    def _running_here(self) -> EventFuture | None:
        """Return the event whose handler's own task calls this."""
        context = EventContext._variable.get(None)
        future = None if context is None else self._unfinished.get(context._number)
        if future is None or future._task is not asyncio.current_task():
            return None
        return future

    def _waits_in_handler(self, future: EventFuture) -> bool:
        """Tell whether a handler's own task calls this, to wait for an event.

        Raises:
            EventDeadlockError: If that event has to wait for the handler.
        """
        by = self._running_here()
        if by is None:
            return False
        alone = by._handler.background or future._handler.background
        if future._context.ident == by._context.ident and not alone:
            raise EventDeadlockError(
                f"{by._context.name!r} waits for {future._context.name!r} of the same ident, which "
                "runs after it: return the event, or do the rest in another one"
            )
        return True

    # Telling others

    async def _emit_delta(self, context: EventContext, delta: Delta) -> None:
        future = self._unfinished.get(context._number)
        sent = self._send_delta(context, None if future is None else future._stream, delta)
        if sent is not None:
            await sent

    def _send_delta(
        self, context: EventContext, stream: DeltaStream | None, delta: Delta
    ) -> Awaitable[object] | None:
        """Send a delta; return what is still to be awaited."""
        if stream is not None and stream.open and stream.ident == context.ident:
            stream.put(delta)
            return asyncio.sleep(0)  # a handler that tells on and on would let nobody read
        if self._emit_delta_to is not None:
            sent: Any = self._emit_delta_to(context.ident, delta)
            if type(sent) is CoroutineType or isawaitable(sent):
                return sent
        return None

    async def _emit_event(self, ident: str, events: Sequence[Event]) -> None:
        if self._emit_event_to is not None:
            sent = self._emit_event_to(ident, *events)
            if isawaitable(sent):
                await sent

    def _modify(
        self, context: EventContext, classes: Sequence[type[Any]], timeout: float | None
    ) -> Any:
        future = self._unfinished.get(context._number)
        if future is None:
            raise EventHandlerError(f"{context.name!r} is over: modify() works while it runs")
        if future._progress is None:
            future._progress = Progress(future._stream)
        modification = modification_of(context, classes, timeout)
        return StatesBody(modification, context, classes, future._progress)

    def _tells(self, progress: Progress) -> bool:
        """Tell whether anybody is told of what a handler does to its states."""
        return (
            self._emit_delta_to is not None
            or self._listener is not None
            or progress.stream is not None
        )

    def _fields_of(self, cls: type[Any]) -> Fields:
        return self.registry.token("any", cls).fields()

    # The end

    def _end_if_idle(self) -> None:
        if self._accepts or self._unfinished or self._reports.tasks:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _expire(self) -> None:
        """Start nothing more, and cancel all that is there."""
        assert self._loop is not None  # noqa: S101  # only stop() plans it
        self._expired = True
        futures = list(self._unfinished.values())
        running = [future for future in futures if future._place is Place.RUNNING]
        self._unfinished = {future._context._number: future for future in running}
        self._queue.clear()
        for future in futures:
            if future._place is not Place.RUNNING:
                self._drop(future)
        self._cancel_all(running)
        self._reports.cancel()
        self._deadline = self._loop.call_later(_GRACE, self._leave_behind)
        self._end_if_idle()

    def _drop(self, future: EventFuture) -> None:
        """Do what _finish does, for what may be a hundred thousand events that never ran."""
        future._place = Place.OVER
        asyncio.Future.cancel(future)
        if future._stream is not None and future._stream.root == future._context._number:
            future._stream.outcome = asyncio.CancelledError()
        for scope in future._scopes:
            scope.leave(future._context._number)
        future._forget()
        if self._listener is not None:
            seconds = monotonic() - future._enqueued_at
            cancelled = asyncio.CancelledError()
            notify(self._listener.failed, future._context, cancelled, seconds)

    def _leave_behind(self) -> None:
        """Settle the futures of handlers that do not end."""
        for future in list(self._unfinished.values()):
            logger.error(
                "event %r (%s) did not end when cancelled, and is left behind",
                future._context.name,
                future.txid,
            )
            self._finish(future, asyncio.CancelledError())
        self._reports.leave_behind()
        self._end_if_idle()


def _settable(error: BaseException) -> BaseException:
    if not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError("the handler raised StopIteration")  # no future can hold that
    wrapped.__cause__ = error
    return wrapped
