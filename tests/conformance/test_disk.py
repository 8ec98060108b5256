"""The contract on the disk backend, in each of its modes."""

import os
from pathlib import Path
from typing import Any, ClassVar

from statemgr import StateManagerDisk
from statemgr.backends.disk.files import state_name, unfilled
from statemgr.manager import StateManager
from statemgr.record import RecordCodec
from statemgr.testing import Capability, Conformance, Harness
from statemgr.token import AnyToken


class DiskHarness(Harness):
    capabilities = frozenset(Capability) - {Capability.FENCE}
    mode: ClassVar[dict[str, Any]] = {}

    async def make(self, **options: Any) -> StateManager:
        return StateManagerDisk(self.directory / "store", **self.mode, **options)

    def _path(self, token: AnyToken) -> Path:
        return self.directory / "store" / "states" / state_name(token.cache_key)

    async def read_raw(self, token: AnyToken) -> bytes | None:
        path = self._path(token)
        return path.read_bytes() if path.exists() else None

    async def write_raw(self, token: AnyToken, record: bytes) -> None:
        self._replace(token, record, self._path(token).stat().st_mtime_ns)

    async def expire(self, token: AnyToken) -> None:
        record = unfilled(self._path(token).read_bytes())
        now = self.clock.time()
        self._replace(token, RecordCodec().renew(record, now).ljust(4096, b"\0"), int(now * 1e9))

    async def kept(self) -> list[bytes]:
        return [path.read_bytes() for path in (self.directory / "store/quarantine").glob("*")]

    def _replace(self, token: AnyToken, content: bytes, time: int) -> None:
        self._path(token).write_bytes(content)
        os.utime(self._path(token), ns=(time, time))


class TestDisk(Conformance):
    harness_type = DiskHarness


class FsyncHarness(DiskHarness):
    mode: ClassVar[dict[str, Any]] = {"fsync": True}


class TestDiskFsync(Conformance):
    harness_type = FsyncHarness


class ExclusiveHarness(DiskHarness):
    capabilities = DiskHarness.capabilities - {Capability.SHARED}
    mode: ClassVar[dict[str, Any]] = {"exclusive": True}


class TestDiskExclusive(Conformance):
    harness_type = ExclusiveHarness


class DebounceHarness(ExclusiveHarness):
    mode: ClassVar[dict[str, Any]] = {"exclusive": True, "debounce": 2.0}


class TestDiskDebounce(Conformance):
    harness_type = DebounceHarness
