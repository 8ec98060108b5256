"""Each kind of server, by one URL, or by a client that the program has made itself.

Warnings are errors here: a connection that is left open fails the test.
"""

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from redis_backend.conftest import NAMES, named_server
from statemgr import Settings, StateManager, StateManagerRedis, StateToken
from statemgr.backends.redis.sentinel import Primary
from statemgr.errors import BackendUnavailableError
from statemgr.testing.proxy import FaultyProxy
from statemgr.testing.servers import DEFAULT, ClusterSetup, SentinelSetup, Server, wait_until
from statemgr.testing.tls import TlsProxy

_numbers = itertools.count()
_LARGE = 2**20  # bytes: more than fits into one read, or one write


@dataclass
class Note:
    text: str = ""
    n: int = 0


def token(ident: str = "a") -> StateToken[Note]:
    return StateToken(ident, Note)


async def use(store: Any, **options: Any) -> None:
    """Do a bit of everything, with two managers that wait for each other."""
    options = {"key_prefix": f"live-{next(_numbers)}", **options}
    async with (
        StateManagerRedis(store, **options) as one,
        StateManagerRedis(store, **options) as other,
    ):

        async def change(manager: StateManager) -> None:
            for _ in range(5):
                async with manager.modify_state(token()) as state:
                    state.n += 1
                    await asyncio.sleep(0.001)

        async with asyncio.timeout(20):
            await asyncio.gather(change(one), change(other), change(one))
            # Behind, the other one may not have written its last change yet: before a list it does.
            assert [info.ident async for info in other.tokens()] == ["a"]
            assert (await one.get_state(token())).n == 15
            await one.set_state(token("large"), Note("x" * _LARGE))
            async with other.modify_state(token("large")) as state:
                assert len(state.text) == _LARGE
            found = sorted([info.ident async for info in other.tokens()])
            assert found == ["a", "large"]
            for ident in found:
                assert await other.delete_state(token(ident))
            with pytest.raises(ZeroDivisionError):
                async with one.modify_state(token()):
                    raise ZeroDivisionError
    await asyncio.sleep(0)
    gc.collect()  # what is left open warns now


def connections(server: Server) -> int:
    """Return how many connections the server has, this one left out."""
    return len(server.command("CLIENT", "LIST", "TYPE", "NORMAL").splitlines()) - 1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "path"])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_one_server(name: str, protocol: int) -> None:
    """One server of each version, by TCP and by its Unix socket, with RESP2 and RESP3."""
    with Server(named_server(name), unix_socket=True, requirepass="s3cret/ @:%") as server:
        await use(f"{server.url}?protocol={protocol}")
        await use(f"{server.unix_url}&protocol={protocol}")
        await use(f"{server.url.removesuffix('0')}5?client_name=me&health_check_interval=1")
        await asyncio.to_thread(wait_until, lambda: connections(server) == 0, "all are closed")


@pytest.mark.parametrize("oplock", ["off", "through", "behind"])
async def test_tls(redis_server: Server, oplock: Any) -> None:
    """A server by TLS, whose certificate is checked."""
    async with TlsProxy("127.0.0.1", redis_server.port) as proxy:
        await use(proxy.url, oplock=oplock)
        await use(f"{proxy.url}&protocol=2&socket_timeout=2", oplock=oplock)


async def test_tls_connection_that_is_cut(redis_server: Server) -> None:
    """A TLS connection that is lost in the middle of the work is made again."""
    async with (
        TlsProxy("127.0.0.1", redis_server.port) as proxy,
        StateManagerRedis(proxy.url, key_prefix="tls-cut") as manager,
    ):
        for number in range(1, 5):
            async with manager.modify_state(token()) as state:
                state.n += 1
                proxy.cut()
            assert (await manager.get_state(token())).n == number


async def test_tls_that_is_not_trusted(redis_server: Server) -> None:
    """A certificate of an unknown CA is refused: no call goes to such a server."""
    async with TlsProxy("127.0.0.1", redis_server.port) as proxy:
        url = f"{proxy.url.partition('?')[0]}?socket_timeout=0.3&socket_connect_timeout=0.3"
        async with StateManagerRedis(url) as manager:
            with pytest.raises(BackendUnavailableError) as caught:
                await manager.set_state(token(), Note())
            assert "certificate" in str(caught.value.__cause__)


async def test_tls_with_a_plain_server(redis_server: Server) -> None:
    """TLS to a server that speaks none is an error, and nothing is left open."""
    url = redis_server.url.replace("redis:", "rediss:")
    async with StateManagerRedis(f"{url}?socket_timeout=0.3&socket_connect_timeout=0.3") as manager:
        with pytest.raises(BackendUnavailableError):
            await manager.get_state(token())
    gc.collect()


async def test_sentinels(sentinel_setup: SentinelSetup) -> None:
    """The primary that sentinels name; nothing is left open at the sentinels either."""
    servers = (sentinel_setup.primary, *sentinel_setup.sentinels)
    before = list(map(_of_clients, servers))
    await use(sentinel_setup.url)
    await use(f"{sentinel_setup.url}?protocol=2", oplock="through")
    await asyncio.to_thread(
        wait_until, lambda: list(map(_of_clients, servers)) == before, "all are closed"
    )


def _of_clients(server: Server) -> int:
    """Return how many connections are neither a server's nor a sentinel's."""
    lines = server.command("CLIENT", "LIST", "TYPE", "NORMAL").splitlines()
    return sum(b"name=sentinel-" not in line for line in lines)


async def test_first_sentinel_is_down(sentinel_setup: SentinelSetup) -> None:
    """The next sentinel is asked if one is down."""
    sentinel_setup.sentinels[0].kill()
    await use(sentinel_setup.url)


async def test_no_sentinel_is_forgotten(
    sentinel_setup: SentinelSetup, closed_ports: list[int]
) -> None:
    """All sentinels stay known when several connections are made while one of them is down."""
    ports = [closed_ports[0], *(one.port for one in sentinel_setup.sentinels)]
    at_once = {"retry": Retry(NoBackoff(), 0)}  # else they come to the second one after another
    sentinel = Sentinel([("127.0.0.1", port) for port in ports], sentinel_kwargs=at_once)
    pool: Any = sentinel.master_for(sentinel_setup.service).connection_pool
    primary = Primary(pool)
    connections = [pool.make_connection() for _ in range(8)]
    await asyncio.gather(*map(primary.connect, connections))
    known = [one.connection_pool.connection_kwargs["port"] for one in sentinel.sentinels]
    assert sorted(known) == sorted(ports)
    await asyncio.gather(*(one.disconnect() for one in connections))
    await asyncio.gather(*(one.aclose() for one in sentinel.sentinels))


async def test_cluster(cluster_setup: ClusterSetup) -> None:
    """A Cluster by all of its nodes, and by one of them."""
    await use(cluster_setup.url)
    await use(f"redis+cluster://127.0.0.1:{cluster_setup.primaries[1].port}", oplock="through")
    for node in cluster_setup.nodes:
        await asyncio.to_thread(wait_until, lambda node=node: connections(node) == 0, "closed")


async def test_first_node_is_down(cluster_setup: ClusterSetup) -> None:
    """The next node is asked if one of those in the URL is down."""
    port = cluster_setup.primaries[1].port
    with Server(named_server(DEFAULT)) as gone:
        url = f"redis+cluster://127.0.0.1:{gone.port},127.0.0.1:{port}"
    await use(url)


async def test_settings_choose_redis(redis_server: Server) -> None:
    """`StateManager.create` with a URL in the settings gives a manager that works."""
    settings = Settings(redis_url=redis_server.url, key_prefix="live-settings")
    async with StateManager.create(settings) as manager:
        assert isinstance(manager, StateManagerRedis)
        await manager.set_state(token(), Note("b"))
        assert await manager.delete_state(token())


@asynccontextmanager
async def closing(client: Any) -> AsyncIterator[Any]:
    try:
        yield client
        assert await client.ping()  # it is still the caller's
    finally:
        await client.aclose()


@pytest.fixture(params=["plain", "decoding", "blocking", "no timeout", "protocol 2"])
def own_client(request: pytest.FixtureRequest, redis_server: Server) -> Iterator[Any]:
    kind, url = request.param, redis_server.url
    if kind == "plain":
        yield redis.asyncio.Redis.from_url(url)
    elif kind == "decoding":
        yield redis.asyncio.Redis.from_url(url, decode_responses=True)
    elif kind == "blocking":
        pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=1)
        yield redis.asyncio.Redis.from_pool(pool)
    elif kind == "no timeout":
        yield redis.asyncio.Redis.from_url(url, socket_timeout=None, socket_connect_timeout=None)
    else:
        yield redis.asyncio.Redis.from_url(url, protocol=2, health_check_interval=1)


async def test_clients_of_the_program(own_client: Any) -> None:
    """A client that the program has made serves, whatever its options, and stays open."""
    async with closing(own_client) as client:
        await use(client)


async def test_sentinel_client_of_the_program(sentinel_setup: SentinelSetup) -> None:
    """So does one that redis-py's Sentinel has given."""
    sentinel = Sentinel([("127.0.0.1", one.port) for one in sentinel_setup.sentinels])
    async with closing(sentinel.master_for(sentinel_setup.service)) as client:
        await use(client)
    await asyncio.gather(*(one.aclose() for one in sentinel.sentinels))


async def test_cluster_client_of_the_program(cluster_setup: ClusterSetup) -> None:
    """So does one of a Cluster, whether it was used before or not."""
    for ping_before in (False, True):
        client = redis.asyncio.RedisCluster("127.0.0.1", cluster_setup.primaries[0].port)
        async with closing(client):
            if ping_before:
                await client.ping()
            await use(client)


async def test_connecting_sends_no_more_than_needed(redis_server: Server) -> None:
    """A connection begins with redis-py's handshake, without maintenance notifications."""
    async with (
        FaultyProxy("127.0.0.1", redis_server.port) as proxy,
        StateManagerRedis(f"{proxy.url}?protocol=3", key_prefix="first") as manager,
    ):
        await manager.get_state(token())
        assert proxy.connections == 1
        assert proxy.commands == {b"HELLO": 1, b"CLIENT": 2, b"EVAL": 1}


@pytest.mark.parametrize("server_kind", ["plain", "tls"])
async def test_close_while_connecting(redis_server: Server, server_kind: str) -> None:
    """Closing, or a cancel, in the middle of a handshake leaves no connection behind."""
    async with (
        FaultyProxy("127.0.0.1", redis_server.port) as proxy,
        TlsProxy("127.0.0.1", proxy.port) as tls,
    ):
        url = tls.url if server_kind == "tls" else proxy.url
        proxy.hold()
        for turns in range(0, 60, 3):
            manager = StateManagerRedis(url, key_prefix="closing")
            reading = asyncio.create_task(manager.get_state(token()))
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            async with asyncio.timeout(10):
                await manager.close()
            gc.collect()
        proxy.resume()
        proxy.cut()
    await asyncio.sleep(0)
    gc.collect()
