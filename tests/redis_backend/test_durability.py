"""What `durability` waits for, and what becomes of a change that does not get it."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from redis_backend.conftest import named_server
from statemgr import StateManagerRedis, StateToken
from statemgr.errors import CommitUncertainError, SettingsError
from statemgr.testing.proxy import FaultyProxy
from statemgr.testing.servers import DEFAULT, Server, wait_until

SHORT = "socket_timeout=0.6"


@dataclass
class Count:
    n: int = 0


TOKEN = StateToken("a", Count)


async def change(manager: StateManagerRedis) -> int:
    async with manager.modify_state(TOKEN, timeout=5) as state:
        state.n += 1
        return state.n


@pytest.fixture(scope="module")
def primary() -> Iterator[tuple[Server, Server]]:
    """Run a server and its replica."""
    with (
        Server(named_server(DEFAULT)) as server,
        Server(DEFAULT, replicaof=f"127.0.0.1 {server.port}") as replica,
    ):
        wait_until(lambda: b"master_link_status:up" in replica.command("INFO"), "the replica")
        yield server, replica


@pytest.fixture
def replicated(primary: tuple[Server, Server]) -> tuple[Server, Server]:
    primary[0].command("FLUSHALL")
    return primary


def manager_of(server: Any, **options: Any) -> StateManagerRedis:
    return StateManagerRedis(f"{server.url}?{SHORT}", **options)


async def test_replica_has_what_was_acknowledged(replicated: tuple[Server, Server]) -> None:
    """At once: nothing waits for it."""
    server, replica = replicated
    async with manager_of(server, durability="replicated") as manager:
        for value in (1, 2):
            assert await change(manager) == value
            copy = replica.command("HGETALL", "statemgr:{a}")
            assert copy == server.command("HGETALL", "statemgr:{a}")
        assert await manager.delete_state(TOKEN)
        await manager.set_state(TOKEN, Count(5))
        assert replica.command("HGETALL", "statemgr:{a}")


async def test_too_few_replicas(replicated: tuple[Server, Server]) -> None:
    """The change is there, the lock is free, and the caller knows that it may be lost."""
    server, _ = replicated
    async with manager_of(server, durability="replicated", replicas=2) as manager:
        with pytest.raises(CommitUncertainError, match="1 of 2 replicas"):
            await change(manager)
        with pytest.raises(CommitUncertainError):
            await manager.set_state(TOKEN, Count(7))
    async with manager_of(server) as other:
        assert await change(other) == 8


async def test_replica_that_stalls(replicated: tuple[Server, Server]) -> None:
    """It does not hold up a change for longer than half of the client's timeout."""
    server, replica = replicated
    async with manager_of(server, durability="replicated") as manager:
        assert await change(manager) == 1
        replica.stop_process()
        try:
            with pytest.raises(CommitUncertainError, match=r"0 of 1 replicas had it within 0\.3 s"):
                await change(manager)
        finally:
            replica.continue_process()
        assert await change(manager) == 3


async def test_disk_has_what_was_acknowledged() -> None:
    """After a kill it is there, although the server writes its file once a second only."""
    with Server(named_server(DEFAULT), appendonly=True, appendfsync="everysec") as server:
        async with manager_of(server, durability="aof") as manager:
            assert await change(manager) == 1
            server.kill()
            server.restart()
            assert await change(manager) == 2


@pytest.mark.parametrize(
    ("name", "reason"), [(DEFAULT, "appendonly is disabled"), ("redis-6.2", "unknown command")]
)
async def test_server_that_cannot_tell_of_its_disk(name: str, reason: str) -> None:
    """It is said what is missing, and that the change is there."""
    with Server(named_server(name)) as server:
        async with manager_of(server, durability="aof") as manager:
            with pytest.raises(CommitUncertainError, match=f"is in Redis.*{reason}"):
                await change(manager)
            assert await manager.get_state(TOKEN) == Count(1)


async def test_reply_to_the_commit_is_lost(replicated: tuple[Server, Server]) -> None:
    """The commit is repeated, and so is the wait for its copies: nothing is uncertain."""
    server, replica = replicated
    async with (
        FaultyProxy("127.0.0.1", server.port) as proxy,
        manager_of(proxy, durability="replicated") as manager,
    ):
        assert await change(manager) == 1
        struck = proxy.drop_reply(2, where=lambda args: args[0] == b"EVALSHA")
        assert await change(manager) == 2
        assert struck.is_set()
        assert replica.command("HGETALL", "statemgr:{a}")


async def test_reply_to_the_wait_is_lost(replicated: tuple[Server, Server]) -> None:
    """Whether there are copies is not known then, and that is what is said."""
    server, _ = replicated
    async with (
        FaultyProxy("127.0.0.1", server.port) as proxy,
        manager_of(proxy, durability="replicated") as manager,
    ):
        assert await change(manager) == 1
        proxy.drop_reply(1, where=lambda args: args[0] == b"WAIT")
        with pytest.raises(CommitUncertainError, match="the connection was lost"):
            await change(manager)
        assert await change(manager) == 3


async def test_commit_that_is_sent_again(replicated: tuple[Server, Server]) -> None:
    """The wait was answered before: of the commit it says nothing."""
    server, _ = replicated
    async with manager_of(server, durability="replicated") as manager:
        assert await change(manager) == 1
        with pytest.raises(CommitUncertainError, match="it was sent again"):
            async with manager.modify_state(TOKEN) as state:
                state.n += 1
                await asyncio.to_thread(server.command, "SCRIPT", "FLUSH")
        assert await change(manager) == 3


async def test_body_outlives_a_flush_that_is_not_confirmed(
    replicated: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    """The lock is still there, and what the body changes is written."""
    server, _ = replicated
    async with manager_of(
        server, durability="replicated", replicas=2, oplock="behind", oplock_hold_time=0.2
    ) as manager:
        assert await change(manager) == 1
        with pytest.raises(CommitUncertainError, match="is in Redis, but 1 of 2"):
            async with manager.modify_state(TOKEN) as state:
                state.n += 1
                await asyncio.to_thread(wait_until, lambda: caplog.records, "a log line")
        assert "may be lost: the change" in caplog.text
        with contextlib.suppress(CommitUncertainError):  # of the flush
            await manager.close()
    async with manager_of(server) as other:
        assert (await other.get_state(TOKEN)).n == 2


async def test_written_behind(
    replicated: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    """What is written later waits as well; an error is logged, and close() ends with it."""
    server, replica = replicated
    async with manager_of(server, durability="replicated", oplock="behind") as manager:
        assert await change(manager) == 1
    assert replica.command("HGETALL", "statemgr:{a}")
    with caplog.at_level(logging.ERROR), pytest.raises(CommitUncertainError):
        async with manager_of(
            server, durability="replicated", replicas=2, oplock="behind"
        ) as manager:
            assert await change(manager) == 2
    assert "acknowledged" in caplog.text


def test_bad_options() -> None:
    """Each names what is allowed."""
    with pytest.raises(SettingsError, match="off or replicated or aof"):
        StateManagerRedis("redis://127.0.0.1", durability="on")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="above 0"):
        StateManagerRedis("redis://127.0.0.1", replicas=0)


async def test_failed_copy_of_a_kept_grant_is_told_at_the_next_change(redis_server: Server) -> None:
    """There is no replica; a listing has what is put off written, and keeps the lock."""
    async with StateManagerRedis(
        f"{redis_server.url}?{SHORT}",
        key_prefix="kept-grant",
        oplock="behind",
        oplock_hold_time=8.0,
        durability="replicated",
    ) as manager:
        assert await change(manager) == 1
        assert [info.ident async for info in manager.tokens()] == ["a"]
        with pytest.raises(CommitUncertainError):
            await change(manager)
        assert await change(manager) == 2
        with pytest.raises(CommitUncertainError):
            await manager.close()
