"""Servers that all tests of a run share: started when first asked for, gone with the run."""

import atexit
from functools import cache

from statemgr.testing.servers import ClusterSetup, Server


@cache
def server_url(name: str) -> str:
    """Return the URL of a server of this version."""
    server = Server(name)
    server.__enter__()
    atexit.register(server.__exit__, None, None, None)
    return server.url


@cache
def cluster_url() -> str:
    """Return the URL of a Cluster of three primaries."""
    cluster = ClusterSetup()
    cluster.__enter__()
    atexit.register(cluster.__exit__, None, None, None)
    return cluster.url
