"""Tests that need more than the kit can make happen: lost locks, lost replies, dead processes."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from statemgr import StateToken
from statemgr.backends.redis.keys import class_of
from statemgr.backends.redis.scripts import ACQUIRE, RELEASE
from statemgr.errors import LockExpiredError
from statemgr.testing.conformance.base import Contract, increment, waiting
from statemgr.testing.conformance.states import Cart, Counter
from statemgr.testing.harness import EXPIRATION
from statemgr.testing.proxy import FaultyProxy

from .redis_harness import RedisHarness

COUNTER, CART = StateToken("user-1", Counter), StateToken("user-1", Cart)
KEY = COUNTER.lock_key
LONG = 1_000_000.0  # a lock_warning_threshold that no test reaches
DEAD = "dead.1"  # an owner of a process that does nothing more


class Behind:
    """Reach behind the managers' back, as a process of another version might."""

    def __init__(self, harness: RedisHarness) -> None:
        self.raw = harness.raw
        self.key = harness.keys.ident(KEY)

    def acquire(self, owner: str, *, joins: bool = True) -> Any:
        """Ask for the lock of `COUNTER`, for ten seconds."""
        return self.raw.eval(ACQUIRE.source, 1, self.key, owner, 10_000, 1_000, int(joins), 0)

    def expire_lock(self) -> None:
        """Have the lock expire now, if there is one."""
        lock = self.raw.hget(self.key, "lock")
        if lock is not None:
            owner, _, rest = lock.split(b" ", 2)
            self.raw.hset(self.key, "lock", b"%b 1 %b" % (owner, rest))

    def lock(self) -> bytes:
        """Return the lock as it is."""
        lock = self.raw.hget(self.key, "lock")
        assert isinstance(lock, bytes)
        return lock

    def owner(self) -> bytes:
        """Return who has the lock."""
        return self.lock().split(b" ")[0]

    def steal(self, owner: str = "thief.1") -> None:
        """Take the lock from whoever has it."""
        self.expire_lock()
        assert self.acquire(owner)[0] == 1

    def overwrite(self, record: bytes) -> None:
        """Take the lock from whoever has it, write `COUNTER`, and let it go."""
        self.steal()
        name, deadline = class_of(COUNTER), (int(self.raw.time()[0]) + 60) * 1000
        self.raw.hset(self.key, mapping={b"s:" + name: record, b"d:" + name: b"%015d1" % deadline})
        assert self.raw.eval(RELEASE.source, 1, self.key, "thief.1", 1_000, 60_000) == 1


class LosingCalls:
    """Have something happen just before the n-th call that a manager sends."""

    def __init__(self, manager: Any, number: int, happens: Callable[[], None]) -> None:
        self.have_lost = False
        self._left = number
        self._happens = happens
        self._call = manager._channel.call
        manager._channel.call = self

    def __call__(self, *args: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            self._happens()
            self.have_lost = True
        return self._call(*args)


async def record_of(harness: RedisHarness, value: int) -> bytes:
    """Return the record of a `COUNTER`; then there is none."""
    async with await harness.make() as manager:
        await manager.set_state(COUNTER, Counter(value))
        await manager.close()
    record = await harness.read_raw(COUNTER)
    assert record is not None
    harness.raw.delete(harness.keys.ident(KEY))
    return record


async def listening(harness: RedisHarness, manager: Any) -> None:
    """Return once a manager listens to its inbox."""
    inbox = harness.keys.inbox(manager._grants._instance)
    await harness.eventually(lambda: harness.raw.pubsub_numsub(inbox)[0][1] == 1)


class RedisFaults(Contract):
    """What a lock in Redis has to stand."""

    async def test_lock_lost_before_each_call(self, harness: RedisHarness) -> None:
        """Whenever it is, a holder that lost its lock writes nothing, and is told so."""
        behind = Behind(harness)
        record = await record_of(harness, 50)
        outcomes = []
        for number in range(1, 10):
            manager: Any = await harness.open(lock_warning_threshold=LONG)
            await manager.set_state(COUNTER, Counter(0))
            losing = LosingCalls(manager, number, lambda: behind.overwrite(record))
            expected = 50
            saved = True
            try:
                await increment(manager, COUNTER)
                if losing.have_lost:
                    expected = 51  # the lock was lost before the state was read
                await manager.close()
            except LockExpiredError:
                saved = False
            other = await harness.open()
            if not losing.have_lost:
                assert saved
                assert await other.get_state(COUNTER) == Counter(1)
                break
            assert await other.get_state(COUNTER) == Counter(expected if saved else 50)
            outcomes.append(saved)
            harness.raw.delete(behind.key)
        assert False in outcomes

    async def test_renewal_of_a_lost_lock(self, harness: RedisHarness) -> None:
        """It does not keep the lock alive that another process has now."""
        behind = Behind(harness)
        manager: Any = await harness.open(lock_warning_threshold=LONG, lock_expiration=9.0)
        with pytest.raises(LockExpiredError):
            async with manager.modify_state(COUNTER) as counter:
                counter.value = 1
                behind.steal()
                lock = behind.lock()
                harness.clock.advance(manager.lock_expiration / 2)
                await harness.eventually(lambda: manager._channel.outstanding == 0)
                assert behind.lock() == lock
        assert behind.owner() == b"thief.1"

    async def test_renewed_lock_is_kept(self, harness: RedisHarness) -> None:
        """A body may take longer than `lock_expiration`."""
        manager: Any = await harness.open(lock_warning_threshold=LONG, lock_expiration=9.0)
        behind = Behind(harness)
        async with manager.modify_state(COUNTER) as counter:
            for _ in range(8):
                lock = behind.lock().split(b" ")
                lock[1] = str(int(lock[1]) - 3000).encode()
                behind.raw.hset(behind.key, "lock", b" ".join(lock))
                harness.clock.advance(3.0)
                await harness.eventually(lambda: manager._channel.outstanding == 0)
                assert behind.acquire("other.1", joins=False)[0] == 0
            counter.value = 1
        await harness.published()
        assert await harness.read_raw(COUNTER) is not None

    async def test_place_of_a_dead_waiter(self, harness: RedisHarness) -> None:
        """Its lock goes to the next one when its claim is over."""
        behind = Behind(harness)
        first: Any = await harness.open(lock_expiration=3.0)
        second: Any = await harness.open(lock_expiration=3.0)
        async with first.modify_state(COUNTER):
            behind.acquire(DEAD)
            waiter = harness.spawn(increment(second, COUNTER))
            await waiting(harness, second, 1)
        await harness.eventually(lambda: behind.owner() == DEAD.encode())
        lock = behind.lock().split(b" ")
        lock[1] = str(int(lock[1]) - 1_000).encode()  # by as much as a claim is for
        behind.raw.hset(behind.key, "lock", b" ".join(lock))
        await harness.drive(asyncio.wait_for(waiter, harness.patience))

    async def test_processes_are_served_in_order(self, harness: RedisHarness) -> None:
        """First in, first out."""
        behind = Behind(harness)
        order: list[int] = []

        async def change(manager: Any, number: int) -> None:
            async with manager.modify_state(COUNTER):
                order.append(number)

        behind.acquire(DEAD)
        tasks = []
        for number in range(4):
            manager: Any = await harness.open()
            tasks.append(harness.spawn(change(manager, number)))
            await harness.eventually(lambda number=number: behind.lock().count(b".") == number + 2)
        late: Any = await harness.open()
        await late.has_state(COUNTER)
        behind.expire_lock()
        tasks.append(harness.spawn(change(late, 4)))  # nobody else asks while time stands still
        await harness.eventually(lambda: late._grants.waiting + len(order) > 0)
        await harness.drive(asyncio.wait(tasks))
        assert order == [0, 1, 2, 3, 4]

    async def test_state_waited_for_by_another_process(self, harness: RedisHarness) -> None:
        """Is there for it, though it expired meanwhile: the lock was never free."""
        first: Any = await harness.open(lock_warning_threshold=LONG)
        second: Any = await harness.open(lock_warning_threshold=LONG)
        await first.set_state(COUNTER, Counter(1))
        await harness.published()
        async with first.modify_state(CART):
            task = harness.spawn(increment(second, COUNTER))
            await waiting(harness, second, 1)
            await harness.advance(EXPIRATION + 1)
        await harness.drive(asyncio.wait([task]))
        assert await second.get_state(COUNTER) == Counter(2)

    async def test_fence_grows_though_the_ident_was_gone(self, harness: RedisHarness) -> None:
        """Evicted, say: nothing in the store remembers the last one."""
        fences = []
        for _ in range(3):
            manager = await harness.open()
            modification = manager.modify_state(COUNTER)
            async with modification:
                fences.append(modification.fence or 0)
            await manager.close()
            harness.raw.delete(harness.keys.ident(KEY))
        assert 0 < fences[0] < fences[1] < fences[2]

    async def test_lost_replies(self, harness: RedisHarness) -> None:
        """Each call is done once, and succeeds, whichever reply is lost."""
        url = urlsplit(harness.server())
        number = 0
        struck = True
        while struck:
            number += 1
            async with FaultyProxy(url.hostname or "", url.port or 0) as proxy:
                harness.client = lambda url=proxy.url: url  # type: ignore[method-assign]
                manager = await harness.open()
                lost = proxy.drop_reply(number, where=lambda command: command[0][:4] == b"EVAL")
                for value in range(3):
                    async with manager.modify_state(COUNTER) as counter:
                        assert counter.value == value
                        counter.value += 1
                assert await manager.get_state(COUNTER) == Counter(3)
                assert await manager.delete_state(COUNTER)
                await manager.close()
                struck = lost.is_set()
        del harness.client
        assert number > 2

    async def test_cancelled_while_asking(self, harness: RedisHarness) -> None:
        """The lock whose grant nobody waits for any more is given back."""
        behind = Behind(harness)
        manager: Any = await harness.open()
        await manager.has_state(COUNTER)
        task = harness.spawn(increment(manager, COUNTER))
        await harness.eventually(lambda: bool(manager._grants._waiting))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await harness.eventually(lambda: manager._channel.outstanding == 0)
        assert behind.acquire("other.1", joins=False)[0] == 1

    async def test_place_of_who_gave_up(self, harness: RedisHarness) -> None:
        """Is not in the queue any more."""
        behind = Behind(harness)
        manager: Any = await harness.open()
        behind.acquire("other.1")
        task = harness.spawn(increment(manager, COUNTER))
        await harness.eventually(lambda: behind.lock().count(b".") == 2)
        task.cancel()
        await asyncio.wait([task])
        await harness.eventually(lambda: manager._channel.outstanding == 0)
        assert behind.lock().count(b".") == 1

    async def test_every_key_expires(self, harness: RedisHarness) -> None:
        """In the end nothing is left of an ident that nobody asks for."""
        manager = await harness.open()
        await manager.set_state(COUNTER, Counter(1))
        await manager.get_states(COUNTER, CART)
        async with manager.modify_state(CART):
            keys = list(harness.raw.scan_iter(match=f"{harness.prefix}:*"))
            assert [harness.raw.pttl(key) > 0 for key in keys] == [True]
        await manager.delete_state(COUNTER)
        await harness.published()
        assert harness.raw.pttl(harness.keys.ident(KEY)) > 0


class OplockFaults(Contract):
    """What a kept lock has to stand."""

    async def test_oplock_gives_way_at_once(self, harness: RedisHarness) -> None:
        """As soon as another process waits, and not when the hold time is over."""
        first, second = await harness.open(), await harness.open()
        for manager in (first, second):
            await manager.has_state(COUNTER)
            await listening(harness, manager)
        for _ in range(3):
            await increment(first, COUNTER)  # time stands still
            await increment(second, COUNTER)
        async with first.modify_state(COUNTER) as counter:
            assert counter.value == 6

    async def test_oplock_that_was_lost_answers_no_read(self, harness: RedisHarness) -> None:
        """A process that was stopped for long does not take for committed what it has kept."""
        behind = Behind(harness)
        record = await record_of(harness, 50)
        manager: Any = await harness.open()
        await increment(manager, COUNTER)
        behind.overwrite(record)
        harness.clock.advance(manager.lock_expiration)
        for _ in range(3):
            with contextlib.suppress(LockExpiredError):  # what was put off is lost, and told
                assert await manager.get_state(COUNTER) == Counter(50)

    async def test_nothing_is_acknowledged_past_the_deadline(self, harness: RedisHarness) -> None:
        """Of the lock: a process that was stopped for long does not write behind."""
        behind = Behind(harness)
        record = await record_of(harness, 50)
        manager: Any = await harness.open(lock_warning_threshold=LONG)
        await increment(manager, COUNTER)
        with pytest.raises(LockExpiredError):  # the whole body
            async with manager.modify_state(COUNTER) as counter:
                counter.value = 2
                behind.overwrite(record)
                harness.clock.advance(manager.lock_expiration)
        other = await harness.open()
        assert await other.get_state(COUNTER) == Counter(50)
        assert await other.delete_state(COUNTER)
        manager._writer.failures.clear()


class WriteBehindFaults(Contract):
    """What a kept lock has to stand whose changes are written later."""

    async def test_lost_flush_is_an_error_to_somebody(self, harness: RedisHarness) -> None:
        """Of the next call for that ident."""
        behind = Behind(harness)
        manager: Any = await harness.open()
        await increment(manager, COUNTER)
        assert await harness.read_raw(COUNTER) is None
        behind.steal()
        await harness.clock.advance_and_settle(manager.oplock_hold_time)
        await harness.eventually(lambda: KEY not in manager._granted)
        with pytest.raises(LockExpiredError):
            await manager.get_state(COUNTER)
        await manager.get_state(COUNTER)
