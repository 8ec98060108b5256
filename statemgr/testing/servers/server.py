"""`Server`: one process of a Redis-compatible server, on a port of its own."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from statemgr.testing.servers.binaries import DEFAULT, find_server, how_to_install
from statemgr.testing.servers.ports import free_port

PATIENCE = 20.0  # seconds after which a server that does not get there has failed
_CLASHES = 20  # ports that are tried

# A primary that writes a file serves several replicas with it, and waits for no others first. A
# replica that reads from the connection does not wait for the next of its looks, each second,
# whether a file is complete.
FAST_REPLICATION = {"repl_diskless_sync": False, "repl_diskless_load": "on-empty-db"}

_LAUNCHER = Path(__file__).with_name("launcher.py")


class ServerStartError(RuntimeError):
    """A server did not start, or did not answer in time.

    Attributes:
        name: The server's name.
        log: What the server has logged; empty if it has not run.
    """

    def __init__(self, message: str, *, name: str, log: str) -> None:
        said = f"; it logged:\n{log}" if log else ""
        super().__init__(f"{name} {message}{said}")
        self.name = name
        self.log = log


# What is raised when a server cannot be reached. It may be loading its data, or be stopped.
UNREACHABLE = (RedisConnectionError, RedisTimeoutError)


def wait_until(condition: Callable[[], bool], what: str, patience: float | None = None) -> None:
    """Look often, until a condition holds. The thread is blocked meanwhile.

    A server that cannot be reached is one of which the condition does not hold yet.

    Args:
        condition: Says whether it is so.
        what: What is waited for, for the error's message.
        patience: Seconds; None is `PATIENCE`.

    Raises:
        TimeoutError: It took longer. Chained is what the servers last failed with, if they did.
    """
    patience = PATIENCE if patience is None else patience
    end = time.monotonic() + patience
    while True:
        failure: Exception | None = None
        try:
            if condition():
                return
        except UNREACHABLE as error:
            failure = error
        if time.monotonic() > end:
            raise TimeoutError(f"after {patience:g} s still not: {what}") from failure
        time.sleep(0.005)


class Server:
    """Run a server while the `with` block lasts, on 127.0.0.1 and a free port.

    It keeps nothing on disk unless it is told to, and ends with this process in any case (see
    launcher.py). Its files are in a temporary directory, removed at the end. Calls block their
    thread; an event loop whose client waits for a server has to make them in another one.

    Args:
        name: A key of `SERVERS`.
        arguments: Further arguments of the command line, given last.
        unix_socket: Listen on a Unix socket as well.
        config: The text of a configuration file, None for none. The server may rewrite it. What is
            given by `settings` wins over it, and so do `bind`, `save` and `appendonly`, which are
            always given: `appendonly yes` is to be said by `appendonly=True`.
        settings: The server's settings: `appendonly=True` is `--appendonly yes`. With
            `cluster_enabled` the port of the cluster's bus is free, too; `requirepass` is given
            by `client`, and part of the URLs.

    Attributes:
        name: As given.
        directory: The server's working directory, while it is open.
        port: Its port, 0 before the start.
    """

    def __init__(
        self,
        name: str = DEFAULT,
        *arguments: str,
        unix_socket: bool = False,
        config: str | None = None,
        **settings: str | float | bool,
    ) -> None:
        self.name = name
        self.port = 0
        self.directory = Path()
        self._arguments = arguments
        self._has_socket = unix_socket
        self._config = config
        self._settings = {"bind": "127.0.0.1", "save": "", "appendonly": False} | settings
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._log_start = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # What it is

    @property
    def url(self) -> str:
        """Database 0, over TCP, with the password if `requirepass` was set."""
        login = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    @property
    def socket_path(self) -> Path:
        """The Unix socket, which is there if it was asked for."""
        return self.directory / "socket"

    @property
    def unix_url(self) -> str:
        """Database 0, over the Unix socket, with the password if `requirepass` was set."""
        login = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"unix://{login}{self.socket_path}?db=0"

    @property
    def config_path(self) -> Path:
        """The configuration file, which is there if its text was given."""
        return self.directory / "server.conf"

    @property
    def pid(self) -> int:
        """The process id of the server, or of the last one if it has ended."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there; it may be stopped."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """Return what the server has logged, in all its runs."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    # Life and death

    def start(self) -> None:
        """Start the server, and wait until it answers.

        Raises:
            ServerStartError: It is not installed, it ended at once, or it does not answer.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="statemgr-server-"))
        try:
            if self._config is not None:
                self.config_path.write_text(self._config)
            if not any(self._run_on_free_port() for _ in range(_CLASHES)):
                raise self._failed(f"found {_CLASHES} ports taken")  # noqa: TRY301  # close() first
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill the server, and remove its directory. Does nothing when that was done."""
        self.kill()
        if self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = Path()

    def kill(self) -> None:
        """Kill the server with SIGKILL, and wait until it has ended. It may have ended before."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._let_go()

    def stop_process(self) -> None:
        """Stop the process with SIGSTOP: connections stay, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def continue_process(self) -> None:
        """Let a stopped process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Start the server again, on its port and in its directory; end it before if it runs.

        It is ended in order, so that with `appendonly` all its data are there again. Without,
        it comes back empty.

        Raises:
            ServerStartError: As `start` does, or the port was taken meanwhile.
        """
        if self.is_running:
            self.continue_process()
            os.kill(self.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process_or_fail().wait(PATIENCE)
        self.kill()
        if not self._run():
            raise self._failed(f"found its port {self.port} taken when it was restarted")

    # Commands

    def command(self, *arguments: str | bytes | float) -> Any:
        """Send one command on a connection of its own, and return the answer as RESP2 has it.

        Texts are bytes, and redis-py translates nothing: INFO is one text.

        Raises:
            redis.exceptions.RedisError: What redis-py raises.
        """
        with self.client() as client:
            client.response_callbacks.clear()
            return client.execute_command(*arguments)

    def client(self, timeout: float | None = None) -> Redis:
        """Return a synchronous client which does not try again, to be closed by the caller.

        Args:
            timeout: Seconds to wait for a connection or an answer; None is `PATIENCE`.
        """
        timeout = PATIENCE if timeout is None else timeout
        return Redis(
            host="127.0.0.1",
            port=self.port,
            password=self._password or None,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
        )

    # Within

    @property
    def _log_path(self) -> Path:
        return self.directory / "server.log"

    @property
    def _password(self) -> str:
        return str(self._settings.get("requirepass", ""))

    def _process_or_fail(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process

    def _run_on_free_port(self) -> bool:
        self.port = free_port(bus=bool(self._settings.get("cluster_enabled")))
        return self._run()

    def _run(self) -> bool:
        """Launch the server and wait until it answers; return False if its port was taken."""
        self._launch()
        end = time.monotonic() + PATIENCE
        while self.is_running:
            if self._answers():
                return True
            if time.monotonic() > end:
                raise self._failed(f"did not answer within {PATIENCE:g} s")
            time.sleep(0.002)
        status = self._process_or_fail().returncode
        self._let_go()
        with self._log_path.open("rb") as log:
            log.seek(self._log_start)
            if b"Address already in use" in log.read():
                return False
        raise self._failed(f"ended with {status} instead of starting")

    def _launch(self) -> None:
        command = self._command_line()
        reading, self._lifeline = os.pipe()
        # Isolated, and without site-packages: it starts in a few milliseconds.
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(reading), str(self.directory)]
        try:
            with self._log_path.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(  # noqa: S603  # the path is from our table
                    [*launcher, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[reading],
                    start_new_session=True,
                )
        except BaseException:
            self._let_go()
            raise
        finally:
            os.close(reading)

    def _let_go(self) -> None:
        """End the watcher, whose server has ended."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def _command_line(self) -> list[str]:
        program = find_server(self.name)
        if program is None:
            raise self._failed(f"is not installed: {how_to_install(self.name)}")
        line = [str(program)]
        if self._config is not None:
            line.append(str(self.config_path))
        settings = self._settings | {"port": self.port, "dir": str(self.directory)}
        if self._has_socket:
            settings["unixsocket"] = str(self.socket_path)
        for setting, value in settings.items():
            text = ("no", "yes")[value] if isinstance(value, bool) else str(value)
            line += [f"--{setting.replace('_', '-')}", text]
        return [*line, *self._arguments]

    def _answers(self) -> bool:
        """Return whether the server on our port is ready, and is ours."""
        try:
            # Who has taken our port may accept connections and never answer.
            with self.client(timeout=0.2) as client:
                client.ping()
                return bool(client.info("server")["process_id"] == self.pid)
        except UNREACHABLE:
            return False

    def _failed(self, message: str) -> ServerStartError:
        return ServerStartError(message, name=self.name, log=self.log())


def is_connected_replica(server: Server) -> bool:
    """Return whether a server is a replica, has its primary's data, and is connected with it."""
    role = server.command("ROLE")
    return bool(role[0] == b"slave" and role[3] == b"connected")
