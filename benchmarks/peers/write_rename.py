"""A file written and renamed for each change: the floor under every manager on disk.

All of it happens in the thread of the loop, which stands still meanwhile: no trip to a thread.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.subject import Role, Store, Subject
from statemgr import StateToken


class _File(NamedTuple):
    """Where one state lies, and how it goes to bytes; the encoder is our own backends'."""

    path: str
    temporary: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


class WriteRename(Store):
    """One file per ident and a dict of objects, and no promises: no record, no lock, no expiration.

    Changes take the object from the dict, as if nobody else wrote the file. Reads open it.
    """

    def __init__(self, directory: Path, *, fsync: bool) -> None:
        self._directory = str(directory)
        self._fsync = fsync
        self._states: dict[str, Any] = {}
        self._lock = asyncio.Lock()

    def token(self, ident: str, cls: type) -> _File:
        path = f"{self._directory}/{ident}"
        token: StateToken[Any] = StateToken(ident, cls)
        return _File(path, f"{path}.new", token.encoder(), token.deserialize)

    async def fill(self, tokens: Sequence[_File], factory: Callable[[], Any]) -> None:
        for file in tokens:
            state = self._states[file.path] = factory()
            _replace(file, file.encode(state))

    async def read(self, tokens: Sequence[_File]) -> None:
        for file in tokens:
            _load(file)

    async def change(self, tokens: Sequence[_File]) -> None:
        for file in tokens:
            state = self._state(file)
            state.version += 1
            self._save(file, state)

    async def change_slowly(self, tokens: Sequence[_File]) -> None:
        for file in tokens:
            async with self._lock:
                state = self._state(file)
                state.version += 1
                await asyncio.sleep(0)
                self._save(file, state)

    async def version(self, token: _File) -> int:
        return int(_load(token).version)

    def _state(self, file: _File) -> Any:
        state = self._states.get(file.path)
        if state is None:
            state = self._states[file.path] = _load(file)
        return state

    def _save(self, file: _File, state: Any) -> None:
        _replace(file, file.encode(state), fsync=self._fsync)
        if self._fsync:
            directory = os.open(self._directory, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)


def _replace(file: _File, data: bytes, *, fsync: bool = False) -> None:
    descriptor = os.open(file.temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, data)
    if fsync:
        os.fsync(descriptor)
    os.close(descriptor)
    os.replace(file.temporary, file.path)  # noqa: PTH105  # a Path takes half as long again


def _load(file: _File) -> Any:
    descriptor = os.open(file.path, os.O_RDONLY)
    data = os.read(descriptor, os.fstat(descriptor).st_size)
    os.close(descriptor)
    return file.decode(data)


@asynccontextmanager
async def _open(
    directory: Path, token_expiration: float, *, fsync: bool, ahead: float = 0.0
) -> AsyncIterator[Store]:
    yield WriteRename(directory, fsync=fsync)


SUBJECTS = (
    Subject(
        name="write_rename",
        role=Role.FLOOR,
        summary="encode, write a new file, rename it: in the loop's thread, without a lock",
        against=("disk",),
        open_directory=partial(_open, fsync=False),
    ),
    Subject(
        name="write_rename/fsync",
        role=Role.FLOOR,
        summary="the same with an fsync of the file and one of the directory",
        against=("disk/fsync",),
        open_directory=partial(_open, fsync=True),
    ),
)
