"""`LiveStates`: states in this process, which a store may stand behind.

Each entry keeps the state twice: as the object that bodies change, and as the bytes it was
committed as. A reader gets its own copy from the bytes, so it never sees a body's unfinished
work, and a body that raises costs the object only: the next one is made from the bytes.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from statemgr.errors import StateDecodeError
from statemgr.expiration import Deadline, StateManagerExpiration
from statemgr.locks import KeyedLocks
from statemgr.manager import StateManager
from statemgr.modification import StateModification
from statemgr.token import AnyToken

if TYPE_CHECKING:
    from statemgr.statistics import StateInfo, Statistics

NONE: Final = object()  # no object in hand; None itself is a state
_LIST_SLICE = 256  # states listed before the loop gets its turn


class Entry:
    """One stored state.

    Attributes:
        token: The token that it was committed by.
        live: The object that bodies change; NONE until one asks for it.
        payload: The bytes it was committed as; None without rollback.
        encode: What makes these of the object.
        deadline: When it expires.
    """

    __slots__ = ("deadline", "encode", "live", "payload", "token")

    def __init__(
        self, token: AnyToken, live: object, payload: bytes | None, deadline: Deadline
    ) -> None:
        self.token = token
        self.live = live
        self.payload = payload
        self.deadline = deadline
        self.encode = _not_at_all if payload is None else token.encoder()

    def is_of(self, token: AnyToken) -> bool:
        """Return whether `token` would read the payload as the entry's own token does.

        Tokens share a key if they differ in kind only, or if a class was defined anew.
        """
        return token is self.token or (token == self.token and token.cls is self.token.cls)


def _not_at_all(state: object) -> bytes:
    raise NotImplementedError


class LiveStates(StateManagerExpiration, StateManager):
    """Implement the hooks of a `StateManager` whose states are in this process.

    A backend calls `_init_live` when it is made.
    """

    def _init_live(self, *, rollback: bool) -> None:
        """Start with no states. Without `rollback` no bytes are kept, only the objects."""
        self._init_expiration(self._monotonic)
        self.rollback = rollback
        self._entries: dict[str, Entry] = {}
        self._set_aside: dict[str, Entry] = {}
        self._locks = KeyedLocks(self._clock, self._redaction.ident)

    # Changing

    def _begin_nowait(self, modification: StateModification[Any], now: float) -> bool:
        lock_key = modification.lock_key
        holders = self._locks.holders
        if lock_key in holders:
            return False
        holders[lock_key] = modification
        modification.locked_since = now
        key: Any = modification.state_key
        entry = self._entries.get(key)
        if (
            entry is None
            or entry.live is NONE
            or entry.token is not modification.token
            or entry.deadline.expires_at <= now
        ):
            return self._load_nowait(modification)
        # Nearly always: one class, and the object that the last body left.
        modification.state = entry.live
        modification.grant = entry
        return True

    def _load_nowait(self, modification: StateModification[Any]) -> bool:
        """Load the states if it takes no waiting; else let the lock go and return False."""
        self._load(modification)
        return True

    async def _begin(self, modification: StateModification[Any]) -> None:
        await self._acquire(modification, modification.timeout)
        self._load(modification)

    def _load(self, modification: StateModification[Any]) -> None:
        key: Any = modification.state_key
        entry = self._entries.get(key)
        if (
            entry is not None
            and entry.live is not NONE
            and entry.token is modification.token
            and entry.deadline.expires_at > modification.locked_since  # see _find
        ):
            modification.state = entry.live  # nearly always here too: see _begin_nowait
            modification.grant = entry
            return
        try:
            modification.load_states(self._load_live)
        except BaseException:
            for token in modification.tokens:
                self._set_aside.pop(token.cache_key, None)
            self._release(modification.lock_key)
            raise
        modification.grant = None
        entry = self._entries.get(key)
        # The object alone does not tell: kinds that share a key may share a small int.
        if (
            entry is not None
            and entry.live is modification.state
            and entry.is_of(modification.token)
        ):
            modification.grant = entry
            entry.token = modification.token  # an equal one: the next body finds it at once

    def _load_live(self, token: AnyToken) -> object:
        entry = self._find(token)
        if entry is None:
            return token.create()
        if entry.is_of(token) and entry.live is not NONE:
            return entry.live
        try:
            state = self._copy(token, entry)
        except StateDecodeError as error:
            fresh = self._recover(token, error)
            self._set_aside[token.cache_key] = entry
            return fresh
        if entry.is_of(token):
            entry.live = state
        return state

    def _commit_nowait(self, modification: StateModification[Any], now: float) -> bool:
        entry = modification.grant
        if entry is None:
            self._store_all(modification.tokens, modification.states(), now)
        else:  # what _store_all does, without its calls
            state = modification.state
            if entry.payload is not None:
                payload = entry.encode(state)
                if len(payload) > self.max_state_size:
                    raise self._too_large(modification.token, len(payload))
                entry.payload = payload
                if state is not entry.live:
                    state = NONE  # it was put in its place, and may be in others too
            entry.live = state
            key: Any = modification.state_key
            entry.deadline.expires_at = now + self.token_expiration
            self._token_expires_at.move_to_end(key)
            if self._expiration_task is None:
                self._start_expiration()
        lock_key = modification.lock_key
        locks = self._locks
        if self._passed_over:
            self._release(lock_key)
        elif lock_key in locks.queues:
            locks.release(lock_key)
        else:
            del locks.holders[lock_key]
        return True

    def _store_all(self, tokens: Sequence[AnyToken], states: Sequence[Any], now: float) -> None:
        payloads = self._encode_states(tokens, states) if self.rollback else [None] * len(tokens)
        for token, state, payload in zip(tokens, states, payloads, strict=True):
            self._store(token, state, payload, now)

    def _store(self, token: AnyToken, state: object, payload: bytes | None, now: float) -> None:
        key = token.cache_key
        entry = self._entries.get(key)
        # An object that did not come from here is the caller's: the next body gets its own.
        ours = payload is None or (entry is not None and entry.live is state and entry.is_of(token))
        deadline = self._touch_token(key, now)
        self._entries[key] = Entry(token, state if ours else NONE, payload, deadline)

    async def _abort(self, modification: StateModification[Any]) -> None:
        now = self._now()
        for token in modification.tokens:
            entry = self._entries.get(token.cache_key)
            if entry is not None:
                if entry.payload is not None:
                    entry.live = NONE
                self._touch_token(token.cache_key, now)
        self._release(modification.lock_key)

    async def _write(self, modification: StateModification[Any]) -> None:
        token, state = modification.token, modification.state
        payload = self._encode(token, state) if self.rollback else None
        await self._acquire(modification)
        try:
            self._check_usable()
            self._store(token, state, payload, self._now())
        finally:
            self._release(token.lock_key)

    async def _delete(self, modification: StateModification[Any]) -> bool:
        token = modification.token
        await self._acquire(modification)
        try:
            self._check_usable()
            found = self._find(token) is not None
            if found:
                self._drop(token.cache_key)
        finally:
            self._release(token.lock_key)
        return found

    def _acquire(
        self, modification: StateModification[Any], timeout: float | None = None
    ) -> Coroutine[Any, Any, None]:
        lock_key = modification.lock_key
        return self._locks.acquire(lock_key, modification, timeout, self._lock_released)

    def _release(self, lock_key: str) -> None:
        self._locks.release(lock_key)
        if self._passed_over and lock_key not in self._locks.holders:
            self._lock_released(lock_key)

    # Reading

    async def _read(self, tokens: Sequence[AnyToken]) -> Sequence[Any]:
        return [self._read_one(token) for token in tokens]

    def _read_one(self, token: AnyToken) -> object:
        entry = self._find(token)
        if entry is None:
            self._misses += 1
            return token.create()
        self._hits += 1
        self._touch_token(token.cache_key, self._now())
        try:
            return self._copy(token, entry)
        except StateDecodeError as error:
            return self._recover(token, error)

    def _is_locked(self, token: AnyToken) -> bool:
        return token.lock_key in self._locks.holders

    async def _has(self, token: AnyToken) -> bool:
        return self._find(token) is not None

    async def _renew(self, token: AnyToken) -> bool:
        found = self._find(token) is not None
        if found:
            self._touch_token(token.cache_key, self._now())
        return found

    async def _list(self, prefix: str) -> "AsyncIterator[StateInfo]":
        from statemgr.statistics import StateInfo  # slow to import, as in _counted

        to_wall_clock = self._clock.time() - self._now()
        for count, key in enumerate(list(self._entries), 1):
            entry = self._entries.get(key)
            if (
                entry is not None
                and entry.token.ident.startswith(prefix)
                and self._find(entry.token) is entry
            ):
                yield StateInfo(
                    ident=entry.token.ident,
                    class_name=key.partition("/")[2],
                    size=None if entry.payload is None else len(entry.payload),
                    expires_at=entry.deadline.expires_at + to_wall_clock,
                )
            if count % _LIST_SLICE == 0:
                await asyncio.sleep(0)

    # Entries

    def _find(self, token: AnyToken) -> Entry | None:
        """Return the entry of a state that has not expired; drop one that has.

        A state whose deadline passed while the lock was held or waited for lives on.
        """
        key = token.cache_key
        entry = self._entries.get(key)
        if entry is not None and (deadline := entry.deadline.expires_at) <= self._now():
            holder = self._locks.holders.get(token.lock_key)
            if holder is None or deadline <= holder.locked_since:
                self._drop(key)
                self._purged += 1
                return None
        return entry

    def _copy(self, token: AnyToken, entry: Entry) -> object:
        if entry.payload is None:
            return entry.live
        return self._decode(token, entry.payload)

    def _drop(self, key: str) -> None:
        del self._entries[key]
        del self._token_expires_at[key]

    def _lock_held_of(self, key: str) -> str | None:
        token = self._entries[key].token
        return token.lock_key if self._is_locked(token) else None

    async def _drop_tokens(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._drop(key)
        self._purged += len(keys)

    def _statistics(self) -> "Statistics":
        return self._counted(
            tokens_held=len(self._token_expires_at),
            locks_held=len(self._locks.holders),
            waiters=self._locks.waiting,
        )

    async def _close(self) -> None:
        self._locks.fail_waiters(self._refused)
        # Emptied first: a body that ends meanwhile must find nothing to start the task for.
        self._entries.clear()
        self._token_expires_at.clear()
        self._passed_over.clear()
        self._set_aside.clear()
        await self._stop_expiration()
