"""`ExclusiveStateManagerDisk`: a directory for one process, whose states are in memory too.

What was read once is not read again: nobody else changes it. A change is written before it is
acknowledged; or, with a debounce, it is acknowledged in memory, and the bytes that were committed
last are written when the debounce is over. Renewed deadlines are written by and by.

A change that waits for nothing gives no other task its turn, and many of them in a row would keep
the writing task from its own:

    change         is acknowledged; the writing task is made, and is to write in 2 s
    changes        thousands, none of which suspends
    2 s later      the loop has not turned, and nothing is written

So a change that comes when the writing task is late waits for it, and is then written at once.

While writing fails, nothing more is acknowledged that is not written: a change is then written at
once, and its caller gets the error.
"""

import asyncio
import contextlib
import contextvars
import logging
import math
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from statemgr.backends.disk.files import UnsyncedError, ident_name, ident_of, state_name
from statemgr.backends.disk.locks import IdentLocks
from statemgr.backends.disk.manager import PURGE_SLICE, StateManagerDisk, end_wait
from statemgr.backends.disk.records import (
    PURGED,
    Change,
    Place,
    Scanned,
    StateRecords,
    place_of,
    places_of,
)
from statemgr.backends.disk.trips import Job
from statemgr.errors import (
    BackendUnavailableError,
    CommitUncertainError,
    StateDecodeError,
    StateManagerError,
)
from statemgr.live import NONE, Entry, LiveStates
from statemgr.locks import KeyedLocks
from statemgr.modification import StateModification
from statemgr.record import Record
from statemgr.statistics import StateInfo
from statemgr.token import AnyToken

T = TypeVar("T")

logger = logging.getLogger("statemgr")

_RENEW_DELAY = 1.0  # seconds until renewed deadlines are written, if nothing else is
_RETRY_DELAY = 1.0  # seconds until what could not be written is tried again
_FLUSH_SLICE = 64  # idents written in one trip
_LATE = 0.5  # seconds after which a trip of the writing task waits for its turn, or for the disk


class ExclusiveStateManagerDisk(LiveStates, StateManagerDisk):
    """What `StateManagerDisk(exclusive=True)` is."""

    def __init__(self, *args: Any, debounce: float = 0.0, **options: Any) -> None:
        super().__init__(*args, debounce=debounce, **options)
        self._init_live(rollback=True)
        self._debounce = debounce
        self._loaded: set[str] = set()  # the file names of all entries
        # Files of states that have expired in memory, with the lock keys of their idents.
        self._leftovers: dict[str, str] = {}
        # What is being read from files, by key: those who read it at the same time share one.
        # `_forget` takes it out, for what they have read may be gone then.
        self._readings: weakref.WeakValueDictionary[str, _Reading] = weakref.WeakValueDictionary()
        # What is to be written, in the order of asking: by lock key and key, whether it is the
        # state, or its deadline only.
        self._unwritten: dict[str, dict[str, bool]] = {}
        # Who writes files of an ident. Not the ident's lock: what a body has committed is written
        # while the next one runs.
        self._writers = KeyedLocks(self._clock, self._redaction.ident)
        self._writing: asyncio.Task[None] | None = None
        self._write_by = math.inf  # when the writing task is to go on: after that it is late
        self._written = asyncio.Event()  # for who waits for it then
        self._failing = False

    # Changing

    def _load_nowait(self, modification: StateModification[Any]) -> bool:
        del self._locks.holders[modification.lock_key]  # nobody has had time to wait for it
        return False

    async def _begin(self, modification: StateModification[Any]) -> None:
        await self._acquire(modification, modification.timeout)
        try:
            self._check_open()
            for token, error in await self._fetch(modification.tokens):
                self._recover(token, error)
                async with self._writing_to(token.lock_key) as writer:
                    await self._trip(writer.alone(self._records.setting_aside([place_of(token)])))
        except BaseException:
            self._release(modification.lock_key)
            raise
        self._load(modification)
        damaged = [t for t in modification.tokens if self._set_aside.pop(t.cache_key, None)]
        if damaged:
            await self._move_aside(modification, damaged)

    def _commit_nowait(self, modification: StateModification[Any], now: float) -> bool:
        if not self._debounce or self._failing or now > self._write_by:
            return False
        super()._commit_nowait(modification, now)
        queued = self._unwritten.get(modification.lock_key)
        if queued is None or not queued.get(modification.state_key or ""):
            self._write_later(modification.tokens, state=True)
        return True

    async def _commit(
        self, modification: StateModification[Any], payloads: Sequence[bytes]
    ) -> None:
        try:
            await self._catch_up()
            await self._save(modification.tokens, modification.states(), payloads)
        except BaseException:
            for token in modification.tokens:
                self._forget_live(token)
            raise
        finally:
            self._release(modification.lock_key)

    async def _move_aside(
        self, modification: StateModification[Any], damaged: Sequence[AnyToken]
    ) -> None:
        """Move records to the quarantine that could be read, but not decoded."""
        try:
            await self._flush_ident(modification.lock_key)
            async with self._writing_to(modification.lock_key) as writer:
                await self._trip(writer.alone(self._records.setting_aside(places_of(damaged))))
        except BaseException:
            self._release(modification.lock_key)
            raise
        for token in damaged:
            self._forget(token)

    async def _abort(self, modification: StateModification[Any]) -> None:
        await super()._abort(modification)
        self._write_later(modification.tokens, state=False)

    async def _write(self, modification: StateModification[Any]) -> None:
        token, state = modification.token, modification.state
        payload = self._encode(token, state)
        await self._acquire(modification)
        try:
            self._check_open()
            # What is there now need not be read: it is replaced.
            now = self._now()
            if self._debounce and not self._failing and now <= self._write_by:
                self._store(token, state, payload, now)
                self._write_later((token,), state=True)
            else:
                await self._catch_up()
                await self._save((token,), (state,), (payload,))
            self._forget_live(token)
        finally:
            self._release(token.lock_key)

    async def _delete(self, modification: StateModification[Any]) -> bool:
        token = modification.token
        place = place_of(token)
        await self._acquire(modification)
        try:
            self._check_open()
            found = self._find(token) is not None
            since = self._to_wall_clock(modification.locked_since)
            if self._unwritten.get(token.lock_key, {}).keys() - {token.cache_key}:
                # What was committed together is to be in files together, before a part of it
                # goes. But a state may be deleted to make room.
                with contextlib.suppress(BackendUnavailableError, CommitUncertainError):
                    await self._flush_ident(token.lock_key)
            async with self._writing_to(token.lock_key) as writer:
                try:
                    stored = await self._trip(
                        writer.alone(self._records.deleting(place, since, writer))
                    )
                finally:
                    # Also if this was cancelled meanwhile. If it is uncertain, the file is gone,
                    # but may come back after a crash.
                    if writer.succeeded or writer.is_uncertain:
                        self._forget(token)
        finally:
            self._release(token.lock_key)
        return found or stored

    async def _save(
        self, tokens: Sequence[AnyToken], states: Sequence[Any], payloads: Sequence[bytes]
    ) -> None:
        """Write states, all or none, and have them in memory then."""
        lock_key = tokens[0].lock_key
        async with self._writing_to(lock_key) as writer:
            now = self._now()
            deadline = self._to_wall_clock(now) + self.token_expiration
            places = places_of(tokens)
            changes = [Change(*one, deadline) for one in zip(places, payloads, strict=True)]
            # What waits to be written goes with it: a crash must not leave it behind.
            waiting = self._unwritten.pop(lock_key, {})
            keys = {token.cache_key for token in tokens}
            others = {key: state for key, state in waiting.items() if key not in keys}
            changes += self._changes_of(others)
            flushing = self._records.flushing(changes, self._renewals_of(others))
            try:
                await self._trip(writer.alone(flushing), lock_key)
            finally:
                if writer.is_uncertain:
                    for token in tokens:  # what the file has now is what counts
                        self._forget(token)
                if not writer.succeeded:
                    self._write_again(lock_key, waiting)
                elif self._refusal is None:  # also if this was cancelled meanwhile
                    for token, state, payload in zip(tokens, states, payloads, strict=True):
                        self._store(token, state, payload, now)

    # Reading

    async def _read(self, tokens: Sequence[AnyToken]) -> Sequence[Any]:
        errors = dict(await self._fetch(tokens))
        states = [
            self._recover(token, errors[token]) if token in errors else self._read_one(token)
            for token in tokens
        ]
        self._write_later(tokens, state=False)
        return states

    async def _has(self, token: AnyToken) -> bool:
        return bool(await self._fetch((token,))) or await super()._has(token)

    async def _renew(self, token: AnyToken) -> bool:
        if await self._fetch((token,)):
            return True
        self._write_later((token,), state=False)
        return await super()._renew(token)

    async def _fetch(self, tokens: Iterable[AnyToken]) -> list[tuple[AnyToken, StateDecodeError]]:
        """Read what is not in memory; return what cannot be read."""
        errors: list[tuple[AnyToken, StateDecodeError]] = []
        while missing := [token for token in tokens if self._is_missing(token)]:
            readings = [self._readings.setdefault(t.cache_key, _Reading()) for t in missing]
            found = await self._trip(self._records.fetching(places_of(missing)))
            self._check_open()
            tokens = again = []
            for token, reading, record in zip(missing, readings, found, strict=True):
                if isinstance(record, StateDecodeError):
                    errors.append((token, self._undecodable(token, record)))
                elif record is not None and token.cache_key not in self._entries:
                    if self._readings.get(token.cache_key) is reading:
                        self._adopt(token, record)
                    else:
                        again.append(token)  # it was deleted meanwhile, and may be there anew
        return errors

    def _is_missing(self, token: AnyToken) -> bool:
        key = token.cache_key
        return key not in self._entries and state_name(key) not in self._leftovers

    def _adopt(self, token: AnyToken, record: Record) -> None:
        """Take a record that was read into memory."""
        key, name = token.cache_key, state_name(token.cache_key)
        self._token_expires_at.pop(name, None)
        left = min(record.expires_at - self._clock.time(), self.token_expiration)
        deadline = self._track_token(key, self._now() + left)
        self._entries[key] = Entry(token, NONE, record.payload, deadline)
        self._loaded.add(name)

    async def _list(self, prefix: str) -> AsyncIterator[StateInfo]:
        loaded = frozenset(self._loaded)
        async for info in LiveStates._list(self, prefix):
            yield info
        names = self._files.names()
        while (batch := await self._trip(self._records.describing(names))) is not None:
            since = {ident_name(key): one.locked_since for key, one in self._locks.holders.items()}
            now = self._clock.time()
            for place, info in batch:
                locked_since = since.get(place.ident)
                gone_by = now if locked_since is None else self._to_wall_clock(locked_since)
                if (
                    info.ident.startswith(prefix)
                    and place.name not in loaded
                    and place.name not in self._leftovers
                    and info.expires_at > gone_by
                ):
                    yield info

    # Entries

    def _store(self, token: AnyToken, state: object, payload: bytes | None, now: float) -> None:
        super()._store(token, state, payload, now)
        name = state_name(token.cache_key)
        if name not in self._loaded:
            self._loaded.add(name)
            self._leftovers.pop(name, None)
            self._token_expires_at.pop(name, None)

    def _drop(self, key: str) -> None:
        self._track_token(self._leave_over(key), self._now())

    def _leave_over(self, key: str) -> str:
        """Drop an entry, and remember its file."""
        token, name = self._entries[key].token, state_name(key)
        self._forget(token)
        self._leftovers[name] = token.lock_key
        return name

    def _forget(self, token: AnyToken) -> None:
        """Have nothing in memory of a state whose file is gone."""
        name = state_name(token.cache_key)
        self._entries.pop(token.cache_key, None)
        self._readings.pop(token.cache_key, None)
        kinds = self._unwritten.get(token.lock_key)
        if kinds is not None:
            kinds.pop(token.cache_key, None)
            if not kinds:
                del self._unwritten[token.lock_key]
        self._loaded.discard(name)
        for key in (token.cache_key, name):
            self._token_expires_at.pop(key, None)

    def _track_file(self, name: str, deadline: float) -> None:
        if name not in self._loaded:
            super()._track_file(name, deadline)

    def _forget_live(self, token: AnyToken) -> None:
        entry = self._entries.get(token.cache_key)
        if entry is not None:
            entry.live = NONE

    def _lock_held_of(self, key: str) -> str | None:
        return super()._lock_held_of(key) if key in self._entries else None

    async def _drop_tokens(self, keys: Sequence[str]) -> None:
        """Drop entries, and the files of these and of states that are not in memory."""
        locked = set(map(ident_name, self._locks.holders))
        expired, left_over, in_files = [], [], []
        for key in keys:  # without waiting: meanwhile a state may be renewed or written anew
            if key in self._entries:
                expired.append(self._leave_over(key))
                continue
            self._token_expires_at.pop(key, None)
            if key in self._leftovers:
                left_over.append(key)
            elif ident_of(key) in locked:
                self._track_token(key, self._now() + _RETRY_DELAY)
            elif key not in self._loaded:
                in_files.append(key)
        await self._remove_leftovers(left_over + expired)
        self._purged += len(expired)
        for name, outcome in await self._purge_files(in_files):
            if outcome is PURGED:  # unless a look-up came upon it meanwhile
                self._purged += self._leftovers.pop(name, None) is None
            elif isinstance(outcome, float):
                self._track_file(name, outcome)

    async def _remove_leftovers(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), PURGE_SLICE):
            await asyncio.gather(*map(self._remove_leftover, names[start : start + PURGE_SLICE]))

    async def _remove_leftover(self, name: str) -> None:
        lock_key = self._leftovers.get(name)
        if lock_key is None:
            return
        async with self._writing_to(lock_key) as writer:
            if name in self._leftovers:  # else it was written again meanwhile
                await self._trip(writer.alone(self._records.dropping([name])))
                self._leftovers.pop(name, None)  # unless a change has come meanwhile

    # Writing behind

    def _write_later(self, tokens: Iterable[AnyToken], *, state: bool) -> None:
        if self._refusal is not None:
            return
        for token in tokens:
            key = token.cache_key
            if key in self._entries:
                kinds = self._unwritten.setdefault(token.lock_key, {})
                kinds[key] = state or kinds.get(key, False)
        if self._unwritten and self._writing is None:
            self._write_by = self._next_round()
            self._writing = asyncio.get_running_loop().create_task(
                self._write_until_done(),
                name=f"{type(self).__name__} writer",
                context=contextvars.Context(),
            )

    async def _write_until_done(self) -> None:
        try:
            while self._unwritten:
                await self._sleep_until(self._write_by)
                try:
                    await self._flush()
                except StateManagerError:  # also what cannot be read: the others are written
                    logger.exception(
                        "what changed cannot be written; trying again in %g s", _RETRY_DELAY
                    )
                self._write_by = self._next_round()
                self._end_round()
        finally:
            self._writing = None
            self._write_by = math.inf
            self._end_round()

    def _next_round(self) -> float:
        delay = _RETRY_DELAY if self._failing else self._debounce or _RENEW_DELAY
        return self._now() + delay

    def _end_round(self) -> None:
        """Wake who waits for the writing task."""
        self._written.set()
        self._written.clear()

    async def _catch_up(self) -> None:
        """Wait until the writing task has written what there is, if it is late."""
        if self._debounce and not self._failing and self._now() > self._write_by:
            await self._written.wait()

    async def _sleep_until(self, due: float) -> None:
        seconds = due - self._now()
        if seconds <= 0:
            return
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(seconds, end_wait, over)
        try:
            await over
        finally:
            timer.cancel()

    async def _flush(self) -> None:
        """Write what is to be written.

        Raises:
            StateManagerError: If some of it cannot be written; that is kept.
        """
        idents = list({**self._unwritten, **self._writers.holders})
        failure: BaseException | None = None
        for start in range(0, len(idents), _FLUSH_SLICE):
            some = idents[start : start + _FLUSH_SLICE]
            self._write_by = self._now() + min(self._debounce, _LATE)
            outcomes = await asyncio.gather(*map(self._flush_ident, some), return_exceptions=True)
            failure = next(filter(None, outcomes), failure)
        self._failing = failure is not None
        if failure is not None:
            raise failure

    async def _flush_ident(self, lock_key: str) -> None:
        """Write what has changed of one ident, all or none."""
        async with self._writing_to(lock_key) as writer:
            kinds = self._unwritten.pop(lock_key, None)
            if kinds is None:
                return
            flushing = self._records.flushing(self._changes_of(kinds), self._renewals_of(kinds))
            try:
                await self._trip(writer.alone(flushing))
            finally:
                if not writer.succeeded:
                    self._write_again(lock_key, kinds)

    def _changes_of(self, kinds: dict[str, bool]) -> list[Change]:
        return [
            Change(place_of(entry.token), entry.payload, self._deadline_of(entry))
            for entry in (self._entries[key] for key, state in kinds.items() if state)
            if entry.payload is not None
        ]

    def _renewals_of(self, kinds: dict[str, bool]) -> list[tuple[Place, float]]:
        return [
            (place_of(entry.token), self._deadline_of(entry))
            for entry in (self._entries[key] for key, state in kinds.items() if not state)
        ]

    def _deadline_of(self, entry: Entry) -> float:
        return self._to_wall_clock(entry.deadline.expires_at)

    def _write_again(self, lock_key: str, kinds: dict[str, bool]) -> None:
        """Put back what could not be written."""
        left = {key: state for key, state in kinds.items() if key in self._entries}
        if left:
            later = self._unwritten.setdefault(lock_key, {})
            for key, state in left.items():
                later[key] = state or later.get(key, False)

    @contextlib.asynccontextmanager
    async def _writing_to(self, lock_key: str) -> AsyncIterator["_Writer"]:
        """Write files of an ident, one at a time."""
        writer = _Writer(ident_name(lock_key), self._idents, self._records)
        await self._writers.acquire(lock_key, writer)
        try:
            yield writer
        finally:
            self._writers.release(lock_key)

    # The manager's life

    async def _close(self) -> None:
        self._locks.fail_waiters(self._refused)
        await self._stop_scan()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])
        while self._unwritten or self._writers.holders:
            await self._flush()
        await LiveStates._close(self)
        await self._close_directory()

    def _to_wall_clock(self, monotonic: float) -> float:
        return monotonic - self._now() + self._clock.time()

    def _scanning(self, names: Iterator[str]) -> Job[Scanned | None]:
        # What has expired in a file may live in memory: the purge finds out.
        return self._records.scanning(names, purge=False)


class _Reading:
    """A file being read, of a state that is not in memory."""


class _Writer:
    """Who writes files of an ident.

    Attributes:
        succeeded: Whether its job has ended without an error: also if the caller was cancelled.
        is_uncertain: Whether it was done, and may not be on stable storage: likewise.
    """

    task: "asyncio.Task[Any] | None" = None
    locked_since = 0.0

    def __init__(self, ident: str, idents: IdentLocks, records: StateRecords) -> None:
        self.succeeded = False
        self.is_uncertain = False
        self._ident = ident
        self._idents = idents
        self._records = records

    def alone(self, job: Job[T]) -> Job[T]:
        """Run a job while a scan leaves the ident alone, after what a dead program has begun."""
        self._idents.take(self._ident, self)
        try:
            yield from self._records.recovering(self._ident)
            result = yield from job
        except UnsyncedError:
            self.is_uncertain = True
            raise
        finally:
            self._idents.free(self._ident, self)
        self.succeeded = True
        return result
