"""The Redis backend beside a dict: on each kind of server, and with each oplock."""

import time
from typing import Any

from conformance.redis_harness import RedisHarness
from conformance.test_redis import (
    BehindHarness,
    ClusterHarness,
    FakeHarness,
    OldestHarness,
    ThroughHarness,
    ValkeyHarness,
)
from hypothesis import settings

from statemgr.testing.stateful import StoreMachine

# Each run makes two clients, and time that passes is a call to the server for each key.
FAST = settings(derandomize=True, deadline=None, max_examples=20, stateful_step_count=40)
# A client asks each node of a Cluster what there is.
SLOW = settings(FAST, max_examples=8)


def steady(harness_type: type[RedisHarness]) -> type[RedisHarness]:
    """Return a harness whose server does not age by what a run takes.

    The server's clock goes on while a run with its hundreds of calls stands still: on a busy
    machine by more than the half second that no deadline is nearer than.
    """

    class SteadyHarness(harness_type):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._aged_at = time.monotonic()

        def _age(self, seconds: float) -> None:
            now = time.monotonic()
            super()._age(seconds - (now - self._aged_at))
            self._aged_at = now

    return SteadyHarness


class FakeMachine(StoreMachine):
    harness_type = steady(FakeHarness)


class OldestMachine(StoreMachine):
    harness_type = steady(OldestHarness)


class ValkeyMachine(StoreMachine):
    harness_type = steady(ValkeyHarness)


class ClusterMachine(StoreMachine):
    harness_type = steady(ClusterHarness)


class ThroughMachine(StoreMachine):
    harness_type = steady(ThroughHarness)


class BehindMachine(StoreMachine):
    harness_type = steady(BehindHarness)


TestFakeRedis = FakeMachine.TestCase
TestFakeRedis.settings = FAST
TestOldestRedis = OldestMachine.TestCase
TestOldestRedis.settings = FAST
TestValkey = ValkeyMachine.TestCase
TestValkey.settings = FAST
TestCluster = ClusterMachine.TestCase
TestCluster.settings = SLOW
TestOplockThrough = ThroughMachine.TestCase
TestOplockThrough.settings = FAST
TestOplockBehind = BehindMachine.TestCase
TestOplockBehind.settings = FAST
