"""One store, several managers: as several processes would have it."""
# a whole body raises here, or is refused

import asyncio

import pytest

from statemgr.errors import LockTimeoutError
from statemgr.testing.conformance.base import (
    Contract,
    Occupancy,
    Stop,
    assert_idle,
    increment,
    requires,
    waiting,
)
from statemgr.testing.conformance.exclusion import stress
from statemgr.testing.conformance.expiring import assert_gone
from statemgr.testing.conformance.states import Cart, Counter
from statemgr.testing.harness import EXPIRATION, Capability, Harness
from statemgr.token import StateToken


class SharingContract(Contract):
    """`Capability.SHARED`."""

    @requires(Capability.SHARED)
    async def test_commit_is_seen_by_the_other_manager(self, harness: Harness) -> None:
        """By its readers and its bodies, again and again, in both directions."""
        first, second = await harness.open(), await harness.open()
        token = StateToken("user-1", Counter)
        for round_ in range(3):
            await increment(first, token)
            await harness.published()
            assert await second.get_state(token) == Counter(2 * round_ + 1)
            await harness.drive(increment(second, token))
            await harness.published()
            assert await first.get_state(token) == Counter(2 * round_ + 2)
        assert [info.ident async for info in second.tokens()] == ["user-1"]

    @requires(Capability.SHARED)
    async def test_bodies_of_two_managers_never_overlap(self, harness: Harness) -> None:
        """Tasks of both lose no change."""
        managers = await harness.open(), await harness.open()
        token = StateToken("user-1", Counter)
        occupancy = Occupancy()

        async def change(number: int) -> None:
            async with managers[number % 2].modify_state(token) as counter:
                with occupancy:
                    value = counter.value
                    await asyncio.sleep(0)
                    counter.value = value + 1

        async def all_changes() -> None:
            await asyncio.gather(*(change(number) for number in range(20)))

        await harness.drive(all_changes())
        assert occupancy.most == 1
        await harness.published()
        for manager in managers:
            assert await manager.get_state(token) == Counter(20)

    @requires(Capability.SHARED)
    async def test_lock_passes_to_the_other_manager(self, harness: Harness) -> None:
        """Its waiter gets in after the release, and finds the committed state."""
        first, second = await harness.open(), await harness.open()
        token = StateToken("user-1", Counter)
        async with first.modify_state(token) as counter:
            task = harness.spawn(harness.drive(increment(second, token)))
            await waiting(harness, second, 1)
            await harness.clock.settle()
            assert not task.done()
            counter.value = 1
        await task
        await harness.published()
        assert await first.get_state(token) == Counter(2)

    @requires(Capability.SHARED)
    async def test_body_is_not_seen_by_the_other_manager(self, harness: Harness) -> None:
        """Neither while it runs, nor if it raises."""
        first, second = await harness.open(), await harness.open()
        token = StateToken("user-1", Cart)
        await first.set_state(token, Cart(["apple"]))
        await harness.published()
        with pytest.raises(Stop):
            async with first.modify_state(token) as cart:
                cart.items.append("pear")
                assert await second.get_state(token) == Cart(["apple"])
                raise Stop
        assert await second.get_state(token) == Cart(["apple"])
        await harness.drive(increment(second, token.with_cls(Counter)))

    @requires(Capability.SHARED)
    async def test_wait_for_the_other_manager_is_bounded(self, harness: Harness) -> None:
        """A timeout ends it as it ends one for a lock held here."""
        first, second = await harness.open(), await harness.open()
        token = StateToken("user-1", Counter)

        async def change() -> None:
            async with second.modify_state(token, timeout=5.0):
                raise AssertionError("two bodies")

        async with first.modify_state(token):
            task = harness.spawn(change())
            await waiting(harness, second, 1)
            await harness.advance(6.0)
            with pytest.raises(LockTimeoutError) as caught:
                await task
            assert caught.value.timeout == 5.0
        await harness.drive(assert_idle(harness, second, token))
        await harness.drive(assert_idle(harness, first, token))

    @requires(Capability.SHARED)
    async def test_cancelled_wait_for_the_other_manager(self, harness: Harness) -> None:
        """It leaves nothing that keeps anybody out."""
        first, second = await harness.open(), await harness.open()
        token = StateToken("user-1", Counter)
        async with first.modify_state(token):
            task = harness.spawn(increment(second, token))
            await waiting(harness, second, 1)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        await harness.drive(assert_idle(harness, first, token))
        await harness.drive(assert_idle(harness, second, token))
        assert (await first.get_state(token)).value == 0

    @requires(Capability.SHARED)
    async def test_set_and_delete_wait_for_the_other_manager(self, harness: Harness) -> None:
        """Neither comes in the middle of a body there."""
        first, second = await harness.open(), await harness.open()
        token = StateToken("user-1", Counter)
        async with first.modify_state(token) as counter:
            setting = harness.spawn(harness.drive(second.set_state(token, Counter(5))))
            await waiting(harness, second, 1)
            counter.value = 1
        await setting
        await harness.published()
        assert await first.get_state(token) == Counter(5)
        async with second.modify_state(token):
            deleting = harness.spawn(harness.drive(first.delete_state(token)))
            await waiting(harness, first, 1)
        assert await deleting is True
        await harness.published()
        assert not await second.has_state(token)
        assert await second.get_state(token) == Counter()

    @requires(Capability.SHARED)
    async def test_state_renewed_by_the_other_manager(self, harness: Harness) -> None:
        """It lives for both, and then is gone for both."""
        first, second = await harness.open(), await harness.open()
        token = StateToken("user-1", Counter)
        await increment(first, token)
        for _ in range(2):
            await harness.advance(EXPIRATION - 20)
            assert await second.touch(token)
            await harness.clock.settle()
        await harness.advance(EXPIRATION - 20)
        assert await first.get_state(token) == Counter(1)
        await harness.advance(EXPIRATION + 1)
        await assert_gone(first, token)
        await assert_gone(second, token)

    @requires(Capability.SHARED)
    async def test_state_locked_by_the_other_manager(self, harness: Harness) -> None:
        """It is not purged by one that does not hold the lock."""
        options = {"lock_warning_threshold": 1_000_000.0}
        first, second = await harness.open(**options), await harness.open(**options)
        token = StateToken("user-1", Counter)
        await increment(first, token)
        await harness.published()
        await second.get_state(token)
        with pytest.raises(Stop):
            async with first.modify_state(token):
                await harness.advance(EXPIRATION + 1)
                await harness.clock.settle()
                # Whatever has a thread for its purge has come to it when this is answered.
                await second.get_state(StateToken("user-2", Counter))
                assert await second.has_state(token)
                raise Stop
        assert await first.get_state(token) == Counter(1)
        assert await second.get_state(token) == Counter(1)

    @requires(Capability.SHARED)
    async def test_closing_one_manager_leaves_the_other(self, harness: Harness) -> None:
        """Its own locks are let go, the other's is still held, and the states stay."""
        first, second, third = [await harness.open() for _ in range(3)]
        token = StateToken("user-1", Counter)
        await increment(first, token)
        async with second.modify_state(token) as counter:
            await first.close()
            task = harness.spawn(harness.drive(increment(third, token)))
            await waiting(harness, third, 1)
            await harness.clock.settle()
            assert counter == Counter(1)
            counter.value += 1
        await task
        await harness.published()
        assert await second.get_state(token) == Counter(3)

    @requires(Capability.SHARED)
    @requires(Capability.FENCE)
    async def test_fence_grows_across_managers(self, harness: Harness) -> None:
        """Whoever gets the lock later has the greater one."""
        managers = await harness.open(), await harness.open()
        token = StateToken("user-1", Counter)
        fences: list[int] = []

        async def change(number: int) -> None:
            modification = managers[number % 2].modify_state(token)
            async with modification:
                assert modification.fence is not None
                fences.append(modification.fence)

        for number in range(6):
            await harness.drive(change(number))
        assert fences == sorted(set(fences))

    @requires(Capability.SHARED)
    async def test_many_tasks_of_two_managers_with_cancels(self, harness: Harness) -> None:
        """Every acknowledged change is there once, whoever made it."""
        await stress(harness, await harness.open(), await harness.open(), seed=2)
