"""The contract on the memory backend, with rollback and without."""

from typing import Any

from statemgr import StateManagerMemory, StateToken
from statemgr.manager import StateManager
from statemgr.testing import Capability, Conformance, Harness


class MemoryHarness(Harness):
    capabilities = frozenset({Capability.ROLLBACK, Capability.PURGE})

    async def make(self, **options: Any) -> StateManager:
        return StateManagerMemory(**options)


class LiveHarness(MemoryHarness):
    capabilities = MemoryHarness.capabilities - {Capability.ROLLBACK}

    async def make(self, **options: Any) -> StateManager:
        return StateManagerMemory(rollback=False, **options)


class TestMemory(Conformance):
    harness_type = MemoryHarness

    async def test_nothing_wakes_without_need(self, harness: Harness) -> None:
        """No timer is left where nothing can expire: nothing is tracked, or all is locked."""
        manager = await harness.open(lock_warning_threshold=1000.0)
        token = StateToken("user-1", list)
        async with manager.modify_state(token):
            pass
        await harness.clock.settle()
        assert harness.clock.timers == 1
        async with manager.modify_state(token):
            await harness.advance(100)
            await harness.clock.settle()
            assert harness.clock.timers == 0
        await harness.clock.settle()
        assert harness.clock.timers == 1
        await harness.advance(100)
        await harness.clock.settle()
        assert harness.clock.timers == 0
        assert manager.statistics().tokens_held == 0


class TestMemoryWithoutRollback(Conformance):
    harness_type = LiveHarness
