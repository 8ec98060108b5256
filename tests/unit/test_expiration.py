"""Tokens expire at their deadline; the purge sleeps, gives way, and survives its errors."""

import asyncio
import contextvars
import logging
from collections.abc import Iterator, Sequence

import pytest

from statemgr import StateManagerExpiration, expiration
from statemgr.testing.clock import ManualClock

LIFE = 60.0


class Tokens(StateManagerExpiration):
    """A backend that is nothing but tokens; those in `held` are locked by their own name."""

    def __init__(self) -> None:
        self.token_expiration = LIFE
        self._clock = self.clock = ManualClock()
        self._init_expiration(self._clock.monotonic)
        self.held: set[str] = set()
        self.purges: list[list[str]] = []
        self.looked_at: list[str] = []
        self.errors: list[Exception] = []

    def touch(self, *keys: str) -> None:
        for key in keys:
            self._touch_token(key, self.clock.monotonic())

    def release(self, key: str) -> None:
        self.held.discard(key)
        self._lock_released(key)

    @property
    def tracked(self) -> list[str]:
        return list(self._token_expires_at)

    @property
    def running(self) -> bool:
        return self._expiration_task is not None

    def _lock_held_of(self, key: str) -> str | None:
        self.looked_at.append(key)
        return key if key in self.held else None

    async def _drop_tokens(self, keys: Sequence[str]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.purges.append(list(keys))
        for key in keys:
            del self._token_expires_at[key]


@pytest.fixture
async def tokens() -> "Tokens":
    """Return a tracker of no tokens; its task is stopped after the test."""
    made = Tokens()
    yield made
    await made._stop_expiration()


class TestTouching:
    async def test_a_touched_token_moves_to_the_end(self, tokens: Tokens) -> None:
        tokens.touch("a", "b", "c")
        tokens.clock.advance(1)
        tokens.touch("a")
        assert tokens.tracked == ["b", "c", "a"]

    async def test_a_touch_looks_at_no_other_token(self, tokens: Tokens) -> None:
        """So it takes the same time among a million."""
        tokens.touch(*map(str, range(1000)))
        await tokens.clock.settle()
        tokens.looked_at.clear()
        tokens.touch("0", "new")
        await tokens.clock.settle()
        assert tokens.looked_at == []

    async def test_a_token_has_its_full_time_from_the_touch(self, tokens: Tokens) -> None:
        tokens.touch("a")
        await tokens.clock.advance_and_settle(LIFE - 1)
        tokens.touch("a")
        await tokens.clock.advance_and_settle(LIFE - 1)
        assert tokens.tracked == ["a"]
        await tokens.clock.advance_and_settle(1)
        assert tokens.tracked == []


class TestPurging:
    async def test_a_token_is_dropped_at_its_deadline_and_not_before(self, tokens: Tokens) -> None:
        tokens.touch("a")
        await tokens.clock.settle()
        tokens.clock.advance(LIFE - 0.001)
        await tokens.clock.settle()
        assert tokens.purges == []
        tokens.clock.advance(0.001)
        await tokens.clock.settle()
        assert tokens.purges == [["a"]]

    async def test_the_oldest_go_first_and_the_rest_stays(self, tokens: Tokens) -> None:
        tokens.touch("a", "b")
        tokens.clock.advance(1)
        tokens.touch("c")
        await tokens.clock.settle()
        await tokens.clock.advance_and_settle(LIFE - 1)
        assert (tokens.purges, tokens.tracked) == ([["a", "b"]], ["c"])
        await tokens.clock.advance_and_settle(1)
        assert tokens.purges == [["a", "b"], ["c"]]

    async def test_a_purge_looks_at_the_front_only(self, tokens: Tokens) -> None:
        tokens.touch("a")
        tokens.clock.advance(1)
        tokens.touch(*map(str, range(1000)))
        await tokens.clock.settle()
        tokens.looked_at.clear()
        await tokens.clock.advance_and_settle(LIFE - 1)
        assert tokens.purges == [["a"]]
        assert set(tokens.looked_at) == {"a", "0"}

    async def test_the_task_sleeps_till_the_next_deadline(self, tokens: Tokens) -> None:
        """One timer for all tokens, and no look at them until it is due."""
        tokens.touch("a", "b")
        await tokens.clock.settle()
        tokens.looked_at.clear()
        assert tokens.clock.timers == 1
        await tokens.clock.advance_and_settle(LIFE / 2)
        assert tokens.looked_at == []

    async def test_deadlines_a_microsecond_apart_are_met_together(self, tokens: Tokens) -> None:
        for number in range(100):
            tokens.touch(str(number))
            tokens.clock.advance(1e-6)
        await tokens.clock.settle()
        await tokens.clock.advance_and_settle(LIFE + 1)
        assert len(tokens.purges) <= 4
        assert tokens.tracked == []

    async def test_the_task_ends_when_nothing_is_tracked_and_starts_at_the_next_touch(
        self, tokens: Tokens
    ) -> None:
        assert not tokens.running
        for key in "ab":
            tokens.touch(key)
            assert tokens.running
            await tokens.clock.advance_and_settle(LIFE)
            assert not tokens.running
            assert tokens.clock.timers == 0
        assert tokens.purges == [["a"], ["b"]]

    async def test_the_task_does_not_inherit_the_callers_context(self, tokens: Tokens) -> None:
        """It would keep alive what the first request had set."""
        variable = contextvars.ContextVar("variable", default="unset")
        variable.set("of the first caller")
        seen: list[str] = []
        tokens._now = lambda: seen.append(variable.get()) or tokens.clock.monotonic()
        tokens.touch("a")
        await tokens.clock.settle()
        assert set(seen) == {"unset"}

    async def test_a_task_cancelled_from_outside_starts_again_at_the_next_touch(
        self, tokens: Tokens
    ) -> None:
        tokens.touch("a")
        await tokens.clock.settle()
        tokens._expiration_task.cancel()
        await tokens.clock.settle()
        tokens.touch("b")
        await tokens.clock.advance_and_settle(LIFE)
        assert tokens.tracked == []

    async def test_a_task_cancelled_before_its_first_turn_starts_again_too(
        self, tokens: Tokens
    ) -> None:
        """A coroutine that never began runs no `finally`."""
        tokens.touch("a")
        tokens._expiration_task.cancel()
        await tokens.clock.settle()
        tokens.touch("b")
        await tokens.clock.settle()
        await tokens.clock.advance_and_settle(LIFE)
        assert tokens.tracked == []

    async def test_stopping_cancels_the_task_and_its_timer(self, tokens: Tokens) -> None:
        tokens.touch("a")
        await tokens.clock.settle()
        task = tokens._expiration_task
        await tokens._stop_expiration()
        assert task.cancelled()
        assert not tokens.running
        assert tokens.clock.timers == 0

    async def test_stopping_without_a_task_does_nothing(self, tokens: Tokens) -> None:
        await tokens._stop_expiration()
        assert not tokens.running


class TestTokensOfOthers:
    """Tokens whose deadline is not a full time from now, as a scan of a store finds them."""

    async def test_each_goes_at_its_own_deadline(self, tokens: Tokens) -> None:
        """In whatever order they were found, and between those that were touched."""
        now = tokens.clock.monotonic()
        tokens.touch("touched")
        for key, seconds in (("late", 50.0), ("soon", 10.0), ("middle", 30.0)):
            tokens._track_token(key, now + seconds)
        for seconds in (11, 20, 20, 10):
            await tokens.clock.advance_and_settle(seconds)
        assert tokens.purges == [["soon"], ["middle"], ["late"], ["touched"]]

    async def test_a_sleeping_task_wakes_for_an_earlier_one(self, tokens: Tokens) -> None:
        tokens.touch("touched")
        await tokens.clock.settle()
        tokens._track_token("soon", tokens.clock.monotonic() + 1.0)
        await tokens.clock.advance_and_settle(1.1)
        assert tokens.purges == [["soon"]]

    async def test_one_that_is_tracked_keeps_its_deadline(self, tokens: Tokens) -> None:
        tokens.touch("a")
        tokens._track_token("a", tokens.clock.monotonic() + 1.0)
        await tokens.clock.advance_and_settle(LIFE - 1)
        assert tokens.purges == []

    async def test_one_that_was_touched_since_has_its_full_time(self, tokens: Tokens) -> None:
        tokens._track_token("a", tokens.clock.monotonic() + 1.0)
        tokens.touch("a")
        await tokens.clock.advance_and_settle(LIFE - 1)
        assert tokens.purges == []


class TestLockedTokens:
    async def test_a_locked_token_is_passed_over(self, tokens: Tokens) -> None:
        tokens.held.add("a")
        tokens.touch("a", "b")
        await tokens.clock.advance_and_settle(LIFE)
        assert (tokens.purges, tokens.tracked) == ([["b"]], ["a"])

    async def test_a_locked_token_is_not_counted_for_the_sleep(self, tokens: Tokens) -> None:
        """The task sleeps till the deadline of the first that nobody holds."""
        tokens.held.add("a")
        tokens.touch("a")
        await tokens.clock.settle()
        tokens.clock.advance(LIFE / 2)
        tokens.touch("b")
        await tokens.clock.settle()
        await tokens.clock.advance_and_settle(LIFE / 2)
        tokens.looked_at.clear()
        await tokens.clock.advance_and_settle(LIFE / 2 - 0.001)
        assert tokens.looked_at == []
        await tokens.clock.advance_and_settle(0.001)
        assert tokens.purges == [["b"]]

    async def test_the_task_ends_while_every_token_is_locked(self, tokens: Tokens) -> None:
        tokens.held |= {"a", "b"}
        tokens.touch("a", "b")
        await tokens.clock.settle()
        assert not tokens.running
        assert tokens.clock.timers == 0

    async def test_an_expired_token_goes_when_its_lock_is_released(self, tokens: Tokens) -> None:
        """It was passed over, and is looked at again without waiting for another deadline."""
        tokens.held.add("a")
        tokens.touch("a")
        tokens.clock.advance(1)
        tokens.touch("b")
        await tokens.clock.advance_and_settle(LIFE - 1)
        assert tokens.running
        tokens.release("a")
        await tokens.clock.settle()
        assert tokens.purges == [["a"]]
        assert tokens.tracked == ["b"]

    async def test_a_release_starts_a_task_that_had_ended(self, tokens: Tokens) -> None:
        tokens.held.add("a")
        tokens.touch("a")
        await tokens.clock.advance_and_settle(2 * LIFE)
        assert not tokens.running
        tokens.release("a")
        await tokens.clock.settle()
        assert tokens.purges == [["a"]]

    async def test_a_token_released_before_its_deadline_goes_at_it(self, tokens: Tokens) -> None:
        tokens.held.add("a")
        tokens.touch("a")
        await tokens.clock.advance_and_settle(LIFE / 2)
        tokens.release("a")
        await tokens.clock.advance_and_settle(LIFE / 2)
        assert tokens.purges == [["a"]]

    @pytest.mark.parametrize("order", ["abc", "cba", "bca"])
    async def test_released_tokens_go_each_at_its_own_deadline(
        self, tokens: Tokens, order: str
    ) -> None:
        """In whatever order their locks were released, while others are tracked or none."""
        tokens.held |= set("abc")
        for key in "abc":
            tokens.touch(key)
            await tokens.clock.advance_and_settle(1)
        tokens.touch("free")
        await tokens.clock.settle()
        for key in order:
            tokens.release(key)
            await tokens.clock.settle()
        await tokens.clock.advance_and_settle(LIFE - 3)
        for key in "abc":
            assert tokens.purges[-1:] == [[key]]
            await tokens.clock.advance_and_settle(1)
        assert tokens.purges[-1:] == [["free"]]

    async def test_a_release_that_no_purge_waited_for_wakes_nobody(self, tokens: Tokens) -> None:
        tokens.touch("a", "b")
        await tokens.clock.settle()
        tokens.looked_at.clear()
        tokens.release("a")
        await tokens.clock.settle()
        assert tokens.looked_at == []

    async def test_a_release_in_the_middle_of_a_purge_is_not_missed(self, tokens: Tokens) -> None:
        tokens.held.add("a")
        tokens.touch("a", "b")
        await tokens.clock.settle()
        drop = tokens._drop_tokens

        async def release_then_drop(keys: Sequence[str]) -> None:
            await asyncio.sleep(0)
            tokens.release("a")
            await drop(keys)

        tokens._drop_tokens = release_then_drop  # type: ignore[method-assign]
        await tokens.clock.advance_and_settle(LIFE)
        assert tokens.tracked == []


class TestErrors:
    async def test_an_error_is_logged_and_the_purge_tried_again_a_second_later(
        self, tokens: Tokens, caplog: pytest.LogCaptureFixture
    ) -> None:
        tokens.errors += [OSError("no space"), OSError("no space")]
        tokens.touch("a")
        await tokens.clock.settle()
        await tokens.clock.advance_and_settle(LIFE)
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert "1 s" in caplog.text
        assert "no space" in caplog.text
        await tokens.clock.advance_and_settle(0.9)
        assert len(caplog.records) == 1
        await tokens.clock.advance_and_settle(0.1)
        assert len(caplog.records) == 2
        assert tokens.tracked == ["a"]
        await tokens.clock.advance_and_settle(1)
        assert tokens.purges == [["a"]]
        assert len(caplog.records) == 2

    async def test_stopping_in_the_second_after_an_error(
        self, tokens: Tokens, caplog: pytest.LogCaptureFixture
    ) -> None:
        tokens.errors.append(OSError())
        tokens.touch("a")
        await tokens.clock.settle()
        await tokens.clock.advance_and_settle(LIFE)
        await tokens._stop_expiration()
        assert (tokens.running, tokens.clock.timers) == (False, 0)


class TestGivingWay:
    @pytest.fixture(autouse=True)
    def slice_used_up_at_each_look(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let each look at the time find that a slice has gone by."""

        def times() -> Iterator[float]:
            now = 0.0
            while True:
                yield now
                now += 1.0

        monkeypatch.setattr(expiration, "perf_counter", times().__next__)

    async def _turns_of_a_purge(self, tokens: Tokens) -> int:
        tokens.clock.advance(LIFE)
        turns = 0
        while tokens.running:
            await asyncio.sleep(0)
            turns += 1
        return turns

    async def test_a_long_purge_gives_the_loop_back(self, tokens: Tokens) -> None:
        """After each batch here, since each is found to have taken a slice."""
        tokens.touch(*map(str, range(6400)))
        await tokens.clock.settle()
        assert await self._turns_of_a_purge(tokens) >= 100
        assert tokens.tracked == []

    async def test_tokens_passed_over_are_not_looked_at_again_for_each_batch(
        self, tokens: Tokens
    ) -> None:
        """Else a purge among many held tokens takes their number times its own."""
        held = [f"h{number}" for number in range(1000)]
        tokens.held.update(held)
        tokens.touch(*held)
        tokens.touch(*map(str, range(6400)))
        await tokens.clock.settle()
        tokens.looked_at.clear()
        await self._turns_of_a_purge(tokens)
        assert tokens.tracked == held
        assert len(tokens.looked_at) < 4 * (6400 + len(held))

    async def test_a_look_over_many_locked_tokens_gives_the_loop_back_too(
        self, tokens: Tokens
    ) -> None:
        held = [f"h{number}" for number in range(6400)]
        tokens.held.update(held)
        tokens.touch(*held, "free")
        await tokens.clock.settle()
        assert await self._turns_of_a_purge(tokens) >= 20
        assert tokens.tracked == held
