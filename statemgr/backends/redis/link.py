"""`Link`: calls to one server, in order, over a connection that is made again when it is lost.

All calls of one turn of the loop leave in one write. A call whose reply does not come because
the connection is lost is sent again on the next one. That is safe because each script says of
itself what became of it the first time:

    client   commit 7 ----------------------------> server   writes, lock is free
    client   x-- reply lost, connection lost
    other    acquire, commit ---------------------> server   writes
    client   commit 7, again ---------------------> server   "done before": nothing is written

A refusal that will pass (the server is loading, a fail-over is under way) is waited out; one
that will not is the caller's.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import hiredis
import redis.exceptions

from statemgr.backends.redis.scripts import Script
from statemgr.backends.redis.wire import Reply, Wire
from statemgr.errors import BackendUnavailableError

logger = logging.getLogger("statemgr")

_FIRST_PAUSE: Final = 0.01  # seconds until a connection is tried for again
_LONGEST_PAUSE: Final = 0.25
_PASSING: Final = ("LOADING", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "BUSY ", "FAILOVER")
_PASSING_PAUSE: Final = 0.05  # seconds until a call is sent again that was refused for a while

# What redis-py raises when there is no connection to be had, and what asyncio does.
UNREACHABLE: Final = (redis.exceptions.RedisError, OSError, asyncio.TimeoutError)
_HOPELESS: Final = (
    redis.exceptions.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.ResponseError,
)


class Call:
    """One command, until its reply has come.

    Attributes:
        future: Ends with the reply, or with a `BackendUnavailableError`.
        key: The key that says which server it goes to; None for any.
        packed: The command as it is sent.
        sent: Whether a server may have done it.
        late: Called with the reply, or the error, if it comes when the future is done: when
            whoever waited was cancelled, or waits no longer. A call without it is dropped then,
            unless it was sent.
    """

    __slots__ = (
        "args",
        "asked_at",
        "doubtful",
        "future",
        "key",
        "late",
        "packed",
        "script",
        "sent",
        "sent_at",
    )

    def __init__(
        self,
        future: "asyncio.Future[Any]",
        key: str | None,
        script: Script | None,
        args: tuple[Any, ...],
        asked_at: float,
    ) -> None:
        self.future = future
        self.key = key
        self.script = script
        self.args = args
        self.asked_at = self.sent_at = asked_at
        self.sent = self.doubtful = False
        self.late: Callable[[Reply], None] | None = None
        if script is None:
            self.packed: bytes = hiredis.pack_command(args)
        else:
            self.packed = hiredis.pack_command((b"EVALSHA", script.sha, 1, key, *args))

    def carry_source(self) -> None:
        """Have the script itself sent along, to a server that does not know it."""
        assert self.script is not None  # noqa: S101  # only a script is unknown
        self.packed = hiredis.pack_command((b"EVAL", self.script.source, 1, self.key, *self.args))

    def answer(self, reply: Reply) -> None:
        """Hand over the reply."""
        if not self.future.done():
            self.future.set_result(reply)
        elif self.late is not None:
            self.late(reply)

    def fail(self, message: str, cause: Exception | None) -> None:
        """End without a reply."""
        if not self.future.done():
            self.future.set_exception(_unavailable(message, cause))
        elif self.late is not None:
            self.late(_unavailable(message, cause))

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still wants it done."""
        return self.late is not None or not self.future.done()


def _unavailable(message: str, cause: Exception | None) -> BackendUnavailableError:
    error = BackendUnavailableError(message)
    error.__cause__ = cause
    return error


class Link:
    """Send calls to one server.

    Args:
        dial: Makes a connection.
        timeout: Seconds after which a server that does not answer is given up, and within
            which a call is sent again.
        elsewhere: Asked what to do with a call that this server does not serve; returns
            whether it was taken. None where there is one server only.
        refresh: Awaited when the server cannot be reached: it may be another one now.
    """

    def __init__(
        self,
        dial: Callable[[], Awaitable[Any]],
        timeout: float,
        elsewhere: "Callable[[Call, str], bool] | None" = None,
        refresh: "Callable[[Link], Awaitable[None]] | None" = None,
    ) -> None:
        self._dial = dial
        self._timeout = timeout
        self._elsewhere = elsewhere
        self._refresh = refresh
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        # The scripts that this connection's server has seen. Asking for one that it does not know
        # would work too, but then the calls behind it would be done before.
        self._known: set[Script | None] = set()
        self._outbox: list[Call] = []
        self._sent: deque[Call] = deque()
        self._flushing = False
        self._connecting: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._wires_ending: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def outstanding(self) -> int:
        """How many calls have no reply yet."""
        return len(self._outbox) + len(self._sent)

    def submit(self, call: Call) -> None:
        """Send a call with the others of this turn of the loop."""
        if self._closed:
            call.fail("the manager is closed", None)
            return
        self._outbox.append(call)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def submit_asking(self, call: Call) -> None:
        """Send a call to a server that its key is just moving to."""
        self.submit(Call(self._loop.create_future(), None, None, (b"ASKING",), call.asked_at))
        self.submit(call)

    def _flush(self) -> None:
        self._flushing = False
        calls = self._outbox
        if not calls:
            return
        if self._wire is None:
            self._connect()
            return
        self._outbox = []
        now = self._loop.time()
        known = self._known
        for call in calls:
            call.sent = True
            call.sent_at = now
            if call.script not in known:
                known.add(call.script)
                call.carry_source()
        self._sent.extend(calls)
        self._wire.write(
            calls[0].packed if len(calls) == 1 else b"".join([call.packed for call in calls])
        )
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout / 4, self._look)

    # Replies

    def _replied(self, reply: Reply) -> None:
        if isinstance(reply, hiredis.PushNotification):
            return  # of the server's own accord: nothing that was asked for
        call = self._sent.popleft()
        if isinstance(reply, Exception):
            self._refused(call, reply)
        else:
            call.answer(reply)

    def _refused(self, call: Call, error: Exception) -> None:
        text = str(error)
        call.sent = call.doubtful  # it was not done this time
        if not call.is_wanted:
            return
        if text.startswith(("MOVED", "ASK ")):
            if self._elsewhere is None or not self._elsewhere(call, text):
                call.fail(f"the server is part of a Cluster: {text}", error)
        elif isinstance(error, redis.exceptions.NoScriptError) or text.startswith("NOSCRIPT"):
            call.carry_source()
            self.submit(call)
        elif "READONLY" in text:
            # A primary that became a replica; the next connection finds who is it now.
            self._later(call, error)
            if self._wire is not None:
                self._wire.abort()
        elif any(word in text for word in _PASSING):
            self._later(call, error)
        else:
            call.fail(f"the server refused: {text}", error)

    def _later(self, call: Call, error: Exception) -> None:
        if self._is_old(call) or self._closed:
            call.fail(f"the server is not ready: {error}", error)
        else:
            self._loop.call_later(_PASSING_PAUSE, self._submit_again, call)

    def _submit_again(self, call: Call) -> None:
        if call.is_wanted:
            self.submit(call)

    def _is_old(self, call: Call) -> bool:
        return self._loop.time() - call.asked_at > self._timeout

    # Connections

    def _connect(self) -> None:
        if self._connecting is None and not self._closed:
            self._connecting = self._loop.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        pause = _FIRST_PAUSE
        try:
            while self._outbox and not self._closed:
                try:
                    connection = await self._dial()
                except _HOPELESS as error:
                    self._fail_all("the server does not let us in", error)
                except UNREACHABLE as error:
                    if self._refresh is not None:
                        await self._refresh(self)
                    self._fail_old("the server cannot be reached", error)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                else:
                    self._wire = Wire(connection, self._replied, self._lost)
                    self._known = {None}
                    self._flush()
                    return
        finally:
            self._connecting = None

    def _lost(self, wire: Wire, error: Exception) -> None:
        self._wire = None
        ending = self._loop.create_task(wire.wait_closed())
        self._wires_ending.add(ending)
        ending.add_done_callback(self._wires_ending.discard)
        for call in self._sent:
            call.doubtful = True
        self._outbox[:0] = self._sent
        self._sent.clear()
        self._outbox = [call for call in self._outbox if call.is_wanted]
        if self._closed:
            self._fail_all("the connection was lost", error)
        elif self._outbox:
            self._connect()

    def take(self) -> list[Call]:
        """Take the calls that wait for a connection: they go elsewhere."""
        calls, self._outbox = self._outbox, []
        return calls

    def _look(self) -> None:
        """Look for a server that does not answer, and for calls that nobody can answer."""
        self._watch = None
        now = self._loop.time()
        if self._wire is not None and self._sent and now - self._sent[0].sent_at > self._timeout:
            self._wire.abort()
        for call in (*self._sent, *self._outbox):
            if now - call.asked_at > 2 * self._timeout:
                call.fail(
                    "the server does not answer",
                    TimeoutError(f"no reply within {2 * self._timeout:g} s"),
                )
        if self._sent or self._outbox:
            self._watch = self._loop.call_later(self._timeout / 4, self._look)

    def _fail_old(self, message: str, error: Exception) -> None:
        for call in self._outbox:
            if self._is_old(call):
                call.fail(message, error)
        self._outbox = [call for call in self._outbox if not self._is_old(call)]

    def _fail_all(self, message: str, error: Exception | None) -> None:
        for call in self.take():
            call.fail(message, error)

    async def drained(self, seconds: float) -> None:
        """Wait for the replies of all calls, at most for these seconds."""
        futures = [call.future for call in (*self._sent, *self._outbox)]
        if futures:
            await asyncio.wait(futures, timeout=seconds)

    async def close(self) -> None:
        """End the connection; calls without a reply fail."""
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._wire is not None:
            self._wire.close()
            await self._wire.wait_closed()
            self._wire = None
        if self._wires_ending:
            await asyncio.wait(self._wires_ending)
        self._outbox[:0] = self._sent
        self._sent.clear()
        self._fail_all("the manager is closed", None)
