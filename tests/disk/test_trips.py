"""What is asked for in one turn goes in one trip; each caller gets what came of its own job."""

import asyncio
import errno
import gc
import os
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from statemgr.backends.disk import trips
from statemgr.backends.disk.trips import Job, Trips
from tests.disk.faults import descriptors


@pytest.fixture
async def thread() -> AsyncIterator[Trips]:
    made = Trips("test-trips", syncs=False)
    yield made
    await made.close()


@asynccontextmanager
async def held_up(thread: Trips) -> AsyncIterator[None]:
    """Keep a trip under way for as long as the block lasts."""
    entered, leave = threading.Event(), threading.Event()

    def job() -> Job[None]:
        entered.set()
        leave.wait(20)
        yield from ()

    running = asyncio.create_task(thread.run(job()))
    await asyncio.to_thread(entered.wait, 20)
    try:
        yield
    finally:
        leave.set()
        await running


def calling(call: Callable[[], Any]) -> Job[Any]:
    """Make a job of a call."""
    yield from ()
    return call()


def raising(error: BaseException) -> Job[None]:
    yield from ()
    raise error


def is_alive(name: str) -> bool:
    return any(thread.name == name for thread in threading.enumerate())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # what a thread does has no event here
            await asyncio.sleep(0.001)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_job_runs_in_the_thread_and_its_result_comes_back(thread: Trips):
    name = await thread.run(calling(lambda: threading.current_thread().name))
    assert name == "test-trips"


@pytest.mark.parametrize(("syncs", "sizes_seen"), [(False, [1, 49, 1, 10]), (True, [50, 1, 10])])
async def test_jobs_of_one_turn_go_in_one_trip_in_their_order(
    monkeypatch: pytest.MonkeyPatch, syncs: bool, sizes_seen: list[int]
):
    """So do those that are asked for while a trip is under way.

    Without syncs to share, the first of a turn does not wait for the others.
    """
    thread = Trips("test-trips", syncs=syncs)
    sizes: list[int] = []
    run_all = trips._run_all

    def counted(calls: list[Any], syncs: Any) -> None:
        sizes.append(len(calls))
        run_all(calls, syncs)

    monkeypatch.setattr(trips, "_run_all", counted)
    done: list[int] = []
    await asyncio.gather(*(thread.run(calling(lambda n=n: done.append(n))) for n in range(50)))
    assert sum(sizes) == 50
    async with held_up(thread):
        waiting = []
        for number in range(50, 60):
            waiting.append(
                asyncio.create_task(thread.run(calling(lambda n=number: done.append(n))))
            )
            await turns()
    await asyncio.gather(*waiting)
    assert sizes == sizes_seen
    await thread.close()
    assert done == list(range(60))


async def test_an_error_goes_to_its_own_caller(thread: Trips):
    """The others of the trip get their results."""
    errors = [OSError(errno.EIO, "one"), ValueError("two")]
    outcomes = await asyncio.gather(
        thread.run(calling(lambda: 1)),
        *(thread.run(raising(error)) for error in errors),
        thread.run(calling(lambda: 2)),
        return_exceptions=True,
    )
    assert outcomes == [1, *errors, 2]


@pytest.mark.parametrize("cancels", [1, 2, 5])
async def test_a_cancel_waits_for_the_jobs_end(cancels: int, thread: Trips):
    """However often it comes: what a job has locked is let go before its caller goes on."""
    done: list[int] = []
    async with held_up(thread):
        task = asyncio.create_task(thread.run(calling(lambda: done.append(1))))
        await turns()
        for _ in range(cancels):
            task.cancel()
            await turns()
            assert not task.done()
            assert not done
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [1]


async def test_a_cancel_before_the_trip_leaves(thread: Trips):
    """A job that was asked for is run."""
    done: list[int] = []
    task = asyncio.create_task(thread.run(calling(lambda: done.append(1))))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [1]


async def test_a_job_that_fails_while_it_is_cancelled_ends_as_cancelled(thread: Trips):
    async with held_up(thread):
        task = asyncio.create_task(thread.run(raising(OSError(errno.EIO, "late"))))
        await turns()
        task.cancel()
        await turns()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await thread.run(calling(lambda: 1)) == 1


async def test_closing_waits_for_what_was_asked_for():
    """Also for what was asked for while it waited; then the thread ends, and nothing is left."""
    before = descriptors()
    thread = Trips("test-closing", syncs=True)
    done: list[int] = []
    async with held_up(thread):
        asked = asyncio.create_task(thread.run(calling(lambda: done.append(1))))
        await turns()
        closing = asyncio.create_task(thread.close())
        await turns()
        assert not closing.done()
        assert not thread.closed
    await closing
    assert thread.closed
    assert done == [1]
    await asked
    await until(lambda: not is_alive("test-closing") and descriptors() <= before)


async def test_closing_without_a_trip():
    before = descriptors()
    thread = Trips("test-unused", syncs=True)
    await thread.close()
    assert thread.closed
    assert not is_alive("test-unused")
    assert descriptors() <= before


async def test_the_thread_ends_when_nobody_has_the_object_any_more():
    """A program that forgets to close a manager does not collect threads."""
    before = descriptors()
    thread = Trips("test-forgotten", syncs=False)
    await thread.run(calling(lambda: None))
    assert is_alive("test-forgotten")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del thread
        await turns()
        gc.collect()
        await until(lambda: not is_alive("test-forgotten") and descriptors() <= before)


def test_a_loop_that_is_closed_meanwhile_does_no_harm():
    """The job ends in the thread; another loop can go on with the same object's thread."""
    thread = Trips("test-loop", syncs=False)
    entered, leave, ended = threading.Event(), threading.Event(), threading.Event()

    def job() -> Job[None]:
        entered.set()
        leave.wait(20)
        yield from ()
        ended.set()

    loop = asyncio.new_event_loop()
    task = loop.create_task(thread.run(job()))
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    assert entered.wait(20)
    loop.close()
    leave.set()
    assert ended.wait(20)
    assert is_alive("test-loop"), "its error did not end it"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        del task, thread
        gc.collect()


# Syncs


async def test_jobs_go_side_by_side_from_sync_to_sync(monkeypatch: pytest.MonkeyPatch):
    """All that wait for stable storage wait together; one that does not is through before."""
    log: list[str] = []
    monkeypatch.setattr(trips, "_sync_one", lambda descriptor: log.append(f"sync {descriptor}"))

    def job(name: str, *descriptors: int) -> Job[str]:
        for descriptor in descriptors:
            log.append(f"{name} {descriptor}")
            yield descriptor
        log.append(f"{name} ends")
        return name

    thread = Trips("test-syncs", syncs=True)
    outcomes = await asyncio.gather(
        *(thread.run(one) for one in (job("a", 1, 9), job("b", 2, 9), job("c")))
    )
    await thread.close()
    assert outcomes == ["a", "b", "c"]
    assert log[:3] == ["a 1", "b 2", "c ends"]
    assert sorted(log[3:5]) == ["sync 1", "sync 2"]
    assert log[5:] == ["a 9", "b 9", "sync 9", "a ends", "b ends"]


async def test_an_error_of_a_sync_is_thrown_into_the_jobs_that_asked_for_it(
    monkeypatch: pytest.MonkeyPatch,
):
    """And into no other; a job may go on after it."""
    monkeypatch.setattr(
        trips, "_sync_one", lambda n: OSError(errno.EIO, f"sync {n}") if n in (2, 9) else None
    )

    def job(*descriptors: int) -> Job[list[str]]:
        seen = []
        for descriptor in descriptors:
            try:
                yield descriptor
            except OSError as error:
                seen.append(str(error.strerror))
            else:
                seen.append("synced")
        return seen

    def stubborn(descriptor: int) -> Job[None]:
        yield descriptor

    thread = Trips("test-sync-errors", syncs=True)
    outcomes = await asyncio.gather(
        thread.run(job(1, 9, 3)),
        thread.run(job(2, 4)),
        thread.run(job(3, 9)),
        thread.run(stubborn(2)),
        thread.run(stubborn(3)),
        return_exceptions=True,
    )
    await thread.close()
    assert outcomes[:3] == [
        ["synced", "sync 9", "synced"],
        ["sync 2", "synced"],
        ["synced", "sync 9"],
    ]
    assert isinstance(outcomes[3], OSError)
    assert outcomes[4] is None


async def test_more_syncs_than_threads(tmp_path: Any):
    """They are done some at a time; a descriptor that cannot be synced is its job's error."""
    thread = Trips("test-many-syncs", syncs=True)
    opened = [os.open(tmp_path / str(n), os.O_CREAT | os.O_WRONLY) for n in range(40)]

    def job(descriptor: int) -> Job[int]:
        yield descriptor
        return descriptor

    outcomes = await asyncio.gather(
        *(thread.run(job(one)) for one in (*opened, 9999)), return_exceptions=True
    )
    for one in opened:
        os.close(one)
    await thread.close()
    assert outcomes[:-1] == opened
    assert isinstance(outcomes[-1], OSError)


# Starting


@pytest.mark.parametrize("cause", ["no descriptors", "no threads", "no threads to sync"])
async def test_what_cannot_be_started_is_an_error(cause: str, monkeypatch: pytest.MonkeyPatch):
    """It is told to who asks, and the next one can have it; nobody waits for ever."""
    thread = Trips("test-start", syncs=True)
    before = descriptors()

    def refuse(*_: object) -> None:
        if cause == "no descriptors":
            raise OSError(errno.EMFILE, "too many")
        raise RuntimeError("can't start new thread")

    def job() -> Job[int]:
        yield 1
        return 1

    if cause == "no threads to sync":
        await thread.run(calling(lambda: None))
        before = descriptors()
        monkeypatch.setattr(trips, "_sync_one", lambda _: None)
    with monkeypatch.context() as patch:
        if cause == "no descriptors":
            patch.setattr(os, "pipe", refuse)
        else:
            patch.setattr(threading.Thread, "start", refuse)
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(
                thread.run(job()), thread.run(job()), return_exceptions=True
            )
        assert all(one == 1 or isinstance(one, OSError) for one in outcomes), outcomes
        assert descriptors() <= before
    monkeypatch.setattr(trips, "_sync_one", lambda _: None)
    async with asyncio.timeout(20):
        assert await asyncio.gather(thread.run(job()), thread.run(job())) == [1, 1]
    await thread.close()
