"""Real servers for tests and benchmarks: a single one, one with sentinels, and a cluster.

They are programs that Python packages bring, which are looked for when they are needed and never
imported. All listen on the loopback interface only, and end with the process that started them.

    with Server("valkey-9.1", maxmemory="10mb") as server:
        ... server.url
"""

from statemgr.testing.servers.binaries import DEFAULT, SERVERS, available, find_server
from statemgr.testing.servers.cluster import ClusterSetup, SlotMigration
from statemgr.testing.servers.sentinel import SentinelSetup
from statemgr.testing.servers.server import Server, ServerStartError, wait_until

__all__ = [
    "DEFAULT",
    "SERVERS",
    "ClusterSetup",
    "SentinelSetup",
    "Server",
    "ServerStartError",
    "SlotMigration",
    "available",
    "find_server",
    "wait_until",
]
