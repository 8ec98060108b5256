"""`SentinelSetup`: a primary with two replicas, and three sentinels that watch over them."""

import contextlib
from contextlib import ExitStack
from itertools import permutations
from types import TracebackType
from typing import Any, Self

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from statemgr.testing.servers.binaries import DEFAULT
from statemgr.testing.servers.server import (
    FAST_REPLICATION,
    UNREACHABLE,
    Server,
    is_connected_replica,
    wait_until,
)

_SENTINELS = 3
_QUORUM = 2
_REPLICAS = 2


class SentinelSetup:
    """Run a primary, two replicas and three sentinels while the `with` block lasts.

    Left to themselves, sentinels find each other by messages that each sends every two seconds.
    Here each is given the first message of the others at once.

    Args:
        name: A key of `SERVERS`.
        service: What the sentinels call the primary.
        down_after: Milliseconds without an answer after which a sentinel takes a server as down.
        failover_timeout: Milliseconds that a failover may take. An automatic one is not tried
            again within twice this time.
        settings: Settings of the primary and of the replicas, as `Server` takes them.

    Attributes:
        service: As given.
        primary: The server that was the primary at the start.
        replicas: The servers that were its replicas at the start.
        sentinels: The sentinels.
    """

    def __init__(
        self,
        name: str = DEFAULT,
        *,
        service: str = "primary",
        down_after: int = 500,
        failover_timeout: int = 3000,
        **settings: str | float | bool,
    ) -> None:
        self.service = service
        self._times = {"down-after-milliseconds": down_after, "failover-timeout": failover_timeout}
        every: dict[str, Any] = FAST_REPLICATION | settings
        self.primary = Server(name, **every)
        self.replicas = [Server(name, **every) for _ in range(_REPLICAS)]
        self.sentinels = [Server(name, "--sentinel", config="") for _ in range(_SENTINELS)]
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as started:
            for server in [*self.servers, *self.sentinels]:
                started.enter_context(server)
            self._replicate()
            self._watch()
            wait_until(self.is_whole, "the sentinels know the servers and each other")
            self._open = started.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    @property
    def servers(self) -> list[Server]:
        """The server that was the primary at the start, and those that were its replicas."""
        return [self.primary, *self.replicas]

    @property
    def url(self) -> str:
        """The sentinels, the service, and database 0."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.service}/0"

    def is_whole(self) -> bool:
        """Return whether all is as at the start: who is the primary, and that all are there."""
        if not all(server.is_running for server in [*self.servers, *self.sentinels]):
            return False
        try:
            return self._is_replicated() and all(map(self._sees_all, self.sentinels))
        except UNREACHABLE:
            return False

    def flush(self) -> None:
        """Remove all keys, by way of the server that was the primary at the start."""
        self.primary.command("FLUSHALL")

    def current_primary_port(self) -> int:
        """Return the primary's port, as the first sentinel says that answers.

        Raises:
            redis.exceptions.ConnectionError: None of them answers.
        """
        for sentinel in self.sentinels:
            with contextlib.suppress(*UNREACHABLE):
                return self._primary_port(sentinel)
        raise RedisConnectionError("no sentinel answers")

    def server_at(self, port: int) -> Server:
        """Return the server that has this port."""
        return next(server for server in self.servers if server.port == port)

    def failover(self) -> Server:
        """Have the sentinels make a replica the primary, and return it when all have.

        Raises:
            TimeoutError: It was not done in time.
            redis.exceptions.ResponseError: The first sentinel refuses for good.
        """
        old = self.current_primary_port()

        def was_begun() -> bool:
            try:
                self.sentinels[0].command("SENTINEL", "FAILOVER", self.service)
            except ResponseError as error:
                # One is going on, or what is known of the replicas is too old: both pass.
                if str(error).startswith(("INPROG", "NOGOODSLAVE")):
                    return False
                raise
            return True

        wait_until(was_begun, "a failover begins")
        return self.wait_for_new_primary(old)

    def wait_for_new_primary(self, old: int) -> Server:
        """Wait until all sentinels name a primary on another port, which is one; return it.

        Args:
            old: The port of the former primary.

        Raises:
            TimeoutError: It was not so in time.
        """
        new = old

        def is_there() -> bool:
            nonlocal new
            ports = {self._primary_port(one) for one in self.sentinels if one.is_running}
            new = ports.pop()
            return not ports and new != old and self.server_at(new).command("ROLE")[0] == b"master"

        wait_until(is_there, f"another primary than that on port {old}")
        return self.server_at(new)

    def _replicate(self) -> None:
        for replica in self.replicas:
            replica.command("REPLICAOF", "127.0.0.1", self.primary.port)
        wait_until(self._is_replicated, "the replicas are connected")

    def _is_replicated(self) -> bool:
        return all(is_connected_replica(server) for server in self.replicas)

    def _watch(self) -> None:
        where = ("127.0.0.1", self.primary.port)
        for sentinel in self.sentinels:
            sentinel.command("SENTINEL", "MONITOR", self.service, *where, _QUORUM)
            for option, time in self._times.items():
                sentinel.command("SENTINEL", "SET", self.service, option, time)
        for one, other in permutations(self.sentinels, 2):
            ident = one.command("SENTINEL", "MYID").decode()
            # Who and where it is; its epoch; what it knows of the primary, and that one's epoch.
            words = ("127.0.0.1", one.port, ident, 0, self.service, *where, 0)
            other.command("PUBLISH", "__sentinel__:hello", ",".join(map(str, words)))

    def _sees_all(self, sentinel: Server) -> bool:
        """Return whether a sentinel sees all others and all servers in good health and role."""
        primary, *others = self._seen(sentinel)
        replicas, sentinels = others[:_REPLICAS], others[_REPLICAS:]
        return (
            (primary["flags"], primary["port"]) == ("master", str(self.primary.port))
            and [one["flags"] for one in replicas] == ["slave"] * _REPLICAS
            and all(one["master-link-status"] == "ok" for one in replicas)
            and [one["flags"] for one in sentinels] == ["sentinel"] * (_SENTINELS - 1)
        )

    def _seen(self, sentinel: Server) -> list[dict[str, str]]:
        """Return what a sentinel knows of the primary, the replicas, and the other sentinels."""
        primary = sentinel.command("SENTINEL", "MASTER", self.service)
        replicas = sentinel.command("SENTINEL", "REPLICAS", self.service)
        sentinels = sentinel.command("SENTINEL", "SENTINELS", self.service)
        return [_pairs(one) for one in [primary, *replicas, *sentinels]]

    def _primary_port(self, sentinel: Server) -> int:
        _, port = sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        return int(port)


def _pairs(answer: list[bytes]) -> dict[str, str]:
    """Return a flat list of names and values as a mapping."""
    texts = [text.decode() for text in answer]
    return dict(zip(texts[::2], texts[1::2], strict=True))
