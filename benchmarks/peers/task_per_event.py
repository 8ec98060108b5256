"""A task for each event and nothing else: the floor under event processors."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.processors import Tally
from benchmarks.subject import Events, Role, Subject


class TaskPerEvent(Events):
    """No order for an ident, no names of handlers, no context, no bounds, no state."""

    def __init__(self) -> None:
        self._tally = Tally()

    async def _add(self, by: int) -> None:
        self._tally.handled += by

    async def _step(self, left: int) -> asyncio.Task[Any] | None:
        self._tally.handled += 1
        return asyncio.create_task(self._step(left - 1)) if left else None

    async def fill(self, idents: Sequence[str]) -> None:
        pass

    async def send(self, idents: Sequence[str]) -> None:
        for _ in idents:
            await asyncio.create_task(self._add(by=1))

    async def enqueue(self, idents: Sequence[str]) -> Sequence[asyncio.Future[Any]]:
        return [asyncio.create_task(self._add(by=1)) for _ in idents]

    async def chain(self, idents: Sequence[str], length: int) -> None:
        for _ in idents:
            task: asyncio.Task[Any] | None = asyncio.create_task(self._step(length - 1))
            while task is not None:
                task = await task

    async def handled(self, idents: Sequence[str]) -> int:
        return self._tally.handled


@asynccontextmanager
async def _open(place: str) -> AsyncIterator[Events]:
    yield TaskPerEvent()


SUBJECTS = (
    Subject(
        name="task_per_event",
        role=Role.FLOOR,
        summary="a bare asyncio task for each event, in no order",
        # The variants are those that another floor names, whose place it would take otherwise.
        against=(
            *("stateless", "memory", "disk", "redis"),
            *("disk/fsync", "disk/debounce", "redis/through", "redis/behind"),
        ),
        open_events=_open,
    ),
)
