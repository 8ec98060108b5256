"""Every error that statemgr raises on purpose, below one root.

Each error carries what a program needs to act on as attributes. Messages name an ident
by a digest, never by itself, and never show a state's values: they may be logged as they
are. Attributes hold the real thing.
"""

from typing import Any


def _restore(
    cls: "type[StateManagerError]", args: tuple[Any, ...], fields: dict[str, Any]
) -> "StateManagerError":
    error = cls.__new__(cls, *args)
    error.args = args  # an OSError, as a TimeoutError is, leaves them to its __init__
    error.__dict__.update(fields)
    return error


class StateManagerError(Exception):
    """Be the root of all errors of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The constructors of the leaves take keywords, which Exception's own __reduce__ loses.
        return _restore, (type(self), self.args, self.__dict__)


class SettingsError(StateManagerError):
    """A setting has a value that cannot be used.

    Attributes:
        variable: The environment variable, or the parameter where no variable was read.
        allowed: What would be accepted.
    """

    def __init__(self, message: str, *, variable: str, allowed: str) -> None:
        super().__init__(message)
        self.variable = variable
        self.allowed = allowed


class InvalidTokenError(StateManagerError, ValueError):
    """What was given as a token cannot name a state. Also a `ValueError`."""


class StateDefaultError(StateManagerError):
    """A class cannot make its own default state: `cls()` raised `TypeError`.

    Attributes:
        key: The `cache_key` of the token.
    """

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


class StateEncodeError(StateManagerError):
    """A state holds something that would not come back as it was; nothing was saved.

    Attributes:
        path: Where it is, such as `Cart.items[3].handle`.
        reason: Why it cannot be saved.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class StateDecodeError(StateManagerError):
    """Stored bytes cannot be read as the state they should hold; they were kept.

    Attributes:
        reason: What is wrong with the bytes. Holds no value from them.
        key: The `cache_key` of the token, once it is known.
    """

    def __init__(self, reason: str, *, key: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.key = key


class StateTooLargeError(StateManagerError):
    """A serialized state is larger than `max_state_size`; nothing was saved.

    Attributes:
        size: Its size in bytes.
        limit: The size allowed, in bytes.
    """

    def __init__(self, message: str, *, size: int, limit: int) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class LockTimeoutError(StateManagerError):
    """The lock did not become free within the timeout; the place in the queue is given up.

    Attributes:
        lock_key: The `lock_key` of the token.
        timeout: The timeout in seconds.
    """

    def __init__(self, message: str, *, lock_key: str, timeout: float) -> None:
        super().__init__(message)
        self.lock_key = lock_key
        self.timeout = timeout


class LockExpiredError(StateManagerError):
    """The lock was lost before the commit; nothing was written.

    Attributes:
        lock_key: The `lock_key` of the token.
    """

    def __init__(self, message: str, *, lock_key: str) -> None:
        super().__init__(message)
        self.lock_key = lock_key


class LockReentryError(StateManagerError):
    """A task asked for a lock that it holds already, and would wait for itself for ever.

    Attributes:
        lock_key: The `lock_key` of the token.
    """

    def __init__(self, message: str, *, lock_key: str) -> None:
        super().__init__(message)
        self.lock_key = lock_key


class CommitUncertainError(StateManagerError):
    """A commit was sent, and whether it happened cannot be known.

    Attributes:
        lock_key: The `lock_key` of the token.
    """

    def __init__(self, message: str, *, lock_key: str) -> None:
        super().__init__(message)
        self.lock_key = lock_key


class BackendUnavailableError(StateManagerError):
    """The store cannot be reached or refuses to serve; the cause is chained.

    Attributes:
        address: Where the server is, `host:port` or a socket's path, without a user or a
            password. None where there is no server, or none was asked.
        reason: Why it cannot be reached, or what it said; None if there is no more to say.
    """

    def __init__(
        self, message: str, *, address: str | None = None, reason: str | None = None
    ) -> None:
        super().__init__(message)
        self.address = address
        self.reason = reason


class StateDirectoryInUseError(StateManagerError):
    """A directory is used by another manager, and one of the two wants it for itself.

    Attributes:
        directory: The directory.
    """

    def __init__(self, message: str, *, directory: str) -> None:
        super().__init__(message)
        self.directory = directory


class StateManagerClosedError(StateManagerError):
    """The manager was closed."""


class WrongLoopError(StateManagerError):
    """The manager belongs to another event loop."""


class WrongProcessError(WrongLoopError):
    """The manager belongs to the process that this one was forked from."""


class EventHandlerError(StateManagerError, ValueError):
    """A handler or a state class cannot be registered so, or a handler yielded what is no event.

    Also a `ValueError`.
    """


class UnknownEventError(StateManagerError):
    """No handler is registered under the event's name.

    Attributes:
        name: The event's name.
    """

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class EventPayloadError(StateManagerError):
    """An event's payload does not fit its handler's parameters, or is no mapping.

    Attributes:
        field: The parameter, or the path inside it, such as `items[2].sku`; empty if it is the
            payload as a whole.
    """

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class EventTimeoutError(StateManagerError, TimeoutError):
    """A handler took longer than its `timeout`; nothing was saved. Also a `TimeoutError`.

    Attributes:
        name: The event's name.
        timeout: The timeout in seconds.
    """

    def __init__(self, message: str, *, name: str, timeout: float) -> None:
        super().__init__(message)
        self.name = name
        self.timeout = timeout


class EventQueueFullError(StateManagerError):
    """The queue for an ident, or all queues together, hold as much as they may."""


class EventDeadlockError(StateManagerError):
    """A handler waits for what cannot come before it has ended itself."""


class EventProcessorStoppedError(StateManagerError):
    """The processor takes no events: it was not started yet, or is stopping or stopped."""
