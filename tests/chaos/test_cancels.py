"""A cancel at every await of the main calls; `python -m chaos cancels` has all of them."""

import argparse
import asyncio
import sys
from collections.abc import Iterator

import pytest

from chaos.cancels import add_arguments, main
from chaos.cancels.calls import CALLS
from chaos.cancels.events import EVENT_CALLS, EventStage
from chaos.cancels.stage import BrokenPromiseError, Stage
from chaos.cancels.stepping import Cancel, Moment, Steps
from chaos.cancels.stores import Stores
from chaos.cancels.tally import Tally, cancel_everywhere
from chaos.mutants.catalogue import catalogue
from chaos.mutants.checking import by_cancels

MAIN = [call for call in CALLS if call.main]
# The run of all has the others too: here each cancel is several trips to a thread or a server.
SHORT = {"set_state", "modify_state", "close"}
ROWS = [
    pytest.param(backend, call, id=f"{backend}-{call.name}")
    for backend in ("memory", "disk", "redis")
    for call in MAIN
    if backend == "memory" or call.name in SHORT
]
QUEUEING = [call for call in EVENT_CALLS if call.name.startswith(("enqueue,", "await", "stop"))]


@pytest.fixture(scope="module")
def stores() -> Iterator[Stores]:
    stores = Stores()
    yield stores
    stores.close()


def assert_kept(tally: Tally) -> None:
    """Assert that no promise was broken, and print what was covered."""
    what = f"{tally.backend}, {tally.call}"
    sys.stdout.write(f"{what}: {tally.awaits} awaits, {tally.cancels} cancels\n")
    assert not tally.broken, "\n".join(map(str, tally.broken))
    assert tally.cancels > 0
    assert tally.awaits > 0


@pytest.mark.parametrize(("backend", "call"), ROWS)
def test_cancel_at_every_await(stores: Stores, backend: str, call: object) -> None:
    """No lock is left, no task, no file; the state is old or new; others have their turn."""

    async def open_stage() -> Stage:
        return Stage(stores.make(backend))

    assert_kept(asyncio.run(cancel_everywhere(backend, call, open_stage, twice=False)))


@pytest.mark.parametrize("backend", ["memory", "disk"])
def test_cancel_twice_at_every_await(stores: Stores, backend: str) -> None:
    """While the first cancel is being handled the second one changes nothing."""

    async def open_stage() -> Stage:
        return Stage(stores.make(backend))

    call = next(call for call in CALLS if call.name == "set_state")
    tally = asyncio.run(cancel_everywhere(backend, call, open_stage, twice=True))
    assert_kept(tally)
    assert (tally.twice > 0) == (backend == "disk")  # in memory nothing is left to wait for


@pytest.mark.parametrize("call", QUEUEING, ids=lambda call: call.name)
def test_cancel_at_every_await_of_events(stores: Stores, call: object) -> None:
    """The event is dropped, or runs; those behind it have their turn."""

    async def open_stage() -> EventStage:
        return EventStage(stores.make("memory"))

    assert_kept(asyncio.run(cancel_everywhere("memory", call, open_stage, twice=True)))


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    """It says how many awaits were covered, by backend and call."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = ["--backend", "memory", "--backend", "disk", "--call", "get_state", "--once"]
    assert main(parser.parse_args(options)) == 0
    printed = capsys.readouterr().out
    assert "0 broke a promise" in printed
    assert "get_states" in printed
    assert main(parser.parse_args(["--backend", "none"])) == 2


@pytest.mark.parametrize("label", ["memory/RaiseKeepsTheChange", "memory/CancelWhileHoldingLeaks"])
def test_fault_is_found(monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    """A cancelled body that is saved, and a lock that it keeps."""
    monkeypatch.setattr("chaos.cancels.stage.PATIENCE", 0.2)
    assert by_cancels(catalogue()[label]).by is not None


async def _several_awaits(log: list[str]) -> None:
    loop = asyncio.get_running_loop()
    for number in range(3):
        waited_for = loop.create_future()
        loop.call_later(0, loop.call_soon, loop.call_soon, waited_for.set_result, None)
        await waited_for
        log.append(f"after {number}")
    await asyncio.sleep(0)
    log.append("end")


@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
async def test_each_await_is_hit_once(number: int, moment: Moment) -> None:
    """The n-th await ends as cancelled, and what comes before it was done."""
    log: list[str] = []
    steps = Steps(Cancel(number, moment))
    task = asyncio.create_task(steps.drive(_several_awaits(log)))
    await asyncio.wait([task])
    done = ["after 0", "after 1", "after 2", "end"]
    assert task.cancelled() == (number < 5)
    assert log == done[: number - 1]
    assert steps.awaits == min(number, 4)
    assert steps.cancels == (number < 5)


async def _stubborn() -> None:
    for _ in range(3):
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            raise


async def test_second_cancel_comes_after_the_first() -> None:
    """At the await that the first one has led to."""
    steps = Steps(Cancel(1, again=1))
    task = asyncio.create_task(steps.drive(_stubborn()))
    await asyncio.wait([task])
    assert task.cancelled()
    assert (steps.awaits, steps.awaits_after, steps.cancels) == (1, 1, 2)


async def test_lost_change_is_noticed(stores: Stores) -> None:
    """A state that is neither the old nor the new one breaks the promise."""
    stage = Stage(stores.make("memory"))
    await stage.prepare(fresh=False)
    with pytest.raises(BrokenPromiseError, match="not one of"):
        await stage.look({(stage.new, stage.old)})
    await stage.close()
