"""Connections of a model: what redis-py would make, with the scheduler in the place of the network.

A connection has two queues: commands on their way to the server, replies and messages on their way
back. Who takes something out of one, when and in which order, is the scheduler's choice; within one
queue the order stays, as it does in TCP. When a connection is lost, commands in it may still reach
the server later.
"""

import itertools
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import hiredis
import redis.asyncio
import redis.exceptions

if TYPE_CHECKING:
    from chaos.explorer.loop import VirtualLoop

TIMEOUT: Final = 1.0  # seconds after which a client gives up a silent server


class Connection:
    """One connection, in the shape of redis-py's, with its transport.

    Attributes:
        network: Who made it.
        owner: The process that has it.
        number: Which one it is.
        to_server: Commands that are on their way, each with its place among all that is.
        to_client: Replies and messages that are, each with its place.
        channels: What it listens to.
        is_open: Whether the client still has it.
        held_until: By direction (0 to the server, 1 back), when the network moves on, in
            microseconds.
    """

    def __init__(self, network: "Network", owner: Any, number: int) -> None:
        self.network = network
        self.owner = owner
        self.number = number
        self.to_server: deque[tuple[int, list[bytes]]] = deque()
        self.to_client: deque[tuple[int, bytes]] = deque()
        self.channels: set[bytes] = set()
        self.is_open = True
        self.held_until = [0, 0]
        self.retry = self.maint_notifications_config = None
        self.socket_timeout = self.socket_connect_timeout = TIMEOUT
        self._commands = hiredis.Reader()
        self.protocol: Any = self  # until a Wire takes over: what redis-py's own would be
        self._writer = self._reader = self.transport = self

    # redis-py's connection

    async def connect(self) -> None:
        """Be connected, if the server can be reached."""
        if self.owner.is_apart:
            self.is_open = False
            raise redis.exceptions.ConnectionError("unreachable")

    async def disconnect(self, nowait: bool = False) -> None:
        """Be closed already."""

    def at_eof(self) -> bool:
        """Whether the server has closed it."""
        return not self.is_open

    # its transport, and the protocol that was there first

    def get_protocol(self) -> Any:
        """Return whom data goes to."""
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        """Give data to another one."""
        self.protocol = protocol

    def connection_lost(self, error: Exception | None) -> None:
        """Be told of the end, as redis-py's protocol is."""

    def is_closing(self) -> bool:
        """Whether it is over."""
        return not self.is_open

    def write(self, data: bytes) -> None:
        """Put commands on their way."""
        if not self.is_open or self.owner.loop.dead:
            return
        self._commands.feed(data)
        while (command := self._commands.gets()) is not False:
            self.to_server.append((self.network.place(), command))

    def abort(self) -> None:
        """Close it from this end; what is on its way to the server may still get there."""
        if self.is_open:
            self._close()
            loop: VirtualLoop = self.owner.loop
            loop.call_soon(self.protocol.connection_lost, None)

    def cut(self) -> None:
        """Lose it, as both ends see it; what is on its way to the server may still get there."""
        self._close()
        loop: VirtualLoop = self.owner.loop
        loop.call_soon(self.protocol.connection_lost, ConnectionResetError("cut"))

    def drop(self) -> None:
        """Lose it with its process."""
        self._close()

    def _close(self) -> None:
        self.is_open = False
        self.to_client.clear()
        self.channels.clear()

    def push(self, data: bytes) -> None:
        """Put a reply or a message on its way."""
        if self.is_open:
            self.to_client.append((self.network.place(), data))

    def __repr__(self) -> str:
        """Name the process and the number, which a trace shows."""
        return f"{self.owner.name}/{self.number}"


class Network:
    """All connections of a schedule."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.place = itertools.count(1).__next__

    def connect(self, owner: Any) -> Connection:
        """Make a connection of a process."""
        connection = Connection(self, owner, len(self.connections))
        self.connections.append(connection)
        return connection

    def subscribers(self, channel: bytes) -> list[Connection]:
        """Return who listens to a channel."""
        return [c for c in self.connections if channel in c.channels]


class ModelPool:
    """Make connections, in the place of redis-py's pool."""

    def __init__(self, network: Network, owner: Any) -> None:
        self._network = network
        self._owner = owner
        self.connection_kwargs: dict[str, Any] = {"socket_timeout": TIMEOUT}

    def make_connection(self) -> Connection:
        """Return a connection."""
        return self._network.connect(self._owner)


class ModelClient(redis.asyncio.Redis):
    """What a manager takes for a client of redis-py's: it uses nothing of it but the pool."""

    connection = None

    def __init__(self, network: Network, owner: Any) -> None:
        self.connection_pool: Any = ModelPool(network, owner)
