"""Our event processor, with handlers that take no state and with such that change one.

Only imported by what measures events: on others the event layer is not to weigh.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from benchmarks.processors import ADD, STEP, ProcessorEvents, Tally
from benchmarks.states import Cart
from benchmarks.states import cart as new_cart
from benchmarks.subject import Events
from statemgr import StateManager, StateManagerMemory, StateToken
from statemgr.events import Delta, Event, EventProcessor, RegistrationContext


class StatefulEvents(ProcessorEvents):
    """The same where the handlers change the reference state, which a manager keeps."""

    def __init__(self, processor: EventProcessor) -> None:
        super().__init__(processor, Event, Tally())
        self._manager = processor.manager

    async def fill(self, idents: Sequence[str]) -> None:
        for ident in idents:
            await self._manager.set_state(StateToken(ident, Cart), new_cart())

    async def handled(self, idents: Sequence[str]) -> int:
        handled = 0
        for ident in idents:
            cart = await self._manager.get_state(StateToken(ident, Cart))
            handled += cart.version - new_cart().version
        return handled


@asynccontextmanager
async def stateless_events() -> AsyncIterator[Events]:
    """Run our processor with handlers that take no state."""
    registry, tally = RegistrationContext(), Tally()

    async def add(by: int) -> None:
        tally.handled += by

    async def step(left: int) -> Event | None:
        tally.handled += 1
        return Event(STEP, {"left": left - 1}) if left else None

    registry.handler(add, name=ADD)
    registry.handler(step, name=STEP)
    async with StateManagerMemory() as manager, EventProcessor(manager, registry) as processor:
        yield ProcessorEvents(processor, Event, tally)


@asynccontextmanager
async def manager_events(manager: StateManager, *, deltas: bool = True) -> AsyncIterator[Events]:
    """Run our processor with handlers that change the reference state; close the manager then.

    With `deltas`, what changed goes to a coroutine function that does nothing.
    """
    registry = RegistrationContext()

    async def add(cart: Cart, by: int) -> None:
        cart.version += by

    async def step(cart: Cart, left: int) -> Event | None:
        cart.version += 1
        return Event(STEP, {"left": left - 1}) if left else None

    async def emit_delta(ident: str, delta: Delta) -> None:
        pass

    registry.handler(add, name=ADD)
    registry.handler(step, name=STEP)
    processor = EventProcessor(manager, registry, emit_delta=emit_delta if deltas else None)
    async with manager, processor:
        yield StatefulEvents(processor)
