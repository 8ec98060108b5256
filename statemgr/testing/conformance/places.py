"""Rule 1, the queue: who waits is served in the order of asking, and may give up the place."""

import asyncio

from statemgr.testing.conformance.base import Contract, assert_idle, waiting
from statemgr.testing.conformance.states import Counter
from statemgr.testing.harness import Harness
from statemgr.token import StateToken


class PlacesContract(Contract):
    """The queue for a lock is first in, first out."""

    async def test_waiters_are_served_in_order(self, harness: Harness) -> None:
        """Bodies run in the order in which they asked."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        served: list[int] = []

        async def change(number: int) -> None:
            async with manager.modify_state(token):
                served.append(number)
                await asyncio.sleep(0)

        async with manager.modify_state(token):
            tasks = []
            for number in range(6):
                tasks.append(harness.spawn(change(number)))
                await waiting(harness, manager, number + 1)
        await asyncio.gather(*tasks)
        assert served == [0, 1, 2, 3, 4, 5]

    async def test_all_kinds_of_change_wait_in_one_queue(self, harness: Harness) -> None:
        """A body, a set, a delete and a body again: each finds what the one before left."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        found: list[int] = []

        async def change(to: int) -> None:
            async with manager.modify_state(token) as counter:
                found.append(counter.value)
                counter.value = to

        async with manager.modify_state(token) as counter:
            counter.value = 1
            tasks = []
            for call in (
                change(2),
                manager.set_state(token, Counter(3)),
                change(4),
                manager.delete_state(token),
                change(5),
            ):
                tasks.append(harness.spawn(call))
                await waiting(harness, manager, len(tasks))
        await asyncio.gather(*tasks)
        assert found == [1, 3, 0]
        assert await manager.get_state(token) == Counter(5)

    async def test_who_comes_late_does_not_overtake(self, harness: Harness) -> None:
        """One that asks in the moment of a release comes after those who wait."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        served: list[str] = []

        async def change(name: str) -> None:
            async with manager.modify_state(token):
                served.append(name)

        async with manager.modify_state(token):
            early = harness.spawn(change("early"))
            await waiting(harness, manager, 1)
        # The lock has been let go, and `early` may not have had its turn yet.
        await change("late")
        await early
        assert served == ["early", "late"]

    async def test_cancelled_waiter_leaves_the_queue(self, harness: Harness) -> None:
        """Those behind a cancelled waiter move up, and nothing of it stays."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        served: list[int] = []

        async def change(number: int) -> None:
            async with manager.modify_state(token):
                served.append(number)

        async with manager.modify_state(token):
            tasks = []
            for number in range(4):
                tasks.append(harness.spawn(change(number)))
                await waiting(harness, manager, number + 1)
            tasks[0].cancel()
            tasks[2].cancel()
            await asyncio.wait([tasks[0], tasks[2]])
            assert manager.statistics().waiters == 2
        await asyncio.gather(tasks[1], tasks[3])
        assert served == [1, 3]
        await assert_idle(harness, manager, token)

    async def test_waiter_cancelled_as_its_turn_comes(self, harness: Harness) -> None:
        """A lock handed to a task that is cancelled before it runs goes on to the next."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        ended = 0

        async def change() -> None:
            nonlocal ended
            async with manager.modify_state(token) as counter:
                counter.value += 1
                ended += 1

        async with manager.modify_state(token):
            first = harness.spawn(change())
            await waiting(harness, manager, 1)
            second = harness.spawn(change())
            await waiting(harness, manager, 2)
        # In the same turn of the loop as the release, or when the first is saving already: then
        # it may be saved.
        first.cancel()
        await asyncio.wait([first])
        await second
        await assert_idle(harness, manager, token)
        value = (await manager.get_state(token)).value
        assert value == ended or (first.cancelled() and value == ended - 1)
