"""A Redis URL gives the client it describes, or is refused before anything is connected."""

import inspect
import ssl
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from statemgr.backends.redis.urls import client_from_url
from statemgr.errors import SettingsError
from statemgr.testing.tls import TlsProxy

SECRET = "hunter2"
HAS_FLAGS = "ssl_include_verify_flags" in inspect.signature(SSLConnection.__init__).parameters


def connections(client: Redis | RedisCluster) -> list[Any]:
    """Return a connection, not connected, of each kind that the client makes."""
    if isinstance(client, RedisCluster):
        makers = list(client.nodes_manager.startup_nodes.values())
    else:
        makers = [client.connection_pool]
        if manager := getattr(client.connection_pool, "sentinel_manager", None):
            makers += [sentinel.connection_pool for sentinel in manager.sentinels]
    return [maker.connection_class(**maker.connection_kwargs) for maker in makers]


def connection(url: str) -> Any:
    """Return a connection, not connected, to where the data is."""
    return connections(client_from_url(url))[0]


def sentinels(url: str) -> list[Any]:
    return connections(client_from_url(url))[1:]


def address(made: Any) -> tuple[str, int]:
    return made.host, made.port


class TestOneServer:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("redis://example.org", ("example.org", 6379)),
            ("redis://example.org:7000", ("example.org", 7000)),
            ("redis://example.org:", ("example.org", 6379)),
            ("redis://", ("localhost", 6379)),
            ("redis://:7000/1", ("localhost", 7000)),
            ("redis:///1", ("localhost", 6379)),
            ("redis://[::1]", ("::1", 6379)),
            ("redis://[2001:db8::7]:7000", ("2001:db8::7", 7000)),
            ("redis://[fe80::1%25eth0]:1", ("fe80::1%eth0", 1)),
            ("REDIS://example.org", ("example.org", 6379)),
            ("redis://user:pass@example.org:65535/2?client_name=x", ("example.org", 65535)),
        ],
    )
    def test_host_and_port(self, url: str, expected: tuple[str, int]) -> None:
        made = connection(url)
        assert type(made) is Connection
        assert address(made) == expected

    @pytest.mark.parametrize(
        ("url", "db"),
        [
            ("redis://h", 0),
            ("redis://h/", 0),
            ("redis://h/3", 3),
            ("redis://h/3/", 3),
            ("redis://h?db=4", 4),
            ("redis://h/3?db=4", 4),
            ("unix:///run/redis.sock?db=5", 5),
            ("redis+sentinel://h/service/6", 6),
            ("redis+sentinel://h/service/", 0),
            ("redis+sentinel://h/service?db=7", 7),
        ],
    )
    def test_database(self, url: str, db: int) -> None:
        """Where the path and an option say it, the option wins, as in redis-py."""
        assert connection(url).db == db

    def test_a_socket(self) -> None:
        made = connection("unix://user:pass@/run/my%20redis/a@b.sock")
        assert type(made) is UnixDomainSocketConnection
        assert (made.path, made.username, made.password) == (
            "/run/my redis/a@b.sock",
            "user",
            "pass",
        )

    @pytest.mark.parametrize(
        ("credentials", "username", "password"),
        [
            ("", None, None),
            ("user@", "user", None),
            ("user:@", "user", None),
            (":pass@", None, "pass"),
            ("user:pass@", "user", "pass"),
            ("us%3Aer:p%40%2F%3F%23%5B%25%0A+:@", "us:er", "p@/?#[%\n+:"),
            ("user:p@ss@", "user", "p@ss"),
            ("%C3%A9:%C3%A8@", "é", "è"),
        ],
    )
    @pytest.mark.parametrize(
        "url", ["redis://{}h", "rediss://{}h", "redis+sentinel://{}h/s", "redis+cluster://{}h"]
    )
    def test_credentials(
        self, url: str, credentials: str, username: str | None, password: str | None
    ) -> None:
        made = connection(url.format(credentials))
        assert (made.username, made.password) == (username, password)

    def test_credentials_in_options(self) -> None:
        made = connection("redis://h?username=us+er&password=a%26%2B")
        assert (made.username, made.password) == ("us er", "a&+")


class TestSentinel:
    def test_hosts_service_and_database(self) -> None:
        client = client_from_url("redis+sentinel://u:p@h1:1,h2,[::1]:3,[::2]/my%2Fservice/4")
        assert isinstance(client, Redis)
        pool: Any = client.connection_pool
        assert pool.service_name == "my/service"
        assert pool.is_master
        data, *asked = connections(client)
        assert type(data) is SentinelManagedConnection
        assert (data.username, data.password, data.db) == ("u", "p", 4)
        assert [address(sentinel) for sentinel in asked] == [
            ("h1", 1),
            ("h2", 26379),
            ("::1", 3),
            ("::2", 26379),
        ]
        assert {(s.db, s.username, s.password) for s in asked} == {(0, None, None)}

    def test_credentials_of_the_sentinels_are_their_own(self) -> None:
        url = "redis+sentinel://u:p@h/s?sentinel_username=su&sentinel_password=s%40p"
        data, sentinel = connections(client_from_url(url))
        assert (data.username, data.password) == ("u", "p")
        assert (sentinel.username, sentinel.password) == ("su", "s@p")

    def test_tls_is_for_all_connections(self) -> None:
        url = "rediss+sentinel://h1,h2/s?ssl_cert_reqs=none"
        data, *asked = connections(client_from_url(url))
        assert type(data) is SentinelManagedSSLConnection
        assert {type(sentinel) for sentinel in asked} == {SSLConnection}
        assert {made.cert_reqs for made in (data, *asked)} == {ssl.CERT_NONE}

    def test_options_of_sockets_are_for_all_connections_and_others_for_the_data(self) -> None:
        url = "redis+sentinel://h/s?socket_timeout=1&socket_read_size=99&protocol=3&client_name=n"
        data, sentinel = connections(client_from_url(url))
        assert (data.socket_timeout, sentinel.socket_timeout) == (1, 1)
        assert (data.protocol, sentinel.protocol) == (3, 3)
        assert (data.client_name, sentinel.client_name) == ("n", None)
        assert data._socket_read_size == 99

    async def test_closing_the_client_closes_the_connections_to_the_sentinels(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And only that: the pool drops idle connections when the primary has changed."""
        client = client_from_url("redis+sentinel://h1,h2/s")
        assert isinstance(client, Redis)
        pool: Any = client.connection_pool
        closed = []
        for sentinel in pool.sentinel_manager.sentinels:

            async def aclose(sentinel: Any = sentinel) -> None:
                closed.append(sentinel)

            monkeypatch.setattr(sentinel, "aclose", aclose)
        await pool.disconnect(inuse_connections=False)
        assert closed == []
        await client.aclose()
        assert closed == pool.sentinel_manager.sentinels


class TestCluster:
    def test_nodes(self) -> None:
        client = client_from_url("redis+cluster://u:p@10.0.0.1:1,10.0.0.2,[::1]:3,[::2]/0")
        assert isinstance(client, RedisCluster)
        made = connections(client)
        assert [address(node) for node in made] == [
            ("10.0.0.1", 1),
            ("10.0.0.2", 6379),
            ("::1", 3),
            ("::2", 6379),
        ]
        assert {(type(n), n.username, n.password) for n in made} == {(Connection, "u", "p")}

    @pytest.mark.parametrize("path", ["", "/", "/0", "?socket_timeout=1"])
    def test_a_path_says_at_most_database_0(self, path: str) -> None:
        assert connection(f"redis+cluster://h{path}").host == "h"

    def test_tls(self) -> None:
        made = connection("rediss+cluster://h?ssl_check_hostname=false")
        assert type(made) is SSLConnection
        assert made.check_hostname is False
        assert made.cert_reqs == ssl.CERT_REQUIRED


EVERY_KIND = [
    "redis://h",
    "rediss://h",
    "unix:///run/redis.sock",
    "redis+sentinel://h/s",
    "rediss+sentinel://h/s",
    "redis+cluster://h",
    "rediss+cluster://h",
]


class TestEveryKind:
    @pytest.mark.parametrize("url", EVERY_KIND)
    def test_defaults(self, url: str) -> None:
        """No connection waits for ever, and none retries: the backend knows what it may repeat."""
        client = client_from_url(url)
        if isinstance(client, RedisCluster):
            assert client.retry.get_retries() == 0
        for made in connections(client):
            assert made.socket_timeout == 5
            assert made.socket_connect_timeout == 5
            assert made.retry.get_retries() == 0
            if not url.startswith("unix"):
                assert made.socket_keepalive is True

    @pytest.mark.parametrize("url", EVERY_KIND)
    def test_options_of_the_url(self, url: str) -> None:
        query = "socket_timeout=1.5&socket_connect_timeout=2&health_check_interval=30&client_name=n"
        made = connection(f"{url}?{query}")
        assert (made.socket_timeout, made.socket_connect_timeout) == (1.5, 2)
        assert (made.health_check_interval, made.client_name) == (30, "n")

    @pytest.mark.parametrize("url", EVERY_KIND)
    def test_replies_are_bytes(self, url: str) -> None:
        for made in connections(client_from_url(url)):
            assert made.encoder.decode_responses is False
        with pytest.raises(SettingsError, match="options"):
            client_from_url(f"{url}?decode_responses=yes")

    @pytest.mark.parametrize(
        ("text", "value"), [("True", True), ("yes", True), ("1", True), ("No", False), ("0", False)]
    )
    def test_switches(self, text: str, value: bool) -> None:
        assert connection(f"redis://h?socket_keepalive={text}").socket_keepalive is value

    @pytest.mark.parametrize("protocol", [2, 3])
    def test_protocol(self, protocol: int) -> None:
        assert connection(f"redis://h?protocol={protocol}").protocol == protocol

    def test_connections_at_most(self) -> None:
        client = client_from_url("redis://h?max_connections=7")
        assert isinstance(client, Redis)
        assert client.connection_pool.max_connections == 7


class TestTls:
    async def test_files(self) -> None:
        async with TlsProxy("127.0.0.1", 1) as proxy:
            for url in ("rediss://h", "rediss+sentinel://h/s", "rediss+cluster://h"):
                for made in connections(client_from_url(f"{url}?ssl_ca_certs={proxy.ca_file}")):
                    assert made.ca_certs == str(proxy.ca_file)
            assert connection(proxy.url).port == proxy.port
            data = proxy.ca_file.read_text().replace("+", "%2B").replace("\n", "%0A")
            made = connection(f"rediss://h?ssl_ca_data={data.replace(' ', '+')}")
            assert made.ca_data == proxy.ca_file.read_text()

    def test_version_and_ciphers(self) -> None:
        made = connection("rediss://h?ssl_min_version=772&ssl_ciphers=HIGH")
        assert made.ssl_context.get().minimum_version is ssl.TLSVersion.TLSv1_3

    @pytest.mark.parametrize("flags", ["VERIFY_X509_STRICT", "[VERIFY_X509_STRICT]"])
    def test_flags(self, flags: str) -> None:
        """An option that the installed redis-py does not have yet is refused as any unknown one."""
        url = f"rediss://h?ssl_include_verify_flags={flags}"
        if HAS_FLAGS:
            assert connection(url).ssl_context.get().verify_flags & ssl.VERIFY_X509_STRICT
        else:
            with pytest.raises(SettingsError, match="options"):
                client_from_url(url)

    @pytest.mark.parametrize("url", ["rediss://h", "rediss+sentinel://h/s", "rediss+cluster://h"])
    @pytest.mark.parametrize(
        "query",
        [
            "ssl_ca_certs=/no/such/file",
            f"ssl_certfile={__file__}&ssl_keyfile={__file__}",
            "ssl_ca_data=nothing",
            "ssl_ciphers=none-such",
        ],
    )
    def test_what_cannot_be_loaded_is_refused_at_once(self, url: str, query: str) -> None:
        with pytest.raises(SettingsError, match="can be loaded"):
            client_from_url(f"{url}?{query}")


class TestMalformed:
    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("", "begins with redis://"),
            ("redis", "begins with"),
            ("redis:/h", "begins with"),
            ("://h", "begins with"),
            ("h:6379", "begins with"),
            ("http://h", "begins with"),
            ("redis+unix://h", "begins with"),
            ("unix+sentinel://h/s", "begins with"),
            ("valkey://h", "begins with"),
            (" redis://h", "begins with"),
            ("redis://h ", "no spaces"),
            ("redis://h\n", "no spaces"),
            ("redis://h\t/0", "no spaces"),
            ("redis://h/0#fragment", "no #"),
            ("redis://:pass#word@h", "no #"),
            ("redis://:100%@h", "hexadecimal"),
            ("redis://h/%zz", "hexadecimal"),
            ("redis://:%ff@h", "UTF-8"),
            ("redis://%ff/0", "UTF-8"),
            ("redis://a%00b", "printable"),
            ("unix:///run/%0A", "printable"),
            ("redis://h:x", "host:port"),
            ("redis://h:1:2", "host:port"),
            ("redis://::1", "host:port"),
            ("redis://h:-1", "host:port"),
            ("redis://h:+1", "host:port"),
            ("redis://h:1_0", "host:port"),
            ("redis://[::1", "host:port"),
            ("redis://[::1]x", "host:port"),
            ("redis://[]", "host:port"),
            ("redis://a]b", "host:port"),
            ("redis://[example.org]", "IPv6"),
            ("redis://[127.0.0.1]", "IPv6"),
            ("redis://h:0", "1 to 65535"),
            ("redis://h:65536", "1 to 65535"),
            ("redis://h1,h2", "one host"),
            ("redis://h/x", "number of a database"),
            ("redis://h/-1", "number of a database"),
            ("redis://h/1/2", "number of a database"),
            ("redis://h//1", "number of a database"),
            ("redis://user/word@h", "number of a database"),
            ("unix://", "a path"),
            ("unix:///", "a path"),
            ("unix://run/redis.sock", "a path"),
            ("redis+sentinel://", "a service"),
            ("redis+sentinel://h", "a service"),
            ("redis+sentinel://h/", "a service"),
            ("redis+sentinel://h//0", "a service"),
            ("redis+sentinel://user/word@h/0", "a service"),
            ("redis+sentinel://h/s/x", "number of a database"),
            ("redis+sentinel://h/s/0/1", "number of a database"),
            ("redis+sentinel:///s", "host:port"),
            ("redis+sentinel://h,/s", "host:port"),
            ("redis+sentinel://h,,h/s", "host:port"),
            ("redis+sentinel://h:1/%07", "printable"),
            ("redis+cluster://", "host:port"),
            ("redis+cluster://,", "host:port"),
            ("redis+cluster://:1", "host:port"),
            ("redis+cluster://h/1", "only database 0"),
            ("redis+cluster://h/s", "only database 0"),
        ],
    )
    def test_url(self, url: str, message: str) -> None:
        with pytest.raises(SettingsError, match=message) as caught:
            client_from_url(url)
        assert caught.value.variable == "STATEMGR_REDIS_URL"
        assert caught.value.allowed in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("redis://h?timeout", "options"),
            ("redis://h?sockettimeout=1", "options"),
            ("redis://h?=1", "options"),
            ("redis://h?db=1&", "options"),
            ("redis://h?encoding=latin-1", "options"),
            ("redis://h?retry=1", "options"),
            ("redis://h?retry_on_timeout=yes", "options"),
            ("redis://h?ssl=yes", "options"),
            ("redis://h?host=other", "options"),
            ("redis://h?sentinel_password=x", "options"),
            ("redis://h?ssl_ca_certs=/x", "options"),
            ("redis+sentinel://h/s?ssl_ca_certs=/x", "options"),
            ("redis+cluster://h?ssl_ca_certs=/x", "options"),
            ("redis+cluster://h?db=0", "options"),
            ("unix:///x?socket_keepalive=yes", "options"),
            ("redis://h?db=1&db=2", "db once"),
            ("redis://h?db=", "db as"),
            ("redis://h?db=x", "db as"),
            ("redis://h?db=1.5", "db as"),
            ("redis://h?db=-1", "db as"),
            ("redis://h?db=%C2%B2", "db as"),
            ("redis://h?max_connections=0", "max_connections as"),
            ("redis://h?socket_timeout=0", "socket_timeout as"),
            ("redis://h?socket_timeout=-1", "socket_timeout as"),
            ("redis://h?socket_timeout=inf", "socket_timeout as"),
            ("redis://h?socket_timeout=nan", "socket_timeout as"),
            ("redis://h?socket_timeout=soon", "socket_timeout as"),
            ("redis://h?socket_keepalive=off", "socket_keepalive as"),
            ("redis://h?protocol=4", "protocol as"),
            ("redis://h?client_name=a+b", "client_name as"),
            ("redis://h?client_name=%C3%A9", "client_name as"),
            ("redis://h?client_name=%FF", "client_name as"),
            ("redis://h?username=%0A", "username as"),
            ("redis://h?password=", "password as"),
            ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs as"),
            ("rediss://h?ssl_min_version=1.2", "ssl_min_version as"),
            ("rediss://h?ssl_min_version=5", "ssl_min_version as"),
            ("rediss://h?ssl_check_hostname=never", "ssl_check_hostname as"),
        ],
    )
    def test_option(self, url: str, message: str) -> None:
        """redis-py takes most of these, and fails at the first command or drops them."""
        with pytest.raises(SettingsError, match=f"expected .*{message}"):
            client_from_url(url)

    def test_unknown_flag(self) -> None:
        message = "ssl_include_verify_flags as" if HAS_FLAGS else "options"
        with pytest.raises(SettingsError, match=message):
            client_from_url("rediss://h?ssl_include_verify_flags=VERIFY_NOTHING")

    @pytest.mark.parametrize(
        "url",
        [
            f"redis://:{SECRET}@h/x",
            f"redis://:{SECRET}@h:port",
            f"redis://:{SECRET}#{SECRET}@h",
            f"redis://:{SECRET}/{SECRET}@h",
            f"redis://:{SECRET}?{SECRET}@h",
            f"redis://:{SECRET}?{SECRET}=1&{SECRET}@h",
            f"redis://:{SECRET}[{SECRET}@h/x",
            f"redis://:{SECRET}%{SECRET}@h",
            f"redis://:{SECRET}%ff@h",
            f"redis://h?password={SECRET}&db=x",
            f"redis://h?password={SECRET}%ff",
            f"redis+sentinel://u:{SECRET}@h",
            f"redis+sentinel://h/s?sentinel_password={SECRET}&x=1",
            f"rediss://:{SECRET}@h?ssl_ca_certs=/no/such/file",
            f"rediss://h?ssl_password={SECRET}&ssl_ca_certs=/no/such/file",
            f"h:{SECRET}@x",
        ],
    )
    def test_no_password_is_shown(self, url: str) -> None:
        """Not in the message, and not in an error that it would be chained to."""
        with pytest.raises(SettingsError) as caught:
            client_from_url(url)
        assert SECRET not in str(caught.value)
        assert SECRET not in caught.value.allowed
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
