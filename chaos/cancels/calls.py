"""The calls of a manager, each cancelled at all of its awaits, with the lock free and not."""

import asyncio
import enum
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from chaos.cancels.stage import (
    COUNTER,
    ELSEWHERE,
    TOTAL,
    VISITS,
    BrokenPromiseError,
    Counter,
    Stage,
    in_time,
)
from chaos.cancels.stepping import Cancel, Steps
from statemgr.errors import StateManagerClosedError

_TURNS = 200  # of the loop, in which a call gets to wait for the lock if it does at all


class Situation(enum.Enum):
    """What the call finds."""

    FREE = "free"
    """The lock is free; others ask for it after the call."""

    ALONE = "free, nobody behind"
    """Nobody takes over what a cancelled call has asked for."""

    FRESH = "first call"
    """As `FREE`; it is the first call of a manager, which has to connect, or to read."""

    HELD_HERE = "held here"
    """Another task of the manager holds the lock; others queue behind the call."""

    HELD_ELSEWHERE = "held elsewhere"
    """A task of another manager does, as another process would."""

    ALONE_ELSEWHERE = "held elsewhere, nobody behind"
    """The same, and nobody takes over a place in the queue that is left."""


class Effect(enum.Enum):
    """What a call does, if it is not cancelled."""

    NONE = enum.auto()
    WRITES = enum.auto()
    DELETES = enum.auto()
    BODY = enum.auto()
    BODIES = enum.auto()
    FAILS = enum.auto()
    CLOSES = enum.auto()


class BodyError(Exception):
    """What a body that fails raises."""


@dataclass(frozen=True)
class Call:
    """A call of a manager.

    Attributes:
        name: Its name in the report.
        run: Makes the coroutine.
        effect: What it does.
        main: Whether it is one of those that are cancelled twice as well.
    """

    name: str
    run: Callable[[Stage], Coroutine[Any, Any, Any]]
    effect: Effect = Effect.NONE
    main: bool = False

    def situations(self, stage: Stage) -> list[Situation]:
        """Return those that there can be on a stage."""
        found = list(Situation)
        if not stage.store.durable:
            found.remove(Situation.FRESH)
        if not stage.store.shared:
            found.remove(Situation.HELD_ELSEWHERE)
            found.remove(Situation.ALONE_ELSEWHERE)
        return found

    async def attempt(self, stage: Stage, situation: Situation, plan: Cancel) -> Steps:
        """Run the call, cancelled as planned, and look at what it has left.

        Raises:
            BrokenPromiseError: If something does not hold that must.
        """
        closes = self.effect is Effect.CLOSES
        new = situation is Situation.FRESH or (closes and not stage.store.durable)
        await stage.prepare(fresh=new)
        let_go = await occupied(stage, situation)
        steps = Steps(plan, phase=lambda: stage.phase)
        if plan.number:
            subject = asyncio.create_task(steps.drive(self.run(stage)))
        else:
            subject = asyncio.create_task(self.run(stage))
            subject.cancel()
            steps.struck()
        if closes:
            stage.closing()
        if situation not in (Situation.ALONE, Situation.ALONE_ELSEWHERE):
            stage.queue_others()
        if let_go is not None:
            await call_waits(stage, subject)
            let_go()
        await in_time(asyncio.wait([subject]), "the call does not end")
        ended = _ended(subject)
        if ended and steps.cancels:
            raise BrokenPromiseError("the cancel was swallowed")
        await stage.settle()
        if closes and (plan.number or stage.manager._refusal is not None):
            await stage.reopen()
        if not closes or stage.store.durable:
            await stage.look(self._allowed(stage, ended, started=plan.number > 0))
        return steps

    def _allowed(self, stage: Stage, ended: bool, *, started: bool) -> set[tuple[int, int]]:
        """Return what `COUNTER` and `TOTAL` may be."""
        old, new = (stage.old, stage.old), (stage.new, stage.old)
        if self.effect is Effect.BODIES:
            new = stage.new, stage.new
        elif self.effect is Effect.DELETES:
            new = 0, stage.old
        if self.effect in (Effect.NONE, Effect.CLOSES) or not started:
            return {old}
        bodies = (Effect.BODY, Effect.BODIES, Effect.FAILS)
        if self.effect is Effect.FAILS:
            allowed = {old}
        elif ended:
            return {new}
        elif self.effect in bodies and not stage.finished:
            allowed = {old}
        else:
            allowed = {old, new}
        if self.effect in bodies and not stage.store.rolls_back:
            allowed |= {new, (stage.half, stage.old)}  # what the body has left is the state
        return allowed


async def occupied(stage: Stage, situation: Situation) -> Callable[[], None] | None:
    """Have the lock held if it is to be; call what is returned to have it let go."""
    if situation is Situation.HELD_HERE:
        return await stage.occupy(stage.manager)
    if situation in (Situation.HELD_ELSEWHERE, Situation.ALONE_ELSEWHERE):
        assert stage.other is not None
        return await stage.occupy(stage.other)
    return None


def _ended(subject: "asyncio.Task[Any]") -> bool:
    """Return whether a call ended well, and not as cancelled."""
    if subject.cancelled():
        return False
    error = subject.exception()
    if error is None or isinstance(error, BodyError):
        return True
    if isinstance(error, BrokenPromiseError):
        raise error
    raise BrokenPromiseError(f"it ended with {error!r}") from error


async def call_waits(stage: Stage, subject: "asyncio.Task[Any]") -> None:
    """Return when a call waits for the lock, or is over."""
    for _ in range(_TURNS):
        if subject.done() or stage.manager._refusal is not None:
            return
        if stage.manager.statistics().waiters:
            break
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)


# The calls


def _expect(found: object, expected: object) -> None:
    if found != expected:
        raise BrokenPromiseError(f"it returned {found!r}, not {expected!r}")


async def _get_state(stage: Stage) -> None:
    _expect((await stage.manager.get_state(COUNTER)).value, stage.old)


async def _get_states(stage: Stage) -> None:
    one, other, _, _ = await stage.manager.get_states(COUNTER, TOTAL, VISITS, ELSEWHERE)
    _expect((one.value, other.value), (stage.old, stage.old))


async def _has_state(stage: Stage) -> None:
    _expect(await stage.manager.has_state(COUNTER), True)


async def _touch(stage: Stage) -> None:
    _expect(await stage.manager.touch(COUNTER), True)


async def _tokens(stage: Stage) -> None:
    found = [info.class_name async for info in stage.manager.tokens("user")]
    _expect({"Counter", "Total"} <= {name.split(":")[1] for name in found}, True)


async def _set_state(stage: Stage) -> None:
    await stage.manager.set_state(COUNTER, Counter(stage.new))


async def _delete_state(stage: Stage) -> None:
    _expect(await stage.manager.delete_state(COUNTER), True)


async def _modify_state(stage: Stage) -> None:
    stage.phase = "entering"
    async with stage.manager.modify_state(COUNTER) as counter:
        stage.phase = "inside"
        counter.value = stage.half
        await asyncio.sleep(0)
        counter.value = stage.new
        stage.finished = True
        stage.phase = "leaving"


async def _modify_state_in_time(stage: Stage) -> None:
    stage.phase = "entering"
    async with stage.manager.modify_state(COUNTER, timeout=60.0) as counter:
        stage.phase = "leaving"
        counter.value = stage.new
        stage.finished = True


async def _modify_state_fails(stage: Stage) -> None:
    stage.phase = "entering"
    async with stage.manager.modify_state(COUNTER) as counter:
        stage.phase = "inside"
        counter.value = stage.half
        await asyncio.sleep(0)
        stage.phase = "leaving"
        raise BodyError


async def _modify_states(stage: Stage) -> None:
    stage.phase = "entering"
    async with stage.manager.modify_states(COUNTER, TOTAL) as (counter, total):
        stage.phase = "inside"
        counter.value = stage.half
        await asyncio.sleep(0)
        counter.value = total.value = stage.new
        stage.finished = True
        stage.phase = "leaving"


async def _close(stage: Stage) -> None:
    await stage.manager.close()


async def _exit(stage: Stage) -> None:
    try:
        stage.phase = "entering"
        async with stage.manager:
            stage.phase = "inside"
            await stage.manager.get_state(COUNTER)
            stage.phase = "leaving"
    except StateManagerClosedError:
        # Cancelled inside of the block, the end of which closes it all the same.
        raise BrokenPromiseError("the manager was closed twice") from None


CALLS = (
    Call("get_state", _get_state),
    Call("get_states", _get_states),
    Call("has_state", _has_state),
    Call("touch", _touch),
    Call("tokens", _tokens),
    Call("set_state", _set_state, Effect.WRITES, main=True),
    Call("delete_state", _delete_state, Effect.DELETES, main=True),
    Call("modify_state", _modify_state, Effect.BODY, main=True),
    Call("modify_state timeout=", _modify_state_in_time, Effect.BODY),
    Call("modify_state, body raises", _modify_state_fails, Effect.FAILS),
    Call("modify_states", _modify_states, Effect.BODIES, main=True),
    Call("close", _close, Effect.CLOSES, main=True),
    Call("async with manager", _exit, Effect.CLOSES),
)
