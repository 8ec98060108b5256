"""Run one handler, of any kind, to its end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from contextvars import copy_context
from functools import partial
from inspect import isawaitable
from typing import Any

from statemgr.errors import EventHandlerError, EventTimeoutError
from statemgr.events.body import StatesBody
from statemgr.events.event import Event
from statemgr.events.future import EventFuture
from statemgr.events.handler import Handler, Kind

Chain = Callable[[Event], object]
"""Enqueues an event as a child of the one that runs."""


async def run_handler(future: EventFuture, chain: Chain) -> Any:
    """Run the handler of an event, save what it changes, and chain what it yields or returns.

    Returns:
        What the handler returned; None if that was events.

    Raises:
        EventTimeoutError: If it took longer than its timeout.
        EventHandlerError: If it yielded something else than events.
    """
    handler = future._handler
    if handler.simple:  # what _run would do, in fewer steps
        result = handler.fn(**future._arguments)
        if handler.kind is Kind.COROUTINE or (result is not None and isawaitable(result)):
            result = await result
    elif handler.timeout is None:
        result = await _run(future, handler, chain, None)
    else:
        result = await _run_in_time(future, handler, chain, handler.timeout)
    if result is None or not (events := _events_in(result)):
        return result
    for event in events:
        chain(event)
    return None


async def _run_in_time(future: EventFuture, handler: Handler, chain: Chain, timeout: float) -> Any:
    try:
        async with asyncio.timeout(timeout) as limit:
            return await _run(future, handler, chain, limit)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise EventTimeoutError(
            f"{handler.name!r} took longer than its timeout of {timeout:g} s",
            name=handler.name,
            timeout=timeout,
        ) from error


async def _run(
    future: EventFuture, handler: Handler, chain: Chain, limit: asyncio.Timeout | None
) -> Any:
    """Run a handler with all that it asks for; once it is to be saved, its time has no limit."""
    context = future._context
    arguments = future._arguments
    for parameter in handler.context:
        arguments[parameter] = context
    if not handler.states:
        return await _drive(handler, arguments, partial(_chain_now, chain, handler))
    held: list[Event] = []  # until the states are saved
    body = StatesBody(context, handler.classes, future)
    async with body as states:
        arguments.update(zip(handler.states, states, strict=True))
        if handler.kind is Kind.COROUTINE:  # nearly always: what _drive does, in one step less
            result = await handler.fn(**arguments)
        else:
            result = await _drive(handler, arguments, partial(_hold, held, handler, body))
        if result is not None:
            _events_in(result)  # while there is a way back
        if limit is not None:
            limit.reschedule(None)
    for event in held:
        chain(event)
    return result


async def _drive(
    handler: Handler, arguments: dict[str, Any], pass_on: Callable[[Any], Awaitable[None]]
) -> Any:
    """Run the function to its end, and pass on what it yields."""
    if handler.kind is Kind.THREAD:
        return await _in_thread(handler.fn, arguments)
    result = handler.fn(**arguments)
    if handler.kind is Kind.GENERATOR:
        try:
            while True:
                try:
                    item = next(result)
                except StopIteration as end:
                    return end.value
                await pass_on(item)
        finally:
            result.close()
    if handler.kind is Kind.ASYNC_GENERATOR:
        async with aclosing(result):
            async for item in result:
                await pass_on(item)
        return None
    if result is not None and isawaitable(result):
        result = await result
    return result


async def _chain_now(chain: Chain, handler: Handler, item: Any) -> None:
    for event in _yielded(handler, item):
        chain(event)


async def _hold(held: list[Event], handler: Handler, body: StatesBody, item: Any) -> None:
    held.extend(_yielded(handler, item))
    await body.tell()


async def _in_thread(fn: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Run a function in a thread; a cancel takes effect when that has ended."""
    call = partial(copy_context().run, fn, **arguments)
    work = asyncio.get_running_loop().run_in_executor(None, call)
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait((work,))
        except asyncio.CancelledError as error:
            cancelled = error  # what it changes is still its own
    if cancelled is not None:
        work.exception()  # which nobody asks for any more
        raise cancelled
    return work.result()


def _events_in(value: Any) -> Sequence[Event]:
    """Return the events that a handler has returned or yielded: one, several or none."""
    if isinstance(value, Event):
        return (value,)
    if isinstance(value, (list, tuple)) and any(isinstance(item, Event) for item in value):
        for item in value:
            if not isinstance(item, Event):
                raise EventHandlerError(f"a {type(item).__name__} stands among chained events")
        return value
    return ()


def _yielded(handler: Handler, item: Any) -> Sequence[Event]:
    events = _events_in(item)
    if not events and item is not None and item not in ([], ()):
        raise EventHandlerError(
            f"{handler.name!r} yielded a {type(item).__name__}: a handler yields events or nothing"
        )
    return events
