"""`StateDirectory`: the files of a state directory, one for each state. Every call may block.

    lock                     says that the directory is in use (`DirectoryClaim`)
    idents, or locks/        locks between processes (`IdentLocks`)
    states/IDENT-CLASS       a record (record.py); zeros fill it up to one block of 4096 bytes
    states/IDENT-CLASS.0     another file of the same state, to be written next; or
    states/IDENT-CLASS.1     this one, by turns
    states/IDENT.commit      several records that are being committed together
    quarantine/              records that could not be read

IDENT and CLASS are digests: any ident and any class give a name of 65 safe characters. The key
itself stands in the record, and is compared.

A file is replaced as a whole. Records of up to one block take turns in two files of the same
size: the one that is not in use is overwritten in place, and then renamed to be the one in use,
while the other keeps a second name. So no file is made, none is deleted and no block is
allocated, which on ext4 is ten times as fast. A larger record goes to a file of its own each
time. In either case a crash leaves the old record or the new one.

    invariant: a file is written to only while it has one name, and that is not the record's.

A reader without the ident's lock may hold a file open while it becomes the other one and is
overwritten. So it looks afterwards whether the record's name still means the file it has read;
if not, it reads again.

The deadline stands in the record. To renew it, a reader sets the file's modification time to
the new one, which costs two microseconds, whatever the size: the later of the two counts. A copy
of the directory that loses these times loses the renewals since the last commit.
"""

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import msgpack  # type: ignore[import-untyped]

from statemgr.backends.disk.locks import make_directory
from statemgr.backends.disk.trips import Job
from statemgr.errors import SettingsError, StateDecodeError
from statemgr.record import RecordCodec

_BLOCK = 4096
_MODE = 0o600
_SAFE = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a pipe in a record's place must not hold up the thread
    | getattr(os, "O_BINARY", 0)
)
_READ = os.O_RDONLY | _SAFE
_OVERWRITE = os.O_WRONLY | _SAFE
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE
_LATEST = 9e9  # seconds: what a file's time can hold with nanoseconds in 64 bits
_DIGEST_SIZE = 16
_NAME_SIZE = 4 * _DIGEST_SIZE + 1
_is_ours = re.compile(r"[0-9a-f]{32}(-[0-9a-f]{32})?(\.[01]|\.commit(\.0)?)?").fullmatch
_NAMES_KNOWN = 4096  # of idents and states, not to be digested again
_TURNS = (".0", ".1")
_COMMIT = ".commit"
_INNER = ("states", "quarantine", "locks")
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


@lru_cache(_NAMES_KNOWN)
def ident_name(lock_key: str) -> str:
    """Return the part of file names that stands for an ident."""
    return _digest(lock_key)


@lru_cache(_NAMES_KNOWN)
def state_name(cache_key: str) -> str:
    """Return the file name of a state: its ident's part first."""
    ident, _, class_key = cache_key.partition("/")
    return f"{_digest(ident)}-{_digest(class_key)}"


def ident_of(name: str) -> str:
    """Return the ident's part of a file name."""
    return name[: 2 * _DIGEST_SIZE]


def _digest(key: str) -> str:
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_SIZE).hexdigest()


class StateFile(NamedTuple):
    """A file as it was read.

    Attributes:
        data: The record; what is not one, as it is.
        renewed_until: The deadline that the last renewal gave it: wall clock, seconds.
        identity: Which file it was: device and inode.
    """

    data: bytes
    renewed_until: float
    identity: tuple[int, int]


class NewRecord(NamedTuple):
    """A record that is to be written.

    Attributes:
        name: The file's.
        data: The record.
        deadline: Its deadline: wall clock, seconds.
    """

    name: str
    data: bytes
    deadline: float


class NotAFileError(OSError):
    """A link, a pipe or the like stands in a record's place."""


class UnsyncedError(OSError):
    """A change was made, and whether it is on stable storage cannot be known."""


class StateDirectory:
    """Read and replace files.

    Args:
        path: The directory; it is made if it is missing.
        fsync: Whether a change is on stable storage when its job has ended.

    Raises:
        SettingsError: If the path is no directory, or others could write to it; or if that
            holds for one inside.
        OSError: If it cannot be made or used.
    """

    def __init__(self, path: Path, *, fsync: bool) -> None:
        self._descriptor = -1
        self._fsync = fsync
        self._can_link = True
        make_directory(path)
        _check_directory(path)
        self._states = str(path / "states")
        self._quarantine = path / "quarantine"
        make_directory(path / "states")
        for inner in _INNER:
            with contextlib.suppress(FileNotFoundError):
                _check_directory(path, inner)
        if fsync:
            for directory in (path.parent, path):
                _sync_directory(directory)
            self._descriptor = os.open(self._states, os.O_RDONLY | _SAFE)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let the directory go."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # Reading

    def read(self, ident: str, names: list[str]) -> list[StateFile | None]:
        """Return the committed records of one ident, as they were at one moment.

        For who does not hold the ident's lock.
        """
        before: tuple[object, object] | None = None
        while True:
            together = self._read_commit(ident)
            files = [together.get(name) or self._read_file(name) for name in names]
            if all(map(self._is_in_place, names, files)):
                # Several are of one moment if they are all the same once more. (That the names
                # mean the same files is not enough: two changes later they do again.)
                if len(names) == 1 or before == (together, files):
                    return files
                before = together, files

    def read_locked(self, name: str) -> StateFile | None:
        """Return a record. For who holds the ident's lock, and has called `recover`."""
        return self._read_file(name)

    def _read_file(self, name: str, limit: int | None = None) -> StateFile | None:
        try:
            descriptor = os.open(self._path(name), _READ)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise NotAFileError(errno.EINVAL, "a record must be no link") from error
            raise
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise NotAFileError(errno.EINVAL, "a record must be a regular file")
            size = status.st_size if limit is None else min(limit, status.st_size)
            data = _read_all(descriptor, size)
        finally:
            os.close(descriptor)
        identity = status.st_dev, status.st_ino
        return StateFile(data, status.st_mtime_ns / 1e9, identity)

    def _is_in_place(self, name: str, file: StateFile | None) -> bool:
        """Return whether a file that was read is still the record."""
        if file is not None and file.identity == _TOGETHER:
            return True
        try:
            status = os.lstat(self._path(name))
        except FileNotFoundError:
            return file is None
        return file is not None and (status.st_dev, status.st_ino) == file.identity

    def read_head(self, name: str, size: int) -> StateFile | None:
        """Return the beginning of a record, of at most `size` bytes."""
        return self._read_file(name, size)

    def deadline_of(self, name: str) -> float | None:
        """Return until when a record was renewed last, None if there is none."""
        try:
            return os.lstat(self._path(name)).st_mtime_ns / 1e9
        except FileNotFoundError:
            return None

    def names(self) -> Iterator[str]:
        """Iterate over the names of our files; there may be others."""
        with os.scandir(self._states) as entries:
            for entry in entries:
                if _is_ours(entry.name):
                    yield entry.name

    # Changing. For who holds the ident's lock, all but `renew`.

    def renew(self, name: str, deadline: float) -> bool:
        """Let a record expire at `deadline`, unless it does later; return whether it is there."""
        current = self.deadline_of(name)
        if current is None:
            return False
        if current < deadline:
            try:
                os.utime(self._path(name), ns=_times(deadline), follow_symlinks=False)
            except FileNotFoundError:
                return False
        return True

    def write(self, record: NewRecord) -> Job[None]:
        """Replace a record. After an error the old one is there, whole."""
        name = record.name
        content = _filled(record.data)
        descriptor, source, kept = self._open_next(name, len(content))
        try:
            try:
                _write_all(descriptor, content)
                os.utime(descriptor, ns=_times(record.deadline))
                if self._fsync:
                    yield descriptor
            finally:
                os.close(descriptor)
            if len(content) == _BLOCK:
                self._keep(name, kept)
            os.replace(source, self._path(name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(source)
            raise
        yield from self._sync_names()

    def write_together(self, ident: str, records: list[NewRecord]) -> Job[None]:
        """Replace several records of one ident, all or none.

        They are written to one file first: once that has its name, they are committed, and
        whoever comes after a crash finishes what was begun.
        """
        if len(records) == 1:
            yield from self.write(records[0])
            return
        packed = msgpack.packb([tuple(record) for record in records])
        data = blake2b(packed, digest_size=_DIGEST_SIZE).digest() + packed
        source = self._path(f"{ident}{_COMMIT}{_TURNS[0]}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(source)
        descriptor = _create(source)
        try:
            try:
                _write_all(descriptor, data)
                if self._fsync:
                    yield descriptor
            finally:
                os.close(descriptor)
            os.replace(source, self._path(ident + _COMMIT))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(source)
            raise
        yield from self._sync_names()
        # It is committed, and seen to be. What cannot be done now, the lock's next holder does.
        with contextlib.suppress(OSError):
            yield from self._finish(ident, records)

    def recover(self, ident: str) -> Job[None]:
        """Finish what a program that died had begun to commit.

        Raises:
            StateDecodeError: If that cannot be read.
        """
        together = self._read_commit_records(ident)
        if together is not None:
            try:
                yield from self._finish(ident, together)
            except UnsyncedError as error:  # of that commit: the caller's own has not begun
                raise OSError(*error.args) from error

    def _finish(self, ident: str, records: list[NewRecord]) -> Job[None]:
        for record in records:
            yield from self.write(record)
        os.unlink(self._path(ident + _COMMIT))

    def remove(self, name: str) -> Job[None]:
        """Delete a record, if there is one."""
        if self.drop(name):
            yield from self._sync_names()

    def drop(self, name: str) -> bool:
        """Delete a record that has expired: it does not matter if it comes back after a crash.

        Returns:
            Whether there was one.
        """
        for turn in _TURNS:
            _unlink(self._path(name + turn))
        return _unlink(self._path(name))

    def is_committing(self, ident: str) -> bool:
        """Return whether a commit of several records was begun, and not finished."""
        return _size_of(self._path(ident + _COMMIT)) >= 0

    def set_aside(self, name: str) -> None:
        """Move a record that cannot be read to the quarantine."""
        make_directory(self._quarantine)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self._path(name), self._quarantine / f"{name}.{time.time_ns()}")

    def set_aside_commit(self, ident: str) -> None:
        """Move the records of an interrupted commit that cannot be read to the quarantine."""
        self.set_aside(ident + _COMMIT)

    def tidy(self, name: str) -> Job[None]:
        """Finish or remove what a program that died has left under a name of `names`."""
        base, dot, suffix = name.rpartition(".")
        if is_commit(name):
            yield from self.recover(ident_of(name))
        elif dot + suffix in _TURNS and self.deadline_of(base) is None:
            _unlink(self._path(name))

    def _sync_names(self) -> Job[None]:
        if self._fsync:
            try:
                yield self._descriptor
            except OSError as error:
                raise UnsyncedError(*error.args) from error

    # The two files of a state

    def _open_next(self, name: str, size: int) -> tuple[int, str, str]:
        """Open the file to be written: its descriptor, its path, and the other one's."""
        paths = [self._path(name + turn) for turn in _TURNS]
        for source, kept in (paths, paths[::-1]):
            try:
                descriptor = os.open(source, _OVERWRITE)
            except FileNotFoundError:
                continue
            if size == _BLOCK and _may_be_overwritten(descriptor):
                return descriptor, source, kept
            os.close(descriptor)
            os.unlink(source)
        return _create(paths[0]), paths[0], paths[1]

    def _keep(self, name: str, kept: str) -> None:
        """Give the record that is about to be replaced a second name, to be overwritten next."""
        path = self._path(name)
        if not self._can_link or _size_of(path) != _BLOCK:
            return
        try:
            try:
                os.link(path, kept, follow_symlinks=False)
            except FileExistsError:
                os.unlink(kept)
                os.link(path, kept, follow_symlinks=False)
        except FileNotFoundError:
            pass
        except OSError as error:  # it can do without: the next file is a new one then
            self._can_link = error.errno not in _NO_LINKS

    # Several records together

    def _read_commit(self, ident: str) -> dict[str, StateFile]:
        records = self._read_commit_records(ident)
        if records is None:
            return {}
        return {
            name: StateFile(_filled(data), deadline, _TOGETHER) for name, data, deadline in records
        }

    def _read_commit_records(self, ident: str) -> list[NewRecord] | None:
        if not self.is_committing(ident):  # nearly always, and cheaper to ask than to open
            return None
        file = self._read_file(ident + _COMMIT)
        if file is None:
            return None
        digest, packed = file.data[:_DIGEST_SIZE], file.data[_DIGEST_SIZE:]
        if blake2b(packed, digest_size=_DIGEST_SIZE).digest() != digest:
            raise StateDecodeError("the records of an interrupted commit are damaged")
        return [NewRecord(*record) for record in msgpack.unpackb(packed)]

    def _path(self, name: str) -> str:
        return f"{self._states}/{name}"


_TOGETHER = (0, 0)  # the identity of a record that is not in a file of its own yet


def is_record(name: str) -> bool:
    """Return whether a name of `names` is that of a record."""
    return len(name) == _NAME_SIZE


def is_commit(name: str) -> bool:
    """Return whether a name of `names` is that of records that are being committed together."""
    return name.endswith(_COMMIT)


def unfilled(data: bytes) -> bytes:
    """Return the record in a file's content.

    Raises:
        StateDecodeError: If it is cut short, or something else follows it.
    """
    if len(data) > _BLOCK:
        return data
    size = RecordCodec.size_of(data)
    if len(data) < _BLOCK or data.count(0, size) != _BLOCK - size:
        raise StateDecodeError("the record is damaged: its file is not filled up with zeros")
    return data[:size]


def _filled(record: bytes) -> bytes:
    return record.ljust(_BLOCK, b"\0")


def _times(deadline: float) -> tuple[int, int]:
    # Down to the whole nanosecond: a renewal never lasts longer than the deadline it stands for.
    nanoseconds = int(min(deadline, _LATEST) * 1e9)
    return nanoseconds, nanoseconds


def _may_be_overwritten(descriptor: int) -> bool:
    try:
        status = os.fstat(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    # A file with two names is the record: somebody died between giving it the second one and
    # renaming the other file.
    return status.st_nlink == 1 and status.st_size == _BLOCK and stat.S_ISREG(status.st_mode)


def _create(path: str) -> int:
    descriptor = os.open(path, _CREATE, _MODE)
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, _MODE)  # whatever the umask
    except BaseException:
        os.close(descriptor)
        os.unlink(path)
        raise
    return descriptor


def _read_all(descriptor: int, size: int) -> bytes:
    data = os.read(descriptor, size)
    while len(data) < size and (more := os.read(descriptor, size - len(data))):
        data += more
    return data


def _write_all(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def _size_of(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return -1


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | _SAFE)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_directory(path: Path, inner: str = "") -> None:
    """Refuse a directory that is not this user's alone to write to, or the one inside it.

    The directory itself may be named by a link; one inside may not be one.
    """
    status = (path / inner).lstat() if inner else path.stat()
    if not stat.S_ISDIR(status.st_mode):
        allowed = "a directory"
    elif hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        allowed = "a directory of the user that this program runs as"
    elif os.name == "posix" and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        allowed = "a directory that its group and others cannot write to (chmod go-w)"
    else:
        return
    if inner:
        allowed = f"{inner} inside to be {allowed}"
    raise SettingsError(
        f"disk_directory={str(path)!r}: expected {allowed}",
        variable="disk_directory",
        allowed=allowed,
    )
