"""How often a manager asks its server, and with which commands."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from redis_backend.conftest import named_server
from statemgr import StateManagerRedis, StateToken
from statemgr.backends.redis.wire import Wire
from statemgr.testing.servers import ClusterSetup, Server

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = "trips"


@dataclass
class Count:
    n: int = 0


@dataclass
class Note:
    text: str = ""


def token(ident: str = "a") -> StateToken[Count]:
    return StateToken(ident, Count)


class Trips:
    """What went to the server: round trips of a connection, and commands that were executed.

    What is written before a reply to it has come is one trip, in however many writes.
    """

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes: list[bytes] = []
        self.wires: set[Wire] = set()
        self.count = 0
        self._server = server
        write: Callable[[Wire, bytes], None] = Wire.write
        receive: Callable[[Wire, bytes], None] = Wire.data_received
        waiting: set[Wire] = set()

        def counted(wire: Wire, data: bytes) -> None:
            if b"SUBSCRIBE" not in data:
                self.writes.append(data)
                self.wires.add(wire)
                self.count += wire not in waiting
                waiting.add(wire)
            write(wire, data)

        def received(wire: Wire, data: bytes) -> None:
            waiting.discard(wire)
            receive(wire, data)

        monkeypatch.setattr(Wire, "write", counted)
        monkeypatch.setattr(Wire, "data_received", received)
        self._before: Counter[str] = Counter()

    def reset(self) -> None:
        self.writes.clear()
        self.wires.clear()
        self.count = 0
        self._before = command_counts(self._server)

    @property
    def commands(self) -> Counter[str]:
        """How often the server has executed each command since, those of scripts left out."""
        names = ("eval", "evalsha", "subscribe", "scan", "set", "get", "ping", "script")
        since = command_counts(self._server) - self._before
        return Counter({name: since[name] for name in names if since[name]})


def command_counts(server: Server) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in server.command("INFO", "commandstats").decode().splitlines():
        if line.startswith("cmdstat_"):
            name, _, figures = line.removeprefix("cmdstat_").partition(":")
            counts[name] = int(figures.split(",")[0].removeprefix("calls="))
    return counts


@pytest.fixture
def trips(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> Trips:
    return Trips(redis_server, monkeypatch)


async def used(manager: StateManagerRedis) -> StateManagerRedis:
    """Use each script once: a connection sends its source with the first use."""
    async with manager.modify_state(token("used")) as state:
        state.n += 1
    with pytest.raises(ZeroDivisionError):
        async with manager.modify_state(token("used")):
            raise ZeroDivisionError
    await manager.get_state(token("used"))
    async for _ in manager.tokens():
        pass
    await manager.delete_state(token("used"))
    return manager


@pytest.fixture
async def manager(redis_server: Server) -> Any:
    redis_server.command("FLUSHALL")
    async with StateManagerRedis(redis_server.url, key_prefix=PREFIX) as manager:
        yield await used(manager)


async def test_change_is_two_trips(manager: StateManagerRedis, trips: Trips) -> None:
    """A change that nobody contends for is two commands, in two writes: acquire and commit."""
    for number in range(1, 6):
        trips.reset()
        async with manager.modify_state(token()) as state:
            state.n += 1
        assert (trips.count, trips.commands) == (2, {"evalsha": 2}), number


async def test_first_change_is_two_trips(redis_server: Server, trips: Trips) -> None:
    """The first change of a connection carries the scripts' sources, and is two trips as well."""
    async with StateManagerRedis(redis_server.url, key_prefix=PREFIX) as manager:
        trips.reset()
        async with manager.modify_state(token()) as state:
            state.n += 1
        # Beside it, and not waited for, the inbox is opened, once for each manager.
        commands = {name: n for name, n in trips.commands.items() if name != "subscribe"}
        assert (trips.count, commands) == (2, {"eval": 2})


async def test_unchanged_state_is_two_trips(manager: StateManagerRedis, trips: Trips) -> None:
    """A body that changes nothing is two trips, and its state is not sent again."""
    text = "x" * 5000
    noted = StateToken("a", Note)
    async with manager.modify_state(noted) as note:
        note.text = text
    trips.reset()
    async with manager.modify_state(noted):
        pass
    assert (trips.count, trips.commands) == (2, {"evalsha": 2})
    assert sum(map(len, trips.writes)) < 1000


@pytest.mark.parametrize("call", ["get_state", "has_state", "touch"])
async def test_read_is_one_trip(manager: StateManagerRedis, trips: Trips, call: str) -> None:
    """A read is one command, whether there is a state or not."""
    await manager.set_state(token(), Count(1))
    for asked in (token(), token("none")):
        trips.reset()
        await getattr(manager, call)(asked)
        assert (trips.count, trips.commands) == (1, {"evalsha": 1})


async def test_reads_of_many_idents_are_one_trip(manager: StateManagerRedis, trips: Trips) -> None:
    """`get_states` of many idents is one trip, with a command for each ident."""
    tokens = [token(f"i{number}") for number in range(50)]
    tokens += [StateToken(f"i{number}", Note) for number in range(50)]  # type: ignore[misc]
    trips.reset()
    assert len(await manager.get_states(*tokens)) == 100
    assert (trips.count, trips.commands) == (1, {"evalsha": 50})


async def test_changes_of_one_turn_share_trips(manager: StateManagerRedis, trips: Trips) -> None:
    """Fifty changes of fifty idents begin in one trip."""

    async def change(ident: str) -> None:
        async with manager.modify_state(token(ident)) as state:
            state.n += 1

    trips.reset()
    await asyncio.gather(*(change(f"i{number}") for number in range(50)))
    assert trips.commands == {"evalsha": 100}
    assert trips.count <= 51  # one for all acquires; the commits follow as replies come


async def test_several_classes_are_two_trips(manager: StateManagerRedis, trips: Trips) -> None:
    """`modify_states` of two classes, `set_state` and `delete_state` are two trips each."""

    async def change_both() -> None:
        async with manager.modify_states(token(), StateToken("a", Note)) as (count, note):
            count.n += 1
            note.text += "."

    for call in (
        change_both,
        lambda: manager.set_state(token(), Count(7)),
        lambda: manager.delete_state(token()),
    ):
        trips.reset()
        await call()
        assert (trips.count, trips.commands) == (2, {"evalsha": 2})


async def test_failed_body_is_two_trips(manager: StateManagerRedis, trips: Trips) -> None:
    """A body that raises is two trips: acquire, and a release that nobody waits for."""
    trips.reset()
    with pytest.raises(ZeroDivisionError):
        async with manager.modify_state(token()):
            raise ZeroDivisionError
    await manager._channel._link.drained(5)
    assert (trips.count, trips.commands) == (2, {"evalsha": 2})


async def test_local_hand_over_saves_the_acquire(manager: StateManagerRedis, trips: Trips) -> None:
    """Tasks that wait in one process pass the lock on there: one trip each, and one acquire."""

    async def change() -> None:
        async with manager.modify_state(token()) as state:
            state.n += 1

    trips.reset()
    await asyncio.gather(*(change() for _ in range(10)))
    assert trips.commands == {"evalsha": 11}
    assert (await manager.get_state(token())).n == 10


@pytest.mark.parametrize(("oplock", "changes"), [("through", 1), ("behind", 0)])
async def test_oplock_saves_trips(
    redis_server: Server, trips: Trips, oplock: Any, changes: int
) -> None:
    """After the first change of an ident: one trip with "through", none with "behind"."""
    options: Any = {"oplock": oplock, "oplock_hold_time": 5.0, "key_prefix": f"{PREFIX}-{oplock}"}
    async with StateManagerRedis(redis_server.url, **options) as manager:
        await used(manager)
        async with manager.modify_state(token()) as state:
            state.n += 1
        for _ in range(5):
            trips.reset()
            async with manager.modify_state(token()) as state:
                state.n += 1
            assert trips.count == changes
            assert trips.commands == ({"evalsha": changes} if changes else {})
            await manager.get_state(token())
            assert trips.count == changes  # a read of what is kept is none
    async with StateManagerRedis(redis_server.url, **options) as other:
        assert (await other.get_state(token())).n == 6


async def test_idle_manager_asks_nothing(manager: StateManagerRedis, trips: Trips) -> None:
    """Between calls nothing is sent: no health checks, no polling."""
    async with manager.modify_state(token()) as state:
        state.n += 1
    trips.reset()
    await asyncio.sleep(0.2)
    assert (trips.writes, trips.commands) == ([], {})


async def test_cluster_reads_are_one_trip_to_each_node(
    cluster_setup: ClusterSetup, trips: Trips
) -> None:
    """In a Cluster `get_states` is one trip to each node, all at once; a change is two trips."""
    async with StateManagerRedis(cluster_setup.url, key_prefix=PREFIX) as manager:
        tokens = [token(f"i{number}") for number in range(60)]
        await manager.get_states(*tokens)
        async with manager.modify_state(tokens[0]):
            pass
        trips.reset()
        await manager.get_states(*tokens)
        assert trips.count == len(trips.wires) == 3
        trips.reset()
        async with manager.modify_state(tokens[0]) as state:
            state.n += 1
        assert trips.count == 2


# What a manager's user in the server needs at least; the README has the same list.
RIGHTS = (
    *("+eval", "+evalsha", "+subscribe", "+scan", "+set", "+ping"),  # `set`: for "reset" only
    *("+hget", "+hmget", "+hset", "+hdel", "+hkeys"),  # and these within the scripts
    *("+pttl", "+pexpire", "+publish", "+time"),
)
RIGHTS_OF_REDIS_PY = ("+hello", "+client")  # the first for RESP3; the second may be left out
RIGHTS_IN_CLUSTER = ("+cluster", "+command", "+asking")


@pytest.mark.parametrize("name", ["redis-6.2", "valkey-9.1"])
async def test_no_configuration_and_few_rights_are_needed(name: str) -> None:
    """All works on a server without CONFIG, for a user limited to its keys, channels, commands.

    So there is no CONFIG, no KEYS, and no keyspace notification, which CONFIG would switch on.
    """
    with Server(named_server(name), "--rename-command", "CONFIG", "") as server:
        user = ("app", "on", ">secret", "resetkeys", "~mine:*", "resetchannels", "&mine:*")
        server.command("ACL", "SETUSER", *user, "-@all", *RIGHTS, *RIGHTS_OF_REDIS_PY)
        url = f"redis://app:secret@127.0.0.1:{server.port}/0"
        before = command_counts(server)
        await whole_scenario(url)
        called = command_counts(server) - before
        names = {name.partition("|")[0] for name in called}
        allowed = {right[1:] for right in RIGHTS + RIGHTS_OF_REDIS_PY}
        assert names <= allowed | {"info", "auth"}
        assert allowed - {"ping", "client", "hello"} <= names  # and the others are needed
        log = server.command("ACL", "LOG")
        assert log == []


async def whole_scenario(url: str) -> None:
    """Change, wait for each other, list, delete, and start afresh after a broken record."""
    options: Any = {"key_prefix": "mine", "on_decode_error": "reset"}
    async with (
        StateManagerRedis(url, **options) as one,
        StateManagerRedis(url, **options) as other,
        StateManagerRedis(url, oplock="through", **options) as third,
    ):
        managers = (one, other, third)

        async def change(manager: StateManagerRedis) -> None:
            for _ in range(5):
                async with manager.modify_state(token()) as state:
                    state.n += 1
                    await asyncio.sleep(0.001)

        await asyncio.gather(*map(change, managers))
        assert [state.n for state in await other.get_states(token(), token("b"))] == [15, 0]
        await one.set_state(token("b"), Count(3))
        assert await one.touch(token("b"))
        found = {info.ident: info.class_name async for info in one.tokens()}
        assert found.keys() == {"a", "b"}
        assert await one.delete_state(token("b"))
        assert not await other.has_state(token("b"))
        # A record that this class cannot be made of.
        await one.set_state(StateToken("c", Count), Count("x"))  # type: ignore[arg-type]
        broken = one._keys.ident(token("c").lock_key)
        await one._channel.command(broken, b"PING").future
        class_name = token("c").cache_key.partition("/")[2].encode()
        await one._channel.call(_Break(), broken, b"s:" + class_name).future
        async with other.modify_state(token("c")) as state:
            assert state == Count()
            state.n = 9
        assert (await one.get_state(token("c"))).n == 9


class _Break:
    """A script that damages a record, with the rights that there are."""

    source = b"return redis.call('HSET', KEYS[1], ARGV[1], 'broken')"
    sha = b"0" * 40


async def test_cluster_needs_few_rights(cluster_setup: ClusterSetup) -> None:
    """In a Cluster a few commands more have to be allowed, for finding the nodes."""
    user = ("app", "on", ">secret", "resetkeys", "~mine:*", "resetchannels", "&mine:*")
    rights = (*RIGHTS, *RIGHTS_OF_REDIS_PY, *RIGHTS_IN_CLUSTER)
    for node in cluster_setup.nodes:
        node.command("ACL", "SETUSER", *user, "-@all", *rights)
        node.command("ACL", "LOG", "RESET")
    url = cluster_setup.url.replace("//", "//app:secret@")
    await whole_scenario(url)
    for node in cluster_setup.nodes:
        assert node.command("ACL", "LOG") == []
        node.command("ACL", "DELUSER", "app")
