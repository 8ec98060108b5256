"""A bare `asyncio.Lock` per ident around a dict: the floor under all that keep states in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.subject import Role, Store, Subject


class LockDict(Store):
    """Two dicts and no promises: no expiration, no rollback, one class per ident."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._states: dict[str, Any] = {}

    def token(self, ident: str, cls: type) -> str:
        return ident

    async def fill(self, tokens: Sequence[str], factory: Callable[[], Any]) -> None:
        for ident in tokens:
            self._locks[ident] = asyncio.Lock()
            self._states[ident] = factory()

    async def get(self, ident: str) -> Any:
        """Look a state up, as a coroutine: an interface that may have to wait needs one."""
        return self._states[ident]

    async def read(self, tokens: Sequence[str]) -> None:
        for ident in tokens:
            await self.get(ident)

    async def change(self, tokens: Sequence[str]) -> None:
        locks, states = self._locks, self._states
        for ident in tokens:
            async with locks[ident]:
                states[ident].version += 1

    async def change_slowly(self, tokens: Sequence[str]) -> None:
        locks, states = self._locks, self._states
        for ident in tokens:
            async with locks[ident]:
                states[ident].version += 1
                await asyncio.sleep(0)

    async def version(self, token: str) -> int:
        return int(self._states[token].version)


@asynccontextmanager
async def _open(token_expiration: float) -> AsyncIterator[Store]:
    yield LockDict()


SUBJECTS = (
    Subject(
        name="lock_dict",
        role=Role.FLOOR,
        summary="a bare asyncio.Lock per ident around a dict; to import: asyncio",
        against=("memory", "disk/debounce", "redis/behind"),
        open_store=_open,
        statement="import asyncio",
    ),
)
