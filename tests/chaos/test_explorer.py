"""The explorer: it finds nothing in the protocol, finds mutants, and its models are faithful."""

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
import redis

import chaos.__main__
from chaos.explorer.choices import Choices
from chaos.explorer.explore import Explorer, Finding, Outcome, explore, read_text, replay, text_of
from chaos.explorer.loop import VirtualClock, VirtualLoop, VirtualTime
from chaos.explorer.mutants import MUTANTS
from chaos.explorer.process import deterministic
from chaos.explorer.scenarios import SCENARIOS
from chaos.explorer.server import SCRIPTS, ModelServer
from statemgr.testing.servers import DEFAULT, Server

ROOT = Path(__file__).parents[2]


# The protocol


def test_nothing_is_found_in_the_protocol() -> None:
    """Faults of each kind, in each mode."""
    outcome = explore(seed=1, schedules=2000)
    assert [(finding.place, finding.faults) for finding in outcome.findings] == []
    assert outcome.total == 2000
    assert set(outcome.schedules) == {"off", "through", "behind"}
    wanted = {"acquire", "queue", "commit", "renew", "expire", "claim", "skip a claim"}
    wanted |= {"commit again", "acquire again", "crash", "stall", "cancel", "hand over", "refuse"}
    assert wanted <= set().union(*outcome.transitions.values())


@pytest.mark.parametrize(
    "name",
    ["releases-whoever-has-it", "claims-do-not-end", "repeated-commit-fails", "fence-starts-again"],
)
def test_mutant_is_found(name: str) -> None:
    """Within a few schedules, and again where it was found."""
    outcome = explore(seed=1, schedules=5000, mutant=name)
    finding = outcome.findings[0]
    assert replay(finding.place, MUTANTS[name]).faults == finding.faults
    assert replay(finding.place).faults == []
    with deterministic():
        smallest = Explorer(MUTANTS[name]).smallest(finding)
    assert smallest.faults
    assert smallest.trace
    assert len(smallest.deviations) <= len(finding.deviations)


def _figures(outcome: Outcome) -> Any:
    return outcome.schedules, outcome.steps, outcome.transitions, sorted(outcome.distinct)


def test_same_seed_gives_the_same_run() -> None:
    """Step by step; and another seed another one."""
    first, again, other = (explore(seed, 100) for seed in (5, 5, 6))
    assert _figures(first) == _figures(again)
    assert _figures(first) != _figures(other)


def test_same_seed_gives_the_same_verdict_in_another_process() -> None:
    """Whatever hashes and addresses there are."""
    code = (
        "from chaos.explorer.explore import explore\n"
        "o = explore(8, 400, mutant='waits-for-itself', most_findings=3)\n"
        "print(o.findings, o.steps, o.schedules, sorted(o.distinct))\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert said.pop().count("Finding(") == 3


def test_random_schedule_is_replayed_by_its_deviations() -> None:
    """What a seed has drawn is a plan, too."""
    drawn = replay("3:14")
    scenario = SCENARIOS[drawn.scenario]
    planned = replay(text_of(scenario, drawn.deviations))
    assert drawn.deviations
    assert planned.trace == drawn.trace
    assert read_text(text_of(scenario, drawn.deviations)) == (scenario, drawn.deviations)


def test_plans_are_all_different_and_shared_out() -> None:
    """Each deviation that there is, in one of two jobs."""
    explorer, scenario = Explorer(most_findings=10**6), SCENARIOS["pair-off"]
    widths: dict[int, int] = {}
    with deterministic():
        explorer.run(scenario, Choices({}, widths))
        whole = {(step, which) for step, width in widths.items() for which in range(width)}
        halves = [
            [next(iter(ran.deviations.items())) for ran in explorer.plans(scenario, 1, share)]
            for share in ((0, 2), (1, 2))
        ]
    assert sorted(halves[0] + halves[1]) == sorted(whole)
    assert abs(len(halves[0]) - len(halves[1])) <= 1


class _LateAcquire(Choices):
    """Have the first acquire come late, and its process stall when its body has begun."""

    def __init__(self) -> None:
        super().__init__({})
        self.next_step = 0
        self.chosen: list[str] = []

    def choose(self, step: int, alternatives: Callable[[], list[Any]]) -> Any:
        self.next_step = step + 1
        found = alternatives()
        first = {e[1].process.name for e in found if e[0] == "cancel" and e[1].found is not None}
        for event in found:
            late = event[0] == "cut late" and repr(event[1]) == "p0/1" and event[2] > 0
            stall = event[0] == "stall" and event[1].name in first and event[2] > 2_000_000
            if (late or stall) and event[0] not in self.chosen:
                self.chosen.append(event[0])
                return event
        return None


def test_late_acquire_does_not_renew_a_lost_grant() -> None:
    """An acquire that is sent again comes twice: the second time when the lock was lost.

    Then its owner has the lock, but another grant than the one that its body began under: what
    was committed between the two must not be overwritten.
    """
    choices = _LateAcquire()
    with deterministic():
        verdict = Explorer().run(SCENARIOS["pair-off"], choices)
    assert choices.chosen == ["cut late", "stall"]
    assert verdict.faults == []


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A mutant is found, and replayed from what was printed."""
    mutant = ["--mutant", "waits-for-itself"]
    args = ["explore", *mutant, "--jobs", "1", "--seed", "1", "--schedules", "2000"]
    assert chaos.__main__.main(args) == 0
    said = capsys.readouterr().out
    assert "mutant waits-for-itself: found" in said
    place = next(line for line in said.splitlines() if "--replay" in line).split("'")[1]
    assert chaos.__main__.main(["explore", *mutant, "--replay", place]) == 1
    assert "WRONG" in capsys.readouterr().out
    assert chaos.__main__.main(["explore", "--replay", place]) == 0
    assert "nothing wrong" in capsys.readouterr().out


def test_a_fault_is_not_lost_in_shrinking() -> None:
    """A schedule that shows a fault without any deviation is reported so."""
    with deterministic():
        explorer = Explorer(MUTANTS["fence-stays"])
        scenario = SCENARIOS["three-off"]
        verdict = explorer.run(scenario, Choices({5: 2, 9: 1}))
        finding = Finding("", scenario.name, verdict.deviations, verdict.faults)
        assert explorer.smallest(finding).deviations == {}


# The loop


def _until_idle(loop: VirtualLoop, time: VirtualTime) -> None:
    while True:
        while loop.ready:
            loop.turn()
        due = loop.next_due()
        if due is None:
            return
        time.now = max(due, time.now)
        loop.wake_timers()


def test_timers_run_in_order() -> None:
    """By their time, and those of one time in the order of their making; none if called off."""
    time = VirtualTime()
    loop, ran = VirtualLoop(time), []
    clock = VirtualClock(loop)
    for delay in (0.3, 0.1, 0.2, 0.1):
        clock.call_later(delay, lambda d=delay: ran.append((d, time.now)))
    loop.call_later(0.15, ran.append, "called off").cancel()
    loop.call_soon(ran.append, "soon")
    _until_idle(loop, time)
    assert ran == ["soon", (0.1, 100_000), (0.1, 100_000), (0.2, 200_000), (0.3, 300_000)]
    assert clock.monotonic() == loop.time() == VirtualTime.START + 0.3


def test_timer_is_never_early() -> None:
    """Though time is in whole microseconds."""
    time = VirtualTime()
    loop = VirtualLoop(time)
    for number in range(1000):
        time.now = number * 7919
        seconds = 0.000_000_3 * number
        assert loop.call_later(seconds, print).due >= time.now + seconds * 1_000_000 - 1e-6


def test_a_turn_runs_what_was_ready_at_its_beginning() -> None:
    """As asyncio's does: so another input may come between two turns."""
    loop, ran = VirtualLoop(VirtualTime()), []
    loop.call_soon(lambda: (ran.append(1), loop.call_soon(ran.append, 3)))
    loop.call_soon(ran.append, 2)
    loop.turn()
    assert ran == [1, 2]
    loop.turn()
    assert ran == [1, 2, 3]


def test_asyncio_runs_on_it() -> None:
    """Tasks, sleeps, timeouts, waits and cancels, without any time passing."""
    time = VirtualTime()
    loop, ran = VirtualLoop(time), []

    async def worker(name: str, seconds: float) -> str:
        await asyncio.sleep(seconds)
        ran.append((name, time.now))
        return name

    async def whole() -> None:
        assert asyncio.get_running_loop() is loop
        assert await asyncio.gather(worker("b", 0.2), worker("a", 0.1)) == ["b", "a"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        task = loop.create_task(worker("never", 1))
        done, pending = await asyncio.wait([task], timeout=0.5)
        assert (done, pending) == (set(), {task})
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    task = loop.create_task(whole())
    _until_idle(loop, time)
    task.result()
    assert ran == [("a", 100_000), ("b", 200_000)]
    assert time.now == 5_700_000
    assert loop.errors == []


def test_what_a_callback_raises_is_kept() -> None:
    """It is a finding; the others run."""
    loop, ran = VirtualLoop(VirtualTime()), []
    loop.call_soon(lambda: 1 // 0)
    loop.call_soon(ran.append, 1)
    loop.turn()
    assert [type(error) for error in loop.errors] == [ZeroDivisionError]
    assert ran == [1]


def test_a_dead_process_does_nothing() -> None:
    """What its coroutines do as they are taken apart is not heard of."""
    loop, ran = VirtualLoop(VirtualTime()), []

    async def body() -> None:
        try:
            await asyncio.sleep(1)
        finally:
            loop.call_soon(ran.append, 1)
            await asyncio.sleep(1)

    loop.create_task(body())
    loop.turn()
    loop.die()
    loop.bury()
    loop.turn()
    assert ran == []
    assert loop.next_due() is None


# The model of the server


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """A real server."""
    with Server(DEFAULT) as server, redis.Redis.from_url(server.url) as client:
        yield client


def _reply(data: bytes) -> Any:
    reader = hiredis.Reader()
    reader.feed(data)
    reply = reader.gets()
    return _plain(reply)


def _plain(reply: Any) -> Any:
    if isinstance(reply, Exception):
        return "error"
    return [_plain(part) for part in reply] if isinstance(reply, list) else reply


def _ask(client: Any, source: bytes, key: str, *args: Any) -> Any:
    try:
        return _plain(client.execute_command("EVAL", source, 1, key, *args))
    except redis.ResponseError:
        return "error"


SNIPPETS = [
    "return {1, 2.9, -2.9, 'text', true, {3, {}}, ''}",
    "return {1, nil, 3}",
    "return {1, false, 3}",
    "return false",
    "return nil",
    "return true",
    "return {err = 'ERR mine'}",
    "return redis.call('HSET', KEYS[1], 'a', 1, 'b', 1.5, 'c', 'x', 'a', 1e13)",
    "return redis.call('HMGET', KEYS[1], 'a', 'b', 'none', 'c')",
    "return {redis.call('HGET', KEYS[1], 'b'), redis.call('HGET', KEYS[1], 'none')}",
    "return type(redis.call('HGET', KEYS[1], 'none'))",
    "return type(redis.call('HMGET', KEYS[1], 'x')[1])",
    "return redis.call('HKEYS', KEYS[1])",
    "return redis.call('PTTL', KEYS[1])",
    "return redis.call('PTTL', 'nobody')",
    "return {redis.call('PEXPIRE', KEYS[1], 1e6), redis.call('PEXPIRE', 'nobody', 1000)}",
    "return redis.call('PTTL', KEYS[1]) > 900000",
    "return redis.call('PEXPIRE', KEYS[1], 1.5)",
    "return redis.call('PEXPIRE', KEYS[1], 'x')",
    "return redis.call('HDEL', KEYS[1], 'a', 'none', '')",
    "return {redis.call('HKEYS', KEYS[1]), redis.call('HKEYS', 'nobody')}",
    "return redis.call('HSET', KEYS[1], 'odd')",
    "return redis.call('HSET', KEYS[1], 'a', {})",
    "local e = redis.pcall('HSET', KEYS[1], 'odd') return type(e) .. type(e.err)",
    "return redis.call('NOSUCH', KEYS[1])",
    "return redis.call('PUBLISH', 'nobody', 'message')",
    "made = 1",
    "return nosuch",
    "return {tostring(1e13), 1750000000000 .. '', 1 / 3 .. '', string.format('%.0f', 1e15)}",
    "return {type(redis.call('TIME')[1]), #redis.call('TIME')}",
    "return {ARGV[1], #ARGV, KEYS[1] ~= nil, #KEYS}",
    "return redis.call('HDEL', KEYS[1], 'b', 'c')",
    "return {redis.call('HKEYS', KEYS[1]), redis.call('PTTL', KEYS[1])}",
]


def test_model_runs_what_scripts_use_as_a_server_does(client: Any) -> None:
    """Commands, their replies as a script sees them, what it returns, and its errors."""
    model, key = ModelServer(), "snippets"
    for source in SNIPPETS:
        ran = model.run(model.load("", source.encode()), 10**15, key.encode(), b"argument")
        assert _reply(ran.reply) == _ask(client, source.encode(), key, "argument"), source


TERM, CLAIM, EXPIRATION = 90_000, 30_000, 400_000  # ms: far apart, for the server's TTLs go on
SLACK = 5_000  # ms that the server may be late


class _Calls:
    """Draw calls of the scripts as clients could make them, in any order."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)  # noqa: S311  # to be repeatable
        self.numbers = dict.fromkeys("abc", 0)

    def next(self, fence: int) -> tuple[str, list[Any]]:
        """Return a script's name and its arguments; `fence` is that of the lock as it is."""
        draw = self.draw
        instance = draw.choice("abc")
        owner = f"{instance}.{draw.choice((1, 1, 2))}"
        classes = draw.sample(["X", "Y", "Z"], draw.randint(0, 3))
        name = draw.choice(["acquire", "acquire", "commit", "commit", "extend", "release", "read"])
        if name == "acquire":
            return name, [owner, TERM, CLAIM, draw.randint(0, 1), draw.randint(0, 1), *classes]
        if name == "commit":
            self.numbers[instance] += draw.choice((0, 1, 1, 1))
            number = self.numbers[instance]
            changes: list[Any] = []
            for which in classes:
                size = draw.choice(["", "-", "5", "5", "5"])
                changes += [which, f"record {number}", size, draw.choice((0, 0, 250))]
            how, again = draw.choice(["keep", "release"]), draw.choice(["", "", f"{instance}.9"])
            after = draw.choice((0, 0, max(0, number - 1)))
            start = [owner, number, how, TERM, CLAIM, EXPIRATION, again, after]
            return name, [*start, fence - draw.choice((0, 0, 0, 1)), *changes]
        if name == "extend":
            return name, [owner, TERM, fence - draw.choice((0, 0, 0, 1))]
        if name == "release":
            return name, [owner, CLAIM, EXPIRATION, *[p for c in classes for p in (c, 17)]]
        return name, [draw.choice((0, EXPIRATION)), draw.randint(0, 1), *classes]


@pytest.mark.parametrize("seed", range(2))
def test_model_replies_as_a_server_does(client: Any, seed: int) -> None:
    """Replies, fields, TTLs and messages of the same calls are the same.

    The scripts are told the time on the server. TTLs go by its own clock: they are set to what the
    model has before each call, and where a call compares one with what it needs, both are not
    close together.
    """
    model, calls, key = ModelServer(), _Calls(seed), f"k:{{calls-{seed}}}"
    scripts = {script.name: script for script in SCRIPTS}
    now, inboxes, told = 1_750_000_000_000_000, client.pubsub(), []
    inboxes.psubscribe("k:inbox:*")
    replied = set()
    for _ in range(700):
        lock = client.hget(key, "lock")
        name, args = calls.next(int(lock.split()[4]) if lock else 0)
        passed = calls.draw.choice((0, 0, 0, 1_000, 1_000, 31_000, 95_000, 600_000)) + 1
        while _is_close(model, key, passed):
            passed += SLACK
        now += passed * 1000
        found = model.dump(key.encode())
        if found is not None:
            client.pexpire(key, found[0] - passed)
        for which, given in ((name, args), ("describe", [])):
            script = scripts[which]
            clock = b"{'%d', '%d'}" % divmod(now, 1_000_000)
            timed = script.source.replace(b"redis.call('TIME')", clock)
            words = [str(part).encode() for part in given]
            known = model.find(b"EVALSHA", script.sha)
            assert known is not None
            ran = model.run(known, now, key.encode(), *words)
            reply, modelled = _ask(client, timed, key, *words), _reply(ran.reply)
            if which == "describe":  # in the order of the fields, which a server does not promise
                reply, modelled = sorted(_threes(reply)), sorted(_threes(modelled))
            assert modelled == reply, (which, given)
            told += ran.published
            replied.add((which, str(reply)[:2]))
        after, fields = model.dump(key.encode()), client.hgetall(key)
        assert (after[1] if after else {}) == fields
        if after:
            assert after[0] - SLACK < client.pttl(key) <= after[0]
    client.publish("k:inbox:end", "end")
    heard = []
    while not heard or heard[-1][1] != b"end":
        message = inboxes.get_message(ignore_subscribe_messages=True, timeout=10)
        if message is not None:
            heard.append((message["channel"], message["data"]))
    inboxes.close()
    assert heard[:-1] == told
    assert len(heard) > 20
    assert {("acquire", "[0"), ("acquire", "[1"), ("commit", "[0"), ("commit", "[1")} <= replied
    assert {("commit", "[2"), ("extend", "[0"), ("extend", "[1"), ("release", "0")} <= replied
    assert {("release", "1"), ("release", "2")} <= replied


def _threes(flat: list[Any]) -> list[list[Any]]:
    return [flat[i : i + 3] for i in range(0, len(flat), 3)]


def _is_close(model: ModelServer, key: str, passed: int) -> bool:
    found = model.dump(key.encode())
    if found is None:
        return False
    left = found[0] - passed
    needed = (0, CLAIM * 2, TERM * 2, EXPIRATION, 60_000)
    return any(abs(left - limit) <= SLACK for limit in needed)
