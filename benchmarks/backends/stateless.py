"""`EventProcessor` by itself, as far as it can be: with handlers that take no state."""

from contextlib import AbstractAsyncContextManager

from benchmarks.subject import Events, Role, Subject


def _open_events(place: str) -> AbstractAsyncContextManager[Events]:
    from benchmarks.handlers import stateless_events

    return stateless_events()


SUBJECTS = (
    Subject(
        name="stateless",
        role=Role.OURS,
        summary="EventProcessor with handlers that take no state; to import: statemgr.events",
        open_events=_open_events,
        statement="import statemgr.events",
    ),
)
