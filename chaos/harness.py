"""Run rounds on one subject: processes work, faults happen, and then what they wrote is checked.

A round has a store of its own. Its faults end some seconds before it does, so that everybody is
seen to go on; then the processes are told to end, another one looks at what is there, and the
histories are read. Rounds are short, so that what is kept in memory is bounded, and a violation
is known soon.
"""

import asyncio
import contextlib
import math
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.analysis import Analysis, Figures, Round
from chaos.faults import Conductor, write_faults
from chaos.history import read_history
from chaos.plan import EVERY, FaultKind, make_plan
from chaos.processes import KILLED, Worker, Zygote
from chaos.subjects import Subject
from chaos.worker import PATIENCE
from statemgr.testing.proxy import FaultyProxy
from statemgr.testing.servers import Server

ROUND = 120.0  # seconds, at most
CHECKS = 0.07  # of the time, for reading and checking
CALM = 2.5  # seconds at the end of each round without a fault
EXPIRATION = 0.4  # seconds


@dataclass(frozen=True)
class Setting:
    """How to run.

    Attributes:
        seconds: For how long in all.
        processes: How many work at once.
        tokens: How many they work on, half of them counters.
        seed: What the plan of faults is drawn from.
        directory: Where histories are written, and stores on disk are.
        expiration: Of locks, in seconds.
        every: Seconds from one fault of a kind to the next.
    """

    seconds: float
    processes: int
    tokens: int
    seed: int
    directory: Path
    expiration: float = EXPIRATION
    every: Mapping[FaultKind, float] = field(default_factory=lambda: EVERY)


class Run:
    """The rounds on one subject.

    Args:
        subject: What to run on.
        name: By which the processes find it.
        python: The interpreter of the processes.
        setting: How.
        tell: Told in a line how far it is.
    """

    def __init__(
        self,
        subject: Subject,
        name: str,
        python: str,
        setting: Setting,
        tell: Callable[[str], None],
    ) -> None:
        self._subject = subject
        self._name = name
        self._python = python
        self._setting = setting
        self._tell = tell
        self._processes = min(setting.processes, subject.most or setting.processes)
        self._incarnations = 0
        self._workers: dict[int, Worker] = {}
        self._all: list[Worker] = []
        self._broken: list[str] = []

    async def run(self, interrupted: asyncio.Event) -> Figures:
        """Run all rounds, or those that there is time for until `interrupted` is set."""
        setting = self._setting
        rounds = max(1, math.ceil(setting.seconds / ROUND))
        each = setting.seconds / rounds
        calm = min(CALM, max(4 * setting.expiration, each / 8))
        active = max(0.5, each * (1 - CHECKS) - calm)
        analysis = Analysis(self._subject, setting.seed, setting.expiration, setting.seconds)
        modules = (*self._subject.imports, self._subject.open.partition(":")[0])
        with Zygote(self._python, modules) as zygote:
            for number in range(rounds):
                if interrupted.is_set():
                    break
                one = await self._round(zygote, number, rounds, active, calm, interrupted)
                self._tell(f"{self._subject.name}: round {number + 1} of {rounds}: checking")
                analysis.add(one)
        return analysis.figures

    async def _round(
        self,
        zygote: Zygote,
        number: int,
        rounds: int,
        active: float,
        calm: float,
        interrupted: asyncio.Event,
    ) -> Round:
        setting, subject = self._setting, self._subject
        directory = setting.directory / subject.name.replace(":", ".") / f"round-{number + 1}"
        directory.mkdir(parents=True)
        self._workers, self._all, self._broken = {}, [], []
        async with AsyncExitStack() as stack:
            server = proxy = None
            places = [str(directory / "store")]
            if subject.on_server:
                # All that it has acknowledged is in its file before it is, so a kill loses nothing.
                server = stack.enter_context(Server(appendonly=True, appendfsync="always"))
                proxy = await stack.enter_async_context(FaultyProxy("127.0.0.1", server.port))
                places = [server.url, f"redis://127.0.0.1:{proxy.port}/0"]
            else:
                (directory / "store").mkdir(mode=0o700)

            def start(place: int) -> None:
                where = places[place % len(places)]
                self._start(zygote, "work", place, directory, where, number)

            def replace(worker: Worker) -> None:
                self._end(zygote, worker, killed=True)
                start(worker.number)

            stack.callback(self._end_all, zygote)
            for place in range(self._processes):
                start(place)
            for worker in self._all:
                await worker.ready.wait()
            begun = time.monotonic_ns()
            conductor = Conductor(self._workers, replace, server, proxy)
            plan = make_plan(
                setting.seed,
                number,
                subject.faults,
                seconds=active,
                processes=self._processes,
                expiration=setting.expiration,
                every=setting.every,
            )
            told = asyncio.ensure_future(
                self._tell_progress(conductor, number, rounds, active + calm)
            )
            stack.callback(told.cancel)
            await conductor.run(plan, interrupted)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(begun / 1e9 + active - time.monotonic()):
                    await interrupted.wait()
            write_faults(directory / "faults", conductor.applied)
            calm_at = max([fault.ended for fault in conductor.applied], default=begun)
            await asyncio.sleep(calm)
            ended = time.monotonic_ns()
            await self._finish(zygote)
            final = await self._verify(zygote, directory, places[0], number)
        operations = [
            operation
            for worker in self._all
            if worker.history.exists()
            for operation in read_history(worker.history, worker.incarnation)
        ]
        return Round(
            number=number + 1,
            begun=begun,
            calm=calm_at,
            ended=ended,
            operations=operations,
            applied=conductor.applied,
            values=final["values"] if final else None,
            held=final["held"] if final else [],
            broken=[*self._broken, *(text for worker in self._all for text in worker.broken)],
            closings=Counter(worker.closing for worker in self._all if worker.closing),
        )

    def _start(
        self, zygote: Zygote, program: str, place: int, directory: Path, where: str, number: int
    ) -> Worker:
        self._incarnations += 1
        incarnation = self._incarnations
        mine, its = socket.socketpair()
        history = directory / f"{program}-{place}-{incarnation}.history"
        worker = Worker(place, incarnation, history, mine)
        job: dict[str, Any] = {
            "program": program,
            "subject": self._name,
            "place": where,
            "expiration": self._setting.expiration,
            "tokens": self._setting.tokens,
            "history": str(history),
            "worker": incarnation,
            "seed": f"{self._setting.seed} {number} {place} {incarnation}",
        }
        zygote.start(worker, its, job)
        if program == "work":
            self._workers[place] = worker
            worker.tell("go")
        self._all.append(worker)
        return worker

    def _end(self, zygote: Zygote, worker: Worker, *, killed: bool) -> None:
        """End a worker; one that has ended by itself before it was told to is told of."""
        had_ended = worker.over.is_set()
        status = zygote.end(worker)
        if killed and (had_ended or status != KILLED):
            self._broken.append(f"process {worker.number} has ended by itself, with {status}")

    def _end_all(self, zygote: Zygote) -> None:
        for worker in self._all:
            if worker.is_alive:
                zygote.end(worker)

    async def _finish(self, zygote: Zygote) -> None:
        """Have all workers end in order."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.tell("end")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.5 * PATIENCE):
                for worker in workers:
                    await worker.over.wait()
        for worker in workers:
            zygote.end(worker)
            if not worker.said_end:
                self._broken.append(f"process {worker.number} did not end in order")

    async def _verify(
        self, zygote: Zygote, directory: Path, where: str, number: int
    ) -> dict[str, Any] | None:
        """Find what is there."""
        verifier = self._start(zygote, "verify", self._processes, directory, where, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await verifier.over.wait()
        zygote.end(verifier)
        if verifier.final is None:
            self._broken.append("what is there at the end could not be read")
        return verifier.final

    async def _tell_progress(
        self, conductor: Conductor, number: int, rounds: int, seconds: float
    ) -> None:
        start = time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            done = sum(worker.count for worker in self._all)
            self._tell(
                f"{self._subject.name}: round {number + 1} of {rounds}, "
                f"{time.monotonic() - start:.0f} of {seconds:.0f} s, "
                f"{done} operations, {len(conductor.applied)} faults"
            )
