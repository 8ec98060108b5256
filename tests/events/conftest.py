"""An application with its processor, and the check that it has left nothing behind."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from types import FrameType
from typing import Any

import pytest

from statemgr import StateManager, StateManagerMemory
from statemgr.events import (
    REMOVED,
    Delta,
    Event,
    EventFuture,
    EventProcessor,
    RegistrationContext,
)

PATIENCE = 300  # seconds after which a test hangs, on however busy a machine
SOON = 60.0  # seconds after which a wait inside of a test hangs, the same


class Application:
    """Have a registry and a manager, run a processor on them, and keep what that tells.

    Attributes:
        errors: What the exception handler was given.
        deltas: What was emitted: idents and deltas.
    """

    def __init__(self, manager: StateManager) -> None:
        self.manager = manager
        self.registry = RegistrationContext()
        self.errors: list[BaseException] = []
        self.deltas: list[tuple[str, Delta]] = []
        self.processors: list[EventProcessor] = []
        self._before = asyncio.all_tasks()

    @property
    def handler(self) -> Any:
        """What registers a handler."""
        return self.registry.handler

    async def start(self, **options: Any) -> EventProcessor:
        """Start a processor, which is stopped after the test."""
        options = {"emit_delta": self.emit, "exception_handler": self.errors.append} | options
        processor = EventProcessor(self.manager, self.registry, **options)
        await processor.start()
        self.processors.append(processor)
        return processor

    def emit(self, ident: str, delta: Delta) -> None:
        self.deltas.append((ident, delta))

    def client(self, ident: str) -> dict[str, dict[str, Any]]:
        """Return what a client of this ident has in hand: all its deltas, applied."""
        states: dict[str, dict[str, Any]] = {}
        for whose, delta in self.deltas:
            if whose == ident:
                for name, fields in delta.items():
                    state = states.setdefault(name, {})
                    state.update(fields)
                    for field in [f for f, value in state.items() if value is REMOVED]:
                        del state[field]
        return states

    async def finish(self) -> None:
        """Stop, and check that nothing is left: no event, no lock, no task."""
        async with asyncio.timeout(SOON):
            for processor in self.processors:
                await processor.stop(0)
        self.check_nothing_is_left()
        await self.manager.close()
        left = asyncio.all_tasks() - self._before - {asyncio.current_task()}
        assert not left

    def check_nothing_is_left(self) -> None:
        for processor in self.processors:
            queue = processor._queue
            assert not processor._unfinished
            assert not processor._reports.tasks
            assert not processor._superseding.newest
            assert not queue._lanes
            assert not queue._outside
            # A deadline clears the queue without counting: nothing is accepted any more.
            assert queue._accepted == 0 or processor._expired
        statistics = self.manager.statistics()
        assert statistics.locks_held == 0
        assert statistics.waiters == 0


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """End a test that hangs, in a loop or in a wait."""

    def give_up(number: int, frame: FrameType | None) -> None:
        # Not an Exception, which what is tested may catch, nor one that a task keeps.
        raise KeyboardInterrupt(f"the test hangs: {PATIENCE} s are over")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
async def app() -> AsyncIterator[Application]:
    """Be an application on states in memory; nothing may be left of it in the end."""
    # Thousands of handlers that take turns hold their locks for long: nothing to warn of here.
    application = Application(StateManagerMemory(lock_warning_threshold=PATIENCE))
    yield application
    await application.finish()


@pytest.fixture
def settle() -> Any:
    """Wait until futures are done, whatever they end with."""

    async def settle(*futures: EventFuture) -> None:
        async with asyncio.timeout(SOON):
            await asyncio.wait(futures)

    return settle


@pytest.fixture
def turns() -> Any:
    """Let the loop turn some times."""

    async def turns(number: int = 1) -> None:
        for _ in range(number):
            await asyncio.sleep(0)

    return turns


@pytest.fixture
def event() -> type[Event]:
    return Event
