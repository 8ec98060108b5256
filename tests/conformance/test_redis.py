"""The contract on the Redis backend: on each kind of server, and with each oplock."""

from typing import Any, ClassVar

import fakeredis
import redis
from redis_backend.stores import cluster_url, server_url

from conformance.redis_harness import RedisHarness
from statemgr.testing import Conformance


class ValkeyHarness(RedisHarness):
    def server(self) -> str:
        return server_url("valkey-9.1")


class OldestHarness(RedisHarness):
    def server(self) -> str:
        return server_url("redis-6.2")


class ClusterHarness(RedisHarness):
    def server(self) -> str:
        return cluster_url()

    def connect(self) -> Any:
        host, _, port = self.server().partition("://")[2].split(",")[0].partition(":")
        return redis.RedisCluster(host, int(port))


class FakeHarness(RedisHarness):
    def connect(self) -> Any:
        self.fake = fakeredis.FakeServer()
        raw = fakeredis.FakeRedis(server=self.fake)
        raw.eval("return 1", 0)  # loads the interpreter, which takes half a second
        return raw

    def client(self) -> Any:
        return fakeredis.FakeAsyncRedis(server=self.fake)


class ThroughHarness(ValkeyHarness):
    mode: ClassVar[dict[str, Any]] = {"oplock": "through"}


class BehindHarness(ValkeyHarness):
    mode: ClassVar[dict[str, Any]] = {"oplock": "behind", "oplock_hold_time": 1.0}

    async def published(self) -> None:
        await self.advance(1.1)


class TestValkey(Conformance):
    harness_type = ValkeyHarness


class TestOldestRedis(Conformance):
    harness_type = OldestHarness


class TestCluster(Conformance):
    harness_type = ClusterHarness


class TestFakeRedis(Conformance):
    harness_type = FakeHarness


class TestOplockThrough(Conformance):
    harness_type = ThroughHarness


class TestOplockBehind(Conformance):
    harness_type = BehindHarness
