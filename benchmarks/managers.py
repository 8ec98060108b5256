"""A `Store` over a state manager: the same loops for every backend of ours and for Reflex."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.subject import Store

DEBOUNCE = 2.0
"""Seconds that a debounced write waits, Reflex's default, for ours and for Reflex alike."""

HOLD_TIME = 1.0
"""Seconds that an oplock keeps a lock, our default, for ours and for Reflex alike."""


class ManagerStore(Store):
    """The loops over anything with `get_state`, `set_state` and `modify_state`."""

    def __init__(
        self, manager: Any, token_class: Callable[..., Any], held: Callable[[], int] | None
    ) -> None:
        self._manager = manager
        self._token_class = token_class
        self._held = held

    def token(self, ident: str, cls: type) -> Any:
        return self._token_class(ident=ident, cls=cls)

    async def fill(self, tokens: Sequence[Any], factory: Callable[[], Any]) -> None:
        manager = self._manager
        for token in tokens:
            await manager.set_state(token, factory())

    async def read(self, tokens: Sequence[Any]) -> None:
        manager = self._manager
        for token in tokens:
            await manager.get_state(token)

    async def change(self, tokens: Sequence[Any]) -> None:
        manager = self._manager
        for token in tokens:
            async with manager.modify_state(token) as state:
                state.version += 1

    async def change_slowly(self, tokens: Sequence[Any]) -> None:
        manager = self._manager
        for token in tokens:
            async with manager.modify_state(token) as state:
                state.version += 1
                await asyncio.sleep(0)

    async def version(self, token: Any) -> int:
        state = await self._manager.get_state(token)
        return int(state.version)

    def held(self) -> int:
        return super().held() if self._held is None else self._held()


@asynccontextmanager
async def manager_store(
    manager: Any, token_class: Callable[..., Any], held: Callable[[], int] | None = None
) -> AsyncIterator[Store]:
    """Wrap a manager and close it at the end.

    Args:
        manager: A `StateManager`, ours or Reflex's.
        token_class: Makes a token from the keywords `ident` and `cls`.
        held: Tells how many tokens the manager keeps; None if they do not expire in it.
    """
    try:
        yield ManagerStore(manager, token_class, held)
    finally:
        await manager.close()
