"""Reflex's event processor, with handlers that take no state.

It stands beside ours with a state too: what Reflex does with a state of its own, whose fields are
tracked one by one, is another thing than loading and saving an object. Its handlers chain by their
context, for its base class does nothing with what they return.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.processors import ADD, STEP, ProcessorEvents, Tally
from benchmarks.subject import Events, Role, Subject


@asynccontextmanager
async def _open(place: str) -> AsyncIterator[Events]:
    # Not installed where types are checked.
    from reflex_base.event import Event, EventHandler  # type: ignore[import-not-found]
    from reflex_base.event.context import EventContext  # type: ignore[import-not-found]
    from reflex_base.event.processor import EventProcessor  # type: ignore[import-not-found]
    from reflex_base.registry import (  # type: ignore[import-not-found]
        RegisteredEventHandler,
        RegistrationContext,
    )

    tally = Tally()

    async def add(by: int) -> None:
        tally.handled += by

    async def step(left: int) -> None:
        tally.handled += 1
        if left:
            await EventContext.get().enqueue(Event(name=STEP, payload={"left": left - 1}))

    registry = RegistrationContext()
    for name, fn in ((ADD, add), (STEP, step)):
        registry.event_handlers[name] = RegisteredEventHandler(
            handler=EventHandler(fn=fn), states=()
        )
    with registry:
        async with EventProcessor().configure() as processor:
            yield ProcessorEvents(processor, Event, tally)


SUBJECTS = (
    Subject(
        name="reflex_events",
        role=Role.PEER,
        summary="Reflex's EventProcessor, with handlers that take no state",
        # The variants are those that another peer names, whose place it would take otherwise.
        against=("stateless", "memory", "disk", "disk/debounce", "redis", "redis/behind"),
        requires=("reflex",),
        lacks=(
            "its events load no state here",
            "drops queued events when stopped, unless told",
            "an unregistered event's future never resolves",
            "payloads are not checked",
            "queues have no bound",
        ),
        open_events=_open,
    ),
)
