"""`StateModification`: what `async with manager.modify_state(token) as state` runs on.

A slotted class with `__aenter__` and `__aexit__`, not a generator: nothing is suspended when
the lock is free and the backend needs no waiting, and every way out is in one place. It is on
the hottest path of the package, and what looks like fuss here was measured
(docs/decisions/0003-hot-path.md).
"""

import asyncio
import sys
from _thread import get_ident
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from statemgr.errors import StateEncodeError

if TYPE_CHECKING:
    from asyncio import Task

    from statemgr.manager import StateManager
    from statemgr.token import AnyToken

T = TypeVar("T")

# asyncio.current_task is written in C from Python 3.12 on. In 3.11, whose asyncio does not
# change any more, it is a function around this table, and costs three times as much.
current_task: "Callable[[Any], Task[Any] | None]" = (
    asyncio.current_task
    if sys.version_info >= (3, 12)
    else vars(asyncio.tasks)["_current_tasks"].get
)


class StateModification(Generic[T]):
    """Hold one ident's lock while a body runs, and save its state when the body ends.

    A body that raises or is cancelled saves nothing. To end one normally without saving, call
    `discard()`. Each `async with` takes a modification of its own.

    Attributes:
        state: The state. Assign to it to replace the state, as immutable types need.
        token: The token whose state is changed; the first of several.
    """

    # Made by StateManager.modify_state, which fills in the slots itself: an __init__ would take
    # a twentieth of the whole change.
    #
    # For backends: `state_key` is the token's cache_key, None if there are several tokens;
    # `timeout` bounds the wait for the lock; `task` runs the body, None outside of a task; with
    # `locked_since` that makes this the holder of a lock (see KeyedLocks); `grant` is the
    # backend's own, from begin to commit.
    __slots__ = (
        "_entered_at",
        "_manager",
        "_saves",
        "grant",
        "lock_key",
        "locked_since",
        "state",
        "state_key",
        "task",
        "timeout",
        "token",
    )

    _entered_at: float
    _manager: "StateManager"
    _saves: bool
    state: T
    token: "AnyToken"
    state_key: str | None
    lock_key: str
    timeout: float | None
    task: "Task[Any] | None"
    locked_since: float
    grant: Any

    @property
    def tokens(self) -> "tuple[AnyToken, ...]":
        """The tokens whose states are changed together: all of one ident."""
        return (self.token,)

    @property
    def fence(self) -> int | None:
        """A number that grows with each grant of this ident's lock; None where there is none.

        It guards effects outside the store: whatever remembers the highest fence it has seen
        can refuse a holder that lost its lock without knowing.
        """
        return self._manager._fence_of(self)

    def discard(self) -> None:
        """Save nothing when the block is left."""
        self._saves = False

    def load_states(self, load: "Callable[[AnyToken], Any]") -> None:
        """Fill in the state: `load` is called with each token."""
        self.state = load(self.token)

    def states(self) -> Sequence[Any]:
        """Return what is to be saved: one state for each token."""
        return (self.state,)

    async def __aenter__(self) -> T:
        manager = self._manager
        task = current_task(manager._loop)
        if task is None or get_ident() != manager._thread_id:
            task = manager._bind_loop()
        self.task = task
        self._saves = True
        self._entered_at = now = manager._monotonic()
        if not manager._begin_nowait(self, now):
            await manager._begin(self)
            self._entered_at = manager._monotonic()
            if manager._refusal is not None:  # closed while this waited
                await manager._abort(self)
                raise manager._refused()
        return self.state

    def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> Awaitable[None]:
        # Not a coroutine: where nothing is waited for, none is made.
        manager = self._manager
        now = manager._monotonic()
        if exc_type is not None or not self._saves:
            return self._abort()
        try:
            if now - self._entered_at > manager.lock_warning_threshold:
                manager._warn_of_long_body(self, now - self._entered_at)
            if manager._refusal is not None:  # closed while the body ran
                raise manager._refused()  # noqa: TRY301  # the clause below is for it too
            if manager._commit_nowait(self, now):
                manager._commits += 1
                return manager._done
            payloads = manager._encode_states(self.tokens, self.states())
        except BaseException as error:
            return self._fail(error)
        return self._commit(payloads)

    async def _commit(self, payloads: Sequence[bytes]) -> None:
        manager = self._manager
        try:
            await manager._commit(self, payloads)
        except BaseException:
            manager._aborts += 1
            raise
        manager._commits += 1

    async def _abort(self) -> None:
        manager = self._manager
        seconds = manager._monotonic() - self._entered_at
        manager._aborts += 1
        await manager._abort(self)
        if seconds > manager.lock_warning_threshold:
            manager._warn_of_long_body(self, seconds)

    async def _fail(self, error: BaseException) -> None:
        """Abort a body that ended well but cannot be saved."""
        self._manager._aborts += 1
        await self._manager._abort(self)
        raise error


class StatesModification(StateModification[T]):
    """Change several classes of one ident together; `state` is the tuple of their states."""

    __slots__ = ("_tokens",)

    def __init__(self, first: StateModification[Any], tokens: "tuple[AnyToken, ...]") -> None:
        self._manager = first._manager
        self._tokens = tokens
        self.state_key = None
        self.lock_key = first.lock_key
        self.timeout = first.timeout
        self.token = first.token

    @property
    def tokens(self) -> "tuple[AnyToken, ...]":
        """The tokens whose states are changed together: all of one ident."""
        return self._tokens

    def load_states(self, load: "Callable[[AnyToken], Any]") -> None:
        """Fill in the tuple of states."""
        self.state = tuple(map(load, self._tokens))  # type: ignore[assignment]  # T is that tuple

    def states(self) -> Sequence[Any]:
        """Return the tuple of states.

        Raises:
            StateEncodeError: If it was replaced by something else.
        """
        states: Any = self.state
        if not isinstance(states, tuple) or len(states) != len(self._tokens):
            raise StateEncodeError(
                "state", f"is to be replaced by a tuple of {len(self._tokens)} states"
            )
        return states
