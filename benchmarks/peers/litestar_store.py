"""Litestar's stores, in which its server-side sessions are: in memory, in files, in Redis.

A user of an async web framework would name the framework's own sessions, and these are in the
three places that ours are in. They stand for all that load a session as a whole, let the request
change it, and write it back as a whole: Starlette's and Flask's extensions do so too. No lock goes
with it, neither of an ident nor against another process.

The loops are those of Litestar's session middleware, with the expiration set anew by each write.
In place of its dict of JSON they have typed JSON, by msgspec, which Litestar itself depends on:
decoding straight to the class is the faster way, and what its users do with all other data.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.subject import Role, Store, Subject

CONNECTIONS = 1_024
"""The most connections of the pool: newer redis-py refuses the 101st otherwise."""

UNLOCKED = "loses updates when two tasks change one ident"
RENEWS = "reads renew only if told to"


class _Key(NamedTuple):
    """What a state is stored by, and how it comes from bytes."""

    name: str
    decode: Callable[[bytes], Any]


class LitestarStore(Store):
    """The loops over any of Litestar's stores."""

    def __init__(self, store: Any, token_expiration: float) -> None:
        self._store = store
        self._expiration = int(token_expiration)
        self._encode = msgspec.json.Encoder().encode

    def token(self, ident: str, cls: type) -> _Key:
        return _Key(ident, msgspec.json.Decoder(cls).decode)

    async def fill(self, tokens: Sequence[_Key], factory: Callable[[], Any]) -> None:
        for key in tokens:
            await self._save(key, factory())

    async def read(self, tokens: Sequence[_Key]) -> None:
        for key in tokens:
            await self._load(key)

    async def change(self, tokens: Sequence[_Key]) -> None:
        for key in tokens:
            state = await self._load(key)
            state.version += 1
            await self._save(key, state)

    async def change_slowly(self, tokens: Sequence[_Key]) -> None:
        for key in tokens:
            state = await self._load(key)
            state.version += 1
            await asyncio.sleep(0)
            await self._save(key, state)

    async def version(self, token: _Key) -> int:
        return int((await self._load(token)).version)

    async def _load(self, key: _Key) -> Any:
        return key.decode(await self._store.get(key.name))

    async def _save(self, key: _Key, state: Any) -> None:
        await self._store.set(key.name, self._encode(state), expires_in=self._expiration)


@asynccontextmanager
async def _opened(store: Any, token_expiration: float) -> AsyncIterator[Store]:
    async with store:
        yield LitestarStore(store, token_expiration)


def _open_memory(token_expiration: float) -> AbstractAsyncContextManager[Store]:
    # Not installed where types are checked.
    from litestar.stores.memory import MemoryStore  # type: ignore[import-not-found]

    return _opened(MemoryStore(), token_expiration)


def _open_file(
    directory: Path, token_expiration: float, *, ahead: float = 0.0
) -> AbstractAsyncContextManager[Store]:
    from litestar.stores.file import FileStore  # type: ignore[import-not-found]

    return _opened(FileStore(directory), token_expiration)


def _open_redis(url: str, token_expiration: float) -> AbstractAsyncContextManager[Store]:
    from litestar.stores.redis import RedisStore  # type: ignore[import-not-found]
    from redis.asyncio import Redis

    client = Redis.from_url(url, max_connections=CONNECTIONS)
    return _opened(RedisStore(client, handle_client_shutdown=True), token_expiration)


SUBJECTS = (
    Subject(
        name="litestar_memory",
        role=Role.PEER,
        summary="Litestar's MemoryStore: encoded states, read, changed and written as a whole",
        against=("memory",),
        requires=("litestar",),
        lacks=(
            UNLOCKED,
            "expired tokens stay until read or swept",
            RENEWS,
            "keeps bytes: types are the caller's affair",
        ),
        exclusive=False,
        open_store=_open_memory,
        statement="from litestar.stores.memory import MemoryStore",
    ),
    Subject(
        name="litestar_file",
        role=Role.PEER,
        summary="Litestar's FileStore: each change in a renamed file, without a lock",
        against=("disk",),
        requires=("litestar",),
        lacks=(
            UNLOCKED,
            "a failed write passes in silence",
            "a short write replaces the whole file",
            "no checksum, and syncs nothing",
            "expired files stay until read or swept",
            RENEWS,
        ),
        exclusive=False,
        open_directory=_open_file,
        statement="from litestar.stores.file import FileStore",
    ),
    Subject(
        name="litestar_redis",
        role=Role.PEER,
        summary="Litestar's RedisStore: a GET and a SET for each change, without a lock",
        against=("redis",),
        requires=("litestar", "redis"),
        lacks=(
            UNLOCKED,
            "no fence: the last writer wins",
            "stored bytes have no checksum",
            RENEWS,
            "idents must be valid UTF-8",
        ),
        exclusive=False,
        open_server=_open_redis,
        statement="from litestar.stores.redis import RedisStore",
    ),
)
