"""Drive a coroutine step by step, and cancel it where it is told to be cancelled."""

import asyncio
import enum
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from types import coroutine
from typing import Any


class Moment(enum.Enum):
    """When a cancel arrives at an await."""

    BEGIN = "as it begins"
    """In the very step that began to wait: what was asked for has not left yet."""

    MIDWAY = "while it waits"
    """Two turns of the loop later, if it still waits: what was asked for is on its way."""

    RESULT = "with its result"
    """In the turn in which the result came: it was given, and the task has not learned of it."""


@dataclass(frozen=True)
class Cancel:
    """Where to cancel.

    Attributes:
        number: At which await, counted from 1; 0 is before the first step.
        moment: When, at that await.
        again: At which await after that to cancel once more, counted from 1; None for once only.
    """

    number: int
    moment: Moment = Moment.BEGIN
    again: int | None = None

    def __str__(self) -> str:
        if self.number == 0:
            return "cancelled before the first step"
        where = f"cancelled at await {self.number} {self.moment.value}"
        return where if self.again is None else f"{where}, again at await {self.again} after that"


class Steps:
    """Run one coroutine, and cancel it once or twice.

    Only what really suspends is an await here, however many coroutines down it stands.

    Args:
        plan: Where to cancel.
        cancel: Does it. None cancels the task that runs `drive`.
        phase: Says what the coroutine is at; noted with the first cancel.

    Attributes:
        awaits: How many awaits there were up to the first cancel, the one it came to included.
        awaits_after: How many there were after it.
        cancels: How many cancels have arrived.
        phase_then: What it was at when the first one did.
    """

    def __init__(
        self,
        plan: Cancel,
        cancel: Callable[[], object] | None = None,
        phase: Callable[[], str] = str,
    ) -> None:
        self.awaits = 0
        self.awaits_after = 0
        self.cancels = 0
        self.phase_then = ""
        self.plan = plan
        self._cancel = cancel
        self._phase = phase

    async def drive(self, subject: Coroutine[Any, Any, Any]) -> Any:
        """Run the coroutine to its end in this task."""
        if self._cancel is None:
            task = asyncio.current_task()
            assert task is not None
            self._cancel = task.cancel
        return await _driven(subject, self._suspended)

    def struck(self) -> None:
        """Take note of a cancel that came by another way."""
        if self.cancels == 0:
            self.phase_then = self._phase()
        self.cancels += 1

    def _strike(self) -> None:
        assert self._cancel is not None
        self.struck()
        self._cancel()

    def _suspended(self, awaited: object) -> None:
        """Be told of an await before it begins."""
        if self.cancels:
            self.awaits_after += 1
            if self.awaits_after == self.plan.again:
                self._strike()
            return
        self.awaits += 1
        if self.awaits != self.plan.number:
            return
        moment = self.plan.moment
        if moment is Moment.BEGIN or not isinstance(awaited, asyncio.Future):
            self._strike()
        elif moment is Moment.RESULT:
            # Added before the task's own callback, so it runs while the result is on its way.
            awaited.add_done_callback(lambda _: self._strike())
        else:
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._strike_if_waiting, awaited)

    def _strike_if_waiting(self, awaited: "asyncio.Future[Any]") -> None:
        if not awaited.done():
            self._strike()


@coroutine
def _driven(
    subject: Coroutine[Any, Any, Any], suspended: Callable[[object], None]
) -> Generator[Any, Any, Any]:
    error: BaseException | None = None
    while True:
        try:
            awaited = subject.send(None) if error is None else subject.throw(error)
        except StopIteration as end:
            return end.value
        suspended(awaited)
        try:
            yield awaited
        except BaseException as raised:  # passed on to where it belongs
            error = raised
        else:
            error = None
