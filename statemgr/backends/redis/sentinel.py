"""`Primary`: the server that Sentinel names, until it is to be another one.

A primary that is well goes on as one when another takes its place, as SENTINEL FAILOVER has it,
until it is demoted. What it acknowledges meanwhile is lost:

    sentinel   "B is to replace A" -----------------> client   cuts its connections to A
    A          what it has done --------------------> B
    sentinel   B, be the primary -------------------> B
                                                      client   sends what has no reply to B
    sentinel   some 10 s later: A, be B's replica --> A        drops what it did since

So all sentinels are listened to: the one that leads says it first. Without a message, for the
sentinels cannot be reached or let nobody listen, a client leaves A when A is demoted.
"""

import asyncio
import weakref
from typing import Any, Final

import redis.exceptions
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.utils import str_if_bytes

from statemgr.backends.redis.link import UNREACHABLE
from statemgr.backends.redis.outage import address_of, host_and_port

# What sentinels say of one that is to be the primary, is it, and is it by the word of all.
SWITCHES: Final = ("+failover-state-send-slaveof-noone", "+promoted-slave", "+switch-master")
_PATIENCE: Final = 1.0  # seconds for which it is waited for: a switch may fail

_Address = tuple[str, int]


class Primary:
    """Make connections to the primary, and cut those to one that is replaced.

    Args:
        pool: Of a client that redis-py's Sentinel has given.
    """

    def __init__(self, pool: SentinelConnectionPool) -> None:
        self._pool: Any = pool  # most of its methods have no types
        self._sentinels = tuple(self._pool.sentinel_manager.sentinels)
        self._loop = asyncio.get_running_loop()
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._successors: dict[_Address, _Address] = {}  # who takes whose place
        self._patient_until = 0.0
        self._tried: _Address | None = None  # by the last try; None if nobody was named

    def where(self) -> str:
        """Return where the primary is; if nobody names one, whom of, as the URL has it."""
        if self._tried is not None:
            return host_and_port(*self._tried)
        sentinels = self._pool.sentinel_manager.sentinels
        hosts = [address_of(sentinel.connection_pool.connection_kwargs) for sentinel in sentinels]
        return f"{','.join(hosts)}/{self._pool.service_name}"

    async def connect(self, connection: Any) -> None:
        """Connect, as redis-py's connections to a primary do, and see that it is one.

        Raises:
            redis.exceptions.ConnectionError: If it is none, or was replaced just now.
        """
        self._tried = None
        named = await self._named()
        self._tried = address = self._successors.get(named, named)
        try:
            await connection.connect_to(address)
            if not await _is_primary(connection):
                raise redis.exceptions.ConnectionError("Sentinel names a server that is a replica")
        except UNREACHABLE:
            if self._loop.time() > self._patient_until:
                self._successors.pop(named, None)
            raise
        if address in self._successors:
            raise redis.exceptions.ConnectionError("another server is to be the primary")
        self._connections.add(connection)

    async def _named(self) -> _Address:
        sentinels = self._pool.sentinel_manager
        try:
            named: _Address = await self._pool.get_master_address()
        finally:
            # redis-py moves who answers to the front. If two calls do so at once, it loses another
            # one, for good, and with it the connections to it.
            first = sentinels.sentinels[0]
            others = (sentinel for sentinel in self._sentinels if sentinel is not first)
            sentinels.sentinels = [first, *others]
        if sentinels._force_master_ip is not None:
            return named
        # redis-py asks with SENTINEL MASTERS. There the one that leads a switch names the old
        # primary until replicas have followed the new one; here it does not.
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._pool.service_name)
        try:
            newest = await sentinels.sentinels[0].execute_command(*question)
        except UNREACHABLE:
            return named
        return (str_if_bytes(newest[0]), int(newest[1])) if newest else named

    def heard(self, message: bytes) -> None:
        """Take note of what a sentinel says of a switch."""
        match message.decode().split():
            case ["slave", _, new_host, new_port, "@", service, host, port]:
                pass
            case [service, host, port, new_host, new_port]:
                pass
            case _:
                return
        if service == self._pool.service_name:
            self._switched((host, int(port)), (new_host, int(new_port)))

    def _switched(self, old: _Address, new: _Address) -> None:
        self._successors.pop(new, None)
        self._successors[old] = new
        self._patient_until = self._loop.time() + _PATIENCE
        for connection in list(self._connections):
            if (connection.host, connection.port) == old and connection._writer is not None:
                connection._writer.transport.abort()  # who uses it learns of that as of any loss


async def _is_primary(connection: Any) -> bool:
    await connection.send_command("ROLE")
    try:
        role = await connection.read_response()
    except redis.exceptions.ResponseError:
        return True  # we may not ask
    return role[0] in (b"master", "master")
