"""The memory backend, and a small one with awaits everywhere, beside a dict."""

from conformance.test_example import ShelfHarness
from conformance.test_memory import LiveHarness, MemoryHarness
from hypothesis import settings

from statemgr.testing.stateful import StoreMachine

FAST = settings(derandomize=True, deadline=None, max_examples=40, stateful_step_count=40)


class MemoryMachine(StoreMachine):
    harness_type = MemoryHarness


class LiveMachine(StoreMachine):
    harness_type = LiveHarness


class ShelfMachine(StoreMachine):
    harness_type = ShelfHarness


TestMemory = MemoryMachine.TestCase
TestMemory.settings = FAST
TestMemoryWithoutRollback = LiveMachine.TestCase
TestMemoryWithoutRollback.settings = FAST
TestShelf = ShelfMachine.TestCase
TestShelf.settings = FAST
