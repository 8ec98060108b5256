"""`Outage`: that a server cannot be reached, and why, for messages, errors and the log."""

import logging
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final

import redis.exceptions

from statemgr.errors import BackendUnavailableError

logger = logging.getLogger("statemgr")

# asyncio tries each address of a name; if they fail differently, it tells it in a text only.
_find_numbers: Final = re.compile(r"\[Errno (\d+)\]").findall


class Outage:
    """What is wrong with a server, while something is.

    It is logged once when it begins, whatever fails then, and once when it is over.

    Args:
        where: Returns where the server is, as messages show it; "" if that is not known.
        timeout: Seconds for which a reply is waited for while a connection is made.
        what: What there is at that address.

    Attributes:
        error: Why the last try has failed; None if nothing is wrong, as far as is known.
        message: The same, for an error.
    """

    __slots__ = ("_timeout", "_what", "_where", "error", "message")

    def __init__(self, where: Callable[[], str], timeout: float, what: str = "the server") -> None:
        self._where = where
        self._timeout = timeout
        self._what = what
        self.error: Exception | None = None
        self.message = ""

    @property
    def server(self) -> str:
        """What messages call it."""
        address = self._where()
        return f"{self._what} at {address}" if address else self._what

    def begin(self, problem: str, error: Exception) -> None:
        """Take note of a try that has failed."""
        self.message = f"{self.server} {problem}: {reason_of(error, self._timeout)}"
        if self.error is None:
            logger.warning("%s", self.message)
        self.error = error

    def end(self) -> None:
        """Take note that nothing is wrong."""
        if self.error is not None:
            self.error = None
            logger.info("%s is reached again", self.server)

    def unavailable(
        self, message: str | None = None, cause: Exception | None = None
    ) -> BackendUnavailableError:
        """Return the error of a call. Without arguments, of one that fails by the outage.

        Args:
            message: What it says.
            cause: What it is chained to.
        """
        if message is None:
            message, cause = self.message, self.error
        reason = None if cause is None else reason_of(cause, self._timeout)
        error = BackendUnavailableError(message, address=self._where() or None, reason=reason)
        error.__cause__ = cause
        return error


def reason_of(error: Exception, timeout: float) -> str:
    """Return in a few words why there is no connection, or no reply.

    Args:
        error: Of a dial, or of a connection. It quotes no arguments of a command.
        timeout: Seconds for which the reply was waited for, if it did not come.
    """
    if isinstance(error, redis.exceptions.TimeoutError):
        is_reading = "reading" in str(error)
        return f"no reply within {timeout:g} s" if is_reading else "no connection in time"
    below = error.__cause__ or error.__context__
    if isinstance(error, redis.exceptions.RedisClusterException) and isinstance(below, Exception):
        return reason_of(below, timeout)  # of the last node that was asked
    if type(error) is redis.exceptions.ConnectionError and isinstance(below, OSError):
        error = below  # redis-py's text has the address once more
    if isinstance(error, socket.gaierror):
        return str(error.strerror).lower()
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        numbers = [error.errno] if error.errno else map(int, _find_numbers(str(error)))
        if known := list(dict.fromkeys(os.strerror(number).lower() for number in numbers)):
            return " and ".join(known)
    if isinstance(error, TimeoutError):
        return str(error) or "no connection in time"
    return str(error).rstrip(".") or type(error).__name__


def address_of(connection: Mapping[str, Any]) -> str:
    """Return where a connection goes that is made with these arguments of redis-py's."""
    path = connection.get("path")
    if path is not None:
        return str(path)
    return host_and_port(connection.get("host", "localhost"), connection.get("port", 6379))


def host_and_port(host: object, port: object) -> str:
    """Return an address as a URL has it."""
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
