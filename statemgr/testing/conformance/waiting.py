"""Rule 6: waiting is bounded by `timeout`, and nobody waits for itself."""

import asyncio

import pytest

from statemgr.errors import LockReentryError, LockTimeoutError
from statemgr.manager import StateManager
from statemgr.testing.conformance.base import Contract, assert_idle, increment, waiting
from statemgr.testing.conformance.states import Cart, Counter
from statemgr.testing.harness import Harness
from statemgr.token import AnyToken, StateToken


async def _change(manager: StateManager, token: AnyToken, timeout: float | None) -> None:
    async with manager.modify_state(token, timeout=timeout) as counter:
        counter.value += 1


class WaitingContract(Contract):
    """A wait for a lock ends: with the lock, at its timeout, or at once for one's own."""

    async def test_timeout_ends_the_wait(self, harness: Harness) -> None:
        """Not before its time; the error tells which lock, and what the timeout was."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        async with manager.modify_state(token):
            task = harness.spawn(_change(manager, token, 5.0))
            await waiting(harness, manager, 1)
            await harness.advance(4.0)
            await harness.clock.settle()
            assert not task.done()
            await harness.advance(1.5)
            with pytest.raises(LockTimeoutError) as caught:
                await task
            assert caught.value.timeout == 5.0
            assert caught.value.lock_key == token.lock_key
            assert manager.statistics().waiters == 0
        await assert_idle(harness, manager, token)

    async def test_timeout_of_several_states(self, harness: Harness) -> None:
        """`modify_states` takes a timeout as `modify_state` does."""
        manager = await harness.open()
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)

        async def change() -> None:
            async with manager.modify_states(counter, cart, timeout=5.0):
                raise AssertionError("two bodies")

        async with manager.modify_state(counter):
            task = harness.spawn(change())
            await waiting(harness, manager, 1)
            await harness.advance(5.5)
            with pytest.raises(LockTimeoutError):
                await task

    async def test_timeout_of_zero_does_not_wait(self, harness: Harness) -> None:
        """A lock that is held is an error without the clock moving."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        async with manager.modify_state(token):
            with pytest.raises(LockTimeoutError):
                await harness.spawn(_change(manager, token, 0))
        await assert_idle(harness, manager, token)

    async def test_place_is_given_up_at_the_timeout(self, harness: Harness) -> None:
        """Those behind move up; the one that gave up is never served."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        async with manager.modify_state(token):
            first = harness.spawn(_change(manager, token, 5.0))
            await waiting(harness, manager, 1)
            second = harness.spawn(_change(manager, token, None))
            await waiting(harness, manager, 2)
            await harness.advance(5.5)
            with pytest.raises(LockTimeoutError):
                await first
            assert manager.statistics().waiters == 1
        await second
        assert await manager.get_state(token) == Counter(1)
        await assert_idle(harness, manager, token)

    async def test_timeout_in_the_turn_of_the_release(self, harness: Harness) -> None:
        """The lock goes to one who will take it, or is free: whichever came first."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        async with manager.modify_state(token):
            first = harness.spawn(_change(manager, token, 5.0))
            await waiting(harness, manager, 1)
            second = harness.spawn(_change(manager, token, None))
            await waiting(harness, manager, 2)
            await harness.advance(5.5)
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert results[1] is None
        assert results[0] is None or isinstance(results[0], LockTimeoutError)
        assert (await manager.get_state(token)).value == results.count(None)
        await assert_idle(harness, manager, token)

    async def test_timeout_does_not_bound_the_body(self, harness: Harness) -> None:
        """Once the lock is there, its holder may take as long as it likes."""
        manager = await harness.open(lock_warning_threshold=100.0)
        token = StateToken("user-1", Counter)
        entered, leave = asyncio.Event(), asyncio.Event()

        async def change() -> None:
            async with manager.modify_state(token, timeout=5.0) as counter:
                entered.set()
                await leave.wait()
                counter.value = 1

        async with manager.modify_state(token):
            task = harness.spawn(change())
            await waiting(harness, manager, 1)
        await entered.wait()
        await harness.advance(6.0)
        await harness.clock.settle()
        assert not task.done()
        leave.set()
        await task
        assert await manager.get_state(token) == Counter(1)

    async def test_no_timer_is_left(self, harness: Harness) -> None:
        """The timer of a wait ends with the wait."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await increment(manager, token)
        await harness.clock.settle()  # timers that go with the state itself
        async with manager.modify_state(token):
            before = harness.clock.timers
            task = harness.spawn(_change(manager, token, 5.0))
            await waiting(harness, manager, 1)
        await task
        await harness.clock.settle()
        assert harness.clock.timers <= before

    @pytest.mark.parametrize("call", ["modify_state", "modify_states", "set_state", "delete_state"])
    async def test_own_lock_is_not_waited_for(self, harness: Harness, call: str) -> None:
        """Asking for the lock of the body one is in raises at once; the body still commits."""
        manager = await harness.open()
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)

        async def again() -> None:
            match call:
                case "modify_state":
                    async with manager.modify_state(cart):
                        raise AssertionError("two bodies")
                case "modify_states":
                    async with manager.modify_states(cart, counter):
                        raise AssertionError("two bodies")
                case "set_state":
                    await manager.set_state(counter, Counter(5))
                case "delete_state":
                    await manager.delete_state(counter)

        async with manager.modify_state(counter) as state:
            state.value = 1
            with pytest.raises(LockReentryError) as caught:
                await again()
            assert caught.value.lock_key == counter.lock_key
            state.value += 1
        assert await manager.get_state(counter) == Counter(2)
        await assert_idle(harness, manager, counter)

    async def test_own_lock_does_not_hinder_reading(self, harness: Harness) -> None:
        """Reading, asking and touching need no lock: not one's own, nor another's."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter(1))
        async with manager.modify_state(token):
            for _ in range(2):
                await manager.get_state(token)
                await manager.get_states(token)
                assert await manager.has_state(token)
                assert await manager.touch(token)
                assert [info.ident async for info in manager.tokens()] == ["user-1"]
            await harness.spawn(manager.get_state(token))

    async def test_child_task_may_wait_for_its_parent(self, harness: Harness) -> None:
        """Only the task itself would wait for ever: one that it started gets its turn."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        async with manager.modify_state(token) as counter:
            child = harness.spawn(increment(manager, token))
            await waiting(harness, manager, 1)
            counter.value = 1
        await child
        assert await manager.get_state(token) == Counter(2)
