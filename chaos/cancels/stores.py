"""The backends whose calls are cancelled, and what each of them must not leave behind."""

import itertools
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import fakeredis
import redis

from statemgr import StateManagerDisk, StateManagerMemory, StateManagerRedis
from statemgr.backends.redis.keys import Keys
from statemgr.manager import StateManager
from statemgr.testing.servers import Server

_LONG = 1000.0  # seconds: a lock_warning_threshold that no body reaches
HOLD_TIME = 0.5  # seconds of an oplock
_DEBOUNCE = 0.02  # seconds

# What a manager runs for as long as it is open, by coroutine, and how many of it at most.
_STANDING = {
    "StateManagerExpiration._expire_tokens": 1,
    "StateManagerDisk._scan_again_and_again": 1,
    "ExclusiveStateManagerDisk._write_until_done": 1,
    "Inbox._listen": 1,
    "Wire._read": 2,  # fakeredis: of the link and of the inbox
}


class Store(ABC):
    """A place for states, empty at first, on which managers are opened.

    Attributes:
        shared: Whether several managers may use it at the same time.
        durable: Whether a manager finds what one before it has left.
        rolls_back: Whether a body that is cancelled leaves nothing.
        kind: The managers' class.
    """

    shared: ClassVar[bool] = True
    durable: ClassVar[bool] = True
    rolls_back = True
    kind: Any

    @abstractmethod
    def make(self) -> StateManager:
        """Return a new manager."""

    def leftovers(self) -> str:
        """Say what is there that should not be; nothing of it is there for long."""
        return ""

    def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Remove it."""


def standing(tasks: "Sequence[Any]", managers: int) -> bool:
    """Tell whether all of these tasks are those that so many open managers need."""
    found = Counter(task.get_coro().__qualname__ for task in tasks)
    return all(count <= managers * _STANDING.get(name, 0) for name, count in found.items())


class MemoryStore(Store):
    """None: states are a manager's own."""

    shared = False
    durable = False
    kind: Any = StateManagerMemory

    def __init__(self, *, rollback: bool = True) -> None:
        self.rolls_back = rollback

    def make(self) -> StateManager:
        manager: StateManager = self.kind(rollback=self.rolls_back, lock_warning_threshold=_LONG)
        return manager


class DiskStore(Store):
    """A directory."""

    kind: Any = StateManagerDisk

    def __init__(self, **mode: Any) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="statemgr-cancels-"))
        self._mode = mode

    def make(self) -> StateManager:
        manager: StateManager = self.kind(
            self.directory / "store", lock_warning_threshold=_LONG, **self._mode
        )
        return manager

    def leftovers(self) -> str:
        # A record and the file that is written next; nothing else (files.py).
        names = [path.name for path in (self.directory / "store/states").iterdir()]
        odd = [name for name in names if not re.fullmatch(r"[0-9a-f-]{65}(\.[01])?", name)]
        files = Counter(name[:65] for name in names)
        odd += [name for name, count in files.items() if count > 2]
        odd += [path.name for path in (self.directory / "store/quarantine").glob("*")]
        return f"files {odd}" if odd else ""

    def close(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


class ExclusiveStore(DiskStore):
    """A directory for one manager."""

    shared = False


class RedisStore(Store):
    """A prefix on a server.

    Args:
        client: Makes what a manager is given.
        raw: Looks at the keys.
        mode: Options of the managers.
    """

    kind: Any = StateManagerRedis
    _numbers = itertools.count()

    def __init__(self, client: Callable[[], Any], raw: Any, **mode: Any) -> None:
        self._client = client
        self._raw = raw
        self._prefix = f"cancels-{next(self._numbers)}"
        self._mode = mode
        self._keeps = mode.get("oplock", "off") != "off"

    def make(self) -> StateManager:
        manager: StateManager = self.kind(
            self._client(), key_prefix=self._prefix, lock_warning_threshold=_LONG, **self._mode
        )
        return manager

    def leftovers(self) -> str:
        left = []
        for key in self._raw.scan_iter(match=Keys(self._prefix).pattern("")):
            lock = self._raw.hget(key, "lock") or b""
            owner, *rest = lock.split(b" ")
            waiting = [part for part in rest[6:] if part]
            if waiting or (owner and not self._keeps):
                left.append(f"{key.decode()}: lock {lock.decode()!r}")
        return ", ".join(left)

    def close(self) -> None:
        for key in self._raw.scan_iter(match=f"{self._prefix}:*"):
            self._raw.delete(key)


class Stores:
    """Make empty stores of any backend; close them, and the server, at the end."""

    def __init__(self) -> None:
        self._server: Server | None = None
        self._raw: Any = None
        self._makers: dict[str, Callable[[], Store]] = {
            "memory": MemoryStore,
            "memory no rollback": lambda: MemoryStore(rollback=False),
            "disk": DiskStore,
            "disk fsync": lambda: DiskStore(fsync=True),
            "disk exclusive": lambda: ExclusiveStore(exclusive=True),
            "disk debounce": lambda: ExclusiveStore(exclusive=True, debounce=_DEBOUNCE),
            "redis": self._on_server,
            "redis through": lambda: self._on_server(oplock="through"),
            "redis behind": lambda: self._on_server(oplock="behind"),
            "fakeredis": self._fake,
        }
        self._made: list[Store] = []

    @property
    def names(self) -> list[str]:
        """The backends."""
        return list(self._makers)

    def make(self, name: str) -> Store:
        """Return an empty store."""
        store = self._makers[name]()
        self._made.append(store)
        return store

    def _on_server(self, **mode: Any) -> Store:
        if self._server is None:
            self._server = Server()
            self._server.start()
            self._raw = redis.Redis.from_url(self._server.url)
        if mode:
            mode["oplock_hold_time"] = HOLD_TIME
        url = self._server.url
        return RedisStore(lambda: url, self._raw, **mode)

    def _fake(self) -> Store:
        server = fakeredis.FakeServer()
        raw = fakeredis.FakeRedis(server=server)
        return RedisStore(lambda: fakeredis.FakeAsyncRedis(server=server), raw)

    def close(self) -> None:
        """Remove all stores, and end the server."""
        for store in self._made:
            store.close()
        if self._server is not None:
            self._raw.close()
            self._server.close()
