"""Servers that go away in the middle of the work, and what the work is worth then."""

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import redis.crc

from redis_backend.conftest import NAMES, named_server
from redis_backend.workers import show
from statemgr import StateManagerRedis, StateToken
from statemgr.errors import BackendUnavailableError, CommitUncertainError, LockExpiredError
from statemgr.testing.proxy import FaultyProxy
from statemgr.testing.servers import DEFAULT, ClusterSetup, SentinelSetup, Server, wait_until

# `make chaos` has the long forms.
OUTAGES = 1  # of one server, in a row
MOVES = 2  # of a slot

IDENTS = [f"i{number}" for number in range(6)]
TASKS = 4  # for each manager
LOCK = 2.0  # seconds: lock_expiration
TIMEOUTS = "socket_timeout=0.5&socket_connect_timeout=0.5"

# All that a caller may see of an outage.
EXPECTED = (BackendUnavailableError, CommitUncertainError, LockExpiredError)

_numbers = itertools.count()


@dataclass
class Count:
    n: int = 0


def token(ident: str) -> StateToken[Count]:
    return StateToken(ident, Count)


class Load:
    """Tasks of two managers that count up, and note what they were told.

    Attributes:
        attempted: By ident, how many bodies have ended.
        acknowledged: By ident, the values that were acknowledged, in their order.
        errors: By type, what was raised.
        overlaps: How often a body began while another one of the same ident was running.
    """

    def __init__(self, url: str) -> None:
        self.url = f"{url}?{TIMEOUTS}"
        self.prefix = f"load-{next(_numbers)}"
        self.attempted: Counter[str] = Counter()
        self.acknowledged: dict[str, list[int]] = defaultdict(list)
        self.errors: Counter[str] = Counter()
        self.overlaps = 0
        self.total = 0
        self._inside: Counter[str] = Counter()
        self._ended = asyncio.Event()
        self._moved = asyncio.Event()

    def manager(self, **options: Any) -> StateManagerRedis:
        return StateManagerRedis(self.url, lock_expiration=LOCK, key_prefix=self.prefix, **options)

    async def __aenter__(self) -> "Load":
        self._managers = [self.manager(), self.manager()]
        self._tasks = [
            asyncio.create_task(self._count(manager, number))
            for manager in self._managers
            for number in range(TASKS)
        ]
        await self.progress()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended.set()
        try:
            await asyncio.gather(*self._tasks)
        finally:
            await asyncio.gather(*(manager.close() for manager in self._managers))

    async def _count(self, manager: StateManagerRedis, number: int) -> None:
        turn = number
        while not self._ended.is_set():
            turn += 1
            ident = IDENTS[turn % len(IDENTS)]
            try:
                async with manager.modify_state(token(ident)) as state:
                    self._inside[ident] += 1
                    self.overlaps += self._inside[ident] > 1
                    try:
                        value = state.n = state.n + 1
                        await asyncio.sleep(0.0005)
                        self.attempted[ident] += 1
                    finally:
                        self._inside[ident] -= 1
            except EXPECTED as error:
                self.errors[type(error).__name__] += 1
                continue
            self.acknowledged[ident].append(value)
            self.total += 1
            self._moved.set()

    async def progress(self, changes: int = 40) -> None:
        """Wait until so many more changes are acknowledged: nobody helps them."""
        end = self.total + changes
        async with asyncio.timeout(20):
            while self.total < end:
                self._moved.clear()
                ended, _ = await asyncio.wait(
                    [asyncio.create_task(self._moved.wait()), *self._tasks],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in ended:
                    task.result()

    async def final(self) -> dict[str, int]:
        """Return what there is of each ident at the end, and see that all locks are free."""
        async with self.manager() as manager:
            found = {}
            for ident in IDENTS:
                # A release that was sent while nobody listened: the lock ends by itself.
                async with manager.modify_state(token(ident), timeout=LOCK + 1) as state:
                    found[ident] = state.n
            return found

    async def check(self, *, lost: bool, overlaps: bool) -> None:
        """Check what there is at the end against what callers were told.

        Args:
            lost: Whether the server may have lost what was acknowledged.
            overlaps: Whether it may have lost locks: then a body may run beside another one.
        """
        final = await self.final()
        for ident in IDENTS:
            assert final[ident] <= self.attempted[ident]
            if not lost:
                values = self.acknowledged[ident]
                assert len(values) == len(set(values)), "two were told of the same change"
                assert final[ident] >= len(values)
        assert overlaps or not self.overlaps


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "path"])
@pytest.mark.parametrize("killed", [False, True])
async def test_nothing_is_lost_by_a_restart_with_persistence(name: str, killed: bool) -> None:
    """With appendfsync always a restart loses nothing, by SIGTERM or by SIGKILL.

    The locks are kept with the states: no body ever runs beside another one of its ident.
    """
    with Server(named_server(name), appendonly=True, appendfsync="always") as server:
        async with Load(server.url) as load:
            for _ in range(OUTAGES):
                if killed:
                    await in_thread(server.kill)
                await in_thread(server.restart)
                await load.progress()
        await load.check(lost=False, overlaps=False)


async def test_restart_without_persistence_loses_states_and_locks(redis_server: Server) -> None:
    """Without persistence a restart loses all, and the holder is told so; later calls work."""
    with Server(named_server(DEFAULT)) as server:
        url = f"{server.url}?{TIMEOUTS}"
        async with StateManagerRedis(url) as manager, StateManagerRedis(url) as other:
            await manager.set_state(token("a"), Count(5))
            with pytest.raises(LockExpiredError):
                async with manager.modify_state(token("a")) as state:
                    state.n += 1
                    await in_thread(server.restart)
            assert await manager.get_state(token("a")) == Count(0)
            for each in (other, manager):
                async with each.modify_state(token("a"), timeout=1) as state:
                    state.n += 1
            assert await manager.get_state(token("a")) == Count(2)


async def test_listing_over_a_restart() -> None:
    """What is there all the time is listed once, though the server forgot how far it was."""
    idents = {f"i{number}" for number in range(3000)}
    with Server(named_server(DEFAULT), appendonly=True) as server:
        async with StateManagerRedis(server.url) as manager:
            await asyncio.gather(*(manager.set_state(token(ident), Count(1)) for ident in idents))
            listed: list[str] = []
            async for info in manager.tokens():
                listed.append(info.ident)
                if len(listed) == len(idents) // 2:
                    await asyncio.to_thread(server.restart)
    assert len(listed) == len(set(listed))
    assert set(listed) == idents


async def test_waiter_gets_the_lock_after_a_restart() -> None:
    """Who waits in the queue when a server without persistence restarts is served, too."""
    with Server(named_server(DEFAULT)) as server:
        url = f"{server.url}?{TIMEOUTS}"
        async with StateManagerRedis(url) as manager, StateManagerRedis(url) as other:

            async def wait() -> int:
                async with other.modify_state(token("a"), timeout=10) as state:
                    state.n += 1
                    return state.n

            async with asyncio.timeout(20):
                with pytest.raises(LockExpiredError):
                    async with manager.modify_state(token("a")) as state:
                        state.n = 50
                        waiter = asyncio.create_task(wait())
                        while not other._grants.waiting:  # noqa: ASYNC110  # it is another manager's
                            await asyncio.sleep(0.005)
                        await in_thread(server.restart)
                        assert await waiter == 1  # it is nobody's lock now
            assert await manager.get_state(token("a")) == Count(1)


async def test_errors_while_a_server_is_down_come_in_time() -> None:
    """While the server is down each call fails with BackendUnavailableError, and none hangs."""
    with Server(named_server(DEFAULT)) as server:
        async with StateManagerRedis(f"{server.url}?{TIMEOUTS}") as manager:
            await manager.set_state(token("a"), Count(5))
            await in_thread(server.kill)

            async def change() -> None:
                async with manager.modify_state(token("a")):
                    raise AssertionError("a body ran without the lock")

            async def tokens() -> None:
                async for _ in manager.tokens():
                    pass

            calls: list[Callable[[], Awaitable[Any]]] = [
                change,
                tokens,
                lambda: manager.get_state(token("a")),
                lambda: manager.get_states(token("a"), token("b")),
                lambda: manager.set_state(token("a"), Count(6)),
                lambda: manager.delete_state(token("a")),
                lambda: manager.touch(token("a")),
            ]
            async with asyncio.timeout(10):
                results = await asyncio.gather(*(c() for c in calls), return_exceptions=True)
            assert {type(result) for result in results} == {BackendUnavailableError}
            await in_thread(server.restart)
            await manager.set_state(token("a"), Count(1))


async def test_repeated_commit_is_known_for_long(redis_server: Server) -> None:
    """A commit whose reply was lost is known when it is repeated, also after a long while.

    Meanwhile its lock has expired, and others have changed and deleted the state: still it was
    written, and is not to be called lost.
    """
    options: Any = {"lock_expiration": 0.1, "lock_warning_threshold": 0.05, "key_prefix": "mark"}
    async with (
        FaultyProxy("127.0.0.1", redis_server.port) as proxy,
        StateManagerRedis(f"{proxy.url}?socket_timeout=60", **options) as manager,
        StateManagerRedis(redis_server.url, **options) as other,
    ):
        await manager.set_state(token("a"), Count(1))
        commit = asyncio.create_task(manager.set_state(token("a"), Count(2)))
        dropped = proxy.drop_reply(2, where=lambda command: command[0].startswith(b"EVAL"))
        await dropped.wait()
        proxy.refuse()
        async with asyncio.timeout(20):
            assert (await other.get_state(token("a"))).n == 2
            end = asyncio.get_running_loop().time() + 3 * options["lock_expiration"]
            while asyncio.get_running_loop().time() < end:
                await asyncio.sleep(0.05)
                await other.set_state(token("a"), Count(3))
            assert await other.delete_state(token("a"))
            proxy.accept()
            await commit
        assert not await other.has_state(token("a"))


async def test_sentinel_fail_over_under_load(sentinel_setup: SentinelSetup) -> None:
    """A fail-over is followed without help.

    Replication does not wait: what the old primary had acknowledged and not sent on is lost, and
    so are locks. But what the new primary has acknowledged is there.
    """
    async with Load(sentinel_setup.url) as load:
        old = sentinel_setup.primary.port
        await in_thread(sentinel_setup.primary.kill)
        await in_thread(sentinel_setup.wait_for_new_primary, old)
        await load.progress()
        since = Settled(load)
        await load.progress(100)
    await load.check(lost=True, overlaps=True)
    await since.check()


async def test_primary_that_is_replaced_is_left(sentinel_setup: SentinelSetup) -> None:
    """After SENTINEL FAILOVER nobody uses the old primary, which goes on as if it were one."""
    old = sentinel_setup.primary
    # It would be demoted some ten seconds later. Here it never is.
    await in_thread(old.command, "ACL", "SETUSER", "default", "-replicaof", "-slaveof")
    async with Load(sentinel_setup.url) as load:
        before = load.total
        new = await in_thread(sentinel_setup.failover)
        await in_thread(wait_until, lambda: not users_of(old), "all have left the old primary")
        await in_thread(wait_until, lambda: users_of(new) >= 2, "both are at the new one")
        since = Settled(load)
        during = load.total - before
        await load.progress(100)
        assert not users_of(old)
        assert (await in_thread(old.command, "ROLE"))[0] == b"master"
    final = await load.final()
    lost = sum(max(0, len(load.acknowledged[ident]) - final[ident]) for ident in IDENTS)
    show(f"fail-over by order: {during} acknowledged meanwhile, {lost} lost, {dict(load.errors)}")
    await load.check(lost=True, overlaps=True)  # replication does not wait, by order neither
    await since.check()


def users_of(server: Server) -> int:
    """Return how many connections have run a script last."""
    return sum(b" cmd=eval" in line for line in server.command("CLIENT", "LIST").splitlines())


async def test_switch_that_does_not_come_about(sentinel_setup: SentinelSetup) -> None:
    """Who was told that a replica is to be the primary goes back if it does not become one."""
    old, replica = sentinel_setup.primary, sentinel_setup.replicas[0]
    switch = f"slave s 127.0.0.1 {replica.port} @ {sentinel_setup.service} 127.0.0.1 {old.port}"
    async with StateManagerRedis(sentinel_setup.url, key_prefix="switch") as manager:
        await manager.set_state(token("a"), Count(1))
        primary: Any = manager._channel
        primary = primary._primary
        primary.heard(b"a message of another kind")
        primary.heard(switch.replace(sentinel_setup.service, "another").encode())
        await manager.set_state(token("a"), Count(2))
        assert users_of(old) == 1
        primary.heard(switch.encode())
        assert await manager.get_state(token("a")) == Count(2)
        async with manager.modify_state(token("a")) as state:
            state.n += 1
        assert users_of(old) == 1
        assert not users_of(replica)


async def test_sentinels_that_tell_less(sentinel_setup: SentinelSetup) -> None:
    """Sentinels, and a primary, whose users may do nothing but what is needed are enough."""
    for sentinel in sentinel_setup.sentinels:
        rights = ("on", ">secret", "-@all", "+sentinel|masters", "+hello", "+auth")
        await in_thread(sentinel.command, "ACL", "SETUSER", "app", "reset", *rights)
    await in_thread(sentinel_setup.primary.command, "ACL", "SETUSER", "default", "-role")
    url = f"{sentinel_setup.url}?sentinel_username=app&sentinel_password=secret"
    try:
        async with StateManagerRedis(url, key_prefix="rights") as manager:
            await manager.set_state(token("a"), Count(1))
            assert await manager.get_state(token("a")) == Count(1)
    finally:
        await in_thread(sentinel_setup.primary.command, "ACL", "SETUSER", "default", "+role")
        for sentinel in sentinel_setup.sentinels:
            await in_thread(sentinel.command, "ACL", "DELUSER", "app")


class Settled:
    """What has been acknowledged since all of an outage was over."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._before = {ident: len(load.acknowledged[ident]) for ident in IDENTS}

    async def check(self) -> None:
        final = await self._load.final()
        for ident, before in self._before.items():
            values = self._load.acknowledged[ident][before + TASKS :]  # some were on their way
            assert values, "later calls work, of each ident"
            assert len(values) == len(set(values)), "two were told of the same change"
            assert final[ident] >= max(values, default=0)


@pytest.fixture(scope="module")
def replicated_cluster() -> Any:
    with ClusterSetup(named_server(DEFAULT), replicas=True) as cluster:
        yield cluster


async def test_killed_primary_of_a_cluster(replicated_cluster: ClusterSetup) -> None:
    """When a primary of a Cluster is killed, its replica is found without help; as above."""
    cluster = replicated_cluster
    async with Load(cluster.url) as load:
        killed, *others = cluster.nodes
        await in_thread(killed.kill)
        await in_thread(wait_until, lambda: _has_failed_over(others, killed), "a fail-over")
        await load.progress()
        since = Settled(load)
        await load.progress(200)
    await load.check(lost=True, overlaps=True)
    await since.check()
    async with load.manager() as manager:
        assert len([info async for info in manager.tokens()]) == len(IDENTS)


def slot_of(ident: str) -> int:
    return redis.crc.key_slot(f"{{{token(ident).lock_key}}}".encode())


async def test_slots_that_move_under_load(cluster_setup: ClusterSetup) -> None:
    """A slot moves from node to node under load, and nothing at all is lost.

    It stays half moved for a while: the lock and the states of its ident are at one node or the
    other, as a whole, and who asks the wrong one is sent to the other.
    """
    cluster = cluster_setup
    async with Load(cluster.url) as load:
        for move in range(MOVES):
            for ident in IDENTS[:2]:
                slot = slot_of(ident)
                source = await in_thread(cluster.owner, slot)
                index = cluster.primaries.index(source)
                target = cluster.primaries[(index + 1 + move % 2) % 3]
                moving = await in_thread(cluster.begin_migration, slot, source, target)
                await load.progress(20)
                await in_thread(moving.move_keys)
                await load.progress(20)  # all of them are at the target, by ASK
                while await in_thread(source.command, "CLUSTER", "COUNTKEYSINSLOT", slot):
                    await in_thread(moving.move_keys)
                await in_thread(moving.finish)
        await load.progress()
    await load.check(lost=False, overlaps=False)
    assert not load.errors


async def test_new_ident_in_a_half_moved_slot(cluster_setup: ClusterSetup) -> None:
    """An ident that is new in a slot on its way begins at the target, first use and all."""
    cluster = cluster_setup
    slot = slot_of("fresh")
    source = await in_thread(cluster.owner, slot)
    target = next(node for node in cluster.primaries if node is not source)
    moving = await in_thread(cluster.begin_migration, slot, source, target)
    async with StateManagerRedis(cluster.url, key_prefix="load") as manager:
        for _ in range(3):
            async with manager.modify_state(token("fresh")) as state:
                state.n += 1
        assert await manager.get_state(token("fresh")) == Count(3)
        assert await in_thread(target.command, "DBSIZE") == 1
        await in_thread(target.command, "SCRIPT", "FLUSH")
        async with manager.modify_state(token("fresh")) as state:
            state.n += 1
        await in_thread(moving.finish)
        assert await manager.get_state(token("fresh")) == Count(4)
        await in_thread(cluster.migrate_slot, slot, target, source)
        assert await manager.get_state(token("fresh")) == Count(4)


async def test_stopped_primary_of_a_cluster_is_given_up(
    replicated_cluster: ClusterSetup,
) -> None:
    """A primary that stands still, without closing a connection, is left for its replica."""
    cluster = replicated_cluster
    running = [node for node in cluster.nodes if node.is_running]
    async with Load(cluster.url) as load:
        stopped = await in_thread(_current_primary, cluster, running)
        await in_thread(stopped.stop_process)
        try:
            others = [node for node in running if node is not stopped]
            await in_thread(wait_until, lambda: _has_failed_over(others, stopped), "a fail-over")
            await load.progress(200)
        finally:
            await in_thread(stopped.continue_process)
        await load.progress(200)
    await load.check(lost=True, overlaps=True)


def _current_primary(cluster: ClusterSetup, running: list[Server]) -> Server:
    """Return a primary that has a replica that runs."""
    return next(
        primary
        for primary, replica in zip(cluster.primaries, cluster.replicas, strict=True)
        if primary in running and replica in running and primary.command("ROLE")[0] == b"master"
    )


def _has_failed_over(others: list[Server], stopped: Server) -> bool:
    lines = others[0].command("CLUSTER", "NODES").decode().splitlines()
    gone = next(line for line in lines if f":{stopped.port}@" in line)
    return "fail" in gone.split()[2].split(",") and all(
        "cluster_state:ok" in node.command("CLUSTER", "INFO").decode() for node in others
    )
