"""Reflex's state manager on disk, writing at once and debounced.

Both keep every state in memory too, overwrite files in place and take no lock against other
processes. The debounced one, Reflex's default, acknowledges a change before it is written.
"""

import os
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

from benchmarks.managers import DEBOUNCE, manager_store
from benchmarks.subject import Role, Store, Subject

LACKS = (
    "other processes are neither locked out nor refused",
    "overwrites files in place, and syncs nothing",
    "a damaged file becomes a fresh state",
    "a body that raises keeps its changes",
    "readers get the live object",
    "loading runs code (pickle)",
)


def _open(
    directory: Path, token_expiration: float, *, debounce: float, ahead: float = 0.0
) -> AbstractAsyncContextManager[Store]:
    from reflex.istate.manager.disk import StateManagerDisk
    from reflex.istate.manager.token import StateToken

    # Asked for once, when the manager is made. The rest is not looked up in a configuration.
    os.environ["REFLEX_STATES_WORKDIR"] = str(directory)
    manager = StateManagerDisk(token_expiration=token_expiration, _write_debounce_seconds=debounce)
    return manager_store(manager, StateToken, lambda: len(manager.states))


SUBJECTS = (
    Subject(
        name="reflex_disk",
        role=Role.PEER,
        summary="Reflex's StateManagerDisk without its debounce: each change in a file",
        against=("disk",),
        requires=("reflex",),
        lacks=LACKS,
        open_directory=partial(_open, debounce=0.0),
        statement="from reflex.istate.manager.disk import StateManagerDisk",
    ),
    Subject(
        name="reflex_disk/debounced",
        role=Role.PEER,
        summary=f"Reflex's StateManagerDisk as it comes: written after {DEBOUNCE:g} s",
        against=("disk/debounce",),
        requires=("reflex",),
        lacks=LACKS,
        open_directory=partial(_open, debounce=DEBOUNCE),
    ),
)
