"""Rule 5 and locks: what is locked or waited for is not purged, and a purge frees no lock."""
# a whole body raises here, or is refused

import asyncio

import pytest

from statemgr.manager import StateManager
from statemgr.testing.conformance.base import (
    Contract,
    Occupancy,
    Stop,
    assert_idle,
    increment,
    requires,
    waiting,
)
from statemgr.testing.conformance.expiring import assert_gone
from statemgr.testing.conformance.states import Cart, Counter
from statemgr.testing.harness import EXPIRATION, Capability, Harness
from statemgr.token import AnyToken, StateToken

LONG = 1_000_000.0  # a lock_warning_threshold that no test reaches


async def _change(manager: StateManager, token: AnyToken, occupancy: Occupancy) -> None:
    async with manager.modify_state(token) as counter:
        with occupancy:
            value = counter.value
            for _ in range(5):
                await asyncio.sleep(0)
            counter.value = value + 1


class LockedExpiringContract(Contract):
    """Sliding expiration of tokens whose lock is held or waited for."""

    async def test_locked_state_is_not_purged(self, harness: Harness) -> None:
        """It outlives its deadline for as long as the body runs, and then has its full time."""
        manager = await harness.open(lock_warning_threshold=LONG)
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter(1))
        async with manager.modify_state(token):
            await harness.advance(EXPIRATION + 1)
            await harness.clock.settle()
            assert await manager.has_state(token)
            assert await manager.get_state(token) == Counter(1)
        await harness.advance(EXPIRATION - 1)
        assert await manager.get_state(token) == Counter(1)

    @requires(Capability.DURABLE)
    async def test_stored_state_of_a_locked_ident_is_listed(self, harness: Harness) -> None:
        """Beyond its deadline, also if the manager has not had to do with it so far."""
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)
        async with await harness.open() as manager:
            await manager.set_state(cart, Cart(["apple"]))
        manager = await harness.open(lock_warning_threshold=LONG)
        modification = manager.modify_state(counter)
        async with modification:
            await harness.advance(EXPIRATION + 1)
            await harness.clock.settle()
            assert [info.class_name async for info in manager.tokens()] == [
                f"{Cart.__module__}:{Cart.__qualname__}"
            ]
            assert await manager.has_state(cart)
            modification.discard()
        await assert_gone(manager, cart)

    async def test_locked_state_outlives_a_body_that_raises(self, harness: Harness) -> None:
        """What was there when the body began is there when it has failed."""
        manager = await harness.open(lock_warning_threshold=LONG)
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter(1))
        with pytest.raises(Stop):
            async with manager.modify_state(token):
                await harness.advance(EXPIRATION + 1)
                await harness.clock.settle()
                raise Stop
        assert await manager.get_state(token) == Counter(1)

    async def test_waited_for_state_is_not_purged(self, harness: Harness) -> None:
        """Who waits finds the state that was there when it began to wait."""
        manager = await harness.open(lock_warning_threshold=LONG)
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)
        await manager.set_state(counter, Counter(1))
        async with manager.modify_state(cart):
            task = harness.spawn(increment(manager, counter))
            await waiting(harness, manager, 1)
            await harness.advance(EXPIRATION + 1)
            await harness.clock.settle()
            assert await manager.has_state(counter)
        await task
        assert await manager.get_state(counter) == Counter(2)

    async def test_purge_frees_no_lock(self, harness: Harness) -> None:
        """While one holds and one waits past the deadline, a third does not get in."""
        manager = await harness.open(lock_warning_threshold=LONG)
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter())
        occupancy = Occupancy()
        async with manager.modify_state(token) as counter:
            with occupancy:
                second = harness.spawn(_change(manager, token, occupancy))
                await waiting(harness, manager, 1)
                await harness.advance(EXPIRATION + 1)
                await harness.clock.settle()
                third = harness.spawn(_change(manager, token, occupancy))
                await harness.clock.settle()
                counter.value += 1
        await asyncio.gather(second, third)
        assert occupancy.most == 1
        assert await manager.get_state(token) == Counter(3)
        await assert_idle(harness, manager, token)

    async def test_purge_between_a_release_and_its_waiters_turn(self, harness: Harness) -> None:
        """In that gap nobody holds the lock by name, and yet it is taken."""
        manager = await harness.open(lock_warning_threshold=LONG)
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)
        await manager.set_state(cart, Cart(["apple"]))
        occupancy = Occupancy()
        async with manager.modify_state(counter):
            second = harness.spawn(_change(manager, counter, occupancy))
            await waiting(harness, manager, 1)
            # The purge is due now, and runs before the waiter does.
            await harness.advance(EXPIRATION + 1)
        third = harness.spawn(_change(manager, counter, occupancy))
        await asyncio.gather(second, third)
        assert occupancy.most == 1
        assert await manager.get_state(counter) == Counter(2)
        await assert_idle(harness, manager, counter)

    async def test_passed_over_state_expires_with_the_release(self, harness: Harness) -> None:
        """A class that the body did not touch is gone once the ident's lock is free."""
        manager = await harness.open(lock_warning_threshold=LONG)
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)
        await manager.set_state(cart, Cart(["apple"]))
        async with manager.modify_state(counter):
            await harness.advance(EXPIRATION + 1)
            await harness.clock.settle()
            assert await manager.has_state(cart)
        await assert_gone(manager, cart)
        assert await manager.has_state(counter)

    @requires(Capability.PURGE)
    async def test_passed_over_state_is_purged_on_release(self, harness: Harness) -> None:
        """The purge looks at it again then: no clock has to move, no token to be used."""
        manager = await harness.open(lock_warning_threshold=LONG)
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)
        await manager.set_state(cart, Cart(["apple"]))
        modification = manager.modify_state(counter)
        async with modification:
            await harness.advance(EXPIRATION + 1)
            await harness.clock.settle()
            assert manager.statistics().purged == 0
            modification.discard()
        await harness.eventually(lambda: manager.statistics().purged == 1)
        assert not await manager.has_state(cart)

    @requires(Capability.PURGE)
    async def test_locked_states_do_not_hold_up_the_purge(self, harness: Harness) -> None:
        """Those behind a locked one are purged in time."""
        manager = await harness.open(lock_warning_threshold=LONG)
        locked = StateToken("user-1", Counter)
        others = [StateToken(f"user-{number}", Counter) for number in range(2, 6)]
        for token in (locked, *others):
            await manager.set_state(token, Counter(1))
        async with manager.modify_state(locked):
            await harness.advance(EXPIRATION + 1)
            await harness.eventually(lambda: manager.statistics().purged == len(others))
        assert await manager.get_state(locked) == Counter(1)

    async def test_set_and_delete_after_a_long_wait(self, harness: Harness) -> None:
        """A delete that waited past the deadline still finds the state that was locked."""
        manager = await harness.open(lock_warning_threshold=LONG)
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter(1))
        modification = manager.modify_state(token)
        async with modification:
            deleting = harness.spawn(manager.delete_state(token))
            await waiting(harness, manager, 1)
            setting = harness.spawn(manager.set_state(token, Counter(2)))
            await waiting(harness, manager, 2)
            await harness.advance(EXPIRATION + 1)
            await harness.clock.settle()
            modification.discard()
        assert await deleting is True
        await setting
        assert await manager.get_state(token) == Counter(2)
