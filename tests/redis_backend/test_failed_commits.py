"""Commits that are refused or overtaken, and the bodies that were made on them."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import make_dataclass
from typing import Any

import pytest

from redis_backend.refuser import Refuser
from statemgr import StateManagerRedis, StateToken
from statemgr.backends.redis.scripts import COMMIT
from statemgr.errors import (
    BackendUnavailableError,
    CommitUncertainError,
    LockExpiredError,
    LockTimeoutError,
    StateManagerClosedError,
    StateManagerError,
)
from statemgr.testing.servers import Server

PATIENCE = 5.0  # seconds: less than a lock is held that is not given back

TOKEN = StateToken("a", list)

_numbers = itertools.count()


class Setup:
    """A manager whose scripts may be refused, and another one on the same server.

    Attributes:
        one: The first manager.
        other: The other one.
        refuser: What refuses the scripts of the first one.
    """

    def __init__(self, one: StateManagerRedis, other: StateManagerRedis, refuser: Refuser) -> None:
        self.one = one
        self.other = other
        self.refuser = refuser

    def refuse_next(self, refusal: bytes) -> None:
        self.refuser.refusal, self.refuser.count = refusal, 1

    async def is_locked(self) -> bool:
        """Return whether the other manager finds the lock taken."""
        try:
            async with self.other.modify_state(TOKEN, timeout=0) as state:
                state.append("too early")
        except LockTimeoutError:
            return True
        return False


@asynccontextmanager
async def setup_on(server: Server, **options: Any) -> AsyncIterator[Setup]:
    options |= {"key_prefix": f"failed-{next(_numbers)}", "lock_expiration": 30.0}
    async with (
        asyncio.timeout(3 * PATIENCE),
        Refuser("127.0.0.1", server.port) as refuser,
        StateManagerRedis(refuser.url, **options) as one,
        StateManagerRedis(server.url, **options) as other,
    ):
        await append(one, "before")
        yield Setup(one, other, refuser)


async def append(manager: StateManagerRedis, word: str) -> None:
    async with manager.modify_state(TOKEN) as state:
        state.append(word)


async def outcome_of(awaited: Any) -> StateManagerError | None:
    try:
        await awaited
    except StateManagerError as error:
        return error
    return None


class Lingering:
    """A change whose body goes on when it is told to."""

    def __init__(self, manager: StateManagerRedis) -> None:
        self.inside = asyncio.Event()
        self.go_on = asyncio.Event()
        self.task = asyncio.create_task(self._change(manager))

    async def _change(self, manager: StateManagerRedis) -> None:
        async with manager.modify_state(TOKEN) as state:
            self.inside.set()
            await self.go_on.wait()
            state.append("on what failed")


@asynccontextmanager
async def body_on_a_refused_change(setup: Setup) -> AsyncIterator[Lingering]:
    """Have a commit refused while the next body, of the same manager, is at work on it."""
    second = None
    with pytest.raises(BackendUnavailableError, match="refused"):
        async with setup.one.modify_state(TOKEN) as state:
            second = Lingering(setup.one)
            await asyncio.sleep(0)
            setup.refuse_next(b"-OOM command not allowed\r\n")
            state.append("refused")
    assert second is not None
    await second.inside.wait()
    yield second


async def test_body_on_a_refused_change(redis_server: Server) -> None:
    """Nobody comes in before that body has ended, which writes nothing; then others do."""
    async with setup_on(redis_server) as setup, body_on_a_refused_change(setup) as second:
        assert await setup.is_locked()
        assert await setup.one.get_state(TOKEN) == ["before"]
        third = asyncio.create_task(append(setup.one, "third"))
        second.go_on.set()
        error = await outcome_of(second.task)
        assert isinstance(error, BackendUnavailableError)
        assert "was not written before it" in str(error)
        async with asyncio.timeout(PATIENCE):
            await third
            await append(setup.other, "other")
        assert await setup.one.get_state(TOKEN) == ["before", "third", "other"]


async def test_cancelled_body_on_a_refused_change(redis_server: Server) -> None:
    """Gives the lock back, too."""
    async with setup_on(redis_server) as setup, body_on_a_refused_change(setup) as second:
        second.task.cancel()
        await asyncio.wait([second.task])
        async with asyncio.timeout(PATIENCE):
            await append(setup.other, "other")
        assert await setup.one.get_state(TOKEN) == ["before", "other"]


async def test_closing_within_a_body_on_a_refused_change(redis_server: Server) -> None:
    """Gives the lock back at once, as of every body."""
    async with setup_on(redis_server) as setup, body_on_a_refused_change(setup) as second:
        await setup.one.close()
        async with asyncio.timeout(PATIENCE):
            await append(setup.other, "other")
        second.go_on.set()
        assert isinstance(await outcome_of(second.task), StateManagerClosedError)


async def test_change_that_is_asked_for_before_the_one_it_was_made_on(redis_server: Server) -> None:
    """It fails, the earlier one is done, and the lock is free when nobody here has it any more."""
    async with setup_on(redis_server) as setup:
        async with setup.one.modify_state(TOKEN) as state:
            second = asyncio.create_task(append(setup.one, "second"))
            await asyncio.sleep(0)
            third = Lingering(setup.one)
            await asyncio.sleep(0)
            # Sent again behind the second one, which a server that knows the script refuses then.
            setup.refuse_next(b"-NOSCRIPT No matching script.\r\n")
            state.append("first")
        error = await outcome_of(second)
        assert isinstance(error, BackendUnavailableError)
        assert "was not written before it" in str(error)
        await third.inside.wait()
        assert await setup.is_locked()
        third.go_on.set()
        assert isinstance(await outcome_of(third.task), BackendUnavailableError)
        async with asyncio.timeout(PATIENCE):
            await append(setup.other, "other")
        assert await setup.one.get_state(TOKEN) == ["before", "first", "other"]


async def test_refused_commit_whose_grant_is_lost_meanwhile(redis_server: Server) -> None:
    """A later change of the same manager, under a new grant, does not make it seem done."""
    async with setup_on(redis_server) as setup:
        key = setup.one._keys.ident(TOKEN.lock_key)

        async def change() -> None:
            async with setup.one.modify_state(TOKEN) as state:
                setup.refuse_next(b"-READONLY of a primary that was demoted\r\n")
                state.append("lost")

        # As a new primary that has not heard of the grant.
        first = asyncio.create_task(change())
        while not setup.refuser.refused:  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0)
        await asyncio.to_thread(redis_server.command, "HDEL", key, "lock")
        await append(setup.one, "second")
        assert isinstance(await outcome_of(first), LockExpiredError)
        assert await setup.other.get_state(TOKEN) == ["before", "second"]


@pytest.mark.parametrize(("doubts", "error"), [(0, LockExpiredError), (1, CommitUncertainError)])
async def test_commit_behind_a_later_grant(
    redis_server: Server, doubts: int, error: type[StateManagerError]
) -> None:
    """The server cannot tell. It was done before only if a connection was lost meanwhile."""
    async with setup_on(redis_server) as setup:
        link: Any = setup.one._channel._link  # type: ignore[attr-defined]  # one server's
        hand_on = link._replied

        def altered(replies: Sequence[Any]) -> None:
            link._sent[0].doubts = doubts
            hand_on([[3]] if link._sent[0].script is COMMIT else replies)

        link._wire.on_replies = altered
        with pytest.raises(error):
            await append(setup.one, "?")


async def test_flush_behind_a_later_grant(redis_server: Server) -> None:
    """Whether it was done is not known, and is told to who comes next."""
    async with setup_on(redis_server, oplock="behind") as setup:
        link: Any = setup.one._channel._link  # type: ignore[attr-defined]  # one server's
        hand_on = link._replied
        link._wire.on_replies = lambda _: hand_on([[3]])
        setup.one._let_go(setup.one._granted[TOKEN.lock_key])
        with pytest.raises(CommitUncertainError, match="a later change"):
            await setup.one.get_state(TOKEN)
        link._wire.on_replies = hand_on


async def test_thousands_of_states_are_written_whole(redis_server: Server) -> None:
    """A command takes some thousands of values from Lua; a commit may have more."""
    classes = [make_dataclass(f"Of{i}", [("n", int, 0)]) for i in range(2100)]
    tokens = [StateToken("a", cls) for cls in classes]
    options: dict[str, Any] = {"key_prefix": "thousands", "oplock": "behind"}
    async with (
        StateManagerRedis(redis_server.url, **options) as manager,
        StateManagerRedis(redis_server.url, key_prefix="thousands") as other,
    ):
        await other.set_state(tokens[0], classes[0](1))
        for token, cls in zip(tokens[1:], classes[1:], strict=True):
            await manager.set_state(token, cls(1))
        assert await manager.delete_state(tokens[0])  # with all that was put off
        found = await other.get_states(*tokens)
        assert [state.n for state in found] == [0] + 2099 * [1]
