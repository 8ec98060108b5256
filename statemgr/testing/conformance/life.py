"""Rule 9: one loop, one process, and nothing after `close`."""
# a whole body raises here, or is refused

import asyncio

import pytest

from statemgr.errors import StateManagerClosedError
from statemgr.manager import StateManager
from statemgr.testing.conformance.base import Contract, increment, requires, waiting
from statemgr.testing.conformance.calls import CALLS, Call
from statemgr.testing.conformance.states import Counter
from statemgr.testing.faults import in_child
from statemgr.testing.harness import Capability, Harness
from statemgr.token import AnyToken, StateToken


async def _outcomes(manager: StateManager, patience: float) -> dict[str, str]:
    """Return the name of the error that each public call ends with."""
    outcomes = {}
    token = StateToken("user-1", Counter)
    calls: dict[str, Call] = CALLS | {"close": lambda manager, _: manager.close()}
    for name, call in calls.items():
        try:
            async with asyncio.timeout(patience):
                await call(manager, token)
            outcomes[name] = "no error"
        except Exception as error:  # whatever it is, it is told
            outcomes[name] = type(error).__name__
    return outcomes


class LifeContract(Contract):
    """A manager's end, and calls from where it does not belong."""

    @pytest.mark.parametrize("call", sorted(CALLS))
    async def test_no_call_after_close(self, harness: Harness, call: str) -> None:
        """Each ends with `StateManagerClosedError`, also on a manager that was never used."""
        token = StateToken("user-1", Counter)
        for used in (False, True):
            manager = await harness.open()
            if used:
                await increment(manager, token)
            await manager.close()
            with pytest.raises(StateManagerClosedError):
                await CALLS[call](manager, token)

    async def test_nothing_else_after_close(self, harness: Harness) -> None:
        """No statistics, and no entering again."""
        manager = await harness.open()
        await manager.close()
        with pytest.raises(StateManagerClosedError):
            manager.statistics()
        with pytest.raises(StateManagerClosedError):
            await manager.__aenter__()

    async def test_close_is_idempotent(self, harness: Harness) -> None:
        """Again, and by two tasks at once."""
        manager = await harness.open()
        await increment(manager, StateToken("user-1", Counter))
        await asyncio.gather(manager.close(), manager.close())
        await manager.close()

    async def test_close_leaves_nothing_behind(self, harness: Harness) -> None:
        """No task and no timer of the manager outlives it, also if a body ends later."""
        manager = await harness.open()
        before = asyncio.all_tasks()
        one, two = StateToken("user-1", Counter), StateToken("user-1", int)
        await manager.set_state(two, 1)
        with pytest.raises(StateManagerClosedError):
            async with manager.modify_state(one):
                await harness.advance(100)
                await harness.clock.settle()
                await manager.close()
        await harness.eventually(lambda: asyncio.all_tasks() <= before)
        assert harness.clock.timers == 0

    async def test_body_at_close_saves_nothing(self, harness: Harness) -> None:
        """It ends with the error, also if it only held the lock."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter(1))
        with pytest.raises(StateManagerClosedError):
            async with manager.modify_state(token) as counter:
                counter.value = 2
                await manager.close()
        if Capability.DURABLE in harness.capabilities:
            manager = await harness.open()
            assert await manager.get_state(token) == Counter(1)
            await harness.drive(increment(manager, token))  # its lock is free

    async def test_body_that_raises_at_close(self, harness: Harness) -> None:
        """Its own error is what the caller gets."""
        manager = await harness.open()
        with pytest.raises(KeyError):
            async with manager.modify_state(StateToken("user-1", Counter)):
                await manager.close()
                raise KeyError

    @pytest.mark.parametrize("call", ["modify_state", "modify_states", "set_state", "delete_state"])
    async def test_waiters_at_close(self, harness: Harness, call: str) -> None:
        """They end with the error, and do nothing."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter(1))
        modification = manager.modify_state(token)
        await modification.__aenter__()
        tasks = []
        for number in range(2):
            tasks.append(harness.spawn(_run(CALLS[call], manager, token)))
            await waiting(harness, manager, number + 1)
        await manager.close()
        for task in tasks:
            with pytest.raises(StateManagerClosedError):
                await task
        with pytest.raises(StateManagerClosedError):
            await modification.__aexit__(None, None, None)
        if Capability.DURABLE in harness.capabilities:
            manager = await harness.open()
            assert await manager.get_state(token) == Counter(1)

    async def test_waiter_served_as_close_comes(self, harness: Harness) -> None:
        """A lock handed over in the turn of the close lets no body in."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter(1))
        modification = manager.modify_state(token)
        async with modification:
            tasks = []
            for call in ("modify_state", "set_state", "delete_state"):
                tasks.append(harness.spawn(_run(CALLS[call], manager, token)))
                await waiting(harness, manager, len(tasks))
            modification.discard()
        await manager.close()
        for task in tasks:
            with pytest.raises(StateManagerClosedError):
                await task

    @requires(Capability.DURABLE)
    async def test_close_saves_what_was_acknowledged(self, harness: Harness) -> None:
        """Every change that returned before the close is there for the next manager."""
        manager = await harness.open()
        tokens = [StateToken(f"user-{number}", Counter) for number in range(20)]
        for token in tokens:
            await increment(manager, token, 3)
        await manager.close()
        manager = await harness.open()
        assert await manager.get_states(*tokens) == (Counter(3),) * 20

    async def test_another_thread_while_the_loop_runs(self, harness: Harness) -> None:
        """Every call from another thread's loop is refused, and the manager goes on here."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await increment(manager, token)
        outcomes = await asyncio.to_thread(
            lambda: asyncio.run(_outcomes(manager, harness.patience))
        )
        assert outcomes == dict.fromkeys(outcomes, "WrongLoopError")
        async with manager.modify_state(token):
            outcomes = await asyncio.to_thread(
                lambda: asyncio.run(_outcomes(manager, harness.patience))
            )
            assert outcomes == dict.fromkeys(outcomes, "WrongLoopError")
        await increment(manager, token)
        assert await manager.get_state(token) == Counter(2)

    async def test_another_loop_of_the_same_thread(self, harness: Harness) -> None:
        """Every call on a later loop is refused; the first one can still close the manager."""

        def use() -> dict[str, str]:
            first = asyncio.new_event_loop()
            try:
                manager = first.run_until_complete(harness.make(clock=harness.clock))
                first.run_until_complete(increment(manager, StateToken("user-1", Counter)))
                outcomes = asyncio.run(_outcomes(manager, harness.patience))
                first.run_until_complete(manager.close())
                return outcomes
            finally:
                first.close()

        outcomes = await asyncio.to_thread(use)
        assert outcomes == dict.fromkeys(outcomes, "WrongLoopError")

    async def test_after_a_fork(self, harness: Harness) -> None:
        """Every call in the child is refused, on a manager in use, and on one not yet used."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        outcomes = await in_child(lambda: _outcomes(manager, 5.0))
        assert outcomes == dict.fromkeys(outcomes, "WrongProcessError")
        await increment(manager, token)
        outcomes = await in_child(lambda: _outcomes(manager, 5.0))
        assert outcomes == dict.fromkeys(outcomes, "WrongProcessError")
        assert await manager.get_state(token) == Counter(1)


async def _run(call: Call, manager: StateManager, token: AnyToken) -> None:
    await call(manager, token)
