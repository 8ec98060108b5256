"""Locks between processes, which the kernel lets go when their holder dies.

`IdentLocks` gives each ident two locks. Who finds the lock taken keeps the gate until it gets
in, and everybody goes through the gate: the process that lets the lock go cannot take it again
before the one that waits.

    process A   frees the lock
    process A   its next task asks: the gate is B's, so it waits
    process B   looks again, gets the lock, opens the gate

A body's lock has a second part, by which it is told from that of a reader or a purge, which hold
the first part for as long as it takes to remove an expired record.

Neither call waits. A lock that is taken is asked for again later, by the loop's clock and not by
a thread that sits in the kernel, where no cancel and no timeout would reach it.

On Linux, an open file description locks one byte of one file for each ident (fcntl(2),
F_OFD_SETLK): nothing is made and nothing is left. POSIX record locks would not do: they are the
process's, and closing any descriptor of the file lets all of them go. Elsewhere each lock is a
file of its own, locked by flock(2) and unlinked by who lets it go.
"""

import contextlib
import errno
import logging
import os
import struct
import sys
import weakref
from abc import ABC, abstractmethod
from pathlib import Path

from statemgr.errors import SettingsError, StateDirectoryInUseError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("statemgr")

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_SLOT_SIZE = 15  # hexadecimal digits of an ident's digest: with the gate's bit, an offset

# struct flock of Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("@hhqqi0q")


class DirectoryClaim:
    """Say that this program uses a directory, beside others or alone.

    Args:
        path: The file that stands for the directory.
        exclusive: Whether nobody else may use it.

    Raises:
        StateDirectoryInUseError: If somebody else uses it, and one of the two wants it alone.
        OSError: If the file cannot be opened or locked.
    """

    def __init__(self, path: Path, *, exclusive: bool) -> None:
        self._descriptor = -1
        self._descriptor = _open_lock_file(path)
        _inherited.add(self)
        if fcntl is None:  # then only exclusive managers are made, and this cannot be checked
            return
        try:
            fcntl.flock(
                self._descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
            )
        except BlockingIOError:
            self.close()
            raise StateDirectoryInUseError(
                f"{path.parent} is used by another StateManagerDisk, and "
                + ("this" if exclusive else "that")
                + " one claims it alone by STATEMGR_DISK_EXCLUSIVE (exclusive=True): give each a "
                "directory of its own, or turn that off",
                directory=str(path.parent),
            ) from None
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let the directory go."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class IdentLocks(ABC):
    """Lock idents of one directory against other processes, and other managers here.

    Not for several threads at once. An owner may be any object; one owner has one ident.
    """

    def __init__(self) -> None:
        # By slot, who has the lock or wants it, and which parts of it he has.
        self._owners: dict[str, object] = {}
        self._parts: dict[str, range] = {}
        _inherited.add(self)

    def take(self, ident: str, owner: object) -> bool:
        """Take a lock if it is free, and nobody waits for it who came before.

        Returns:
            Whether it was taken. If not, the owner has the first place among those who wait,
            unless another one had; it keeps that until it asks again or calls `free`.
        """
        slot = ident[:_SLOT_SIZE]
        if self._owners.setdefault(slot, owner) is not owner:
            return False
        try:
            return self._take(slot)
        finally:
            if slot not in self._parts:
                del self._owners[slot]

    def _take(self, slot: str) -> bool:
        if slot not in self._parts:
            if self._try_lock(slot, _GATE_AND_ALL):
                self._parts[slot] = _GATE_AND_ALL
                self._open_gate(slot)
                return True
            if not self._try_lock(slot, _GATE):
                return False
            self._parts[slot] = _GATE
        if not self._try_lock(slot, _ALL):
            return False
        self._parts[slot] = _GATE_AND_ALL
        self._open_gate(slot)
        return True

    def _open_gate(self, slot: str) -> None:
        self._unlock(slot, _GATE)
        self._parts[slot] = _ALL

    def take_briefly(self, ident: str, owner: object) -> bool:
        """Take a lock that nobody has or waits for, to free it in the same step of a job."""
        slot = ident[:_SLOT_SIZE]
        if self._owners.setdefault(slot, owner) is not owner:
            return False
        free = False
        try:
            if self._try_lock(slot, _LOCK):
                self._parts[slot] = _LOCK
                free = not self._is_locked(slot, _GATE)
        finally:
            if not free:
                self.free(ident, owner)
        return free

    def is_in_use(self, ident: str) -> bool:
        """Return whether somebody, here or elsewhere, has the lock or waits for it.

        Who has it briefly does not count.
        """
        slot = ident[:_SLOT_SIZE]
        return slot in self._owners or self._is_locked(slot, _BODY) or self._is_locked(slot, _GATE)

    def free(self, ident: str, owner: object) -> None:
        """Let the lock go, or the place among those who wait. Does nothing without either."""
        slot = ident[:_SLOT_SIZE]
        if self._owners.get(slot) is owner:
            del self._owners[slot]
            parts = self._parts.pop(slot, None)
            if parts is not None:
                self._unlock(slot, parts)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let everything go."""
        self._owners.clear()
        self._parts.clear()
        self._close()

    @abstractmethod
    def _close(self) -> None:
        """Close what is open."""

    @abstractmethod
    def _try_lock(self, slot: str, parts: range) -> bool:
        """Take parts of a lock that this object does not have, all or none."""

    @abstractmethod
    def _unlock(self, slot: str, parts: range) -> None:
        """Let them go. Never raises: what was done under the lock is done."""

    @abstractmethod
    def _is_locked(self, slot: str, part: range) -> bool:
        """Return whether somebody else has one part."""


# The parts of a lock, as they lie beside each other.
_GATE = range(1)
_LOCK = range(1, 2)
_BODY = range(2, 3)
_ALL = range(1, 3)
_GATE_AND_ALL = range(3)


class RangeLocks(IdentLocks):
    """Lock bytes of one file for each ident: no file is made, none is left."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._descriptor = -1
        self._descriptor = _open_lock_file(directory / "idents")

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _try_lock(self, slot: str, parts: range) -> bool:
        try:
            self._ask(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, slot, parts)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):  # fcntl(2) allows either
                return False
            raise
        return True

    def _unlock(self, slot: str, parts: range) -> None:
        try:
            self._ask(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, slot, parts)
        except OSError:  # the kernel may be short of memory, to split a range
            logger.exception("a lock cannot be let go; it is with the manager, at its close")

    def _is_locked(self, slot: str, part: range) -> bool:
        answer = self._ask(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, slot, part)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def _ask(self, command: int, kind: int, slot: str, parts: range) -> bytes:
        start = int(slot, 16) * 3 + parts.start
        request = _FLOCK.pack(kind, os.SEEK_SET, start, len(parts), 0)
        return fcntl.fcntl(self._descriptor, command, request)


class NoLocks(IdentLocks):
    """Stand for locks where there is nobody to lock out."""

    def _close(self) -> None:
        pass

    def _try_lock(self, slot: str, parts: range) -> bool:
        return True

    def _unlock(self, slot: str, parts: range) -> None:
        pass

    def _is_locked(self, slot: str, part: range) -> bool:
        return False


class FileLocks(IdentLocks):
    """Lock files for each ident, made for it and unlinked by who lets it go."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._descriptors: dict[str, int] = {}
        self._directory = directory / "locks"
        make_directory(self._directory)

    def _close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _try_lock(self, slot: str, parts: range) -> bool:
        taken: dict[str, int] = {}
        try:
            for part in parts:
                path = self._path(slot, part)
                descriptor = _try_lock_file(path)
                if descriptor is None:
                    return False
                taken[path] = descriptor
            self._descriptors |= taken
            taken = {}
            return True
        finally:
            _unlock_files(taken)

    def _unlock(self, slot: str, parts: range) -> None:
        paths = [self._path(slot, part) for part in parts]
        _unlock_files({path: self._descriptors.pop(path) for path in paths})

    def _is_locked(self, slot: str, part: range) -> bool:
        if not self._try_lock(slot, part):
            return True
        self._unlock(slot, part)
        return False

    def _path(self, slot: str, part: int) -> str:
        return f"{self._directory}/{slot}.{part}"


def _try_lock_file(path: str) -> int | None:
    while True:
        descriptor = _open_lock_file(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        # Its last holder unlinked it after we had opened it: another one counts now.
        os.close(descriptor)


def _unlock_files(descriptors: dict[str, int]) -> None:
    for path, descriptor in descriptors.items():
        # Unlinked while it is locked: whoever opened it before will notice. After an error the
        # file stays, and the lock is let go.
        with contextlib.suppress(OSError):
            os.unlink(path)
        with contextlib.suppress(OSError):
            os.close(descriptor)


def ident_locks(directory: Path) -> IdentLocks:
    """Return the locks that this platform has.

    Raises:
        SettingsError: If it has none that die with their holder.
    """
    if fcntl is None:
        raise SettingsError(
            f"disk_exclusive=False: on {sys.platform} no file lock is known that ends with its "
            "process, so a directory cannot be shared; use disk_exclusive=True",
            variable="disk_exclusive",
            allowed="True on this platform",
        )
    if sys.platform == "linux":
        return RangeLocks(directory)
    return FileLocks(directory)


def _open_lock_file(path: "Path | str") -> int:
    descriptor = os.open(path, _FLAGS, 0o600)
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, 0o600)  # whatever the umask
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, for this user alone; unless it is there."""
    if path.is_dir():
        return
    if not path.parent.exists():
        make_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        path.chmod(0o700)  # whatever the umask


def _is_at(descriptor: int, path: str) -> bool:
    """Return whether a path still names an open file."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


# A child that was forked shares the locks: the kernel would keep them for as long as it lives.
_inherited: "weakref.WeakSet[DirectoryClaim | IdentLocks]" = weakref.WeakSet()


def _close_after_fork() -> None:
    for held in list(_inherited):
        held.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_after_fork)
