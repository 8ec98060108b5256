"""A second class of an ident that is owned, and a grant that ends while its record is read."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from statemgr import StateManagerRedis, StateToken
from statemgr.errors import LockExpiredError, StateManagerClosedError, StateManagerError
from statemgr.testing.proxy import FaultyProxy
from statemgr.testing.servers import Server

PATIENCE = 5.0  # seconds: less than a lock is held that nobody gives back

ONE, OTHER = StateToken("a", list), StateToken("a", dict)

_numbers = itertools.count()


class Setup:
    """A manager behind a proxy, with a task inside that changes one class of an ident.

    A second task waits for it, here, to change another class.

    Attributes:
        manager: The manager.
        proxy: What is between it and the server.
        first: The task that is inside.
        second: The task that waits.
    """

    def __init__(self, manager: StateManagerRedis, proxy: FaultyProxy, server: Server) -> None:
        self.manager = manager
        self.proxy = proxy
        self._server = server
        self._leave = asyncio.Event()
        self._inside = asyncio.Event()
        self.first = asyncio.create_task(self._change_one())
        self.second = asyncio.create_task(self._change_other())

    async def _change_one(self) -> None:
        async with self.manager.modify_state(ONE) as state:
            self._inside.set()
            await self._leave.wait()
            state.append(1)

    async def _change_other(self) -> None:
        await self._inside.wait()
        async with self.manager.modify_state(OTHER) as state:
            state["changed"] = True

    async def wait_inside(self) -> None:
        await self._inside.wait()
        await until(lambda: self.manager._locks.queues)

    async def lose_lock(self) -> None:
        """Have the server forget the lock, as one that is replaced does."""
        key = self.manager._keys.ident(ONE.lock_key)
        await asyncio.to_thread(self._server.command, "DEL", key)

    async def leave(self) -> None:
        """End the first body, and have the commit and the reread on their way."""
        self.proxy.hold(requests=False)
        sent = self.proxy.requests + 2
        self._leave.set()
        await until(lambda: self.proxy.requests >= sent)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # nothing tells of all that is waited for
            await asyncio.sleep(0.001)


async def outcome_of(task: "asyncio.Task[None]") -> type[StateManagerError] | None:
    try:
        async with asyncio.timeout(PATIENCE):
            await task
    except StateManagerError as error:
        return type(error)
    return None


@pytest.fixture(params=["off", "through"])
async def setup(redis_server: Server, request: pytest.FixtureRequest) -> AsyncIterator[Setup]:
    async with setup_on(redis_server, request.param) as setup:
        yield setup


@asynccontextmanager
async def setup_on(server: Server, oplock: Any) -> AsyncIterator[Setup]:
    prefix = f"reread-{next(_numbers)}"
    async with (
        FaultyProxy("127.0.0.1", server.port) as proxy,
        StateManagerRedis(
            proxy.url, key_prefix=prefix, lock_expiration=30.0, oplock=oplock
        ) as manager,
    ):
        await manager.has_state(ONE)
        setup = Setup(manager, proxy, server)
        await setup.wait_inside()
        yield setup
        async with (
            asyncio.timeout(PATIENCE),
            StateManagerRedis(server.url, key_prefix=prefix, lock_expiration=30.0) as other,
            other.modify_state(ONE) as state,
        ):
            state.append("somebody else")


async def test_lock_that_a_reread_has_taken_anew(setup: Setup) -> None:
    """The commit finds the lock gone; the acquire behind it takes it, and it is given back."""
    await setup.lose_lock()
    await setup.leave()
    setup.proxy.resume()
    assert await outcome_of(setup.first) is LockExpiredError
    assert await outcome_of(setup.second) in (None, LockExpiredError)


async def test_lock_that_a_cancelled_reread_has_taken_anew(setup: Setup) -> None:
    """Who is cancelled need not be told; the lock is given back all the same."""
    await setup.lose_lock()
    await setup.leave()
    setup.second.cancel()
    await asyncio.wait([setup.second])
    setup.proxy.resume()
    assert await outcome_of(setup.first) is LockExpiredError


async def test_closing_during_a_reread(setup: Setup) -> None:
    """Nothing is asked for anew: nobody could give it back."""
    await setup.leave()
    closing = asyncio.create_task(setup.manager.close())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    setup.proxy.resume()
    await closing
    assert await outcome_of(setup.first) is None
    assert await outcome_of(setup.second) is StateManagerClosedError
