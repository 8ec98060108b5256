"""Make happen what a plan says, and write down what did."""

import asyncio
import contextlib
import functools
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from chaos.plan import Fault, FaultKind
from chaos.processes import Worker
from statemgr.testing.proxy import Command, FaultyProxy
from statemgr.testing.servers import Server

_RESTART = 0.1  # seconds that a killed server is away, and it takes its own time to start
_LONGEST_WAIT = 10.0  # seconds for a message that is to be dropped, and may never come
_HANDSHAKE = frozenset(
    {b"AUTH", b"CLIENT", b"CONFIG", b"HELLO", b"PING", b"PSUBSCRIBE", b"SELECT", b"SUBSCRIBE"}
)


@dataclass(frozen=True)
class Applied:
    """A fault that happened.

    Attributes:
        kind: What went wrong.
        begun: When, in nanoseconds of the monotonic clock.
        ended: When it was over.
        worker: The incarnation that it was about; None for all.
        amount: As in the plan.
    """

    kind: FaultKind
    begun: int
    ended: int
    worker: int | None = None
    amount: float = 0.0


def write_faults(path: Path, applied: Iterable[Applied]) -> None:
    """Write what has happened beside the histories, in the order of its ends, a line for each.

    A line is `f KIND BEGUN ENDED WORKER AMOUNT`, with times and a `-` as in a history, and `_` for
    the spaces of a kind.
    """
    lines = [
        f"f {fault.kind.replace(' ', '_')} {fault.begun} {fault.ended} "
        f"{'-' if fault.worker is None else fault.worker} {fault.amount:g}\n"
        for fault in applied
    ]
    path.write_text("".join(lines))


class Conductor:
    """Let faults happen.

    Args:
        workers: Who works, by number.
        replace: Kills a worker, and starts another one in its place.
        server: The server, if there is one.
        proxy: What some of the workers reach it through.

    Attributes:
        applied: What has happened.
    """

    def __init__(
        self,
        workers: dict[int, Worker],
        replace: Callable[[Worker], None],
        server: Server | None,
        proxy: FaultyProxy | None,
    ) -> None:
        self.applied: list[Applied] = []
        self._workers = workers
        self._replace = replace
        self._server = server
        self._proxy = proxy
        self._stopped: set[Worker] = set()
        self._stops: set[asyncio.Task[None]] = set()
        self._with_server = asyncio.Lock()  # what is done to the server is done one by one

    async def run(self, plan: Sequence[Fault], until: asyncio.Event) -> None:
        """Let a plan happen; at once nothing more when `until` is set."""
        start = time.monotonic()
        faults = [asyncio.ensure_future(self._at(start, fault)) for fault in plan]
        everything = asyncio.ensure_future(_all(faults))
        over = asyncio.ensure_future(until.wait())
        tasks: list[asyncio.Task[Any]] = [over, everything, *faults]
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            if everything.done():
                await everything
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._proxy is not None:
                self._proxy.clear_faults()
            for worker in self._workers.values():
                worker.tell("walk")
            if self._stops:
                await asyncio.wait(self._stops)

    async def _at(self, start: float, fault: Fault) -> None:
        await asyncio.sleep(start + fault.at - time.monotonic())
        if fault.workers:
            await asyncio.gather(*(self._to_worker(fault, number) for number in fault.workers))
        elif self._server is not None and self._proxy is not None:
            begun = time.monotonic_ns()
            if await self._to_server(fault, self._server, self._proxy):
                self._note(fault, begun)

    def _note(self, fault: Fault, begun: int, worker: Worker | None = None) -> None:
        incarnation = None if worker is None else worker.incarnation
        ended = time.monotonic_ns()
        self.applied.append(Applied(fault.kind, begun, ended, incarnation, fault.amount))

    async def _to_worker(self, fault: Fault, number: int) -> None:
        worker = self._workers[number]
        begun = time.monotonic_ns()
        match fault.kind:
            case FaultKind.STOP if worker in self._stopped:
                return
            case FaultKind.STOP if fault.amount:
                self._stopped.add(worker)
                worker.on_stop = functools.partial(self._stopped_itself, fault, worker)
                worker.tell("stop")
                return
            case FaultKind.STOP:
                if not await self._stop(worker, fault.seconds):
                    return
            case FaultKind.KILL:
                self._replace(worker)
            case FaultKind.CLOCK:
                worker.tell("clock", fault.amount)
            case FaultKind.IO_ERROR:
                worker.tell("fail", int(fault.amount))
            case FaultKind.DISK_FULL:
                worker.tell("full", fault.seconds)
                await asyncio.sleep(fault.seconds)
        self._note(fault, begun, worker)

    async def _stop(self, worker: Worker, seconds: float) -> bool:
        """Stop a worker; return whether it has lived to go on."""
        worker.send_signal(signal.SIGSTOP)
        self._stopped.add(worker)
        try:
            await asyncio.sleep(seconds)
        finally:
            worker.send_signal(signal.SIGCONT)
            self._stopped.discard(worker)
        return worker.is_alive

    def _stopped_itself(self, fault: Fault, worker: Worker) -> None:
        task = asyncio.ensure_future(self._let_go_on(fault, worker, time.monotonic_ns()))
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)

    async def _let_go_on(self, fault: Fault, worker: Worker, begun: int) -> None:
        """Let a worker go on that has said that it stops: it may be about to, so until it does."""
        await asyncio.sleep(fault.seconds)
        ended = time.monotonic_ns()
        while worker.is_alive and not worker.goes.is_set():
            worker.send_signal(signal.SIGCONT)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await worker.goes.wait()
        self._stopped.discard(worker)
        if worker.is_alive:
            self.applied.append(Applied(fault.kind, begun, ended, worker.incarnation))

    async def _to_server(self, fault: Fault, server: Server, proxy: FaultyProxy) -> bool:
        """Do it; return whether it has happened."""
        match fault.kind:
            case FaultKind.CUT:
                proxy.cut()
            case FaultKind.DROP:
                dropped = proxy.drop_reply(int(fault.amount), where=_is_work)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LONGEST_WAIT):
                        await dropped.wait()
                return dropped.is_set()
            case FaultKind.DELAY:
                proxy.delay(fault.amount)
                try:
                    await asyncio.sleep(fault.seconds)
                finally:
                    proxy.delay(0)
            case FaultKind.PARTITION:
                proxy.hold()
                try:
                    await asyncio.sleep(fault.seconds)
                finally:
                    proxy.resume()
            case _:
                async with self._with_server:
                    await self._disturb(fault, server)
        return True

    async def _disturb(self, fault: Fault, server: Server) -> None:
        match fault.kind:
            case FaultKind.CLIENT_PAUSE:
                milliseconds = int(fault.seconds * 1000)
                await asyncio.to_thread(server.command, "CLIENT", "PAUSE", milliseconds)
                await asyncio.sleep(fault.seconds)
            case FaultKind.SERVER_STOP:
                server.stop_process()
                try:
                    await asyncio.sleep(fault.seconds)
                finally:
                    server.continue_process()
            case FaultKind.SERVER_KILL:
                server.kill()
                try:
                    await asyncio.sleep(_RESTART)
                finally:
                    server.restart()  # not in a thread: a cancel would not wait for it
            case FaultKind.MEMORY:
                await asyncio.to_thread(server.command, "CONFIG", "SET", "maxmemory", 1)
                try:
                    await asyncio.sleep(fault.seconds)
                finally:
                    with contextlib.suppress(RedisError):
                        server.command("CONFIG", "SET", "maxmemory", 0)


async def _all(faults: Iterable[Awaitable[None]]) -> None:
    await asyncio.gather(*faults)


def _is_work(command: Command) -> bool:
    return command[0] not in _HANDSHAKE
