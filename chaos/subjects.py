"""What the harness can be run on: our backends in several modes, and peers of others.

A subject is opened in each process of a run. What that gives is all the harness knows of it: a
manager with `get_state`, `set_state` and `modify_state`, how a token is made, and what its
errors mean.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from chaos.history import Outcome
from chaos.plan import ANYWHERE, DISK, SERVER, FaultKind
from statemgr import StateToken
from statemgr.clock import Clock
from statemgr.errors import (
    CommitUncertainError,
    LockReentryError,
    LockTimeoutError,
    StateDecodeError,
    StateEncodeError,
    StateManagerError,
)

TOKEN_EXPIRATION = 1e7  # seconds: no step of a clock in a plan makes a token expire
TIMEOUT = 1.0  # seconds that a server has to answer


@dataclass(frozen=True)
class Opened:
    """A subject as one process has it.

    Attributes:
        manager: What keeps the states.
        token: Makes a token from an ident and a class.
        outcome: Says what an error means that a call has ended with.
        try_lock: Return whether a token's lock was free, which is then free again.
    """

    manager: Any
    token: Callable[[str, type], Any]
    outcome: Callable[[BaseException], Outcome]
    try_lock: Callable[[Any], Any]


Open = Callable[..., AbstractAsyncContextManager[Opened]]


@dataclass(frozen=True)
class Subject:
    """One thing to run the harness on.

    Attributes:
        name: What it is called on the command line.
        summary: What it is, in a line.
        open: Where the function is that opens it, as `module:function`. It is given the directory
            or the URL, a clock, the expiration of locks in seconds, and `options`.
        on_server: Whether states are kept on a server, or in a directory.
        options: Given to `open`.
        imports: Modules that are imported once, before a process is forked.
        requires: Modules that have to be installed.
        most: How many processes may use it at once; None for any number.
        window: Seconds for which an acknowledged change may be kept by its process alone. Only
            where it is 0 is nothing to be lost, and are reads the latest of all processes.
        sets: Whether `set_state` takes the lock.
        faults: What may go wrong.
        is_ours: Whether it is held to what statemgr promises.
    """

    name: str
    summary: str
    open: str
    on_server: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    most: int | None = None
    window: float = 0.0
    sets: bool = True
    faults: frozenset[FaultKind] = ANYWHERE
    is_ours: bool = True


def opener(subject: Subject) -> Open:
    """Return the function that opens a subject."""
    module, _, name = subject.open.partition(":")
    found: Open = getattr(importlib.import_module(module), name)
    return found


# Ours


@asynccontextmanager
async def open_disk(
    place: str, clock: Clock, expiration: float, **options: Any
) -> AsyncIterator[Opened]:
    """Open `StateManagerDisk`."""
    from statemgr import StateManagerDisk

    manager = StateManagerDisk(
        place,
        token_expiration=TOKEN_EXPIRATION,
        lock_warning_threshold=60.0,
        clock=clock,
        **options,
    )
    async with manager:
        yield ours(manager)


@asynccontextmanager
async def open_redis(
    place: str, clock: Clock, expiration: float, **options: Any
) -> AsyncIterator[Opened]:
    """Open `StateManagerRedis`."""
    from statemgr import StateManagerRedis

    manager = StateManagerRedis(
        f"{place}?socket_timeout={TIMEOUT}&socket_connect_timeout={TIMEOUT}",
        token_expiration=TOKEN_EXPIRATION,
        lock_warning_threshold=60.0,
        lock_expiration=expiration,
        clock=clock,
        **options,
    )
    async with manager:
        yield ours(manager)


def ours(manager: Any) -> Opened:
    """Wrap one of our managers."""

    async def try_lock(token: Any) -> bool:
        try:
            async with manager.modify_state(token, timeout=0):
                return True
        except LockTimeoutError:
            return False

    return Opened(manager, StateToken, our_outcome, try_lock)


@asynccontextmanager
async def open_peer(
    place: str, clock: Clock, expiration: float, *, peer: str, **options: Any
) -> AsyncIterator[Opened]:
    """Open a peer, by its adapter in benchmarks/peers. It has a clock of its own."""
    module, _, name = peer.partition(":")
    opening = getattr(importlib.import_module(module), name)
    async with opening(place, expiration, **options) as found:

        def outcome(error: BaseException) -> Outcome:
            return Outcome.FAILED if isinstance(error, found.refusal) else Outcome.UNCERTAIN

        yield Opened(
            found.manager,
            lambda ident, cls: found.token_class(ident=ident, cls=cls),
            outcome,
            lambda token: found.try_lock(token, expiration / 2),
        )


def our_outcome(error: BaseException) -> Outcome:
    """Say what one of our errors means.

    Only two leave it open whether a change has happened; what cannot be read must not be. All
    others say that nothing was written, and are taken at their word.
    """
    if isinstance(error, CommitUncertainError | asyncio.CancelledError | TimeoutError):
        return Outcome.UNCERTAIN
    if isinstance(error, StateManagerError) and not isinstance(error, _MUST_NOT_BE):
        return Outcome.FAILED
    return Outcome.BROKEN


_MUST_NOT_BE = (StateDecodeError, StateEncodeError, LockReentryError)
_OUR_DISK = ("statemgr.backends.disk.exclusive", "chaos.broken_calls")
_OUR_REDIS = ("statemgr.backends.redis.manager",)
_DISK_FAULTS = ANYWHERE | DISK | {FaultKind.CLOCK}
_REDIS_FAULTS = ANYWHERE | SERVER | {FaultKind.CLOCK}
HOLD_TIME = 0.2  # seconds: below any expiration that makes sense here
DEBOUNCE = 0.2


def _disk(name: str, summary: str, window: float = 0.0, **options: Any) -> Subject:
    return Subject(
        name,
        summary,
        "chaos.subjects:open_disk",
        options=options,
        imports=_OUR_DISK,
        faults=_DISK_FAULTS,
        window=window,
        most=1 if options.get("exclusive") else None,
    )


def _redis(name: str, summary: str, window: float = 0.0, **options: Any) -> Subject:
    return Subject(
        name,
        summary,
        "chaos.subjects:open_redis",
        on_server=True,
        options=options,
        imports=_OUR_REDIS,
        faults=_REDIS_FAULTS,
        window=window,
    )


def _reflex(name: str, summary: str, *, on_server: bool, **options: Any) -> Subject:
    kind = "redis" if on_server else "disk"
    return Subject(
        name,
        summary,
        "chaos.subjects:open_peer",
        on_server=on_server,
        options={"peer": f"benchmarks.peers.reflex_chaos:open_{kind}", **options},
        imports=(f"reflex.istate.manager.{kind}",),
        requires=("reflex",),
        faults=ANYWHERE | SERVER if on_server else ANYWHERE,
        sets=False,
        most=None if on_server else 1,
        window=HOLD_TIME if options.get("oplock") else options.get("debounce", 0.0),
        is_ours=False,
    )


SUBJECTS = {
    subject.name: subject
    for subject in (
        _disk("disk", "several processes on one directory"),
        _disk("disk-fsync", "the same, each change on stable storage", fsync=True),
        _disk("disk-exclusive", "one process, states in memory too", exclusive=True),
        _disk(
            "disk-debounced",
            f"the same, written within {DEBOUNCE:g} s",
            window=DEBOUNCE,
            exclusive=True,
            debounce=DEBOUNCE,
        ),
        _redis("redis", "each change in Redis"),
        _redis(
            "redis-through",
            "locks kept, each change in Redis",
            oplock="through",
            oplock_hold_time=HOLD_TIME,
        ),
        _redis(
            "redis-behind",
            f"locks kept, changes in Redis within {HOLD_TIME:g} s",
            window=HOLD_TIME,
            oplock="behind",
            oplock_hold_time=HOLD_TIME,
        ),
        _reflex(
            "reflex_disk", "Reflex's manager on disk, one process", on_server=False, debounce=0.0
        ),
        _reflex(
            "reflex_disk-debounced",
            "the same as it comes: written after 2 s",
            on_server=False,
            debounce=2.0,
        ),
        _reflex("reflex_redis", "Reflex's manager on Redis", on_server=True, oplock=False),
        _reflex("reflex_redis-oplock", "the same with its oplock", on_server=True, oplock=True),
    )
}


def find_subject(name: str) -> Subject:
    """Return a subject by its name, or one that is elsewhere, as `module:attribute`.

    Raises:
        LookupError: There is none.
    """
    if ":" in name:
        module, _, attribute = name.partition(":")
        found: Subject = getattr(importlib.import_module(module), attribute)
        return found
    if name not in SUBJECTS:
        raise LookupError(f"there is no {name!r}: choose from {', '.join(SUBJECTS)}")
    return SUBJECTS[name]
