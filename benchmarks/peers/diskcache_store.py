"""diskcache: pickles in SQLite, shared by the processes of a machine without a server.

Asked for something like Redis without Redis, a user would name it: it is among the thousand
packages of PyPI that are downloaded most, under DVC and llama-cpp-python among others. Its last
release is of August 2023, so it loads pickles by default as it always did (CVE-2025-69872).

It is synchronous: each call goes to a thread, as its author recommends. A change that waits for
nothing is a transaction in one such trip, which is how its own recipes read and write back. A
transaction belongs to its thread, so a body that awaits cannot be in one. That one has a lock as
in the recipe `Lock`, but asked for from the loop: the recipe sleeps in its thread, and a few that
wait so would take all threads, so that the holder gets none to free the lock in.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.subject import Role, Store, Subject

LOCK_TIMEOUT = 10.0
"""Seconds after which a lock is free again, should its holder have died."""

PAUSE = 0.01
"""Seconds between two questions for a lock. The recipe's 0.001 have 64 tasks ask all the time."""


class DiskCacheStore(Store):
    """The loops over a `diskcache.Cache`."""

    def __init__(self, cache: Any, token_expiration: float) -> None:
        self._cache = cache
        self._expiration = token_expiration

    def token(self, ident: str, cls: type) -> str:
        return ident

    async def fill(self, tokens: Sequence[str], factory: Callable[[], Any]) -> None:
        for ident in tokens:
            await asyncio.to_thread(self._save, ident, factory())

    async def read(self, tokens: Sequence[str]) -> None:
        for ident in tokens:
            await asyncio.to_thread(self._cache.get, ident)

    async def change(self, tokens: Sequence[str]) -> None:
        for ident in tokens:
            await asyncio.to_thread(self._add_one, ident)

    async def change_slowly(self, tokens: Sequence[str]) -> None:
        for ident in tokens:
            # Who frees it, in another process perhaps, can tell nobody.
            while (state := await asyncio.to_thread(self._lock_and_load, ident)) is None:  # noqa: ASYNC110
                await asyncio.sleep(PAUSE)
            state.version += 1
            await asyncio.sleep(0)
            await asyncio.to_thread(self._save_and_unlock, ident, state)

    async def version(self, token: str) -> int:
        state = await asyncio.to_thread(self._cache.get, token)
        return int(state.version)

    def _save(self, ident: str, state: Any) -> None:
        self._cache.set(ident, state, expire=self._expiration, retry=True)

    def _add_one(self, ident: str) -> None:
        with self._cache.transact(retry=True):
            state = self._cache.get(ident)
            state.version += 1
            self._save(ident, state)

    def _lock_and_load(self, ident: str) -> Any:
        """Take the lock and return the state; None if the lock is not free."""
        with self._cache.transact(retry=True):
            if not self._cache.add(_lock(ident), None, expire=LOCK_TIMEOUT):
                return None
            return self._cache.get(ident)

    def _save_and_unlock(self, ident: str, state: Any) -> None:
        with self._cache.transact(retry=True):
            self._save(ident, state)
            self._cache.delete(_lock(ident))


def _lock(ident: str) -> str:
    return f"{ident}:lock"


@asynccontextmanager
async def _open(
    directory: Path, token_expiration: float, *, ahead: float = 0.0
) -> AsyncIterator[Store]:
    from diskcache import Cache  # type: ignore[import-not-found]

    # Without "none" it would drop states, and locks, to stay below 1 GB.
    cache = await asyncio.to_thread(Cache, directory, eviction_policy="none")
    try:
        yield DiskCacheStore(cache, token_expiration)
    finally:
        cache.close()


SUBJECTS = (
    Subject(
        name="diskcache",
        role=Role.PEER,
        summary="diskcache: pickles in SQLite, a transaction in a thread for each change",
        against=("disk",),
        requires=("diskcache",),
        lacks=(
            "a transaction locks the whole directory",
            "a body that awaits needs a spin lock",
            "who waits is served in no order",
            "a lock's release can free another's",
            "loading runs code (pickle), no checksum",
            "expired tokens go only as others are written",
        ),
        open_directory=_open,
        shared=True,
        statement="import diskcache",
    ),
)
