"""Servers that cannot be reached: what callers are told, what the log says, how closing goes."""

import asyncio
import itertools
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio.sentinel
import redis.exceptions

from redis_backend.conftest import named_server
from redis_backend.test_rights import Refuser
from statemgr import StateInfo, StateManagerRedis, StateToken
from statemgr.backends.redis.link import without_arguments
from statemgr.backends.redis.outage import Outage, reason_of
from statemgr.errors import (
    BackendUnavailableError,
    CommitUncertainError,
    LockTimeoutError,
    StateManagerClosedError,
    StateManagerError,
)
from statemgr.testing.proxy import FaultyProxy
from statemgr.testing.servers import DEFAULT, SentinelSetup, Server

LONG = "socket_timeout=60&socket_connect_timeout=60"  # nothing ends by these
SHORT = "socket_timeout=0.3&socket_connect_timeout=0.3"
PATIENCE = 20.0  # seconds; far below LONG

_numbers = itertools.count()


@dataclass
class Count:
    n: int = 0


def token(ident: str = "ident-of-mine") -> StateToken[Count]:
    return StateToken(ident, Count)


async def change(manager: StateManagerRedis, **options: Any) -> int:
    async with manager.modify_state(token(), **options) as state:
        state.n += 1
        return state.n


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # nothing tells of all that is waited for
            await asyncio.sleep(0.001)


def manager_of(url: str, **options: Any) -> StateManagerRedis:
    """Return a manager whose locks do not end by themselves while the test runs."""
    return StateManagerRedis(url, lock_expiration=600.0, **options)


@asynccontextmanager
async def pair(
    server: Server, timeouts: str = LONG, **options: Any
) -> AsyncIterator[tuple[FaultyProxy, StateManagerRedis, StateManagerRedis]]:
    """Open a manager behind a proxy, and one that is not, on the same keys."""
    prefix = f"unreachable-{next(_numbers)}"
    async with (
        asyncio.timeout(PATIENCE),
        FaultyProxy("127.0.0.1", server.port) as proxy,
        manager_of(f"{proxy.url}?{timeouts}", key_prefix=prefix, **options) as manager,
        manager_of(server.url, key_prefix=prefix) as other,
    ):
        try:
            yield proxy, manager, other
        finally:
            proxy.accept()
            proxy.resume()


def goes_away(proxy: FaultyProxy) -> None:
    """Let nobody reach the server any more."""
    proxy.refuse()
    proxy.cut()


# What callers are told


async def test_timeout_where_nobody_listens(closed_ports: list[int]) -> None:
    """No body begins, each of many tasks is told so at its time, and closing does not wait."""
    url = f"redis://app:hunter2@127.0.0.1:{closed_ports[0]}/0?{LONG}"
    async with asyncio.timeout(PATIENCE), manager_of(url) as manager:
        changes = [change(manager, timeout=0.2 + number / 100) for number in range(4)]
        errors = await asyncio.gather(*changes, return_exceptions=True)
        for error in errors:
            assert isinstance(error, BackendUnavailableError)
            address = f"127.0.0.1:{closed_ports[0]}"
            assert str(error) == f"the server at {address} cannot be reached: connection refused"
            assert (error.address, error.reason) == (address, "connection refused")
            assert isinstance(error.__cause__, redis.exceptions.ConnectionError)


async def test_timeout_when_the_server_has_gone() -> None:
    """A server that is killed in the middle of the work is named, with a reason."""
    # An acquire may be sent before the end of the connection is seen: whether it was granted nobody
    # knows, and `close` tries to give it back for as long as an answer may take.
    short = "socket_timeout=2&socket_connect_timeout=2"
    with Server(named_server(DEFAULT)) as server:
        async with asyncio.timeout(PATIENCE), manager_of(f"{server.url}?{short}") as manager:
            await change(manager)
            await asyncio.to_thread(server.kill)
            with pytest.raises(BackendUnavailableError) as caught:
                await change(manager, timeout=0.3)
            assert caught.value.address == f"127.0.0.1:{server.port}"
            assert caught.value.reason in str(caught.value)


async def test_timeout_when_the_server_is_silent(redis_server: Server) -> None:
    """No reply is no "busy" either; the acquire that is done later is taken back."""
    async with pair(redis_server) as (proxy, manager, other):
        await change(manager)
        proxy.hold()
        changes = [change(manager, timeout=0.3) for _ in range(3)]
        errors = await asyncio.gather(*changes, return_exceptions=True)
        for error in errors:
            assert isinstance(error, BackendUnavailableError)
            assert f":{proxy.port} does not answer: no reply within 0." in str(error)
            assert isinstance(error.__cause__, TimeoutError)
        proxy.resume()
        assert await change(other, timeout=10) == 2
        assert await change(manager, timeout=10) == 3


async def test_reads_that_closing_ends_say_so(redis_server: Server) -> None:
    async def listed(manager: StateManagerRedis) -> list[StateInfo]:
        return [info async for info in manager.tokens()]

    async with pair(redis_server, SHORT) as (proxy, manager, _):
        await change(manager)
        proxy.hold()
        asked: list[Coroutine[Any, Any, Any]] = [
            manager.get_state(token()),
            manager.has_state(token()),
            manager.touch(token()),
            listed(manager),
        ]
        reads = [asyncio.create_task(ask) for ask in asked]
        await asyncio.sleep(0.01)  # they have asked
        await manager.close()
        for error in await asyncio.gather(*reads, return_exceptions=True):
            assert isinstance(error, StateManagerClosedError)


async def test_timeout_when_no_connection_is_made(redis_server: Server) -> None:
    """Who accepts connections and says nothing at all is named as well."""
    async with pair(redis_server) as (proxy, manager, _):
        proxy.hold()
        message = f":{proxy.port} does not answer: no connection within 0"
        with pytest.raises(BackendUnavailableError, match=message):
            await change(manager, timeout=0.2)


@pytest.mark.parametrize("silent", [False, True])
async def test_timeout_of_a_waiter_whose_server_goes(redis_server: Server, silent: bool) -> None:
    """What the server has said long ago does not count: it cannot be asked now."""
    async with pair(redis_server) as (proxy, manager, other):
        async with other.modify_state(token()) as state:
            waiter = asyncio.create_task(change(manager, timeout=2.0))
            await until(lambda: manager._grants.waiting)
            proxy.hold() if silent else goes_away(proxy)
            with pytest.raises(BackendUnavailableError):
                await waiter
            proxy.resume()
            proxy.accept()
            state.n += 1
        assert await change(other, timeout=10) == 2
        assert await change(manager, timeout=10) == 3


async def test_timeout_when_the_server_is_loading(redis_server: Server) -> None:
    """A server that refuses for a while has not said that somebody else has the lock."""
    async with (
        asyncio.timeout(PATIENCE),
        Refuser("127.0.0.1", redis_server.port) as refuser,
        manager_of(f"{refuser.url}?{LONG}", key_prefix="unreachable-loading") as manager,
    ):
        await change(manager)
        refuser.refusal = b"-LOADING the server is loading the dataset in memory\r\n"
        with pytest.raises(BackendUnavailableError, match=r":\d+ is not ready: LOADING"):
            await change(manager, timeout=0.3)
        refuser.refusal = b""
        assert await change(manager, timeout=10) == 2


async def test_busy_here_is_busy(redis_server: Server) -> None:
    """A lock that a body here holds is not free, whether the server can be reached or not."""
    async with pair(redis_server) as (proxy, manager, _):
        async with manager.modify_state(token()) as state:
            goes_away(proxy)
            for timeout in (0.2, 0):
                waiter = asyncio.create_task(change(manager, timeout=timeout))
                with pytest.raises(LockTimeoutError):
                    await waiter
            proxy.accept()
            state.n += 1
        assert await change(manager, timeout=10) == 2


async def test_timeout_is_named_as_it_was_asked_for(redis_server: Server) -> None:
    """Who has waited for a task here first is told of its whole timeout, not of what was left."""
    async with pair(redis_server) as (_, manager, other), other.modify_state(token()):
        waits = [change(manager, timeout=timeout) for timeout in (0.2, 0.5, 0.5)]
        errors = await asyncio.gather(*waits, return_exceptions=True)
        for error, timeout in zip(errors, (0.2, 0.5, 0.5), strict=True):
            assert isinstance(error, LockTimeoutError)
            assert error.timeout == timeout
            assert f"not free within {timeout:g} s" in str(error)


async def test_has_state_tells_whether_the_server_is_there(closed_ports: list[int]) -> None:
    """`has_state` asks the server, and fails within the client's timeout."""
    async with manager_of(f"redis://127.0.0.1:{closed_ports[0]}?{SHORT}") as manager:
        with pytest.raises(BackendUnavailableError, match="connection refused"):
            await manager.has_state(token())


async def test_socket_that_is_not_there(tmp_path: Path) -> None:
    """Of a server at a socket its path is named."""
    path = tmp_path / "none.sock"
    async with manager_of(f"unix://app:hunter2@{path}?{SHORT}") as manager:
        with pytest.raises(BackendUnavailableError) as caught:
            await change(manager, timeout=0.1)
    assert caught.value.address == str(path)
    assert str(caught.value).endswith("cannot be reached: no such file or directory")


async def test_sentinels_that_are_not_there(closed_ports: list[int]) -> None:
    """The sentinels are named, as the URL has them, and no password of theirs is."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in closed_ports)
    url = f"redis+sentinel://{hosts}/service?{LONG}&sentinel_password=hunter2"
    async with asyncio.timeout(PATIENCE), manager_of(url) as manager:
        with pytest.raises(BackendUnavailableError, match="No master found") as caught:
            await change(manager, timeout=0.5)
    assert caught.value.address == f"{hosts}/service"
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r}"


async def test_primary_that_is_not_there(sentinel_setup: SentinelSetup) -> None:
    """Of the servers behind sentinels the one is named that they name."""
    primary = sentinel_setup.primary
    async with asyncio.timeout(60), manager_of(f"{sentinel_setup.url}?{LONG}") as manager:
        await change(manager)
        with pytest.raises(StateManagerError) as caught:
            async with manager.modify_state(token()) as state:
                state.n += 1
                await asyncio.to_thread(primary.kill)
                await until(lambda: manager._channel._link._wire is None)  # type: ignore[attr-defined]
                waiting = asyncio.create_task(change_of(manager, "other", timeout=0.2))
                await waiting
        assert isinstance(caught.value, BackendUnavailableError)
        assert caught.value.address == f"127.0.0.1:{primary.port}"
        assert caught.value.reason == "connection refused"


async def change_of(manager: StateManagerRedis, ident: str, **options: Any) -> None:
    async with manager.modify_state(token(ident), **options) as state:
        state.n += 1


async def test_cluster_that_is_not_there(closed_ports: list[int]) -> None:
    """All nodes of a Cluster that the program knows are named."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in closed_ports)
    async with (
        asyncio.timeout(PATIENCE),
        manager_of(f"redis+cluster://{hosts}?{LONG}") as manager,
    ):
        changes = [change(manager, timeout=0.3) for _ in range(3)]
        for error in await asyncio.gather(*changes, return_exceptions=True):
            assert isinstance(error, BackendUnavailableError)
            assert set((error.address or "").split(",")) == set(hosts.split(","))
            assert str(error).startswith("the Cluster at 127.0.0.1:")
            assert error.reason == "connection refused"


CHAINED = redis.exceptions.ConnectionError("Error 111 connecting to a:1. Connect call failed")
CHAINED.__context__ = ConnectionRefusedError(111, "Connect call failed ('1.2.3.4', 1)")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CHAINED, "connection refused"),
        (OSError("Multiple exceptions: [Errno 111] a, [Errno 113] b, [Errno 111] c"),
         "connection refused and no route to host"),
        (socket.gaierror(-2, "Name or service not known"), "name or service not known"),
        (TimeoutError(), "no connection in time"),
        (TimeoutError("no reply within 5 s"), "no reply within 5 s"),
        (redis.exceptions.TimeoutError("Timeout connecting to server"), "no connection in time"),
        (redis.exceptions.TimeoutError("Timeout reading from a:1"), "no reply within 2 s"),
        (ConnectionResetError(104, "x"), "connection reset by peer"),
        (ConnectionResetError("the server closed the connection"),
         "the server closed the connection"),
        (redis.exceptions.ConnectionError("Connection closed by server."),
         "Connection closed by server"),
        (ssl.SSLError(1, "[SSL: WRONG] wrong"), "[SSL: WRONG] wrong"),
        (OSError(), "OSError"),
    ],
)  # fmt: skip
def test_reasons(error: Exception, reason: str) -> None:
    """Each way not to be connected has a few words, without the address once more."""
    assert reason_of(error, 2) in (reason, f"(1, {reason!r})")


def test_sentinels_are_not_quoted() -> None:
    """redis-py 6 shows all arguments of the clients of sentinels that do not answer: we do not."""
    error = redis.asyncio.sentinel.MasterNotFoundError(
        "No master found for 's' : Redis<password=hunter2> - TimeoutError()"
    )
    clean = without_arguments(error)
    assert type(clean) is type(error)
    assert str(clean) == "No master found for 's'"


# What the log says


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [
        (record.levelno, record.getMessage())
        for record in caplog.records
        if record.name == "statemgr" and record.levelno >= logging.INFO
    ]


@pytest.mark.parametrize("silent", [False, True])
async def test_an_outage_is_logged_once(
    redis_server: Server, caplog: pytest.LogCaptureFixture, silent: bool
) -> None:
    """One warning when it begins, whatever fails then, and one line when it is over."""
    caplog.set_level(logging.INFO)
    async with pair(redis_server, SHORT) as (proxy, manager, _):
        for _ in range(2):
            caplog.clear()
            await manager.get_state(token())
            assert said(caplog) == []
            proxy.hold() if silent else goes_away(proxy)
            for _ in range(2):
                calls = [change(manager, timeout=0.2), manager.get_state(token()), change(manager)]
                errors = await asyncio.gather(*calls, return_exceptions=True)
                assert {type(error) for error in errors} == {BackendUnavailableError}
            [(level, warning)] = said(caplog)
            assert level == logging.WARNING
            assert f"the server at 127.0.0.1:{proxy.port} " in warning
            assert "ident-of-mine" not in warning
            caplog.clear()
            proxy.accept()
            proxy.resume()
            await manager.get_state(token())  # a lock may be held by what was given up
            [back] = said(caplog)
            assert back == (
                logging.INFO,
                f"the server at 127.0.0.1:{proxy.port} is reached again",
            )


async def test_a_connection_that_is_made_again_is_no_outage(
    redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is logged if the next connection is there at once."""
    caplog.set_level(logging.INFO)
    async with pair(redis_server) as (proxy, manager, _):
        await change(manager)
        proxy.cut()
        await change(manager)
        assert said(caplog) == []


def test_address_that_is_not_known(caplog: pytest.LogCaptureFixture) -> None:
    """Without an address messages do without one."""
    outage = Outage(str, 1.0)
    outage.begin("cannot be reached", TimeoutError("why"))
    assert outage.message == "the server cannot be reached: why"
    assert outage.unavailable().address is None


# Closing


async def test_closing_writes_what_is_not_written(redis_server: Server) -> None:
    """A server that is back before the timeout is over gets what was put off, and the lock."""
    async with pair(redis_server, oplock="behind") as (proxy, manager, other):
        await change(manager)
        await change(manager)
        goes_away(proxy)
        closing = asyncio.create_task(manager.close())
        await until(lambda: manager._channel._link._outage.error is not None)  # type: ignore[attr-defined]
        assert not closing.done()
        proxy.accept()
        await closing
        assert await change(other, timeout=10) == 3


async def test_closing_reports_what_cannot_be_written(redis_server: Server) -> None:
    """If it is not back, closing says what is lost."""
    async with (
        asyncio.timeout(PATIENCE),
        FaultyProxy("127.0.0.1", redis_server.port) as proxy,
    ):
        prefix = f"unreachable-{next(_numbers)}"
        manager = manager_of(f"{proxy.url}?{SHORT}", oplock="behind", key_prefix=prefix)
        await change(manager)
        goes_away(proxy)
        await until(lambda: manager._channel._link._wire is None)  # type: ignore[attr-defined]
        with pytest.raises(CommitUncertainError, match=f":{proxy.port} cannot be reached"):
            await manager.close()


async def test_closing_gives_back_what_is_held(redis_server: Server) -> None:
    """A kept lock with nothing to be written is waited for as well, for one timeout."""
    async with pair(redis_server, oplock="through") as (proxy, manager, other):
        await change(manager)
        goes_away(proxy)
        with pytest.raises(BackendUnavailableError):
            await change_of(manager, "other", timeout=0.1)
        closing = asyncio.create_task(manager.close())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not closing.done()
        proxy.accept()
        await closing
        assert await change(other, timeout=10) == 2


async def test_closing_a_cluster_that_is_not_there(closed_ports: list[int]) -> None:
    """Calls that wait for nodes to be found, and change nothing, are not waited for."""
    async with asyncio.timeout(PATIENCE):
        manager = manager_of(f"redis+cluster://127.0.0.1:{closed_ports[0]}?{LONG}")
        with pytest.raises(BackendUnavailableError):
            await change(manager, timeout=0.1)
        reading = asyncio.create_task(manager.get_state(token()))
        await asyncio.sleep(0)
        await manager.close()
        with pytest.raises(StateManagerClosedError):
            await reading
