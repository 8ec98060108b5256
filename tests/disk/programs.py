"""Start the programs of workers.py in processes of their own, hear what they say, and end them."""

import json
import select
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE = 60.0  # seconds without a word, after which a test has failed
KILLED = -signal.SIGKILL

_TESTS = Path(__file__).parents[1]


class Program:
    """A program that was started.

    Attributes:
        heard: What it has said so far, a list of words for each line.
    """

    def __init__(self, channel: socket.socket, end: Callable[[], int]) -> None:
        self.heard: list[list[str]] = []
        self._channel = channel
        self._end = end
        self._rest = b""
        self._is_over = False

    def fileno(self) -> int:
        """Return what `select` waits for."""
        return self._channel.fileno()

    def hear(self) -> bool:
        """Wait for more lines; return whether there may be more."""
        readable, _, _ = select.select([self._channel], [], [], PATIENCE)
        assert readable, f"a program said nothing for {PATIENCE:g} s, after {self.heard[-3:]}"
        try:
            data = self._channel.recv(65536)
        except ConnectionResetError:  # it was killed before it heard `go`
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.heard += [line.decode().split() for line in lines]
        self._is_over = self._is_over or not data
        return not self._is_over

    def hear_until(self, word: str) -> None:
        """Wait until a line begins with a word."""
        while not any(line[0] == word for line in self.heard):
            assert self.hear(), f"a program has ended without {word!r}: {self.heard[-3:]}"

    def hear_lines(self, count: int) -> None:
        """Wait until so many lines were heard."""
        while len(self.heard) < count:
            assert self.hear(), f"a program has ended after {self.heard[-3:]}"

    def go(self) -> None:
        """Let it go on."""
        self._channel.sendall(b".")

    def finish(self) -> None:
        """Wait until it has ended, as it should."""
        assert self.outlive(), f"a program has ended after {self.heard[-3:]}"

    def outlive(self) -> bool:
        """Wait until it has ended; return False if it was killed before it was done."""
        while self.hear():
            pass
        status = self.close()
        assert status in (0, KILLED), f"a program has ended with {status}"
        return ["end"] in self.heard

    def kill(self) -> bool:
        """Kill it, and hear all that it had said; return False if it had ended by itself."""
        status = self._end()
        while self.hear():
            pass
        self._channel.close()
        assert status in (0, KILLED), f"a program has ended with {status}"
        return status == KILLED

    def close(self) -> int:
        """End it in any case."""
        self._channel.close()
        return self._end()


class Programs(ABC):
    """Starts programs; all of them end with it."""

    def __init__(self) -> None:
        self._programs: list[Program] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for program in self._programs:
            program._channel.close()
        self._programs.clear()
        self.close()

    def start(self, name: str, /, **arguments: Any) -> Program:
        """Start a program of workers.py."""
        mine, its = socket.socketpair()
        with its:
            program = Program(mine, self._start(its, name, arguments))
        self._programs = [one for one in self._programs if one.fileno() >= 0]
        self._programs.append(program)
        return program

    @abstractmethod
    def _start(
        self, channel: socket.socket, name: str, arguments: dict[str, Any]
    ) -> Callable[[], int]:
        """Start a program; return what ends it and tells how it has ended."""

    @abstractmethod
    def close(self) -> None:
        """End all programs."""


class Interpreters(Programs):
    """Starts an interpreter for each program."""

    def __init__(self) -> None:
        super().__init__()
        self._processes: list[subprocess.Popen[bytes]] = []

    def _start(
        self, channel: socket.socket, name: str, arguments: dict[str, Any]
    ) -> Callable[[], int]:
        process = _run("main", channel, name, json.dumps(arguments))
        self._processes.append(process)

        def end() -> int:
            process.kill()
            return process.wait(PATIENCE)

        return end

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(PATIENCE)


class Zygote(Programs):
    """Forks each program from one process, which was started for that."""

    def __init__(self) -> None:
        super().__init__()
        self._control, its = socket.socketpair()
        with its:
            self._process = _run("serve", its)

    def _start(
        self, channel: socket.socket, name: str, arguments: dict[str, Any]
    ) -> Callable[[], int]:
        pid = self._ask({"program": name, "arguments": arguments}, [channel.fileno()])
        ended: list[int] = []

        def end() -> int:
            if not ended:
                ended.append(self._ask({"end": pid}))
            return ended[0]

        return end

    def _ask(self, request: dict[str, Any], descriptors: list[int] | None = None) -> int:
        socket.send_fds(self._control, [json.dumps(request).encode()], descriptors or [])
        readable, _, _ = select.select([self._control], [], [], PATIENCE)
        assert readable, "the zygote does not answer"
        return int(self._control.recv(64))

    def close(self) -> None:
        self._control.close()  # it ends its children, and itself
        try:
            self._process.wait(PATIENCE)
        except BaseException:
            self._process.kill()
            raise


def _run(function: str, channel: socket.socket, *arguments: str) -> "subprocess.Popen[bytes]":
    code = f"from disk import workers; workers.{function}()"
    command = [sys.executable, "-W", "error", "-c", code, str(channel.fileno()), *arguments]
    return subprocess.Popen(command, cwd=_TESTS, pass_fds=[channel.fileno()])


def pause(seconds: float) -> None:
    """Let programs run for a moment, to kill them at any place."""
    time.sleep(seconds)
