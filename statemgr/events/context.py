"""`EventContext`: what a running handler knows of its event, and can do."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, overload

from statemgr.events.base import BaseContext

if TYPE_CHECKING:
    from statemgr.events.delta import Delta
    from statemgr.events.event import Event
    from statemgr.events.future import EventFuture
    from statemgr.events.processor import EventProcessor
    from statemgr.manager import StateManager
    from statemgr.token import StateToken

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class EventContext(BaseContext):
    """Belong to one event; `EventContext.get()` returns it while its handler runs.

    Attributes:
        ident: Whose event it is.
        name: The event's name.
        txid: The event's own id.
        parent_txid: The id of the event that it was chained by; None if it came from outside.
        processor: What runs it.
    """

    ident: str
    name: str
    txid: str
    parent_txid: str | None
    processor: "EventProcessor" = field(repr=False)

    @property
    def manager(self) -> "StateManager":
        """The manager of the states."""
        return self.processor.manager

    def fork(self, name: str, ident: str | None = None) -> "EventContext":
        """Return the context of a child event; `ident` is this one's unless given."""
        return EventContext(
            ident or self.ident, name, self.processor._new_txid(), self.txid, self.processor
        )

    def token(self, cls: type[T]) -> "StateToken[T]":
        """Return the token of this ident's state of `cls`, of the kind that is registered."""
        return self.processor._token(self.ident, cls)

    async def enqueue(self, event: "Event", *, ident: str | None = None) -> "EventFuture":
        """Chain an event: it runs after what is queued for its ident, and after this handler.

        It is accepted however full the queue is, because a handler that waited for room might
        wait for itself. Unlike an event that is returned or yielded, it stays chained when this
        handler fails.

        Args:
            event: The event.
            ident: Whose event it is; None for this one's.

        Returns:
            Its future. A handler cannot wait for an event of its own ident, unless that one runs
            in the background: `EventDeadlockError`.
        """
        return self.enqueue_nowait(event, ident=ident)

    def enqueue_nowait(self, event: "Event", *, ident: str | None = None) -> "EventFuture":
        """Do what `enqueue` does, from an ordinary function."""
        return self.processor._chain(self, event, ident)

    async def emit_delta(self, delta: "Delta") -> None:
        """Send a delta to this ident's client, as those of states are.

        Raises:
            Whatever the application's `emit_delta` raises.
        """
        await self.processor._emit_delta(self, delta)

    async def emit_event(self, *events: "Event") -> None:
        """Send events to this ident's client. Does nothing if the application takes none.

        Raises:
            Whatever the application's `emit_event` raises.
        """
        await self.processor._emit_event(self.ident, events)

    @overload
    def modify(
        self, a: type[A], /, *, timeout: float | None = None
    ) -> AbstractAsyncContextManager[A]: ...
    @overload
    def modify(
        self, a: type[A], b: type[B], /, *, timeout: float | None = None
    ) -> AbstractAsyncContextManager[tuple[A, B]]: ...
    @overload
    def modify(
        self, *classes: type[Any], timeout: float | None = None
    ) -> AbstractAsyncContextManager[Any]: ...
    def modify(self, *classes: type[Any], timeout: float | None = None) -> Any:
        """Change this ident's state: `async with ctx.modify(Cart) as cart`.

        For handlers that take no state by their parameters, those in the background above all.
        Once it is saved, what changed is emitted as a delta.

        Args:
            classes: The state's class. With several, the block gets a tuple.
            timeout: The longest wait for the lock in seconds; None waits for ever.

        Raises:
            As `StateManager.modify_state` does.
        """
        return self.processor._modify(self, classes, timeout)
