"""Several processes use one server; some of them are stopped, and some are killed."""

import asyncio
import itertools
import math
import os
import random
import select
import signal
import statistics
import time
from collections import Counter as Numbers
from collections.abc import Iterator
from typing import Any

import pytest
from disk.programs import PATIENCE, Program

from statemgr import StateManagerRedis, StateToken
from statemgr.testing.servers import Server

from .workers import (
    POINTS,
    Counter,
    RedisZygote,
    Tally,
    Turns,
    finish,
    hear,
    hear_all,
    hear_word,
    pid_of,
    resume,
    said,
    show,
    stop,
)

SEED = int(os.environ.get("STATEMGR_SEED", random.getrandbits(32)))
TURNS = 500  # that processes have together
CHANGES = 2  # of a process that is stopped at each step
STOPS = int(os.environ.get("STATEMGR_STOPS", "2"))  # random stops of each process
KILLS = int(os.environ.get("STATEMGR_KILLS", "6"))

SHORT = {"lock_expiration": 1.0, "lock_warning_threshold": 0.5}

MODES: dict[str, dict[str, Any]] = {
    "off": {},
    "through": {"oplock": "through", "oplock_hold_time": 0.5},
    "behind": {"oplock": "behind", "oplock_hold_time": 0.5},
}

TALLY = StateToken("stopped", Tally)

_numbers = itertools.count()


@pytest.fixture(scope="module")
def zygote() -> Iterator[RedisZygote]:
    with RedisZygote() as zygote:
        yield zygote


@pytest.fixture
def where(redis_server: Server) -> dict[str, Any]:
    """Return how managers are made that share states with no other test's."""
    return {"redis": redis_server.url, "key_prefix": f"processes-{os.getpid()}-{next(_numbers)}"}


async def value_of(where: dict[str, Any], ident: str) -> int:
    async with StateManagerRedis(**where) as manager:
        return (await manager.get_state(StateToken(ident, Counter))).value


# All of them live


@pytest.mark.parametrize("mode", MODES)
async def test_no_increment_of_two_processes_is_lost(
    zygote: RedisZygote, where: dict[str, Any], mode: str
) -> None:
    """Two processes add 200 times to one counter: it is 400 then."""
    programs = [
        zygote.start("increment", idents=["a"], times=200, **where, **MODES[mode]) for _ in range(2)
    ]
    for program in programs:
        await hear_word(program, "ready")
    for program in programs:
        program.go()
    await finish(*programs)
    assert [said(program, "expired") for program in programs] == [[], []]
    assert await value_of(where, "a") == 400


@pytest.mark.parametrize("tasks", [1, 4])
async def test_processes_have_their_turns(
    zygote: RedisZygote, where: dict[str, Any], tasks: int
) -> None:
    """Three processes that want one lock without end have equal shares of it (Jain's index).

    All turns count, from the first.
    """
    programs = {
        name: zygote.start("share", name=name, tasks=tasks, until=TURNS, hold=0.001, **where)
        for name in "abc"
    }
    for program in programs.values():
        await hear_word(program, "ready")
    for program in programs.values():
        program.go()
    await finish(*programs.values())
    async with StateManagerRedis(**where) as manager:
        names = (await manager.get_state(StateToken("shared", Turns))).names[:TURNS]
    counts = Numbers(names)
    jain = sum(counts.values()) ** 2 / (3 * sum(count**2 for count in counts.values()))
    waits = sorted(int(us) for one in programs.values() for us in said(one, "waits")[0])
    p99, median = waits[len(waits) * 99 // 100], statistics.median(waits)
    show(f"jain tasks={tasks} {jain:.4f} {dict(counts)}")
    show(
        f"waits tasks={tasks} n={len(waits)} median={median} us p99={p99} us"
        f" max={waits[-1]} ratio={p99 / median:.2f}"
    )
    assert jain >= 0.95, counts


async def test_turn_of_a_process_that_hears_nothing(
    zygote: RedisZygote, where: dict[str, Any]
) -> None:
    """A waiter to which no message comes has its turn before the one behind it nevertheless.

    It looks by itself, sooner than the lock that is passed to it goes to the next.
    """
    async with StateManagerRedis(**where) as manager:
        async with manager.modify_state(TALLY):
            waiters = []
            for name, deaf in (("deaf", True), ("hears", False)):
                waiter = zygote.start("queue", ident=TALLY.ident, name=name, deaf=deaf, **where)
                await hear_word(waiter, "waits")
                waiters.append(waiter)
        left_at = time.monotonic()
        await finish(*waiters)
    got = [float(said(waiter, "got")[0][0]) for waiter in waiters]
    show(f"deaf waiter {got[0] - left_at:.3f} s, the one behind it {got[1] - got[0]:.4f} s")
    assert got[0] < got[1]


# Some are killed


async def test_lock_of_a_killed_holder_goes_to_the_next(
    zygote: RedisZygote, where: dict[str, Any]
) -> None:
    """Who waits for a process that is killed has the lock when it expires; nothing is half done."""
    holder = zygote.start("hold", ident=TALLY.ident, **where, **SHORT)
    await hear_word(holder, "holds")
    waiter = zygote.start("queue", ident=TALLY.ident, name="waiter", **where, **SHORT)
    await hear_word(waiter, "waits")
    holder.kill()
    killed_at = time.monotonic()
    await finish(waiter)
    show(f"killed holder {float(said(waiter, 'got')[0][0]) - killed_at:.3f} s")
    async with StateManagerRedis(**where) as manager:
        assert (await manager.get_state(TALLY)).counts == {"waiter": 1}


async def test_place_of_a_killed_waiter_goes_to_the_next(
    zygote: RedisZygote, where: dict[str, Any]
) -> None:
    """Who waits behind a process that is killed does not wait until a lock expires."""
    where["lock_expiration"] = 600.0
    async with StateManagerRedis(**where) as manager:
        async with manager.modify_state(TALLY):
            waiters = []
            for name in ("killed", "behind"):
                waiter = zygote.start("queue", ident=TALLY.ident, name=name, **where)
                await hear_word(waiter, "waits")
                waiters.append(waiter)
            waiters[0].kill()
        left_at = time.monotonic()
        await finish(waiters[1])
        assert (await manager.get_state(TALLY)).counts == {"behind": 1}
    show(f"killed waiter {float(said(waiters[1], 'got')[0][0]) - left_at:.3f} s")


async def test_processes_that_are_killed_lose_nothing(
    zygote: RedisZygote, where: dict[str, Any]
) -> None:
    """Four processes add 200 each to five counters, are killed meanwhile and replaced.

    Two of them keep their locks for a while (oplock "through").

    A counter has what was acknowledged, and at most what had begun when its process was killed
    in addition.
    """
    drawn = random.Random(SEED)  # noqa: S311
    idents = [f"user-{number}" for number in range(5)]
    acknowledged: Numbers[str] = Numbers()
    in_flight: Numbers[str] = Numbers()
    left, lives = [200] * 4, [1 + KILLS // 4 + (place < KILLS % 4) for place in range(4)]
    running: dict[Program, tuple[int, float]] = {}  # its place, and after how many lines to kill it

    def start(place: int) -> None:
        program = zygote.start(
            "increment",
            idents=idents,
            times=left[place],
            seed=drawn.getrandbits(32),
            **where,
            **SHORT,
            **MODES["through" if place % 2 else "off"],
        )
        program.go()
        lives[place] -= 1
        running[program] = place, drawn.randrange(3, 150) if lives[place] else math.inf

    for place in range(4):
        start(place)
    kills = 0
    while running:
        ready, _, _ = select.select(list(running), [], [], PATIENCE)
        assert ready, f"nobody gets on, after {kills} kills, seed {SEED}"
        for program in ready:
            place, limit = running[program]
            if program.hear() and len(program.heard) < limit:
                continue
            del running[program]
            kills += program.kill()
            done = Numbers(number for (number,) in said(program, "done"))
            acknowledged += done
            in_flight += Numbers(number for (number,) in said(program, "begin")) - done
            left[place] -= done.total()
            if left[place]:
                start(place)
    show(f"kills {kills} acknowledged {acknowledged.total()} in flight {in_flight.total()}")
    assert kills >= KILLS // 2
    assert acknowledged.total() == 800
    async with StateManagerRedis(**where) as manager:
        for number, ident in enumerate(idents):
            value = (await manager.get_state(StateToken(ident, Counter))).value
            least = acknowledged[str(number)]
            assert least <= value <= least + in_flight[str(number)], f"{ident}, seed {SEED}"


# Some are stopped


async def test_holder_that_is_stopped_writes_nothing(
    zygote: RedisZygote, where: dict[str, Any]
) -> None:
    """A holder that is stopped beyond its lock's expiration is told so, and has written nothing.

    So it is with each oplock.
    """

    async def run(manager: StateManagerRedis, mode: str) -> None:
        token = StateToken(f"stopped {mode}", Tally)
        holder = zygote.start("hold", ident=token.ident, **where, **SHORT, **MODES[mode])
        await hear_word(holder, "holds")
        stop(holder)
        async with manager.modify_state(token) as tally:
            tally.add("parent")
        os.kill(pid_of(holder), signal.SIGCONT)
        holder.go()
        await finish(holder)
        assert said(holder, "expired") == [[]], mode
        assert (await manager.get_state(token)).counts == {"parent": 1}, mode

    async with StateManagerRedis(**where) as manager:
        await asyncio.gather(*(run(manager, mode) for mode in MODES))


@pytest.mark.parametrize("mode", MODES)
async def test_process_that_is_stopped_at_each_step(
    zygote: RedisZygote, where: dict[str, Any], mode: str
) -> None:
    """Stopped anywhere while another process makes changes: none that was acknowledged is lost.

    With oplock "behind" what the stopped process had acknowledged may be lost; then it hears of it.
    """
    outcomes: Numbers[str] = Numbers()

    async def run(manager: StateManagerRedis, point: str, step: int) -> bool:
        token = StateToken(f"{point} {step}", Tally)
        program = zygote.start(
            "stop_at",
            ident=token.ident,
            point=point,
            step=step,
            times=CHANGES,
            **where,
            **SHORT,
            **MODES[mode],
        )
        try:
            while not said(program, "stops"):
                if not await hear(program):
                    return False  # it does not take so many steps
            for _ in range(2):
                async with manager.modify_state(token) as tally:
                    tally.add("parent")
            await resume(program)
            await finish(program)
        finally:
            program.close()
        counts = (await manager.get_state(token)).counts
        done, expired = len(said(program, "done")), len(said(program, "expired"))
        told = expired + len(said(program, "lost"))
        lost = done - counts.get("child", 0)
        outcomes.update(stops=1, expired=expired, lost=lost, told=told)
        assert counts["parent"] == 2, (point, step)
        assert done + expired == CHANGES, (point, step)
        if lost and mode == "behind":
            assert told, (point, step)
            assert int(said(program, "logged")[0][0]) > 0, (point, step)
            assert lost > 0, (point, step)
        else:
            assert lost == 0, (point, step)
        return True

    async def run_all(manager: StateManagerRedis, point: str) -> None:
        for first in itertools.count(1, 4):
            steps = range(first, first + 4)
            results = await asyncio.gather(
                *(run(manager, point, step) for step in steps), return_exceptions=True
            )
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            if not all(results):
                return

    async with StateManagerRedis(**where, **SHORT) as manager:
        results = await asyncio.gather(
            *(run_all(manager, point) for point in POINTS), return_exceptions=True
        )
    show(f"stopped {mode} {dict(outcomes)}")
    assert [result for result in results if result is not None] == []
    assert outcomes["stops"] >= 2 * len(POINTS)


async def test_processes_that_are_stopped_at_random_lose_nothing(
    zygote: RedisZygote, where: dict[str, Any]
) -> None:
    """Of the changes that were acknowledged none is lost, and none was done that was not.

    Three processes change two counters, are stopped for longer than their locks' expiration,
    and go on. This process makes changes all the while.
    """
    drawn = random.Random(SEED)  # noqa: S311
    tokens = [StateToken(ident, Counter) for ident in "ab"]
    mine = 0

    async def change(manager: StateManagerRedis) -> None:
        nonlocal mine
        while not all_done.is_set():
            async with manager.modify_state(drawn.choice(tokens)) as counter:
                counter.value += 1
            mine += 1

    async def stop_and_go(program: Program) -> None:
        for _ in range(STOPS):
            await asyncio.sleep(drawn.random() * 0.2)
            stop(program)
            await asyncio.sleep(1.6 * SHORT["lock_expiration"])
            os.kill(pid_of(program), signal.SIGCONT)

    all_done = asyncio.Event()
    async with StateManagerRedis(**where) as manager:
        programs = [
            zygote.start(
                "increment",
                idents=[token.ident for token in tokens],
                times=None,
                seed=drawn.getrandbits(32),
                **where,
                **SHORT,
                **MODES[mode],
            )
            for mode in ("off", "through", "through")
        ]
        for program in programs:
            await hear_word(program, "ready")
            program.go()
        changing = asyncio.ensure_future(change(manager))
        hearing = asyncio.gather(*map(hear_all, programs))
        await asyncio.gather(*map(stop_and_go, programs))
        for program in programs:
            program.go()
        await hearing
        all_done.set()
        await changing
        await finish(*programs)
        stored = sum([(await manager.get_state(token)).value for token in tokens])
    theirs = sum(len(said(program, "done")) for program in programs)
    expired = sum(len(said(program, "expired")) for program in programs)
    show(
        f"random stops stops={3 * STOPS} acknowledged={theirs}+{mine}"
        f" expired={expired} stored={stored}"
    )
    assert stored == theirs + mine, f"seed {SEED}"
