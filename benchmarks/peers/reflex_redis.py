"""Reflex's state manager on Redis, without and with its oplock.

It pickles states, and has the server announce every change of a key (`CONFIG SET` of
`notify-keyspace-events`) to learn of locks that are free. With the oplock it keeps the lock and
the state, and acknowledges a change before it is written.
"""

import os
from contextlib import AbstractAsyncContextManager
from functools import partial

from benchmarks.managers import HOLD_TIME, manager_store
from benchmarks.subject import Role, Store, Subject

DELETES = "its release can delete another's lock"
NOTIFIED = "needs the server's keyspace notifications"
PICKLES = "loading runs code (pickle)"


def _open(url: str, token_expiration: float, *, oplock: bool) -> AbstractAsyncContextManager[Store]:
    from redis.asyncio import Redis
    from reflex.istate.manager.redis import StateManagerRedis
    from reflex.istate.manager.token import StateToken

    # Asked for once, when the manager is made. The rest is not looked up in a configuration.
    os.environ["REFLEX_OPLOCK_ENABLED"] = str(oplock)
    manager = StateManagerRedis(
        redis=Redis.from_url(url),
        token_expiration=int(token_expiration),
        lock_expiration=10_000,  # milliseconds; its defaults
        lock_warning_threshold=1_000,
        oplock_hold_time_ms=int(HOLD_TIME * 1000),
    )
    return manager_store(manager, StateToken)


SUBJECTS = (
    Subject(
        name="reflex_redis",
        role=Role.PEER,
        summary="Reflex's StateManagerRedis as it comes: each change in Redis",
        against=("redis",),
        requires=("reflex",),
        lacks=(
            "a lock is not renewed",
            DELETES,
            "processes that wait are served in no order",
            NOTIFIED,
            "reads renew nothing",
            PICKLES,
        ),
        open_server=partial(_open, oplock=False),
        shared=True,
        statement="from reflex.istate.manager.redis import StateManagerRedis",
    ),
    Subject(
        name="reflex_redis/oplock",
        role=Role.PEER,
        summary=f"the same with its oplock: each change in Redis within {HOLD_TIME:g} s",
        against=("redis/behind",),
        requires=("reflex",),
        lacks=(
            "a body that raises keeps its changes",
            "reads miss changes not yet written",
            "two types of an ident share a copy",
            DELETES,
            NOTIFIED,
            PICKLES,
        ),
        open_server=partial(_open, oplock=True),
        shared=True,
    ),
)
