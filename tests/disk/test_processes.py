"""Several processes use one directory, and some of them are killed."""

import math
import random
import select
from collections import Counter as Tally
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statemgr import StateManagerDisk, StateToken
from statemgr.errors import StateDirectoryInUseError

from .programs import PATIENCE, Interpreters, Program, Zygote
from .workers import Counter, Shares


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


async def value_of(directory: Path, ident: str) -> int:
    async with StateManagerDisk(directory) as manager:
        return (await manager.get_state(StateToken(ident, Counter))).value


@pytest.mark.parametrize(
    "modes", [({}, {}), ({"fsync": True}, {})], ids=["alike", "one with fsync"]
)
async def test_no_increment_of_two_processes_is_lost(
    tmp_path: Path, modes: tuple[dict[str, Any], ...]
) -> None:
    """Two processes add 200 times to one counter: it is 400 then. They may differ in `fsync`."""
    with Interpreters() as interpreters:
        programs = [
            interpreters.start(
                "increment", directory=str(tmp_path), idents=["a"], times=200, **mode
            )
            for mode in modes
        ]
        for program in programs:
            program.hear_until("ready")
        for program in programs:
            program.go()
        for program in programs:
            program.finish()
    assert await value_of(tmp_path, "a") == 400


async def test_processes_that_are_killed_lose_nothing(tmp_path: Path, zygote: Zygote) -> None:
    """Four processes add 500 each to twenty counters, are killed meanwhile and replaced.

    A counter has what was acknowledged, and at most what had begun when its process was killed
    in addition.
    """
    seed = random.getrandbits(32)
    drawn = random.Random(seed)  # noqa: S311
    idents = [f"user-{number}" for number in range(20)]
    acknowledged: Tally[str] = Tally()
    in_flight: Tally[str] = Tally()
    left, lives = [500] * 4, [4] * 4
    running: dict[Program, tuple[int, float]] = {}  # its place, and after how many lines to kill it

    def start(place: int) -> None:
        program = zygote.start(
            "increment",
            directory=str(tmp_path),
            idents=idents,
            times=left[place],
            seed=drawn.getrandbits(32),
        )
        program.go()
        lives[place] -= 1
        running[program] = place, drawn.randrange(1, 200) if lives[place] else math.inf

    for place in range(4):
        start(place)
    kills = 0
    while running:
        ready, _, _ = select.select(list(running), [], [], PATIENCE)
        assert ready, f"nobody gets on, after {kills} kills, seed {seed}"
        for program in ready:
            place, limit = running[program]
            if program.hear() and len(program.heard) < limit:
                continue
            del running[program]
            kills += program.kill()
            said = [(line[0], line[1]) for line in program.heard if len(line) == 2]
            done = Tally(number for word, number in said if word == "done")
            acknowledged += done
            in_flight += Tally(number for word, number in said if word == "begin") - done
            left[place] -= done.total()
            if left[place]:
                start(place)
    assert kills >= 10
    assert acknowledged.total() == 2000
    async with StateManagerDisk(tmp_path) as manager:
        for number, ident in enumerate(idents):
            value = (await manager.get_state(StateToken(ident, Counter))).value
            least = acknowledged[str(number)]
            assert least <= value <= least + in_flight[str(number)], f"{ident}, seed {seed}"


async def test_neither_of_two_processes_starves(tmp_path: Path, zygote: Zygote) -> None:
    """Two processes want one lock without end, one of them with eight times as many tasks.

    The lock goes from one to the other: while both want it, each has a fair share of the bodies.
    """
    programs = [
        zygote.start(
            "share", directory=str(tmp_path), name=name, tasks=tasks, until=100, hold=0.005
        )
        for name, tasks in (("many", 8), ("one", 1))
    ]
    for program in programs:
        program.hear_until("ready")
    for program in programs:
        program.go()
    for program in programs:
        program.finish()
    async with StateManagerDisk(tmp_path) as manager:
        counts = (await manager.get_state(StateToken("shared", Shares))).counts
    assert min(counts["many"], counts["one"]) >= 33, counts


async def test_lock_of_a_killed_holder_is_free(tmp_path: Path, zygote: Zygote) -> None:
    """Who waits for the lock of a process that is killed gets it, and finds nothing half done."""
    holder = zygote.start("hold", directory=str(tmp_path), ident="a")
    holder.hear_until("holds")
    waiter = zygote.start("queue", directory=str(tmp_path), ident="a")
    waiter.hear_until("waits")
    assert ["done"] not in waiter.heard
    holder.kill()
    waiter.finish()
    assert await value_of(tmp_path, "a") == 1


async def test_place_of_a_killed_waiter_is_free(tmp_path: Path, zygote: Zygote) -> None:
    """Those behind a waiting process that is killed get the lock, also if the holder lives on."""
    holder = zygote.start("hold", directory=str(tmp_path), ident="a")
    holder.hear_until("holds")
    waiters = []
    for _ in range(3):
        waiter = zygote.start("queue", directory=str(tmp_path), ident="a")
        waiter.hear_until("waits")
        waiters.append(waiter)
    waiters.pop(0).kill()
    holder.go()
    holder.finish()
    for waiter in waiters:
        waiter.finish()
    assert await value_of(tmp_path, "a") == 3


async def test_directory_is_one_process_s_alone(tmp_path: Path, zygote: Zygote) -> None:
    """Who has a directory exclusively keeps all others out, until it is killed."""
    owner = zygote.start("occupy", directory=str(tmp_path), exclusive=True)
    owner.hear_until("open")
    for exclusive in (False, True):
        with pytest.raises(StateDirectoryInUseError):
            StateManagerDisk(tmp_path, exclusive=exclusive)
    owner.kill()
    for exclusive in (True, False):
        async with (
            StateManagerDisk(tmp_path, exclusive=exclusive) as manager,
            manager.modify_state(StateToken("a", Counter)) as counter,
        ):
            counter.value += 1
    assert await value_of(tmp_path, "a") == 2


async def test_directory_that_is_shared_is_nobody_s_alone(tmp_path: Path, zygote: Zygote) -> None:
    """While others use a directory it cannot be had exclusively; they may be as many as like."""
    users = [zygote.start("occupy", directory=str(tmp_path)) for _ in range(2)]
    for user in users:
        user.hear_until("open")
    for user in users:
        with pytest.raises(StateDirectoryInUseError):
            StateManagerDisk(tmp_path, exclusive=True)
        async with StateManagerDisk(tmp_path) as manager:
            await manager.set_state(StateToken("a", Counter), Counter(1))
        user.kill()
    async with StateManagerDisk(tmp_path, exclusive=True) as manager:
        assert (await manager.get_state(StateToken("a", Counter))).value == 1


async def test_directory_that_was_let_go_is_free(tmp_path: Path, zygote: Zygote) -> None:
    """A manager that was closed is in nobody's way any more."""
    owner = zygote.start("occupy", directory=str(tmp_path), exclusive=True)
    owner.hear_until("open")
    owner.go()
    owner.finish()
    async with StateManagerDisk(tmp_path, exclusive=True) as manager:
        await manager.set_state(StateToken("a", Counter), Counter(1))
    assert await value_of(tmp_path, "a") == 1
