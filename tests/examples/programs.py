"""Start programs that end with the tests: the example's application, as a user does, and others."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from statemgr.testing.servers import wait_until
from statemgr.testing.servers.ports import free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0  # seconds without what should come, after which a test has failed

_LIFELINE = Path(__file__).with_name("lifeline.py")


class Program:
    """A program and all that it starts; nothing of it is left after the `with` block.

    Args:
        command: Its command.
        log: The file that it writes to.
        environment: Its environment variables.
    """

    def __init__(
        self, command: Sequence[str], log: Path, environment: dict[str, str] | None = None
    ) -> None:
        reading, self._lifeline = os.pipe()
        try:
            with log.open("ab") as output:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_LIFELINE), str(reading), *command],
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[reading],
                    start_new_session=True,
                )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(reading)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill it, if it has not ended."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        self.process.wait(PATIENCE)


class Application:
    """The live counter on a port of 127.0.0.1, until the end of the `with` block.

    It begins with that, and is there after `wait`.

    Args:
        arguments: Of its command line, but for the port.
        log: The file that it writes to.
        command: What comes before the arguments.
        environment: Environment variables beside those that are there.
    """

    COMMAND = ("-m", "examples.live_counter")

    def __init__(
        self,
        *arguments: str,
        log: Path,
        command: Sequence[str] = COMMAND,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.port = 0
        self._command = [sys.executable, *command, *arguments]
        self._log = log
        ours = {name: text for name, text in os.environ.items() if "STATEMGR" not in name}
        self._environment = ours | (environment or {})
        self._program: Program | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._program is not None
        self._program.close()

    def begin(self) -> None:
        """Start it, on the port that it had before, if any."""
        self.port = self.port or free_port(bus=False)
        command = [*self._command, "--port", str(self.port)]
        self._program = Program(command, self._log, self._environment)

    def wait(self) -> None:
        """Wait until it answers."""
        while not self._answers():
            # It was somebody's by the time it was used.
            assert "address already in use" in self.log, self.log
            self._log.unlink()
            self.port = 0
            self.begin()

    def stop(self) -> None:
        """End it in order, as a service manager does."""
        assert self._program is not None
        process = self._program.process
        process.send_signal(signal.SIGTERM)
        # A single worker sends itself the signal again when it is done, as is good manners.
        assert process.wait(PATIENCE) in (0, -signal.SIGTERM), self.log
        self._program.close()
        assert "Traceback" not in self.log, self.log

    def _answers(self) -> bool:
        assert self._program is not None
        process = self._program.process

        def is_decided() -> bool:
            with socket.socket() as probe:
                probe.settimeout(PATIENCE)
                is_there = probe.connect_ex(("127.0.0.1", self.port)) == 0
            return is_there or process.poll() is not None

        try:
            wait_until(is_decided, "the application answers", PATIENCE)
        except TimeoutError:
            raise AssertionError(f"the application does not answer: {self.log}") from None
        return process.poll() is None
