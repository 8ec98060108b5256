"""Replies and requests are lost, at every position: no call fails, and each is done once.

One manager is behind a proxy that loses a message of each scenario, the first, the second, and
so on until the scenario ends before the proxy comes to it. Another one is connected directly. The
server can always be reached again, so no call has a reason to fail.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from statemgr import StateManagerRedis, StateToken
from statemgr.backends.redis.keys import Keys
from statemgr.errors import LockTimeoutError
from statemgr.testing import FaultyProxy
from statemgr.testing.faults import cancel_at_every_await
from statemgr.testing.proxy import Command, Link, Streams
from statemgr.testing.servers import Server

PAIRS = 6  # how far apart two messages that are lost one after the other may be

MODES: dict[str, dict[str, Any]] = {
    "off": {},
    "through": {"oplock": "through", "oplock_hold_time": 2.0},
    "behind": {"oplock": "behind", "oplock_hold_time": 2.0},
}
FAULTS = ["drop_reply", "cut_before_request"]

_numbers = itertools.count()


@dataclass
class Counter:
    value: int = 0


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
        for timeout in (0.03, 0):
            with pytest.raises(LockTimeoutError):
                await add(one, timeout=timeout)
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
    await until(lambda: not one._granted and not one._flushing)
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
    server: Server, proxy: FaultyProxy, mode: dict[str, Any], timeout: float = 5.0
) -> AsyncIterator[tuple[Manager, Manager]]:
    """Open the two managers; then nothing of a lock or of a wait is left in Redis."""
    prefix = f"lost-{next(_numbers)}"
    url = f"{proxy.url}?socket_timeout={timeout}"
    common: dict[str, Any] = {"key_prefix": prefix, "lock_expiration": 30.0}
    async with Manager(server.url, **common) as other:
        async with Manager(url, **common, **mode) as one:
            yield one, other
            # Who comes while the first manager is open need not wait until a lock expires.
            for token in (A, B):
                modification = other.modify_state(token, timeout=3)
                async with modification:
                    modification.discard()
    with server.client() as client:
        for token in (A, B):
            key = Keys(prefix).ident(token.lock_key)
            assert client.hmget(key, "owner", "wait") in ([b"", b""], [None, None]), token.ident
            client.delete(key)


async def play(
    server: Server,
    scenario: Scenario,
    mode: dict[str, Any],
    prepare: Callable[[FaultyProxy], asyncio.Event],
    timeout: float = 5.0,
) -> bool:
    """Run a scenario, and compare what is stored then; return whether the fault happened."""
    async with FaultyProxy("127.0.0.1", server.port) as proxy:
        happened = prepare(proxy)
        async with stage(server, proxy, mode, timeout) as (one, other):
            expected = await scenario(one, other)
            one_more = asyncio.ensure_future(one.close())  # flushes what is not written
            await one_more
            for token, state in expected.items():
                assert await other.has_state(token) is (state is not None)
                if state is not None:
                    assert await other.get_state(token) == state
        return happened.is_set()


async def at_every_message(
    server: Server, scenario: Scenario, mode: dict[str, Any], fault: str
) -> int:
    """Run a scenario with a fault at its first message, its second, and so on."""
    for number in itertools.count(1):
        try:
            if not await play(
                server, scenario, mode, lambda proxy: getattr(proxy, fault)(number)  # noqa: B023
            ):
                return number - 1
        except BaseException as error:
            error.add_note(f"{fault}({number})")
            raise
    raise AssertionError


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_a_message_that_is_lost(
    redis_server: Server, scenario: Scenario, mode: str, fault: str
) -> None:
    """Whichever message is lost, all calls succeed, each is done once, and no lock stays."""
    count = await at_every_message(redis_server, scenario, MODES[mode], fault)
    print(f"FIGURE lost {scenario.__name__} {mode} {fault} {count}")
    assert count >= 5
