"""`Channel`: what a manager says to its Redis, whichever kind that is, and what it hears.

The kinds differ in who serves a key: one server, the primary that Sentinel names (redis-py asks
it for each connection), or the Cluster node that has the key's slot.
"""

import asyncio
import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Final

import hiredis
import redis.asyncio
import redis.asyncio.cluster
import redis.crc
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from statemgr.backends.redis.link import UNREACHABLE, Call, Link
from statemgr.backends.redis.scripts import Script
from statemgr.backends.redis.wire import Reply, Wire

logger = logging.getLogger("statemgr")

DEFAULT_TIMEOUT: Final = 5.0  # seconds, where the client has no socket_timeout
_INBOX_PAUSE: Final = 0.1  # seconds until a lost inbox is opened again

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

    def listen(self, name: str, on_message: Callable[[bytes], None]) -> None:
        """Listen to a channel from now on; messages that come meanwhile are lost."""
        if self._inbox is None:
            self._inbox = Inbox(self.dial_any, name, on_message)

    @property
    def outstanding(self) -> int:
        """How many calls have no reply yet."""
        return sum(link.outstanding for link in self._links())

    async def close(self, seconds: float) -> None:
        """Wait for replies, at most for these seconds, and end all connections."""
        if self._inbox is not None:
            await self._inbox.close()
        for link in self._links():
            await link.drained(seconds)
        for link in self._links():
            await link.close()


class SingleChannel(Channel):
    """Talk to one server, or to the primary that Sentinel names."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._pool = client.connection_pool
        super().__init__(self._pool.connection_kwargs.get("socket_timeout") or DEFAULT_TIMEOUT)
        self._link = Link(self.dial_any, self.timeout)

    def _route(self, call: Call) -> None:
        self._link.submit(call)

    def _links(self) -> Iterable[Link]:
        return (self._link,)

    async def primaries(self) -> list[Link]:
        return [self._link]

    async def dial_any(self) -> Any:
        pool: Any = self._pool  # some of its methods have no types
        return await _connected(pool.make_connection())


class ClusterChannel(Channel):
    """Talk to each node of a Cluster about its slots."""

    def __init__(self, client: redis.asyncio.cluster.RedisCluster) -> None:
        super().__init__(client.get_connection_kwargs().get("socket_timeout") or DEFAULT_TIMEOUT)
        self._client = client
        self._nodes: dict[tuple[str, int], Link] = {}
        self._unrouted: list[Call] = []
        self._refreshing: asyncio.Task[None] | None = None

    def _route(self, call: Call) -> None:
        assert call.key is not None  # noqa: S101  # commands without a key name their link
        slot = redis.crc.key_slot(call.key.encode())
        nodes = self._client.nodes_manager.slots_cache.get(slot)
        if not nodes:
            self._unrouted.append(call)
            self._refresh_soon()
            return
        self._node(nodes[0].host, int(nodes[0].port)).submit(call)

    def _node(self, host: str, port: int) -> Link:
        link = self._nodes.get((host, port))
        if link is None:
            dial = functools.partial(self._dial, host, port)
            link = self._nodes[host, port] = Link(
                dial, self.timeout, self._elsewhere, self._unreachable
            )
        return link

    async def _dial(self, host: str, port: int) -> Any:
        node = self._client.get_random_node()  # what it is reached by, all are
        kwargs = {**node.connection_kwargs, "host": host, "port": port}
        return await _connected(node.connection_class(**kwargs, retry=Retry(NoBackoff(), 0)))

    def _elsewhere(self, call: Call, text: str) -> bool:
        """Follow a redirection."""
        kind, _, address = text.split()[:3]
        host, _, port = address.rpartition(":")
        if not host or self._loop.time() - call.asked_at > self.timeout:
            return False
        link = self._node(host, int(port))
        if kind == "ASK":
            link.submit_asking(call)
        else:
            link.submit(call)
            self._refresh_soon()
        return True

    async def _unreachable(self, link: Link) -> None:
        """Find out who serves the slots now, and send the calls of a link there."""
        await self._refresh()
        for call in link.take():
            if call.key is None:
                link.submit(call)
            else:
                self._route(call)

    def _refresh_soon(self) -> None:
        if self._refreshing is None:
            self._refreshing = self._loop.create_task(self._refresh_until_known())

    async def _refresh_until_known(self) -> None:
        try:
            end = self._loop.time() + self.timeout
            while True:
                error = await self._refresh()
                calls, self._unrouted = self._unrouted, []
                if error is None:
                    break
                if self._loop.time() > end:
                    for call in calls:
                        call.fail("the Cluster cannot be reached", error)
                    return
                self._unrouted[:0] = calls
                await asyncio.sleep(_INBOX_PAUSE)
        finally:
            self._refreshing = None
        for call in calls:
            self._route(call)

    async def _refresh(self) -> Exception | None:
        try:
            await self._client.initialize()
            await self._client.nodes_manager.initialize()
        except UNREACHABLE as error:
            return error
        return None

    def _links(self) -> Iterable[Link]:
        return list(self._nodes.values())

    @property
    def outstanding(self) -> int:
        """How many calls have no reply yet."""
        return len(self._unrouted) + super().outstanding

    async def primaries(self) -> list[Link]:
        await self._client.initialize()
        return [self._node(node.host, int(node.port)) for node in self._client.get_primaries()]

    async def dial_any(self) -> Any:
        await self._client.initialize()
        node = self._client.get_random_node()
        return await self._dial(node.host, int(node.port))

    async def close(self, seconds: float) -> None:
        await super().close(seconds)
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])


class Inbox:
    """Listen to one channel, over a connection of its own, again when it is lost."""

    def __init__(
        self,
        dial: Callable[[], Any],
        name: str,
        on_message: Callable[[bytes], None],
    ) -> None:
        self._dial = dial
        self._name = name
        self._on_message = on_message
        self._task = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            try:
                await self._listen_once()
            except UNREACHABLE:
                # Nothing depends on it but how soon a waiter learns of its turn.
                logger.debug("the inbox cannot be opened", exc_info=True)
            await asyncio.sleep(_INBOX_PAUSE)

    async def _listen_once(self) -> None:
        lost = asyncio.Event()
        wire = Wire(await self._dial(), self._received, lambda *_: lost.set())
        try:
            subscribe: tuple[Any, ...] = ("SUBSCRIBE", self._name)
            wire.write(hiredis.pack_command(subscribe))
            await lost.wait()
        finally:
            wire.close()
            await wire.wait_closed()

    def _received(self, reply: Reply) -> None:
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, list) and reply[0] == b"message":
            self._on_message(reply[2])

    async def close(self) -> None:
        """Listen no more."""
        self._task.cancel()
        await asyncio.wait([self._task])


def channel_to(client: Client) -> Channel:
    """Return the channel for a client of redis-py's."""
    if isinstance(client, redis.asyncio.cluster.RedisCluster):
        return ClusterChannel(client)
    return SingleChannel(client)


async def _connected(connection: Any) -> Any:
    """Connect; leave nothing behind if that fails."""
    try:
        await connection.connect()
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection
