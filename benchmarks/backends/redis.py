"""`StateManagerRedis`: as it comes, and with each of the oplocks."""

from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from benchmarks.managers import HOLD_TIME, manager_store
from benchmarks.subject import Events, Role, Store, Subject


def _open(url: str, token_expiration: float, **options: Any) -> AbstractAsyncContextManager[Store]:
    from statemgr import StateManagerRedis, StateToken

    manager = StateManagerRedis(url, token_expiration=token_expiration, **options)
    return manager_store(manager, StateToken)


def _open_events(place: str, **options: Any) -> AbstractAsyncContextManager[Events]:
    from benchmarks.handlers import manager_events
    from statemgr import StateManagerRedis

    return manager_events(StateManagerRedis(place, **options))


SUBJECTS = (
    Subject(
        name="redis",
        role=Role.OURS,
        summary="StateManagerRedis as it comes: each change in Redis, the lock given up at once",
        open_server=partial(_open, oplock="off"),
        open_events=partial(_open_events, oplock="off"),
        shared=True,
        statement="import statemgr; statemgr.StateManagerRedis",
    ),
    Subject(
        name="redis/through",
        role=Role.OURS,
        summary=f"oplock='through': the lock kept up to {HOLD_TIME:g} s, each change in Redis",
        optional=True,
        open_server=partial(_open, oplock="through", oplock_hold_time=HOLD_TIME),
        open_events=partial(_open_events, oplock="through", oplock_hold_time=HOLD_TIME),
        shared=True,
    ),
    Subject(
        name="redis/behind",
        role=Role.OURS,
        summary=f"oplock='behind': the lock kept, each change in Redis within {HOLD_TIME:g} s",
        optional=True,
        open_server=partial(_open, oplock="behind", oplock_hold_time=HOLD_TIME),
        open_events=partial(_open_events, oplock="behind", oplock_hold_time=HOLD_TIME),
        shared=True,
    ),
)
