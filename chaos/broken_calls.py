"""Calls of the system that fail when they are told to, in a process that uses the disk backend.

All fail but one: a lock that the kernel does not let go stays with its manager until that is
closed, as statemgr/backends/disk/locks.py says, and nobody else could have it meanwhile.
"""

import errno
import fcntl
import os
import threading
import time
from typing import Any

from statemgr.backends.disk import files, locks, trips

_CALLS = frozenset(
    {
        *("close", "fchmod", "fcntl", "flock", "fstat", "fsync", "link", "lstat", "open", "pipe"),
        *("read", "replace", "scandir", "stat", "unlink", "utime", "write"),
    }
)
_NEED_SPACE = frozenset({"link", "open", "replace", "write"})
_UNLOCK = fcntl.F_UNLCK.to_bytes(2, "little")  # how the argument of fcntl(2) begins then


class BrokenCalls:
    """Let calls fail that the disk backend makes in its threads."""

    def __init__(self) -> None:
        self._left = 0
        self._full_until = 0.0
        self._lock = threading.Lock()

    def install(self) -> None:
        """Put itself between the disk backend and the system."""
        for module in (files, locks, trips):
            vars(module)["os"] = _Module(os, self)
        vars(locks)["fcntl"] = _Module(fcntl, self)

    def fail_once(self, number: int) -> None:
        """Let the call of this number fail with EIO, counted from 1."""
        self._left = number

    def fill(self, seconds: float) -> None:
        """Let all calls that need space fail with ENOSPC for some time."""
        self._full_until = time.monotonic() + seconds

    def call(self, name: str, function: Any, *args: Any, **options: Any) -> Any:
        """Make a call, or fail."""
        number = self._error(name, args)
        if number is None:
            return function(*args, **options)
        if name == "close":
            function(*args)  # as Linux does: the descriptor is gone in any case
        if name == "write":
            function(args[0], args[1][: len(args[1]) // 2])
        raise OSError(number, os.strerror(number))

    def _error(self, name: str, args: tuple[Any, ...]) -> int | None:
        if not self._left and not self._full_until:
            return None
        if not threading.current_thread().name.startswith("statemgr-disk"):
            return None
        if name == "fcntl" and args[2][:2] == _UNLOCK:
            return None
        if self._left:
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    return errno.EIO
        if self._full_until and name in _NEED_SPACE:
            if time.monotonic() > self._full_until:
                self._full_until = 0.0
            elif name != "open" or args[1] & os.O_CREAT:
                return errno.ENOSPC
        return None


class _Module:
    """Stand for a module of the system's calls."""

    def __init__(self, module: Any, calls: BrokenCalls) -> None:
        self._module = module
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if name not in _CALLS:
            return found
        return lambda *args, **options: self._calls.call(name, found, *args, **options)
