"""`Harness`: what the test kit needs to know about a backend, in some thirty lines."""

import asyncio
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from statemgr.manager import StateManager
from statemgr.testing.clock import ManualClock
from statemgr.token import AnyToken

T = TypeVar("T")

EXPIRATION = 60.0  # seconds: the `token_expiration` of the kit's managers


class Capability(enum.Enum):
    """What a backend may offer beyond the contract's common part.

    The kit checks that a declared capability works, and that an undeclared one is not offered.
    """

    ROLLBACK = "rollback"
    """States are kept as bytes: a failed body leaves no trace, readers get copies of their own,
    and what cannot be serialized is refused."""

    SHARED = "shared"
    """Several managers may use one store at the same time."""

    DURABLE = "durable"
    """A manager that is opened after another was closed finds its states."""

    RAW_RECORDS = "raw records"
    """The harness reads and writes records without a manager. Needs DURABLE."""

    FENCE = "fence"
    """Each modification has a fence: a number that grows with each grant of the ident's lock."""

    PURGE = "purge"
    """The manager itself drops expired states, and counts them as `Statistics.purged`."""


class Harness(ABC):
    """Open managers on one store, and reach behind their back.

    A subclass declares `capabilities` and supplies `make`; with `Capability.RAW_RECORDS` also
    `read_raw`, `write_raw`, `expire` and `kept`. The kit makes one harness for each test.

    Args:
        directory: An empty directory, for a store that needs one.

    Attributes:
        capabilities: What the backend offers.
        clock: The clock that the managers are given.
        patience: Real seconds after which a test that still waits has failed.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    patience: float = 30.0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = ManualClock()
        self._managers: list[StateManager] = []
        self._tasks: list[asyncio.Task[Any]] = []

    # What a subclass supplies

    @abstractmethod
    async def make(self, **options: Any) -> StateManager:
        """Return a new manager on this harness's store.

        Called again while the first is open, it makes what another process would have. A
        backend without `Capability.SHARED` refuses that with a `StateManagerError`, here or at
        the manager's first call, or makes a manager whose store is its own.

        Args:
            options: Options of `StateManager`, passed on to the backend.
        """

    async def advance(self, seconds: float) -> None:
        """Move time for the managers and for their store.

        A store with a time of its own needs more than this: records there are made older by
        `seconds`, in steps if managers renew in between what they hold. Locks are not.
        """
        self.clock.advance(seconds)

    async def published(self) -> None:  # noqa: B027  # most backends have nothing to wait for
        """Return once every manager on the store reads what any of them has acknowledged.

        Override it for a backend that acknowledges a change first and shares it a little later.
        """

    async def read_raw(self, token: AnyToken) -> bytes | None:
        """Return a record as it is in the store, None if there is none."""
        raise NotImplementedError

    async def write_raw(self, token: AnyToken, record: bytes) -> None:
        """Replace a record in the store. It expires when the one before would have."""
        raise NotImplementedError

    async def expire(self, token: AnyToken) -> None:
        """Set the deadline of a record in the store to now."""
        raise NotImplementedError

    async def corrupt(self, token: AnyToken) -> None:
        """Replace a record in the store by bytes that nobody can decode."""
        await self.write_raw(token, b"\xc1 not a record")

    async def kept(self) -> list[bytes]:
        """Return the records that managers set aside because they could not be decoded."""
        raise NotImplementedError

    # What tests use

    async def open(self, **options: Any) -> StateManager:
        """Return a new manager with the harness's clock, closed at the test's end."""
        manager = await self.make(**{"clock": self.clock, "token_expiration": EXPIRATION} | options)
        self._managers.append(manager)
        return manager

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine in a task that ends with the test."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.append(task)
        return task

    async def eventually(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; the test's `patience` bounds the wait."""
        turns = 0
        while not condition():
            turns += 1
            # A backend without threads or sockets is there after a few turns of the loop.
            await asyncio.sleep(0 if turns < 100 else 0.001)

    async def drive(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await something that takes time: meanwhile the clock moves, by a little.

        A manager may look at intervals whether another one has let a lock go.
        """
        task = self.spawn(coroutine)

        def done_or_later() -> bool:
            if not task.done():
                self.clock.advance(0.001)
            return task.done()

        await self.eventually(done_or_later)
        return task.result()

    async def close(self) -> None:
        """End the test: cancel its tasks, and close its managers.

        A subclass that has more to close does it after this.
        """
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.patience)
        for manager in self._managers:
            async with asyncio.timeout(self.patience):
                await manager.close()
