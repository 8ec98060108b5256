"""`Events` over an event processor: the same loops for ours and for Reflex."""

from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.subject import Events

ADD, STEP = "add", "step"
"""The events: one that stands by itself, and one that chains the next."""


class Tally:
    """Counts what handlers without a state have done."""

    __slots__ = ("handled",)

    def __init__(self) -> None:
        self.handled = 0


class ProcessorEvents(Events):
    """The loops over anything with `enqueue`, whose futures have `wait_all`.

    Args:
        processor: An `EventProcessor`, ours or Reflex's, with handlers for `ADD` and `STEP`.
        event_class: Makes an event from the keywords `name` and `payload`.
        tally: What the handlers count in.
    """

    def __init__(self, processor: Any, event_class: Callable[..., Any], tally: Tally) -> None:
        self._processor = processor
        self._event_class = event_class
        self._tally = tally

    async def fill(self, idents: Sequence[str]) -> None:
        pass

    async def send(self, idents: Sequence[str]) -> None:
        processor, event_class = self._processor, self._event_class
        for ident in idents:
            await (await processor.enqueue(ident, event_class(name=ADD, payload={"by": 1})))

    async def enqueue(self, idents: Sequence[str]) -> Sequence[Future[Any]]:
        processor, event_class = self._processor, self._event_class
        return [
            await processor.enqueue(ident, event_class(name=ADD, payload={"by": 1}))
            for ident in idents
        ]

    async def chain(self, idents: Sequence[str], length: int) -> None:
        processor, event_class = self._processor, self._event_class
        for ident in idents:
            event = event_class(name=STEP, payload={"left": length - 1})
            first = await processor.enqueue(ident, event)
            await first.wait_all()

    async def handled(self, idents: Sequence[str]) -> int:
        return self._tally.handled
