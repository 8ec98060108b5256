"""`Trips`: what many tasks ask of the disk at the same time goes to a thread in one trip.

A trip costs two wake-ups, 50 microseconds or more, and so more than most of what it is made for.
While one is under way, what is asked for waits for the next.
Jobs are generators: each runs in the thread until it ends, or until it yields the descriptor
of a file that must be on stable storage before it goes on. So the jobs of one trip go side by
side from one sync to the next, and share the waiting.
"""

import asyncio
import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Generic, TypeVar

from statemgr.cancellation import outlast

try:
    import fcntl
except ImportError:  # Windows
    _FULL_SYNC = None
else:
    # On macOS fsync(2) leaves the data in the drive's cache.
    _FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)

T = TypeVar("T")

Job = Generator[int, None, T]

_SYNCS_AT_ONCE = 16  # a file system joins the syncs that it is asked for at the same time


class _Call(Generic[T]):
    """A job, who waits for it, and what came of it."""

    __slots__ = ("arrived", "done", "error", "job", "result")

    result: T

    def __init__(self, job: "Job[T]", done: "asyncio.Future[None]") -> None:
        self.job = job
        self.done = done
        self.arrived = False
        self.error: BaseException | None = None

    def step(self, error: OSError | None) -> int | None:
        """Run the job up to its next sync; return its descriptor, None when it has ended."""
        try:
            return next(self.job) if error is None else self.job.throw(error)
        except StopIteration as stop:
            self.result = stop.value
        except BaseException as failure:  # raised where it is waited for
            self.error = failure
        return None


class Trips:
    """Run jobs in one thread, in the order they were asked for.

    The thread is our own and sleeps on a pipe: a trip by way of a `ThreadPoolExecutor` takes
    three times as long, for the locks and futures that it goes through.

    Args:
        name: What the thread is called.
        syncs: Whether jobs yield descriptors: then there are threads to sync them.

    Attributes:
        closed: Whether the thread has ended.
    """

    def __init__(self, name: str, *, syncs: bool) -> None:
        self.closed = False
        self._name = name
        self._syncs = ThreadPoolExecutor(_SYNCS_AT_ONCE, f"{name}-sync") if syncs else None
        self._bell: BinaryIO | None = None  # what the thread is woken by
        self._departures: deque[Callable[[], None]] = deque()
        self._waiting: list[_Call[Any]] = []
        self._under_way = False
        self._idle: asyncio.Future[None] | None = None  # set when nothing is under way

    async def run(self, job: Job[T]) -> T:
        """Run a job, and return what it returns.

        Cancelling does not stop it: the call ends as cancelled when the job has ended.

        Raises:
            OSError: If the thread cannot be started; or what the job raises.
        """
        loop = asyncio.get_running_loop()
        if self._bell is None:
            self._bell = _start_thread(self._name, self._departures)
        call = _Call(job, loop.create_future())
        self._waiting.append(call)
        if not self._under_way:
            self._under_way = True
            if self._syncs is None:
                self._send(loop)  # at once; what else is asked for in this turn goes together
            else:
                loop.call_soon(self._send, loop)  # with that, to share the syncs
        try:
            await call.done
        except asyncio.CancelledError:
            if not call.arrived:
                # The cancel ended the future that was waited for, and nobody else has it.
                call.done = loop.create_future()
                await outlast(call.done)
            raise
        if call.error is not None:
            raise call.error
        return call.result

    async def close(self) -> None:
        """Wait for the jobs that were asked for, and end the threads."""
        while self._under_way:
            self._idle = self._idle or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)
        self.closed = True
        if self._bell is not None:
            self._bell.write(b"1")  # for nothing: a child that was forked keeps the pipe open
            self._bell.close()
        if self._syncs is not None:
            self._syncs.shutdown(wait=False)

    # Callbacks and no task: at its end a loop cancels tasks, and a trip that is under way has to
    # arrive all the same.

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        calls, self._waiting = self._waiting, []

        def travel() -> None:
            _run_all(calls, self._syncs)
            with contextlib.suppress(RuntimeError):  # the loop was closed, and nobody waits
                loop.call_soon_threadsafe(self._arrive, calls, loop)

        assert self._bell is not None  # noqa: S101  # started by who asked
        self._departures.append(travel)
        self._bell.write(b"1")

    def _arrive(self, calls: list[_Call[Any]], loop: asyncio.AbstractEventLoop) -> None:
        for call in calls:
            call.arrived = True
            if not call.done.done():
                call.done.set_result(None)
        if self._waiting:
            self._send(loop)
            return
        self._under_way = False
        if self._idle is not None:
            self._idle.set_result(None)
            self._idle = None


def _start_thread(name: str, departures: "deque[Callable[[], None]]") -> BinaryIO:
    """Start a thread that makes one call for each byte written to the file returned.

    It ends when the file is closed, or nobody has it any more.
    """
    heard, rung = os.pipe()

    def work() -> None:
        with os.fdopen(heard, "rb", buffering=0) as bell:
            while bell.read(1) and departures:
                departures.popleft()()

    # A daemon: a program that ends without closing its manager must not hang.
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        os.close(heard)
        os.close(rung)
        raise OSError(errno.EAGAIN, str(error)) from error
    return os.fdopen(rung, "wb", buffering=0)


def _run_all(calls: list[_Call[Any]], syncs: ThreadPoolExecutor | None) -> None:
    errors: dict[int, OSError] = {}
    at_sync: list[tuple[_Call[Any], int | None]] = [(call, None) for call in calls]
    while at_sync:
        asked: list[tuple[_Call[Any], int | None]] = []
        for call, descriptor in at_sync:
            awaited = call.step(errors.get(descriptor) if descriptor is not None else None)
            if awaited is not None:
                asked.append((call, awaited))
        at_sync = asked
        errors = _sync({one for _, one in asked if one is not None}, syncs)


def _sync(descriptors: Collection[int], syncs: ThreadPoolExecutor | None) -> dict[int, OSError]:
    """Bring files to stable storage; return the errors by descriptor."""
    if syncs is None:
        return {}
    try:
        results = list(syncs.map(_sync_one, descriptors))
    except RuntimeError:  # no more threads can be started
        results = list(map(_sync_one, descriptors))
    errors = zip(descriptors, results, strict=True)
    return {descriptor: error for descriptor, error in errors if error is not None}


def _sync_one(descriptor: int) -> OSError | None:
    try:
        if _FULL_SYNC is not None:
            fcntl.fcntl(descriptor, _FULL_SYNC)
        else:
            os.fsync(descriptor)
    except OSError as error:
        return error
    return None
