"""Reflex's state manager in memory: the interface that ours grew from."""

from contextlib import AbstractAsyncContextManager

from benchmarks.managers import manager_store
from benchmarks.subject import Role, Store, Subject


def _open(token_expiration: float) -> AbstractAsyncContextManager[Store]:
    from reflex.istate.manager.memory import StateManagerMemory
    from reflex.istate.manager.token import StateToken

    # Given here, the expiration is not looked up in a Reflex configuration.
    manager = StateManagerMemory(token_expiration=token_expiration)
    return manager_store(manager, StateToken, lambda: len(manager.states))


SUBJECTS = (
    Subject(
        name="reflex_memory",
        role=Role.PEER,
        summary="Reflex's StateManagerMemory: no rollback, no purge in slices",
        against=("memory",),
        requires=("reflex",),
        lacks=(
            "a body that raises keeps its changes",
            "readers get the live object",
            "purges all expired tokens in one go",
            "asking for a held lock hangs",
            "no lock timeout, no delete, no listing",
        ),
        open_store=_open,
        expires=True,
        statement="from reflex.istate.manager.memory import StateManagerMemory",
    ),
)
