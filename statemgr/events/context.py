"""`EventContext`: what a running handler knows of its event, and can do."""

from contextlib import AbstractAsyncContextManager
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

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
C = TypeVar("C")
D = TypeVar("D")
T = TypeVar("T")


class EventContext(BaseContext):
    """Belong to one event; `EventContext.get()` returns it while its handler runs. Frozen.

    Attributes:
        ident: Whose event it is.
        name: The event's name.
        processor: What runs it.
    """

    # Not a frozen dataclass, whose __init__ takes a twentieth of the time of a whole event.
    __slots__ = ("_number", "_parent_number", "ident", "name", "processor")

    ident: str
    name: str
    processor: "EventProcessor"
    _number: int  # of the event, within its processor
    _parent_number: int | None

    def __init__(
        self,
        ident: str,
        name: str,
        number: int,
        parent_number: int | None,
        processor: "EventProcessor",
    ) -> None:
        _set_ident(self, ident)
        _set_name(self, name)
        _set_number(self, number)
        _set_parent_number(self, parent_number)
        _set_processor(self, processor)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete {name!r}")

    def __repr__(self) -> str:
        return f"EventContext(name={self.name!r}, txid={self.txid!r})"

    @property
    def txid(self) -> str:
        """The event's id, which no other event of any processor has."""
        return self.processor._txid(self._number)

    @property
    def parent_txid(self) -> str | None:
        """The id of the event that it was chained by; None if it came from outside."""
        number = self._parent_number
        return None if number is None else self.processor._txid(number)

    @property
    def manager(self) -> "StateManager":
        """The manager of the states."""
        return self.processor.manager

    def fork(self, name: str | None = None, ident: str | None = None) -> "EventContext":
        """Return the context of a child event, which says who that is.

        What it enqueues or emits is not part of this event's chain, and it cannot `modify`.

        Args:
            name: The child's name; None for this one's.
            ident: Whose event it is; None for this one's.
        """
        return EventContext(
            self.ident if ident is None else ident,
            self.name if name is None else name,
            self.processor._new_number(),
            self._number,
            self.processor,
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

        Raises:
            InvalidTokenError: If the ident is not a string, or empty.
            WrongLoopError: If it is called outside of the processor's loop, as in a thread.
        """
        return self.enqueue_nowait(event, ident=ident)

    def enqueue_nowait(self, event: "Event", *, ident: str | None = None) -> "EventFuture":
        """Do what `enqueue` does, from an ordinary function."""
        return self.processor._chain(self, event, ident)

    async def emit_delta(self, delta: "Delta") -> None:
        """Send a delta to this ident's client, as those of states are.

        Waits for the application's `emit_delta`. To a stream it only gives the loop a turn, and
        does not wait until the delta is read.

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
        self, a: type[A], b: type[B], c: type[C], /, *, timeout: float | None = None
    ) -> AbstractAsyncContextManager[tuple[A, B, C]]: ...
    @overload
    def modify(
        self, a: type[A], b: type[B], c: type[C], d: type[D], /, *, timeout: float | None = None
    ) -> AbstractAsyncContextManager[tuple[A, B, C, D]]: ...
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
            EventHandlerError: If the handler has ended already.
        """
        return self.processor._modify(self, classes, timeout)


_set_ident: Any = vars(EventContext)["ident"].__set__
_set_name: Any = vars(EventContext)["name"].__set__
_set_number: Any = vars(EventContext)["_number"].__set__
_set_parent_number: Any = vars(EventContext)["_parent_number"].__set__
_set_processor: Any = vars(EventContext)["processor"].__set__
