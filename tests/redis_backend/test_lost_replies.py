"""Replies and requests are lost, at every position: no call fails, and each is done once.

One manager is behind a proxy that loses a message of each scenario, the first, the second, and
so on until the scenario ends before the proxy comes to it. Another one is connected directly. The
server can always be reached again, so no call has a reason to fail.
"""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from statemgr import StateManagerRedis, StateToken
from statemgr.backends.redis.keys import Keys
from statemgr.errors import BackendUnavailableError, LockTimeoutError
from statemgr.testing.faults import cancel_at_every_await
from statemgr.testing.proxy import Command, FaultyProxy, Link, Streams
from statemgr.testing.servers import Server

from .workers import Counter, show

AT_ONCE = 8  # scenarios that run side by side
PATIENCE = 30.0  # seconds after which they hang: who waits until a lock expires does
STALL = 2.5  # seconds without a reply after which a connection is given up; a call, after two
PAIRS = int(os.environ.get("STATEMGR_PAIRS", "1"))  # how far apart two that are lost may be

MODES: dict[str, dict[str, Any]] = {
    "off": {},
    "through": {"oplock": "through", "oplock_hold_time": 2.0},
    "behind": {"oplock": "behind", "oplock_hold_time": 2.0},
}
FAULTS = ["drop_reply", "cut_before_request"]
# A request that is not sent does not depend on what is kept: with each oplock in the long form.
ALL = bool(os.environ.get("STATEMGR_PAIRS"))
HOW = [(mode, fault) for mode in MODES for fault in FAULTS[: 2 if ALL or mode == "off" else 1]]

_numbers = itertools.count()


@dataclass
class Note:
    text: str = ""


A, B = StateToken("a", Counter), StateToken("b", Counter)
NOTE = StateToken("a", Note)

Manager = StateManagerRedis
Expected = dict[StateToken[Any], Any]
Scenario = Callable[[Manager, Manager], Awaitable[Expected]]


async def add(manager: Manager, token: StateToken[Counter] = A, **options: Any) -> None:
    async with manager.modify_state(token, **options) as counter:
        counter.value += 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# What is done. Each returns what is stored then.


async def changes(one: Manager, other: Manager) -> Expected:
    """A body after the other."""
    for _ in range(3):
        await add(one)
    return {A: Counter(3)}


async def changes_of_several_classes(one: Manager, other: Manager) -> Expected:
    """Two classes of one ident, together and in turn."""
    for number in range(2):
        async with one.modify_states(A, NOTE) as (counter, note):
            assert counter.value == 2 * number
            counter.value += 1
            note.text += "x"
        await add(one)
    return {A: Counter(4), NOTE: Note("xx")}


async def changes_of_two_idents(one: Manager, other: Manager) -> Expected:
    """Bodies of two idents whose messages leave together."""
    for _ in range(2):
        await asyncio.gather(add(one), add(one, B))
    return {A: Counter(2), B: Counter(2)}


async def sets(one: Manager, other: Manager) -> Expected:
    """States are set, between changes by the other manager."""
    await one.set_state(A, Counter(5))
    await add(other)
    assert await one.get_state(A) == Counter(6)
    await one.set_state(A, Counter(1))
    await add(other)
    return {A: Counter(2)}


async def deletes(one: Manager, other: Manager) -> Expected:
    """A state that is there is deleted once, one that is not never."""
    await one.set_state(A, Counter(5))
    assert await one.delete_state(A) is True
    assert await one.delete_state(A) is False
    assert await one.has_state(A) is False
    await add(one)
    await one.set_state(NOTE, Note("kept"))
    assert await one.delete_state(A) is True
    assert await other.delete_state(A) is False
    return {A: None, NOTE: Note("kept")}


async def reads(one: Manager, other: Manager) -> Expected:
    """All that reads."""
    assert await one.get_state(A) == Counter()
    assert await one.touch(A) is False
    await other.set_state(A, Counter(1))
    await other.set_state(B, Counter(2))
    assert await one.get_state(A) == Counter(1)
    assert await one.get_states(A, B, NOTE) == (Counter(1), Counter(2), Note())
    assert await one.touch(A) is True
    assert await one.has_state(B) is True
    assert [info.ident async for info in one.tokens("a")] == ["a"]
    return {A: Counter(1), B: Counter(2), NOTE: None}


async def failing_bodies(one: Manager, other: Manager) -> Expected:
    """Bodies that raise or are given up, between others."""
    for _ in range(2):
        await add(one)
        with pytest.raises(ZeroDivisionError):
            async with one.modify_state(A) as counter:
                counter.value = 1 // 0
        modification = one.modify_state(A)
        async with modification as counter:
            counter.value = 99
            modification.discard()
    await add(other)
    return {A: Counter(3)}


async def turns(one: Manager, other: Manager) -> Expected:
    """Both managers in turn."""
    for number in range(3):
        await add(one)
        await add(other)
        assert await one.get_state(A) == Counter(2 * number + 2)
    return {A: Counter(6)}


async def waits(one: Manager, other: Manager) -> Expected:
    """The manager behind the proxy waits for the other one."""
    async with other.modify_state(A) as counter:
        waiting = asyncio.ensure_future(add(one))
        await until(lambda: one.statistics().waiters > 0)
        counter.value += 1
    await waiting
    return {A: Counter(2)}


async def is_waited_for(one: Manager, other: Manager) -> Expected:
    """The other one waits for the manager behind the proxy."""
    async with one.modify_state(A) as counter:
        waiting = asyncio.ensure_future(add(other))
        await until(lambda: other.statistics().waiters > 0)
        counter.value += 1
    await waiting
    return {A: Counter(2)}


async def waits_in_vain(one: Manager, other: Manager) -> Expected:
    """A wait that ends by its timeout, in Redis too; a look without a wait."""
    async with other.modify_state(A) as counter:
        # Who is not answered in that time, for a connection was lost, is told so instead.
        with pytest.raises((LockTimeoutError, BackendUnavailableError)):
            await add(one, timeout=0.03)
        with pytest.raises(LockTimeoutError):
            await add(one, timeout=0)
        counter.value += 1
    await add(one, timeout=3)
    return {A: Counter(2)}


async def waits_and_is_cancelled(one: Manager, other: Manager) -> Expected:
    """A wait that is cancelled, in Redis too."""
    async with other.modify_state(A) as counter:
        waiting = asyncio.ensure_future(add(one))
        await until(lambda: one.statistics().waiters > 0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        counter.value += 1
    await add(other, timeout=3)
    return {A: Counter(2)}


async def crowds(one: Manager, other: Manager) -> Expected:
    """Several tasks of both at once."""
    await asyncio.gather(*(add(manager) for manager in (one, other) for _ in range(4)))
    return {A: Counter(8)}


async def holds_to_the_end(one: Manager, other: Manager) -> Expected:
    """What is kept is given up, and written, when the hold time is over."""
    one.oplock_hold_time = 0.02
    await add(one)
    await add(one)
    await until(lambda: not one._granted and not one._writer.flushing)
    assert await other.get_state(A) == Counter(2)
    await add(one)
    return {A: Counter(3)}


async def holds_in_use(one: Manager, other: Manager) -> Expected:
    """What is kept is written when the hold time is over, also while a body runs."""
    one.oplock_hold_time = 0.02
    for number in range(3):
        async with one.modify_state(A) as counter:
            counter.value += 1
            await asyncio.sleep(0.03)
        assert await one.get_state(A) == Counter(number + 1)
    return {A: Counter(3)}


SCENARIOS: list[Scenario] = [
    changes,
    changes_of_several_classes,
    changes_of_two_idents,
    sets,
    deletes,
    reads,
    failing_bodies,
    turns,
    waits,
    is_waited_for,
    waits_in_vain,
    waits_and_is_cancelled,
    crowds,
]


# Where it is done


@asynccontextmanager
async def stage(
    server: Server, proxy: FaultyProxy, timeout: float = 5.0, **mode: Any
) -> AsyncIterator[tuple[Manager, Manager]]:
    """Open the two managers; afterwards nothing of a lock or of a wait is left in Redis."""
    prefix = f"lost-{next(_numbers)}"
    common: dict[str, Any] = {"key_prefix": prefix, "lock_expiration": 600.0}
    async with Manager(server.url, **common) as other:
        url = f"{proxy.url}?socket_timeout={timeout}"
        async with Manager(url, **common, **mode) as one:
            yield one, other
            # Who comes while it is open does not wait until a lock expires.
            for token in (A, B):
                async with (modification := other.modify_state(token, timeout=3)):
                    modification.discard()
    with server.client() as client:
        for token in (A, B):
            key = Keys(prefix).ident(token.lock_key)
            lock = client.hget(key, "lock")  # the owner is its first part, who waits its last
            assert lock is None or (lock[:1] == b" " and lock[-1:] == b" "), (token.ident, lock)
            client.delete(key)


async def compare(manager: Manager, expected: Expected) -> None:
    for token, state in expected.items():
        assert await manager.has_state(token) is (state is not None)
        if state is not None:
            assert await manager.get_state(token) == state


async def play(
    server: Server,
    scenario: Scenario,
    prepare: Callable[[Any], asyncio.Event],
    kind: type[FaultyProxy] = FaultyProxy,
    **how: Any,
) -> bool:
    """Run a scenario, and compare what is stored then; return whether the fault happened."""
    async with kind("127.0.0.1", server.port) as proxy:
        happened = prepare(proxy)
        async with stage(server, proxy, **how) as (one, other):
            expected = await scenario(one, other)
            if one.oplock == "behind":
                await one.close()  # writes
            await compare(other, expected)
        return happened.is_set()


async def at_every_number(run: Callable[[int], Awaitable[bool]]) -> int:
    """Run something with 1, 2, 3 ... until it says that nothing happened; return the last number.

    Several run side by side, for most of their time is spent waiting.
    """
    for first in itertools.count(1, AT_ONCE):
        numbers = range(first, first + AT_ONCE)
        async with asyncio.timeout(PATIENCE):
            results = await asyncio.gather(*map(run, numbers), return_exceptions=True)
        for number, result in zip(numbers, results, strict=True):
            if isinstance(result, BaseException):
                result.add_note(f"at message {number}")
                raise result
            if not result:
                return number - 1
    raise AssertionError


def losing(fault: str, number: int) -> Callable[[FaultyProxy], asyncio.Event]:
    """Return what has a proxy lose its Nth message; those of a handshake are not counted."""
    return lambda proxy: getattr(proxy, fault)(number, where=is_no_handshake)


def is_no_handshake(command: Command) -> bool:
    return command[0] not in (b"HELLO", b"CLIENT", b"SELECT")


@pytest.mark.parametrize(("mode", "fault"), HOW)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_a_message_that_is_lost(
    redis_server: Server, scenario: Scenario, mode: str, fault: str
) -> None:
    """Whichever message is lost, all calls succeed, each is done once, and no lock stays."""
    count = await at_every_number(
        lambda number: play(redis_server, scenario, losing(fault, number), **MODES[mode])
    )
    show(f"lost {scenario.__name__} {mode} {fault} {count}")
    assert count >= 2


@pytest.mark.parametrize(("mode", "fault"), HOW)
async def test_a_message_of_a_handshake_that_is_lost(
    redis_server: Server, mode: str, fault: str
) -> None:
    """A connection that is lost before it can be used is made again."""
    count = await at_every_number(
        lambda number: play(
            redis_server, waits, lambda proxy: getattr(proxy, fault)(number), **MODES[mode]
        )
    )
    show(f"lost with handshakes {mode} {fault} {count}")
    assert count >= 2


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scenario", [holds_to_the_end, holds_in_use], ids=["idle", "in use"])
async def test_a_message_that_is_lost_when_the_hold_time_ends(
    redis_server: Server, scenario: Scenario, fault: str
) -> None:
    """What an oplock has not written is written once, whichever message is lost."""
    count = await at_every_number(
        lambda number: play(redis_server, scenario, losing(fault, number), **MODES["behind"])
    )
    show(f"lost {scenario.__name__} behind {fault} {count}")
    assert count >= 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scenario", [changes, turns], ids=["one manager", "both in turn"])
async def test_two_messages_that_are_lost(
    redis_server: Server, scenario: Scenario, mode: str
) -> None:
    """What is sent again may be lost again; so may what says that it was done."""
    total = 0
    for first, second in itertools.product(FAULTS, FAULTS) if ALL else [FAULTS[:1] * 2]:
        for apart in range(1, PAIRS + 1):

            def lose(number: int) -> Callable[[FaultyProxy], asyncio.Event]:
                def prepare(proxy: FaultyProxy) -> asyncio.Event:
                    getattr(proxy, second)(number + apart)  # noqa: B023
                    happened: asyncio.Event = getattr(proxy, first)(number)  # noqa: B023
                    return happened

                return prepare

            total += await at_every_number(
                lambda number: play(redis_server, scenario, lose(number), **MODES[mode])
            )
    show(f"pairs {scenario.__name__} {mode} {total}")


class StallingProxy(FaultyProxy):
    """A proxy on which a connection stalls for good; those that come after it do not."""

    def link(self, client: Streams, server: Streams) -> Link:
        self.resume()
        return super().link(client, server)

    def stall_reply(self, number: int) -> asyncio.Event:
        """Let the reply to the Nth script, and all after it on its connection, not come."""
        happened = asyncio.Event()
        left = itertools.count(number - 1, -1)

        def stalls(command: Command) -> bool:
            if command[0] in (b"EVAL", b"EVALSHA") and next(left) == 0:
                happened.set()
                self.hold(requests=False)
            return False

        self.cut_before_request(1, where=stalls)
        return happened


async def test_a_connection_that_stalls(redis_server: Server) -> None:
    """A connection from which nothing comes any more is replaced, and its calls are sent again."""

    async def run(scenario: Scenario, mode: str) -> None:
        count = await at_every_number(
            lambda number: play(
                redis_server,
                scenario,
                lambda proxy: proxy.stall_reply(number),
                kind=StallingProxy,
                timeout=STALL,
                **MODES[mode],
            )
        )
        show(f"stalled {scenario.__name__} {mode} {count}")
        assert count >= 2, scenario

    for scenario in (changes, turns, deletes, is_waited_for):
        await asyncio.gather(*(run(scenario, mode) for mode in MODES))


# Cancelled meanwhile


@pytest.mark.parametrize(("mode", "fault"), HOW)
@pytest.mark.parametrize("cancelled_at", ["request", "reply"])
@pytest.mark.parametrize("waits", [False, True], ids=["free", "waited for"])
async def test_cancelled_when_a_message_is_lost(
    redis_server: Server, mode: str, cancelled_at: str, fault: str, *, waits: bool
) -> None:
    """A change that is cancelled as a message of its is lost is done or not, and leaves no lock.

    Then the next ones are done once, in the same manager and in the other one.
    """

    async def run(number: int) -> bool:
        async with FaultyProxy("127.0.0.1", redis_server.port) as proxy:
            async with stage(redis_server, proxy, **MODES[mode]) as (one, other):
                async with asyncio.TaskGroup() as group:
                    holding = asyncio.Event()
                    if waits:
                        group.create_task(hold(other, holding))
                        await until(lambda: other.statistics().locks_held > 0)
                    changing = asyncio.ensure_future(add_twice(one))

                    def cancel(command: Command) -> bool:
                        if next(left) == 0:
                            changing.cancel()
                        return False

                    left = itertools.count(number - 1, -1)
                    proxy_fault = (
                        "cut_before_request" if cancelled_at == "request" else "drop_reply"
                    )
                    getattr(proxy, proxy_fault)(1, where=cancel)
                    happened = getattr(proxy, fault)(number)
                    if waits:
                        await until(lambda: one.statistics().waiters > 0 or changing.done())
                    holding.set()
                    await asyncio.wait([changing])
                assert changing.cancelled() or changing.exception() is None
                await add(one, timeout=3)
                await add(other, timeout=3)
                if one.oplock == "behind":
                    await one.close()
                value = (await other.get_state(A)).value - 2 - waits
                assert value == 2 if not changing.cancelled() else 0 <= value <= 2
            return bool(happened.is_set())

    count = await at_every_number(run)
    show(f"cancelled {mode} {cancelled_at} {fault} waits={waits} {count}")
    assert count >= 2


async def add_twice(manager: Manager) -> None:
    await add(manager)
    await add(manager)


async def hold(manager: Manager, end: asyncio.Event) -> None:
    async with manager.modify_state(A) as counter:
        counter.value += 1
        await end.wait()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("nth", [1, 2, 3], ids=lambda nth: f"reply {nth}")
async def test_cancelled_at_each_await_when_a_reply_is_lost(
    redis_server: Server, mode: str, nth: int
) -> None:
    """Wherever a change is cancelled, the next one is done once, and no lock stays."""
    ended_at = 0

    async with (
        FaultyProxy("127.0.0.1", redis_server.port) as proxy,
        stage(redis_server, proxy, **MODES[mode]) as (one, other),
    ):

        async def prepare() -> None:
            nonlocal ended_at
            await add(other, timeout=3)
            ended_at = (await other.get_state(A)).value
            proxy.clear_faults()
            proxy.drop_reply(nth)

        async def check(ended: bool) -> None:
            await add(other, timeout=3)
            added = (await other.get_state(A)).value - ended_at - 1
            assert added == 2 if ended else 0 <= added <= 2

        awaits = await cancel_at_every_await(lambda: add_twice(one), check, prepare)
    show(f"awaits {mode} reply {nth}: {awaits}")
    assert awaits >= 1


@pytest.mark.parametrize("turns_of_the_loop", range(0, 40, 4))
async def test_closed_while_it_connects(redis_server: Server, turns_of_the_loop: int) -> None:
    """A manager that is closed while it opens its connections has closed them then.

    redis-py may swallow a cancel while it connects.
    """
    for _ in range(4):
        manager = Manager(redis_server.url, key_prefix="closing", oplock="through")
        reading = asyncio.ensure_future(manager.get_state(A))
        for _ in range(turns_of_the_loop):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await manager.close()
        await asyncio.wait([reading])
        reading.exception()  # it was closed, or not
