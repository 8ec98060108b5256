"""`EventFuture`: the outcome of one event, and of those that it chained."""

import asyncio
from collections.abc import Generator, Iterator
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextvars import Context

    from statemgr.events.context import EventContext
    from statemgr.events.event import Event
    from statemgr.events.handler import Handler
    from statemgr.events.stream import DeltaStream


class Place(Enum):
    """Where an event stands."""

    NEW = auto()
    OUTSIDE = auto()  # waits for room in the queue
    QUEUED = auto()
    RUNNING = auto()
    OVER = auto()


class Chain:
    """One event from outside and all that came of it.

    Attributes:
        generation: Grows from one chain of a processor to the next.
        unfinished: Its events that are not over, by txid.
        stream: Takes the chain's deltas; None if nobody asked for them.
        supersedes: The handlers and idents for which this chain has cancelled older ones.
    """

    __slots__ = ("generation", "stream", "supersedes", "unfinished")

    def __init__(self, generation: int, stream: "DeltaStream | None") -> None:
        self.generation = generation
        self.stream = stream
        self.unfinished: dict[str, EventFuture] = {}
        self.supersedes: set[tuple[str, str]] = set()


class EventFuture(asyncio.Future[Any]):
    """Wait for one event, or for its whole chain; made by an `EventProcessor`.

    Its result is what the handler returned, None if that was events. Its exception is what kept
    the event from being done. `cancel()` takes an event that waits out of the queue at once; the
    handler of one that runs is cancelled, and the future is done when that has ended, as with a
    task. Whoever waits for it and is cancelled cancels it too: `asyncio.shield` keeps it.

    Attributes:
        committed: Whether what the handler changed was saved. It may have been although the
            future ends with an error, if that came from emitting the delta.
    """

    # NOTE: no reference leads from an event to the one that chained it. A handler that chains
    # itself for ever, as one that polls does, would hold all its past otherwise.
    __slots__ = (
        "_arguments",
        "_begun",
        "_cancels",
        "_chain",
        "_children",
        "_context",
        "_covered",
        "_emission_error",
        "_enqueued_at",
        "_event",
        "_handler",
        "_place",
        "_task",
        "_variables",
        "committed",
    )

    _arguments: dict[str, Any]
    _handler: "Handler"
    _variables: "Context"

    def __init__(
        self,
        context: "EventContext",
        event: "Event",
        chain: Chain,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(loop=loop)
        self._context = context
        self._event = event
        self._chain = chain
        self._begun = False  # its handler was called
        self._cancels = False  # it was asked to end
        self._children: list[EventFuture] | None = None
        self._covered: frozenset[tuple[str, str]] = frozenset()
        self._emission_error: Exception | None = None
        self._enqueued_at = 0.0
        self._place = Place.NEW
        self._task: asyncio.Task[None] | None = None
        self.committed = False

    @property
    def txid(self) -> str:
        """The event's id."""
        return self._context.txid

    @property
    def parent_txid(self) -> str | None:
        """The id of the event that this one was chained by; None if it came from outside."""
        return self._context.parent_txid

    @property
    def event(self) -> "Event":
        """The event."""
        return self._event

    @property
    def ident(self) -> str:
        """Whose event it is."""
        return self._context.ident

    @property
    def children(self) -> "tuple[EventFuture, ...]":
        """The futures of the events that this one has chained so far."""
        return tuple(self._children or ())

    def descendants(self) -> "Iterator[EventFuture]":
        """Yield the futures of all that came of this event so far, parents before children."""
        waiting = list(self._children or ())
        for future in waiting:  # which grows
            yield future
            waiting.extend(future._children or ())

    async def wait_all(self) -> Any:
        """Wait until this event and all that came of it are over, and return its own result.

        Cancelling this only stops the waiting.

        Raises:
            Whatever this event ended with. How the others ended is told by their own futures.
        """
        waiting = [self]
        for future in waiting:  # which grows
            if not future.done():
                self._context.processor._refuse_deadlock(future)
                await asyncio.wait((future,))
            waiting.extend(future._children or ())
        return self.result()

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel this event and all that came of it.

        Returns:
            Whether this event was not over.
        """
        processor = self._context.processor
        cancelled = processor._cancel(self, msg)
        for future in list(self.descendants()):
            processor._cancel(future, msg)
        return cancelled

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.done():
            self._context.processor._refuse_deadlock(self)
        return super().__await__()

    __iter__ = __await__

    def __repr__(self) -> str:
        state = self._place.name.lower() if not self.done() else "done"
        return f"<EventFuture {self._event!r} {self._context.txid} {state}>"
