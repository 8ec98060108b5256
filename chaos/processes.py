"""The processes of a run, as seen from the one that runs it."""

import asyncio
import json
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from os import kill
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.paths import ROOT

PATIENCE = 60.0  # seconds in which the zygote has to answer
KILLED = -signal.SIGKILL


@dataclass(eq=False)
class Worker:
    """A process that works, from its start to its end.

    Attributes:
        number: Its place: who is started after a kill has the same.
        incarnation: Its own number.
        pid: Its process id.
        history: What it writes.
        count: How many operations it has said to have done.
        broken: What it has said that must not be.
        closing: The error that its manager has closed with.
        final: What it has found at the end.
        ready, over: When it has said that it is, and when it has said its last.
        goes: When it goes on after it has stopped itself; `on_stop` is called when it is about to.
    """

    number: int
    incarnation: int
    history: Path
    channel: socket.socket
    pid: int = 0
    is_alive: bool = True
    count: int = 0
    broken: list[str] = field(default_factory=list)
    closing: str = ""
    final: dict[str, Any] | None = None
    said_end: bool = False
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    goes: asyncio.Event = field(default_factory=asyncio.Event)
    on_stop: Callable[[], None] | None = None
    rest: bytes = b""

    def tell(self, *words: object) -> None:
        """Tell it something; one that has just ended hears nothing."""
        if self.is_alive:
            try:
                self.channel.sendall((" ".join(map(str, words)) + "\n").encode())
            except OSError:
                return

    def send_signal(self, number: int) -> None:
        """Send a signal. Its id is its own until it is ended."""
        if self.is_alive:
            kill(self.pid, number)


class Zygote:
    """Start and end workers.

    Args:
        python: The interpreter.
        modules: What it imports once.
    """

    def __init__(self, python: str, modules: tuple[str, ...]) -> None:
        self._control, its = socket.socketpair()
        command = [python, "-m", "chaos.worker", str(its.fileno()), *modules]
        with its:
            self._process = subprocess.Popen(  # noqa: S603  # our own module
                command,
                cwd=ROOT,
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for who runs this
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._control.close()  # it ends its children, and itself
        try:
            self._process.wait(PATIENCE)
        except BaseException:
            self._process.kill()
            raise

    def start(self, worker: Worker, its: socket.socket, job: dict[str, Any]) -> None:
        """Start a worker, and listen to it."""
        with its:
            worker.pid = self._ask({"start": job}, [its.fileno()])
        worker.channel.setblocking(False)
        asyncio.get_running_loop().add_reader(worker.channel, self._hear, worker)

    def end(self, worker: Worker) -> int:
        """Kill a worker, if it has not ended, and return how it has."""
        while not worker.over.is_set() and _is_readable(worker.channel):
            self._hear(worker)
        worker.is_alive = False
        status = self._ask({"end": worker.pid})
        while not worker.over.is_set():  # what it had said before
            self._hear(worker)
        worker.channel.close()
        return status

    def _ask(self, request: dict[str, Any], descriptors: list[int] | None = None) -> int:
        socket.send_fds(self._control, [json.dumps(request).encode()], descriptors or [])
        if not _is_readable(self._control, PATIENCE):
            raise RuntimeError("the process that starts the others does not answer")
        answer = self._control.recv(64)
        if not answer:
            raise RuntimeError("the process that starts the others has ended")
        return int(answer)

    def _hear(self, worker: Worker) -> None:
        try:
            data = worker.channel.recv(65536)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        *lines, worker.rest = (worker.rest + data).split(b"\n")
        for line in lines:
            word, _, text = line.decode().partition(" ")
            _heard(worker, word, text)
        if not data:
            asyncio.get_running_loop().remove_reader(worker.channel)
            worker.ready.set()
            worker.over.set()


def _heard(worker: Worker, word: str, text: str) -> None:
    match word:
        case "ready":
            worker.ready.set()
        case "count":
            worker.count = int(text)
        case "broken":
            worker.broken.append(text)
        case "closing":
            worker.closing = text
        case "final":
            worker.final = json.loads(text)
        case "stops":
            worker.goes.clear()
            if worker.on_stop is not None:
                worker.on_stop()
        case "goes":
            worker.goes.set()
        case "end":
            worker.said_end = True


def _is_readable(channel: socket.socket, seconds: float = 0.0) -> bool:
    return bool(select.select([channel], [], [], seconds)[0])
