"""`Wire`: one connection of redis-py's, from its handshake on.

redis-py connects: TCP, TLS or a Unix socket, Sentinel's answer to who is the primary, passwords,
the database. Then the wire takes over the transport, because a pipeline that never ends wants
something else than redis-py's command and reply in turn: many commands in one write, and each
reply handed on as it comes, without a task of its own to wake. The replies are parsed by
hiredis, as redis-py has it do.

A connection without a transport, such as fakeredis makes, is read by redis-py's own methods.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis
import redis.exceptions

from statemgr.backends.redis.polling import BusyPoll

_NOTHING: Final = object()  # what the parser returns when a reply is not complete

Reply = Any
OnReplies = Callable[[Sequence[Reply]], None]
OnLost = Callable[["Wire", Exception], None]


class Wire(asyncio.Protocol):
    """Send bytes, and hand on replies.

    Args:
        connection: A `redis.asyncio` connection that is connected; the wire owns it now.
        on_replies: Called with those replies that came together, in the order of arrival; an
            error reply is an `Exception`. Raised exceptions close the wire.
        on_lost: Called once when the connection has ended, unless `close()` ended it.

    Attributes:
        on_replies: The same. May be replaced.
    """

    def __init__(self, connection: Any, on_replies: OnReplies, on_lost: OnLost) -> None:
        self._connection = connection
        self.on_replies = on_replies
        self._on_lost: OnLost | None = on_lost
        self._reader: Any = None
        self._reading: asyncio.Task[None] | None = None
        self._transport: Any = getattr(connection._writer, "transport", None)
        if self._transport is None:
            self._reading = asyncio.get_running_loop().create_task(self._read())
        else:
            self._reader = hiredis.Reader(
                notEnoughData=_NOTHING,
                protocolError=redis.exceptions.InvalidResponse,
                replyError=redis.exceptions.ResponseError,
            )
            self._poll = BusyPoll(asyncio.get_running_loop())
            self._stream = self._transport.get_protocol()
            self._transport.set_protocol(self)
            # NOTE: before the handover redis-py's protocol was told of the end; nobody tells us.
            if self._transport.is_closing() or connection._reader.at_eof():
                asyncio.get_running_loop().call_soon(self._ended_before)

    def write(self, data: bytes) -> None:
        """Send bytes; what cannot be sent now is sent when it can."""
        if self._transport is not None:
            self._transport.write(data)
            self._poll.begin()
        else:
            self._connection._writer.writelines([data])

    def close(self) -> None:
        """End the connection; nothing is called any more."""
        self._on_lost = None
        self.abort()

    def abort(self) -> None:
        """Cut the connection, as if it had been lost."""
        if self._transport is not None:
            self._transport.abort()
        elif self._reading is not None:
            self._reading.cancel()

    async def wait_closed(self) -> None:
        """Wait until redis-py has let go of the connection."""
        if self._reading is not None:
            await asyncio.wait([self._reading])
        await self._connection.disconnect(nowait=True)

    def _ended_before(self) -> None:
        self._transport.abort()
        self._end(ConnectionResetError("the server closed the connection"))

    # What the transport calls

    def data_received(self, data: bytes) -> None:
        """Hand on the replies that are complete."""
        self._poll.end()
        reader = self._reader
        replies: list[Reply] = []
        try:
            try:
                reader.feed(data)
                while (reply := reader.gets()) is not _NOTHING:
                    replies.append(reply)
            finally:
                if replies:
                    self.on_replies(replies)
        except Exception as error:  # what is no reply, or belongs to no command
            self._end(error)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so, to redis-py too."""
        self._stream.connection_lost(exc)
        self._end(exc or ConnectionResetError("the server closed the connection"))

    # Without a transport

    async def _read(self) -> None:
        try:
            while True:
                try:
                    reply = await self._connection.read_response(disable_decoding=True)
                except redis.exceptions.ResponseError as error:
                    reply = error
                self.on_replies([reply])
        except asyncio.CancelledError:
            self._end(ConnectionAbortedError("the connection was given up"))
        except Exception as error:
            self._end(error)

    def _end(self, error: Exception) -> None:
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(self, error)
