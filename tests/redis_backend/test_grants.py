"""Who owns an ident: what happens between two processes, and to locks that are lost.

The classes run on real servers what the mutants of the Redis backend fail
(tests/conformance/redis_mutants.py).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import fakeredis
import pytest
from conformance.redis_faults import (
    COUNTER,
    KEY,
    LONG,
    Behind,
    OplockFaults,
    RedisFaults,
    WriteBehindFaults,
    listening,
)
from conformance.test_redis import (
    BehindHarness,
    FakeHarness,
    OldestHarness,
    ThroughHarness,
    ValkeyHarness,
)

from statemgr import StateManagerRedis, StateToken
from statemgr.backends.redis.grants import Grants
from statemgr.backends.redis.keys import Keys, class_of
from statemgr.errors import BackendUnavailableError, LockTimeoutError, SettingsError
from statemgr.testing.clock import ManualClock
from statemgr.testing.conformance.base import increment, waiting
from statemgr.testing.conformance.states import Cart, Counter


class TestValkey(RedisFaults):
    harness_type = ValkeyHarness


class TestOldestRedis(RedisFaults):
    harness_type = OldestHarness


class TestOplockThrough(RedisFaults, OplockFaults):
    harness_type = ThroughHarness


class TestOplockBehind(RedisFaults, OplockFaults, WriteBehindFaults):
    harness_type = BehindHarness


@asynccontextmanager
async def harness_of(path: Any) -> AsyncIterator[Any]:
    harness = FakeHarness(path)
    yield harness
    await harness.close()


@pytest.fixture
async def fake(tmp_path: Any) -> AsyncIterator[Any]:
    """A harness on a server within the process."""
    async with harness_of(tmp_path) as harness:
        yield harness


@pytest.fixture
async def valkey(tmp_path: Any) -> AsyncIterator[Any]:
    harness = ValkeyHarness(tmp_path)
    yield harness
    await harness.close()


def count_scripts(manager: Any, names: list[str]) -> None:
    """Note the name of each script that a manager calls."""
    call = manager._channel.call

    def counted(script: Any, *args: Any) -> Any:
        names.append(script.name)
        return call(script, *args)

    manager._channel.call = counted


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what it waits for sets no event
            await asyncio.sleep(0.001)


# Between tasks and processes


async def test_lock_is_passed_on_here_first(valkey: Any) -> None:
    """Those who waited here when the grant came have their turn; then another process has."""
    first: Any = await valkey.open(lock_warning_threshold=LONG)
    second: Any = await valkey.open()
    for manager in (first, second):
        await manager.has_state(COUNTER)
        manager._grants.listen()
        await listening(valkey, manager)
    order: list[str] = []
    go_on = asyncio.Event()

    async def change(manager: Any, name: str) -> None:
        async with manager.modify_state(COUNTER) as counter:
            order.append(name)
            counter.value += 1
            await go_on.wait()
            await until(lambda: manager._channel.outstanding == 0)

    behind = Behind(valkey)
    behind.acquire("other.1")
    tasks = [valkey.spawn(change(first, f"a{number}")) for number in range(3)]
    await waiting(valkey, first, 3)  # one in Redis, two here
    behind.raw.delete(behind.key)
    first._grants._call(first._grants._waiting[KEY])
    await until(lambda: order == ["a0"])
    tasks.append(valkey.spawn(change(second, "b")))
    await waiting(valkey, second, 1)
    tasks.append(valkey.spawn(change(first, "late")))
    await waiting(valkey, first, 3)
    names: list[str] = []
    count_scripts(first, names)
    go_on.set()
    await asyncio.wait(tasks)  # nobody looks at intervals: time stands still
    assert order == ["a0", "a1", "a2", "b", "late"], names
    assert names[:3] == ["commit", "commit", "commit"]
    assert await first.get_state(COUNTER) == Counter(5)


async def test_lock_is_handed_over_after_a_slice(valkey: Any) -> None:
    """However many wait here."""
    first: Any = await valkey.open(lock_warning_threshold=LONG)
    second: Any = await valkey.open()
    order: list[str] = []
    go_on = asyncio.Event()

    async def change(manager: Any, name: str) -> None:
        async with manager.modify_state(COUNTER):
            order.append(name)
            await go_on.wait()

    behind = Behind(valkey)
    behind.acquire("other.1")
    tasks = [valkey.spawn(change(first, f"a{number}")) for number in range(3)]
    await waiting(valkey, first, 3)
    tasks.append(valkey.spawn(change(second, "b")))
    await waiting(valkey, second, 1)
    behind.expire_lock()
    await valkey.drive(until(lambda: order == ["a0"]))
    valkey.clock.advance(0.05)
    go_on.set()
    await valkey.drive(asyncio.wait(tasks))
    assert order == ["a0", "b", "a1", "a2"]


async def test_waiter_looks_by_itself(valkey: Any) -> None:
    """At intervals that grow to half a second: a lost message costs no more."""
    manager: Any = await valkey.open()
    Behind(valkey).acquire("other.1")
    await increment(manager, StateToken("another", Counter))
    await listening(valkey, manager)
    await valkey.clock.settle()  # it has heard of that itself: then it looks too
    names: list[str] = []
    count_scripts(manager, names)
    valkey.spawn(increment(manager, COUNTER))
    await waiting(valkey, manager, 1)
    await valkey.eventually(lambda: manager._channel.outstanding == 0)
    for look, pause in enumerate((0.05, 0.1, 0.2, 0.4, 0.5, 0.5), start=1):
        for seconds, looks in ((pause - 0.01, look), (0.011, look + 1)):
            await valkey.clock.advance_and_settle(seconds)
            await valkey.eventually(lambda: manager._channel.outstanding == 0)
            await valkey.clock.settle()
            assert names.count("acquire") == looks


async def test_waiter_looks_when_it_can_hear(valkey: Any, monkeypatch: Any) -> None:
    """What was sent before the inbox was open was not heard: it asks again at once."""
    manager: Any = await valkey.open()
    behind = Behind(valkey)
    behind.acquire("other.1")
    monkeypatch.setattr(Grants, "listen", lambda _: None)
    task = valkey.spawn(increment(manager, COUNTER))
    await waiting(valkey, manager, 1)
    behind.expire_lock()
    monkeypatch.undo()
    manager._grants.listen()
    await task  # although no time has passed


async def test_inbox_that_opens_before_the_reply(valkey: Any, monkeypatch: Any) -> None:
    """So it does if it was about to wait: its place in the queue is older than the inbox."""
    manager: Any = await valkey.open()
    await manager.has_state(COUNTER)
    behind = Behind(valkey)
    behind.acquire("other.1")
    monkeypatch.setattr(Grants, "listen", lambda _: None)
    names: list[str] = []
    count_scripts(manager, names)
    call = manager._channel.call

    def opened(_: Any) -> None:
        behind.raw.delete(behind.key)
        manager._grants._look_again()

    def calling(*args: Any) -> Any:
        made = call(*args)
        if names == ["acquire"]:
            made.future.add_done_callback(opened)  # before who asked goes on
        return made

    manager._channel.call = calling
    await increment(manager, COUNTER)  # although no time has passed
    assert names == ["acquire", "acquire", "commit"]


async def test_message_that_comes_before_the_wait(valkey: Any) -> None:
    """The lock is passed on between the reply that it is held and the wait for it."""
    manager: Any = await valkey.open()
    Behind(valkey).acquire("other.1")
    await manager.has_state(COUNTER)
    queue = manager._grants._queue

    def called(grant: Any) -> None:
        queue(grant)
        if names.count("acquire") == 1:
            Behind(valkey).raw.delete(Behind(valkey).key)
            manager._grants._hear(grant.owner)

    names: list[str] = []
    count_scripts(manager, names)
    manager._grants._queue = called
    await increment(manager, COUNTER)  # time stands still
    assert names == ["acquire", "acquire", "commit"]


async def test_messages_for_nobody(valkey: Any) -> None:
    """One that comes late, or for an owner that is not known, does nothing."""
    manager: Any = await valkey.open()
    await increment(manager, COUNTER)
    manager._grants._hear(b"nobody.1")
    manager._grants._hear(manager._grants._new(KEY).owner)
    await increment(manager, COUNTER)
    assert await manager.get_state(COUNTER) == Counter(2)


async def test_slow_grant_is_asked_for_again(valkey: Any) -> None:
    """A reply that took longer than the lock is granted for is no proof of having it."""
    manager: Any = await valkey.open(lock_warning_threshold=LONG)
    await manager.has_state(COUNTER)
    names: list[str] = []
    call = manager._channel.call

    def slow(script: Any, *args: Any) -> Any:
        names.append(script.name)
        made = call(script, *args)
        if len(names) == 1:
            valkey.clock.advance(manager.lock_expiration)
        return made

    manager._channel.call = slow
    await increment(manager, COUNTER)
    assert names == ["acquire", "acquire", "commit"]


async def test_slow_grant_is_not_renewed_while_it_is_in_doubt(valkey: Any) -> None:
    """Somebody else has it meanwhile; it is good when it is granted once more."""
    manager: Any = await valkey.open(lock_warning_threshold=LONG)
    await manager.has_state(COUNTER)
    behind = Behind(valkey)
    names: list[str] = []
    call = manager._channel.call

    def slow(script: Any, *args: Any) -> Any:
        names.append(script.name)
        if len(names) == 2:
            behind.expire_lock()
            behind.acquire("other.1")
        made = call(script, *args)
        if len(names) == 1:
            valkey.clock.advance(manager.lock_expiration)
        return made

    manager._channel.call = slow
    task = valkey.spawn(increment(manager, COUNTER))
    await waiting(valkey, manager, 1)
    await valkey.clock.advance_and_settle(manager.lock_expiration)
    behind.raw.delete(behind.key)
    await valkey.drive(asyncio.wait([task]))
    task.result()
    assert "extend" not in names


async def cancelled_at_its_turn(harness: Any, manager: Any) -> None:
    """Cancel a waiter in the turn of the loop in which a commit hands it the lock."""
    async with manager.modify_state(COUNTER) as counter:
        counter.value += 1
        task = harness.spawn(increment(manager, COUNTER))
        await waiting(harness, manager, 1)
        asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_waiter_cancelled_at_its_turn_leaves_no_lock(valkey: Any) -> None:
    """The commit has kept it for the waiter: it is given back, not renewed for nobody."""
    manager: Any = await valkey.open(lock_warning_threshold=LONG)
    await cancelled_at_its_turn(valkey, manager)
    assert manager._granted == manager._grants._held == {}
    other = await valkey.open()
    async with other.modify_state(COUNTER, timeout=0) as counter:
        assert counter == Counter(1)


async def test_waiter_cancelled_at_its_turn_leaves_no_place(valkey: Any) -> None:
    """The commit has passed the lock to another process, and asked for it again."""
    manager: Any = await valkey.open(lock_warning_threshold=LONG)
    async with manager.modify_state(COUNTER):
        task = valkey.spawn(increment(manager, COUNTER))
        await waiting(valkey, manager, 1)
        grant = manager._granted[KEY]
        grant.wanted, grant.turns = True, 0
        asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert manager._grants._waiting == {}
    await valkey.eventually(lambda: manager._channel.outstanding == 0)
    assert Behind(valkey).owner() == b""


async def test_timeout_as_the_turn_comes(valkey: Any) -> None:
    """When the wait has just ended otherwise, the timeout still counts, and no lock is left."""
    manager: Any = await valkey.open()
    behind = Behind(valkey)
    behind.acquire("other.1")
    await manager.has_state(COUNTER)

    async def change() -> None:
        async with manager.modify_state(COUNTER, timeout=0.5):
            raise AssertionError("the lock was held")

    task = valkey.spawn(change())
    await waiting(valkey, manager, 1)
    await valkey.clock.settle()
    grant = manager._grants._waiting[KEY]
    manager._grants._call(grant)
    manager._grants._time_out(grant, 0.5)
    with pytest.raises(LockTimeoutError):
        await task
    await valkey.eventually(lambda: manager._channel.outstanding == 0)
    assert behind.lock().count(b".") == 1


@pytest.mark.parametrize("timeout", [0, -1])
async def test_look_without_waiting(valkey: Any, timeout: float) -> None:
    """Takes no place in the queue."""
    manager: Any = await valkey.open()
    behind = Behind(valkey)
    behind.acquire("other.1")
    lock = behind.lock()
    with pytest.raises(LockTimeoutError) as caught:
        async with manager.modify_state(COUNTER, timeout=timeout):
            raise AssertionError("the lock was held")
    assert caught.value.timeout == timeout
    assert behind.lock() == lock
    behind.raw.delete(behind.key)
    async with manager.modify_state(COUNTER, timeout=timeout):
        pass


async def test_wait_goes_on_for_the_next_task(valkey: Any) -> None:
    """The first of two that wait is cancelled: the second keeps their place in the queue."""
    manager: Any = await valkey.open()
    behind = Behind(valkey)
    behind.acquire("other.1")
    first = valkey.spawn(increment(manager, COUNTER))
    second = valkey.spawn(increment(manager, COUNTER))
    await waiting(valkey, manager, 2)
    place = behind.lock().split(b" ")[-1]
    first.cancel()
    await asyncio.wait([first])
    behind.acquire("later.1")
    assert behind.lock().split(b" ")[-2:] == [place, b"later.1"]
    behind.expire_lock()
    await valkey.drive(asyncio.wait([second]))
    assert await manager.get_state(COUNTER) == Counter(1)


# Renewal


async def test_young_locks_are_not_renewed(valkey: Any) -> None:
    """Only those a third of their time old; nothing is sent when none is held."""
    manager: Any = await valkey.open(lock_warning_threshold=LONG, lock_expiration=9.0)
    await manager.has_state(COUNTER)
    names: list[str] = []
    count_scripts(manager, names)
    other = StateToken("user-2", Counter)
    async with manager.modify_state(COUNTER):
        await valkey.clock.advance_and_settle(2.0)
        async with manager.modify_state(other):
            await valkey.clock.advance_and_settle(1.1)
            assert names.count("extend") == 1
            await valkey.clock.advance_and_settle(2.0)
            assert names.count("extend") == 2
    await valkey.clock.advance_and_settle(30.0)
    assert names.count("extend") == 2
    assert valkey.clock.timers == 0


async def test_renewal_that_fails_is_tried_again(valkey: Any) -> None:
    """A server that cannot be asked for a while costs no lock."""
    manager: Any = await valkey.open(lock_warning_threshold=LONG, lock_expiration=9.0)
    await manager.has_state(COUNTER)
    call = manager._channel.call
    names: list[str] = []

    def failing(script: Any, *args: Any) -> Any:
        made = call(script, *args)
        names.append(script.name)
        if names.count("extend") == 1 and script.name == "extend":
            made.fail(BackendUnavailableError("not now"))
        return made

    manager._channel.call = failing
    async with manager.modify_state(COUNTER) as counter:
        grant = manager._granted[KEY]
        deadline = grant.deadline
        await valkey.clock.advance_and_settle(3.1)
        await valkey.eventually(lambda: manager._channel.outstanding == 0)
        assert grant.deadline == deadline
        await valkey.clock.advance_and_settle(3.1)
        await valkey.eventually(lambda: grant.deadline > deadline)
        counter.value = 1
    assert await manager.get_state(COUNTER) == Counter(1)


async def test_renewal_tells_that_somebody_waits(valkey: Any) -> None:
    """Though the message was lost."""
    manager: Any = await valkey.open(lock_warning_threshold=LONG, lock_expiration=9.0)
    behind = Behind(valkey)
    async with manager.modify_state(COUNTER):
        grant = manager._granted[KEY]
        assert not grant.wanted
        behind.acquire("other.1")
        await valkey.clock.advance_and_settle(3.1)
        await valkey.eventually(lambda: grant.wanted)
    await valkey.eventually(lambda: behind.owner() == b"other.1")


async def test_release_that_fails_is_no_error(
    valkey: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The lock ends by itself."""
    manager: Any = await valkey.open()
    await manager.has_state(COUNTER)
    call = manager._channel.call

    def failing(script: Any, *args: Any) -> Any:
        made = call(script, *args)
        if script.name == "release":
            made.fail(BackendUnavailableError("not now"))
        return made

    manager._channel.call = failing
    modification = manager.modify_state(COUNTER)
    async with modification:
        modification.discard()
    await valkey.clock.settle()
    assert not caplog.records


# Keys


@pytest.mark.parametrize("prefix", ["a{b", "a}b", "{}", ""])
def test_key_prefix_with_braces_is_refused(prefix: str) -> None:
    """They would be the hash tag of Cluster, and all keys would be in one slot."""
    with pytest.raises(SettingsError, match="key_prefix"):
        StateManagerRedis(fakeredis.FakeAsyncRedis(), key_prefix=prefix)


@pytest.mark.parametrize("prefix", ["a*", "a?c", "[ab]", "a-b^", "a\\b", "a:b", "ä"])
async def test_any_other_key_prefix_works(prefix: str) -> None:
    """What means something in a pattern is itself, and finds no other manager's states."""
    server = fakeredis.FakeServer()

    def manager(prefix: str) -> StateManagerRedis:
        return StateManagerRedis(
            fakeredis.FakeAsyncRedis(server=server), key_prefix=prefix, clock=ManualClock()
        )

    others = [manager(name) for name in ("abc", "a", "ab", "ac", "b")]
    async with manager(prefix) as mine:
        for other in others:
            await other.set_state(COUNTER, Counter(9))
        assert [info async for info in mine.tokens()] == []
        assert not await mine.has_state(COUNTER)
        await mine.set_state(COUNTER, Counter(1))
        assert [info.ident async for info in mine.tokens()] == ["user-1"]
        assert [info.ident async for info in mine.tokens("user")] == ["user-1"]
        for other in others:
            assert await other.get_state(COUNTER) == Counter(9)
            await other.close()


def test_keys_of_an_ident_share_a_slot() -> None:
    """The hash tag is the ident's lock key, whatever is in it."""
    keys = Keys("p")
    for ident in ("a", "a/b", "{x}", "}{", "a:b", "ä\n\0", "\ud800"):
        token = StateToken(ident, Counter)
        key = keys.ident(token.lock_key)
        assert key == f"p:{{{token.lock_key}}}"
        assert key.count("{") == key.count("}") == 1
        assert keys.kept(token, "0").startswith(key.encode() + b":kept:")
        assert keys.ident_of(key.encode()) == ident
    assert class_of(COUNTER) != class_of(COUNTER.with_cls(Cart))
    assert keys.inbox("i") == "p:inbox:i"


async def test_reset_keeps_the_record_under_a_key_of_its_own(fake: Any) -> None:
    """Without a TTL; the same record twice is one key."""
    manager = await fake.open(on_decode_error="reset")
    for _ in range(2):
        await manager.set_state(COUNTER, Counter(1))
        await fake.corrupt(COUNTER)
        await increment(manager, COUNTER)
        assert await manager.get_state(COUNTER) == Counter(1)
    (key,) = fake.raw.scan_iter(match="*:kept:*")
    assert key.startswith(fake.keys.ident(KEY).encode() + b":kept:" + class_of(COUNTER))
    assert fake.raw.get(key) == b"\xc1 not a record"
    assert fake.raw.ttl(key) == -1
    assert [info.ident async for info in manager.tokens()] == ["user-1"]


# Statistics


async def test_statistics_count_waits_once(valkey: Any) -> None:
    """A task that waits in Redis, and those that wait for it here."""
    manager: Any = await valkey.open()
    behind = Behind(valkey)
    behind.acquire("other.1")
    tasks = [valkey.spawn(increment(manager, COUNTER)) for _ in range(3)]
    await waiting(valkey, manager, 3)
    assert manager.statistics().locks_held == 0
    assert manager.statistics().tokens_held == 0
    behind.raw.delete(behind.key)
    await valkey.drive(asyncio.wait(tasks))
    assert manager.statistics().waiters == 0
    assert manager.statistics().commits == 3
    assert not manager._grants._held
