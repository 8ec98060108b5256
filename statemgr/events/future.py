"""`EventFuture`: the outcome of one event, and of those that it chained."""

import asyncio
from collections.abc import Generator, Iterator
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

from statemgr.events.context import EventContext

if TYPE_CHECKING:
    from contextvars import Context

    from statemgr.events.event import Event
    from statemgr.events.handler import Handler
    from statemgr.events.stream import DeltaStream


_NO_ARGUMENTS: Final[dict[str, Any]] = {}


class Place(Enum):
    """Where an event stands."""

    NEW = auto()
    OUTSIDE = auto()  # waits for room in the queue
    QUEUED = auto()
    RUNNING = auto()  # its handler was called
    OVER = auto()


class Progress:
    """What the handler of an event has come to so far.

    Apart from the future, because what an error's traceback leads to must not lead back to the
    future that holds the error.

    Attributes:
        stream: Takes the deltas of the chain; None if nobody asked for them.
        committed: Whether something was saved.
        emission_error: The first error in emitting a delta of what changed.
    """

    __slots__ = ("committed", "emission_error", "stream")

    def __init__(self, stream: "DeltaStream | None") -> None:
        self.stream = stream
        self.committed = False
        self.emission_error: Exception | None = None


class Scope:
    """Events that belong together: what came of one event, that one included.

    Attributes:
        root: The number of the event from outside that all of them came of.
        members: Those that are not over, by number.
    """

    __slots__ = ("members", "root")

    def __init__(self, root: int) -> None:
        self.root = root
        self.members: dict[int, EventFuture] = {}

    def leave(self, number: int) -> None:
        """Take out a member that is over."""
        del self.members[number]
        if not self.members:
            self.ended()

    def ended(self) -> None:
        """Be told that no member is left."""


class EventFuture(asyncio.Future[Any]):
    """Wait for one event, or for its whole chain; made by an `EventProcessor`.

    Its result is what the handler returned, None if that was events. Its exception is what kept
    the event from being done. `cancel()` takes an event that waits out of the queue at once; the
    handler of one that runs is cancelled, and the future is done when that has ended, as with a
    task. Whoever waits for it and is cancelled cancels it too: `asyncio.shield` keeps it.
    """

    # NOTE: no reference leads from an event to the one that chained it. A handler that chains
    # itself for ever, as one that polls does, would hold all its past otherwise.
    __slots__ = (
        "_arguments",
        "_children",
        "_context",
        "_enqueued_at",
        "_event",
        "_handler",
        "_place",
        "_progress",
        "_root",
        "_scopes",
        "_stream",
        "_task",
        "_variables",
    )

    _arguments: dict[str, Any]
    _enqueued_at: float  # set if there is a listener
    _handler: "Handler"

    def __init__(
        self, context: EventContext, event: "Event", loop: asyncio.AbstractEventLoop, root: int
    ) -> None:
        super().__init__(loop=loop)
        self._context = context
        self._event = event
        self._root = root
        self._children: list[EventFuture] | None = None
        self._place = Place.NEW
        self._progress: Progress | None = None
        self._scopes: tuple[Scope, ...] = ()
        self._stream: DeltaStream | None = None
        self._task: asyncio.Task[None] | None = None
        self._variables: Context | None = None

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
    def committed(self) -> bool:
        """Whether what the handler changed was saved.

        It may have been although the future ends with an error, if that came from emitting the
        delta.
        """
        return self._progress is not None and self._progress.committed

    @property
    def children(self) -> "tuple[EventFuture, ...]":
        """The futures of the events that this one has chained so far, also of those that are over.

        They are kept as long as this one is, each with its event and its outcome.
        """
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
                self._context.processor._waits_in_handler(future)
                await asyncio.wait((future,))
            waiting.extend(future._children or ())
        return self.result()

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel this event and all that came of it.

        Returns:
            Whether this event was not over.
        """
        return self._context.processor._cancel(self, msg)

    def _forget(self) -> None:
        """Drop what nobody needs when the event is over: who chained it may keep it for long."""
        self._arguments = _NO_ARGUMENTS
        self._scopes = ()
        self._task = self._variables = None

    def _is_cancelling(self) -> bool:
        return self._task is not None and self._task.cancelling() > 0

    def __await__(self) -> Generator[Any, None, Any]:
        if (
            not self.done()
            and EventContext._variable.get(None) is not None
            and self._context.processor._waits_in_handler(self)
        ):
            return self._result_in_handler().__await__()
        return super().__await__()

    __iter__ = __await__

    async def _result_in_handler(self) -> Any:
        # A handler that is cancelled cancels what it waits for, and does not wait for its end: that
        # may wait for the handler's own, in a circle.
        try:
            await asyncio.wait((self,))
        except asyncio.CancelledError:
            # What is done is not gone through, or a row of these took the square of its length.
            if not self.done():
                self.cancel()
            raise
        return self.result()

    def __repr__(self) -> str:
        return f"<EventFuture {self._event!r} {self.txid} {self._place.name.lower()}>"
