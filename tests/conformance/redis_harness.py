"""The harness of the Redis backend: raw keys behind the managers' back, and time that passes."""

import itertools
import os
from pathlib import Path
from typing import Any, ClassVar

import redis

from statemgr import StateManagerRedis
from statemgr.backends.redis.keys import Keys, class_of
from statemgr.manager import StateManager
from statemgr.testing import Capability, Harness
from statemgr.token import AnyToken

_STEP = 1.0  # seconds: less than a third of the lock_expiration, after which grants are renewed
_numbers = itertools.count()

# Redis has a clock of its own, which nobody can move: what is to be older is set back.
_AGE = """
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local value = redis.call('HGET', KEYS[1], field)
  if string.sub(field, 1, 2) == 'd:' then
    local deadline = tonumber(string.sub(value, 1, 15)) - ARGV[1]
    redis.call('HSET', KEYS[1], field, string.format('%015.0f', deadline) .. string.sub(value, 16))
  elseif field == 'lock' then
    local start, since, rest = string.match(value, '^(%S* %d+ %d+ )(%d+)( .*)$')
    redis.call('HSET', KEYS[1], field, start .. (since - ARGV[1]) .. rest)
  end
end
"""
_EXPIRE = """
local size = string.sub(redis.call('HGET', KEYS[1], ARGV[1]), 16)
redis.call('HSET', KEYS[1], ARGV[1], string.format('%015.0f', redis.call('TIME')[1] * 1000) .. size)
"""


class RedisHarness(Harness):
    """Keep each test's states under a prefix of its own on a server that all share."""

    capabilities = frozenset(Capability) - {Capability.PURGE}
    mode: ClassVar[dict[str, Any]] = {}
    patience = 5.0

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.prefix = f"kit-{os.getpid()}-{next(_numbers)}"
        self.keys = Keys(self.prefix)
        self.raw = self.connect()

    def connect(self) -> Any:
        """Return a synchronous client for the raw keys."""
        return redis.Redis.from_url(self.server())

    def server(self) -> Any:
        """Return the URL of the server."""
        raise NotImplementedError

    def client(self) -> Any:
        """Return what a manager is given."""
        return self.server()

    async def make(self, **options: Any) -> StateManager:
        return StateManagerRedis(self.client(), key_prefix=self.prefix, **self.mode, **options)

    async def advance(self, seconds: float) -> None:
        while seconds > 0:
            step = min(seconds, _STEP) if self._in_use() else seconds
            self._age(step)  # first: what is written because time has passed takes account of it
            self.clock.advance(step)
            await self.clock.settle()
            await self.eventually(self._is_quiet)
            seconds -= step

    def _in_use(self) -> bool:
        return any(manager._granted or manager._grants.waiting for manager in self._used())

    def _is_quiet(self) -> bool:
        return all(m._channel.outstanding == 0 and not m._writer.flushing for m in self._used())

    def _used(self) -> list[Any]:
        return [m for m in self._managers if hasattr(m, "_channel") and m._refusal is None]

    def _age(self, seconds: float) -> None:
        for key in self.raw.scan_iter(match=self.keys.pattern(""), count=1000):
            self.raw.eval(_AGE, 1, key, round(seconds * 1000))

    async def read_raw(self, token: AnyToken) -> bytes | None:
        record = self.raw.hget(self.keys.ident(token.lock_key), b"s:" + class_of(token))
        assert record is None or isinstance(record, bytes)
        return record

    async def write_raw(self, token: AnyToken, record: bytes) -> None:
        self.raw.hset(self.keys.ident(token.lock_key), b"s:" + class_of(token), record)

    async def expire(self, token: AnyToken) -> None:
        self.raw.eval(_EXPIRE, 1, self.keys.ident(token.lock_key), b"d:" + class_of(token))

    async def kept(self) -> list[bytes]:
        return [self.raw.get(key) for key in self.raw.scan_iter(match=f"{self.prefix}:*:kept:*")]

    async def close(self) -> None:
        await super().close()
        for key in self.raw.scan_iter(match=f"{self.prefix}:*", count=1000):
            self.raw.delete(key)
        self.raw.close()
