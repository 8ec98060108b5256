"""A directory of one manager: states in memory, and what is written behind."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from statemgr import StateManagerDisk, StateToken
from statemgr.backends.disk.files import ident_name, state_name
from statemgr.backends.disk.manager import PURGE_SLICE
from statemgr.backends.disk.trips import Job, Trips
from statemgr.errors import (
    BackendUnavailableError,
    CommitUncertainError,
    StateDirectoryInUseError,
    StateManagerClosedError,
)
from statemgr.testing import ManualClock
from tests.disk.faults import stored, unsynced
from tests.disk.test_files import begin_commit

LIFE = 60.0
DEBOUNCE = 2.0


@dataclass
class Cart:
    number: int = 0


@dataclass
class Profile:
    number: int = 0


CART, PROFILE = StateToken("somebody", Cart), StateToken("somebody", Profile)
NOBODY = StateToken("nobody", Cart)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@asynccontextmanager
async def opened(
    directory: Path, clock: ManualClock, debounce: float = 0.0, **options: Any
) -> AsyncIterator[StateManagerDisk]:
    """A manager whose first scan of the directory is over."""
    m = StateManagerDisk(
        directory, exclusive=True, debounce=debounce, clock=clock, token_expiration=LIFE, **options
    )
    async with m:
        for _ in range(5):
            await m.has_state(NOBODY)
        yield m


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the jobs that go to the thread."""
    names: list[str] = []
    run = Trips.run

    async def noted(self: Trips, job: Job[Any]) -> Any:
        names.append(job.__name__)
        return await run(self, job)

    monkeypatch.setattr(Trips, "run", noted)
    return names


@asynccontextmanager
async def held_up(m: StateManagerDisk) -> AsyncIterator[None]:
    """Keep a trip under way for as long as the block lasts."""
    entered, leave = threading.Event(), threading.Event()

    def job() -> Job[None]:
        entered.set()
        leave.wait(20)
        yield from ()

    running = asyncio.create_task(cast("Any", m)._trip(job()))
    await asyncio.to_thread(entered.wait, 20)
    try:
        yield
    finally:
        leave.set()
        await running


async def until_written(m: StateManagerDisk, clock: ManualClock) -> None:
    """Let the writer's time pass until it has nothing to do."""
    async with asyncio.timeout(20):
        while cast("Any", m)._writing is not None:
            clock.advance(0.5)
            await asyncio.sleep(0.001)


def mtime(directory: Path, token: StateToken[Any]) -> float:
    return (directory / "states" / state_name(token.cache_key)).stat().st_mtime


async def change(m: StateManagerDisk, number: int, token: StateToken[Any] = CART) -> None:
    async with m.modify_state(token) as state:
        state.number = number


def refuse(*_: object) -> None:
    raise OSError(errno.EIO, "input/output error")


# In memory


async def test_what_was_read_once_is_not_read_again(
    tmp_path: Path, clock: ManualClock, trips: list[str]
):
    """Nor what was written: neither goes to the thread, nor does a change begin there."""
    async with opened(tmp_path, clock) as m:
        await m.set_state(CART, Cart(1))
    async with opened(tmp_path, clock) as m:
        trips.clear()
        assert await m.get_state(CART) == Cart(1)
        assert len(trips) == 1
        trips.clear()
        for _ in range(3):
            assert await m.get_states(CART, CART) == (Cart(1), Cart(1))
            assert await m.has_state(CART) is True
            assert await m.touch(CART) is True
        assert not trips
        await change(m, 2)
        assert len(trips) == 1, "the write alone"
        trips.clear()
        assert await m.get_state(CART) == Cart(2)
        assert not trips


async def test_a_reader_gets_a_copy(tmp_path: Path, clock: ManualClock):
    """Changing it changes nothing, neither in memory nor on disk."""
    async with opened(tmp_path, clock) as m:
        await change(m, 1)
        (await m.get_state(CART)).number = 666
        assert await m.get_state(CART) == Cart(1)
        await change(m, 2)
    assert stored(tmp_path, CART) == Cart(2)


async def test_a_second_manager_is_refused(tmp_path: Path, clock: ManualClock):
    """Of either kind, until the first one is closed."""
    async with opened(tmp_path, clock):
        for exclusive in (True, False):
            with pytest.raises(StateDirectoryInUseError):
                StateManagerDisk(tmp_path, exclusive=exclusive)
    async with opened(tmp_path, clock) as m:
        assert await m.get_state(CART) == Cart()


# Written behind


async def test_bytes_are_written_as_they_were_committed(tmp_path: Path, clock: ManualClock):
    """Not as a body is changing them when the writer comes, and not what a body gave up."""
    async with opened(tmp_path, clock, DEBOUNCE) as m:
        await change(m, 1)
        async with m.modify_state(CART) as cart:
            cart.number = 666
            await until_written(m, clock)
            assert stored(tmp_path, CART) == Cart(1)
            cart.number = 2
        assert stored(tmp_path, CART) == Cart(1), "the debounce runs"
        with pytest.raises(LookupError):
            async with m.modify_state(CART) as cart:
                cart.number = 667
                raise LookupError
        await until_written(m, clock)
        assert stored(tmp_path, CART) == Cart(2)


async def test_many_changes_are_one_write(tmp_path: Path, clock: ManualClock, trips: list[str]):
    """Those of one debounce."""
    async with opened(tmp_path, clock, DEBOUNCE) as m:
        trips.clear()
        for number in range(1, 101):
            await change(m, number)
        assert len(trips) <= 1, "the first read at most"
        assert stored(tmp_path, CART) is None
        trips.clear()
        await until_written(m, clock)
        assert len(trips) == 1
        assert stored(tmp_path, CART) == Cart(100)


async def test_a_change_is_written_within_the_debounce(tmp_path: Path, clock: ManualClock):
    """Changes that follow do not put it off."""
    async with opened(tmp_path, clock, DEBOUNCE) as m:
        for number in range(1, 6):
            await change(m, number)
            await clock.advance_and_settle(DEBOUNCE / 4)
        await m.has_state(NOBODY)
        found = stored(tmp_path, CART)
        assert found is not None
        assert found.number >= 4
        await until_written(m, clock)
        assert stored(tmp_path, CART) == Cart(5)


@pytest.mark.parametrize("how", ["modify", "set"])
async def test_changes_in_a_row_do_not_keep_the_writer_from_its_turn(
    how: str, tmp_path: Path, clock: ManualClock
):
    """No change of a loop suspends, but for one that comes when others should be written.

    They are of many idents, which are several trips: it waits for all of these.
    """
    tokens = [StateToken(f"user {number}", Cart) for number in range(200)]
    tokens = tokens if how == "set" else [CART]
    async with opened(tmp_path, clock, DEBOUNCE) as m:
        for token in tokens:
            await m.get_state(token)  # known not to be there
        for number in range(1, 10):
            for token in tokens:
                if how == "set":
                    await m.set_state(token, Cart(number))
                else:
                    await change(m, number)
            clock.advance(DEBOUNCE / 4)
        for token in tokens:
            found = stored(tmp_path, token)
            assert found is not None
            assert found.number >= 9 - 4
    assert [stored(tmp_path, token) for token in tokens] == [Cart(9)] * len(tokens)


async def test_the_writer_gets_its_turn_between_two_trips(tmp_path: Path, clock: ManualClock):
    """A loop of changes that begins when the writer has begun does not hold up the rest."""
    tokens = [StateToken(f"user {number}", Cart) for number in range(200)]
    async with opened(tmp_path, clock, DEBOUNCE) as m:
        await change(m, 1)
        await until_written(m, clock)
        for token in tokens:
            await m.set_state(token, Cart(1))
        await clock.settle()
        async with held_up(m):
            clock.advance(DEBOUNCE)
            await clock.settle()  # the writer has asked for its first trip
        for number in range(2, 5):
            await change(m, number)
            clock.advance(DEBOUNCE / 4)
        assert [stored(tmp_path, token) for token in tokens] == [Cart(1)] * len(tokens)


@pytest.mark.parametrize("how", ["fails", "is cancelled", "is closed"])
async def test_a_change_that_waits_for_the_writer(
    how: str, tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    """It ends as any other that is written at once: never in a hang, and not with a lock."""
    async with asyncio.timeout(20), opened(tmp_path, clock, DEBOUNCE) as m:
        await change(m, 1)
        await until_written(m, clock)
        if how == "is closed":
            closing = asyncio.create_task(m.close())
        await change(m, 2)
        clock.advance(DEBOUNCE + 1)
        if how == "fails":
            monkeypatch.setattr(os, "replace", refuse)
            with pytest.raises(BackendUnavailableError):
                await change(m, 3)
            assert await m.get_state(CART) == Cart(2)
            monkeypatch.undo()
            await change(m, 4)
        elif how == "is cancelled":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):  # which cancels in the loop's next turn
                    await change(m, 3)
            assert await m.get_state(CART) == Cart(2)
            await change(m, 4)
        else:
            await change(m, 4)
            await closing
    assert stored(tmp_path, CART) == Cart(4)


async def test_the_writer_goes_on_after_what_it_cannot_read(
    tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
):
    """The change waits while a damaged commit stands before it, and is written after that."""
    async with opened(tmp_path, clock, DEBOUNCE) as m:
        await change(m, 1)
        damaged = tmp_path / "states" / f"{ident_name(CART.lock_key)}.commit"
        damaged.write_bytes(b"damaged")
        async with asyncio.timeout(20):
            while not caplog.records:
                clock.advance(0.5)
                await asyncio.sleep(0.001)
        damaged.unlink()
        await until_written(m, clock)
        assert (tmp_path / "states" / state_name(CART.cache_key)).exists()


async def test_closing_writes_what_waits(tmp_path: Path, clock: ManualClock):
    async with opened(tmp_path, clock, DEBOUNCE) as m:
        await change(m, 1)
        async with m.modify_states(CART, PROFILE) as (cart, profile):
            cart.number = profile.number = 2
        assert stored(tmp_path, CART) is None
    assert stored(tmp_path, CART) == Cart(2)
    assert stored(tmp_path, PROFILE) == Profile(2)


async def test_a_body_that_closing_overtakes_saves_nothing(tmp_path: Path, clock: ManualClock):
    async with opened(tmp_path, clock, DEBOUNCE) as m:
        await change(m, 1)
        with pytest.raises(StateManagerClosedError):
            async with m.modify_state(CART) as cart:
                cart.number = 2
                await m.close()
        assert stored(tmp_path, CART) == Cart(1)


@pytest.mark.parametrize("fsync", [False, True])
async def test_an_older_write_never_overtakes_a_newer_one(
    fsync: bool, tmp_path: Path, clock: ManualClock
):
    """The writer's trip is held up while later changes of the same state are asked for."""
    async with opened(tmp_path, clock, DEBOUNCE, fsync=fsync) as m:
        last = 0
        for round_ in range(1, 6):
            await change(m, last + 1)
            async with held_up(m):
                clock.advance(DEBOUNCE)
                await clock.settle()  # the writer has asked
                await change(m, last + 2)
                cast("Any", m)._failing = True  # what is changed now is written at once
                tasks = [
                    asyncio.create_task(change(m, last + 3 + number)) for number in range(round_)
                ]
                await clock.settle()
                clock.advance(DEBOUNCE)
                await clock.settle()
            await asyncio.gather(*tasks)
            last += 2 + round_
            assert await m.get_state(CART) == Cart(last)
            await until_written(m, clock)
            assert stored(tmp_path, CART) == Cart(last)
    assert stored(tmp_path, CART) == Cart(last)


@pytest.mark.parametrize("fsync", [False, True])
@pytest.mark.parametrize("debounce", [0.0, DEBOUNCE])
async def test_many_tasks_change_and_delete_while_the_writer_runs(
    debounce: float, fsync: bool, tmp_path: Path, clock: ManualClock
):
    """What memory says last is what the next program finds, for every state."""
    tokens = [StateToken(f"user {n % 7}", cls) for n in range(14) for cls in (Cart, Profile)]

    async def work(worker: int) -> None:
        for step in range(12):
            token = tokens[(worker * 5 + step * 3) % len(tokens)]
            kind = (worker + step) % 4
            if kind == 0:
                await m.delete_state(token)
            elif kind == 1:
                await m.set_state(token, token.cls(worker * 100 + step))
            else:
                async with m.modify_state(token) as state:
                    state.number += 1
                    await asyncio.sleep(0)

    async def tick() -> None:
        while True:
            clock.advance(0.3)
            await asyncio.sleep(0.001)

    async with opened(tmp_path, clock, debounce, fsync=fsync) as m:
        ticking = asyncio.create_task(tick())
        async with asyncio.timeout(20):
            await asyncio.gather(*map(work, range(12)))
        ticking.cancel()
        wanted = {token: await m.get_state(token) for token in tokens}
        there = {token: await m.has_state(token) for token in tokens}
    for token in tokens:
        assert (stored(tmp_path, token) is not None) == there[token]
        assert stored(tmp_path, token) == (wanted[token] if there[token] else None)


@pytest.mark.parametrize("writer_first", [False, True])
@pytest.mark.parametrize("fsync", [False, True])
async def test_a_deleted_state_does_not_come_back(
    fsync: bool, writer_first: bool, tmp_path: Path, clock: ManualClock
):
    """The writer is about to write it when it is deleted, or it comes just after."""
    async with opened(tmp_path, clock, DEBOUNCE, fsync=fsync) as m:
        await change(m, 1)
        await change(m, 1, PROFILE)
        await clock.settle()
        async with held_up(m):
            if writer_first:
                clock.advance(DEBOUNCE)
                await clock.settle()
            deleting = asyncio.create_task(m.delete_state(CART))
            await clock.settle()
            clock.advance(DEBOUNCE)
            await clock.settle()
        assert await deleting is True
        await until_written(m, clock)
        assert stored(tmp_path, CART) is None
        assert stored(tmp_path, PROFILE) == Profile(1)
        assert await m.has_state(CART) is False
    assert stored(tmp_path, CART) is None


@pytest.mark.parametrize("readers", [1, 3])
async def test_a_deleted_state_does_not_come_back_from_what_was_read_before(
    readers: int, tmp_path: Path, clock: ManualClock
):
    """The deletion first finishes what a dead program has begun; meanwhile the state is read."""
    async with opened(tmp_path, clock, fsync=True) as m:
        begin_commit(tmp_path, (CART, Cart(1)), (PROFILE, Profile(1)))
        async with asyncio.timeout(20):
            deleted, *_ = await asyncio.gather(
                m.delete_state(CART), *(m.get_state(CART) for _ in range(readers))
            )
        assert deleted is True
        assert await m.has_state(CART) is False
        assert await m.get_states(CART, PROFILE) == (Cart(), Profile(1))
    assert stored(tmp_path, CART) is None


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("how", ["delete", "set"])
async def test_memory_says_what_the_file_does_after_an_uncertain_change(
    how: str, cancelled: bool, tmp_path: Path, clock: ManualClock
):
    """Whether its caller is told that it is uncertain, or was cancelled."""
    async with opened(tmp_path, clock, fsync=True) as m:
        await m.set_state(CART, Cart(1))
        with unsynced(m):
            async with held_up(m):
                doing: Any = m.delete_state(CART) if how == "delete" else m.set_state(CART, Cart(2))
                task = asyncio.create_task(doing)
                await clock.settle()
                if cancelled:
                    task.cancel()
                    await clock.settle()
            with pytest.raises(asyncio.CancelledError if cancelled else CommitUncertainError):
                await task
        found = stored(tmp_path, CART)
        assert found == (None if how == "delete" else Cart(2))
        assert await m.has_state(CART) is (found is not None)
        assert await m.get_state(CART) == (found or Cart())
    assert stored(tmp_path, CART) == found


@pytest.mark.parametrize("how", ["modify", "set", "delete"])
async def test_what_was_acknowledged_outlives_an_older_write_that_is_uncertain(
    how: str, tmp_path: Path, clock: ManualClock
):
    """A change that is not begun because of it is no uncertain one: what waits is kept."""
    async with opened(tmp_path, clock, DEBOUNCE, fsync=True) as m:
        async with m.modify_states(CART, PROFILE) as (cart, profile):
            cart.number = profile.number = 1
        await clock.settle()
        with unsynced(m):
            async with held_up(m):
                clock.advance(DEBOUNCE)
                await clock.settle()  # the writer has asked
                await change(m, 2)
            async with asyncio.timeout(20):
                while not cast("Any", m)._failing:  # noqa: ASYNC110  # a trip has no event
                    await asyncio.sleep(0.001)
            with pytest.raises(BackendUnavailableError):
                if how == "modify":
                    await change(m, 3)
                elif how == "set":
                    await m.set_state(CART, Cart(3))
                else:
                    await m.delete_state(CART)
            assert await m.get_states(CART, PROFILE) == (Cart(2), Profile(1))
        await until_written(m, clock)
        assert stored(tmp_path, CART) == Cart(2)


async def test_a_delete_is_not_uncertain_because_of_what_is_written_before_it(
    tmp_path: Path, clock: ManualClock
):
    """What was committed with the state is, and not brought to storage; so nothing is deleted."""
    async with opened(tmp_path, clock, DEBOUNCE, fsync=True) as m:
        async with m.modify_states(CART, PROFILE) as (cart, profile):
            cart.number = profile.number = 1
        with unsynced(m), pytest.raises(BackendUnavailableError):
            await m.delete_state(CART)
        assert await m.get_states(CART, PROFILE) == (Cart(1), Profile(1))
        assert await m.delete_state(CART) is True
    assert stored(tmp_path, CART) is None
    assert stored(tmp_path, PROFILE) == Profile(1)


class Unreadable(StateToken[Any]):
    def deserialize(self, data: bytes | None = None, fp: Any = None) -> Any:
        raise ValueError("not to be read")


class WithoutDefault(StateToken[Any]):
    def create(self) -> Any:
        raise LookupError("none")


async def test_a_reset_that_does_not_come_about_leaves_nothing(tmp_path: Path, clock: ManualClock):
    """The record stays where it is, and other changes are as ever."""
    async with opened(tmp_path, clock, on_decode_error="reset") as m:
        await m.set_state(CART, Cart(1))
        with pytest.raises(LookupError):
            async with m.modify_states(
                Unreadable(CART.ident, Cart), WithoutDefault(CART.ident, Profile)
            ):
                pass
        for number, token in enumerate((NOBODY, PROFILE, CART), 2):
            await change(m, number, token)
            assert stored(tmp_path, token) == token.cls(number)
    assert not (tmp_path / "quarantine").exists()


@pytest.mark.parametrize("how", ["get", "has", "touch", "modify"])
async def test_closing_overtakes_a_read(how: str, tmp_path: Path, clock: ManualClock):
    """It is refused, and leaves no state and no task in a manager that is closed."""
    async with opened(tmp_path, clock) as m:
        await m.set_state(CART, Cart(1))
    calls: dict[str, Callable[..., Any]] = {
        "get": lambda: m.get_state(CART),
        "has": lambda: m.has_state(CART),
        "touch": lambda: m.touch(CART),
        "modify": lambda: change(m, 2),
    }
    async with opened(tmp_path, clock) as m:
        async with held_up(m):
            reading = asyncio.create_task(calls[how]())
            await clock.settle()
            closing = asyncio.create_task(m.close())
            await clock.settle()
        with pytest.raises(StateManagerClosedError):
            await reading
        await closing
        assert cast("Any", m)._expiration_task is None
        assert not cast("Any", m)._entries


# Deadlines


async def test_renewed_deadlines_are_written_by_and_by(
    tmp_path: Path, clock: ManualClock, trips: list[str]
):
    """Many reads of many states are one trip, and no record is written for them."""
    tokens = [StateToken(f"user {number}", Cart) for number in range(20)]
    async with opened(tmp_path, clock) as m:
        for token in tokens:
            await m.set_state(token, Cart(1))
        await until_written(m, clock)
        contents = [
            (tmp_path / "states" / state_name(token.cache_key)).read_bytes() for token in tokens
        ]
        before = mtime(tmp_path, tokens[0])
        clock.advance(LIFE / 2)
        trips.clear()
        for token in tokens * 3:
            await m.get_state(token)
        deadline = clock.time() + LIFE
        assert not trips
        assert mtime(tmp_path, tokens[0]) == before
        await until_written(m, clock)
        for token, content in zip(tokens, contents, strict=True):
            assert mtime(tmp_path, token) == pytest.approx(deadline, abs=1e-3)
            name = state_name(token.cache_key)
            assert (tmp_path / "states" / name).read_bytes() == content


@pytest.mark.parametrize("how", ["read", "touch", "has no effect", "abort"])
async def test_renewed_deadlines_are_written_at_close(how: str, tmp_path: Path, clock: ManualClock):
    """A state that was used lives on in the next program; to ask whether it is there is no use."""
    async with opened(tmp_path, clock) as m:
        await m.set_state(CART, Cart(1))
        await until_written(m, clock)
        clock.advance(LIFE / 2)
        if how == "read":
            await m.get_state(CART)
        elif how == "touch":
            await m.touch(CART)
        elif how == "abort":
            with pytest.raises(LookupError):
                async with m.modify_state(CART):
                    raise LookupError
        else:
            await m.has_state(CART)
    clock.advance(LIFE / 2 + 1)
    async with opened(tmp_path, clock) as m:
        assert await m.has_state(CART) is (how != "has no effect")


# Expiration


async def test_expired_states_are_removed_once_and_counted_once(tmp_path: Path, clock: ManualClock):
    """Those in memory, those of an earlier program, and those that a look-up found first."""
    tokens = [StateToken(f"user {number}", Cart) for number in range(30)]
    async with opened(tmp_path, clock) as m:
        for token in tokens:
            await m.set_state(token, Cart(1))
        for token in tokens[:10]:
            await m.set_state(token, Cart(2))  # has a second file
    async with opened(tmp_path, clock) as m:
        for token in tokens[5:15]:
            await m.get_state(token)  # in memory
        clock.advance(LIFE + 1)
        for token in tokens[::3]:
            assert await m.get_state(token) == Cart(), "found before the purge runs"
        async with asyncio.timeout(20):
            while any((tmp_path / "states").iterdir()):
                clock.advance(1.0)
                await asyncio.sleep(0.001)
        for _ in range(5):
            await clock.advance_and_settle(LIFE)
            await m.has_state(NOBODY)
        assert m.statistics().purged == len(tokens)
        assert m.statistics().tokens_held == 0


async def test_an_expired_state_that_was_never_written_leaves_nothing(
    tmp_path: Path, clock: ManualClock
):
    """A debounce that is longer than the states live."""
    async with opened(tmp_path, clock, debounce=LIFE * 3) as m:
        await change(m, 1)
        await clock.advance_and_settle(LIFE + 1)
        assert await m.has_state(CART) is False
        await clock.advance_and_settle(LIFE * 3)
        await m.has_state(NOBODY)
        async with asyncio.timeout(20):
            while m.statistics().purged == 0:  # noqa: ASYNC110  # the purge's trip has no event
                await asyncio.sleep(0.001)
        assert m.statistics().purged == 1
    assert list((tmp_path / "states").iterdir()) == []


async def test_a_state_is_written_anew_while_its_old_file_is_purged(
    tmp_path: Path, clock: ManualClock
):
    """It is there afterwards, in memory and on disk."""
    async with opened(tmp_path, clock) as m:
        await m.set_state(CART, Cart(1))
        async with held_up(m):
            clock.advance(LIFE + 1)
            await clock.settle()  # the purge has asked
            tasks = [asyncio.create_task(m.set_state(CART, Cart(2)))]
            await clock.settle()
        await asyncio.gather(*tasks)
        await m.has_state(NOBODY)
        assert await m.get_state(CART) == Cart(2)
        assert stored(tmp_path, CART) == Cart(2)
        await clock.advance_and_settle(LIFE / 2)
        await m.has_state(NOBODY)
        assert stored(tmp_path, CART) == Cart(2)


async def test_a_change_beside_the_purge_of_its_file(
    tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The change is kept, and the purge that it overtakes does not fail."""

    async def until(condition: Callable[[], object]) -> None:
        for _ in range(10_000):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError("it does not come about")

    async with opened(tmp_path / "states", clock, DEBOUNCE) as manager:
        await manager.set_state(CART, Cart(1))
        await clock.advance_and_settle(DEBOUNCE)
        for _ in range(5):  # behind the writing, in the same thread
            await manager.has_state(NOBODY)
        clock.advance(LIFE + 1)
        await until(lambda: manager._leftovers and manager._writers.holders)
        await manager.set_state(CART, Cart(2))
        for _ in range(5):
            await manager.has_state(NOBODY)
        assert await manager.get_state(CART) == Cart(2)
    assert not caplog.records


@pytest.mark.parametrize("others", [1, 2 * PURGE_SLICE])
async def test_a_change_beside_a_purge_that_has_other_files_to_remove(
    others: int, tmp_path: Path, clock: ManualClock
):
    """The change is kept, though its state had expired when the purge began."""
    first = [StateToken(f"user {number}", Cart) for number in range(others)]
    async with opened(tmp_path, clock) as m:
        for token in first:
            await m.set_state(token, Cart(1))
        clock.advance(1.0)
        await m.set_state(CART, Cart(1))
    async with opened(tmp_path, clock, DEBOUNCE) as m:
        for token in (*first, CART):
            assert await m.has_state(token) is True
        async with held_up(m):
            clock.advance(LIFE - 1.0)
            for token in first:
                assert await m.has_state(token) is False, "found before the purge runs"
            clock.advance(1.0)
            await clock.settle()
            assert cast("Any", m)._writers.holders, "the purge has begun"
            await m.set_state(CART, Cart(2))
        for _ in range(5):
            await m.has_state(NOBODY)
        assert await m.has_state(CART) is True
        assert await m.get_state(CART) == Cart(2)
        await until_written(m, clock)
        assert stored(tmp_path, CART) == Cart(2)
        assert [stored(tmp_path, token) for token in first] == [None] * others
