"""redis-py's `Lock` around GET and SET: what one writes with nothing but the client.

The lock waits by asking every 0.1 s, and its end does not undo a change: nothing is fenced.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.subject import Role, Store, Subject
from statemgr import StateToken

if TYPE_CHECKING:
    from redis.asyncio import Redis

LOCK_TIMEOUT = 10.0
"""Seconds after which the server frees a lock."""

CONNECTIONS = 1_024
"""The most connections of the pool: newer redis-py refuses the 101st otherwise."""


class _Key(NamedTuple):
    """Where one state is, and how it goes to bytes; the encoder is our own backends'."""

    name: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


class RedisLock(Store):
    """One key per ident, and a lock beside it."""

    def __init__(self, client: "Redis", token_expiration: float) -> None:
        self._client = client
        self._expiration = int(token_expiration * 1000)

    def token(self, ident: str, cls: type) -> _Key:
        token: StateToken[Any] = StateToken(ident, cls)
        return _Key(f"state:{ident}", token.encoder(), token.deserialize)

    async def fill(self, tokens: Sequence[_Key], factory: Callable[[], Any]) -> None:
        for key in tokens:
            await self._save(key, factory())

    async def read(self, tokens: Sequence[_Key]) -> None:
        for key in tokens:
            await self._load(key)

    async def change(self, tokens: Sequence[_Key]) -> None:
        for key in tokens:
            async with self._client.lock(f"{key.name}:lock", timeout=LOCK_TIMEOUT):
                state = await self._load(key)
                state.version += 1
                await self._save(key, state)

    async def change_slowly(self, tokens: Sequence[_Key]) -> None:
        for key in tokens:
            async with self._client.lock(f"{key.name}:lock", timeout=LOCK_TIMEOUT):
                state = await self._load(key)
                state.version += 1
                await asyncio.sleep(0)
                await self._save(key, state)

    async def version(self, token: _Key) -> int:
        return int((await self._load(token)).version)

    async def _load(self, key: _Key) -> Any:
        data = await self._client.get(key.name)
        assert isinstance(data, bytes)
        return key.decode(data)

    async def _save(self, key: _Key, state: Any) -> None:
        await self._client.set(key.name, key.encode(state), px=self._expiration)


@asynccontextmanager
async def _open(url: str, token_expiration: float) -> AsyncIterator[Store]:
    from redis.asyncio import Redis

    async with Redis.from_url(url, max_connections=CONNECTIONS) as client:
        yield RedisLock(client, token_expiration)


SUBJECTS = (
    Subject(
        name="redis_lock",
        role=Role.PEER,
        summary="redis-py's Lock around a GET and a SET of the encoded state",
        against=("redis",),
        requires=("redis",),
        lacks=(
            "who has lost the lock still overwrites",
            "a lock is not renewed",
            "asks every 0.1 s, in no order",
            "reads renew nothing",
            "stored bytes have no checksum",
        ),
        open_server=_open,
        shared=True,
        statement="import redis.asyncio",
    ),
)
