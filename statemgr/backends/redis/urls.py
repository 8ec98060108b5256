"""A client of redis-py for the URL in a setting: one server, sentinels or a cluster.

========================================  ====================================================
`redis://[user:password@]host:port/db`    One server; all parts may be left out, as in redis-py.
`unix://[user:password@]/path?db=0`       One server, over its socket.
`redis+sentinel://host,host/service/db`   The primary that sentinels name; `/db` may be left out.
`redis+cluster://host,host`               A cluster, found through any of these nodes.
========================================  ====================================================

`rediss`, with two s, makes TLS of all connections. A port that is left out is 6379, that of a
sentinel 26379. An IPv6 address stands in brackets. Users, passwords, the service, the path and
options may be percent-encoded, and have to be where they hold one of `/?#[]@:%`.

After a question mark come options of redis-py, such as `socket_timeout=2&client_name=web`. A
timeout of redis-py's own would be None in some versions, which is for ever: here both are 5
seconds unless the URL says otherwise. redis-py takes most misspelt URLs as they are and fails at
the first command, or, worse, connects somewhere else: here they are refused before anything is
connected.

`user:password@` is for the servers with the data. redis-py gives a sentinel no credentials
unless told: `sentinel_username` and `sentinel_password` in the options tell.
"""

import asyncio
import inspect
import re
import ssl
from collections.abc import Callable
from ipaddress import IPv6Address
from math import isfinite
from typing import Any, NamedTuple
from urllib.parse import unquote, unquote_plus

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import (
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from statemgr.options import OPTIONS, refused, variable_of

TIMEOUT = 5.0  # seconds, for connecting, and for each answer

_PORT = 6379
_SENTINEL_PORT = 26379

_split_host = re.compile(r"(\[[^\[\]]+\]|[^\[\]:@]*)(?::([0-9]{0,5}))?").fullmatch
_has_bad_escape = re.compile(r"%(?![0-9A-Fa-f]{2})").search


class _Refusal(Exception):  # noqa: N818  # it never leaves this module
    """What is allowed, where a URL has something else. Quotes nothing from the URL."""


class _Parts(NamedTuple):
    """A URL after its scheme, with nothing decoded yet."""

    credentials: str
    hosts: str
    path: str
    query: str


def client_from_url(url: str) -> Redis | RedisCluster:
    """Make a client. Nothing is connected yet.

    It never retries, and gives bytes.

    Args:
        url: Where to connect, as described at the head of this module.

    Raises:
        SettingsError: If the URL is malformed, has an option that is not known, or names files
            for TLS that cannot be used. It shows no password.
    """
    try:
        return _make(url)
    except _Refusal as refusal:
        allowed = str(refusal)
    # Not in the handler: what it would be chained to may show parts of the URL.
    raise refused(variable_of("redis_url"), OPTIONS["redis_url"].show(url), allowed)


def _make(url: str) -> Redis | RedisCluster:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in _KINDS:
        raise _Refusal("a URL that begins with " + " or ".join(f"{kind}://" for kind in _KINDS))
    if not url.isprintable() or " " in url:
        raise _Refusal("no spaces and control characters: a space is written %20")
    if _has_bad_escape(rest):
        raise _Refusal("two hexadecimal digits after each %: one in a password is written %25")
    if "#" in rest:
        raise _Refusal("no #: one in a password is written %23")
    location, _, query = rest.partition("?")
    authority, slash, path = location.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    maker, is_tls = _KINDS[scheme.lower()]
    return maker(_Parts(credentials, hosts, slash + path, query), is_tls)


def _single(parts: _Parts, is_tls: bool) -> Redis:
    if "," in parts.hosts:
        raise _Refusal("one host: several are for redis+sentinel:// and redis+cluster://")
    host, port = _host(parts.hosts, _PORT, default="localhost")
    kind = SSLConnection if is_tls else Connection
    accepted = _accepted(kind, ConnectionPool)
    arguments = _arguments(parts, accepted, parts.path.removeprefix("/"))
    return _pooled(kind, {**arguments, "host": host, "port": port})


def _unix(parts: _Parts, _: bool) -> Redis:
    if len(parts.path) < 2 or parts.hosts:
        raise _Refusal("a path that begins with a slash, as in unix:///run/redis.sock")
    kind = UnixDomainSocketConnection
    arguments = _arguments(parts, _accepted(kind, ConnectionPool))
    del arguments["socket_keepalive"]  # there is none
    return _pooled(kind, {**arguments, "path": _text(parts.path)})


def _pooled(kind: type[Any], arguments: dict[str, Any]) -> Redis:
    pool = ConnectionPool(connection_class=kind, **arguments)
    _check_tls(pool)
    return Redis.from_pool(pool)


def _sentinel(parts: _Parts, is_tls: bool) -> Redis:
    service, _, database = parts.path.removeprefix("/").partition("/")
    if not service or "@" in service:
        raise _Refusal("a service after the hosts, as in redis+sentinel://h1,h2/name, @ as %40")
    hosts = _hosts(parts.hosts, _SENTINEL_PORT)
    accepted = _accepted(SSLConnection if is_tls else Connection, ConnectionPool)
    arguments = _arguments(parts, accepted | _FOR_SENTINELS.keys(), database)
    # What is said of sockets and TLS holds for both kinds of server. redis-py hands on the
    # sockets' options, and only unless `sentinel_kwargs` is given.
    for_sentinels = {
        name: value
        for name, value in arguments.items()
        if name.startswith(("socket_", "ssl_")) or name in ("retry", "protocol")
    }
    for name, of_connection in _FOR_SENTINELS.items():
        if name in arguments:
            for_sentinels[of_connection] = arguments.pop(name)
    known = inspect.signature(Redis).parameters  # in 6.4 fewer than its connections know
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # nor has redis-py any types there
        hosts,
        sentinel_kwargs={n: v for n, v in for_sentinels.items() if n in known} | {"ssl": is_tls},
        ssl=is_tls,
        **arguments,
    )
    client: Redis = sentinel.master_for(_text(service), connection_pool_class=_SentinelPool)
    _check_tls(client.connection_pool)
    return client


class _SentinelPool(SentinelConnectionPool):
    """A pool that closes the connections to the sentinels as well; redis-py leaves them open."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections, those to the sentinels too where all are meant."""
        try:
            await super().disconnect(inuse_connections)
        finally:
            if inuse_connections:
                await asyncio.gather(*(asked.aclose() for asked in self.sentinel_manager.sentinels))


def _cluster(parts: _Parts, is_tls: bool) -> RedisCluster:
    if parts.path not in ("", "/", "/0"):
        raise _Refusal("nothing after the hosts: a cluster has only database 0")
    nodes = [ClusterNode(host, port) for host, port in _hosts(parts.hosts, _PORT)]
    accepted = _accepted(RedisCluster) - {"db"}
    if not is_tls:  # redis-py would drop them
        accepted = {name for name in accepted if not name.startswith("ssl_")}
    arguments = _arguments(parts, accepted)
    client = RedisCluster(startup_nodes=nodes, ssl=is_tls, **arguments)
    _check_tls(next(iter(client.nodes_manager.startup_nodes.values())))
    return client


_KINDS: dict[str, tuple[Callable[[_Parts, bool], Redis | RedisCluster], bool]] = {
    "redis": (_single, False),
    "rediss": (_single, True),
    "unix": (_unix, False),
    "redis+sentinel": (_sentinel, False),
    "rediss+sentinel": (_sentinel, True),
    "redis+cluster": (_cluster, False),
    "rediss+cluster": (_cluster, True),
}


def _check_tls(connections: Any) -> None:
    """Load what TLS needs, which redis-py does anew for each connection that it makes."""
    connection = connections.connection_class(**connections.connection_kwargs)
    if isinstance(connection, SSLConnection):
        try:
            connection.ssl_context.get()
        except (OSError, TypeError, ValueError):
            raise _Refusal("files and ciphers that can be loaded in the ssl_ options") from None


def _hosts(text: str, default_port: int) -> list[tuple[str, int]]:
    return [_host(item, default_port) for item in text.split(",")]


def _host(text: str, default_port: int, default: str = "") -> tuple[str, int]:
    match = _split_host(text)
    if match is None or not (match[1] or default):
        raise _Refusal("host or host:port after the //, an IPv6 address in brackets")
    port = int(match[2] or default_port)
    if not 0 < port < 2**16:
        raise _Refusal("a port from 1 to 65535")
    if not match[1].startswith("["):
        return _text(match[1] or default), port
    try:
        return str(IPv6Address(unquote(match[1][1:-1]))), port
    except ValueError:
        raise _Refusal("an IPv6 address in the brackets") from None


def _arguments(parts: _Parts, accepted: set[str], database: str = "") -> dict[str, Any]:
    """Return the arguments of connections. As in redis-py, the later ones here win."""
    return {
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": TIMEOUT,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
        **_database(database),
        **_query(parts.query, accepted),
        **_credentials(parts.credentials),
        "decode_responses": False,
    }


def _database(text: str) -> dict[str, int]:
    text = text.removesuffix("/")
    if not text:
        return {}
    try:
        return {"db": _number(text)}
    except ValueError:
        raise _Refusal("the number of a database at the end, or nothing") from None


def _credentials(text: str) -> dict[str, str]:
    user, _, password = text.partition(":")
    try:
        given = {"username": user, "password": password}
        return {name: unquote(value, errors="strict") for name, value in given.items() if value}
    except UnicodeDecodeError:
        raise _Refusal("UTF-8 in what is percent-encoded") from None


def _query(text: str, accepted: set[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in text.split("&") if text else ():
        name, _, value = item.partition("=")
        # NOTE: names are not quoted in the error: what looks like one may be of a password.
        if name not in accepted:
            raise _Refusal("no options after the ? but " + ", ".join(sorted(accepted)))
        if name in values:
            raise _Refusal(f"{name} once")
        allowed, parse = _OPTIONS[name]
        try:
            values[name] = parse(unquote_plus(value, errors="strict"))
        except (KeyError, ValueError):
            raise _Refusal(f"{name} as {allowed}") from None
    return values


def _accepted(*kinds: type[Any]) -> set[str]:
    """Return the options that the installed redis-py takes for these classes."""
    inits = [
        vars(base)["__init__"]
        for kind in kinds
        for base in kind.__mro__[:-1]
        if "__init__" in vars(base)
    ]
    known = {name for init in inits for name in inspect.signature(init).parameters}
    return known & _OPTIONS.keys()


def _text(text: str) -> str:
    try:
        return _printable(unquote(text, errors="strict"))
    except ValueError:
        raise _Refusal("printable characters of UTF-8 in what is percent-encoded") from None


def _printable(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError
    return text


def _secret(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _word(text: str) -> str:
    # Redis refuses other names, at the first connection.
    if not text or not all("!" <= character <= "~" for character in text):
        raise ValueError
    return text


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (isfinite(seconds) and seconds > 0):
        raise ValueError
    return seconds


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError
    return int(text)


def _above_0(text: str) -> int:
    if not (number := _number(text)):
        raise ValueError
    return number


def _flags(text: str) -> list[ssl.VerifyFlags]:
    return [ssl.VerifyFlags[name.strip()] for name in text.strip("[]").split(",")]


# redis-py takes any text but these of the negative ones for true, off too.
_SWITCH = dict.fromkeys(("1", "t", "true", "y", "yes"), True) | dict.fromkeys(
    ("0", "f", "false", "n", "no"), False
)

_Option = tuple[str, Callable[[str], Any]]

_TEXT: _Option = "a text, not empty, of printable characters", _printable
_SECRET: _Option = "a text, not empty", _secret
_SECONDS: _Option = "a number of seconds above 0", _seconds
_COUNT: _Option = "a whole number above 0", _above_0
_BOOL: _Option = "true or false", lambda text: _SWITCH[text.lower()]
_FLAGS: _Option = "names of ssl.VerifyFlags, separated by commas", _flags

# What may stand in a URL: what is allowed, and how it is read. Left out are arguments that no
# text can say, and those on what replies look like and on retrying, which the backend decides.
_OPTIONS: dict[str, _Option] = {
    "db": ("the number of a database", _number),
    "username": _TEXT,
    "password": _SECRET,
    "client_name": ("printable ASCII without spaces", _word),
    "protocol": ("2 or 3", lambda text: {"2": 2, "3": 3}[text]),
    "max_connections": _COUNT,
    "health_check_interval": ("a whole number of seconds, or 0", _number),
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
    "socket_read_size": _COUNT,
    "socket_keepalive": _BOOL,
    "ssl_keyfile": _TEXT,
    "ssl_certfile": _TEXT,
    "ssl_password": _SECRET,
    "ssl_cert_reqs": (
        "none, optional or required",
        lambda text: {name: name for name in ("none", "optional", "required")}[text],
    ),
    "ssl_include_verify_flags": _FLAGS,
    "ssl_exclude_verify_flags": _FLAGS,
    "ssl_ca_certs": _TEXT,
    "ssl_ca_data": _SECRET,
    "ssl_ca_path": _TEXT,
    "ssl_check_hostname": _BOOL,
    "ssl_min_version": ("a number of ssl.TLSVersion", lambda text: ssl.TLSVersion(_number(text))),
    "ssl_ciphers": _TEXT,
    "sentinel_username": _TEXT,
    "sentinel_password": _SECRET,
}

_FOR_SENTINELS = {"sentinel_username": "username", "sentinel_password": "password"}
