"""Servers for the tests of this directory."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Generic, TypeVar

import pytest

from statemgr.testing.servers import (
    DEFAULT,
    SERVERS,
    ClusterSetup,
    SentinelSetup,
    Server,
    find_server,
)

Setup = TypeVar("Setup", SentinelSetup, ClusterSetup)


def named_server(name: str) -> str:
    """Return the name of a server; skip the test if it is not installed."""
    if find_server(name) is None:
        pytest.skip(f"the server {name} is not installed")  # in CI that fails: tests/conftest.py
    return name


# What packages bring has to be there, in CI. What the machine has is used if it has it.
NAMES = [name for name in SERVERS if name != "path" or find_server(name) is not None]


@pytest.fixture(scope="session", params=NAMES)
def any_name(request: pytest.FixtureRequest) -> str:
    """Name each server, for a test that starts its own."""
    return named_server(request.param)


@pytest.fixture(scope="session")
def any_server(any_name: str) -> Iterator[Server]:
    """Run each server; all tests share it, and leave it running."""
    with Server(any_name) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """Run the newest server; all tests share it, and leave it running."""
    with Server(named_server(DEFAULT)) as server:
        yield server


class Kept(Generic[Setup]):
    """A set-up that takes seconds to start: kept for the next test while it is as it was."""

    def __init__(self, make: Callable[[], Setup]) -> None:
        self._make = make
        self._setup: Setup | None = None
        self._open = ExitStack()

    def whole(self) -> Setup:
        """Return one that is as at its start, and empty."""
        if self._setup is None or not self._setup.is_whole():
            self.close()
            self._setup = self._open.enter_context(self._make())
        self._setup.flush()
        return self._setup

    def close(self) -> None:
        self._setup = None
        self._open.close()


@pytest.fixture(scope="session")
def kept_sentinels() -> Iterator[Kept[SentinelSetup]]:
    kept = Kept(lambda: SentinelSetup(named_server(DEFAULT)))
    yield kept
    kept.close()


@pytest.fixture(scope="session")
def kept_cluster() -> Iterator[Kept[ClusterSetup]]:
    kept = Kept(lambda: ClusterSetup(named_server(DEFAULT)))
    yield kept
    kept.close()


@pytest.fixture
def sentinel_setup(kept_sentinels: Kept[SentinelSetup]) -> SentinelSetup:
    """Run a primary, replicas and sentinels, empty and whole. The test may break them."""
    return kept_sentinels.whole()


@pytest.fixture
def cluster_setup(kept_cluster: Kept[ClusterSetup]) -> ClusterSetup:
    """Run a cluster, empty and whole. The test may break it."""
    return kept_cluster.whole()


@pytest.fixture
def closed_ports() -> Iterator[list[int]]:
    """Return ports where nobody listens, and nobody else can while the test runs."""
    with ExitStack() as open_sockets:
        ports = []
        for _ in range(2):
            bound = open_sockets.enter_context(socket.socket())
            bound.bind(("127.0.0.1", 0))
            ports.append(bound.getsockname()[1])
        yield ports
