"""The proxies of the tests do what they say: what a fault loses, and what it leaves alone."""

import asyncio
import importlib.util
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from statemgr.testing.faults import FaultyProxy
from statemgr.testing.proxy import Forwarder, RespSplitter, command_of
from statemgr.testing.tls import TlsProxy

# One message each: every kind of RESP2 and RESP3, nested, empty and null.
MESSAGES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":42\r\n",
    b"_\r\n",
    b"#t\r\n",
    b",1.5\r\n",
    b"(3492890328409238509324850943850943825024385\r\n",
    b"$5\r\nhello\r\n",
    b"$4\r\n\r\n\r\n\r\n",
    b"$0\r\n\r\n",
    b"$-1\r\n",
    b"!7\r\nERR bad\r\n",
    b"=7\r\ntxt:abc\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n:1\r\n$1\r\na\r\n",
    b"*2\r\n*0\r\n*1\r\n*-1\r\n",
    b"~1\r\n+a\r\n",
    b"%0\r\n",
    b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n%1\r\n+c\r\n$-1\r\n",
    b">2\r\n+message\r\n$1\r\nx\r\n",
    b"|1\r\n+ttl\r\n:3\r\n+OK\r\n",
    b"|0\r\n:1\r\n",
    b"*2\r\n|1\r\n+a\r\n*1\r\n:1\r\n:2\r\n:3\r\n",
]


class TestSplitter:
    @pytest.mark.parametrize("message", MESSAGES)
    def test_a_message_cut_at_every_byte_comes_whole(self, message: bytes) -> None:
        """With the beginning of the next one behind it."""
        for cut in range(len(message) + 1):
            splitter = RespSplitter()
            assert [*splitter.feed(message[:cut]), *splitter.feed(message[cut:] + b"+")] == [
                message
            ]
            assert splitter.feed(b"\r\n") == [b"+\r\n"]

    def test_a_stream_cut_at_any_byte_gives_the_same_messages(self) -> None:
        stream = b"".join(MESSAGES)
        for cut in range(len(stream)):
            splitter = RespSplitter()
            assert splitter.feed(stream[:cut]) + splitter.feed(stream[cut:]) == MESSAGES

    def test_a_stream_byte_by_byte_gives_the_same_messages(self) -> None:
        splitter = RespSplitter()
        stream = b"".join(MESSAGES)
        messages = [m for i in range(len(stream)) for m in splitter.feed(stream[i : i + 1])]
        assert messages == MESSAGES

    @pytest.mark.parametrize("data", [b"PING\r\n", b"$?\r\n", b"*x\r\n", b"\r\n"])
    def test_what_is_not_resp_is_refused(self, data: bytes) -> None:
        with pytest.raises(ValueError, match=r"RESP|int"):
            RespSplitter().feed(data)


class TestCommands:
    def test_the_name_comes_in_capitals_and_the_arguments_as_they_are(self) -> None:
        assert command_of(packed(b"get", b"a\r\nb", b"")) == (b"GET", b"a\r\nb", b"")

    @pytest.mark.parametrize("request_", [b"+PING\r\n", b"*1\r\n:1\r\n", b"*0\r\n"])
    def test_what_is_no_command_is_refused(self, request_: bytes) -> None:
        with pytest.raises(ValueError, match="not a request"):
            command_of(request_)


def packed(*arguments: bytes) -> bytes:
    bulks = b"".join(b"$%d\r\n%s\r\n" % (len(argument), argument) for argument in arguments)
    return b"*%d\r\n%s" % (len(arguments), bulks)


SUBSCRIBED = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"


class FakeRedis:
    """Answers ECHO and SUBSCRIBE, pushes before PUSHED's reply, and QUIT closes.

    What it has executed is in `executed`, and waited for with `until`.
    """

    def __init__(self) -> None:
        self.executed: list[bytes] = []
        self.open = 0
        self._changed = asyncio.Condition()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        splitter = RespSplitter()
        try:
            while data := await reader.read(100):
                for request in splitter.feed(data):
                    await self._execute(command_of(request), writer)
        except ConnectionError:
            pass
        finally:
            writer.close()
            self.open -= 1
            async with self._changed:
                self._changed.notify_all()

    async def _execute(self, command: tuple[bytes, ...], writer: asyncio.StreamWriter) -> None:
        name, *arguments = command
        if name == b"SUBSCRIBE":
            writer.write(SUBSCRIBED * len(arguments))
        elif name == b"QUIT":
            writer.close()
        elif name == b"GARBAGE":
            writer.write(b"what is this?\r\n")
        else:
            if name == b"PUSHED":
                writer.write(b">1\r\n+news\r\n")
            writer.write(b"+%s\r\n" % arguments[0])
        async with self._changed:
            self.executed.append(arguments[0] if arguments else name)
            self._changed.notify_all()

    async def until(self, *executed: bytes) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.executed == list(executed))

    async def until_closed(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.open == 0)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *arguments: bytes) -> None:
        self.writer.write(packed(*arguments))

    async def line(self) -> bytes:
        return await self.reader.readline()

    async def echo(self, text: bytes) -> bytes:
        self.send(b"ECHO", text)
        return (await self.line()).strip(b"+\r\n")

    async def rest(self) -> bytes:
        """Return what comes until the connection ends."""
        data = b""
        try:
            while chunk := await self.reader.read(100):
                data += chunk
        except ConnectionError:
            pass
        return data


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        async with asyncio.timeout(10):
            yield Client(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@pytest.fixture
async def server() -> AsyncIterator[FakeRedis]:
    redis = FakeRedis()
    listening = await asyncio.start_server(redis.serve, "127.0.0.1", 0)
    redis.port = listening.sockets[0].getsockname()[1]
    yield redis
    listening.close()
    async with asyncio.timeout(10):
        await redis.until_closed()


@pytest.fixture
async def proxy(server: FakeRedis) -> AsyncIterator[FaultyProxy]:
    async with FaultyProxy("127.0.0.1", server.port) as proxy:
        yield proxy


class TestForwarding:
    async def test_requests_and_replies_pass(self, proxy: FaultyProxy) -> None:
        async with connected(proxy.port) as client:
            assert await client.echo(b"a") == b"a"
            assert await client.echo(b"b" * 300_000) == b"b" * 300_000
        assert proxy.url == f"redis://127.0.0.1:{proxy.port}"

    async def test_a_request_in_pieces_is_forwarded_when_it_is_whole(
        self, proxy: FaultyProxy, server: FakeRedis
    ) -> None:
        async with connected(proxy.port) as client:
            for byte in packed(b"ECHO", b"abc"):
                assert not server.executed
                client.writer.write(bytes([byte]))
                await client.writer.drain()
            assert await client.line() == b"+abc\r\n"

    async def test_the_server_learns_that_the_client_closed(
        self, proxy: FaultyProxy, server: FakeRedis
    ) -> None:
        async with connected(proxy.port) as client:
            await client.echo(b"a")
        await server.until_closed()

    async def test_the_client_learns_that_the_server_closed(self, proxy: FaultyProxy) -> None:
        async with connected(proxy.port) as client:
            client.send(b"ECHO", b"last")
            client.send(b"QUIT")
            assert await client.rest() == b"+last\r\n"

    async def test_a_server_that_is_down_refuses_its_client(self) -> None:
        async with FaultyProxy("127.0.0.1", 1) as proxy, connected(proxy.port) as client:
            assert await client.rest() == b""

    async def test_leaving_it_closes_connections_and_the_port(self, server: FakeRedis) -> None:
        async with FaultyProxy("127.0.0.1", server.port) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            client = Client(reader, writer)
            await client.echo(b"a")
        assert await client.rest() == b""
        writer.close()
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", proxy.port)

    async def test_leaving_it_before_a_connection_was_served_closes_that(
        self, server: FakeRedis
    ) -> None:
        async with FaultyProxy("127.0.0.1", server.port) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await reader.read() == b""
        writer.close()

    @pytest.mark.parametrize("command", [b"GARBAGE", b""])
    async def test_what_is_not_resp_fails_the_test(self, server: FakeRedis, command: bytes) -> None:
        """From the server, and from the client."""
        with pytest.raises(ValueError, match="not RESP"):
            async with (
                FaultyProxy("127.0.0.1", server.port) as proxy,
                connected(proxy.port) as client,
            ):
                client.writer.write(packed(command) if command else b"PING\r\n")
                assert await client.rest() == b""

    async def test_the_error_of_the_test_itself_comes_first(self, server: FakeRedis) -> None:
        with pytest.raises(KeyError):
            async with FaultyProxy("127.0.0.1", server.port) as proxy:
                async with connected(proxy.port) as client:
                    client.writer.write(b"PING\r\n")
                    assert await client.rest() == b""
                raise KeyError


class TestCounts:
    async def test_requests_replies_connections_and_commands(self, proxy: FaultyProxy) -> None:
        for _ in range(2):
            async with connected(proxy.port) as client:
                await client.echo(b"a")
                client.send(b"echo", b"b")
                client.send(b"Pushed", b"c")
                assert [await client.line() for _ in range(4)] == [
                    b"+b\r\n",
                    b">1\r\n",
                    b"+news\r\n",
                    b"+c\r\n",
                ]
        assert (proxy.requests, proxy.replies, proxy.connections) == (6, 6, 2)
        assert proxy.commands == {b"ECHO": 4, b"PUSHED": 2}

    async def test_reset(self, proxy: FaultyProxy) -> None:
        async with connected(proxy.port) as client:
            await client.echo(b"a")
            proxy.reset_counts()
            assert (proxy.requests, proxy.replies, proxy.connections) == (0, 0, 0)
            await client.echo(b"a")
        assert (proxy.requests, proxy.replies, proxy.connections) == (1, 1, 0)
        assert proxy.commands == {b"ECHO": 1}

    async def test_what_answers_no_request_passes_uncounted(self) -> None:
        """As what a server says that has too many clients."""

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"-ERR max number of clients reached\r\n")
            writer.close()

        async with (
            await asyncio.start_server(serve, "127.0.0.1", 0) as server,
            FaultyProxy(*server.sockets[0].getsockname()) as proxy,
        ):
            async with connected(proxy.port) as client:
                assert await client.rest() == b"-ERR max number of clients reached\r\n"
            assert proxy.replies == 0


class TestDroppedReply:
    async def test_the_server_has_executed_it_and_the_client_does_not_learn(
        self, proxy: FaultyProxy, server: FakeRedis
    ) -> None:
        async with connected(proxy.port) as client, connected(proxy.port) as other:
            await other.echo(b"before")
            lost = proxy.drop_reply(1)
            client.send(b"ECHO", b"a")
            assert await client.rest() == b""
            assert lost.is_set()
            assert server.executed == [b"before", b"a"]
            assert await other.echo(b"after") == b"after"
        assert proxy.replies == 3

    async def test_the_replies_before_it_are_delivered_and_none_after_it(
        self, proxy: FaultyProxy
    ) -> None:
        proxy.drop_reply(3)
        async with connected(proxy.port) as client:
            client.writer.write(b"".join(packed(b"ECHO", bytes([c])) for c in b"abcde"))
            assert await client.rest() == b"+a\r\n+b\r\n"

    async def test_it_is_counted_over_all_connections(self, proxy: FaultyProxy) -> None:
        lost = proxy.drop_reply(2)
        async with connected(proxy.port) as one, connected(proxy.port) as two:
            assert await one.echo(b"a") == b"a"
            assert not lost.is_set()
            two.send(b"ECHO", b"b")
            assert await two.rest() == b""
            assert await one.echo(b"c") == b"c"

    async def test_only_replies_to_some_commands_are_counted(self, proxy: FaultyProxy) -> None:
        """Whatever is sent before them, and pushes do not shift which reply is whose."""
        proxy.drop_reply(2, where=lambda command: command == (b"ECHO", b"x"))
        async with connected(proxy.port) as client:
            for request in [(b"ECHO", b"a"), (b"PUSHED", b"x"), (b"echo", b"x"), (b"ECHO", b"b")]:
                client.send(*request)
            client.send(b"ECHO", b"x")
            assert await client.rest() == b"+a\r\n>1\r\n+news\r\n+x\r\n+x\r\n+b\r\n"

    async def test_two_faults_count_each_for_themselves(self, proxy: FaultyProxy) -> None:
        first, second = proxy.drop_reply(1), proxy.drop_reply(2)
        async with connected(proxy.port) as client:
            client.send(b"ECHO", b"a")
            assert await client.rest() == b""
            assert (first.is_set(), second.is_set()) == (True, False)
        async with connected(proxy.port) as client:
            client.send(b"ECHO", b"a")
            assert await client.rest() == b""
            assert second.is_set()
        async with connected(proxy.port) as client:
            assert await client.echo(b"a") == b"a"

    async def test_faults_can_be_taken_back(self, proxy: FaultyProxy) -> None:
        faults = [proxy.drop_reply(1), proxy.cut_before_request(1)]
        proxy.clear_faults()
        async with connected(proxy.port) as client:
            assert await client.echo(b"a") == b"a"
        assert not any(fault.is_set() for fault in faults)

    async def test_there_is_no_reply_number_0(self, proxy: FaultyProxy) -> None:
        with pytest.raises(ValueError, match="number 1"):
            proxy.drop_reply(0)


class TestCutBeforeRequest:
    async def test_the_server_does_not_get_it(self, proxy: FaultyProxy, server: FakeRedis) -> None:
        cut = proxy.cut_before_request(2, where=lambda command: command[0] == b"ECHO")
        async with connected(proxy.port) as client:
            assert await client.echo(b"a") == b"a"
            client.send(b"PUSHED", b"b")
            for _ in range(3):
                await client.line()
            assert not cut.is_set()
            client.send(b"ECHO", b"c")
            client.send(b"ECHO", b"d")
            assert await client.rest() == b""
        await server.until_closed()
        assert cut.is_set()
        assert server.executed == [b"a", b"b"]
        assert proxy.commands == {b"ECHO": 2, b"PUSHED": 1}


class TestHold:
    async def test_a_held_reply_comes_after_resume(
        self, proxy: FaultyProxy, server: FakeRedis
    ) -> None:
        async with connected(proxy.port) as client:
            proxy.hold(requests=False)
            client.send(b"ECHO", b"a")
            await server.until(b"a")
            client.send(b"ECHO", b"b")
            await server.until(b"a", b"b")
            assert proxy.replies == 0
            proxy.resume()
            assert await client.line() == b"+a\r\n"
            assert await client.line() == b"+b\r\n"

    async def test_a_held_request_comes_after_resume(
        self, proxy: FaultyProxy, server: FakeRedis
    ) -> None:
        async with connected(proxy.port) as client, connected(proxy.port) as other:
            await client.echo(b"a")
            proxy.hold()
            client.send(b"ECHO", b"b")
            proxy.resume(replies=True, requests=False)
            assert server.executed == [b"a"]
            proxy.hold(requests=False)
            proxy.resume(replies=False)
            await server.until(b"a", b"b")
            assert proxy.replies == 1
            proxy.resume()
            assert await client.line() == b"+b\r\n"
            assert await other.echo(b"c") == b"c"

    async def test_a_request_that_its_client_gave_up_is_forwarded_all_the_same(
        self, proxy: FaultyProxy, server: FakeRedis
    ) -> None:
        proxy.hold(replies=False)
        async with connected(proxy.port) as client:
            client.send(b"ECHO", b"late")
        proxy.resume()
        await server.until(b"late")

    async def test_a_held_connection_can_be_cut(
        self, proxy: FaultyProxy, server: FakeRedis
    ) -> None:
        async with connected(proxy.port) as client:
            await client.echo(b"a")
            proxy.hold()
            client.send(b"ECHO", b"b")
            proxy.cut()
            assert await client.rest() == b""
        await server.until_closed()
        proxy.resume()
        assert server.executed == [b"a"]


class TestConnections:
    async def test_cut_ends_all_of_them_and_new_ones_are_taken(self, proxy: FaultyProxy) -> None:
        async with connected(proxy.port) as one, connected(proxy.port) as two:
            await one.echo(b"a")
            await two.echo(b"a")
            proxy.cut()
            proxy.cut()
            assert await one.rest() == b""
            assert await two.rest() == b""
        async with connected(proxy.port) as client:
            assert await client.echo(b"a") == b"a"

    async def test_refused_until_accepted(self, proxy: FaultyProxy) -> None:
        async with connected(proxy.port) as old:
            await old.echo(b"a")
            proxy.refuse()
            async with connected(proxy.port) as client:
                assert await client.rest() == b""
            assert await old.echo(b"b") == b"b"
        proxy.accept()
        async with connected(proxy.port) as client:
            assert await client.echo(b"a") == b"a"
        assert proxy.connections == 2

    async def test_delay(self, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
        slept = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        monkeypatch.setattr("statemgr.testing.proxy.asyncio.sleep", sleep)
        proxy.delay(0.25)
        async with connected(proxy.port) as client:
            await client.echo(b"a")
            proxy.delay(0)
            await client.echo(b"b")
        assert slept == [0.25, 0.25]


class TestSubscriptions:
    async def test_a_connection_that_subscribes_is_left_alone_from_then_on(
        self, proxy: FaultyProxy
    ) -> None:
        lost = proxy.drop_reply(2)
        async with connected(proxy.port) as client:
            await client.echo(b"a")
            client.send(b"SUBSCRIBE", b"c", b"d")
            await client.reader.readexactly(2 * len(SUBSCRIBED))
            assert await client.echo(b"b") == b"b"
            assert (proxy.requests, proxy.replies) == (2, 1)
            assert not lost.is_set()
            proxy.cut()
            assert await client.rest() == b""

    async def test_a_subscription_can_be_cut_off(self, proxy: FaultyProxy) -> None:
        proxy.cut_before_request(where=lambda command: command[0] == b"SUBSCRIBE")
        async with connected(proxy.port) as client:
            client.send(b"SUBSCRIBE", b"c")
            assert await client.rest() == b""


class TestForwarder:
    async def test_it_forwards_any_bytes(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.readexactly(3))[::-1])
            writer.close()

        async with (
            await asyncio.start_server(serve, "127.0.0.1", 0) as server,
            Forwarder(*server.sockets[0].getsockname()) as forwarder,
            connected(forwarder.port) as client,
        ):
            client.writer.write(b"\x00\r\xff")
            assert await client.rest() == b"\xff\r\x00"


class TestTls:
    @pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
    async def test_a_client_that_knows_the_ca_gets_through(
        self, server: FakeRedis, name: str
    ) -> None:
        async with TlsProxy("127.0.0.1", server.port) as proxy:
            context = ssl.create_default_context(cafile=proxy.ca_file)
            context.verify_flags |= ssl.VERIFY_X509_STRICT  # Python 3.13's default
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", proxy.port, ssl=context, server_hostname=name
            )
            assert await Client(reader, writer).echo(b"secret") == b"secret"
            assert proxy.url == f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={proxy.ca_file}"
            writer.close()
            await writer.wait_closed()
        assert not proxy.ca_file.parent.exists()

    async def test_a_client_that_does_not_know_the_ca_refuses(self, server: FakeRedis) -> None:
        async with TlsProxy("127.0.0.1", server.port) as proxy:
            context = ssl.create_default_context()
            with pytest.raises(ssl.SSLCertVerificationError):
                await asyncio.open_connection("127.0.0.1", proxy.port, ssl=context)

    async def test_a_client_of_another_name_refuses(self, server: FakeRedis) -> None:
        async with TlsProxy("127.0.0.1", server.port) as proxy:
            context = ssl.create_default_context(cafile=proxy.ca_file)
            with pytest.raises(ssl.SSLCertVerificationError):
                await asyncio.open_connection(
                    "127.0.0.1", proxy.port, ssl=context, server_hostname="example.org"
                )

    async def test_certificates_are_deleted_when_it_cannot_listen(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def start_server(*_: object, **__: object) -> None:
            raise OSError

        monkeypatch.setattr(asyncio, "start_server", start_server)
        proxy = TlsProxy("127.0.0.1", 1)
        with pytest.raises(OSError, match=r"^$"):
            await proxy.__aenter__()
        assert not proxy.ca_file.parent.exists()

    def test_without_cryptography_it_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(sys.modules, TlsProxy.__module__)
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(ImportError, match=r"pip install 'statemgr\[crypto\]'"):
            importlib.import_module(TlsProxy.__module__)
