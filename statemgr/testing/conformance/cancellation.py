"""Rule 2, cancelled: at no await does a cancel leave a lock held or a change half made."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from statemgr.manager import StateManager
from statemgr.testing.conformance.base import Contract, assert_idle, requires, waiting
from statemgr.testing.conformance.states import Cart, Counter
from statemgr.testing.faults import cancel_at_every_await
from statemgr.testing.harness import Capability, Harness
from statemgr.token import AnyToken, StateToken


async def _cancel_everywhere(
    harness: Harness,
    manager: StateManager,
    token: AnyToken,
    prepare: Callable[[], Awaitable[object]],
    run: Callable[[], Coroutine[Any, Any, object]],
    check: Callable[[bool], Awaitable[None]],
) -> int:
    """Cancel `run` at each of its awaits, alone and behind a body that holds the lock."""
    holder: asyncio.Task[None] | None = None

    async def hold(entered: asyncio.Event) -> None:
        modification = manager.modify_state(token)
        async with modification:
            entered.set()
            for _ in range(10):
                await asyncio.sleep(0)
            modification.discard()

    async def prepare_with_holder() -> None:
        nonlocal holder
        await prepare()
        entered = asyncio.Event()
        holder = harness.spawn(hold(entered))
        await entered.wait()

    async def prepare_alone() -> None:
        await prepare()

    async def check_and_idle(ended: bool) -> None:
        if holder is not None:
            await holder
        await assert_idle(harness, manager, token)
        await check(ended)

    await cancel_at_every_await(run, check_and_idle, prepare_alone)
    return await cancel_at_every_await(run, check_and_idle, prepare_with_holder)


class CancellationContract(Contract):
    """A cancel leaves no lock held and no record half written."""

    async def test_cancel_while_holding_frees_the_lock(self, harness: Harness) -> None:
        """The next in the queue gets it."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        entered = asyncio.Event()

        async def hold() -> None:
            async with manager.modify_state(token):
                entered.set()
                await asyncio.Event().wait()

        async def change() -> None:
            async with manager.modify_state(token) as counter:
                counter.value += 1

        task = harness.spawn(hold())
        await entered.wait()
        next_one = harness.spawn(change())
        await waiting(harness, manager, 1)
        task.cancel()
        await next_one
        assert task.cancelled()
        await assert_idle(harness, manager, token)
        assert await manager.get_state(token) == Counter(1)

    @requires(Capability.ROLLBACK)
    async def test_cancelled_body_saves_nothing(self, harness: Harness) -> None:
        """It is as if it had raised."""
        manager = await harness.open()
        token = StateToken("user-1", Cart)
        await manager.set_state(token, Cart(["apple"]))
        entered = asyncio.Event()

        async def change() -> None:
            async with manager.modify_state(token) as cart:
                cart.items.append("pear")
                entered.set()
                await asyncio.Event().wait()

        task = harness.spawn(change())
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])
        assert await manager.get_state(token) == Cart(["apple"])

    async def test_cancel_at_every_await_of_a_body(self, harness: Harness) -> None:
        """Waiting, loading, holding, saving: the lock is free, the state is old or new."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        finished = False

        async def prepare() -> None:
            nonlocal finished
            finished = False
            await manager.set_state(token, Counter(0))

        async def change() -> None:
            nonlocal finished
            async with manager.modify_state(token) as counter:
                counter.value = 1
                await asyncio.sleep(0)
                counter.value = 2
                finished = True

        async def check(ended: bool) -> None:
            found = (await manager.get_state(token)).value
            if ended:
                assert found == 2
            elif Capability.ROLLBACK in harness.capabilities:
                assert found in ((0, 2) if finished else (0,))

        awaits = await _cancel_everywhere(harness, manager, token, prepare, change, check)
        assert awaits >= 2  # the wait for the lock, and the body's own

    async def test_cancel_at_every_await_of_several_states(self, harness: Harness) -> None:
        """All of them are old, or all new."""
        manager = await harness.open()
        one, two = StateToken("user-1", Counter), StateToken("user-1", Cart)

        async def prepare() -> None:
            await manager.set_state(one, Counter(0))
            await manager.set_state(two, Cart([0]))

        async def change() -> None:
            modification = manager.modify_states(one, two)
            async with modification:
                modification.state = (Counter(1), Cart([1]))

        async def check(ended: bool) -> None:
            old, new = (Counter(0), Cart([0])), (Counter(1), Cart([1]))
            assert await manager.get_states(one, two) in ((new,) if ended else (old, new))

        assert await _cancel_everywhere(harness, manager, one, prepare, change, check) >= 1

    async def test_cancel_at_every_await_of_set_state(self, harness: Harness) -> None:
        """The lock is free, the state is old or new."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)

        async def check(ended: bool) -> None:
            assert (await manager.get_state(token)).value in ((1,) if ended else (0, 1))

        awaits = await _cancel_everywhere(
            harness,
            manager,
            token,
            lambda: manager.set_state(token, Counter(0)),
            lambda: manager.set_state(token, Counter(1)),
            check,
        )
        assert awaits >= 1

    async def test_cancel_at_every_await_of_delete_state(self, harness: Harness) -> None:
        """The lock is free, the state is there whole or gone."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)

        async def check(ended: bool) -> None:
            if await manager.has_state(token):
                assert not ended
                assert await manager.get_state(token) == Counter(1)

        awaits = await _cancel_everywhere(
            harness,
            manager,
            token,
            lambda: manager.set_state(token, Counter(1)),
            lambda: manager.delete_state(token),
            check,
        )
        assert awaits >= 1

    async def test_cancel_at_every_await_of_a_read(self, harness: Harness) -> None:
        """Reading holds nothing that a cancel could leave behind."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter(1))

        async def read() -> None:
            await manager.get_state(token)
            await manager.get_states(token, token)
            await manager.has_state(token)
            await manager.touch(token)
            _ = [info async for info in manager.tokens()]

        async def check(_: bool) -> None:
            assert await manager.get_state(token) == Counter(1)
            await assert_idle(harness, manager, token)

        await cancel_at_every_await(read, check)
