"""`Process`: a manager with its tasks, in a loop of its own; and what became of its calls."""

import asyncio
import contextlib
import dataclasses
import gc
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import statemgr.backends.redis.grants
import statemgr.backends.redis.polling
import statemgr.expiration
from chaos.explorer.loop import VirtualClock, VirtualLoop, VirtualTime
from chaos.explorer.network import ModelClient, Network
from chaos.explorer.scenarios import (
    COUNTER,
    HOLD_TIME,
    LOCK_EXPIRATION,
    OTHER,
    TOKEN_EXPIRATION,
    Program,
    Scenario,
    Step,
)
from statemgr.errors import CommitUncertainError, LockTimeoutError, StateManagerError

if TYPE_CHECKING:
    from statemgr import StateManagerRedis


@dataclasses.dataclass(slots=True, eq=False)
class Operation:
    """One call of a process.

    Attributes:
        number: Which one; a body leaves it in the states that it changes.
        outcome: "" while it goes on; "ok", "failed", "uncertain", or "cancelled".
        left: Whether its body has ended, so that it may be saved.
        found: What a body or a read found.
        known: For a read, what was acknowledged when it began.
    """

    number: int
    process: "Process"
    step: Step
    began_at: int
    task: "asyncio.Task[Any] | None" = None
    outcome: str = ""
    error: BaseException | None = None
    left: bool = False
    found: list[int] | None = None
    fence: int = 0
    ended_at: int = 0
    known: frozenset[int] = frozenset()

    def __str__(self) -> str:
        """Name it as a trace does."""
        return f"{self.step.kind} {self.number} of {self.process.name}"


class _Names:
    """Give managers names that are the same each time, in the place of `secrets`."""

    next_one = "p"

    def token_urlsafe(self, _: int) -> str:
        return self.next_one


names: Final = _Names()


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Take out of the real client what is not the same each time: chance, the real clock, logs.

    And its turns of a loop that has nothing to do but not to sleep: virtual loops never do.

    Garbage is collected between schedules only, for collecting runs what asyncio has to say of it.
    """
    grants: Any = statemgr.backends.redis.grants
    polling: Any = statemgr.backends.redis.polling
    expiration: Any = statemgr.expiration
    chance, clock, yields = grants.secrets, expiration.perf_counter, polling.CAN_YIELD
    logger = logging.getLogger("statemgr")
    was_disabled, logger.disabled = logger.disabled, True
    grants.secrets, expiration.perf_counter, polling.CAN_YIELD = names, float, False
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        grants.secrets, expiration.perf_counter, polling.CAN_YIELD = chance, clock, yields
        logger.disabled = was_disabled
        if collects:
            gc.enable()


class Process:
    """One process of a schedule.

    Attributes:
        stalled_until: When it goes on, in microseconds; 0 while it runs.
        apart_until: Until when it cannot reach the server, in microseconds.
        crashed: Whether it is gone.
        failed: Whether a call or the end of the manager said that something was lost.
        current: The operation of each task that is in one.
    """

    def __init__(
        self,
        number: int,
        scenario: Scenario,
        manager_type: "type[StateManagerRedis]",
        time: VirtualTime,
        network: Network,
        begin: Callable[["Process", Step], Operation],
        ended: Callable[[Operation], None],
    ) -> None:
        self.name = f"p{number}"
        self.closes = scenario.closes
        self.loop = VirtualLoop(time)
        self.stalled_until = self.apart_until = 0
        self.crashed = False
        self.failed = False
        self.current: dict[int, Operation] = {}
        self._begin = begin
        self._ended = ended
        self.manager = manager_type(
            ModelClient(network, self),
            key_prefix="k",
            lock_expiration=LOCK_EXPIRATION,
            oplock=scenario.mode,  # type: ignore[arg-type]
            oplock_hold_time=HOLD_TIME,
            token_expiration=TOKEN_EXPIRATION,
            lock_warning_threshold=1e6,
            log_idents=True,
            log_key="k",
            clock=VirtualClock(self.loop),
        )
        self.life = self.loop.create_task(self._live(scenario.processes[number], scenario.closes))

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be expected of it any more."""
        return self.crashed or self.life.done()

    @property
    def is_apart(self) -> bool:
        """Whether it cannot reach the server now."""
        return self.apart_until > self.loop.time_.now

    def crash(self) -> None:
        """Be killed."""
        self.crashed = True
        self.current.clear()
        self.loop.die()

    async def _live(self, program: Program, closes: bool) -> None:
        tasks = [
            self.loop.create_task(self._run(number, steps)) for number, steps in enumerate(program)
        ]
        await asyncio.wait(tasks)
        if not closes:
            return
        operation = self.current[-1] = self._begin(self, Step("close"))
        try:
            await self.manager.close()
        except StateManagerError as error:
            self.failed = True
            operation.error = error
        operation.outcome = "ok"
        del self.current[-1]
        self._ended(operation)

    async def _run(self, number: int, steps: tuple[Step, ...]) -> None:
        task = asyncio.current_task()
        for step in steps:
            if step.kind == "sleep":
                await asyncio.sleep(step.seconds)
                continue
            names.next_one = self.name  # its first call starts the manager
            operation = self.current[number] = self._begin(self, step)
            operation.task = task
            try:
                await getattr(self, f"_{step.kind}")(operation)
                operation.outcome = "ok"
            except CommitUncertainError as error:
                operation.outcome, operation.error = "uncertain", error
                self.failed = True
            except StateManagerError as error:
                operation.outcome, operation.error = "failed", error
                self.failed |= not isinstance(error, LockTimeoutError)
            except asyncio.CancelledError as error:
                assert task is not None
                task.uncancel()
                operation.outcome, operation.error = "cancelled", error
            del self.current[number]
            self._ended(operation)

    async def _change(self, operation: Operation) -> None:
        step = operation.step
        change = self.manager.modify_state(COUNTER, timeout=step.timeout)
        async with change as state:
            operation.found = list(state.stamps)
            operation.fence = change.fence or 0
            state.stamps.append(operation.number)
            if step.seconds:
                await asyncio.sleep(step.seconds)
            operation.left = True

    async def _both(self, operation: Operation) -> None:
        change = self.manager.modify_states(COUNTER, OTHER)
        async with change as (counter, other):
            operation.found = list(counter.stamps)
            operation.fence = change.fence or 0
            counter.stamps.append(operation.number)
            other.stamps.append(operation.number)
            operation.left = True

    async def _delete(self, operation: Operation) -> None:
        operation.left = True
        await self.manager.delete_state(OTHER)

    async def _read(self, operation: Operation) -> None:
        operation.found = list((await self.manager.get_state(COUNTER)).stamps)
