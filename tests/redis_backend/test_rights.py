"""Servers that are there and refuse: loading, read-only, full, busy, stalled, or not for us."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from redis_backend.conftest import named_server
from redis_backend.refuser import Refuser
from statemgr import StateManagerRedis, StateToken
from statemgr.errors import (
    BackendUnavailableError,
    CommitUncertainError,
    LockExpiredError,
)
from statemgr.testing.proxy import FaultyProxy
from statemgr.testing.servers import DEFAULT, ClusterSetup, Server, wait_until

SHORT = "socket_timeout=0.3&socket_connect_timeout=0.3"
LONG = "socket_timeout=15&socket_connect_timeout=15"
NAMES = ["redis-6.2", "valkey-9.1"]


@dataclass
class Count:
    n: int = 0


@dataclass
class Note:
    text: str = ""


def token(ident: str = "a") -> StateToken[Count]:
    return StateToken(ident, Count)


async def change(manager: StateManagerRedis, ident: str = "a", **options: Any) -> int:
    async with manager.modify_state(token(ident), **options) as state:
        state.n += 1
        return state.n


@pytest.fixture(params=NAMES)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Run a server whose settings the test may change."""
    name = named_server(request.param)
    debug = {} if name == "redis-6.2" else {"enable_debug_command": True}
    with Server(name, lua_time_limit=20, **debug) as server:
        yield server


async def in_thread(function: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


def manager_of(url: str, **options: Any) -> StateManagerRedis:
    """Return a manager whose locks do not end by themselves while the test runs."""
    return StateManagerRedis(url, lock_expiration=60.0, **options)


# Loading


@pytest.mark.parametrize("name", NAMES)
async def test_loading_is_waited_out(name: str) -> None:
    """A server that loads its data is waited for, as long as the client's timeout allows."""
    slow = {"key_load_delay": 2000}
    if name != "redis-6.2":  # that one answers nothing meanwhile, as it loads too little for it
        slow["loading_process_events_interval_bytes"] = 1024
    with Server(named_server(name), appendonly=True, **slow) as server:
        async with manager_of(f"{server.url}?{LONG}") as manager:
            assert await change(manager) == 1
            with server.client() as client:
                client.mset({f"other{number}": "x" * 100 for number in range(400)})
                client.execute_command("BGREWRITEAOF")
                wait_until(lambda: not client.info()["aof_rewrite_in_progress"], "rewritten")
            restarted = asyncio.create_task(in_thread(server.restart))
            while not restarted.done():
                await change(manager)
                await asyncio.sleep(0)
            await restarted
            assert await change(manager) > 2


async def test_loading_for_too_long_is_an_error(redis_server: Server) -> None:
    """What is refused for longer than the timeout fails, and works when the server is ready."""
    async with (
        Refuser("127.0.0.1", redis_server.port) as refuser,
        manager_of(f"{refuser.url}?{SHORT}", key_prefix="loading") as manager,
    ):
        refuser.refusal = b"-LOADING the server is loading the dataset in memory\r\n"
        with pytest.raises(BackendUnavailableError, match="LOADING"):
            await change(manager)
        assert refuser.refused > 1  # it was tried again
        refuser.refusal = b""
        assert await change(manager) == 1


async def test_refused_commit_is_sent_again(redis_server: Server) -> None:
    """A commit that is refused for a while is sent again until it is done, and done once."""
    async with (
        Refuser("127.0.0.1", redis_server.port) as refuser,
        manager_of(f"{refuser.url}?{LONG}", key_prefix="again") as manager,
    ):
        for text in (b"-TRYAGAIN", b"-CLUSTERDOWN", b"-MASTERDOWN", b"-BUSY busy"):
            async with manager.modify_state(token()) as state:
                before = state.n
                state.n += 1
                refuser.refusal, refuser.count = text + b" for a while\r\n", 3
            assert (await manager.get_state(token())).n == before + 1


# Read-only


async def test_replica_is_an_error(server: Server) -> None:
    """On a replica a change fails within the timeout; it works once that is a primary."""
    with Server(server.name) as primary:
        await in_thread(server.command, "REPLICAOF", "127.0.0.1", primary.port)
        async with manager_of(f"{server.url}?{SHORT}") as manager:
            with pytest.raises(BackendUnavailableError, match="READONLY"):
                await change(manager)
            await in_thread(server.command, "REPLICAOF", "NO", "ONE")
            assert await change(manager) == 1


async def test_primary_that_becomes_a_replica(server: Server) -> None:
    """A primary that becomes a replica within a body: nothing is saved, and it is said plainly."""
    with Server(server.name) as primary:
        async with manager_of(f"{server.url}?{SHORT}") as manager:
            await change(manager)
            with pytest.raises((BackendUnavailableError, LockExpiredError)):
                async with manager.modify_state(token()) as state:
                    state.n = 50
                    await in_thread(server.command, "REPLICAOF", "127.0.0.1", primary.port)
            await in_thread(server.command, "REPLICAOF", "NO", "ONE")
            # The new primary had nothing: what this one had is gone with the fail-over.
            assert (await manager.get_state(token())).n in (0, 1)
            assert await change(manager, timeout=5) in (1, 2)


# Memory


async def test_full_server(server: Server) -> None:
    """Without memory a change fails at once, stores nothing, and leaves the lock free."""
    async with manager_of(f"{server.url}?{LONG}") as manager, manager_of(server.url) as other:
        await change(manager)
        await in_thread(server.command, "CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(BackendUnavailableError, match="OOM"):
            await change(manager)
        with pytest.raises(BackendUnavailableError, match="OOM"):
            await manager.set_state(token("b"), Count(5))
        await in_thread(server.command, "CONFIG", "SET", "maxmemory", 0)
        assert await change(manager, timeout=0) == 2
        assert await change(other, timeout=0) == 3
        assert not await manager.has_state(token("b"))


async def test_server_that_is_full_at_the_commit(server: Server) -> None:
    """A commit without memory stores nothing, and its lock is free, for who waits, too."""
    async with manager_of(f"{server.url}?{LONG}") as manager, manager_of(server.url) as other:
        await change(manager)
        waiter = None
        with pytest.raises(BackendUnavailableError, match="OOM"):
            async with manager.modify_state(token()) as state:
                state.n = 50
                waiter = asyncio.create_task(change(other))
                while not other._grants.waiting:  # noqa: ASYNC110  # it is another manager's
                    await asyncio.sleep(0.005)
                await in_thread(server.command, "CONFIG", "SET", "maxmemory", 1)
        await manager._channel._link.drained(5)  # the release
        await in_thread(server.command, "CONFIG", "SET", "maxmemory", 0)
        assert waiter is not None
        with_memory = [result async for result in settled(waiter)]
        assert with_memory in ([2], [BackendUnavailableError])
        assert await change(manager, timeout=0) in (2, 3)


async def settled(task: "asyncio.Task[int]") -> AsyncIterator[Any]:
    try:
        yield await task
    except BackendUnavailableError:
        yield BackendUnavailableError


async def test_states_of_a_full_server_are_read_and_renewed(server: Server) -> None:
    """Reading needs no memory."""
    async with manager_of(f"{server.url}?{LONG}") as manager:
        await change(manager)
        await in_thread(server.command, "CONFIG", "SET", "maxmemory", 1)
        due = await in_thread(server.command, "HGETALL", manager._keys.ident("a"))
        await asyncio.sleep(0.002)  # the server's clock counts in ms
        assert await manager.get_state(token()) == Count(1)
        assert await manager.touch(token())
        assert due != await in_thread(server.command, "HGETALL", manager._keys.ident("a"))
        await in_thread(server.command, "CONFIG", "SET", "maxmemory", 0)


async def test_body_that_fails_within_a_full_server(server: Server) -> None:
    """A body that fails within a full server releases its lock."""
    async with manager_of(f"{server.url}?{LONG}") as manager, manager_of(server.url) as other:
        await change(manager)
        with pytest.raises(ZeroDivisionError):
            async with manager.modify_state(token()):
                await in_thread(server.command, "CONFIG", "SET", "maxmemory", 1)
                raise ZeroDivisionError
        await manager._channel._link.drained(5)
        await in_thread(server.command, "CONFIG", "SET", "maxmemory", 0)
        assert await change(other, timeout=0) == 2


async def test_lock_of_a_full_server_is_renewed(server: Server) -> None:
    """And a waiter who gives up leaves the queue: nothing is passed to it later."""
    async with manager_of(f"{server.url}?{LONG}") as manager, manager_of(server.url) as other:
        await change(manager)
        async with manager.modify_state(token()) as state:
            waiter = asyncio.create_task(change(other))
            while not other._grants.waiting:  # noqa: ASYNC110  # it is another manager's
                await asyncio.sleep(0.005)
            await in_thread(server.command, "CONFIG", "SET", "maxmemory", 1)
            grant = manager._granted["a"]
            deadline = grant.deadline
            grant.renewed_at -= manager.lock_expiration
            manager._grants._renew()
            waiter.cancel()
            await manager._channel._link.drained(5)
            await asyncio.wait([waiter])
            await other._channel._link.drained(5)
            await in_thread(server.command, "CONFIG", "SET", "maxmemory", 0)
            assert grant.deadline > deadline
            state.n = 10
        assert await change(other, timeout=0) == 11


async def test_evicted_ident(server: Server) -> None:
    """An ident that is evicted while its lock is held: its holder is told, and writes nothing."""
    async with manager_of(f"{server.url}?{LONG}") as manager, manager_of(server.url) as other:
        await change(manager)
        with pytest.raises(LockExpiredError):
            async with manager.modify_state(token()) as state:
                state.n = 50
                await in_thread(server.command, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
                await in_thread(server.command, "CONFIG", "SET", "maxmemory", 1)
                await in_thread(wait_until, lambda: not server.command("DBSIZE"), "evicted")
                await in_thread(server.command, "CONFIG", "SET", "maxmemory", 0)
        assert await change(other, timeout=0) == 1


# Scripts


async def test_scripts_are_sent_again_after_a_flush(server: Server) -> None:
    """A server that has forgotten the scripts is given them again, at any step."""
    async with manager_of(f"{server.url}?{LONG}") as manager:
        for number in range(1, 4):
            async with manager.modify_state(token()) as state:
                state.n += 1
                await in_thread(server.command, "SCRIPT", "FLUSH")
            await in_thread(server.command, "SCRIPT", "FLUSH")
            assert (await manager.get_state(token())).n == number
            await in_thread(server.command, "SCRIPT", "FLUSH")
            assert [info.ident async for info in manager.tokens()] == ["a"]
            with pytest.raises(ZeroDivisionError):
                async with manager.modify_state(token()):
                    await in_thread(server.command, "SCRIPT", "FLUSH")
                    raise ZeroDivisionError
            await in_thread(server.command, "SCRIPT", "FLUSH")


async def test_busy_server_is_waited_for(server: Server) -> None:
    """While somebody's script keeps the server busy, calls wait; and go on when it was killed."""
    async with manager_of(f"{server.url}?{LONG}") as manager:
        await change(manager)
        busy = asyncio.create_task(in_thread(_keep_busy, server))
        await in_thread(wait_until, lambda: _is_busy(server), "busy")
        changed = asyncio.create_task(change(manager))
        await asyncio.wait([changed], timeout=0.2)
        assert not changed.done()
        await in_thread(server.command, "SCRIPT", "KILL")
        assert await changed == 2
        await busy


async def test_busy_for_too_long_is_an_error(server: Server) -> None:
    """A server that is busy for longer than the timeout: an error, and later it works."""
    async with manager_of(f"{server.url}?{SHORT}") as manager:
        await change(manager)
        busy = asyncio.create_task(in_thread(_keep_busy, server))
        await in_thread(wait_until, lambda: _is_busy(server), "busy")
        with pytest.raises(BackendUnavailableError):
            await change(manager)
        await in_thread(server.command, "SCRIPT", "KILL")
        await busy
        assert await change(manager) == 2


def _keep_busy(server: Server) -> None:
    with pytest.raises(Exception, match=r"(?i)script killed|terminat"):
        server.command("EVAL", "while true do end", 0)


def _is_busy(server: Server) -> bool:
    try:
        server.command("PING")
    except Exception as error:
        return "BUSY" in str(error)
    return False


# Silence


async def test_short_pause_is_not_seen(server: Server) -> None:
    """A server that pauses for less than the timeout is slow, and no more."""
    async with manager_of(f"{server.url}?{LONG}") as manager:
        await change(manager)
        await in_thread(server.command, "CLIENT", "PAUSE", 200)
        assert await change(manager) == 2


async def test_long_pause_is_an_error(server: Server) -> None:
    """A server that pauses for longer: BackendUnavailableError, no lock, and later it works."""
    async with manager_of(f"{server.url}?{SHORT}") as manager:
        await change(manager)
        server.stop_process()
        with pytest.raises(BackendUnavailableError):
            await change(manager)
        server.continue_process()
        # What lay in the stopped server's sockets is done now; the release came after it.
        assert await change(manager, timeout=5) == 2


async def test_commit_into_silence_is_uncertain(redis_server: Server) -> None:
    """A commit without an answer is uncertain; what became of it is there to be read later."""
    async with (
        FaultyProxy("127.0.0.1", redis_server.port) as proxy,
        StateManagerRedis(
            f"{proxy.url}?{SHORT}", key_prefix="silence", lock_expiration=1.0
        ) as manager,
    ):
        await change(manager)
        for requests in (True, False):
            before = (await manager.get_state(token())).n
            with pytest.raises(CommitUncertainError):
                async with manager.modify_state(token()) as state:
                    state.n += 1
                    proxy.hold(requests=requests, replies=not requests)
            proxy.resume()
            after = (await manager.get_state(token())).n
            assert after in (before, before + 1)
            assert await change(manager, timeout=5) in (before + 1, before + 2)


async def test_stalled_acquire_runs_no_body(redis_server: Server) -> None:
    """An acquire without an answer is an error. The lock it may leave behind ends by itself."""
    async with FaultyProxy("127.0.0.1", redis_server.port) as proxy:
        options: Any = {"key_prefix": "stalled", "lock_expiration": 1.0}
        async with (
            StateManagerRedis(f"{proxy.url}?{SHORT}", **options) as manager,
            StateManagerRedis(redis_server.url, **options) as other,
        ):
            await change(manager)
            for direction in ({"replies": False}, {"requests": False}):
                proxy.hold(**direction)
                with pytest.raises(BackendUnavailableError):
                    await change(manager)
                proxy.resume()
            assert await change(other, timeout=5) == 2
            assert await change(manager, timeout=5) == 3


# Not for us


async def test_refused_connections() -> None:
    """Where nobody listens each call fails within the timeout, and closing does not wait."""
    with Server(named_server(DEFAULT)) as gone:
        url = gone.url
    async with manager_of(f"{url}?{SHORT}") as manager:
        with pytest.raises(BackendUnavailableError, match="cannot be reached") as caught:
            await change(manager)
        assert caught.value.__cause__ is not None
        with pytest.raises(BackendUnavailableError):
            await manager.get_state(token())


@pytest.mark.parametrize("protocol", [2, 3])
async def test_wrong_password_fails_at_once(
    server: Server, caplog: pytest.LogCaptureFixture, protocol: int
) -> None:
    """A wrong password or user is an error at once, and is shown in no message and no log."""
    caplog.set_level(logging.DEBUG)
    server.command("ACL", "SETUSER", "app", "on", ">right", "~*", "&*", "+@all")
    wrong = ("app:hunter2", "nobody:hunter2", ":hunter2", "app:")
    for login in wrong:
        url = f"redis://{login}@127.0.0.1:{server.port}/0?{LONG}&protocol={protocol}"
        async with manager_of(url, oplock="through") as manager:  # which listens at once
            if login == ":hunter2":
                await in_thread(server.command, "ACL", "SETUSER", "default", "resetpass", ">other")
            with pytest.raises(BackendUnavailableError, match="does not let us in") as caught:
                await change(manager)
            await asyncio.sleep(0)
        if login == ":hunter2":
            with_password = server.client()
            with_password.connection_pool.connection_kwargs["password"] = "other"
            with with_password as client:
                client.execute_command("ACL", "SETUSER", "default", "nopass")
        assert "hunter2" not in full_text(caught.value)
    assert "hunter2" not in caplog.text


async def test_server_that_quotes_a_password_is_not_quoted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A server that knows no AUTH and no HELLO quotes their arguments: we do not."""
    caplog.set_level(logging.DEBUG)
    renamed = ("--rename-command", "AUTH", "", "--rename-command", "HELLO", "")
    with Server(named_server("redis-6.2"), *renamed) as server:
        for protocol in (2, 3):
            url = f"redis://app:hunter2@127.0.0.1:{server.port}/0?{LONG}&protocol={protocol}"
            async with manager_of(url, oplock="through") as manager:
                with pytest.raises(BackendUnavailableError, match="unknown command") as caught:
                    await change(manager)
                await asyncio.sleep(0.1)  # for the inbox to fail as well
            assert "hunter2" not in full_text(caught.value)
    assert "hunter2" not in caplog.text


async def test_missing_rights_are_named(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A user who may not run scripts, use the keys, or listen is told so; no state is shown."""

    def allow(*rights: str) -> None:
        server.command("ACL", "SETUSER", "app", "reset", "on", ">secret", *rights)

    url = f"redis://app:secret@127.0.0.1:{server.port}/0?{LONG}"
    allow("~*", "&*", "+@all", "-eval", "-evalsha")
    async with manager_of(url) as manager:
        with pytest.raises(BackendUnavailableError, match="NOPERM") as caught:
            await manager.set_state(StateToken("ident-of-mine", Note), Note("hidden"))
        assert "hidden" not in full_text(caught.value)
        assert "ident-of-mine" not in full_text(caught.value)
    allow("~other:*", "&*", "+@all")
    async with manager_of(url) as manager:
        with pytest.raises(BackendUnavailableError, match=r"(?i)permission"):
            await change(manager)


async def test_channel_that_is_not_allowed(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A user without the channel, as new users are, can change all; who waits looks by itself."""
    rights = ("reset", "on", ">secret", "~*", "resetchannels", "+@all")
    server.command("ACL", "SETUSER", "app", *rights)
    url = f"redis://app:secret@127.0.0.1:{server.port}/0?{LONG}"
    async with manager_of(url) as manager, manager_of(url) as other:
        await change(manager)
        for holder, waiting in ((manager, other), (other, manager)):
            async with holder.modify_state(token()) as state:
                state.n += 1
                waiter = asyncio.create_task(change(waiting))
                while not waiting._grants.waiting:  # noqa: ASYNC110  # it is another manager's
                    await asyncio.sleep(0.005)
            await waiter
        assert (await manager.get_state(token())).n == 5
    assert caplog.text.count("does not let us listen") <= 2  # once each


def full_text(error: BaseException | None) -> str:
    """Return the messages of an error and of all that it was caused by, or comes from."""
    text = ""
    while error is not None:
        text += f"{error!r} {error}\n"
        error = error.__cause__ or error.__context__
    return text


async def test_cluster_node_by_a_plain_url(cluster_setup: ClusterSetup) -> None:
    """A node of a Cluster given as a single server: the error says which URL to use."""
    async with manager_of(f"{cluster_setup.primaries[0].url}?{LONG}") as manager:
        with pytest.raises(BackendUnavailableError, match=r"redis\+cluster://"):
            await asyncio.gather(*(change(manager, f"i{number}") for number in range(20)))


async def test_single_server_by_a_cluster_url(redis_server: Server) -> None:
    """A single server given as a Cluster: an error within the timeout."""
    url = f"redis+cluster://127.0.0.1:{redis_server.port}?{SHORT}"
    async with manager_of(url) as manager:
        with pytest.raises(BackendUnavailableError, match="Cluster"):
            await change(manager)
        with pytest.raises(BackendUnavailableError, match="Cluster"):
            async for _ in manager.tokens():
                pass


async def test_timeout_of_the_lock_is_not_the_servers(redis_server: Server) -> None:
    """A `timeout` that ends while the server is silent ends the wait, and says what it is."""
    async with (
        FaultyProxy("127.0.0.1", redis_server.port) as proxy,
        manager_of(f"{proxy.url}?{LONG}", key_prefix="timeout") as manager,
    ):
        await change(manager)
        proxy.hold()
        with pytest.raises(BackendUnavailableError, match="does not answer"):
            await change(manager, timeout=0.05)
        proxy.resume()
        assert await change(manager, timeout=5) == 2
