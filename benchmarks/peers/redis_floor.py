"""The fewest trips to a Redis server: the floor under every manager on it.

A change is two scripts, one after the other: take the lock and read, then write and free the lock.
What the tasks ask for in one turn of the loop leaves in one write. Whoever keeps the lock needs the
second script only. There is no redis-py in it, and no queue: a lock that is taken is an error.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import hiredis

from benchmarks.subject import Role, Store, Subject
from statemgr import StateToken

ACQUIRE = """
-- Takes the lock and reads the state.
-- KEYS: lock, state. ARGV: owner, milliseconds until the lock expires.
-- Returns the state; nil if the lock is taken or the state is not there.
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return false end
return redis.call('GET', KEYS[2])
"""

COMMIT = """
-- Writes the state and frees the lock, if it is still the owner's.
-- KEYS: lock, state. ARGV: owner, state, milliseconds until it expires.
-- Returns 1 if it was, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[1])
return 1
"""

SAVE = """
-- Writes the state, if the lock is the owner's, who keeps it.
-- KEYS: lock, state. ARGV: owner, state, milliseconds until it expires.
-- Returns 1 if it was, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
"""

LOCK_MS = 3_600_000
"""Milliseconds until a lock expires: no measurement renews it."""

OWNER = "floor"


class RefusedError(Exception):
    """The server refused a command, or a lock that nobody else knows of was not ours."""


class _Key(NamedTuple):
    """Where one state is, and how it goes to bytes; the encoder is our own backends'."""

    lock: str
    state: str
    turn: asyncio.Lock
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


class _Wire(asyncio.Protocol):
    """One connection, over which the commands of one turn of the loop leave in one write."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(replyError=RefusedError)
        self._unsent: list[bytes] = []
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._loop = asyncio.get_running_loop()

    def call(self, *command: str | bytes | float) -> asyncio.Future[Any]:
        """Send a command, and return the future of its reply."""
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # means any length
        reply = self._loop.create_future()
        self._pending.append(reply)
        return reply

    def _send(self) -> None:
        self._transport.writelines(self._unsent)
        self._unsent.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            future = self._pending.popleft()
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        for future in self._pending:
            future.set_exception(error or ConnectionResetError())

    def close(self) -> None:
        """End the connection."""
        self._transport.close()


class RedisFloor(Store):
    """One key per ident, and no promises: no waiting for another process, no renewal."""

    def __init__(self, wire: _Wire, token_expiration: float, scripts: Sequence[bytes]) -> None:
        self._call = wire.call
        self._expiration = int(token_expiration * 1000)
        self._acquire, self._commit, self._save = scripts
        self._kept: dict[str, Any] = {}

    def token(self, ident: str, cls: type) -> _Key:
        token: StateToken[Any] = StateToken(ident, cls)
        name = f"state:{ident}"
        return _Key(f"{name}:lock", name, asyncio.Lock(), token.encoder(), token.deserialize)

    async def fill(self, tokens: Sequence[_Key], factory: Callable[[], Any]) -> None:
        for key in tokens:
            await self._call("SET", key.state, key.encode(factory()), "PX", self._expiration)

    async def read(self, tokens: Sequence[_Key]) -> None:
        for key in tokens:
            await self._load(key)

    async def change(self, tokens: Sequence[_Key]) -> None:
        for key in tokens:
            async with key.turn:
                state = await self._begin(key)
                state.version += 1
                await self._end(self._commit, key, state)

    async def change_slowly(self, tokens: Sequence[_Key]) -> None:
        """Keep the lock for good: whoever waits for it is in this process."""
        for key in tokens:
            async with key.turn:
                state = await self._keep(key)
                state.version += 1
                await asyncio.sleep(0)
                await self._end(self._save, key, state)

    async def version(self, token: _Key) -> int:
        return int((await self._load(token)).version)

    async def _load(self, key: _Key) -> Any:
        return key.decode(await self._call("GET", key.state))

    async def _begin(self, key: _Key) -> Any:
        data = await self._call("EVALSHA", self._acquire, 2, key.lock, key.state, OWNER, LOCK_MS)
        if data is None:
            raise RefusedError(key.lock)
        return key.decode(data)

    async def _keep(self, key: _Key) -> Any:
        state = self._kept.get(key.state)
        if state is None:
            state = self._kept[key.state] = await self._begin(key)
        return state

    async def _end(self, script: bytes, key: _Key, state: Any) -> None:
        data = key.encode(state)
        if not await self._call(
            "EVALSHA", script, 2, key.lock, key.state, OWNER, data, self._expiration
        ):
            raise RefusedError(key.lock)


class KeptLock(RedisFloor):
    """The same with every lock and every state kept from the beginning."""

    async def fill(self, tokens: Sequence[_Key], factory: Callable[[], Any]) -> None:
        await super().fill(tokens, factory)
        for key in tokens:
            await self._keep(key)

    async def read(self, tokens: Sequence[_Key]) -> None:
        for key in tokens:
            await self._keep(key)

    async def change(self, tokens: Sequence[_Key]) -> None:
        for key in tokens:
            async with key.turn:
                state = await self._keep(key)
                state.version += 1
                await self._end(self._save, key, state)


@asynccontextmanager
async def _open(
    url: str, token_expiration: float, *, kind: type[RedisFloor]
) -> AsyncIterator[Store]:
    at = urlsplit(url)
    if at.scheme != "redis":
        raise RefusedError("a floor on Redis needs a URL that begins with redis://")
    _, wire = await asyncio.get_running_loop().create_connection(
        _Wire, at.hostname or "127.0.0.1", at.port or 6379
    )
    try:
        if at.password:
            await wire.call("AUTH", at.username or "default", at.password)
        await wire.call("SELECT", at.path.strip("/") or "0")
        scripts = [await wire.call("SCRIPT", "LOAD", one) for one in (ACQUIRE, COMMIT, SAVE)]
        yield kind(wire, token_expiration, scripts)
    finally:
        wire.close()


SUBJECTS = (
    Subject(
        name="redis_floor",
        role=Role.FLOOR,
        summary="two scripts per change, those of one turn of the loop in one write",
        against=("redis",),
        open_server=partial(_open, kind=RedisFloor),
    ),
    Subject(
        name="redis_floor/kept",
        role=Role.FLOOR,
        summary="one script per change: the lock and the state are kept",
        against=("redis/through",),
        open_server=partial(_open, kind=KeptLock),
    ),
)
