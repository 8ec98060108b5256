"""Per-key locks: one holder, first in first out, handed over without a gap, gone when unused."""

import asyncio
import contextlib
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statemgr.errors import LockReentryError, LockTimeoutError, StateManagerClosedError
from statemgr.locks import KeyedLocks
from statemgr.testing.clock import ManualClock


class Holder:
    def __init__(self, task: "asyncio.Task[Any] | None" = None) -> None:
        self.task = task
        self.locked_since = -1.0


class Fixture:
    """Locks by a manual clock, and tasks that take one and hold it until they are told."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.freed: list[str] = []
        self.locks = KeyedLocks(self.clock, lambda key: f"<{key}>")
        self.order: list[str] = []
        self.exits: dict[str, asyncio.Event] = {}

    def start(
        self, name: str, timeout: float | None = None, key: str = "k"
    ) -> "asyncio.Task[None]":
        self.exits[name] = asyncio.Event()
        return asyncio.create_task(self._hold(name, key, timeout), name=name)

    async def _hold(self, name: str, key: str, timeout: float | None) -> None:
        holder = Holder(asyncio.current_task())
        await self.locks.acquire(key, holder, timeout, self.freed.append)
        assert self.locks.holders[key] is holder
        try:
            self.order.append(name)
            await self.exits[name].wait()
        finally:
            self.locks.release(key)

    def assert_empty(self) -> None:
        assert (self.locks.holders, self.locks.queues, self.locks.waiting) == ({}, {}, 0)
        assert self.clock.timers == 0


@pytest.fixture
def locks() -> Fixture:
    """Return locks that nobody holds."""
    return Fixture()


async def _cancelled(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        with pytest.raises(asyncio.CancelledError):
            await task


class TestHolding:
    async def test_a_free_lock_is_taken_without_waiting(self, locks: Fixture) -> None:
        holder = Holder()
        waiting = locks.locks.acquire("k", holder, 0)
        with pytest.raises(StopIteration):
            waiting.send(None)
        assert locks.locks.holders == {"k": holder}
        assert holder.locked_since == locks.clock.monotonic()

    async def test_a_key_is_forgotten_when_nobody_holds_or_waits(self, locks: Fixture) -> None:
        tasks = [locks.start(name) for name in "ab"]
        await locks.clock.settle()
        assert (set(locks.locks.holders), set(locks.locks.queues)) == ({"k"}, {"k"})
        assert locks.locks.waiting == 1
        locks.exits["a"].set()
        await locks.clock.settle()
        assert (set(locks.locks.holders), locks.locks.queues) == ({"k"}, {})
        assert locks.locks.waiting == 0
        locks.exits["b"].set()
        await asyncio.gather(*tasks)
        locks.assert_empty()

    async def test_a_timeout_that_no_timer_takes_leaves_no_place_in_the_queue(
        self, locks: Fixture
    ) -> None:
        await locks.locks.acquire("k", Holder())
        with pytest.raises(TypeError):
            await locks.locks.acquire("k", Holder(), Decimal("2.5"))  # type: ignore[arg-type]
        locks.locks.release("k")
        locks.assert_empty()

    async def test_keys_do_not_wait_for_each_other(self, locks: Fixture) -> None:
        tasks = [locks.start("a", key="k"), locks.start("b", key="l")]
        await locks.clock.settle()
        assert locks.order == ["a", "b"]
        for name in "ab":
            locks.exits[name].set()
        await asyncio.gather(*tasks)
        locks.assert_empty()

    async def test_who_waits_is_served_in_the_order_of_asking(self, locks: Fixture) -> None:
        tasks = [locks.start(name) for name in "abcdefgh"]
        for name in "hgfedcba":
            locks.exits[name].set()
        await asyncio.gather(*tasks)
        assert locks.order == list("abcdefgh")
        locks.assert_empty()

    async def test_the_lock_is_never_free_between_a_release_and_the_next_turn(
        self, locks: Fixture
    ) -> None:
        """Who asks in that gap waits, and a purge that looks then sees a held lock."""
        first, waiter = Holder(), Holder()
        await locks.locks.acquire("k", first)
        second = asyncio.create_task(locks.locks.acquire("k", waiter))
        await asyncio.sleep(0)
        locks.locks.release("k")
        assert locks.locks.holders == {"k": waiter}
        with pytest.raises(LockTimeoutError):
            await locks.locks.acquire("k", Holder(), 0)
        third = asyncio.create_task(locks.locks.acquire("k", Holder()))
        await second
        assert not third.done()
        locks.locks.release("k")
        await third
        locks.locks.release("k")
        locks.assert_empty()

    async def test_locked_since_is_carried_over_to_who_is_next(self, locks: Fixture) -> None:
        """It tells since when the key has been locked without a gap."""
        holders = [Holder() for _ in range(3)]
        await locks.locks.acquire("k", holders[0])
        since = locks.clock.monotonic()
        waits = [asyncio.create_task(locks.locks.acquire("k", holder)) for holder in holders[1:]]
        for wait in waits:
            await locks.clock.advance_and_settle(5)
            locks.locks.release("k")
            await wait
        assert [holder.locked_since for holder in holders] == [since] * 3
        locks.locks.release("k")
        await locks.locks.acquire("k", holders[0])
        assert holders[0].locked_since == since + 10
        locks.locks.release("k")


class TestReentry:
    async def test_a_task_that_holds_the_lock_is_refused_at_once(self, locks: Fixture) -> None:
        holder = Holder(asyncio.current_task())
        await locks.locks.acquire("k", holder)
        for timeout in (None, 0, 5):
            with pytest.raises(LockReentryError, match="<k>") as caught:
                await locks.locks.acquire("k", Holder(asyncio.current_task()), timeout)
            assert caught.value.lock_key == "k"
        assert locks.locks.holders == {"k": holder}
        locks.locks.release("k")
        locks.assert_empty()

    async def test_a_task_that_was_handed_the_lock_is_refused_too(self, locks: Fixture) -> None:
        await locks.locks.acquire("k", Holder())

        async def twice() -> None:
            await locks.locks.acquire("k", Holder(asyncio.current_task()))
            await locks.locks.acquire("k", Holder(asyncio.current_task()))

        task = asyncio.create_task(twice())
        await asyncio.sleep(0)
        locks.locks.release("k")
        with pytest.raises(LockReentryError):
            await task

    async def test_another_key_is_no_reentry(self, locks: Fixture) -> None:
        task = asyncio.current_task()
        await locks.locks.acquire("k", Holder(task))
        await locks.locks.acquire("l", Holder(task))
        assert set(locks.locks.holders) == {"k", "l"}

    async def test_without_a_task_nobody_is_taken_for_the_holder(self, locks: Fixture) -> None:
        """Two callers outside of any task are not one."""
        await locks.locks.acquire("k", Holder(None))
        with pytest.raises(LockTimeoutError):
            await locks.locks.acquire("k", Holder(None), 0)


class TestTimeouts:
    @pytest.mark.parametrize("timeout", [0, 0.0, -1, -1e9])
    async def test_no_time_to_wait_is_no_wait(self, locks: Fixture, timeout: float) -> None:
        await locks.locks.acquire("k", Holder())
        waiting = locks.locks.acquire("k", Holder(), timeout)
        with pytest.raises(LockTimeoutError, match=r"<k> was not free within .* s") as caught:
            waiting.send(None)
        assert (caught.value.lock_key, caught.value.timeout) == ("k", timeout)
        assert locks.locks.waiting == 0

    async def test_a_wait_ends_at_its_timeout_and_gives_up_its_place(self, locks: Fixture) -> None:
        tasks = [locks.start("a"), locks.start("b", timeout=5), locks.start("c")]
        await locks.clock.settle()
        await locks.clock.advance_and_settle(4.9)
        assert not tasks[1].done()
        await locks.clock.advance_and_settle(0.1)
        with pytest.raises(LockTimeoutError, match="5 s"):
            await tasks[1]
        assert locks.locks.waiting == 1
        for name in "ac":
            locks.exits[name].set()
        await asyncio.gather(tasks[0], tasks[2])
        assert locks.order == ["a", "c"]
        locks.assert_empty()

    async def test_none_waits_for_ever(self, locks: Fixture) -> None:
        tasks = [locks.start("a"), locks.start("b")]
        await locks.clock.advance_and_settle(1e9)
        assert locks.clock.timers == 0
        assert not tasks[1].done()
        for name in "ab":
            locks.exits[name].set()
        await asyncio.gather(*tasks)

    async def test_a_timer_ends_with_its_wait(self, locks: Fixture) -> None:
        tasks = [locks.start("a"), locks.start("b", timeout=5)]
        await locks.clock.settle()
        assert locks.clock.timers == 1
        locks.exits["a"].set()
        await tasks[0]
        await locks.clock.settle()
        assert locks.clock.timers == 0
        locks.exits["b"].set()
        await tasks[1]

    async def test_a_timeout_just_before_the_hand_over_passes_the_waiter_over(
        self, locks: Fixture
    ) -> None:
        """Both in one turn of the loop: the waiter has not been told yet when it is popped."""
        first = Holder()
        await locks.locks.acquire("k", first)
        late, next_ = locks.start("late", timeout=5), locks.start("next")
        await locks.clock.settle()
        locks.clock.advance(5)
        locks.locks.release("k")
        with pytest.raises(LockTimeoutError):
            await late
        await locks.clock.settle()
        assert locks.order == ["next"]
        locks.exits["next"].set()
        await next_
        locks.assert_empty()

    async def test_a_timeout_just_after_the_hand_over_is_too_late(self, locks: Fixture) -> None:
        await locks.locks.acquire("k", Holder())
        waiter = locks.start("a", timeout=5)
        await locks.clock.settle()
        locks.locks.release("k")
        locks.clock.advance(5)
        await locks.clock.settle()
        assert locks.order == ["a"]
        locks.exits["a"].set()
        await waiter
        locks.assert_empty()

    async def test_a_timeout_of_the_only_waiter_leaves_the_key_to_be_freed(
        self, locks: Fixture
    ) -> None:
        await locks.locks.acquire("k", Holder())
        waiter = locks.start("a", timeout=5)
        await locks.clock.settle()
        locks.clock.advance(5)
        locks.locks.release("k")
        locks.assert_empty()
        assert locks.locks.holders == {}
        await locks.locks.acquire("k", Holder())
        with pytest.raises(LockTimeoutError):
            await waiter
        assert set(locks.locks.holders) == {"k"}


class TestCancelling:
    async def test_a_waiter_in_the_middle_gives_up_its_place(self, locks: Fixture) -> None:
        tasks = {name: locks.start(name) for name in "abcde"}
        await locks.clock.settle()
        tasks["b"].cancel()
        tasks["d"].cancel()
        await _cancelled(tasks["b"], tasks["d"])
        assert locks.locks.waiting == 2
        for name in "ace":
            locks.exits[name].set()
        await asyncio.gather(tasks["a"], tasks["c"], tasks["e"])
        assert locks.order == ["a", "c", "e"]
        locks.assert_empty()

    @pytest.mark.parametrize("cancel_first", [True, False])
    async def test_a_cancel_in_the_turn_of_the_hand_over_loses_no_lock(
        self, locks: Fixture, cancel_first: bool
    ) -> None:
        await locks.locks.acquire("k", Holder())
        unlucky, lucky = locks.start("unlucky"), locks.start("lucky")
        await locks.clock.settle()
        if cancel_first:
            unlucky.cancel()
        locks.locks.release("k")
        if not cancel_first:
            unlucky.cancel()
        await _cancelled(unlucky)
        await locks.clock.settle()
        assert locks.order == ["lucky"]
        locks.exits["lucky"].set()
        await lucky
        locks.assert_empty()
        assert locks.freed == []  # by none but who released it

    async def test_a_lock_that_nobody_takes_over_is_told(self, locks: Fixture) -> None:
        await locks.locks.acquire("k", Holder())
        unlucky = locks.start("unlucky")
        await locks.clock.settle()
        locks.locks.release("k")
        assert (locks.locks.holders.keys(), locks.freed) == ({"k"}, [])
        unlucky.cancel()
        await _cancelled(unlucky)
        assert locks.freed == ["k"]
        locks.assert_empty()

    async def test_hand_over_timeout_and_cancel_in_one_turn(self, locks: Fixture) -> None:
        """The cancel wins, and the lock goes on."""
        await locks.locks.acquire("k", Holder())
        unlucky = locks.start("unlucky", timeout=5)
        await locks.clock.settle()
        locks.locks.release("k")
        locks.clock.advance(5)
        unlucky.cancel()
        await _cancelled(unlucky)
        locks.assert_empty()

    async def test_a_timeout_and_a_cancel_in_one_turn(self, locks: Fixture) -> None:
        await locks.locks.acquire("k", Holder())
        unlucky = locks.start("unlucky", timeout=5)
        await locks.clock.settle()
        locks.clock.advance(5)
        unlucky.cancel()
        await _cancelled(unlucky)
        locks.locks.release("k")
        locks.assert_empty()

    async def test_a_coroutine_that_is_closed_gives_up_its_place(self, locks: Fixture) -> None:
        await locks.locks.acquire("k", Holder())
        waiting = locks.locks.acquire("k", Holder(), 5)
        waiting.send(None)
        assert locks.locks.waiting == 1
        waiting.close()
        assert (locks.locks.waiting, locks.locks.queues, locks.clock.timers) == (0, {}, 0)

    async def test_thousands_that_are_cancelled_before_the_release_do_not_recurse(
        self, locks: Fixture
    ) -> None:
        await locks.locks.acquire("k", Holder())
        tasks = [locks.start(str(number)) for number in range(5000)]
        await asyncio.sleep(0)
        assert locks.locks.waiting == 5000
        for task in tasks:
            task.cancel()
        locks.locks.release("k")
        locks.assert_empty()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {asyncio.CancelledError}

    async def test_thousands_that_are_cancelled_when_handed_the_lock_do_not_recurse(
        self, locks: Fixture
    ) -> None:
        """Each passes it to the next, which is cancelled in its turn."""
        tasks: list[asyncio.Task[None]] = []

        async def unlucky(number: int) -> None:
            try:
                await locks.locks.acquire("k", Holder())
            except asyncio.CancelledError:
                if number + 1 < len(tasks):
                    tasks[number + 1].cancel()
                raise
            locks.locks.release("k")

        await locks.locks.acquire("k", Holder())
        tasks += [asyncio.create_task(unlucky(number)) for number in range(5000)]
        await asyncio.sleep(0)
        locks.locks.release("k")
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        locks.assert_empty()

    async def test_an_asyncio_timeout_around_the_wait_gives_up_the_place(
        self, locks: Fixture
    ) -> None:
        await locks.locks.acquire("k", Holder())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await locks.locks.acquire("k", Holder())
        locks.locks.release("k")
        locks.assert_empty()


class TestFailing:
    async def test_every_wait_ends_with_an_error_and_holders_keep_their_locks(
        self, locks: Fixture
    ) -> None:
        tasks = {name: locks.start(name) for name in "abc"} | {
            name: locks.start(name, key="l") for name in "de"
        }
        await locks.clock.settle()
        locks.locks.fail_waiters(lambda: StateManagerClosedError("closed"))
        for name in "bce":
            with pytest.raises(StateManagerClosedError):
                await tasks[name]
        assert (set(locks.locks.holders), locks.locks.queues) == ({"k", "l"}, {})
        assert locks.locks.waiting == 0
        for name in "ad":
            locks.exits[name].set()
        await asyncio.gather(tasks["a"], tasks["d"])
        locks.assert_empty()

    async def test_each_wait_gets_an_error_of_its_own(self, locks: Fixture) -> None:
        """One exception raised in two tasks would mix up their tracebacks."""
        await locks.locks.acquire("k", Holder())
        waits = [asyncio.create_task(locks.locks.acquire("k", Holder())) for _ in range(2)]
        await asyncio.sleep(0)
        locks.locks.fail_waiters(lambda: StateManagerClosedError("closed"))
        first, second = await asyncio.gather(*waits, return_exceptions=True)
        assert isinstance(first, StateManagerClosedError)
        assert first is not second

    async def test_a_release_right_after_hands_nothing_to_who_failed(self, locks: Fixture) -> None:
        await locks.locks.acquire("k", Holder())
        wait = asyncio.create_task(locks.locks.acquire("k", Holder()))
        await asyncio.sleep(0)
        locks.locks.fail_waiters(lambda: StateManagerClosedError("closed"))
        locks.locks.release("k")
        locks.assert_empty()
        with pytest.raises(StateManagerClosedError):
            await wait
        locks.assert_empty()

    async def test_who_was_cancelled_or_handed_the_lock_already_is_left_alone(
        self, locks: Fixture
    ) -> None:
        await locks.locks.acquire("k", Holder())
        handed, cancelled = locks.start("handed"), locks.start("cancelled")
        await locks.clock.settle()
        cancelled.cancel()
        locks.locks.release("k")
        locks.locks.fail_waiters(lambda: StateManagerClosedError("closed"))
        await _cancelled(cancelled)
        assert locks.order == ["handed"]
        locks.exits["handed"].set()
        await handed
        locks.assert_empty()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.sampled_from("kl"), st.sampled_from([None, 0, 1.0, 2.0])),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("exit"), st.integers(0, 9)),
        st.tuples(st.just("advance"), st.sampled_from([0.5, 1.0])),
        st.tuples(st.just("turn"), st.integers(1, 3)),
    ),
    max_size=40,
)


async def _interleave(steps: list[tuple[Any, ...]]) -> None:
    locks = Fixture()
    inside = {"k": 0, "l": 0}
    asked: dict[str, list[int]] = {"k": [], "l": []}
    served: dict[str, list[int]] = {"k": [], "l": []}
    tasks: list[asyncio.Task[None]] = []
    exits: list[asyncio.Event] = []

    async def body(number: int, key: str, timeout: float | None) -> None:
        asked[key].append(number)
        with contextlib.suppress(LockTimeoutError):
            await locks.locks.acquire(key, Holder(asyncio.current_task()), timeout)
            inside[key] += 1
            served[key].append(number)
            try:
                assert inside[key] == 1
                await exits[number].wait()
                assert inside[key] == 1
            finally:
                inside[key] -= 1
                locks.locks.release(key)

    for action, *arguments in steps:
        if action == "start":
            exits.append(asyncio.Event())
            tasks.append(asyncio.create_task(body(len(tasks), *arguments)))
        elif action == "turn":
            for _ in range(arguments[0]):
                await asyncio.sleep(0)
        elif action == "advance":
            locks.clock.advance(arguments[0])
        elif arguments[0] < len(tasks):
            number = arguments[0]
            tasks[number].cancel() if action == "cancel" else exits[number].set()
        assert set(locks.locks.queues) <= set(locks.locks.holders)
        assert locks.locks.waiting == sum(map(len, locks.locks.queues.values()))
    for event in exits:
        event.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
    for key in "kl":
        assert served[key] == [number for number in asked[key] if number in served[key]]
    locks.assert_empty()


class TestInterleaving:
    @settings(deadline=None, max_examples=200)
    @given(steps=STEPS)
    def test_at_most_one_holder_in_order_and_nothing_left(
        self, steps: list[tuple[Any, ...]]
    ) -> None:
        """Whatever starts, ends, is cancelled or times out, in whatever turn of the loop."""
        asyncio.run(_interleave(steps))
