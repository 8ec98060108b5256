"""`Reports`: the errors of events, on their way to the application's `exception_handler`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from inspect import isawaitable
from typing import Any

from statemgr.events.context import EventContext

ExceptionHandler = Callable[[BaseException], Awaitable[object] | object]

logger = logging.getLogger("statemgr.events")


class Reports:
    """Hand errors to an `exception_handler`; log them without one, and what it raises itself.

    Args:
        exception_handler: As `EventProcessor` describes it.
        on_done: Called each time that what the handler does by and by is done.

    Attributes:
        tasks: What it does by and by.
        only_logs: Whether there is no `exception_handler`.
    """

    def __init__(
        self, exception_handler: ExceptionHandler | None, on_done: Callable[[], None]
    ) -> None:
        self._exception_handler = exception_handler
        self.only_logs = exception_handler is None
        self._on_done = on_done
        self._is_reporting = False
        self.tasks: set[asyncio.Task[None]] = set()

    def report(
        self, error: BaseException, context: EventContext, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Hand over an error; a bit later if the handler has just caused it, or it would recurse.

        Args:
            error: What an event's future ends with.
            context: The event's.
            loop: Runs what is not done at once.
        """
        if self._exception_handler is None:
            logger.error("event %r failed (%s)", context.name, context.txid, exc_info=error)
            return
        call = partial(self._exception_handler, error)
        variables = copy_context()
        variables.run(EventContext._variable.set, context)
        if self._is_reporting:
            self._start(_to_its_end(call), variables, loop)
            return
        self._is_reporting = True
        try:
            answer = variables.run(call)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            logger.exception("the exception_handler failed")
        else:
            if isawaitable(answer):
                self._start(_to_its_end(lambda: answer), variables, loop)
        finally:
            self._is_reporting = False

    def cancel(self) -> None:
        """Cancel what is not done yet."""
        for task in self.tasks:
            task.cancel()

    def leave_behind(self) -> None:
        """Cancel it once more, and know nothing of it from now on."""
        self.cancel()
        self.tasks.clear()

    def _start(
        self,
        report: Coroutine[Any, Any, None],
        variables: Context,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        task = asyncio.Task(report, loop=loop, context=variables)
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("the exception_handler failed", exc_info=task.exception())
        self._on_done()


async def _to_its_end(call: Callable[[], Any]) -> None:
    answer = call()
    if isawaitable(answer):
        await answer
