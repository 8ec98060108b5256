"""The kit itself: its clock, its cancels, and its use by somebody with other settings."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from statemgr.testing import ManualClock
from statemgr.testing.faults import cancel_at_every_await


def test_calls_are_made_in_the_order_of_their_times() -> None:
    """Each sees its own due time, the wall clock moves along, and equal times keep their order."""
    clock = ManualClock(wall=500.0, monotonic=100.0)
    made: list[tuple[str, float, float]] = []

    def note(name: str) -> None:
        made.append((name, clock.monotonic(), clock.time()))

    clock.call_later(3, note, "c")
    clock.call_later(1, note, "a")
    clock.call_later(3, note, "d")
    clock.call_later(2, note, "b")
    clock.call_later(4, note, "late")
    assert clock.timers == 5
    clock.advance(3)
    assert made == [("a", 101, 501), ("b", 102, 502), ("c", 103, 503), ("d", 103, 503)]
    assert (clock.monotonic(), clock.time()) == (103, 503)
    assert clock.timers == 1


def test_calls_that_make_calls() -> None:
    """What a call asks for within the time that passes is done too."""
    clock = ManualClock(monotonic=0)
    made: list[float] = []

    def again() -> None:
        made.append(clock.monotonic())
        clock.call_later(2, again)

    clock.call_later(0, again)
    clock.advance(5)
    assert made == [0, 2, 4]


def test_cancelled_call_is_not_made() -> None:
    """Also if an earlier one of the same moment cancels it."""
    clock = ManualClock()
    made: list[str] = []
    later = clock.call_later(1, made.append, "later")
    clock.call_later(0.5, later.cancel)
    clock.advance(2)
    later.cancel()
    assert made == []
    assert clock.timers == 0


def test_wall_clock_steps_alone() -> None:
    """Nothing becomes due by it; time itself does not run backwards."""
    clock = ManualClock(wall=500.0, monotonic=100.0)
    made: list[int] = []
    clock.call_later(1, made.append, 1)
    clock.step_wall_clock(3600)
    assert (clock.time(), clock.monotonic(), made) == (4100, 100, [])
    clock.step_wall_clock(-7200)
    assert clock.time() == -3100
    with pytest.raises(ValueError, match="step_wall_clock"):
        clock.advance(-1)


async def test_tasks_run_as_time_passes() -> None:
    """A task that sleeps, works and sleeps again does so at each due time."""
    clock = ManualClock(monotonic=0)
    seen: list[float] = []

    async def work() -> None:
        while True:
            woken = asyncio.get_running_loop().create_future()
            clock.call_later(1, woken.set_result, None)
            await woken
            seen.append(clock.monotonic())

    task = asyncio.get_running_loop().create_task(work())
    await clock.settle()
    await clock.advance_and_settle(3.5)
    assert seen == [1, 2, 3]
    task.cancel()


async def test_cancel_comes_at_each_await() -> None:
    """Once as the wait begins and once with its result; then the run that is not reached."""
    reached: list[list[str]] = []

    async def run() -> None:
        steps: list[str] = []
        reached.append(steps)
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: future.done() or future.set_result(None))
        steps.append("future")
        await future
        steps.append("turn")
        await asyncio.sleep(0)
        steps.append("end")

    ends: list[bool] = []

    async def check(ended: bool) -> None:
        ends.append(ended)

    assert await cancel_at_every_await(run, check) == 2
    first, second, whole = ["future"], ["future", "turn"], ["future", "turn", "end"]
    assert reached == [first, first, second, second, whole]
    assert ends == [False, False, False, False, True]


async def test_cancel_that_is_withstood() -> None:
    """A run that goes on in spite of the cancel has ended; its own error is passed on."""

    async def withstand() -> None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await asyncio.sleep(0)

    ends: list[bool] = []

    async def check(ended: bool) -> None:
        ends.append(ended)

    await cancel_at_every_await(withstand, check)
    assert ends
    assert all(ends)

    async def fail() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            raise KeyError

    with pytest.raises(KeyError):
        await cancel_at_every_await(fail, check)


THEIRS = """
from statemgr import StateManagerMemory
from statemgr.testing import Capability, Conformance, Harness

class TheirHarness(Harness):
    capabilities = frozenset({Capability.ROLLBACK, Capability.PURGE})

    async def make(self, **options):
        return StateManagerMemory(**options)

class TestTheirs(Conformance):
    harness_type = TheirHarness
"""


def test_kit_runs_in_strict_mode(tmp_path: Path) -> None:
    """A project with asyncio's strict mode, and no settings of ours, runs all tests of it."""
    (tmp_path / "test_theirs.py").write_text(THEIRS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    command += ["-o", "asyncio_default_fixture_loop_scope=function"]
    command += ["-o", "asyncio_mode=strict", "-k", "waiting or reading or timeout", "--rootdir=."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_missing_extra_is_named() -> None:
    """Without the packages of the extra the error says what to install."""
    script = (
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'hypothesis' else find(name)\n"
        "from statemgr.testing import Conformance\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "needs hypothesis: pip install 'statemgr[testing]'" in done.stderr
