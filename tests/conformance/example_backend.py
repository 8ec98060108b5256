"""A complete backend of somebody else's, as small as it can be with every capability but purging.

It is written against the abstract `StateManager` and its documented hooks. The store is a
`Shelf`: records as bytes, and one lock for each ident, shared by its managers. Each call to the
shelf takes a turn of the loop, as one over a network would.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Unpack

from statemgr import StateInfo, StateManager, StateModification, Statistics
from statemgr.errors import LockTimeoutError, StateDecodeError
from statemgr.locks import KeyedLocks
from statemgr.manager import ManagerOptions
from statemgr.token import AnyToken

HEAD = b"shelf1:"


class Record(NamedTuple):
    ident: str
    data: bytes
    expires_at: float


@dataclass
class Shelf:
    """The store. It outlives its managers; what it does at once, no cancel divides."""

    records: dict[str, Record] = field(default_factory=dict)
    aside: list[bytes] = field(default_factory=list)
    owners: dict[str, "StateManagerShelf"] = field(default_factory=dict)
    fences: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    wanted: dict[str, tuple[int, float]] = field(default_factory=dict)
    queues: defaultdict[str, list[asyncio.Future[None]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def want(self, lock_key: str, now: float) -> None:
        """Count who holds or waits for a lock; `now` is kept as the time since when."""
        count, since = self.wanted.get(lock_key, (0, now))
        self.wanted[lock_key] = count + 1, since

    def unwant(self, lock_key: str) -> None:
        count, since = self.wanted.pop(lock_key)
        if count > 1:
            self.wanted[lock_key] = count - 1, since

    def take(self, lock_key: str, owner: "StateManagerShelf") -> int | None:
        """Return the fence of a new grant, None if somebody else has one."""
        if self.owners.setdefault(lock_key, owner) is not owner:
            return None
        self.fences[lock_key] += 1
        return self.fences[lock_key]

    def give_back(self, lock_key: str) -> None:
        del self.owners[lock_key]
        for turn in self.queues.pop(lock_key, ()):
            if not turn.done():
                turn.set_result(None)


class StateManagerShelf(StateManager):
    """Keep states on a `Shelf`."""

    def __init__(self, shelf: Shelf, **options: Unpack[ManagerOptions]) -> None:
        super().__init__(**options)
        self._shelf = shelf
        self._locks = KeyedLocks(self._clock, self._redaction.ident)
        self._turns: set[asyncio.Future[None]] = set()  # waits for another manager's lock

    # Locks: first this manager's own, in its order; then the shelf's

    async def _acquire(self, modification: StateModification[Any]) -> None:
        lock_key = modification.lock_key
        self._shelf.want(lock_key, self._clock.time())
        started = self._monotonic()
        try:
            await self._locks.acquire(lock_key, modification, modification.timeout)
            try:
                modification.grant = await self._take(modification, started)
            except BaseException:
                self._locks.release(lock_key)
                raise
        except BaseException:
            self._shelf.unwant(lock_key)
            raise

    async def _take(self, modification: StateModification[Any], started: float) -> int:
        await asyncio.sleep(0)
        while (fence := self._shelf.take(modification.lock_key, self)) is None:
            await self._wait_for_shelf(modification, started)
            if self._refusal is not None:
                raise self._refused()
        return fence

    async def _wait_for_shelf(self, modification: StateModification[Any], started: float) -> None:
        lock_key, timeout = modification.lock_key, modification.timeout
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._shelf.queues[lock_key].append(turn)
        self._turns.add(turn)
        timer = None
        if timeout is not None:
            name = self._redaction.ident(lock_key)
            error = LockTimeoutError(f"{name} is locked", lock_key=lock_key, timeout=timeout)
            left = started + timeout - self._monotonic()
            timer = self._clock.call_later(left, _fail, turn, error)
        try:
            await turn
        finally:
            self._turns.discard(turn)
            if timer is not None:
                timer.cancel()

    def _release(self, lock_key: str) -> None:
        self._shelf.give_back(lock_key)
        self._shelf.unwant(lock_key)
        self._locks.release(lock_key)

    # The hooks

    async def _begin(self, modification: StateModification[Any]) -> None:
        await self._acquire(modification)
        try:
            await asyncio.sleep(0)
            modification.load_states(self._load)
            for token in modification.tokens:
                self._touch(token)
        except BaseException:
            self._release(modification.lock_key)
            raise

    async def _commit(
        self, modification: StateModification[Any], payloads: Sequence[bytes]
    ) -> None:
        try:
            await asyncio.sleep(0)
            for token, payload in zip(modification.tokens, payloads, strict=True):
                self._store(token, payload)
            await asyncio.sleep(0)
        finally:
            self._release(modification.lock_key)

    async def _abort(self, modification: StateModification[Any]) -> None:
        try:
            await asyncio.sleep(0)
            for token in modification.tokens:
                self._touch(token)
        finally:
            self._release(modification.lock_key)

    def _fence_of(self, modification: StateModification[Any]) -> int | None:
        fence: int = modification.grant
        return fence

    async def _write(self, modification: StateModification[Any]) -> None:
        payload = self._encode(modification.token, modification.state)
        await self._acquire(modification)
        try:
            self._check_usable()
            await asyncio.sleep(0)
            self._store(modification.token, payload)
        finally:
            self._release(modification.lock_key)

    async def _delete(self, modification: StateModification[Any]) -> bool:
        await self._acquire(modification)
        try:
            self._check_usable()
            await asyncio.sleep(0)
            found = self._find(modification.token) is not None
            self._shelf.records.pop(modification.token.cache_key, None)
        finally:
            self._release(modification.lock_key)
        return found

    async def _read(self, tokens: Sequence[AnyToken]) -> Sequence[Any]:
        await asyncio.sleep(0)
        states = [self._load(token) for token in tokens]
        for token in tokens:
            self._touch(token)
        return states

    async def _has(self, token: AnyToken) -> bool:
        await asyncio.sleep(0)
        return self._find(token) is not None

    async def _renew(self, token: AnyToken) -> bool:
        await asyncio.sleep(0)
        return self._touch(token)

    async def _list(self, prefix: str) -> AsyncIterator[StateInfo]:
        for key, record in list(self._shelf.records.items()):
            await asyncio.sleep(0)
            if record.ident.startswith(prefix) and not self._expired(key, record):
                class_name = key.partition("/")[2]
                size = len(record.data) - len(HEAD)
                yield StateInfo(record.ident, class_name, size, record.expires_at)

    def _statistics(self) -> Statistics:
        owned = sum(owner is self for owner in self._shelf.owners.values())
        return self._counted(
            tokens_held=0,
            locks_held=owned,
            waiters=self._locks.waiting + len(self._turns),
        )

    async def _close(self) -> None:
        self._locks.fail_waiters(self._refused)
        for turn in self._turns:
            _fail(turn, self._refused())

    # Records

    def _load(self, token: AnyToken) -> object:
        record = self._find(token)
        if record is None:
            self._misses += 1
            return token.create()
        self._hits += 1
        try:
            return self._decode(token, _unwrap(token, record.data))
        except StateDecodeError as error:
            fresh = self._recover(token, error)
            self._shelf.aside.append(record.data)
            del self._shelf.records[token.cache_key]
            return fresh

    def _store(self, token: AnyToken, payload: bytes) -> None:
        expires_at = self._clock.time() + self.token_expiration
        self._shelf.records[token.cache_key] = Record(token.ident, HEAD + payload, expires_at)

    def _touch(self, token: AnyToken) -> bool:
        record = self._find(token)
        if record is not None:
            expires_at = self._clock.time() + self.token_expiration
            self._shelf.records[token.cache_key] = record._replace(expires_at=expires_at)
        return record is not None

    def _find(self, token: AnyToken) -> Record | None:
        record = self._shelf.records.get(token.cache_key)
        if record is not None and self._expired(token.cache_key, record):
            del self._shelf.records[token.cache_key]
            return None
        return record

    def _expired(self, key: str, record: Record) -> bool:
        """Tell whether a deadline has passed, and not while the lock was held or waited for."""
        if record.expires_at > self._clock.time():
            return False
        wanted = self._shelf.wanted.get(key.partition("/")[0])
        return wanted is None or record.expires_at <= wanted[1]


def _unwrap(token: AnyToken, data: bytes) -> bytes:
    if not data.startswith(HEAD):
        raise StateDecodeError("this is no record of ours", key=token.cache_key)
    return data.removeprefix(HEAD)


def _fail(turn: asyncio.Future[None], error: Exception) -> None:
    if not turn.done():
        turn.set_exception(error)
