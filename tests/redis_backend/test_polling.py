"""When the loop looks for a reply without sleeping, and when it does not."""

import asyncio
import selectors
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from statemgr import StateManagerRedis, StateToken
from statemgr.backends.redis import polling
from statemgr.backends.redis.polling import BusyPoll

if TYPE_CHECKING:
    from statemgr.testing.servers import Server

TURN = 10e-6  # seconds that an empty turn of the loop takes


@dataclass
class Count:
    n: int = 0


class Turns(asyncio.AbstractEventLoop):
    """A loop whose turns are made by hand, with a clock of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ready: list[Callable[..., object]] = []

    def call_soon(self, callback: Callable[..., object], *args: Any, **_: Any) -> Any:
        assert not args
        self.ready.append(callback)

    def turn(self, seconds: float = TURN) -> bool:
        """Make a turn; return whether there was anything to do, else the loop would sleep."""
        ready, self.ready = self.ready, []
        self.now += seconds
        for callback in ready:
            callback()
        return bool(ready)

    def empty_turns(self) -> int:
        """Make turns until the loop would sleep."""
        turns = 0
        while self.turn():
            turns += 1
        return turns


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Turns:
    turns = Turns()
    monkeypatch.setattr(polling, "monotonic", lambda: turns.now)
    return turns


def calls_without_a_reply(poll: BusyPoll, loop: Turns, calls: int) -> int:
    """Make calls to a server that is too far away; return how many of them were looked for."""
    looked_for = 0
    for _ in range(calls):
        poll.begin()
        looked_for += loop.empty_turns() > 0
        poll.end()
    return looked_for


def test_the_loop_stays_awake_until_the_reply_has_come(loop: Turns) -> None:
    poll = BusyPoll(loop)
    for _ in range(2000):
        poll.begin()
        for _ in range(8):
            assert loop.turn()
        poll.end()
    loop.turn()
    assert not loop.turn()


def test_the_next_call_may_be_made_as_soon_as_the_reply_has_come(loop: Turns) -> None:
    poll = BusyPoll(loop)
    poll.begin()
    for _ in range(100):
        loop.turn()
        poll.end()
        poll.begin()
        assert len(loop.ready) == 1
    assert loop.empty_turns() > 1


def test_a_call_is_looked_for_for_a_moment_only(loop: Turns) -> None:
    poll = BusyPoll(loop)
    poll.begin()
    assert 10 < loop.empty_turns() < 30


def test_replies_that_take_long_are_slept_for(loop: Turns) -> None:
    poll = BusyPoll(loop)
    assert calls_without_a_reply(poll, loop, 10_000) <= 15


def test_a_loop_that_has_other_things_to_do_is_left_alone(loop: Turns) -> None:
    poll = BusyPoll(loop)
    turns = 0
    for _ in range(10_000):
        poll.begin()
        while loop.turn(seconds=polling._GAP * 1.5):
            turns += 1
        poll.end()
    assert turns <= 15


def test_a_miss_now_and_then_does_not_matter(loop: Turns) -> None:
    poll = BusyPoll(loop)
    for call in range(5000):
        poll.begin()
        assert loop.turn()
        if call % 100 == 99:
            loop.empty_turns()
        poll.end()


def test_one_miss_in_ten_is_too_many(loop: Turns) -> None:
    poll = BusyPoll(loop)
    looked_for = 0
    for call in range(10_000):
        poll.begin()
        looked_for += loop.turn()
        if call % 10 == 9:
            loop.empty_turns()
        poll.end()
    assert looked_for < 1000


def test_a_long_time_of_hits_is_no_reason_to_go_on(loop: Turns) -> None:
    poll = BusyPoll(loop)
    for _ in range(100_000):
        poll.begin()
        loop.turn()
        poll.end()
    assert calls_without_a_reply(poll, loop, 1000) <= 5


def test_it_is_tried_again_later(loop: Turns) -> None:
    poll = BusyPoll(loop)
    calls_without_a_reply(poll, loop, 100_000)
    looked_for = 0
    for call in range(1, 5000):
        poll.begin()
        looked_for += loop.turn()
        if call % 100 == 0:
            loop.empty_turns()
        poll.end()
    assert looked_for >= 4000


def test_the_loop_sleeps_where_it_cannot_let_others_run(
    loop: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "CAN_YIELD", False)
    poll = BusyPoll(loop)
    poll.begin()
    assert not loop.turn()
    poll.end()


class Selector(selectors.DefaultSelector):
    """What an event loop sleeps in; counts how often it is asked not to."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeps: list[bool] = []

    def select(
        self, timeout: float | None = None
    ) -> "list[tuple[selectors.SelectorKey, selectors._EventMask]]":
        self.sleeps.append(timeout is None or timeout > 0)
        return super().select(timeout)


def test_a_loop_does_not_sleep_through_a_call_to_a_server(
    redis_server: "Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    selector = Selector()
    token = StateToken("a", Count)

    async def main() -> None:
        async with StateManagerRedis(redis_server.url, key_prefix="polling") as manager:
            await manager.get_state(token)  # connects
            await asyncio.sleep(0.01)  # nothing of it is left to do
            monkeypatch.setattr(polling, "monotonic", lambda: 0.0)  # as if it took no time
            selector.sleeps.clear()
            await manager.get_state(token)
            assert any(selector.sleeps) is not polling.CAN_YIELD
            selector.sleeps.clear()
            await asyncio.sleep(0.01)
            assert any(selector.sleeps)  # the reply is here

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(main())
