"""A proxy between a Redis client and its server that loses messages on purpose.

The failure that matters most is the lost reply: the server has executed a command, and the
client cannot know::

    client                    proxy                     server
    EVALSHA commit  ------->         -------->          executes it
                                     <--------          the reply
                    <--- cut         (swallowed)

Timing cannot bring that about reliably, so the proxy reads the protocol: it forwards whole
requests and whole replies, counts them, and knows which request a reply answers. Where each
message ends is all it needs to know, hence the small splitter here: parsers such as hiredis
give values, and not the bytes they came from.
"""

import asyncio
import ssl
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Self

Command = tuple[bytes, ...]
Where = Callable[[Command], bool]

_LINES = b"+-:_#,("
_BULKS = b"$=!"
_AGGREGATES = b"*~>%|"
_SUBSCRIBES = (b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE")
_CHUNK = 2**16


class RespSplitter:
    """Split a stream of RESP2 or RESP3 into its messages, as the bytes they are.

    RESP3's attributes stay with the reply they come before. The protocol's streamed strings and
    aggregates, which no server sends, and inline commands are not understood.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0  # all before it belongs to elements that are complete
        self._missing: list[int] = []  # how many elements each open aggregate lacks

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was received, and return the messages that are now complete.

        Raises:
            ValueError: If it is not RESP.
        """
        self._buffer += data
        messages = []
        while self._element():
            if not self._missing:
                messages.append(bytes(self._buffer[: self._at]))
                del self._buffer[: self._at]
                self._at = 0
        return messages

    def _element(self) -> bool:
        """Step over one element, or the head of an aggregate; say whether it was all there."""
        line = self._buffer.find(b"\r\n", self._at)
        if line < 0:
            return False
        kind, end = self._buffer[self._at], line + 2
        if kind in _BULKS:
            size = int(self._buffer[self._at + 1 : line])
            if size >= 0:  # RESP2's null has size -1, and no body
                end += size + 2
                if len(self._buffer) < end:
                    return False
        elif kind in _AGGREGATES:
            elements = int(self._buffer[self._at + 1 : line])
            if kind in b"%|":
                elements *= 2
            if kind in b"|":
                elements += 1  # what has the attributes
            if elements > 0:
                self._missing.append(elements)
                self._at = end
                return True
        elif kind not in _LINES:
            raise ValueError(f"not RESP: a message cannot begin with {bytes([kind])!r}")
        self._at = end
        # An aggregate that lacked only this element is complete with it, as is the one around it.
        while self._missing:
            self._missing[-1] -= 1
            if self._missing[-1]:
                break
            self._missing.pop()
        return True


def command_of(request: bytes) -> Command:
    """Return the arguments of a request, the command's name first, in capitals.

    Raises:
        ValueError: If it is not an array of bulk strings.
    """
    head, _, rest = request.partition(b"\r\n")
    if head[:1] != b"*":
        raise ValueError("not a request: expected an array")
    arguments = []
    while rest:
        head, _, rest = rest.partition(b"\r\n")
        if head[:1] != b"$":
            raise ValueError("not a request: expected bulk strings")
        size = int(head[1:])
        arguments.append(rest[:size])
        rest = rest[size + 2 :]
    if not arguments:
        raise ValueError("not a request: expected a command")
    return (arguments[0].upper(), *arguments[1:])


class Streams(NamedTuple):
    """One end of a forwarded connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Link:
    """One client's connection and its connection to the server. Forwards what comes, as it is."""

    def __init__(self, client: Streams, server: Streams) -> None:
        self.client = client
        self.server = server
        self._directions: tuple[asyncio.Task[None], ...] = ()

    async def run(self) -> None:
        """Forward both ways until either end closes its connection; then close both."""
        loop = asyncio.get_running_loop()
        self._directions = (
            loop.create_task(self._forward(self.client.reader, self.on_request_bytes)),
            loop.create_task(self._forward(self.server.reader, self.on_reply_bytes)),
        )
        try:
            results = await asyncio.gather(*self._directions, return_exceptions=True)
        finally:
            self.end()  # as a direction that is cancelled before it began does not
            for writer in (self.client.writer, self.server.writer):
                with suppress(OSError):
                    await writer.wait_closed()
        for result in results:
            if isinstance(result, Exception):
                raise result

    def end(self) -> None:
        """Forward no more, and close both connections once what was forwarded is sent."""
        # NOTE: cancelled before anything else runs, so that no other message gets through.
        for direction in self._directions:
            direction.cancel()
        self.client.writer.close()
        self.server.writer.close()

    def abort(self) -> None:
        """Forward no more, and close both connections now."""
        self.end()
        self.client.writer.transport.abort()
        self.server.writer.transport.abort()

    async def on_request_bytes(self, data: bytes) -> None:
        """Handle what came from the client."""
        await self.send(self.server.writer, data)

    async def on_reply_bytes(self, data: bytes) -> None:
        """Handle what came from the server."""
        await self.send(self.client.writer, data)

    async def send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Send, no faster than the other end takes it."""
        writer.write(data)
        await writer.drain()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        handle: Callable[[bytes], Coroutine[Any, Any, None]],
    ) -> None:
        try:
            with suppress(OSError):  # a connection that breaks has ended as one that is closed
                while data := await reader.read(_CHUNK):
                    await handle(data)
        finally:
            self.end()


class Forwarder:
    """Listen on a free port of 127.0.0.1 and forward each connection to another port.

    An asynchronous context manager: leaving it closes the port and all connections.

    Args:
        host: Where to forward to.
        port: Where to forward to.

    Attributes:
        port: Where it listens, once entered.
        connections: How many connections were made, refused ones not counted.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.connections = 0
        self._target = host, port
        self._refusing = False
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, ssl=self.tls_context()
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self.refuse()  # what the system has accepted already
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        if self._failures and error_type is None:
            raise self._failures[0]

    def tls_context(self) -> ssl.SSLContext | None:
        """Return what makes TLS of the clients' connections; None leaves them plain."""
        return None

    def link(self, client: Streams, server: Streams) -> Link:
        """Return what forwards one connection."""
        return Link(client, server)

    def cut(self) -> None:
        """Cut all connections now; what is on its way is lost."""
        for link in self._links:
            link.abort()
        for task in self._tasks:
            task.cancel()

    def refuse(self) -> None:
        """Close each new connection at once. The connections there are stay."""
        self._refusing = True

    def accept(self) -> None:
        """Take new connections again."""
        self._refusing = False

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(Streams(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(partial(self._served, writer))

    def _served(self, client: asyncio.StreamWriter, task: asyncio.Task[None]) -> None:
        client.transport.abort()  # here: a task cancelled before it began closes nothing
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._failures.append(error)

    async def _serve(self, client: Streams) -> None:
        try:
            server = Streams(*await asyncio.open_connection(*self._target))
        except OSError:
            return  # a server that is down refuses its client too
        link = self.link(client, server)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)


class _Fault:
    """Something that is to happen to the n-th message of a kind, once."""

    def __init__(self, n: int, where: Where | None) -> None:
        if n < 1:
            raise ValueError("the next message is number 1")
        self.happened = asyncio.Event()
        self._left = n
        self._where = where

    def strikes(self, command: Command) -> bool:
        """Count a message; say whether it is the one."""
        if self._where is not None and not self._where(command):
            return False
        self._left -= 1
        if self._left == 0:
            self.happened.set()
        return self._left == 0


class FaultyProxy(Forwarder):
    """A proxy to a Redis server with faults that are switched on and off as it runs.

    A request is one command; a reply is what answers one. What the server pushes is forwarded
    and is no reply. A connection that has sent SUBSCRIBE, or one of its kind, is left out of
    all counting from then on, since what comes back cannot be told from messages; `hold`,
    `delay` and `cut` hold for it all the same. A client's handshake (HELLO, CLIENT SETINFO,
    SELECT) is requests like any others: `where` passes over them.

        async with FaultyProxy("127.0.0.1", 6379) as proxy:
            lost = proxy.drop_reply(1, where=lambda command: command[0] == b"EVALSHA")
            ...
            assert lost.is_set()

    Leaving it raises `ValueError` if what came through was not RESP.

    Attributes:
        requests: How many requests came, with one that was cut off.
        replies: How many replies came, with one that was dropped.
        commands: How often each command came, by its name in capitals, such as `b"EVALSHA"`.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._request_faults: list[_Fault] = []
        self._reply_faults: list[_Fault] = []
        self._delay = 0.0
        self.request_gate = asyncio.Event()
        self.reply_gate = asyncio.Event()
        self.resume()
        self.reset_counts()

    @property
    def url(self) -> str:
        """Where a client connects."""
        return f"redis://127.0.0.1:{self.port}"

    def reset_counts(self) -> None:
        """Count from 0 again. Faults that are to happen keep their own count."""
        self.requests = 0
        self.replies = 0
        self.connections = 0
        self.commands: Counter[bytes] = Counter()

    def drop_reply(self, n: int = 1, *, where: Where | None = None) -> asyncio.Event:
        """Swallow the n-th reply from now on, and cut its connection.

        The server has executed the command, and the client never learns. The replies before
        it are delivered.

        Args:
            n: Which reply, 1 for the next, counted over all connections.
            where: Takes a command's arguments, the name in capitals first. Only replies to
                commands it is true for are counted.

        Returns:
            An event that is set when it happens.
        """
        self._reply_faults.append(fault := _Fault(n, where))
        return fault.happened

    def cut_before_request(self, n: int = 1, *, where: Where | None = None) -> asyncio.Event:
        """Cut the connection of the n-th request from now on instead of forwarding it.

        The arguments and the result are as those of `drop_reply`.
        """
        self._request_faults.append(fault := _Fault(n, where))
        return fault.happened

    def clear_faults(self) -> None:
        """Forget the faults that have not happened."""
        self._request_faults.clear()
        self._reply_faults.clear()

    def hold(self, *, requests: bool = True, replies: bool = True) -> None:
        """Forward nothing in the directions given until `resume`; connections stay open.

        What a client sends and then gives up on is forwarded after `resume` all the same, as a
        network does.
        """
        if requests:
            self.request_gate.clear()
        if replies:
            self.reply_gate.clear()

    def resume(self, *, requests: bool = True, replies: bool = True) -> None:
        """Forward again, beginning with what was held."""
        if requests:
            self.request_gate.set()
        if replies:
            self.reply_gate.set()

    def delay(self, seconds: float) -> None:
        """Let each request and each reply of a connection wait before it is forwarded.

        Args:
            seconds: For how long; 0 for no delay.
        """
        self._delay = seconds

    def link(self, client: Streams, server: Streams) -> Link:
        """Return what forwards one connection, message by message."""
        return _FaultyLink(self, client, server)

    async def wait_turn(self, gate: asyncio.Event) -> None:
        """Wait for the delay, and for as long as the direction is held."""
        if self._delay:
            await asyncio.sleep(self._delay)
        await gate.wait()

    def count_request(self, command: Command) -> bool:
        """Count a request; say whether its connection is to be cut before it."""
        self.requests += 1
        self.commands[command[0]] += 1
        return _any_strikes(self._request_faults, command)

    def count_reply(self, command: Command) -> bool:
        """Count the reply to a command; say whether it is to be dropped."""
        self.replies += 1
        return _any_strikes(self._reply_faults, command)


def _any_strikes(faults: list[_Fault], command: Command) -> bool:
    # A list, not a generator: each fault counts each message.
    struck = [fault for fault in faults if fault.strikes(command)]
    for fault in struck:
        faults.remove(fault)
    return bool(struck)


class _FaultyLink(Link):
    def __init__(self, proxy: FaultyProxy, client: Streams, server: Streams) -> None:
        super().__init__(client, server)
        self._proxy = proxy
        self._requests = RespSplitter()
        self._replies = RespSplitter()
        self._unanswered: deque[Command] = deque()
        self._subscribed = False

    async def on_request_bytes(self, data: bytes) -> None:
        """Forward the requests that are complete, one by one."""
        for request in self._requests.feed(data):
            command = command_of(request)
            await self._proxy.wait_turn(self._proxy.request_gate)
            if not self._subscribed:
                if self._proxy.count_request(command):
                    self.end()
                    return
                self._subscribed = command[0] in _SUBSCRIBES
                self._unanswered.append(command)
            await self.send(self.server.writer, request)

    async def on_reply_bytes(self, data: bytes) -> None:
        """Forward the replies and pushes that are complete, one by one."""
        for reply in self._replies.feed(data):
            await self._proxy.wait_turn(self._proxy.reply_gate)
            # An error that answers no request is what a server says before it closes.
            is_answer = reply[:1] != b">" and self._unanswered and not self._subscribed
            if is_answer and self._proxy.count_reply(self._unanswered.popleft()):
                self.end()
                return
            await self.send(self.client.writer, reply)
