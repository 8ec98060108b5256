from conformance.redis_faults import RedisFaults, OplockFaults, WriteBehindFaults
from conformance.test_redis import ValkeyHarness, OldestHarness, ThroughHarness, BehindHarness
class TestV(RedisFaults):
    harness_type = ValkeyHarness
class TestT(RedisFaults, OplockFaults):
    harness_type = ThroughHarness
class TestB(RedisFaults, OplockFaults, WriteBehindFaults):
    harness_type = BehindHarness
