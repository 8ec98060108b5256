"""A program is killed while it writes: every state is a whole old one or a whole new one."""

import asyncio
import contextlib
import errno
import itertools
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from statemgr import StateManagerDisk, StateToken
from statemgr.backends.disk.files import state_name
from statemgr.errors import BackendUnavailableError

from .crash import SCENARIOS, crash
from .programs import PATIENCE, Zygote
from .workers import Page, Sheet

KILLS = int(os.environ.get("STATEMGR_KILLS", "6"))  # for each scenario
SEED = int(os.environ.get("STATEMGR_SEED", random.getrandbits(32)))

PAGE, SHEET = StateToken("one", Page), StateToken("one", Sheet)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.mark.parametrize(("mode", "together"), SCENARIOS)
def test_kill_at_a_random_moment(
    tmp_path: Path, zygote: Zygote, mode: str, *, together: bool
) -> None:
    """States are whole, two that are written together of one age, and none goes backwards.

    What was acknowledged is there, but for what a debounce delays.
    """
    print(f"STATEMGR_SEED={SEED}")  # noqa: T201  # seen if this fails
    figures = crash(zygote, tmp_path, mode, KILLS, SEED, together=together)
    assert figures.doubled == 0, figures
    if mode != "debounced":
        assert figures.lost == 0, figures


# Killed at each step. The file of a small state is overwritten, for a large one a file is made.

SMALL, LARGE = 100, 10_000


@pytest.mark.parametrize("found", [0, 2], ids=["the first change", "the third one"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([SMALL], [SMALL]),
        ([SMALL], [LARGE]),
        ([LARGE], [SMALL]),
        ([SMALL, LARGE], [SMALL, SMALL]),
        ([SMALL, LARGE], [LARGE, LARGE]),
    ],
)
async def test_kill_at_each_step(
    tmp_path: Path, zygote: Zygote, before: list[int], after: list[int], found: int
) -> None:
    """Killed before any call of the system, a change is there or is not, and the next one works.

    It is one of a page, or of a page and a sheet. At the third one there are two files of each
    that take turns.
    """
    async with StateManagerDisk(tmp_path) as manager:
        for step in itertools.count():
            tokens = [StateToken(f"killed at {step}", cls) for cls in (Page, Sheet)[: len(after)]]
            await turn(manager, tokens, before, found)
            program = zygote.start(
                "die_at", directory=str(tmp_path), ident=tokens[0].ident, sizes=after, step=step
            )
            is_done = program.outlive()
            number = await look(manager, tokens)
            assert number in ((found + 1,) if is_done else (found, found + 1)), step
            await turn(manager, tokens, before, 1)
            assert await look(manager, tokens) == number + 1
            if is_done:
                break
    assert step > 5 * len(after)
    assert not [path for path in (tmp_path / "states").iterdir() if "commit" in path.name]


async def turn(
    manager: StateManagerDisk, tokens: Sequence[StateToken[Page]], sizes: Sequence[int], times: int
) -> None:
    for _ in range(times):
        async with manager.modify_states(*tokens) as states:
            for state, size in zip(states, sizes, strict=True):
                state.turn(size)


async def look(manager: StateManagerDisk, tokens: Sequence[StateToken[Page]]) -> int:
    states = await manager.get_states(*tokens)
    assert all(state.is_whole() for state in states)
    (number,) = {state.number for state in states}
    return number


# What comes after a commit of two classes that was cut short


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Path:
    """A directory with a page and a sheet of number 1, whose number 2 is committed, and no more."""
    directory = tmp_path_factory.mktemp("committed")

    async def prepare() -> None:
        async with StateManagerDisk(directory) as manager:
            await turn(manager, (PAGE, SHEET), (SMALL, SMALL), 1)

    asyncio.run(prepare())
    for step in itertools.count():
        program = zygote.start(
            "die_at", directory=str(directory), ident="one", sizes=[SMALL, SMALL], step=step
        )
        assert not program.outlive()
        if list(directory.glob("states/*.commit")):
            break
    return directory


@pytest.fixture
def cut_short(committed: Path, tmp_path: Path) -> Path:
    """A copy of that, for the test to go on with."""
    return Path(shutil.copytree(committed, tmp_path / "copy"))


MODES = pytest.mark.parametrize(
    "mode",
    [{}, {"exclusive": True}, {"exclusive": True, "debounce": 60.0}],
    ids=["shared", "exclusive", "debounced"],
)


@MODES
async def test_state_set_after_an_interrupted_commit_stays(
    cut_short: Path, mode: dict[str, Any]
) -> None:
    """What the next program sets is not replaced by what that finds to be finished."""
    new = Page(7, b"")
    async with StateManagerDisk(cut_short, **mode) as manager:
        await manager.set_state(PAGE, new)
    async with StateManagerDisk(cut_short, **mode) as manager:
        assert await manager.get_state(PAGE) == new
        assert (await manager.get_state(SHEET)).number == 2


@MODES
async def test_state_deleted_after_an_interrupted_commit_stays_deleted(
    cut_short: Path, mode: dict[str, Any]
) -> None:
    """What is deleted by the program that comes next does not come back."""
    async with StateManagerDisk(cut_short, **mode) as manager:
        assert await manager.delete_state(PAGE)
    async with StateManagerDisk(cut_short, **mode) as manager:
        assert not await manager.has_state(PAGE)
        assert (await manager.get_state(SHEET)).number == 2


@MODES
async def test_commit_that_cannot_be_finished_is_not_finished_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: dict[str, Any]
) -> None:
    """A committed pair whose files cannot be written yet does not replace what comes after it.

    An error between the commit and the files is no error to the caller: the pair is committed.
    """
    real, failing = os.replace, False

    def replace(source: Any, target: Any) -> None:
        if failing and not str(target).endswith(".commit"):
            raise OSError(errno.EIO, "input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    async with StateManagerDisk(tmp_path, **mode) as manager:
        await turn(manager, (PAGE, SHEET), (SMALL, SMALL), 1)
        failing = True
        with contextlib.suppress(BackendUnavailableError):
            await turn(manager, (PAGE, SHEET), (SMALL, SMALL), 1)
            if mode.get("debounce"):
                await manager._flush()
        failing = False
        await turn(manager, (PAGE,), (SMALL,), 1)
    async with StateManagerDisk(tmp_path, **mode) as manager:
        assert (await manager.get_state(PAGE)).number == 3
        assert (await manager.get_state(SHEET)).number == 2


# Readers beside a writer


async def test_reader_sees_two_classes_as_they_were_at_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two commits between a reader's look at one state and its look at the other one.

    The first state's file is the one it was then: the two files of a state take turns.
    """
    async with StateManagerDisk(tmp_path) as writer, StateManagerDisk(tmp_path) as reader:
        await turn(writer, (PAGE, SHEET), (SMALL, SMALL), 2)
        loop = asyncio.get_running_loop()
        real = reader._files._read_file

        def read(name: str, limit: int | None = None) -> Any:
            found = real(name, limit)
            if name == state_name(PAGE.cache_key):
                monkeypatch.undo()
                commits = turn(writer, (PAGE, SHEET), (SMALL, SMALL), 2)
                asyncio.run_coroutine_threadsafe(commits, loop).result(PATIENCE)
            return found

        monkeypatch.setattr(reader._files, "_read_file", read)
        page, sheet = await reader.get_states(PAGE, SHEET)
        assert page.number == sheet.number
