"""Rule 1: at most one body runs for an ident at a time, and none is forgotten."""

import asyncio
import random
from typing import Any

from statemgr.manager import StateManager
from statemgr.testing.conformance.base import (
    Contract,
    Occupancy,
    assert_idle,
    increment,
    waiting,
)
from statemgr.testing.conformance.states import Cart, Counter, Journal
from statemgr.testing.harness import Harness
from statemgr.token import StateToken


class ExclusionContract(Contract):
    """Bodies of one ident run one at a time, and so does all else that changes a state."""

    async def test_bodies_of_one_ident_never_overlap(self, harness: Harness) -> None:
        """Twenty tasks that read, wait and write lose no change."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        occupancy = Occupancy()

        async def change() -> None:
            async with manager.modify_state(token) as counter:
                with occupancy:
                    value = counter.value
                    await asyncio.sleep(0)
                    counter.value = value + 1

        await asyncio.gather(*(change() for _ in range(20)))
        assert occupancy.most == 1
        assert (await manager.get_state(token)).value == 20

    async def test_classes_of_one_ident_share_its_lock(self, harness: Harness) -> None:
        """A body of one class keeps out those of another, and of several."""
        manager = await harness.open()
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)
        occupancy = Occupancy()

        async def change(modification: Any) -> None:
            async with modification:
                with occupancy:
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)

        await asyncio.gather(
            change(manager.modify_state(counter)),
            change(manager.modify_state(cart)),
            change(manager.modify_states(counter, cart)),
            change(manager.modify_state(counter)),
        )
        assert occupancy.most == 1

    async def test_bodies_of_different_idents_overlap(self, harness: Harness) -> None:
        """A lock of one ident keeps out nobody else."""
        manager = await harness.open()
        first, second = StateToken("user-1", Counter), StateToken("user-2", Counter)
        async with manager.modify_state(first) as one:
            await increment(manager, second)
            one.value = 1
        assert (await manager.get_states(first, second)) == (Counter(1), Counter(1))

    async def test_set_state_waits_for_the_body(self, harness: Harness) -> None:
        """It is saved after the body's state, not in the middle and then overwritten."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        async with manager.modify_state(token) as counter:
            counter.value = 1
            setting = harness.spawn(manager.set_state(token, Counter(2)))
            await waiting(harness, manager, 1)
            assert not setting.done()
        await setting
        assert await manager.get_state(token) == Counter(2)

    async def test_delete_state_waits_for_the_body(self, harness: Harness) -> None:
        """It drops what the body saved."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        async with manager.modify_state(token) as counter:
            counter.value = 1
            deleting = harness.spawn(manager.delete_state(token))
            await waiting(harness, manager, 1)
            assert not deleting.done()
        assert await deleting is True
        assert not await manager.has_state(token)

    async def test_many_tasks_with_cancels(self, harness: Harness) -> None:
        """Every acknowledged change is there once; a body that was cut short left nothing."""
        manager = await harness.open()
        await stress(harness, manager, manager, seed=1)


async def stress(harness: Harness, first: StateManager, second: StateManager, *, seed: int) -> None:
    """Change four states from 120 tasks through two managers, and cancel every third task."""
    draw = random.Random(seed)  # noqa: S311  # not a secret
    tokens = [StateToken(f"user-{number}", Journal) for number in range(4)]
    acknowledged: set[int] = set()
    finished: set[int] = set()  # bodies that came to their end: saved, unless cancelled then

    async def change(number: int) -> None:
        manager = first if number % 2 else second
        async with manager.modify_state(tokens[number % 4]) as journal:
            entries = list(journal.entries)
            for _ in range(number % 3):
                await asyncio.sleep(0)
            journal.entries = [*entries, number]
            finished.add(number)
        acknowledged.add(number)

    tasks = [harness.spawn(change(number)) for number in range(120)]
    victims = draw.sample(tasks, 40)
    while victims:
        for _ in range(draw.randrange(4)):
            await asyncio.sleep(0)
        victims.pop().cancel()

    async def end() -> None:
        await asyncio.wait(tasks)

    await harness.drive(end())
    for task in tasks:
        if not task.cancelled():
            task.result()
    await harness.published()
    saved = [entry for state in await first.get_states(*tokens) for entry in state.entries]
    assert len(saved) == len(set(saved))
    assert acknowledged <= set(saved) <= finished
    assert len(acknowledged) >= 80
    for manager in (first, second):
        for token in tokens:
            await assert_idle(harness, manager, token)
