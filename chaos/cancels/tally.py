"""Go through all awaits of a call, and count."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from chaos.cancels.stage import BrokenPromiseError
from chaos.cancels.stepping import Cancel, Moment, Steps

_MOST_AWAITS = 300  # of one call: more is a call that does not end


class Setting(Protocol):
    """What a call is cancelled on; one that a promise was broken on is not used again."""

    async def close(self) -> None: ...
    async def abandon(self) -> None: ...


class Subject(Protocol):
    """A call that is cancelled.

    Attributes:
        name: Its name in the report.
        main: Whether it is cancelled twice as well.
    """

    @property
    def name(self) -> str: ...
    @property
    def main(self) -> bool: ...
    def situations(self, stage: Any, /) -> list[Any]: ...
    async def attempt(self, stage: Any, situation: Any, plan: Cancel, /) -> Steps: ...


@dataclass(frozen=True)
class Broken:
    """A promise that a cancel broke, and how to see it again."""

    backend: str
    call: str
    situation: str
    plan: Cancel
    what: str

    def __str__(self) -> str:
        return f"{self.backend}: {self.call}, {self.situation}, {self.plan}: {self.what}"


@dataclass
class Tally:
    """What was done to one call on one backend.

    Attributes:
        awaits: How many awaits were cancelled at: in each situation, each await once.
        phases: The same by what the call was at.
        runs: How often the call was run.
        cancels: How many cancels arrived.
        twice: In how many runs a second one arrived while the first was being handled.
        broken: What was found.
    """

    backend: str
    call: str
    awaits: int = 0
    phases: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    cancels: int = 0
    twice: int = 0
    broken: list[Broken] = field(default_factory=list)


async def cancel_everywhere(
    backend: str,
    subject: Subject,
    open_stage: Callable[[], Awaitable[Setting]],
    *,
    twice: bool,
    until_broken: bool = False,
) -> Tally:
    """Cancel a call before its first step, and at every await of it, in every situation.

    Args:
        backend: Its name.
        subject: The call.
        open_stage: Opens what it is made on.
        twice: Cancel it again at every await of what it does after the first cancel.
        until_broken: Stop at the first promise that was broken.
    """
    tally = Tally(backend, subject.name)
    stage = await open_stage()
    for situation in subject.situations(stage):
        seen: set[int] = set()
        plans = _Plans(twice=twice)
        for plan in plans:
            tally.runs += 1
            try:
                steps = await subject.attempt(stage, situation, plan)
            except Exception as error:
                what = str(error) if isinstance(error, BrokenPromiseError) else repr(error)
                tally.broken.append(Broken(backend, subject.name, situation.value, plan, what))
                await stage.abandon()
                if until_broken:
                    return tally
                stage = await open_stage()
                plans.broke()
                continue
            plans.went(steps)
            tally.cancels += steps.cancels
            tally.twice += steps.cancels > 1
            if steps.cancels and steps.awaits and steps.awaits not in seen:
                seen.add(steps.awaits)
                tally.awaits += 1
                tally.phases[steps.phase_then] = tally.phases.get(steps.phase_then, 0) + 1
    try:
        await stage.close()
    except BrokenPromiseError as error:
        tally.broken.append(Broken(backend, subject.name, "at the end", Cancel(0), str(error)))
        await stage.abandon()
    await asyncio.sleep(0)
    return tally


class _Plans:
    """Say where to cancel next, until the call ends before it is cancelled."""

    def __init__(self, *, twice: bool) -> None:
        self._twice = twice
        self._reached = True
        self._again = False  # whether there is another await to be cancelled at a second time

    def __iter__(self) -> Iterator[Cancel]:
        yield Cancel(0)
        number = 0
        self._reached = True
        while self._reached and number < _MOST_AWAITS:
            number += 1
            reached = False
            for moment in Moment:
                self._reached = self._again = False
                yield Cancel(number, moment)
                reached |= self._reached
                again = 0
                while self._twice and self._again and again < _MOST_AWAITS:
                    again += 1
                    self._again = False
                    yield Cancel(number, moment, again)
            self._reached = reached

    def went(self, steps: Steps) -> None:
        """Be told how a run went."""
        self._reached |= steps.awaits >= steps.plan.number
        self._again = steps.awaits_after >= (steps.plan.again or 0) + (steps.plan.again is None)

    def broke(self) -> None:
        """Be told that a run broke a promise: go on after it."""
        self._reached = True
        self._again = False
