"""`Channel`: what a manager says to its Redis, whichever kind that is, and what it hears.

The kinds differ in who serves a key: one server, the primary that Sentinel names (sentinel.py), or
the Cluster node that has the key's slot.
"""

import asyncio
import contextlib
import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

import hiredis
import redis.asyncio
import redis.asyncio.cluster
import redis.crc
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff

from statemgr.backends.redis.link import (
    UNREACHABLE,
    Call,
    Link,
    closed,
    end_task,
    without_arguments,
)
from statemgr.backends.redis.outage import Outage, address_of, host_and_port
from statemgr.backends.redis.scripts import Script
from statemgr.backends.redis.sentinel import SWITCHES, Primary
from statemgr.backends.redis.wire import Reply, Wire
from statemgr.errors import BackendUnavailableError

logger = logging.getLogger("statemgr")

DEFAULT_TIMEOUT: Final = 5.0  # seconds, where the client has no socket_timeout
_INBOX_PAUSE: Final = 0.1  # seconds until a lost inbox is opened again
_INBOX_AWAY_PAUSE: Final = 1.0  # the most, if the server is not there
_INBOX_LONGEST_PAUSE: Final = 5.0  # and if it refuses
_REFRESH_PAUSE: Final = 0.1  # seconds until the nodes are asked again who has which slot
_STRAIGHT_HOPS: Final = 3  # redirections that are followed at once: then nodes disagree
_HOP_PAUSE: Final = 0.05

Client = redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster


class Channel(ABC):
    """Send scripts and commands to where their keys are.

    Args:
        timeout: See `Link`.

    Attributes:
        timeout: The same.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._inbox: Inbox | None = None

    def call(self, script: Script, key: str, *args: Any) -> Call:
        """Send a script on its way, with the others of this turn of the loop."""
        loop = self._loop
        call = Call(loop.create_future(), key, script, args, loop.time())
        self._route(call)
        return call

    def command(self, key: str, *args: Any) -> Call:
        """Send a command to the server that has `key`."""
        call = Call(self._loop.create_future(), key, None, args, self._loop.time())
        self._route(call)
        return call

    @abstractmethod
    def _route(self, call: Call) -> None:
        """Give a call to the link of its server."""

    @abstractmethod
    def _links(self) -> Iterable[Link]:
        """Return the links there are."""

    @abstractmethod
    async def primaries(self) -> list[Link]:
        """Return the links to all servers that have keys."""

    @abstractmethod
    async def dial_any(self) -> Any:
        """Return a connection to a server where the inbox can be listened to."""

    def command_on(self, link: Link, *args: Any) -> Call:
        """Send a command to one server."""
        call = Call(self._loop.create_future(), None, None, args, self._loop.time())
        link.submit(call)
        return call

    def listen(
        self, name: str, on_open: Callable[[], None], on_message: Callable[[bytes], None]
    ) -> None:
        """Listen to a channel: messages are heard from when `on_open` is called, each time."""
        if self._inbox is None:
            self._inbox = Inbox(self.dial_any, (name,), on_open, on_message, self.timeout)

    @abstractmethod
    def trouble(self, key: str, limit: float) -> BackendUnavailableError | None:
        """Return why calls for a key get no reply now; None if they do. See `Link.trouble`."""

    @property
    def outstanding(self) -> int:
        """How many calls have no reply yet."""
        return sum(link.outstanding for link in self._links())

    async def close(self, seconds: float) -> None:
        """Wait for replies, at most for these seconds, and end all connections."""
        if self._inbox is not None:
            await self._inbox.close()
        await asyncio.gather(*(link.drained(seconds) for link in self._links()))
        await asyncio.gather(*(link.close() for link in self._links()))


class SingleChannel(Channel):
    """Talk to one server, or to the primary that Sentinel names."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._pool = client.connection_pool
        super().__init__(self._pool.connection_kwargs.get("socket_timeout") or DEFAULT_TIMEOUT)
        self._link = Link(self.dial_any, self.timeout, where=self._where)
        self._primary: Primary | None = None
        self._told_by: list[Inbox] = []
        if isinstance(self._pool, SentinelConnectionPool) and self._pool.is_master:
            self._primary = Primary(self._pool)
            self._told_by = [
                self._listen_to(sentinel, self._primary)
                for sentinel in self._pool.sentinel_manager.sentinels
            ]

    def _listen_to(self, sentinel: redis.asyncio.Redis, primary: Primary) -> "Inbox":
        pool: Any = sentinel.connection_pool  # some of its methods have no types

        async def dial() -> Any:
            return await _connected(pool.make_connection(), self.timeout)

        return Inbox(dial, SWITCHES, lambda: None, primary.heard, self.timeout)

    def _where(self) -> str:
        if self._primary is not None:
            return self._primary.where()
        return address_of(self._pool.connection_kwargs)

    def _route(self, call: Call) -> None:
        self._link.submit(call)

    def trouble(self, key: str, limit: float) -> BackendUnavailableError | None:
        return self._link.trouble(key, limit)

    def _links(self) -> Iterable[Link]:
        return (self._link,)

    async def primaries(self) -> list[Link]:
        return [self._link]

    async def dial_any(self) -> Any:
        pool: Any = self._pool
        primary = self._primary
        connect = primary.connect if primary is not None else None
        return await _connected(pool.make_connection(), self.timeout, connect)

    async def close(self, seconds: float) -> None:
        await super().close(seconds)
        await asyncio.gather(*(inbox.close() for inbox in self._told_by))


class ClusterChannel(Channel):
    """Talk to each node of a Cluster about its slots."""

    def __init__(self, client: redis.asyncio.cluster.RedisCluster) -> None:
        super().__init__(client.get_connection_kwargs().get("socket_timeout") or DEFAULT_TIMEOUT)
        self._client = client
        self._first_nodes = dict(client.nodes_manager.startup_nodes)
        self._nodes: dict[tuple[str, int], Link] = {}
        self._moved: dict[int, tuple[str, int]] = {}  # slots that moved since they were asked for
        self._unrouted: list[Call] = []
        self._routing: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[Exception | None] | None = None
        self._hops: list[Call] = []  # that wait, since the nodes disagree
        self._hopping: set[asyncio.TimerHandle] = set()
        self._outage = Outage(lambda: ",".join(self._first_nodes), self.timeout, "the Cluster")
        self._closed = False

    def _route(self, call: Call) -> None:
        assert call.key is not None  # noqa: S101  # commands without a key name their link
        slot = redis.crc.key_slot(call.key.encode())
        if self._moved and slot in self._moved:
            self._node(*self._moved[slot]).submit(call)
            return
        nodes = self._client.nodes_manager.slots_cache.get(slot)
        # Behind those that wait: redis-py knows the nodes a while before it says so.
        if not nodes or self._unrouted:
            self._unrouted.append(call)
            self.refresh_soon()
            return
        self._node(nodes[0].host, int(nodes[0].port)).submit(call)

    def _node(self, host: str, port: int) -> Link:
        link = self._nodes.get((host, port))
        if link is None:
            dial = functools.partial(self._dial, host, port)
            where = functools.partial(host_and_port, host, port)
            link = self._nodes[host, port] = Link(dial, self.timeout, host, self, where)
        return link

    def trouble(self, key: str, limit: float) -> BackendUnavailableError | None:
        slot = redis.crc.key_slot(key.encode())
        nodes = self._client.nodes_manager.slots_cache.get(slot)
        if self._outage.error is not None and (self._unrouted or not nodes):
            return self._outage.unavailable()
        now = self._loop.time()
        for call in (*self._unrouted, *self._hops):
            if call.key == key and now - call.asked_at > limit:
                error = TimeoutError("it is not known who has the key's slot")
                return self._outage.unavailable(f"{self._outage.server}: {error}", error)
        if slot in self._moved:
            return self._node(*self._moved[slot]).trouble(key, limit)
        if not nodes:
            return None
        return self._node(nodes[0].host, int(nodes[0].port)).trouble(key, limit)

    async def _dial(self, host: str, port: int) -> Any:
        kwargs = self._client.nodes_manager.connection_kwargs
        node = redis.asyncio.cluster.ClusterNode(host, port, **kwargs)
        # It has no connections itself: it knows of which class they are, and their arguments.
        return await _connected(node.connection_class(**node.connection_kwargs), self.timeout)

    # What links ask

    def route(self, call: Call) -> None:
        """See `Router`, as for the others."""
        if self._closed:
            call.fail(closed())
        else:
            self._route(call)

    def redirect(self, call: Call, link: Link, text: str) -> bool:
        kind, slot, address = text.split()[:3]
        host, _, port = address.rpartition(":")
        # Without a host it is on the machine that said so.
        host = host.strip("[]") or link.host
        target = self._client.nodes_manager.remap_host_port(host, int(port))
        if self._loop.time() - call.asked_at > self.timeout:
            return False
        if kind == "ASK":
            self._node(*target).submit_asking(call)
            return True
        self._moved[int(slot)] = target
        call.hops += 1
        if call.hops <= _STRAIGHT_HOPS:
            self._node(*target).submit(call)
        else:
            self._hop_later(call, target)
        self.refresh_soon()
        return True

    def _hop_later(self, call: Call, target: tuple[str, int]) -> None:
        def hop() -> None:
            self._hopping.discard(timer)
            self._hops.remove(call)
            self._node(*target).submit(call)

        self._hops.append(call)
        timer = self._loop.call_later(_HOP_PAUSE, hop)
        self._hopping.add(timer)

    def refresh_soon(self) -> None:
        if self._routing is None and not self._closed:
            self._routing = self._loop.create_task(self._refresh_until_known())

    async def _refresh_until_known(self) -> None:
        end = self._loop.time() + self.timeout
        try:
            while (error := await self.refresh()) is not None:
                if self._loop.time() > end:
                    failure = functools.partial(
                        self._outage.unavailable, self._outage.message, error
                    )
                    self._fail_unrouted(failure)
                    return
                await asyncio.sleep(_REFRESH_PAUSE)
        finally:
            self._routing = None
        calls, self._unrouted = self._unrouted, []
        for call in calls:
            if not self._client.nodes_manager.slots_cache.get(_slot_of(call)):
                call.fail(self._outage.unavailable("no node of the Cluster has the key's slot"))
            else:
                self._route(call)

    async def refresh(self) -> Exception | None:
        # One at a time, whoever asks; and it goes on if one of them is cancelled.
        if self._refreshing is None:
            self._refreshing = self._loop.create_task(self._refresh())
        return await asyncio.shield(self._refreshing)

    async def _refresh(self) -> Exception | None:
        manager: Any = self._client.nodes_manager
        moved = dict(self._moved)
        try:
            if manager.slots_cache:
                await manager.initialize()
            else:
                await self._client.initialize()
        except UNREACHABLE as error:
            # redis-py asks only the nodes that there were last time. If all of them are gone, or
            # have other addresses, those that the client was made with may answer.
            for name, node in self._first_nodes.items():
                manager.startup_nodes.setdefault(name, node)
            clean = without_arguments(error)
            self._outage.begin("cannot be reached", clean)
            return clean
        finally:
            self._refreshing = None
        self._outage.end()
        # What was learnt meanwhile is newer.
        self._moved = {slot: node for slot, node in self._moved.items() if moved.get(slot) != node}
        return None

    def _fail_unrouted(self, error: Callable[[], BackendUnavailableError]) -> None:
        calls, self._unrouted = self._unrouted, []
        for call in calls:
            call.fail(error())

    def _links(self) -> Iterable[Link]:
        return list(self._nodes.values())

    @property
    def outstanding(self) -> int:
        """How many calls have no reply yet."""
        return len(self._unrouted) + len(self._hops) + super().outstanding

    async def primaries(self) -> list[Link]:
        await self._find_nodes()
        return [self._node(node.host, int(node.port)) for node in self._client.get_primaries()]

    async def dial_any(self) -> Any:
        await self._find_nodes()
        node = self._client.get_random_node()
        return await self._dial(node.host, int(node.port))

    async def _find_nodes(self) -> None:
        if not self._client.nodes_manager.slots_cache:
            error = await self.refresh()
            if error is not None:
                raise self._outage.unavailable(self._outage.message, error)

    async def close(self, seconds: float) -> None:
        waits = self._unrouted
        if self._outage.error is not None:
            waits = [call for call in waits if call.changes]
        if waits:
            await asyncio.wait([call.future for call in waits], timeout=seconds)
        await super().close(seconds)
        self._closed = True
        for timer in self._hopping:
            timer.cancel()
        self._unrouted += self._hops
        for task in (self._routing, self._refreshing):
            if task is not None:
                await end_task(task)
        self._fail_unrouted(closed)
        await asyncio.gather(*(link.close() for link in self._links()))  # made meanwhile


class Inbox:
    """Listen to channels, over a connection of its own, again when it is lost.

    Nothing depends on it but how soon a waiter learns of its turn, a holder that somebody waits,
    and who uses a primary that there is another one. A connection over which nothing comes, not
    even a reply to PING, is given up.
    """

    def __init__(
        self,
        dial: Callable[[], Any],
        names: Sequence[str],
        on_open: Callable[[], None],
        on_message: Callable[[bytes], None],
        timeout: float,
    ) -> None:
        self._dial = dial
        self._names = names
        self._on_open = on_open
        self._on_message = on_message
        self._timeout = timeout
        self._heard = asyncio.Event()
        self._error: Exception | None = None  # why it was lost
        self._task = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        pause, said = _INBOX_PAUSE, ""
        while True:
            longest = _INBOX_AWAY_PAUSE
            try:
                error = await self._listen_once()
                longest = _INBOX_PAUSE
            except (*UNREACHABLE, BackendUnavailableError) as unreachable:
                error = unreachable
            except Exception as unforeseen:  # of who makes connections, or gives credentials
                logger.exception("listening failed in a way that is not foreseen")
                error = unforeseen
            error = without_arguments(error)
            if isinstance(error, redis.exceptions.ResponseError):
                # It will not pass soon; waiters look by themselves meanwhile.
                longest = _INBOX_LONGEST_PAUSE
                if str(error) != said:
                    said = str(error)
                    names = " and ".join(self._names)
                    logger.warning("the server does not let us listen to %s: %s", names, said)
            else:
                logger.debug("the inbox was lost: %s", error)
            pause = min(2 * pause, longest)
            await asyncio.sleep(pause)

    async def _listen_once(self) -> Exception:
        """Listen until the connection is lost, and return why."""
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[Exception] = loop.create_future()

        def on_lost(_: Wire, error: Exception) -> None:
            if not lost.done():
                lost.set_result(error)

        connection = await self._dial()
        wire = Wire(connection, self._received, on_lost)
        try:
            wire.write(_packed(b"SUBSCRIBE", *self._names))
            while not lost.done():
                self._heard.clear()
                await asyncio.wait([lost], timeout=self._timeout)
                if not lost.done() and not self._heard.is_set():
                    wire.write(_packed(b"PING"))
                    await asyncio.wait([lost], timeout=self._timeout)
                    if not self._heard.is_set():
                        on_lost(wire, TimeoutError(f"no reply within {self._timeout:g} s"))
            return lost.result()
        finally:
            wire.close()
            await wire.wait_closed()

    def _received(self, replies: Sequence[Reply]) -> None:
        self._heard.set()
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
            if isinstance(reply, list) and reply[0] == b"message":
                self._on_message(reply[2])
            elif isinstance(reply, list) and reply[0] == b"subscribe":
                self._on_open()

    async def close(self) -> None:
        """Listen no more."""
        await end_task(self._task)


def channel_to(client: Client) -> Channel:
    """Return the channel for a client of redis-py's."""
    if isinstance(client, redis.asyncio.cluster.RedisCluster):
        return ClusterChannel(client)
    return SingleChannel(client)


def _packed(*words: Any) -> bytes:
    packed: bytes = hiredis.pack_command(words)
    return packed


def _slot_of(call: Call) -> int:
    return redis.crc.key_slot((call.key or "").encode())


async def _connected(
    connection: Any, timeout: float, connect: Callable[[Any], Awaitable[None]] | None = None
) -> Any:
    """Connect, once; leave nothing behind if that fails.

    Args:
        connection: One of redis-py's.
        timeout: Seconds for what the client says nothing of.
        connect: What connects it; None if it does so itself.
    """
    connection.retry = Retry(NoBackoff(), 0)  # links try again, and know for how long
    connection.maint_notifications_config = None  # spares a command in redis-py 8
    if connection.socket_timeout is None:
        connection.socket_timeout = timeout
    if connection.socket_connect_timeout is None:
        connection.socket_connect_timeout = timeout
    try:
        await (connection.connect() if connect is None else connect(connection))
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # redis-py can swallow that
            raise asyncio.CancelledError  # noqa: TRY301
    except BaseException as error:
        with contextlib.suppress(redis.exceptions.RedisError, OSError):
            await connection.disconnect(nowait=True)
        if not isinstance(error, Exception) or (clean := without_arguments(error)) is error:
            raise
    else:
        return connection
    # Not in the handler: what it would be chained to quotes the arguments.
    raise clean
