"""Calls of the system that fail when they are told to, and a look at the disk behind our back."""

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest

from statemgr import StateManagerDisk
from statemgr.backends.disk import files, locks, trips
from statemgr.backends.disk.files import ident_of, state_name
from statemgr.record import RecordCodec
from statemgr.token import AnyToken

CHANGING = frozenset({"link", "open", "replace", "unlink", "utime", "write"})
CALLS = CHANGING | {"close", "fchmod", "fcntl", "flock", "fstat", "fsync", "lstat", "pipe"}
CALLS |= {"read", "scandir", "stat"}
FILLING = frozenset({"link", "open", "write"})
_ERRNO_OF = {"link": errno.ENOSPC, "open": errno.EMFILE, "write": errno.ENOSPC}


class Faults:
    """Let one of the calls fail that the disk backend makes, or all from one of them on.

    Attributes:
        made: How many calls that could have failed were made since `arm`.
        failed: The names of those that failed since `arm`.
        total: The names of all that ever failed, counted.
    """

    def __init__(self) -> None:
        self.made = 0
        self.failed: list[str] = []
        self.total: Counter[str] = Counter()
        self._first: float = 0
        self._last: float = 0
        self._names: Collection[str] = ()
        self._errno: int | None = None
        self._anywhere = False
        self._lock = threading.Lock()

    def arm(
        self,
        number: int,
        *,
        names: Collection[str] = CALLS,
        lasting: bool = False,
        number_of_error: int | None = None,
        anywhere: bool = False,
    ) -> None:
        """Let the call of this number fail, counted from 1.

        Args:
            number: The number.
            names: Which calls count. An `open` for reading is not among those that change.
            lasting: Whether all later ones fail too.
            number_of_error: The `errno`; None for one that fits the call.
            anywhere: Whether calls count that are not made by a manager's threads.
        """
        self._first, self._last = number, float("inf") if lasting else number
        self._names, self._errno, self._anywhere = names, number_of_error, anywhere
        self.made, self.failed = 0, []

    def disarm(self) -> bool:
        """Let all calls work; return whether one has failed."""
        self._names = ()
        return bool(self.failed)

    def call(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if not self._fails(name, args):
            # Nothing here can tell whether the real one was called, and it takes milliseconds.
            return None if name == "fsync" else function(*args, **options)
        if name == "close":
            function(*args)  # as Linux does: the descriptor is gone in any case
        if name == "write":
            function(args[0], args[1][: len(args[1]) // 2])
        number = _ERRNO_OF.get(name, errno.EIO) if self._errno is None else self._errno
        raise OSError(number, os.strerror(number))

    def _fails(self, name: str, args: tuple[Any, ...]) -> bool:
        if name not in self._names:
            return False
        if not self._anywhere and not threading.current_thread().name.startswith("statemgr-disk"):
            return False
        if name == "open" and self._names is not CALLS and not args[1] & (os.O_WRONLY | os.O_CREAT):
            return False
        with self._lock:  # syncs are asked for by several threads
            self.made += 1
            if not self._first <= self.made <= self._last:
                return False
            self.failed.append(name)
            self.total[name] += 1
            return True


class _Calls:
    """Stand for a module of the system's calls."""

    def __init__(self, module: Any, faults: Faults) -> None:
        self._module = module
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if name not in CALLS:
            return found
        return lambda *args, **options: self._faults.call(name, found, *args, **options)


def faulty_calls(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Put faults between the disk backend and the system."""
    faults = Faults()
    for module in (files, locks, trips):
        monkeypatch.setattr(module, "os", _Calls(os, faults))
    monkeypatch.setattr(locks, "fcntl", _Calls(locks.fcntl, faults))
    return faults


@contextmanager
def unsynced(manager: StateManagerDisk) -> Iterator[None]:
    """Let names that are changed meanwhile not come to stable storage; what is in files does."""
    names = cast("Any", manager)._files._descriptor

    def sync(descriptor: int) -> OSError | None:
        return OSError(errno.EIO, "input/output error") if descriptor == names else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trips, "_sync_one", sync)
        yield


def stored(directory: Path, token: AnyToken) -> Any:
    """Return what a program that starts now would find of a token; None without a record."""
    name = state_name(token.cache_key)
    together = directory / "states" / f"{ident_of(name)}.commit"
    records = {}
    if together.exists():
        records = {name: data for name, data, _ in msgpack.unpackb(together.read_bytes()[16:])}
    path = directory / "states" / name
    if name not in records and not path.exists():
        return None
    data = records.get(name) or path.read_bytes()
    record = RecordCodec().unpack(data[: RecordCodec.size_of(data)], token.cache_key)
    return token.deserialize(record.payload)


def descriptors() -> int:
    """Return how many files this process has open."""
    return len(list(Path("/dev/fd").iterdir()))
