"""`StateManagerDisk`: shared between processes, with fsync, for one process, and debounced."""

from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.managers import DEBOUNCE, manager_store
from benchmarks.subject import Events, Role, Store, Subject
from statemgr.clock import Clock


class _ClockAhead(Clock):
    """The system's clock, with the wall clock some seconds ahead."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def time(self) -> float:
        return Clock.time() + self._seconds


def _open(
    directory: Path, token_expiration: float, *, ahead: float = 0.0, **options: Any
) -> AbstractAsyncContextManager[Store]:
    from statemgr import StateManagerDisk, StateToken

    clock = _ClockAhead(ahead) if ahead else Clock()
    manager = StateManagerDisk(directory, token_expiration=token_expiration, clock=clock, **options)
    return manager_store(manager, StateToken, lambda: manager.statistics().tokens_held)


def _open_events(place: str, **options: Any) -> AbstractAsyncContextManager[Events]:
    from benchmarks.handlers import manager_events
    from statemgr import StateManagerDisk

    return manager_events(StateManagerDisk(Path(place), **options))


SUBJECTS = (
    Subject(
        name="disk",
        role=Role.OURS,
        summary="StateManagerDisk as it comes: shared between processes",
        open_directory=_open,
        open_events=_open_events,
        shared=True,
        expires=True,
        statement="import statemgr; statemgr.StateManagerDisk",
    ),
    Subject(
        name="disk/fsync",
        role=Role.OURS,
        summary="StateManagerDisk(fsync=True): each change on stable storage",
        optional=True,
        open_directory=partial(_open, fsync=True),
        open_events=partial(_open_events, fsync=True),
        shared=True,
        expires=True,
    ),
    Subject(
        name="disk/exclusive",
        role=Role.OURS,
        summary="StateManagerDisk(exclusive=True): one process, each change in a file",
        optional=True,
        open_directory=partial(_open, exclusive=True),
        open_events=partial(_open_events, exclusive=True),
        expires=True,
    ),
    Subject(
        name="disk/debounce",
        role=Role.OURS,
        summary=f"the same with debounce={DEBOUNCE:g}: each change in a file within {DEBOUNCE:g} s",
        optional=True,
        open_directory=partial(_open, exclusive=True, debounce=DEBOUNCE),
        open_events=partial(_open_events, exclusive=True, debounce=DEBOUNCE),
        expires=True,
    ),
)
