"""Connections, and calls over them, with a server that does what real ones rarely do."""

import asyncio
import gc
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import fakeredis
import hiredis
import pytest
import redis.asyncio
import redis.asyncio.cluster
import redis.crc
import redis.exceptions
from redis.asyncio.connection import Connection

from statemgr.backends.redis.channel import (
    ClusterChannel,
    Inbox,
    SingleChannel,
    _connected,
    channel_to,
)
from statemgr.backends.redis.link import Call, Link, without_arguments
from statemgr.backends.redis.scripts import READ, RELEASE
from statemgr.backends.redis.wire import Wire
from statemgr.errors import BackendUnavailableError
from statemgr.testing.proxy import Command, RespSplitter, command_of

TIMEOUT = 0.2  # seconds: of links whose calls are to fail
LONG = 60.0  # of all others
PATIENCE = 10.0

OK = b"+OK\r\n"
Answer = Callable[[Command], bytes | None]


def echo(command: Command) -> bytes:
    """Answer with the last argument."""
    return b"$%d\r\n%b\r\n" % (len(command[-1]), command[-1])


class FakeServer:
    """A server that answers as it is told to.

    Attributes:
        answer: What is answered to a command: bytes, or None for nothing at all.
        answers: The next answers, before it is `answer`'s turn.
        commands: What came, without redis-py's handshake.
        connections: How many there were.
    """

    def __init__(self, answer: Answer = echo) -> None:
        self.answer = answer
        self.answers: deque[Answer] = deque()
        self.commands: list[Command] = []
        self.reads: list[int] = []
        self.connections = 0
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "FakeServer":
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Close the port and all connections."""
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def push(self, data: bytes) -> None:
        """Send what nobody asked for."""
        for writer in self._writers:
            writer.write(data)

    async def dial(self) -> Any:
        connection = Connection(host="127.0.0.1", port=self.port, protocol=2)
        return await _connected(connection, TIMEOUT)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        splitter = RespSplitter()
        try:
            with suppress(OSError):
                while data := await reader.read(2**16):
                    requests = splitter.feed(data)
                    self.reads.append(len(requests))
                    for request in requests:
                        command = command_of(request)
                        if command[0] in (b"CLIENT", b"HELLO"):
                            writer.write(OK)
                            continue
                        self.commands.append(command)
                        answer = self.answers.popleft() if self.answers else self.answer
                        reply = answer(command)
                        if reply is not None:
                            writer.write(reply)
        finally:
            writer.transport.abort()


def saying(reply: bytes | None) -> Answer:
    return lambda _: reply


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


@asynccontextmanager
async def link_to(
    server: FakeServer, timeout: float = LONG, dial: Callable[[], Awaitable[Any]] | None = None
) -> AsyncIterator[Link]:
    link = Link(dial or server.dial, timeout)
    try:
        async with asyncio.timeout(PATIENCE):
            yield link
    finally:
        await link.close()
        await asyncio.sleep(0)
        gc.collect()


def call_of(*args: Any, key: str | None = None) -> Call:
    loop = asyncio.get_running_loop()
    return Call(loop.create_future(), key, None, args, loop.time())


def script_of(script: Any = READ, *args: Any) -> Call:
    loop = asyncio.get_running_loop()
    return Call(loop.create_future(), "key", script, args, loop.time())


def submit(link: Link, *args: Any) -> Call:
    call = call_of(*args)
    link.submit(call)
    return call


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # nothing tells of all that is waited for
            await asyncio.sleep(0.001)


# Link


async def test_replies_come_in_order(server: FakeServer) -> None:
    """Each call gets its own reply; those of one turn are received at once."""
    async with link_to(server) as link:
        await submit(link, b"ECHO", b"first").future
        server.reads.clear()
        calls = [submit(link, b"ECHO", b"%d" % number) for number in range(10)]
        assert link.outstanding == 10
        assert [await call.future for call in calls] == [b"%d" % number for number in range(10)]
        assert server.reads == [10]
        calls = [submit(link, b"ECHO", b"%d" % number) for number in range(50)]
        assert [await call.future for call in calls] == [b"%d" % number for number in range(50)]
        assert link.outstanding == 0


async def test_who_waits_for_the_only_reply_goes_on_at_once(server: FakeServer) -> None:
    """The task goes on in the turn in which the reply came; of several, all in the next one."""
    order: list[str] = []

    async def ask(link: Link, word: bytes) -> None:
        reply = await submit(link, b"ECHO", word).future
        order.append(reply.decode())

    async with link_to(server) as link:
        await ask(link, b"connected")
        hand_on = link._replied

        def noting(replies: Any) -> None:
            asyncio.get_running_loop().call_soon(order.append, "next turn")
            hand_on(replies)

        assert link._wire is not None
        link._wire.on_replies = noting
        order.clear()
        await asyncio.create_task(ask(link, b"one"))
        await until(lambda: len(order) == 2)
        assert order == ["one", "next turn"]
        order.clear()
        server.answer = saying(None)
        asks = [asyncio.create_task(ask(link, word)) for word in (b"a", b"b")]
        await until(lambda: len(server.commands) == 4)
        server.push(b"+a\r\n+b\r\n")
        await asyncio.wait(asks)
        assert order == ["next turn", "a", "b"]


async def test_who_waits_for_the_only_reply_may_be_anybody(server: FakeServer) -> None:
    """Two tasks, a cancelled one, a callback that raises: each has what asyncio gives it."""
    raised: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))

    def fail(_: object) -> None:
        raise ValueError("of a callback")

    async def wait_for(future: Any) -> Any:
        return await future

    async with link_to(server) as link:
        await submit(link, b"ECHO", b"connected").future
        call = submit(link, b"ECHO", b"two")
        both = [asyncio.create_task(wait_for(call.future)) for _ in range(2)]
        assert await asyncio.gather(*both) == [b"two", b"two"]

        call = submit(link, b"ECHO", b"shielded")
        assert await asyncio.shield(call.future) == b"shielded"

        call = submit(link, b"ECHO", b"raises")
        call.future.add_done_callback(fail)
        await until(lambda: raised)
        assert str(raised[0]["exception"]) == "of a callback"

        call = submit(link, b"ECHO", b"cancelled")
        late: list[Any] = []
        call.late = late.append
        waiting = asyncio.create_task(wait_for(call.future))
        await asyncio.sleep(0)
        waiting.cancel()
        await until(lambda: late)
        assert waiting.cancelled()
        assert late == [b"cancelled"]
        assert server.connections == 1


def test_who_goes_on_at_once_may_end_the_program() -> None:
    """The loop ends with that, and not the transport, which may take it for its own trouble."""
    returned: list[bool] = []

    async def ask(call: Call) -> None:
        await call.future
        sys.exit("of a task")

    def reply(call: Call) -> None:
        call.answer_alone(b"reply")
        returned.append(True)

    async def main() -> None:
        call = call_of(b"ECHO")
        asyncio.get_running_loop().call_later(0.001, reply, call)
        await ask(call)

    with pytest.raises(SystemExit, match="of a task"):
        asyncio.run(main())
    assert returned


@pytest.mark.parametrize("unasked", [b"+surplus\r\n", b"not RESP\r\n"])
async def test_what_makes_no_sense_behind_a_reply(server: FakeServer, unasked: bytes) -> None:
    """The reply counts; what came with it is not taken for the reply to the next call."""
    async with link_to(server) as link:
        await submit(link, b"ECHO", b"connected").future
        server.answers.append(saying(b"+one\r\n" + unasked))
        assert await submit(link, b"ECHO", b"one").future == b"one"
        assert await submit(link, b"ECHO", b"two").future == b"two"
        assert server.connections == 2


async def test_pushes_are_no_replies(server: FakeServer) -> None:
    """What a RESP3 server pushes of its own accord is passed over."""
    push = b">2\r\n+invalidate\r\n*0\r\n"
    async with link_to(server) as link:
        server.answers.append(saying(push + b"+one\r\n" + push))
        assert await submit(link, b"ECHO", b"?").future == b"one"
        server.push(push)
        assert await submit(link, b"ECHO", b"two").future == b"two"
        assert server.connections == 1


@pytest.mark.parametrize("unasked", [b"+surplus\r\n", b"not RESP\r\n"])
async def test_what_makes_no_sense_ends_the_connection(server: FakeServer, unasked: bytes) -> None:
    """After a reply to nothing, or what is no reply, a new connection is made."""
    async with link_to(server) as link:
        await submit(link, b"ECHO", b"one").future
        server.push(unasked)
        await until(lambda: link._wire is None)
        assert await submit(link, b"ECHO", b"two").future == b"two"
        assert server.connections == 2


async def test_lost_calls_are_sent_again(server: FakeServer) -> None:
    """Calls without a reply are sent again in their order, but not those that nobody wants."""
    async with link_to(server) as link:
        server.answer = saying(None)
        words = (b"k", b"d", b"w", b"l")
        kept, dropped, wanted, last = [submit(link, b"ECHO", word) for word in words]
        late: list[Any] = []
        wanted.late = late.append
        await until(lambda: len(server.commands) == 4)
        assert all(call.sent for call in (kept, dropped, wanted, last))
        dropped.future.cancel()
        wanted.future.cancel()
        server.commands.clear()
        server.answer = echo
        server.cut()
        assert (await kept.future, await last.future) == (b"k", b"l")
        assert [command[1] for command in server.commands] == [b"k", b"w", b"l"]
        assert late == [b"w"]


async def test_a_failed_call_is_not_sent_later(server: FakeServer) -> None:
    """A call that has failed since nobody could be reached is not sent when somebody can be."""
    await server.refuse()
    async with link_to(server, TIMEOUT) as link:
        failed = submit(link, b"ECHO", b"failed")
        with pytest.raises(BackendUnavailableError, match="cannot be reached"):
            await failed.future
        assert not failed.sent
        await server.listen()
        assert await submit(link, b"ECHO", b"later").future == b"later"
        assert [command[1] for command in server.commands] == [b"later"]


async def test_call_fails_while_connecting_takes_for_ever(server: FakeServer) -> None:
    """A connection that is never made: the calls fail, and are not sent when it is made."""
    going, gate = asyncio.Event(), asyncio.Event()

    async def dial() -> Any:
        going.set()
        await gate.wait()
        return await server.dial()

    async with link_to(server, TIMEOUT, dial) as link:
        failed = submit(link, b"ECHO", b"failed")
        with pytest.raises(BackendUnavailableError, match="does not answer"):
            await failed.future
        assert going.is_set()
        assert not failed.sent
        later = submit(link, b"ECHO", b"later")
        gate.set()
        assert await later.future == b"later"
        assert [command[1] for command in server.commands] == [b"later"]


async def test_silence_ends_the_connection(server: FakeServer) -> None:
    """A server that answers nothing is given up; what was sent is sent again, then fails."""
    async with link_to(server, TIMEOUT) as link:
        server.answer = saying(None)
        lost = submit(link, b"ECHO", b"lost")
        with pytest.raises(BackendUnavailableError):
            await lost.future
        assert lost.sent
        assert server.connections > 1
        server.answer = echo
        assert await submit(link, b"ECHO", b"later").future == b"later"
        assert link.outstanding == 0


async def test_late_is_called_once(server: FakeServer) -> None:
    """Who was told of a failure is not told again: not of another one, nor of the reply."""
    async with link_to(server, TIMEOUT) as link:
        server.answer = saying(None)
        failing, cancelled = submit(link, b"ECHO", b"1"), submit(link, b"ECHO", b"2")
        told: dict[str, list[Any]] = {"failing": [], "cancelled": []}
        failing.late = told["failing"].append
        cancelled.late = told["cancelled"].append
        cancelled.future.cancel()
        with pytest.raises(BackendUnavailableError):
            await failing.future
        await until(lambda: told["cancelled"])
        server.push(b"+1\r\n+2\r\n")
        await server.refuse()
        await until(lambda: link.outstanding == 0)
        await asyncio.sleep(TIMEOUT)
        assert told["failing"] == []
        assert [type(reply) for reply in told["cancelled"]] == [BackendUnavailableError]
        await server.listen()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (redis.exceptions.AuthenticationError("wrong"), "does not let us in: wrong"),
        (redis.exceptions.ResponseError("no"), "does not let us in: no"),
        (KeyError("of a credential provider"), "cannot be made"),
    ],
)
async def test_hopeless_connections_fail_at_once(
    server: FakeServer, error: Exception, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What a new try would not mend is an error at once; the next call tries again."""
    errors = [error]

    async def dial() -> Any:
        if errors:
            raise errors.pop()
        return await server.dial()

    async with link_to(server, LONG, dial) as link:
        calls = [submit(link, b"ECHO", b"1"), submit(link, b"ECHO", b"2")]
        for call in calls:
            with pytest.raises(BackendUnavailableError, match=message) as caught:
                await call.future
            assert caught.value.__cause__ is error
        assert await submit(link, b"ECHO", b"3").future == b"3"
    assert ("not foreseen" in caplog.text) == isinstance(error, KeyError)


async def test_unknown_scripts_are_sent_along(server: FakeServer) -> None:
    """The first call of a script has its source; a server that forgot it is given it again."""
    async with link_to(server) as link:
        for _ in range(2):
            call = script_of(READ, b"x")
            link.submit(call)
            await call.future
        server.answers.append(saying(b"-NOSCRIPT No matching script. Please use EVAL.\r\n"))
        call = script_of(READ, b"x")
        link.submit(call)
        assert await call.future == b"x"
        other = script_of(RELEASE, b"x")
        link.submit(other)
        await other.future
        names = [command[0] for command in server.commands]
        assert names == [b"EVAL", b"EVALSHA", b"EVALSHA", b"EVAL", b"EVAL"]
        server.cut()
        await until(lambda: link._wire is None)
        call = script_of(READ, b"x")
        link.submit(call)
        await call.future
        assert server.commands[-1][0] == b"EVAL"  # this may be another server


@pytest.mark.parametrize(
    "refusal",
    [b"-LOADING", b"-TRYAGAIN", b"-CLUSTERDOWN", b"-MASTERDOWN", b"-BUSY x", b"-READONLY"],
)
async def test_passing_refusals_are_waited_out(server: FakeServer, refusal: bytes) -> None:
    """What is refused for a while is sent again, in its order, but not what nobody wants."""
    async with link_to(server) as link:
        await submit(link, b"ECHO", b"first").future
        server.answers.extend([saying(refusal + b" for a while\r\n")] * 3)
        one, dropped, two = [submit(link, b"ECHO", word) for word in (b"1", b"d", b"2")]
        await until(lambda: len(server.commands) == 4)
        await asyncio.sleep(0)
        dropped.future.cancel()
        server.commands.clear()
        assert (await one.future, await two.future) == (b"1", b"2")
        assert [command[1] for command in server.commands] == [b"1", b"2"]
        assert (server.connections > 1) == (refusal == b"-READONLY")


async def test_calls_of_one_key_stay_behind_one_that_rests(server: FakeServer) -> None:
    """What was asked for later of the same key is not done before; others are not kept waiting."""
    async with link_to(server) as link:
        await submit(link, b"ECHO", b"connected").future
        server.commands.clear()
        server.answers.append(saying(b"-BUSY x\r\n"))
        first = call_of(b"ECHO", b"first", key="k")
        link.submit(first)
        await until(lambda: link._resting)
        second, other = call_of(b"ECHO", b"second", key="k"), call_of(b"ECHO", b"other", key="o")
        link.submit(second)
        link.submit(other)
        assert [await call.future for call in (other, first, second)] == [
            b"other",
            b"first",
            b"second",
        ]
        assert [command[1] for command in server.commands] == [
            b"first",
            b"other",
            b"first",
            b"second",
        ]


async def test_refusals_for_too_long(server: FakeServer) -> None:
    """A refusal that does not pass within the timeout is an error, and nothing was done."""
    async with link_to(server, TIMEOUT) as link:
        server.answer = saying(b"-LOADING\r\n")
        call = submit(link, b"ECHO", b"1")
        with pytest.raises(BackendUnavailableError, match="not ready: LOADING"):
            await call.future
        assert not call.sent


async def test_other_refusals_are_errors(server: FakeServer) -> None:
    """A refusal is the caller's at once; its message quotes no arguments."""
    async with link_to(server) as link:
        text = b"-ERR unknown command 'ECHO', with args beginning with: 'secret'\r\n"
        server.answers.append(saying(text))
        call = submit(link, b"ECHO", b"secret")
        with pytest.raises(BackendUnavailableError) as caught:
            await call.future
        assert str(caught.value) == "the server refused: ERR unknown command 'ECHO'"
        assert "secret" not in str(caught.value.__cause__)
        assert not call.sent
        server.answers.append(saying(b"-MOVED 1 127.0.0.1:1\r\n"))
        with pytest.raises(BackendUnavailableError, match=r"redis\+cluster://"):
            await submit(link, b"ECHO", b"1").future


async def test_refused_after_a_doubt_stays_doubtful(server: FakeServer) -> None:
    """What was sent before, and lost, may be done: a refusal of the second try leaves that."""
    async with link_to(server) as link:
        server.answers.append(saying(None))
        call = submit(link, b"ECHO", b"1")
        await until(lambda: server.commands)
        server.answers.append(saying(b"-OOM command not allowed\r\n"))
        server.cut()
        with pytest.raises(BackendUnavailableError, match="OOM"):
            await call.future
        assert call.sent


async def test_refusal_of_what_nobody_wants(server: FakeServer) -> None:
    """A refused call whose caller has gone is dropped."""
    async with link_to(server) as link:
        server.answers.append(saying(b"-LOADING\r\n"))
        call = submit(link, b"ECHO", b"1")
        await asyncio.sleep(0)
        call.future.cancel()
        assert await submit(link, b"ECHO", b"2").future == b"2"
        assert link.outstanding == 0


async def test_closing_ends_all_calls(server: FakeServer) -> None:
    """`close` fails what has no reply, what waits, and what comes later; and tells who is late."""
    async with link_to(server) as link:
        await submit(link, b"ECHO", b"first").future
        server.answers.append(saying(b"-LOADING\r\n"))
        server.answer = saying(None)
        calls = [submit(link, b"ECHO", word) for word in (b"resting", b"sent", b"late")]
        told: list[Any] = []
        calls[2].late = told.append
        calls[2].future.cancel()
        await until(lambda: link._resting)
        calls.insert(2, submit(link, b"ECHO", b"unsent"))
        await link.close()
        for call in calls[:3]:
            with pytest.raises(BackendUnavailableError, match="closed"):
                await call.future
        assert [type(reply) for reply in told] == [BackendUnavailableError]
        with pytest.raises(BackendUnavailableError, match="closed"):
            await submit(link, b"ECHO", b"after").future
        await link.close()


async def test_drained_waits_for_all(server: FakeServer) -> None:
    """`drained` waits for replies that nobody else waits for, but not for ever."""
    async with link_to(server) as link:
        await link.drained(PATIENCE)
        await submit(link, b"ECHO", b"first").future
        server.commands.clear()
        server.answer = saying(None)
        told: list[Any] = []
        cancelled = submit(link, b"ECHO", b"cancelled")
        cancelled.late = told.append
        cancelled.future.cancel()
        dropped = submit(link, b"ECHO", b"dropped")
        dropped.future.cancel()
        waited = submit(link, b"ECHO", b"waited")
        await until(lambda: len(server.commands) == 3)
        await link.drained(0.01)
        assert not told
        draining = asyncio.create_task(link.drained(PATIENCE))
        await asyncio.sleep(0)
        server.push(b"+1\r\n+2\r\n+3\r\n")
        await draining
        assert told == [b"1"]
        assert waited.future.result() == b"3"


async def test_close_during_the_pause_between_two_tries(server: FakeServer) -> None:
    """`close` does not wait for a server that is not there."""
    await server.refuse()
    async with link_to(server) as link:
        call = submit(link, b"ECHO", b"1")
        await asyncio.sleep(0.03)
        await link.close()
        with pytest.raises(BackendUnavailableError):
            await call.future
    await server.listen()


def test_errors_without_arguments() -> None:
    """Errors that quote no arguments are left as they are."""
    plain = redis.exceptions.ResponseError("ERR no")
    assert without_arguments(plain) is plain


# Wire


def _append_error(errors: list[Exception], _: Wire, error: Exception) -> None:
    errors.append(error)


async def test_connection_that_ends_before_the_wire_has_it(server: FakeServer) -> None:
    """A connection whose end redis-py was told of is lost for the wire as well."""
    for end_of_stream in (True, False):
        connection = await server.dial()
        if end_of_stream:
            for writer in server._writers:
                writer.close()
            await until(connection._reader.at_eof)
        else:
            connection._writer.transport.abort()
        lost: list[Exception] = []
        on_lost = partial(_append_error, lost)
        wire = Wire(connection, lambda _: None, on_lost)
        await until(partial(len, lost))
        await wire.wait_closed()
        await asyncio.sleep(0.01)
        assert len(lost) == 1


async def test_wire_without_a_transport() -> None:
    """A connection of fakeredis is read by its own methods, and ends like others."""
    fake = fakeredis.FakeServer()
    client = fakeredis.FakeAsyncRedis(server=fake)
    replies: list[Any] = []
    lost: list[Exception] = []

    async def make() -> Wire:
        connection = await _connected(client.connection_pool.make_connection(), LONG)
        return Wire(connection, replies.extend, lambda _, error: lost.append(error))

    wire = await make()
    wire.write(hiredis.pack_command((b"PING",)) + hiredis.pack_command((b"NONSENSE",)))
    await until(lambda: len(replies) == 2)
    assert replies[0] == b"PONG"
    assert isinstance(replies[1], redis.exceptions.ResponseError)
    wire.abort()
    await until(lambda: lost)
    await wire.wait_closed()
    closed = await make()
    closed.close()
    await closed.wait_closed()
    broken = Wire(
        await _connected(client.connection_pool.make_connection(), LONG),
        lambda _: 1 / 0,
        lambda _, error: lost.append(error),
    )
    broken.write(hiredis.pack_command((b"PING",)))
    await until(lambda: len(lost) == 2)
    assert isinstance(lost[1], ZeroDivisionError)
    await broken.wait_closed()
    await client.aclose()


# Inbox


@asynccontextmanager
async def inbox_of(
    dial: Callable[[], Awaitable[Any]], timeout: float = LONG
) -> AsyncIterator[list[bytes]]:
    heard: list[bytes] = []
    inbox = Inbox(dial, ("inbox",), lambda: None, heard.append, timeout)
    try:
        yield heard
    finally:
        await inbox.close()
    await asyncio.sleep(0)
    gc.collect()


def subscribed(command: Command) -> bytes:
    if command[0] == b"PING":
        return b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
    return b"*3\r\n$9\r\nsubscribe\r\n$5\r\ninbox\r\n:1\r\n"


MESSAGE = b"*3\r\n$7\r\nmessage\r\n$5\r\ninbox\r\n$5\r\nowner\r\n"


async def test_inbox_is_opened_again() -> None:
    """An inbox that is cut, or refused for a time, is opened again."""
    async with FakeServer(subscribed) as server, inbox_of(server.dial) as heard:
        await until(lambda: server.commands)
        server.push(MESSAGE)
        await until(lambda: heard == [b"owner"])
        await server.refuse()
        await asyncio.sleep(0.15)
        await server.listen()
        await until(lambda: len(server.commands) == 2)
        server.push(MESSAGE)
        await until(lambda: len(heard) == 2)


async def test_inbox_that_hears_nothing_asks() -> None:
    """An inbox over which nothing comes sends PING, and is given up without a reply."""
    async with FakeServer(subscribed) as server, inbox_of(server.dial, 0.05):
        await until(lambda: [c[0] for c in server.commands].count(b"PING") >= 3)
        server.answer = saying(None)
        before = server.connections
        await until(lambda: server.connections > before)
        server.answer = subscribed


async def test_inbox_that_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """A refusal is a warning, once; it is tried again at growing intervals."""
    refusal = b"-NOPERM no permissions to access one of the channels\r\n"
    async with FakeServer(saying(refusal)) as server, inbox_of(server.dial):
        await until(lambda: server.connections == 2)
        await asyncio.sleep(0.05)
    assert caplog.text.count("does not let us listen") == 1
    assert server.connections == 2


async def test_inbox_ends_when_a_cancel_is_swallowed() -> None:
    """Closing an inbox does not wait for ever if making a connection swallows a cancel."""
    dialling, swallowed = asyncio.Event(), asyncio.Event()
    async with FakeServer(subscribed) as server:

        async def dial() -> Any:
            try:
                dialling.set()
                await asyncio.sleep(PATIENCE)
            except asyncio.CancelledError:
                swallowed.set()
            return await server.dial()

        async with asyncio.timeout(PATIENCE), inbox_of(dial):
            await dialling.wait()
        assert swallowed.is_set()


async def test_inbox_survives_what_is_not_foreseen(caplog: pytest.LogCaptureFixture) -> None:
    """An error of who makes connections is logged, and the inbox goes on."""
    errors = [KeyError("of a credential provider"), OSError("none")]
    async with FakeServer(subscribed) as server:

        async def dial() -> Any:
            if errors:
                raise errors.pop(0)
            return await server.dial()

        async with inbox_of(dial):
            await until(lambda: server.commands)
    assert caplog.text.count("not foreseen") == 1


# Cluster


KEY = "key"
SLOT = redis.crc.key_slot(KEY.encode())


class FakeNode(FakeServer):
    """A node of a Cluster in which one has all slots.

    Attributes:
        owner: Who that is, by this node's knowledge.
    """

    def __init__(self) -> None:
        super().__init__(self._as_node)
        self.owner: FakeServer = self
        self.scripts: Answer = echo
        self.topologies = 0

    @property
    def asked(self) -> list[bytes]:
        return [c[0] for c in self.commands if c[0] not in (b"CLUSTER", b"COMMAND")]

    def _as_node(self, command: Command) -> bytes | None:
        if command[0] == b"COMMAND":
            return b"*0\r\n"
        if command[0] == b"CLUSTER":
            self.topologies += 1
            address = b"$9\r\n127.0.0.1\r\n:%d\r\n$1\r\nx\r\n" % self.owner.port
            return b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n" + address
        if command[0] == b"ASKING":
            return OK
        return self.scripts(command)

    def moved(self, _: Command = ()) -> bytes:
        return b"-MOVED %d 127.0.0.1:%d\r\n" % (SLOT, self.port)


@asynccontextmanager
async def cluster_of(*nodes: FakeServer, timeout: float = LONG) -> AsyncIterator[ClusterChannel]:
    client = redis.asyncio.RedisCluster(
        startup_nodes=[redis.asyncio.cluster.ClusterNode("127.0.0.1", n.port) for n in nodes],
        protocol=2,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
    )
    channel = channel_to(client)
    assert isinstance(channel, ClusterChannel)
    try:
        async with asyncio.timeout(PATIENCE):
            yield channel
    finally:
        await channel.close(0)
        await client.aclose()
        gc.collect()


async def test_moved_slot_is_remembered() -> None:
    """A call follows MOVED; the next ones go there at once, before the nodes agree."""
    async with FakeNode() as old, FakeNode() as new, cluster_of(old) as channel:
        old.scripts = new.moved
        assert await channel.call(READ, KEY, b"1").future == b"1"
        await until(lambda: channel._routing is None)
        old.commands.clear()
        old.owner = new
        assert await channel.call(READ, KEY, b"2").future == b"2"
        await until(lambda: channel._routing is None)
        old.commands.clear()
        assert await channel.command(KEY, b"ECHO", b"3").future == b"3"
        assert old.asked == []
        assert channel.outstanding == 0


async def test_calls_stay_in_order_while_nodes_are_found() -> None:
    """A call does not overtake one that waits for who has which slot: both are of one key."""
    async with FakeNode() as node, cluster_of(node) as channel:
        node.answer = lambda command: None if command[0] == b"COMMAND" else node._as_node(command)
        first = channel.call(READ, KEY, b"1")
        await until(lambda: [command for command in node.commands if command[0] == b"COMMAND"])
        assert channel._client.nodes_manager.slots_cache  # redis-py knows, and goes on asking
        second = channel.call(READ, KEY, b"2")
        await asyncio.sleep(0.01)
        node.push(b"*0\r\n")
        assert await asyncio.gather(first.future, second.future) == [b"1", b"2"]
        scripts = [command[-1] for command in node.commands if command[0].startswith(b"EVAL")]
        assert scripts == [b"1", b"2"]


async def test_asked_for_at_another_node() -> None:
    """ASK is followed for one call, with ASKING before it, and is not remembered."""
    async with FakeNode() as source, FakeNode() as target, cluster_of(source) as channel:
        source.scripts = lambda _: b"-ASK %d 127.0.0.1:%d\r\n" % (SLOT, target.port)
        for _ in range(2):
            assert await channel.call(READ, KEY, b"1").future == b"1"
        assert target.asked == [b"ASKING", b"EVAL", b"ASKING", b"EVALSHA"]
        assert len(source.asked) == 2


async def test_asking_is_not_sent_alone() -> None:
    """If the call behind ASKING is given up, ASKING is too: it is for no other call."""
    async with FakeNode() as source, FakeNode() as target, cluster_of(source) as channel:
        source.scripts = lambda _: b"-ASK %d 127.0.0.1:%d\r\n" % (SLOT, target.port)
        await target.refuse()
        call = channel.call(READ, KEY, b"1")
        await until(lambda: len(channel._nodes) == 2)
        call.future.cancel()
        await target.listen()
        link = channel._nodes["127.0.0.1", target.port]
        await channel.command_on(link, b"ECHO", b"1").future
        assert target.asked == [b"ECHO"]


async def test_node_that_does_not_know_its_name() -> None:
    """A redirection without a host is to the machine it came from."""
    async with FakeNode() as old, FakeNode() as new, cluster_of(old) as channel:
        old.scripts = lambda _: b"-MOVED %d :%d\r\n" % (SLOT, new.port)
        assert await channel.call(READ, KEY, b"1").future == b"1"
        assert new.asked == [b"EVAL"]


async def test_nodes_that_do_not_agree() -> None:
    """Nodes that send a call to and fro are asked with pauses, until they agree."""
    async with FakeNode() as one, FakeNode() as two, cluster_of(one) as channel:
        one.scripts, two.scripts = two.moved, one.moved
        call = channel.call(READ, KEY, b"1")
        await until(lambda: channel._hops)
        assert channel.outstanding == 1
        asked = len(one.asked) + len(two.asked)
        two.scripts = echo
        assert await call.future == b"1"
        assert len(one.asked) + len(two.asked) <= asked + 2


async def test_nodes_that_never_agree() -> None:
    """After the timeout that is an error."""
    async with FakeNode() as one, FakeNode() as two:
        async with cluster_of(one, timeout=TIMEOUT) as channel:
            one.scripts, two.scripts = two.moved, one.moved
            with pytest.raises(BackendUnavailableError, match="does not agree"):
                await channel.call(READ, KEY, b"1").future
        assert len(one.asked) + len(two.asked) < 20


async def test_node_that_is_gone_for_ever() -> None:
    """Calls to a node that has left the Cluster move to who has its slots now."""
    async with FakeNode() as old, FakeNode() as new, cluster_of(old, new) as channel:
        old.owner = new.owner = old
        assert await channel.call(READ, KEY, b"1").future == b"1"
        new.owner = new
        await old.refuse()
        calls = [channel.call(READ, KEY, b"%d" % number) for number in range(3)]
        assert [await call.future for call in calls] == [b"0", b"1", b"2"]
        await old.listen()


async def test_call_without_a_key_stays_with_its_node() -> None:
    """A step of a scan is not sent to another node: it fails with its own."""
    async with (
        FakeNode() as old,
        FakeNode() as new,
        cluster_of(old, new, timeout=TIMEOUT) as channel,
    ):
        old.owner = new.owner = old
        (link,) = await channel.primaries()
        new.owner = new
        await old.refuse()
        with pytest.raises(BackendUnavailableError):
            await channel.command_on(link, b"SCAN", b"0").future
        assert new.asked == []
        await old.listen()


async def test_silent_node_is_asked_for_elsewhere() -> None:
    """The calls of a node that answers nothing go to who has its slots by then."""
    async with (
        FakeNode() as old,
        FakeNode() as new,
        cluster_of(old, new, timeout=TIMEOUT) as channel,
    ):
        old.owner = new.owner = old
        await channel.call(READ, KEY, b"1").future
        old.scripts = saying(None)
        old.owner = new.owner = new
        assert await channel.call(READ, KEY, b"2").future == b"2"
        assert new.asked == [b"EVAL"]


async def test_node_of_a_minority_is_left() -> None:
    """A node that says CLUSTERDOWN is asked no more when another one has its slots."""
    async with FakeNode() as old, FakeNode() as new, cluster_of(old, new) as channel:
        old.owner = new.owner = old
        await channel.call(READ, KEY, b"1").future
        old.scripts = saying(b"-CLUSTERDOWN The cluster is down\r\n")
        old.owner = new.owner = new
        assert await channel.call(READ, KEY, b"2").future == b"2"


async def test_cluster_that_cannot_be_reached() -> None:
    """Calls and listings fail within the timeout; closing ends those that still wait."""
    async with FakeNode() as node:
        await node.refuse()
        async with cluster_of(node, timeout=TIMEOUT) as channel:
            call = channel.call(READ, KEY, b"1")
            assert channel.outstanding == 1
            message = f"the Cluster at 127.0.0.1:{node.port} cannot be reached: "
            with pytest.raises(BackendUnavailableError, match=message):
                await call.future
            with pytest.raises(BackendUnavailableError, match=message):
                await channel.primaries()
            trouble = channel.trouble(KEY, LONG)
            assert trouble is not None
            assert trouble.address == f"127.0.0.1:{node.port}"
        async with cluster_of(node) as channel:
            call = channel.call(READ, KEY, b"1")
            await asyncio.sleep(0)
        with pytest.raises(BackendUnavailableError, match="closed"):
            await call.future
        await node.listen()


async def test_closed_cluster_routes_nothing() -> None:
    """Calls that wait for nodes to agree end when the manager is closed."""
    async with FakeNode() as one, FakeNode() as two:
        async with cluster_of(one) as channel:
            one.scripts, two.scripts = two.moved, one.moved
            call = channel.call(READ, KEY, b"1")
            await until(lambda: channel._hops)
        with pytest.raises(BackendUnavailableError, match="closed"):
            await call.future
        late = script_of()
        channel.route(late)
        channel.refresh_soon()
        with pytest.raises(BackendUnavailableError, match="closed"):
            await late.future


# Dialling


async def test_half_made_connection_is_closed(server: FakeServer) -> None:
    """A cancel at any step of a handshake leaves no connection behind."""
    done = 0
    for turns in range(40):
        dialling = asyncio.create_task(server.dial())
        for _ in range(turns):
            await asyncio.sleep(0)
        dialling.cancel()
        with suppress(asyncio.CancelledError):
            connection = await dialling
            await connection.disconnect()
            done += 1
        del dialling
        gc.collect()
    await until(lambda: not server._tasks)
    assert done or server.connections


async def test_timeouts_are_never_none(server: FakeServer) -> None:
    """A connection whose client waits for ever is given a timeout."""
    connection = Connection(
        host="127.0.0.1", port=server.port, socket_timeout=None, socket_connect_timeout=None
    )
    await _connected(connection, 3.0)
    assert connection.socket_timeout == connection.socket_connect_timeout == 3.0
    await connection.disconnect()


async def test_single_channel_counts_and_closes(server: FakeServer) -> None:
    """`outstanding` is what has no reply yet; closing waits for that, for a while."""
    client = redis.asyncio.Redis(port=server.port, host="127.0.0.1", protocol=2)
    channel = channel_to(client)
    assert isinstance(channel, SingleChannel)
    call = channel.command(KEY, b"ECHO", b"1")
    assert channel.outstanding == 1
    await channel.close(PATIENCE)
    assert await call.future == b"1"
    await client.aclose()
