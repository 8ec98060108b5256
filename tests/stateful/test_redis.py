"""The Redis backend beside a dict: on each kind of server, and with each oplock."""

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
FAST = settings(derandomize=True, deadline=None, max_examples=25, stateful_step_count=40)


class FakeMachine(StoreMachine):
    harness_type = FakeHarness


class OldestMachine(StoreMachine):
    harness_type = OldestHarness


class ValkeyMachine(StoreMachine):
    harness_type = ValkeyHarness


class ClusterMachine(StoreMachine):
    harness_type = ClusterHarness


class ThroughMachine(StoreMachine):
    harness_type = ThroughHarness


class BehindMachine(StoreMachine):
    harness_type = BehindHarness


TestFakeRedis = FakeMachine.TestCase
TestFakeRedis.settings = FAST
TestOldestRedis = OldestMachine.TestCase
TestOldestRedis.settings = FAST
TestValkey = ValkeyMachine.TestCase
TestValkey.settings = FAST
TestCluster = ClusterMachine.TestCase
TestCluster.settings = FAST
TestOplockThrough = ThroughMachine.TestCase
TestOplockThrough.settings = FAST
TestOplockBehind = BehindMachine.TestCase
TestOplockBehind.settings = FAST
