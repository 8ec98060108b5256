"""Reflex's state managers as `python -m chaos run` uses them: nothing here is measured.

They are used as their own application uses them. On disk one process has the directory: Reflex
speaks of no more. A change ends in its error of a lost lock, which says that nothing was written,
or in whatever else is raised on the way, which says nothing of what has happened.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from benchmarks.subject import Subject

SUBJECTS: tuple[Subject, ...] = ()

TOKEN_EXPIRATION = 10_000_000  # seconds
TIMEOUT = 1.0  # seconds that a server has to answer


class Peer(NamedTuple):
    """A manager, and what is to be known of it.

    Attributes:
        manager: The manager.
        token_class: Makes a token from the keywords `ident` and `cls`.
        refusal: The error that says that nothing was written.
    """

    manager: Any
    token_class: Any
    refusal: type[Exception]

    async def try_lock(self, token: Any, seconds: float) -> bool:
        """Return whether a token's lock could be had within some seconds."""
        try:
            async with asyncio.timeout(seconds), self.manager.modify_state(token):
                return True
        except TimeoutError:
            return False


@asynccontextmanager
async def open_disk(place: str, expiration: float, *, debounce: float) -> AsyncIterator[Peer]:
    """Open the manager on disk.

    Args:
        place: The directory.
        expiration: Of locks, which there are none of.
        debounce: Seconds for which a change may wait to be written.
    """
    from reflex.istate.manager.disk import StateManagerDisk

    os.environ["REFLEX_STATES_WORKDIR"] = place
    manager = StateManagerDisk(token_expiration=TOKEN_EXPIRATION, _write_debounce_seconds=debounce)
    try:
        yield _peer(manager)
    finally:
        await manager.close()


@asynccontextmanager
async def open_redis(place: str, expiration: float, *, oplock: bool) -> AsyncIterator[Peer]:
    """Open the manager on Redis.

    Args:
        place: The server's URL.
        expiration: Of locks, in seconds.
        oplock: Whether locks are kept, and changes written later.
    """
    from redis.asyncio import Redis
    from reflex.istate.manager.redis import StateManagerRedis

    os.environ["REFLEX_OPLOCK_ENABLED"] = str(oplock)
    milliseconds = int(expiration * 1000)
    manager = StateManagerRedis(
        redis=Redis.from_url(place, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT),
        token_expiration=TOKEN_EXPIRATION,
        lock_expiration=milliseconds,
        lock_warning_threshold=milliseconds - 1,
        oplock_hold_time_ms=milliseconds // 2,
    )
    try:
        yield _peer(manager)
    finally:
        await manager.close()


def _peer(manager: Any) -> Peer:
    from reflex.istate.manager.token import StateToken
    from reflex.utils.exceptions import LockExpiredError

    return Peer(manager, StateToken, LockExpiredError)
