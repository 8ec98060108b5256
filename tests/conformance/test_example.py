"""The contract on a backend of somebody else's, whose every step takes a turn of the loop."""

from pathlib import Path
from typing import Any

from statemgr.manager import StateManager
from statemgr.testing import Capability, Conformance, Harness
from statemgr.token import AnyToken

from .example_backend import Shelf, StateManagerShelf


class ShelfHarness(Harness):
    capabilities = frozenset(Capability) - {Capability.PURGE}

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.shelf = Shelf()

    async def make(self, **options: Any) -> StateManager:
        return StateManagerShelf(self.shelf, **options)

    async def read_raw(self, token: AnyToken) -> bytes | None:
        record = self.shelf.records.get(token.cache_key)
        return record and record.data

    async def write_raw(self, token: AnyToken, record: bytes) -> None:
        old = self.shelf.records[token.cache_key]
        self.shelf.records[token.cache_key] = old._replace(data=record)

    async def expire(self, token: AnyToken) -> None:
        old = self.shelf.records[token.cache_key]
        self.shelf.records[token.cache_key] = old._replace(expires_at=self.clock.time())

    async def kept(self) -> list[bytes]:
        return self.shelf.aside


class TestShelf(Conformance):
    harness_type = ShelfHarness
