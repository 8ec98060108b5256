"""The processes of a run. One of them, the zygote, does nothing but fork the others.

A fork takes some milliseconds, a new interpreter with all its imports takes hundreds of them, or
seconds for a peer: so a run can afford a kill each second. The zygote has no thread and no event
loop. It is started as `python -m chaos.worker DESCRIPTOR MODULE...`, and is asked over that
socket, by a line of JSON each:

    {"start": {...}}, with a socket's descriptor    answered by the process id
    {"end": PID}                                    kills it; answered by how it ended

A process that was started and has ended keeps its id until the zygote is asked to end it, so a
signal never reaches another process. All end with the zygote, and the zygote with who started it.

The process with the socket is told what to do by lines, and says what it has done:

    go, end                  begin, end             ready, end
    clock SECONDS            step the wall clock    count OPERATIONS
    fail NUMBER              the Nth call fails     broken TEXT
    full SECONDS             no space is left       closing ERROR
    stop                     in the next body       stops, goes
    walk                     do not                 final JSON
"""

import asyncio
import gc
import importlib
import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos.history import Recorder
from chaos.subjects import Subject, find_subject, opener
from chaos.workload import Workload, class_of, ident_of
from statemgr.clock import Clock

if TYPE_CHECKING:
    from chaos.broken_calls import BrokenCalls

PATIENCE = 20.0  # seconds in which what is under way has to end
_COUNTED = 0.5  # seconds from one count to the next


class SteppedClock(Clock):
    """The system's clock, but for steps of the wall clock."""

    def __init__(self) -> None:
        self.offset = 0.0

    def time(self) -> float:
        """Return the wall clock's time."""
        return time.time() + self.offset


class _Line:
    """The socket to who has started this process."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def say(self, word: str, text: object = "") -> None:
        self._channel.sendall(f"{word} {text}\n".encode())


class _Orders:
    """What this process was told."""

    def __init__(self, channel: socket.socket) -> None:
        self.clock = SteppedClock()
        self.calls: BrokenCalls | None = None
        self.go = asyncio.Event()
        self.end = asyncio.Event()
        self.stop = False
        self._channel = channel
        self._rest = b""
        asyncio.get_running_loop().add_reader(channel, self._read)

    def _read(self) -> None:
        data = self._channel.recv(65536)
        if not data:
            os._exit(1)  # nobody is left to work for
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._obey(*line.decode().split())

    def _obey(self, word: str, amount: str = "0") -> None:
        match word:
            case "go":
                self.go.set()
            case "end":
                self.end.set()
            case "clock":
                self.clock.offset += float(amount)
            case "fail" if self.calls is not None:
                self.calls.fail_once(int(amount))
            case "stop" | "walk":
                self.stop = word == "stop"
            case "full" if self.calls is not None:
                self.calls.fill(float(amount))


async def work(channel: socket.socket, subject: Subject, job: dict[str, Any]) -> None:
    """Work until told to end, then close the manager."""
    line, orders = _Line(channel), _Orders(channel)
    if "chaos.broken_calls" in subject.imports:
        from chaos.broken_calls import BrokenCalls

        orders.calls = BrokenCalls()
        orders.calls.install()
    recorder = Recorder(Path(job["history"]))
    await orders.go.wait()
    opening = opener(subject)(job["place"], orders.clock, job["expiration"], **subject.options)
    opened = await opening.__aenter__()
    workload = Workload(
        opened,
        recorder,
        tokens=job["tokens"],
        worker=job["worker"],
        seed=job["seed"],
        sets=subject.sets,
        reads=not subject.window,
    )
    line.say("ready")

    def stop() -> None:
        if orders.stop:
            orders.stop = False
            line.say("stops")
            os.kill(os.getpid(), signal.SIGSTOP)
            line.say("goes")

    workload.in_body = stop
    working = asyncio.ensure_future(workload.run())
    ended = asyncio.ensure_future(orders.end.wait())
    while not ended.done() and not working.done():
        await asyncio.wait([ended, working], timeout=_COUNTED, return_when="FIRST_COMPLETED")
        line.say("count", workload.done)
    workload.end()
    _, late = await asyncio.wait([working], timeout=PATIENCE)
    if late:
        line.say("broken", "operations that do not end")
    elif error := working.exception():
        line.say("broken", f"the workload failed: {error!r}")
    try:
        async with asyncio.timeout(PATIENCE):
            await opening.__aexit__(None, None, None)
    except TimeoutError:
        line.say("broken", "a manager that does not close")
    except Exception as error:  # what it says of changes that it could not save
        line.say("closing", type(error).__name__)
    recorder.close()
    line.say("end")


async def verify(channel: socket.socket, subject: Subject, job: dict[str, Any]) -> None:
    """Tell what is in each state at the end, and which locks are held."""
    values, held = [], []
    opening = opener(subject)(job["place"], SteppedClock(), job["expiration"], **subject.options)
    async with opening as opened:
        for number in range(job["tokens"]):
            token = opened.token(ident_of(number), class_of(number))
            if not await opened.try_lock(token):
                held.append(number)
            values.append((await opened.manager.get_state(token)).value)
    _Line(channel).say("final", json.dumps({"values": values, "held": held}))


def main() -> None:
    """Be the zygote."""
    descriptor, *modules = sys.argv[1:]
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else each child copies all pages at its first collection
    children: set[int] = set()
    with socket.socket(fileno=int(descriptor)) as control:
        try:
            while True:
                data, descriptors, *_ = socket.recv_fds(control, 1 << 16, 1)
                if not data:
                    return
                request = json.loads(data)
                if "end" in request:
                    answer = _end(request["end"])
                    children.discard(request["end"])
                else:
                    answer = _fork(control, descriptors[0], request["start"])
                    children.add(answer)
                    os.close(descriptors[0])
                control.sendall(f"{answer}\n".encode())
        finally:
            for pid in children:
                _end(pid)


def _fork(control: socket.socket, descriptor: int, job: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        control.close()
        logging.disable()  # faults are what this is about
        program = {"work": work, "verify": verify}[job.pop("program")]
        subject = find_subject(job["subject"])
        with socket.socket(fileno=descriptor) as channel:
            asyncio.run(program(channel, subject, job))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


def _end(pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    main()
