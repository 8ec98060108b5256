"""`StateManagerMemory`, with and without the copy that a failed body goes back to."""

from contextlib import AbstractAsyncContextManager
from functools import partial

from benchmarks.managers import manager_store
from benchmarks.subject import Events, Role, Store, Subject
from statemgr import StateManagerMemory, StateToken


def _open(token_expiration: float, *, rollback: bool) -> AbstractAsyncContextManager[Store]:
    manager = StateManagerMemory(token_expiration=token_expiration, rollback=rollback)
    return manager_store(manager, StateToken, lambda: manager.statistics().tokens_held)


def _open_events(
    place: str, *, rollback: bool = True, deltas: bool = True
) -> AbstractAsyncContextManager[Events]:
    from benchmarks.handlers import manager_events

    return manager_events(StateManagerMemory(rollback=rollback), deltas=deltas)


SUBJECTS = (
    Subject(
        name="memory",
        role=Role.OURS,
        summary="StateManagerMemory as it comes: a body that raises changes nothing",
        open_store=partial(_open, rollback=True),
        open_events=_open_events,
        expires=True,
        statement="import statemgr; statemgr.StateManagerMemory",
    ),
    Subject(
        name="memory/no-rollback",
        role=Role.OURS,
        summary="StateManagerMemory(rollback=False): no copy on entering a body",
        open_store=partial(_open, rollback=False),
        open_events=partial(_open_events, rollback=False),
        expires=True,
    ),
    Subject(
        name="memory/no-deltas",
        role=Role.OURS,
        summary="under an EventProcessor that nobody takes deltas of: a state loaded and committed",
        open_events=partial(_open_events, deltas=False),
    ),
)
