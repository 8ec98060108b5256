"""`StateRecords`: what is done to the records of states, as jobs that run in the thread."""

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from statemgr.backends.disk.files import (
    NewRecord,
    NotAFileError,
    StateDirectory,
    StateFile,
    ident_of,
    is_record,
    state_name,
    unfilled,
)
from statemgr.backends.disk.locks import IdentLocks
from statemgr.backends.disk.trips import Job
from statemgr.clock import Clock
from statemgr.errors import StateDecodeError
from statemgr.record import Record, RecordCodec, RecordHead
from statemgr.statistics import StateInfo
from statemgr.token import AnyToken
from statemgr.token import ident_of as ident_of_key

logger = logging.getLogger("statemgr")

PURGED: Final = object()  # what a purge says of a state that it has removed
_LOCKED_DELAY = 1.0  # seconds until a purge looks again at what another process has locked
_SCAN_SLICE = 0.001  # seconds of a scan for each trip
_LIST_SLICE = 32  # records of a list for each trip
_HEAD_SIZE = 512  # bytes that nearly always hold a record's head and key
_LARGER = 8  # times as many are read if they do not
_BRIEFLY = 0.0001  # seconds until a reader looks again at what is held briefly


class Place(NamedTuple):
    """Where a state is: its file's name, and the key that must stand inside, None for any."""

    name: str
    cache_key: str | None

    @property
    def ident(self) -> str:
        """The ident's part of the name."""
        return ident_of(self.name)


class Change(NamedTuple):
    """A state that is to be written.

    Attributes:
        place: Where.
        payload: The serialized state.
        deadline: When it expires: wall clock, seconds.
    """

    place: Place
    payload: bytes
    deadline: float


class Scanned(NamedTuple):
    """What a slice of a scan found.

    Attributes:
        found: Names of records, and when to look at them: wall clock, seconds.
        purged: Names of those that were removed.
    """

    found: list[tuple[str, float]]
    purged: list[str]


# A trip finds a serialized state, nothing, or a record that cannot be read.
Found = bytes | StateDecodeError | None


def places_of(tokens: Iterable[AnyToken]) -> list[Place]:
    """Return where the states of tokens are."""
    return [place_of(token) for token in tokens]


def place_of(token: AnyToken) -> Place:
    """Return where the state of a token is."""
    return Place(state_name(token.cache_key), token.cache_key)


class StateRecords:
    """Load, save, list and purge records.

    A job that takes an `owner` lets the ident's lock go at its end, whatever comes of it. The
    others that need it say so, and leave it held.

    Args:
        files: The directory.
        codec: What records are made by.
        idents: The locks between processes.
        clock: The clock that deadlines are compared with.
        reset: Whether what cannot be read may be moved aside; else it is an error.
    """

    def __init__(
        self,
        files: StateDirectory,
        codec: RecordCodec,
        idents: IdentLocks,
        clock: Clock,
        *,
        reset: bool,
    ) -> None:
        self._files = files
        self._codec = codec
        self._idents = idents
        self._clock = clock
        self._reset = reset

    # For who holds the lock

    def loading(self, places: Sequence[Place], since: float) -> Job[list[Found]]:
        """Return what a body starts from; remove what had expired by `since`."""
        try:
            yield from self._files.recover(places[0].ident)
        except StateDecodeError as error:
            return [error for _ in places]
        return [self._load(place, since) for place in places]

    def fetching(self, places: Sequence[Place]) -> Job[list[Record | StateDecodeError | None]]:
        """Return records of any idents, whether they have expired or not."""
        yield from ()
        found: dict[Place, Record | StateDecodeError | None] = {}
        for ident, group in _by_ident(places).items():
            found |= zip(group, self._open_settled(ident, group), strict=True)
        return [found[place] for place in places]

    def saving(self, changes: Sequence[Change], owner: object) -> Job[None]:
        """Write records of one ident, all or none. For who has loaded them."""
        ident = changes[0].place.ident
        try:
            yield from self._files.write_together(ident, [self._pack(*one) for one in changes])
        finally:
            self._idents.free(ident, owner)

    def flushing(
        self, changes: Sequence[Change], renewals: Sequence[tuple[Place, float]]
    ) -> Job[None]:
        """Write and renew records of one ident."""
        for place, deadline in renewals:
            self._files.renew(place.name, deadline)
        if changes:
            records = [self._pack(*one) for one in changes]
            yield from self._files.write_together(changes[0].place.ident, records)

    def replacing(self, change: Change, owner: object) -> Job[None]:
        """Write a record that was not loaded."""
        ident = change.place.ident
        try:
            yield from self.recovering(ident)
            yield from self._files.write(self._pack(*change))
        finally:
            self._idents.free(ident, owner)

    def deleting(self, place: Place, since: float, owner: object) -> Job[bool]:
        """Remove a record; return whether it had not expired by `since`."""
        try:
            yield from self.recovering(place.ident)
            record = self._open(place, self._files.read_locked(place.name))
            yield from self._files.remove(place.name)
        finally:
            self._idents.free(place.ident, owner)
        return record is not None and not _has_expired(record, since)

    def renewing(self, places: Sequence[Place], deadline: float, owner: object) -> Job[None]:
        """Renew the records of one ident that are there."""
        try:
            for place in places:
                # Who leaves a body by an error is to get that error, and not one of ours.
                with contextlib.suppress(OSError):
                    self._files.renew(place.name, deadline)
        finally:
            self._idents.free(places[0].ident, owner)
        yield from ()

    def setting_aside(self, places: Sequence[Place]) -> Job[None]:
        """Move records that cannot be read to the quarantine."""
        for place in places:
            self._files.set_aside(place.name)
        self._files.set_aside_commit(places[0].ident)
        yield from ()

    def freeing(self, ident: str, owner: object) -> Job[None]:
        """Let the lock go, or the place among those who wait for it."""
        self._idents.free(ident, owner)
        yield from ()

    def recovering(self, ident: str) -> Job[None]:
        """Finish an interrupted commit, for who does not need the records it holds.

        Raises:
            StateDecodeError: If it cannot be read. Without it, older states would come back.
        """
        try:
            yield from self._files.recover(ident)
        except StateDecodeError as error:
            if not self._reset:
                raise
            logger.error("an interrupted commit is set aside: %s", error.reason)  # noqa: TRY400  # the reason says it
            self._files.set_aside_commit(ident)

    def _load(self, place: Place, since: float) -> Found:
        record = self._open(place, self._files.read_locked(place.name))
        if _has_expired(record, since):
            self._files.drop(place.name)
            return None
        return record.payload if isinstance(record, Record) else record

    def _pack(self, place: Place, payload: bytes, deadline: float) -> NewRecord:
        assert place.cache_key is not None  # noqa: S101  # who saves has a token
        return NewRecord(place.name, self._codec.pack(place.cache_key, payload, deadline), deadline)

    def _open(self, place: Place, file: StateFile | None) -> Record | StateDecodeError | None:
        """Return the record in a file, with the deadline that counts."""
        if file is None:
            return None
        try:
            record = self._codec.unpack(unfilled(file.data), place.cache_key)
        except StateDecodeError as error:
            return error
        if file.renewed_until > record.expires_at:
            record = record._replace(expires_at=file.renewed_until)
        return record

    # For readers, who hold no lock

    def looking(
        self, places: Sequence[Place], locked_since: dict[str, float], renew_until: float | None
    ) -> Job[list[Found]]:
        """Return what is committed.

        Args:
            places: What to look at.
            locked_since: Since when idents are locked here, wall clock.
            renew_until: The new deadline of what is there, None to leave it.
        """
        found: dict[Place, Found] = {}
        for ident, group in _by_ident(places).items():
            since = locked_since.get(ident)
            for place, record in zip(group, self._open_settled(ident, group), strict=True):
                if isinstance(record, Record):
                    gone = self._is_gone(place, record.expires_at, since)
                    found[place] = None if gone else record.payload
                else:
                    found[place] = record
                if renew_until is not None and found[place] is not None:
                    self._files.renew(place.name, renew_until)
        yield from ()
        return [found[place] for place in places]

    def _open_settled(
        self, ident: str, places: Sequence[Place]
    ) -> list[Record | StateDecodeError | None]:
        """Open records that may be replaced meanwhile."""
        names = [place.name for place in places]
        before: list[StateFile | None] = []
        while True:
            try:
                files = self._files.read(ident, names)
            except StateDecodeError as error:
                return [error for _ in places]
            found = [self._open(*one) for one in zip(places, files, strict=True)]
            # A file that was replaced twice while it was read may hold parts of two records.
            if files == before or not any(isinstance(one, StateDecodeError) for one in found):
                return found
            before = files

    def _is_gone(self, place: Place, deadline: float, since: float | None) -> bool:
        """Return whether a state has expired, and remove it if nobody has its lock.

        `since` tells since when the lock is held or waited for here, None if it is not.
        """
        now = self._clock.time()
        if deadline > now:
            return False
        if since is not None:
            return deadline <= since
        reader = object()
        while not self._idents.take_briefly(place.ident, reader):
            if self._idents.is_in_use(place.ident):
                return False
            time.sleep(_BRIEFLY)  # another reader or a purge is about to remove it
        try:
            if self._files.is_committing(place.ident):
                return True  # the lock's next holder removes it
            return self._load(place, now) is None
        finally:
            self._idents.free(place.ident, reader)

    def listing(self, names: Iterator[str]) -> Job[list[StateInfo] | None]:
        """Describe the next states of a directory, None at its end."""
        described = yield from self.describing(names)
        if described is None:
            return None
        return [
            info for place, info in described if not self._is_gone(place, info.expires_at, None)
        ]

    def describing(self, names: Iterator[str]) -> Job[list[tuple[Place, StateInfo]] | None]:
        """Do the same, and describe what has expired too."""
        batch = list(islice(names, _LIST_SLICE))
        if not batch:
            return None
        yield from ()
        described = (self._describe(name) for name in filter(is_record, batch))
        return [one for one in described if one is not None]

    def _describe(self, name: str) -> tuple[Place, StateInfo] | None:
        """Describe a state, None if it is gone or cannot be read."""
        try:
            head, renewed_until = self._read_head(name)
        except NotAFileError:
            return None
        if head is None:
            return None
        lock_key, _, class_name = head.cache_key.partition("/")
        expires_at = max(head.expires_at, renewed_until)
        info = StateInfo(ident_of_key(lock_key), class_name, head.size, expires_at)
        return Place(name, head.cache_key), info

    def _read_head(self, name: str) -> tuple[RecordHead | None, float]:
        size = _HEAD_SIZE
        while (file := self._files.read_head(name, size)) is not None:
            with contextlib.suppress(StateDecodeError):
                return RecordCodec.peek(file.data), file.renewed_until
            if len(file.data) < size:
                break  # all of it was read
            size *= _LARGER
        return None, 0.0

    # For the purge

    def scanning(self, names: Iterator[str], *, purge: bool) -> Job["Scanned | None"]:
        """Return the next states of a directory and their deadlines; None at its end.

        What programs that died have left beside them is tidied up on the way, and what has
        expired is removed if `purge` says so.
        """
        yield from ()
        scanned = Scanned([], [])
        over = time.perf_counter() + _SCAN_SLICE
        for name in names:
            if not is_record(name):
                self._tidy(name)
            else:
                now = self._clock.time()
                deadline = self._files.deadline_of(name)
                outcome = self._purge_or_leave(name, now) if purge else deadline
                if outcome is PURGED:
                    scanned.purged.append(name)
                elif isinstance(outcome, float):
                    scanned.found.append((name, outcome))
            if time.perf_counter() >= over:
                return scanned
        return scanned if scanned.found or scanned.purged else None

    def _tidy(self, name: str) -> None:
        ident, owner = ident_of(name), object()
        try:
            if self._idents.take(ident, owner):
                for descriptor in self._files.tidy(name):
                    os.fsync(descriptor)  # in this step: no other job comes between
        except StateDecodeError as error:
            logger.error("an interrupted commit is left as it is: %s", error.reason)  # noqa: TRY400  # the reason says it
        finally:
            self._idents.free(ident, owner)

    def purging(self, names: Sequence[str], now: float) -> Job[list[object]]:
        """Remove expired states.

        Returns:
            For each name `PURGED`, or the time to look again, or None if there is nothing to
            be purged any more.
        """
        yield from ()
        return [self._purge_or_leave(name, now) for name in names]

    def _purge_or_leave(self, name: str, now: float) -> object:
        try:
            return self._purge(name, now)
        except OSError:  # of one file: the others are to be purged all the same
            logger.exception("an expired state cannot be purged until the next scan")
            return None

    def dropping(self, names: Sequence[str]) -> Job[None]:
        """Remove records that have expired, whatever deadline stands in them."""
        yield from ()
        for name in names:
            self._files.drop(name)

    def _purge(self, name: str, now: float) -> object:
        deadline = self._files.deadline_of(name)
        if deadline is None or deadline > now:
            return deadline
        ident, owner = ident_of(name), object()
        if not self._idents.take_briefly(ident, owner):
            return now + _LOCKED_DELAY
        try:
            if self._files.is_committing(ident):
                return now + _LOCKED_DELAY
            record = self._open(Place(name, None), self._files.read_locked(name))
            if not isinstance(record, Record):
                return None  # gone; or it cannot be read, and is kept
            if record.expires_at > now:
                return record.expires_at
            self._files.drop(name)
        finally:
            self._idents.free(ident, owner)
        return PURGED


def _by_ident(places: Iterable[Place]) -> dict[str, list[Place]]:
    by_ident: dict[str, list[Place]] = {}
    for place in places:
        by_ident.setdefault(place.ident, []).append(place)
    return by_ident


def _has_expired(record: Record | StateDecodeError | None, since: float) -> bool:
    return isinstance(record, Record) and record.expires_at <= since
