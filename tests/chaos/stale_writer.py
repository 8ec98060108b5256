"""A manager that is broken on purpose: who has lost its lock writes all the same.

It is what many write by hand: a lock file that others remove when it is old. Nothing looks at it
again before the write, so a process that was stopped for longer overwrites what came after it.
"""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from chaos.plan import ANYWHERE
from chaos.subjects import Opened, Subject, our_outcome
from statemgr import StateToken
from statemgr.clock import Clock


class StaleWriter:
    """Keep each state in a file, and beside it a lock that anybody removes when it is old."""

    def __init__(self, directory: str, expiration: float) -> None:
        self._directory = Path(directory)
        self._expiration = expiration

    async def get_state(self, token: StateToken[Any]) -> Any:
        with contextlib.suppress(FileNotFoundError):
            return token.cls(json.loads(self._path(token).read_text()))
        return token.create()

    async def set_state(self, token: StateToken[Any], state: Any) -> None:
        async with self.modify_state(token) as found:
            found.value = state.value

    @asynccontextmanager
    async def modify_state(
        self, token: StateToken[Any], timeout: float | None = None
    ) -> AsyncIterator[Any]:
        lock = self._path(token).with_suffix(".lock")
        while not self._take(lock):  # noqa: ASYNC110  # another process has it
            await asyncio.sleep(0.002)
        try:
            state = await self.get_state(token)
            yield state
            new = self._path(token).with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps(state.value))
            new.rename(self._path(token))
        finally:
            lock.unlink(missing_ok=True)

    def _take(self, lock: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - lock.stat().st_mtime > self._expiration:
                lock.unlink()
        try:
            lock.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _path(self, token: StateToken[Any]) -> Path:
        return self._directory / f"{token.ident}.json"


@asynccontextmanager
async def open_stale_writer(
    place: str, clock: Clock, expiration: float, **_: Any
) -> AsyncIterator[Opened]:
    manager = StaleWriter(place, expiration)

    async def try_lock(token: StateToken[Any]) -> bool:
        async with manager.modify_state(token):
            return True

    yield Opened(manager, StateToken, our_outcome, try_lock)


SUBJECT = Subject(
    "stale-writer",
    "a broken manager",
    "tests.chaos.stale_writer:open_stale_writer",
    faults=ANYWHERE,
)
