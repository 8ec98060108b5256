"""stop(): drains, or ends at its deadline; then nothing runs and every future is settled."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from statemgr import StateToken
from statemgr.errors import (
    EventDeadlockError,
    EventProcessorStoppedError,
    EventTimeoutError,
    SettingsError,
    WrongLoopError,
)
from statemgr.events import Event, EventContext, EventProcessor

from .conftest import SOON

MARGIN = 0.05  # seconds after the deadline in which stop() has to end


@dataclass
class Count:
    value: int = 0


class Gate:
    """Handlers that wait until they are let through; the default is to be cancelled."""

    def __init__(self, app) -> None:
        self.ran: list[object] = []
        self.begun = asyncio.Event()
        self.open = asyncio.Event()

        @app.handler
        async def wait(number: int = 0) -> int:
            self.ran.append(number)
            self.begun.set()
            await self.open.wait()
            return number

        @app.handler
        async def refuse(number: int = 0) -> int:
            self.ran.append(number)
            self.begun.set()
            while not self.open.is_set():
                try:
                    await self.open.wait()
                except asyncio.CancelledError:
                    self.ran.append("refused")
            return number

        @app.handler
        async def refuse_with_state(count: Count) -> None:
            count.value += 1
            self.begun.set()
            while not self.open.is_set():
                try:
                    await self.open.wait()
                except asyncio.CancelledError:
                    self.ran.append("refused")


@pytest.fixture
def gate(app):
    return Gate(app)


async def timed_stop(processor: EventProcessor, timeout: float) -> float:
    """Stop, and return how many seconds after the deadline that ended."""
    loop = asyncio.get_running_loop()
    due = loop.time() + timeout
    await processor.stop(timeout)
    return loop.time() - due


async def test_it_drains(app):
    """What is queued is run, and what that chains, and what that chains."""
    ran = []

    @app.handler
    async def down(count: Count, number: int) -> Event | None:
        ran.append(number)
        count.value += 1
        await asyncio.sleep(0)
        return Event("down", {"number": number - 1}) if number else None

    processor = await app.start()
    futures = [processor.enqueue_nowait("a", Event("down", {"number": 30})) for _ in range(3)]
    await processor.stop()
    assert len(ran) == 93
    assert all(future.done() for root in futures for future in (root, *root.descendants()))
    assert (await app.manager.get_state(StateToken("a", Count))).value == 93
    app.check_nothing_is_left()


async def test_leaving_async_with_drains(app):
    @app.handler
    async def down(number: int) -> Event | None:
        return Event("down", {"number": number - 1}) if number else None

    async with EventProcessor(app.manager, app.registry) as processor:
        future = await processor.enqueue("a", Event("down", {"number": 9}))
    assert len(list(future.descendants())) == 9
    assert all(one.done() and not one.cancelled() for one in future.descendants())


async def test_leaving_async_with_has_a_deadline(app, gate):
    async with EventProcessor(app.manager, app.registry, stop_timeout=0.01) as processor:
        future = await processor.enqueue("a", Event("wait"))
        await gate.begun.wait()
    assert future.cancelled()


async def test_an_error_in_the_block_comes_out_of_it_after_the_drain(app):
    ran = []

    @app.handler
    async def note() -> None:
        ran.append(1)

    with pytest.raises(ZeroDivisionError):
        async with EventProcessor(app.manager, app.registry) as processor:
            await processor.enqueue("a", Event("note"))
            raise ZeroDivisionError
    assert ran == [1]


LATE = ["wait", "refuse", "thread", "report", "endless", "many", "chain", "slow cleanup"]


@pytest.mark.parametrize("what", LATE)
async def test_it_ends_within_50_ms_of_its_deadline(app, gate, what):
    """Whatever still runs then. Told by the best of some tries: machines have pauses."""
    asked_to_end = threading.Event()

    @app.handler(thread=True)
    def thread() -> None:
        gate.begun.set()
        asked_to_end.wait(20)

    @app.handler
    async def report() -> None:
        raise ZeroDivisionError

    @app.handler
    async def endless() -> Event:
        gate.begun.set()
        return Event("endless")

    @app.handler
    async def many(count: Count) -> None:
        gate.begun.set()
        await gate.open.wait()

    @app.handler
    async def chain(number: int = 500) -> None:
        ctx = EventContext.get()
        if number:
            child = await ctx.enqueue(Event("chain", {"number": number - 1}), ident=f"i{number}")
            await asyncio.wait((child,))
        gate.begun.set()
        await gate.open.wait()

    @app.handler(name="slow cleanup")
    async def slow_cleanup() -> None:
        gate.begun.set()
        try:
            await gate.open.wait()
        finally:
            await gate.open.wait()

    async def never_done(error: BaseException) -> None:
        gate.begun.set()
        await gate.open.wait()

    best = 1.0
    for _ in range(5):
        gate.begun.clear()
        processor = await app.start(exception_handler=never_done)
        futures = [processor.enqueue_nowait(f"ident {n % 7}", Event(what)) for n in range(20)]
        if what == "many":
            futures += [
                processor.enqueue_nowait(f"ident {n % 70}", Event(what)) for n in range(3000)
            ]
        async with asyncio.timeout(SOON):
            while not gate.begun.is_set():  # noqa: ASYNC110  # a thread may set it
                await asyncio.sleep(0)
        best = min(best, await timed_stop(processor, 0.03))
        assert all(future.done() for future in futures)
        assert not processor._unfinished
        if best < MARGIN:
            break
    assert -0.001 < best < MARGIN
    asked_to_end.set()
    gate.open.set()
    async with asyncio.timeout(SOON):
        while app.manager.statistics().locks_held:  # noqa: ASYNC110  # by those left behind
            await asyncio.sleep(0.001)
        await asyncio.get_running_loop().shutdown_default_executor()
    for _ in range(10):
        await asyncio.sleep(0)


async def test_it_starts_nothing_after_its_deadline(app, gate, settle):
    """Not what waits, not what is chained, not even when a handler ends then."""

    @app.handler
    async def chain_in_the_end(ctx: EventContext) -> Event:
        gate.begun.set()
        try:
            await gate.open.wait()
        finally:
            chained.append(ctx.enqueue_nowait(Event("wait", {"number": 2}), ident="other"))
        return Event("wait", {"number": 3})

    chained = []
    processor = await app.start()
    running = processor.enqueue_nowait("a", Event("chain_in_the_end"))
    waiting = [processor.enqueue_nowait("a", Event("wait", {"number": 1})) for _ in range(5)]
    await gate.begun.wait()
    await processor.stop(0)
    assert gate.ran == []
    assert all(future.cancelled() for future in (running, *waiting, *chained))
    assert len(chained) == 1


async def test_a_handler_that_ends_well_at_the_deadline_keeps_its_result(app, settle):
    """It was asked to end, and did so within its 20 ms: what it chains is cancelled."""
    begun = asyncio.Event()

    @app.handler
    async def tidy(count: Count) -> Event:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            count.value = 7
        return Event("tidy")

    processor = await app.start()
    future = processor.enqueue_nowait("a", Event("tidy"))
    await begun.wait()
    await processor.stop(0)
    assert future.result() is None
    assert future.committed
    assert [child.cancelled() for child in future.children] == [True]
    assert (await app.manager.get_state(StateToken("a", Count))).value == 7


async def test_a_handler_that_refuses_to_be_cancelled_is_left_behind(app, gate, caplog):
    """Its future is settled and this is logged; what it does later harms nobody."""
    processor = await app.start()
    future = processor.enqueue_nowait("a", Event("refuse"))
    behind = processor.enqueue_nowait("a", Event("wait", {"number": 5}))
    await gate.begun.wait()
    await processor.stop(0)
    assert future.cancelled()
    assert behind.cancelled()
    assert "is left behind" in caplog.text
    gate.open.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert gate.ran == [0, "refused"]
    assert future.cancelled()
    assert app.errors == []


async def test_a_handler_with_a_state_that_is_left_behind_keeps_its_lock_until_it_ends(app, gate):
    processor = await app.start()
    future = processor.enqueue_nowait("a", Event("refuse_with_state"))
    await gate.begun.wait()
    await processor.stop(0)
    assert future.cancelled()
    assert app.manager.statistics().locks_held == 1
    gate.open.set()
    async with asyncio.timeout(SOON):
        async with app.manager.modify_state(StateToken("a", Count)) as count:
            assert count.value == 1


async def test_a_handler_in_a_thread_is_left_behind(app):
    release = threading.Event()
    begun = threading.Event()

    @app.handler(thread=True)
    def block(count: Count) -> None:
        begun.set()
        release.wait(20)
        count.value += 1

    processor = await app.start()
    future = processor.enqueue_nowait("a", Event("block"))
    await asyncio.to_thread(begun.wait, 5)
    await processor.stop(0)
    assert future.cancelled()
    release.set()
    async with asyncio.timeout(SOON):
        async with app.manager.modify_state(StateToken("a", Count)) as count:
            assert count.value == 0  # it was cancelled: nothing is saved


async def test_from_another_task(app, gate):
    """Also from one that a handler made, and does not wait for."""
    stopping = []

    @app.handler
    async def make() -> None:
        stopping.append(asyncio.create_task(processor.stop()))

    processor = await app.start()
    await processor.enqueue("a", Event("make"))
    future = await processor.enqueue("a", Event("wait"))
    await gate.begun.wait()
    other = asyncio.create_task(processor.stop())
    await asyncio.sleep(0)
    assert not other.done()
    gate.open.set()
    await asyncio.gather(other, *stopping)
    assert future.result() == 0


async def test_twice_and_side_by_side(app, gate):
    """Each call waits for the same end; the earliest deadline counts, whoever sets it."""
    processor = await app.start()
    future = processor.enqueue_nowait("a", Event("wait"))
    await gate.begun.wait()
    calls = [asyncio.create_task(processor.stop(timeout)) for timeout in (None, 60, 90)]
    await asyncio.sleep(0)
    assert not any(call.done() for call in calls)
    late = [await timed_stop(processor, 0.02)]
    assert future.cancelled()
    async with asyncio.timeout(SOON):
        await asyncio.gather(*calls)
    late.append(await timed_stop(processor, 0))
    await processor.stop()
    assert all(seconds < 5 for seconds in late)


async def test_a_later_deadline_does_not_put_off_an_earlier_one(app, gate):
    processor = await app.start()
    future = processor.enqueue_nowait("a", Event("wait"))
    await gate.begun.wait()
    first = asyncio.create_task(processor.stop(0.01))
    await asyncio.sleep(0)
    async with asyncio.timeout(SOON):
        await asyncio.gather(first, processor.stop(60), processor.stop())
    assert future.cancelled()


async def test_without_a_deadline_after_one_that_has_passed(app, gate):
    """A stop() in the 20 ms of grace waits for the end of them."""
    processor = await app.start()
    future = processor.enqueue_nowait("a", Event("refuse"))
    await gate.begun.wait()
    first = asyncio.create_task(processor.stop(0))
    while "refused" not in gate.ran:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await processor.stop(60)
    assert future.cancelled()
    await first
    gate.open.set()


async def test_cancelling_it_only_stops_the_waiting(app, gate):
    processor = await app.start()
    future = processor.enqueue_nowait("a", Event("wait"))
    await gate.begun.wait()
    stopping = asyncio.create_task(processor.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert not future.done()
    with pytest.raises(EventProcessorStoppedError):
        await processor.enqueue("a", Event("wait"))
    gate.open.set()
    await processor.stop()
    assert future.result() == 0


async def test_its_deadline_holds_though_it_was_cancelled(app, gate):
    processor = await app.start()
    future = processor.enqueue_nowait("a", Event("wait"))
    await gate.begun.wait()
    stopping = asyncio.create_task(processor.stop(0.01))
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait((stopping, future), timeout=5)
    assert future.cancelled()
    await processor.stop()


@pytest.mark.parametrize("background", [False, True])
async def test_a_handler_cannot_wait_for_it(app, background):
    """It would wait for itself: an error on its own future, and the processor goes on."""

    @app.handler(background=background)
    async def suicide() -> None:
        await processor.stop()

    @app.handler
    async def other() -> str:
        return "ran"

    processor = await app.start()
    future = await processor.enqueue("a", Event("suicide"))
    with pytest.raises(EventDeadlockError):
        await future
    assert await (await processor.enqueue("a", Event("other"))) == "ran"


async def test_an_emit_function_cannot_wait_for_it(app):
    @app.handler
    async def change(count: Count) -> None:
        count.value += 1

    async def emit(ident: str, delta: object) -> None:
        await processor.stop()

    processor = await app.start(emit_delta=emit)
    future = await processor.enqueue("a", Event("change"))
    with pytest.raises(EventDeadlockError):
        await future


async def test_an_exception_handler_cannot_wait_for_it(app):
    """It would wait for itself, since what reports is waited for."""
    raised = []

    @app.handler
    async def fail() -> None:
        raise ZeroDivisionError

    async def report(error: BaseException) -> None:
        try:
            await processor.stop()
        except EventDeadlockError as error:
            raised.append(error)

    processor = await app.start(exception_handler=report)
    processor.enqueue_nowait("a", Event("fail"))
    async with asyncio.timeout(SOON):
        await processor.stop()
    assert len(raised) == 1


async def test_before_the_start(app):
    """It does nothing: the processor can be started then."""

    @app.handler
    async def answer() -> int:
        return 42

    processor = EventProcessor(app.manager, app.registry)
    await processor.stop()
    await processor.stop(1)
    with pytest.raises(EventProcessorStoppedError, match="not started"):
        processor.enqueue_nowait("a", Event("answer"))
    async with processor:
        assert await (await processor.enqueue("a", Event("answer"))) == 42
    with pytest.raises(EventProcessorStoppedError):
        await processor.start()
    with pytest.raises(EventProcessorStoppedError):
        async with processor:
            pass


async def test_nothing_is_accepted_while_it_drains_or_afterwards(app, gate):
    async def refused() -> None:
        with pytest.raises(EventProcessorStoppedError):
            await processor.enqueue("a", Event("wait"))
        with pytest.raises(EventProcessorStoppedError):
            processor.enqueue_nowait("a", Event("missing"))
        with pytest.raises(EventProcessorStoppedError):
            await anext(processor.enqueue_stream_delta("a", Event("wait")))

    processor = await app.start()
    processor.enqueue_nowait("a", Event("wait"))
    await gate.begun.wait()
    stopping = asyncio.create_task(processor.stop())
    await asyncio.sleep(0)
    await refused()
    gate.open.set()
    await stopping
    await refused()
    assert gate.ran == [0]


async def test_handlers_still_chain_while_it_drains(app, gate):
    @app.handler
    async def chain_when_open(ctx: EventContext) -> Event:
        gate.begun.set()
        await gate.open.wait()
        await ctx.enqueue(Event("wait", {"number": 1}), ident="other")
        return Event("wait", {"number": 2})

    processor = await app.start()
    future = processor.enqueue_nowait("a", Event("chain_when_open"))
    await gate.begun.wait()
    stopping = asyncio.create_task(processor.stop())
    await asyncio.sleep(0)
    gate.open.set()
    await stopping
    assert sorted(gate.ran) == [1, 2]
    assert [child.result() for child in future.children] == [1, 2]


@pytest.mark.parametrize("timeout", [None, 0, 0.01])
@pytest.mark.parametrize("bounds", [{"max_queued": 2}, {"max_queued_per_ident": 2}])
async def test_who_waits_for_room_is_told(app, gate, timeout, bounds):
    """Their events are not run, and not accepted late."""
    processor = await app.start(**bounds)
    futures = [processor.enqueue_nowait("a", Event("wait", {"number": n})) for n in range(2)]
    outside = [
        asyncio.create_task(processor.enqueue("a", Event("wait", {"number": 9}))) for _ in range(5)
    ]
    stream = processor.enqueue_stream_delta("a", Event("wait", {"number": 9}))
    outside.append(asyncio.create_task(anext(stream)))  # type: ignore[arg-type]
    await gate.begun.wait()
    for _ in range(3):
        await asyncio.sleep(0)
    stopping = asyncio.create_task(processor.stop(timeout))
    async with asyncio.timeout(SOON):
        await asyncio.wait(outside)
    for task in outside:
        assert isinstance(task.exception(), EventProcessorStoppedError)
    gate.open.set()
    await stopping
    assert 9 not in gate.ran
    assert all(future.done() for future in futures)


async def test_an_exception_handler_at_work_is_waited_for(app, gate):
    reported = []

    @app.handler
    async def fail() -> None:
        raise ZeroDivisionError

    async def report(error: BaseException) -> None:
        gate.begun.set()
        await gate.open.wait()
        reported.append(error)

    processor = await app.start(exception_handler=report)
    processor.enqueue_nowait("a", Event("fail"))
    stopping = asyncio.create_task(processor.stop())
    await gate.begun.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not stopping.done()
    gate.open.set()
    await stopping
    assert [type(error) for error in reported] == [ZeroDivisionError]


async def test_an_exception_handler_at_work_is_cancelled_at_the_deadline(app, gate):
    """It has 20 ms to end; also if it begins then, for a handler that fails as it is cancelled."""
    ended = []

    @app.handler
    async def fail() -> None:
        raise ZeroDivisionError

    @app.handler
    async def fail_when_cancelled() -> None:
        gate.begun.set()
        try:
            await gate.open.wait()
        finally:
            raise ZeroDivisionError

    async def report(error: BaseException) -> None:
        try:
            await gate.open.wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            ended.append(EventContext.get().name)

    processor = await app.start(exception_handler=report)
    processor.enqueue_nowait("a", Event("fail"))
    processor.enqueue_nowait("b", Event("fail_when_cancelled"))
    await gate.begun.wait()
    await processor.stop(0)
    assert "fail" in ended
    for _ in range(10):
        await asyncio.sleep(0)
    assert sorted(ended) == ["fail", "fail_when_cancelled"]


async def test_an_exception_handler_that_refuses_to_end_is_left_behind(app, gate):
    @app.handler
    async def fail() -> None:
        raise ZeroDivisionError

    async def report(error: BaseException) -> None:
        while not gate.open.is_set():
            try:
                await gate.open.wait()
            except asyncio.CancelledError:
                gate.begun.set()

    processor = await app.start(exception_handler=report)
    processor.enqueue_nowait("a", Event("fail"))
    await asyncio.sleep(0)
    async with asyncio.timeout(SOON):
        await processor.stop(0)
    assert gate.begun.is_set()
    gate.open.set()
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_open_stream_ends_with_it(app):
    """After the deltas that were told before the deadline comes the cancel."""
    told = asyncio.Event()

    @app.handler
    async def tell(count: Count) -> AsyncIterator[None]:
        count.value += 1
        yield
        told.set()
        await asyncio.Event().wait()

    async def read() -> None:
        async for delta in processor.enqueue_stream_delta("a", Event("tell")):
            deltas.append(delta)  # noqa: PERF401  # a list that is there when this is cancelled

    deltas: list[object] = []
    processor = await app.start()
    reader = asyncio.create_task(read())
    await told.wait()
    await processor.stop(0)
    await asyncio.wait((reader,), timeout=5)
    assert reader.cancelled()
    assert deltas == [{"Count": {"value": 1}}, {"Count": {"value": 0}}]


async def test_a_timeout_of_a_handler_ends_it_while_it_drains(app):
    @app.handler(timeout=0.01)
    async def slow() -> None:
        await asyncio.Event().wait()

    processor = await app.start()
    future = processor.enqueue_nowait("a", Event("slow"))
    await processor.stop()
    assert isinstance(future.exception(), EventTimeoutError)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1"])
async def test_a_timeout_that_is_none(app, timeout):
    processor = await app.start()
    with pytest.raises(SettingsError):
        await processor.stop(timeout)
    with pytest.raises(SettingsError):
        EventProcessor(app.manager, app.registry, stop_timeout=timeout)


async def test_an_infinite_timeout_is_no_deadline(app, gate):
    processor = await app.start()
    future = processor.enqueue_nowait("a", Event("wait"))
    await gate.begun.wait()
    stopping = asyncio.create_task(processor.stop(float("inf")))
    await asyncio.sleep(0)
    gate.open.set()
    await stopping
    assert future.result() == 0


async def test_on_another_loop(app):
    processor = await app.start()

    def elsewhere() -> None:
        for call in (processor.stop(), processor.enqueue("a", Event("e"))):
            with pytest.raises(WrongLoopError):
                asyncio.run(call)

    await asyncio.to_thread(elsewhere)


async def test_a_manager_that_was_closed_before(app):
    """Closing it is the caller's, after stop(): done before, each event ends in its own error."""

    @app.handler
    async def change(count: Count) -> None:
        count.value += 1

    @app.handler
    async def plain() -> int:
        return 1

    manager = type(app.manager)()
    async with EventProcessor(
        manager, app.registry, exception_handler=app.errors.append
    ) as processor:
        await manager.close()
        failed = await processor.enqueue("a", Event("change"))
        fine = await processor.enqueue("a", Event("plain"))
    assert failed.exception() is app.errors[0]
    assert fine.result() == 1
