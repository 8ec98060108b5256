"""`statistics`: what a manager holds, and has done."""

import pytest

from statemgr.statistics import Statistics
from statemgr.testing.conformance.base import Contract, Stop, increment, waiting
from statemgr.testing.conformance.states import Cart, Counter
from statemgr.testing.harness import Harness
from statemgr.token import StateToken

NAMES = ["tokens_held", "locks_held", "waiters", "hits", "misses", "commits", "aborts", "purged"]


class StatisticsContract(Contract):
    """Numbers that only this manager's calls change."""

    async def test_new_manager_has_done_nothing(self, harness: Harness) -> None:
        """All numbers are zero, and the object is frozen."""
        manager = await harness.open()
        statistics = manager.statistics()
        assert _numbers(statistics, *NAMES) == (0,) * len(NAMES)
        with pytest.raises(AttributeError):
            statistics.hits = 1  # type: ignore[misc]  # the mistake

    async def test_reads_are_counted(self, harness: Harness) -> None:
        """A hit for each stored state that was read, a miss for each default."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await manager.get_state(token)
        assert _numbers(manager.statistics(), "hits", "misses") == (0, 1)
        await manager.set_state(token, Counter(1))
        await manager.get_state(token)
        await manager.get_states(token, token.with_cls(Cart), token)
        assert _numbers(manager.statistics(), "hits", "misses") == (3, 2)

    async def test_changes_are_counted(self, harness: Harness) -> None:
        """Bodies and writes that were saved are commits, the other bodies aborts."""
        manager = await harness.open()
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)
        await increment(manager, counter)
        await manager.set_state(cart, Cart())
        async with manager.modify_states(counter, cart):
            pass
        with pytest.raises(Stop):
            async with manager.modify_state(counter):
                raise Stop
        modification = manager.modify_state(counter)
        async with modification:
            modification.discard()
        assert _numbers(manager.statistics(), "commits", "aborts") == (3, 2)

    async def test_locks_and_waiters_are_counted(self, harness: Harness) -> None:
        """Those of now: held by bodies, and waited for by calls."""
        manager = await harness.open()
        one, two = StateToken("user-1", Counter), StateToken("user-2", Counter)
        async with manager.modify_state(one), manager.modify_state(two):
            tasks = [harness.spawn(increment(manager, one)) for _ in range(3)]
            await waiting(harness, manager, 3)
            assert manager.statistics().locks_held == 2
        for task in tasks:
            await task
        assert _numbers(manager.statistics(), "locks_held", "waiters") == (0, 0)


def _numbers(statistics: Statistics, *names: str) -> tuple[int, ...]:
    return tuple(getattr(statistics, name) for name in names)
