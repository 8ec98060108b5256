"""`StateManager`: the contract, and everything about it that is the same on every backend.

A public method checks its arguments, the loop and the manager's life, then calls the
backend's hook for the rest. The hooks are the abstract methods with a leading underscore;
`_begin_nowait` and `_commit_nowait` spare the coroutine where a backend need not wait.
"""

import asyncio
import logging
import os
import weakref
from _thread import get_ident
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict, TypeVar, cast, overload

from statemgr.clock import Clock
from statemgr.errors import (
    InvalidTokenError,
    StateDecodeError,
    StateManagerClosedError,
    StateManagerError,
    StateTooLargeError,
    WrongLoopError,
    WrongProcessError,
)
from statemgr.modification import StateModification, StatesModification, current_task
from statemgr.options import check_option, refused
from statemgr.redaction import Redaction
from statemgr.serialization.refusal import is_shortage
from statemgr.token import AnyToken, ReadableToken, StateToken

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
T = TypeVar("T")

if TYPE_CHECKING:
    from statemgr.settings import Settings
    from statemgr.statistics import StateInfo, Statistics

logger = logging.getLogger("statemgr")

_NO_LOOP: Final = object()


class ManagerOptions(TypedDict, total=False):
    """The options that every backend takes, as `Settings` describes them."""

    token_expiration: float
    lock_warning_threshold: float
    max_state_size: int
    on_decode_error: Literal["raise", "reset"]
    log_idents: bool
    log_key: str | None
    clock: Clock


class StateManager(ABC):
    """Keep typed states by token: exclusive, all or nothing, expiring when untouched.

    What holds on every backend:

    - At most one `modify_state` body runs for an ident at a time; who waits is served in the
      order of asking (between processes on disk, whoever had the lock gives way). A holder that
      lost its lock writes nothing.
    - A body that ends is saved. One that raises or is cancelled saves nothing.
    - What is in a state is that state's own: a body may be given the objects that the last one
      left. Changing these outside of a body, or putting one into two states, is not supported.
    - Reads see committed states only. Changing what `get_state` returned saves nothing.
    - Reading, changing and `touch` renew a state's expiration. A state is gone at its deadline
      for every reader, unless its lock is held or waited for: then it is not purged.
    - Cancelling any call leaves no lock held and no record half written.

    Every method raises `StateManagerClosedError` after `close()`, `WrongProcessError` after a
    fork, and, but for `statistics`, `WrongLoopError` on another event loop than the one of the
    first call. A method
    that takes a token raises `InvalidTokenError`, a `ValueError`, for anything else.

    Args:
        token_expiration: Seconds after which an untouched state is dropped.
        lock_warning_threshold: Bodies that take longer than these seconds are logged once.
        max_state_size: The most bytes that a serialized state may have.
        on_decode_error: What follows on a record that cannot be decoded, after it was logged:
            `"raise"` raises `StateDecodeError` each time and leaves it where it is, `"reset"`
            moves it aside and goes on with a fresh state.
        log_idents: Name idents in logs and errors as they are, not by a digest.
        log_key: The key of the digest; drawn at random unless given.
        clock: The clock to use.

    Raises:
        SettingsError: If an option cannot have its value.
    """

    def __init__(
        self,
        *,
        token_expiration: float = 3600.0,
        lock_warning_threshold: float = 1.0,
        max_state_size: int = 16 * 2**20,
        on_decode_error: Literal["raise", "reset"] = "raise",
        log_idents: bool = False,
        log_key: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_option("token_expiration", token_expiration)
        check_option("lock_warning_threshold", lock_warning_threshold)
        check_option("max_state_size", max_state_size)
        check_option("on_decode_error", on_decode_error)
        check_option("log_idents", log_idents)
        check_option("log_key", log_key)
        self.token_expiration = token_expiration
        self.lock_warning_threshold = lock_warning_threshold
        self.max_state_size = max_state_size
        self.on_decode_error = on_decode_error
        self._clock = clock or Clock()
        self._monotonic = self._clock.monotonic
        self._redaction = Redaction(
            show_idents=log_idents, key=log_key.encode() if log_key else None
        )
        # NOTE: every call asks for the task that _loop runs now, in this thread. That one cheap
        # question guards the manager's whole life: the answer is None on another loop, before
        # the first call, and from when _refusal says why no call is served any more.
        # (get_running_loop() asks the kernel for the process id each time on Python 3.11.)
        self._loop: Any = _NO_LOOP
        self._thread_id = 0
        self._done: asyncio.Future[None]  # what leaving a body returns if nothing is waited for
        self._refusal: type[StateManagerError] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._hits = self._misses = self._commits = self._aborts = self._purged = 0
        _managers.add(self)

    @classmethod
    def create(cls, settings: "Settings | None" = None) -> "StateManager":
        """Make the manager that the settings ask for.

        Args:
            settings: The settings; None reads them from the environment. Called on a backend's
                class, it makes that one, whatever `settings.mode` says.

        Raises:
            SettingsError: If a setting cannot be used, or no backend has the mode's name.
        """
        # The one import that runs against the layers: a factory on the abstract class has to
        # know where the concrete ones are. Settings take a tenth of the time of all imports,
        # and only this needs them.
        from statemgr.backends import load_backend
        from statemgr.settings import Settings

        settings = settings or Settings.from_env()
        backend = load_backend(settings.mode) if cls is StateManager else cls
        return backend.from_settings(settings)

    @classmethod
    def from_settings(cls, settings: "Settings") -> Self:
        """Make a manager of this class. A backend with options of its own overrides this.

        Raises:
            SettingsError: If a setting cannot be used.
        """
        return cls(**manager_options(settings))

    # Reading

    async def get_state(self, token: ReadableToken[T]) -> T:
        """Return the last committed state, and renew its expiration.

        A token that was never written gives a fresh default, and nothing is stored. The state
        is to be read: changing it saves nothing.

        Raises:
            StateDecodeError: If what is stored cannot be decoded; it is kept.
            StateDefaultError: If there is no state and the class cannot make its default.
        """
        self._check_usable()
        return cast("T", (await self._read((_checked(token),)))[0])

    @overload
    async def get_states(self, a: ReadableToken[A], /) -> tuple[A]: ...
    @overload
    async def get_states(self, a: ReadableToken[A], b: ReadableToken[B], /) -> tuple[A, B]: ...
    @overload
    async def get_states(
        self, a: ReadableToken[A], b: ReadableToken[B], c: ReadableToken[C], /
    ) -> tuple[A, B, C]: ...
    @overload
    async def get_states(
        self, a: ReadableToken[A], b: ReadableToken[B], c: ReadableToken[C], d: ReadableToken[D], /
    ) -> tuple[A, B, C, D]: ...
    @overload
    async def get_states(self, *tokens: ReadableToken[T]) -> tuple[T, ...]: ...
    async def get_states(self, *tokens: ReadableToken[Any]) -> tuple[Any, ...]:
        """Return the states of several tokens, of any idents, as `get_state` does, at once."""
        self._check_usable()
        return tuple(await self._read(tuple(_checked(token) for token in tokens)))

    async def has_state(self, token: AnyToken) -> bool:
        """Return whether a state is stored, without renewing it."""
        self._check_usable()
        return await self._has(_checked(token))

    async def touch(self, token: AnyToken) -> bool:
        """Renew a state's expiration, and return whether there is one."""
        self._check_usable()
        return await self._renew(_checked(token))

    def tokens(self, prefix: str = "") -> "AsyncIterator[StateInfo]":
        """Iterate over the stored states whose ident begins with `prefix`, in no order.

        States that come or go meanwhile may or may not be among them.
        """
        self._check_usable()
        return self._list(prefix)

    def statistics(self) -> "Statistics":
        """Return what this manager holds and has done, as it is now. Any thread may ask."""
        if self._refusal is not None:
            raise self._refused()
        return self._statistics()

    # Changing

    def modify_state(
        self, token: StateToken[T], *, timeout: float | None = None
    ) -> StateModification[T]:
        """Change a state while nobody else can: `async with m.modify_state(token) as state`.

        Entering takes the lock and loads the state; leaving saves it and lets the lock go.

        Args:
            token: The token. All of its ident's states share one lock.
            timeout: The longest wait for the lock in seconds; None waits for ever.

        Raises:
            SettingsError: If the timeout is not a number.
            LockTimeoutError: On entering, if the lock did not become free in time.
            LockReentryError: On entering, if this task holds the ident's lock already.
            StateDecodeError: On entering, if what is stored cannot be decoded; it is kept.
            StateDefaultError: On entering, if there is no state and the class cannot make one.
            StateEncodeError: On leaving, if the state holds what cannot be saved.
            StateTooLargeError: On leaving, if the state is larger than `max_state_size`.
            LockExpiredError: On leaving, if the lock was lost.
            CommitUncertainError: On leaving, if the outcome cannot be known.
            BackendUnavailableError: If the store cannot be reached.

        In every case but `CommitUncertainError`, an error means that nothing was saved.
        """
        modification: StateModification[T] = StateModification()
        modification._manager = self
        modification.timeout = timeout if timeout is None else _seconds(timeout)
        modification.token = token
        try:
            modification.lock_key = token.lock_key
            modification.state_key = token.cache_key
        except AttributeError:
            raise _not_a_token(token) from None
        return modification

    @overload
    def modify_states(
        self, a: StateToken[A], /, *, timeout: float | None = None
    ) -> StateModification[tuple[A]]: ...
    @overload
    def modify_states(
        self, a: StateToken[A], b: StateToken[B], /, *, timeout: float | None = None
    ) -> StateModification[tuple[A, B]]: ...
    @overload
    def modify_states(
        self,
        a: StateToken[A],
        b: StateToken[B],
        c: StateToken[C],
        /,
        *,
        timeout: float | None = None,
    ) -> StateModification[tuple[A, B, C]]: ...
    @overload
    def modify_states(
        self,
        a: StateToken[A],
        b: StateToken[B],
        c: StateToken[C],
        d: StateToken[D],
        /,
        *,
        timeout: float | None = None,
    ) -> StateModification[tuple[A, B, C, D]]: ...
    @overload
    def modify_states(
        self, *tokens: AnyToken, timeout: float | None = None
    ) -> StateModification[tuple[Any, ...]]: ...
    def modify_states(self, *tokens: AnyToken, timeout: float | None = None) -> Any:
        """Change several classes of one ident under one lock; all are saved, or none.

        As `modify_state`, with the tuple of the states in the order of the tokens.

        Raises:
            InvalidTokenError: If there is no token, one occurs twice, or idents differ.
        """
        if not tokens:
            raise InvalidTokenError("modify_states() takes at least one token")
        keys = {_checked(token).cache_key for token in tokens}
        if len(keys) < len(tokens) or len({token.lock_key for token in tokens}) > 1:
            raise InvalidTokenError("modify_states() takes different classes of one ident")
        first = self.modify_state(tokens[0], timeout=timeout)
        return StatesModification(first, tokens)

    async def set_state(self, token: StateToken[T], state: T) -> None:
        """Save `state` under the ident's lock, in turn with `modify_state`.

        Raises:
            As `modify_state` does.
        """
        modification = self._without_body(token)
        modification.state = state
        await self._write(modification)
        self._commits += 1

    async def delete_state(self, token: AnyToken) -> bool:
        """Drop a state under the ident's lock, and return whether there was one.

        Raises:
            LockReentryError: If this task holds the ident's lock.
        """
        return await self._delete(self._without_body(token))

    # Ending

    async def close(self) -> None:
        """Save what waits to be saved, and refuse every later call. May be called again.

        A body that still runs is not waited for: it ends with `StateManagerClosedError` and
        saves nothing, and so do the calls that wait for a lock. Cancelling it stops only the
        waiting.

        Raises:
            BackendUnavailableError: If something cannot be saved. Disk keeps it in memory: call
                again when the cause is gone.
            CommitUncertainError: If an oplock "behind" cannot write what it has acknowledged to
                Redis: this may be lost.
        """
        if self._refusal is not StateManagerClosedError:
            self._check_usable()
            self._refuse(StateManagerClosedError)
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        try:
            await asyncio.shield(self._closing)
        except StateManagerError:
            self._closing = None
            raise

    async def __aenter__(self) -> Self:
        self._check_usable()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # What a backend supplies

    def _started(self) -> None:  # noqa: B027  # most backends have nothing to start
        """Start tasks: called once, by the manager's first call, on its loop."""

    def _begin_nowait(self, modification: StateModification[Any], now: float) -> bool:
        """Do what `_begin` does if it takes no waiting; else do nothing and return False.

        `now` is the monotonic clock's time.
        """
        return False

    @abstractmethod
    async def _begin(self, modification: StateModification[Any]) -> None:
        """Take the ident's lock, and load the states by `modification.load_states`.

        Leaves no lock behind when it raises.
        """

    def _commit_nowait(self, modification: StateModification[Any], now: float) -> bool:
        """Save the states and let the lock go if it takes no waiting; else return False.

        Saves nothing when it raises; `_abort` is called then. `now` is the monotonic clock's.
        """
        return False

    async def _commit(
        self, modification: StateModification[Any], payloads: Sequence[bytes]
    ) -> None:
        """Save one payload for each token, all or none, and let the lock go in any case.

        Needed unless `_commit_nowait` always returns True.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither of its commit hooks")

    def _fence_of(self, modification: StateModification[Any]) -> int | None:
        """Return the fence of the modification's grant; None if the backend has none."""
        return None

    def _payload_of(self, modification: StateModification[Any]) -> bytes | None:
        """Return the bytes that a body's state was loaded from, and after its commit saved as.

        Only for one class, and only where a commit takes no waiting; None elsewhere.
        """
        return None

    @abstractmethod
    async def _abort(self, modification: StateModification[Any]) -> None:
        """Save nothing, renew the expiration of states that are there, and let the lock go."""

    @abstractmethod
    async def _write(self, modification: StateModification[Any]) -> None:
        """Take the ident's lock, save `modification.state`, and let the lock go in any case."""

    @abstractmethod
    async def _delete(self, modification: StateModification[Any]) -> bool:
        """Take the ident's lock, drop the state, and let the lock go in any case.

        Returns whether there was a state.
        """

    @abstractmethod
    async def _read(self, tokens: Sequence[AnyToken]) -> Sequence[Any]:
        """Return the committed states, fresh defaults where there is none; renew them."""

    @abstractmethod
    async def _has(self, token: AnyToken) -> bool:
        """Return whether a state is stored."""

    @abstractmethod
    async def _renew(self, token: AnyToken) -> bool:
        """Renew the expiration; return whether a state is stored."""

    @abstractmethod
    def _list(self, prefix: str) -> "AsyncIterator[StateInfo]":
        """Iterate over the states whose ident begins with `prefix`."""

    @abstractmethod
    def _statistics(self) -> "Statistics":
        """Return the numbers."""

    @abstractmethod
    async def _close(self) -> None:
        """Save what waits, stop tasks, fail the calls that wait for a lock.

        Called again after a `StateManagerError`, when `close()` is.
        """

    # What backends use

    def _counted(self, *, tokens_held: int, locks_held: int, waiters: int) -> "Statistics":
        """Return these numbers, and what was counted of calls."""
        from statemgr.statistics import Statistics  # a tenth of the time of importing this package

        return Statistics(
            tokens_held=tokens_held,
            locks_held=locks_held,
            waiters=waiters,
            hits=self._hits,
            misses=self._misses,
            commits=self._commits,
            aborts=self._aborts,
            purged=self._purged,
        )

    def _encode_states(self, tokens: Sequence[AnyToken], states: Sequence[Any]) -> list[bytes]:
        """Return one payload for each state."""
        return [self._encode(token, state) for token, state in zip(tokens, states, strict=True)]

    def _encode(self, token: AnyToken, state: object) -> bytes:
        payload = token.serialize(state)
        if len(payload) > self.max_state_size:
            raise self._too_large(token, len(payload))
        return payload

    def _too_large(self, token: AnyToken, size: int) -> StateTooLargeError:
        return StateTooLargeError(
            f"{self._redaction.state(token.cache_key)} takes {size} bytes; "
            f"max_state_size allows {self.max_state_size}",
            size=size,
            limit=self.max_state_size,
        )

    def _decode(self, token: StateToken[T], payload: bytes) -> T:
        """Return the state.

        Raises:
            StateDecodeError: Whatever `token.deserialize` raises becomes one, with the key; but
                for a want of memory or of stack, which says nothing of the record.
        """
        try:
            return token.deserialize(data=payload)
        except StateDecodeError as error:
            raise self._undecodable(token, error) from error.__cause__
        except Exception as error:
            if is_shortage(error):  # the record is as good as it was
                raise
            raise StateDecodeError(
                f"{type(token).__name__}.deserialize raised {type(error).__name__}",
                key=token.cache_key,
            ) from error

    def _undecodable(self, token: AnyToken, error: StateDecodeError) -> StateDecodeError:
        """Return the error with the token's name in it."""
        error.key = token.cache_key
        error.args = (f"{self._redaction.state(token.cache_key)}: {error.reason}",)
        return error

    def _recover(self, token: StateToken[T], error: StateDecodeError) -> T:
        """Log an undecodable record; raise, or return the fresh state that takes its place."""
        logger.error(
            "%s cannot be decoded, and is kept: %s",
            self._redaction.state(token.cache_key),
            error.reason,
        )
        if self.on_decode_error == "raise":
            raise error
        return token.create()

    def _without_body(self, token: StateToken[T]) -> StateModification[T]:
        """Return what holds the ident's lock for a call that runs no body."""
        modification = self.modify_state(token)
        modification.task = self._check_usable()
        return modification

    # The manager's life

    def _check_usable(self) -> "asyncio.Task[Any] | None":
        """Return the running task; refuse what must be refused."""
        task = current_task(self._loop)
        if task is None or get_ident() != self._thread_id:
            return self._bind_loop()
        return task

    def _bind_loop(self) -> "asyncio.Task[Any] | None":
        """Bind the manager to the running loop on its first call; refuse any other one.

        Returns:
            The running task, None in a callback.
        """
        if self._refusal is not None:
            raise self._refused()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise WrongLoopError("a manager is used from inside of a running event loop") from error
        if self._loop is _NO_LOOP:
            self._loop = loop
            self._thread_id = get_ident()
            self._done = loop.create_future()
            self._done.set_result(None)
            self._started()
        elif self._loop is not loop:
            raise WrongLoopError(_REFUSALS[WrongLoopError])
        return current_task(loop)

    def _refuse(self, refusal: type[StateManagerError]) -> None:
        """Serve no call from now on."""
        self._loop = _NO_LOOP
        self._refusal = refusal

    def _refused(self) -> StateManagerError:
        """Return the error that calls end with after `_refuse`."""
        refusal = self._refusal or StateManagerClosedError
        return refusal(_REFUSALS[refusal])

    def _warn_of_long_body(self, modification: StateModification[Any], seconds: float) -> None:
        logger.warning(
            "a body held the lock of %s for %.3f s; lock_warning_threshold is %g s",
            self._redaction.ident(modification.token.lock_key),
            seconds,
            self.lock_warning_threshold,
        )


def manager_options(settings: "Settings") -> ManagerOptions:
    """Return the options that every backend takes, as the settings have them."""
    return ManagerOptions(
        token_expiration=settings.token_expiration,
        lock_warning_threshold=settings.lock_warning_threshold,
        max_state_size=settings.max_state_size,
        on_decode_error=cast("Literal['raise', 'reset']", settings.on_decode_error),
        log_idents=settings.log_idents,
        log_key=settings.log_key,
    )


def _checked(token: object) -> AnyToken:
    if not isinstance(token, StateToken):
        raise _not_a_token(token)
    return token


def _seconds(timeout: float) -> float:
    # A Decimal, say: it would fail where a wait is under way.
    try:
        return float(timeout)
    except (TypeError, ValueError, OverflowError):
        raise refused("timeout", repr(timeout), "a number of seconds, or None") from None


def _not_a_token(token: object) -> InvalidTokenError:
    return InvalidTokenError(f"a token is a StateToken, not {type(token).__name__}")


_REFUSALS: dict[type[StateManagerError], str] = {
    StateManagerClosedError: "the manager is closed",
    WrongLoopError: "the manager belongs to another event loop: make one manager for each loop",
    WrongProcessError: "the manager belongs to the parent process: make one after the fork",
}

_managers: "weakref.WeakSet[StateManager]" = weakref.WeakSet()


def _refuse_after_fork() -> None:
    for manager in _managers:
        manager._refuse(WrongProcessError)


os.register_at_fork(after_in_child=_refuse_after_fork)
