"""Run one handler, of any kind, to its end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from contextvars import copy_context
from functools import partial
from inspect import isawaitable
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from statemgr.cancellation import outlast
from statemgr.errors import EventHandlerError, EventTimeoutError
from statemgr.events.body import StatesBody, modification_of
from statemgr.events.context import EventContext
from statemgr.events.event import Event
from statemgr.events.future import Progress
from statemgr.events.handler import Handler

# NOTE: no function here has the event's future in hand. An error's traceback keeps what they have,
# and the future keeps the error.


async def run_handler(
    handler: Handler, arguments: dict[str, Any], context: EventContext, progress: Progress
) -> Any:
    """Run a handler, save what it changes, and chain what it yields.

    Returns:
        What the handler returned.

    Raises:
        EventTimeoutError: If it took longer than its timeout.
        EventHandlerError: If it yielded something else than events, or returned what nobody runs.
    """
    for parameter in handler.context:
        arguments[parameter] = context
    if handler.timeout is None:
        if handler.states:
            return await _run_with_states(handler, arguments, context, progress, None)
        return await _call(handler, arguments, partial(chain_yielded, context, handler))
    try:
        async with asyncio.timeout(handler.timeout) as limit:
            if handler.states:
                return await _run_with_states(handler, arguments, context, progress, limit)
            result = await _call(handler, arguments, partial(chain_yielded, context, handler))
            if limit.expired():  # which the handler has swallowed
                raise TimeoutError  # noqa: TRY301  # the clause below is for it too
            return result
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise EventTimeoutError(
            f"{handler.name!r} took longer than its timeout of {handler.timeout:g} s",
            name=handler.name,
            timeout=handler.timeout,
        ) from error


async def _run_with_states(
    handler: Handler,
    arguments: dict[str, Any],
    context: EventContext,
    progress: Progress,
    limit: asyncio.Timeout | None,
) -> Any:
    """Run a handler with its states; once they are to be saved, its time has no limit."""
    held: list[Event] = []  # until the states are saved
    body = modification_of(context, handler.classes)
    if context.processor._tells(progress):
        body = StatesBody(body, context, handler.classes, progress)
    async with body as states:
        if len(handler.states) == 1:
            (parameter,) = handler.states
            arguments[parameter] = states
        else:
            arguments.update(zip(handler.states, states, strict=True))
        result = await _call(handler, arguments, partial(_hold, held, handler, body))
        if result is not None:
            events_in(result)  # while there is a way back
        if limit is not None:
            if limit.expired():  # which the handler has swallowed
                raise TimeoutError
            limit.reschedule(None)
    progress.committed = True
    for event in held:
        context.enqueue_nowait(event)
    return result


async def _call(
    handler: Handler, arguments: dict[str, Any], pass_on: Callable[[Any], Awaitable[None]]
) -> Any:
    """Run the function to its end, and pass on what it yields."""
    if handler.thread:
        result = await _in_thread(handler.fn, arguments)
        if isawaitable(result):  # of a wrapper, which shows what it wraps to nobody
            if isinstance(result, CoroutineType):
                result.close()
            raise EventHandlerError(
                f"{handler.name!r} returned a {type(result).__name__} in its thread: only an "
                "ordinary function runs in one"
            )
        return result
    result = handler.fn(**arguments)
    if type(result) is CoroutineType:  # nearly always, and a step less
        return await result
    return None if result is None else await outcome_of(result, pass_on)


async def outcome_of(result: Any, pass_on: Callable[[Any], Awaitable[None]]) -> Any:
    """Run what a call has returned to its end, and pass on what it yields.

    What it is tells its kind: a decorator's function is an ordinary one often, whatever it wraps.
    """
    if isinstance(result, GeneratorType):
        try:
            while True:
                try:
                    item = next(result)
                except StopIteration as end:
                    return end.value
                await pass_on(item)
        finally:
            result.close()
    if isinstance(result, AsyncGeneratorType):
        async with aclosing(result):
            async for item in result:
                await pass_on(item)
        return None
    return await result if isawaitable(result) else result


async def chain_yielded(context: EventContext, handler: Handler, item: Any) -> None:
    """Chain what a handler yields that holds no states."""
    for event in _yielded(handler, item):
        context.enqueue_nowait(event)


async def _hold(held: list[Event], handler: Handler, body: Any, item: Any) -> None:
    held.extend(_yielded(handler, item))
    if isinstance(body, StatesBody):  # somebody is to be told
        await body.tell()


async def _in_thread(fn: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Run a function in a thread; a cancel takes effect when that has ended."""
    call = partial(_no_stop_iteration, fn, arguments)
    work = asyncio.get_running_loop().run_in_executor(None, copy_context().run, call)
    cancelled = await outlast(work)  # what it changes is still its own
    if cancelled is not None:
        if not work.cancelled():
            work.exception()  # which nobody asks for any more
        raise cancelled
    return work.result()


def _no_stop_iteration(fn: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        return fn(**arguments)
    except StopIteration as error:  # which no future can hold
        raise RuntimeError("the handler raised StopIteration") from error


def events_in(value: Any) -> Sequence[Event]:
    """Return the events that a handler has returned or yielded: one, several or none.

    Raises:
        EventHandlerError: If there are events in what cannot be chained, or may be.
    """
    if isinstance(value, Event):
        return (value,)
    if isinstance(value, (list, tuple)) and any(map(_holds_events, value)):
        for item in value:
            if not isinstance(item, Event):
                raise EventHandlerError(f"a {type(item).__name__} stands among chained events")
        return value
    if isinstance(value, (GeneratorType, AsyncGeneratorType)):
        raise EventHandlerError(
            f"events are yielded, or returned in a list, not as {type(value).__name__}"
        )
    return ()


def _holds_events(item: Any) -> bool:
    """Tell whether this is an event, or a list that has one."""
    if isinstance(item, (list, tuple)):
        return any(isinstance(part, Event) for part in item)
    return isinstance(item, Event)


def _yielded(handler: Handler, item: Any) -> Sequence[Event]:
    events = events_in(item)
    if not events and item is not None and item not in ([], ()):
        raise EventHandlerError(
            f"{handler.name!r} yielded a {type(item).__name__}: a handler yields events or nothing"
        )
    return events
