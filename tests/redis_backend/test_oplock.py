"""Kept locks: what is sent and when, what is read meanwhile, and what is lost with the lock."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conformance.redis_faults import CART, COUNTER, KEY, LONG, Behind, listening, record_of
from conformance.test_redis import BehindHarness, ThroughHarness

from statemgr import StateManagerRedis, StateToken
from statemgr.errors import BackendUnavailableError, LockExpiredError, SettingsError
from statemgr.testing.conformance.base import Stop, increment
from statemgr.testing.conformance.states import Cart, Counter
from statemgr.testing.logs import logged

MODES = {"through": ThroughHarness, "behind": BehindHarness}
HOLD = 2.0  # seconds


class Sent:
    """What a manager sends: the scripts by name, and what commits write."""

    def __init__(self, manager: Any) -> None:
        self.names: list[str] = []
        self.changes: list[dict[bytes, bytes]] = []  # by class, what is in place of the size
        self._call = manager._channel.call
        manager._channel.call = self._note
        commit = manager._grants.commit

        def noted(grant: Any, changes: Any, **options: Any) -> Any:
            changes = list(changes)
            self.changes.append({change[0].rpartition(b":")[2]: change[2] for change in changes})
            return commit(grant, changes, **options)

        manager._grants.commit = noted

    def _note(self, script: Any, *args: Any) -> Any:
        self.names.append(script.name)
        return self._call(script, *args)

    def take(self) -> list[str]:
        """Return what was sent since the last time."""
        names, self.names = self.names, []
        return names


@pytest.fixture(params=sorted(MODES))
async def harness(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[Any]:
    """A harness of each mode."""
    harness = MODES[request.param](tmp_path)
    yield harness
    await harness.close()


@pytest.fixture
async def through(tmp_path: Any) -> AsyncIterator[Any]:
    harness = ThroughHarness(tmp_path)
    yield harness
    await harness.close()


@pytest.fixture
async def behind(tmp_path: Any) -> AsyncIterator[Any]:
    harness = BehindHarness(tmp_path)
    yield harness
    await harness.close()


async def open_one(harness: Any, **options: Any) -> Any:
    """Open a manager that is connected and hears."""
    options = {"oplock_hold_time": HOLD, "lock_warning_threshold": LONG} | options
    manager = StateManagerRedis(
        harness.client(),
        key_prefix=harness.prefix,
        **(harness.mode | {"clock": harness.clock, "token_expiration": 60.0} | options),
    )
    harness._managers.append(manager)
    await manager.has_state(COUNTER)
    await listening(harness, manager)
    return manager


async def quiet(harness: Any, manager: Any) -> None:
    await harness.clock.settle()
    await harness.eventually(
        lambda: not manager._channel.outstanding and not manager._writer.flushing
    )


async def stored(harness: Any, token: Any = COUNTER) -> Any:
    """Return what another process reads."""
    other = StateManagerRedis(harness.client(), key_prefix=harness.prefix)
    async with other:
        return await other.get_state(token)


# What is sent


async def test_through_sends_one_commit_for_each_change(through: Any) -> None:
    """After the first, which asks for the lock; a read asks nothing."""
    manager = await open_one(through)
    sent = Sent(manager)
    await increment(manager, COUNTER)
    assert sent.take() == ["acquire", "commit"]
    for value in range(2, 5):
        await increment(manager, COUNTER)
        assert sent.take() == ["commit"]
        assert await stored(through) == Counter(value)
        assert await manager.get_state(COUNTER) == Counter(value)
        assert await manager.has_state(COUNTER)
        assert await manager.touch(COUNTER)
        assert sent.take() == []


async def test_behind_sends_nothing_until_the_hold_time(behind: Any) -> None:
    """Then one commit with the last state of each class."""
    manager = await open_one(behind)
    sent = Sent(manager)
    for _ in range(3):
        await increment(manager, COUNTER)
    await manager.set_state(CART, Cart(["apple"]))
    assert await manager.get_states(COUNTER, CART) == (Counter(3), Cart(["apple"]))
    assert sent.take() == ["acquire"]
    assert await stored(behind) == Counter()
    await behind.clock.advance_and_settle(HOLD + 0.1)
    await quiet(behind, manager)
    assert sent.take() == ["commit"]
    (changes,) = sent.changes
    assert sorted(changes) == [b"Cart", b"Counter"]
    assert all(size.isdigit() for size in changes.values())
    assert await stored(behind) == Counter(3)
    assert await stored(behind, CART) == Cart(["apple"])


async def test_unchanged_state_is_not_sent_again(harness: Any) -> None:
    """Only that it was used."""
    manager = await open_one(harness)
    await increment(manager, COUNTER)
    await manager.set_state(CART, Cart(["apple"]))
    await harness.clock.advance_and_settle(HOLD + 0.1)
    await quiet(harness, manager)
    sent = Sent(manager)
    async with manager.modify_states(COUNTER, CART) as (counter, _):
        counter.value = 7
    async with manager.modify_state(CART):
        pass
    await manager.set_state(CART, Cart(["apple"]))
    await harness.clock.advance_and_settle(HOLD + 0.1)
    await quiet(harness, manager)
    sizes = [size for changes in sent.changes for size in changes.values()]
    assert [size for size in sizes if size] == [sent.changes[0][b"Counter"]]
    assert await stored(harness) == Counter(7)
    assert await stored(harness, CART) == Cart(["apple"])


async def test_body_that_changes_nothing_sends_nothing(harness: Any) -> None:
    """Discarded, raised: its lock is kept all the same, and the state is renewed with it."""
    manager = await open_one(harness)
    await increment(manager, COUNTER)
    sent = Sent(manager)
    modification = manager.modify_state(COUNTER)
    async with modification:
        modification.discard()
    with pytest.raises(Stop):
        async with manager.modify_state(COUNTER) as counter:
            counter.value = 99
            raise Stop
    assert sent.take() == []
    assert await manager.get_state(COUNTER) == Counter(1)
    await harness.clock.advance_and_settle(HOLD + 0.1)
    await quiet(harness, manager)
    assert await stored(harness) == Counter(1)


async def test_oplock_ends_with_its_hold_time(harness: Any) -> None:
    """Nothing is kept then, and the next change asks again."""
    manager = await open_one(harness)
    await increment(manager, COUNTER)
    assert manager.statistics().tokens_held == 1
    fence = manager._granted[KEY].fence
    await harness.clock.advance_and_settle(HOLD + 0.1)
    await quiet(harness, manager)
    assert manager.statistics().tokens_held == 0
    assert Behind(harness).owner() == b""
    sent = Sent(manager)
    modification = manager.modify_state(COUNTER)
    async with modification:
        assert modification.fence > fence
    assert sent.take()[0] == "acquire"


async def test_body_beyond_the_hold_time(harness: Any) -> None:
    """Is saved when it ends, and what was put off before it is written meanwhile."""
    manager = await open_one(harness)
    await increment(manager, COUNTER)
    async with manager.modify_state(COUNTER) as counter:
        counter.value = 50
        for _ in range(4):
            await harness.clock.advance_and_settle(HOLD)
            await quiet(harness, manager)
        assert await stored(harness) == Counter(1)
        assert await manager.get_state(COUNTER) == Counter(1)
    await quiet(harness, manager)
    assert await stored(harness) == Counter(50)
    await increment(manager, COUNTER)
    assert await manager.get_state(COUNTER) == Counter(51)


async def test_body_longer_than_the_lock(harness: Any) -> None:
    """Its lock is renewed, and so is a kept one that nobody uses."""
    manager = await open_one(harness, lock_expiration=3.0)
    sent = Sent(manager)
    async with manager.modify_state(COUNTER) as counter:
        for _ in range(9):
            await harness.clock.advance_and_settle(1.0)
            await quiet(harness, manager)
        counter.value = 1
    assert sent.names.count("extend") >= 8
    await quiet(harness, manager)
    await harness.clock.advance_and_settle(HOLD + 1)
    await quiet(harness, manager)
    assert await stored(harness) == Counter(1)


# Two processes


async def test_oplock_is_given_up_when_another_process_waits(harness: Any) -> None:
    """With all that was put off."""
    first, second = await open_one(harness), await open_one(harness)
    await increment(first, COUNTER)
    await first.set_state(CART, Cart(["apple"]))
    async with second.modify_states(COUNTER, CART) as (counter, cart):  # time stands still
        assert (counter, cart) == (Counter(1), Cart(["apple"]))
        counter.value = 2
    assert await first.get_state(COUNTER) in (Counter(1), Counter(2))
    await increment(first, COUNTER)
    assert await first.get_state(COUNTER) == Counter(3)


async def test_oplock_that_is_wanted_during_a_body(harness: Any) -> None:
    """Is given up as the body ends; its change is not put off."""
    first, second = await open_one(harness), await open_one(harness)
    async with first.modify_state(COUNTER) as counter:
        task = harness.spawn(increment(second, COUNTER))
        await harness.eventually(lambda: first._granted[KEY].wanted)
        counter.value = 1
    await task
    assert await second.get_state(COUNTER) == Counter(2)


async def test_wanted_oplock_after_a_body_without_a_change(harness: Any) -> None:
    """Is given up as well."""
    first, second = await open_one(harness), await open_one(harness)
    await increment(first, COUNTER)
    modification = first.modify_state(COUNTER)
    async with modification:
        task = harness.spawn(increment(second, COUNTER))
        await harness.eventually(lambda: first._granted[KEY].wanted)
        modification.discard()
    await task
    assert await second.get_state(COUNTER) == Counter(2)


async def test_tasks_and_processes_take_turns(harness: Any) -> None:
    """Nobody waits for ever, and no change is lost."""
    managers = [await open_one(harness) for _ in range(3)]
    tasks = [harness.spawn(increment(managers[n % 3], COUNTER)) for n in range(60)]
    await harness.drive(asyncio.wait(tasks))
    await harness.clock.advance_and_settle(HOLD + 1)
    for manager in managers:
        await quiet(harness, manager)
    assert await stored(harness) == Counter(60)


# What is read, and two classes


async def test_classes_of_one_ident_are_kept_apart(harness: Any) -> None:
    """One lock, two states; one that is new to it is read when it is needed."""
    manager = await open_one(harness)
    await manager.set_state(CART, Cart(["apple"]))
    await manager.close()
    manager = await open_one(harness)
    await increment(manager, COUNTER)
    sent = Sent(manager)
    async with manager.modify_states(CART, COUNTER) as (cart, counter):
        assert (cart, counter) == (Cart(["apple"]), Counter(1))
        cart.items.append("pear")
    assert sent.take()[0] == "acquire"  # the same grant, for the record
    async with manager.modify_state(CART) as cart:
        assert cart == Cart(["apple", "pear"])
    assert await manager.get_states(COUNTER, CART) == (Counter(1), Cart(["apple", "pear"]))
    assert manager.statistics().tokens_held == 2


async def test_absence_is_kept(harness: Any) -> None:
    """A state that is known not to be there is not asked for, and gives fresh defaults."""
    manager = await open_one(harness)
    modification = manager.modify_state(COUNTER)
    async with modification as counter:
        counter.value = 9
        modification.discard()
    sent = Sent(manager)
    assert await manager.get_state(COUNTER) == Counter()
    assert not await manager.has_state(COUNTER)
    assert not await manager.touch(COUNTER)
    assert sent.take() == []


async def test_delete_and_set_under_an_oplock(harness: Any) -> None:
    """Are seen at once here, and by others as any change is; delete is never put off."""
    manager = await open_one(harness)
    await increment(manager, COUNTER)
    await manager.set_state(COUNTER, Counter(5))
    assert await manager.get_state(COUNTER) == Counter(5)
    assert await manager.delete_state(COUNTER)
    assert not await manager.has_state(COUNTER)
    assert await stored(harness) == Counter()
    assert not await manager.delete_state(COUNTER)
    await manager.set_state(COUNTER, Counter(6))
    assert await manager.get_state(COUNTER) == Counter(6)
    assert await manager.delete_state(COUNTER)
    await manager.close()
    assert await stored(harness) == Counter()


async def test_what_was_read_is_not_the_kept_state(harness: Any) -> None:
    manager = await open_one(harness)
    await manager.set_state(CART, Cart(["apple"]))
    (await manager.get_state(CART)).items.append("pear")
    assert await manager.get_state(CART) == Cart(["apple"])


async def test_listing_shows_what_was_put_off(behind: Any) -> None:
    """It is written for that."""
    manager = await open_one(behind)
    await increment(manager, COUNTER)
    assert [info.ident async for info in manager.tokens()] == ["user-1"]
    await quiet(behind, manager)
    assert await stored(behind) == Counter(1)


async def test_undecodable_record_under_an_oplock(harness: Any) -> None:
    """Is set aside once; what takes its place is kept like any other."""
    manager = await open_one(harness, on_decode_error="reset")
    await manager.set_state(COUNTER, Counter(5))
    await manager.close()
    await harness.corrupt(COUNTER)
    manager = await open_one(harness, on_decode_error="reset")
    async with manager.modify_state(COUNTER) as counter:
        assert counter == Counter()
    assert await harness.kept() == [b"\xc1 not a record"]
    await increment(manager, COUNTER)
    assert await manager.get_state(COUNTER) == Counter(1)
    await manager.close()
    assert await stored(harness) == Counter(1)


async def test_state_that_one_token_wrote_and_another_cannot_read(harness: Any) -> None:
    """It is set aside as it is kept, under a key of the same record."""

    class Odd(StateToken[Any]):
        @classmethod
        def serialize(cls, state: Any) -> bytes:
            return b"odd"

    manager = await open_one(harness, on_decode_error="reset")
    await manager.set_state(Odd("user-1", Counter), Counter(5))
    async with manager.modify_state(COUNTER) as counter:
        assert counter == Counter()
        counter.value = 1
    await quiet(harness, manager)
    assert len(await harness.kept()) == 1
    assert await manager.get_state(COUNTER) == Counter(1)


async def test_class_without_a_default_frees_the_lock(harness: Any) -> None:
    """A body that cannot begin under a kept lock leaves it to the next."""

    class Broken:
        def __init__(self) -> None:
            raise ZeroDivisionError

    manager = await open_one(harness)
    broken = StateToken("user-1", Broken)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with manager.modify_state(broken):
                raise AssertionError("no state")
    await increment(manager, COUNTER)
    assert await manager.get_state(COUNTER) == Counter(1)


# What is lost


async def test_loss_is_told_at_the_next_call_and_logged(behind: Any) -> None:
    """Once; another ident has nothing to do with it."""
    manager = await open_one(behind)
    await increment(manager, COUNTER)
    Behind(behind).steal()
    with logged() as records:
        await behind.clock.advance_and_settle(HOLD + 0.1)
        await quiet(behind, manager)
    assert ["acknowledged are lost" in record.getMessage() for record in records] == [True]
    await increment(manager, StateToken("user-2", Counter))
    with pytest.raises(LockExpiredError) as caught:
        await increment(manager, COUNTER)
    assert caught.value.lock_key == KEY
    assert await manager.get_state(COUNTER) == Counter()


async def test_loss_is_told_by_close(behind: Any) -> None:
    """If nobody has asked before; the lock of the other process stays."""
    manager = await open_one(behind)
    await increment(manager, COUNTER)
    other = Behind(behind)
    other.steal()
    with pytest.raises(LockExpiredError):
        await manager.close()
    assert other.owner() == b"thief.1"
    await manager.close()


async def test_loss_is_told_by_a_renewal(behind: Any) -> None:
    """The server says that the lock is another's: what was put off is lost."""
    manager = await open_one(behind, lock_expiration=3.0)
    await increment(manager, COUNTER)
    Behind(behind).steal()
    await behind.clock.advance_and_settle(1.1)
    await behind.eventually(lambda: KEY not in manager._granted)
    with pytest.raises(LockExpiredError):
        await manager.get_state(COUNTER)


async def test_body_after_a_loss(behind: Any) -> None:
    """Under a lock whose deadline has passed unseen: the body does not begin."""
    manager = await open_one(behind)
    record = await record_of(behind, 50)
    await increment(manager, COUNTER)
    Behind(behind).overwrite(record)
    behind.clock.advance(10.0)
    with pytest.raises(LockExpiredError):
        async with manager.modify_state(COUNTER):
            raise AssertionError("what it is given is not committed")
    async with manager.modify_state(COUNTER) as counter:
        assert counter == Counter(50)


async def test_lost_lock_is_noticed_when_a_class_is_read(harness: Any) -> None:
    """Asking for the record of another class says whose the lock is."""
    manager = await open_one(harness)
    await increment(manager, COUNTER)
    await quiet(harness, manager)
    Behind(harness).overwrite(b"x")
    harness.raw.delete(harness.keys.ident(KEY))
    try:
        async with asyncio.timeout(harness.patience), manager.modify_state(CART) as cart:
            assert cart == Cart()
            cart.items.append("apple")
    except LockExpiredError:
        assert harness.mode["oplock"] == "behind"
        async with asyncio.timeout(harness.patience):
            await manager.set_state(CART, Cart(["apple"]))
    assert await manager.get_state(CART) == Cart(["apple"])
    assert await manager.get_state(COUNTER) == Counter()


async def test_failed_flush_is_uncertain_and_kept_for_somebody(behind: Any) -> None:
    """When the server cannot be asked."""
    manager = await open_one(behind)
    await increment(manager, COUNTER)
    call = manager._channel.call

    def failing(script: Any, *args: Any) -> Any:
        made = call(script, *args)
        if script.name == "commit":
            made.future.set_exception(BackendUnavailableError("not now"))
        return made

    manager._channel.call = failing
    await behind.clock.advance_and_settle(HOLD + 0.1)
    await quiet(behind, manager)
    manager._channel.call = call
    with pytest.raises(Exception, match=r"not known|not now"):
        await manager.get_state(COUNTER)
    await increment(manager, COUNTER)


def test_hold_time_is_below_the_locks_expiration() -> None:
    """A kept lock could not be told from a dead one."""
    with pytest.raises(SettingsError, match="oplock_hold_time"):
        StateManagerRedis(
            "redis://localhost", oplock="through", lock_expiration=1.0, oplock_hold_time=1.0
        )
    StateManagerRedis("redis://localhost", lock_expiration=1.0, oplock_hold_time=1.0)
