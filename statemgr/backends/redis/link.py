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

A call ends once: with its reply, or by `Call.fail`. One that has failed is never sent after that:
its caller was told that it was not done, or that nobody knows.
"""

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NoReturn, Protocol

import hiredis
import redis.asyncio.sentinel
import redis.exceptions

from statemgr.backends.redis.outage import Outage
from statemgr.backends.redis.scripts import COMMIT, RELEASE, Script
from statemgr.backends.redis.wire import Reply, Wire
from statemgr.errors import BackendUnavailableError
from statemgr.modification import current_task

logger = logging.getLogger("statemgr")

_BATCH: Final = 16  # calls that are sent before the turn ends: the server is at work meanwhile
_FIRST_PAUSE: Final = 0.01  # seconds until a connection is tried for again
_LONGEST_PAUSE: Final = 0.25
_PASSING: Final = ("LOADING", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "BUSY ", "FAILOVER")
_PASSING_PAUSE: Final = 0.05  # seconds until a call is sent again that was refused for a while
_CANCEL_PAUSE: Final = 0.1  # seconds until a task is cancelled again that has not ended
_DIAL_TIMEOUTS: Final = 8  # the most that a dial takes, in timeouts: sentinels are asked in turn

# What redis-py raises when there is no connection to be had, and what asyncio does.
UNREACHABLE: Final = (
    redis.exceptions.RedisError,
    redis.exceptions.RedisClusterException,  # is no RedisError
    OSError,
    asyncio.TimeoutError,
)
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
        doubts: How many connections were lost while it had no reply.
        hops: How often it was sent on to another server for good.
        late: Called with the reply, or the error, if it comes when the future is done: when
            whoever waited was cancelled, or waits no longer. A call without it is dropped then,
            unless it was sent.
        refusal: Why the server has refused it for a while; not there if it has not.
        was_refused: Whether a server has refused it, for a while or for another one to do it: it
            was sent again, behind what was sent after it.
        undoes: The call that this one takes back; not there if it takes back none.
    """

    __slots__ = (
        "args",
        "asked_at",
        "doubts",
        "failed",
        "future",
        "hops",
        "key",
        "late",
        "packed",
        "refusal",
        "script",
        "sent",
        "sent_at",
        "undoes",
        "was_refused",
    )

    # NOTE: not filled in by __init__, which is on the path of every call: see `getattr`.
    refusal: Exception
    undoes: "Call"

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
        self.sent = self.failed = self.was_refused = False
        self.doubts = 0
        self.hops = 0
        self.late: Callable[[Reply], object] | None = None
        if script is None:
            self.packed: bytes = hiredis.pack_command(args)
        else:
            self.packed = hiredis.pack_command((b"EVALSHA", script.sha, 1, key, *args))

    def carry_source(self) -> None:
        """Have the script itself sent along, to a server that does not know it."""
        assert self.script is not None  # noqa: S101  # only a script is unknown
        self.packed = hiredis.pack_command((b"EVAL", self.script.source, 1, self.key, *self.args))

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still wants it done."""
        return not self.failed and (self.late is not None or not self.future.done())

    @property
    def changes(self) -> bool:
        """Whether it may change anything in the server that matters when we are gone."""
        undone = getattr(self, "undoes", None)
        return self.script in (None, COMMIT, RELEASE) and (undone is None or undone.sent)

    def answer(self, reply: Reply) -> None:
        """Hand over the reply."""
        if not self.future.done():
            self.future.set_result(reply)
        elif self.late is not None and not self.failed:
            self.late(reply)

    def answer_alone(self, reply: Reply) -> None:
        """Hand over a reply that came alone: a task that waits for it goes on at once.

        The loop would have it go on in its next turn, after another look at what has come.
        """
        resume = _resume_of(self.future)
        self.answer(reply)
        if resume is not None:
            try:
                resume(self.future)
            except (SystemExit, KeyboardInterrupt) as error:
                # They are the loop's to end with; a transport may take them for its own trouble.
                self.future.get_loop().call_soon(_raise, error)

    def fail(self, error: BackendUnavailableError) -> None:
        """End without a reply. It is not wanted any more."""
        failed, self.failed = self.failed, True
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # it is no fault if nobody looks: of several calls, the first
        elif self.late is not None and not failed:
            self.late(error)

    def ending(self) -> "asyncio.Future[Any] | None":
        """Return what is done when a call without a reply ends; None if nobody wants it."""
        if not self.future.done():
            return self.future
        late = self.late
        if late is None or self.failed:
            return None
        ending = asyncio.get_running_loop().create_future()

        def settle(reply: Reply) -> None:
            if not ending.done():
                ending.set_result(None)
            late(reply)

        self.late = settle
        return ending


def _raise(error: BaseException) -> NoReturn:
    raise error


def _resume_of(
    future: "asyncio.Future[Any]",
) -> "Callable[[asyncio.Future[Any]], object] | None":
    """Take from a future what has a task go on when it is done, if nobody else waits for it."""
    callbacks = getattr(future, "_callbacks", None)  # private: without it the loop does it
    if callbacks is None or len(callbacks) != 1:
        return None
    ((callback, context),) = callbacks
    if not isinstance(getattr(callback, "__self__", None), asyncio.Task):
        return None
    if current_task(future.get_loop()) is not None:  # a task reads replies: see Wire
        return None
    future.remove_done_callback(callback)
    return functools.partial(context.run, callback)


class _Asking(Call):
    """What has a server serve the call behind it, whose key is just moving there."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        future = asyncio.get_running_loop().create_future()
        super().__init__(future, None, None, (b"ASKING",), call.asked_at)
        self.call = call

    @property
    def is_wanted(self) -> bool:
        """Whether the call is, too: another one must not be served by mistake."""
        return self.call.is_wanted and super().is_wanted


class Router(Protocol):
    """Who knows which server has which key, where there are several."""

    def route(self, call: Call) -> None:
        """Give a call to the link of its server."""

    def redirect(self, call: Call, link: "Link", text: str) -> bool:
        """Follow a server's redirection, unless that has been tried for too long."""

    def refresh_soon(self) -> None:
        """Find out who has which key, without anybody waiting for it."""

    async def refresh(self) -> Exception | None:
        """Find out who has which key; return why that was not possible."""


def closed() -> BackendUnavailableError:
    """Return the error of a call that ends with the manager."""
    return BackendUnavailableError("the manager is closed")


async def end_task(task: "asyncio.Task[Any]") -> None:
    """Cancel a task that makes connections, and wait for its end."""
    while not task.done():
        # Again and again: redis-py's handshake can swallow a cancel that comes with a timeout.
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_PAUSE)


def without_arguments(error: Exception) -> Exception:
    """Return an error that quotes no arguments of a command: they may be passwords and states.

    A server does so with a command that it does not know, which may be AUTH; and redis-py 6 with
    all it knows of sentinels that cannot be reached.
    """
    is_sentinels = isinstance(error, redis.asyncio.sentinel.MasterNotFoundError)
    quote = " : " if is_sentinels else ", with args beginning with"
    said, quotes, _ = str(error).partition(quote)
    return type(error)(said) if quotes else error


class Link:
    """Send calls to one server.

    Args:
        dial: Makes a connection.
        timeout: Seconds after which a server that does not answer is given up, and within
            which a call is sent again.
        host: Where the server is, for redirections that name no host.
        router: Who knows the other servers. None where there is one server only.
        where: Returns where the server is, for messages.

    Attributes:
        connections: How many connections there were: after a new one the server may be another.
    """

    def __init__(
        self,
        dial: Callable[[], Awaitable[Any]],
        timeout: float,
        host: str = "",
        router: Router | None = None,
        where: Callable[[], str] = str,  # which returns ""
    ) -> None:
        self._dial = dial
        self._timeout = timeout
        self.host = host
        self._router = router
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        # The scripts that this connection's server has seen. Asking for one that it does not know
        # would work too, but then the calls behind it would be done before.
        self._known: set[Script | None] = set()
        self._outbox: list[Call] = []
        self._sent: deque[Call] = deque()
        self._resting: list[Call] = []  # refused for a while, and what is behind these
        self._resting_keys: set[str | None] = set()
        self._rest: asyncio.TimerHandle | None = None
        self._was_silent = False  # whether the last connection was given up for that
        self._flushing = False
        self.connections = 0
        self._connecting: asyncio.Task[None] | None = None
        self._connecting_since = 0.0
        self._outage = Outage(where, timeout)
        self._watch: asyncio.TimerHandle | None = None
        self._wires_ending: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def outstanding(self) -> int:
        """How many calls have no reply yet."""
        return len(self._outbox) + len(self._sent) + len(self._resting)

    def submit(self, call: Call) -> None:
        """Send a call: at once if the server has nothing to do, else with others of this turn."""
        if self._closed:
            call.fail(closed())
        elif call.key in self._resting_keys:
            self._resting.append(call)  # what is asked of one key stays in order
        else:
            self._submit(call)

    def _submit(self, call: Call) -> None:
        self._outbox.append(call)
        if self._wire is not None and (not self._sent or len(self._outbox) >= _BATCH):
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def submit_asking(self, call: Call) -> None:
        """Send a call to a server that its key is just moving to."""
        if self._closed:
            call.fail(closed())
        else:
            self._submit(_Asking(call))
            self._submit(call)  # right behind

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
            self._watch_on()

    def _watch_on(self) -> None:
        self._watch = self._loop.call_later(self._timeout / 4, self._look)

    def trouble(self, key: str, limit: float) -> BackendUnavailableError | None:
        """Return why calls for a key get no reply now; None if they do.

        Args:
            key: The key.
            limit: Seconds for which the server may let us wait: that is no trouble yet.
        """
        if self._outage.error is not None:
            return self._outage.unavailable()
        now = self._loop.time()
        since = now
        if self._sent:
            since = self._sent[0].sent_at
        elif self._connecting is not None:
            since = self._connecting_since
        for call in (*self._resting, *self._sent, *self._outbox):
            if call.key == key:
                if (refusal := getattr(call, "refusal", None)) is not None:
                    return self._not_ready(refusal)
                since = min(since, call.asked_at)
        if now - since <= limit:
            return None
        return self._silent(now - since, is_connected=bool(self._sent))

    def _silent(self, seconds: float, *, is_connected: bool) -> BackendUnavailableError:
        what = "reply" if is_connected else "connection"
        error = TimeoutError(f"no {what} within {seconds:.3g} s")
        return self._outage.unavailable(f"{self._outage.server} does not answer: {error}", error)

    def _not_ready(self, refusal: Exception) -> BackendUnavailableError:
        return self._outage.unavailable(f"{self._outage.server} is not ready: {refusal}", refusal)

    # Replies

    def _reached(self, replies: Sequence[Reply]) -> None:
        """Take the first replies after an outage."""
        self._outage.end()
        if self._wire is not None:
            self._wire.on_replies = self._replied
        self._replied(replies)

    def _replied(self, replies: Sequence[Reply]) -> None:
        sent = self._sent
        for reply in replies:
            if isinstance(reply, hiredis.PushNotification):
                continue  # of the server's own accord: nothing that was asked for
            call = sent.popleft()
            if isinstance(reply, Exception):
                self._refused(call, reply)
            elif sent or len(replies) > 1:
                call.answer(reply)  # who waits for these goes on in order, and asks together
            else:
                call.answer_alone(reply)

    def _refused(self, call: Call, refusal: Exception) -> None:
        error = without_arguments(refusal)
        text = str(error)
        call.sent = call.doubts > 0  # it was not done this time
        call.was_refused = True
        if not call.is_wanted:
            return
        if text.startswith(("MOVED", "ASK ")):
            if self._router is None:
                message = f"the server is part of a Cluster: use redis+cluster:// ({text})"
                call.fail(self._outage.unavailable(message, error))
            elif not self._router.redirect(call, self, text):
                message = f"the Cluster does not agree on who has a key: {text}"
                call.fail(self._outage.unavailable(message, error))
        elif isinstance(error, redis.exceptions.NoScriptError) or text.startswith("NOSCRIPT"):
            call.carry_source()
            self.submit(call)
        elif "READONLY" in text:
            # A primary that became a replica; the next connection finds who is it now.
            self._later(call, error)
            if self._wire is not None:
                # Not now: there may be more replies.
                self._loop.call_soon(self._cut, self._wire, error)
        elif any(word in text for word in _PASSING):
            self._later(call, error)
        else:
            call.fail(self._outage.unavailable(f"the server refused: {text}", error))

    def _later(self, call: Call, error: Exception) -> None:
        if self._is_old(call) or self._closed:
            call.fail(self._not_ready(error))
            return
        call.refusal = error
        self._resting.append(call)
        self._resting_keys.add(call.key)
        if self._rest is None:
            self._rest = self._loop.call_later(_PASSING_PAUSE, self._submit_again)
        if self._router is not None:
            self._router.refresh_soon()  # somebody else may serve its key by then

    def _submit_again(self) -> None:
        self._rest = None
        calls, self._resting = self._resting, []
        self._resting_keys.clear()
        for call in calls:
            if call.is_wanted:
                self._route(call)

    def _route(self, call: Call) -> None:
        """Give a call to the server that has its key now; one without a key stays here."""
        if isinstance(call, _Asking):
            return  # who has the key now serves it without
        if self._router is None or call.key is None:
            self.submit(call)
        else:
            self._router.route(call)

    def _is_old(self, call: Call) -> bool:
        return self._loop.time() - call.asked_at > self._timeout

    # Connections

    def _connect(self) -> None:
        if self._connecting is None and not self._closed:
            self._connecting_since = self._loop.time()
            self._connecting = self._loop.create_task(self._reconnect())
            if self._watch is None:
                self._watch_on()

    async def _reconnect(self) -> None:
        pause = _FIRST_PAUSE
        try:
            if self._was_silent:
                await self._look_elsewhere()
            while self._outbox and not self._closed:
                try:
                    async with asyncio.timeout(_DIAL_TIMEOUTS * self._timeout):
                        connection = await self._dial()
                except _HOPELESS as error:
                    self._outage.begin("does not let us in", error)
                    self._fail_all(self._outage.unavailable)
                except UNREACHABLE as error:
                    self._outage.begin("cannot be reached", error)
                    await self._look_elsewhere()
                    self._fail_old()
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                else:
                    is_back = self._outage.error is not None
                    on_replies = self._reached if is_back else self._replied
                    self._wire = Wire(connection, on_replies, self._lost)
                    self.connections += 1
                    self._known = {None}
                    self._was_silent = False
                    self._drop_unwanted()
                    self._flush()
                    return
        except Exception as error:  # of who makes connections, or gives credentials
            logger.exception("connecting failed in a way that is not foreseen")
            message, cause = "the connection cannot be made", error
            self._fail_all(lambda: self._outage.unavailable(message, cause))
        finally:
            self._connecting = None

    async def _look_elsewhere(self) -> None:
        """Send the calls to who serves their keys now, which may still be this server."""
        if self._router is not None:
            await self._router.refresh()
            for call in self.take():
                self._route(call)

    def _cut(self, wire: Wire, error: Exception) -> None:
        """Give a connection up."""
        if self._wire is wire:
            wire.close()
            self._lost(wire, error)

    def _lost(self, wire: Wire, error: Exception) -> None:
        self._wire = None
        ending = self._loop.create_task(wire.wait_closed())
        self._wires_ending.add(ending)
        ending.add_done_callback(self._wires_ending.discard)
        for call in self._sent:
            call.doubts += 1
        self._outbox[:0] = self._sent
        self._sent.clear()
        self._drop_unwanted()
        if self._closed:
            self._fail_all(lambda: self._outage.unavailable("the connection was lost", error))
        elif self._outbox:
            self._connect()

    def _drop_unwanted(self) -> None:
        self._outbox = [call for call in self._outbox if call.is_wanted]

    def take(self) -> list[Call]:
        """Take the calls that wait for a connection: they go elsewhere."""
        calls, self._outbox = self._outbox, []
        return calls

    def _look(self) -> None:
        """Look for a server that does not answer, and for calls that nobody can answer."""
        self._watch = None
        now = self._loop.time()
        for call in (*self._sent, *self._outbox):
            if now - call.asked_at > 2 * self._timeout:
                failure = self._silent(2 * self._timeout, is_connected=call.sent)
                call.fail(failure)
                if self._wire is None and isinstance(failure.__cause__, TimeoutError):
                    self._outage.begin("does not answer", failure.__cause__)
        self._drop_unwanted()
        if self._wire is not None and self._sent and now - self._sent[0].sent_at > self._timeout:
            self._was_silent = True
            silence = TimeoutError(f"no reply within {self._timeout:g} s")
            self._outage.begin("does not answer", silence)
            self._cut(self._wire, silence)
        if self._watch is None and (self._sent or self._outbox):
            self._watch_on()

    def _fail_old(self) -> None:
        for call in self._outbox:
            if self._is_old(call):
                call.fail(self._outage.unavailable())
        self._outbox = [call for call in self._outbox if not self._is_old(call)]

    def _fail_all(self, error: Callable[[], BackendUnavailableError]) -> None:
        for call in self.take():
            call.fail(error())  # one each: they are raised in several tasks

    async def drained(self, seconds: float) -> None:
        """Wait until all calls have ended, at most for these seconds.

        For a server that cannot be reached, only those are waited for that change anything.
        """
        calls = [*self._sent, *self._outbox, *self._resting]
        if self._wire is None and self._outage.error is not None:
            calls = [call for call in calls if call.changes]
        endings = [ending for call in calls if (ending := call.ending()) is not None]
        if endings:
            await asyncio.wait(endings, timeout=seconds)

    async def close(self) -> None:
        """End the connection; calls without a reply fail."""
        self._closed = True
        for timer in (self._watch, self._rest):
            if timer is not None:
                timer.cancel()
        if self._connecting is not None:
            await end_task(self._connecting)
        if self._wire is not None:
            self._wire.close()
            await self._wire.wait_closed()
            self._wire = None
        if self._wires_ending:
            await asyncio.wait(self._wires_ending)
        self._outbox[:0] = [*self._sent, *self._resting]
        self._sent.clear()
        self._resting.clear()
        self._fail_all(closed)
