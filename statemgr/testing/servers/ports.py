"""Ports for servers."""

import secrets
import socket

BUS = 10_000  # a cluster's nodes talk to each other on their port plus this

# Below the ports that systems give to outgoing connections, with BUS added too. Else a client
# could take the port of a server that is about to restart, or, while it tries to reconnect,
# even be given that port itself: TCP then connects it with itself, and it stays taken.
_PORTS = range(11_000, 22_000)


def free_port(*, bus: bool) -> int:
    """Return a port that nobody has now: by the time it is used, somebody may.

    Args:
        bus: Whether the port of a cluster's bus has to be free, too.
    """
    while True:
        port = secrets.choice(_PORTS)
        if _is_free(port) and (not bus or _is_free(port + BUS)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
