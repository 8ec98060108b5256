"""The disk backend with one fault seeded in each class, and the test that finds it."""

import asyncio
import os
from collections.abc import Callable
from typing import Any, TypeVar

from statemgr import StateManagerDisk
from statemgr.backends.disk import files
from statemgr.backends.disk.exclusive import ExclusiveStateManagerDisk
from statemgr.backends.disk.files import StateDirectory
from statemgr.backends.disk.locks import NoLocks, RangeLocks
from statemgr.backends.disk.records import PURGED, Change, Place, StateRecords, places_of
from statemgr.errors import StateDecodeError
from statemgr.live import NONE
from statemgr.locks import KeyedLocks

from .test_disk import DebounceHarness, DiskHarness, ExclusiveHarness

M = TypeVar("M", bound=type)

MUTANTS: list[tuple[type[StateManagerDisk], type[DiskHarness], str, dict[str, Any]]] = []


def found_by(
    test: str, harness: type[DiskHarness] = DiskHarness, **arguments: Any
) -> Callable[[M], M]:
    """Name the test that fails on a mutant, the mode in which it does, and its parameters."""

    def add(mutant: M) -> M:
        MUTANTS.append((mutant, harness, test, arguments))
        return mutant

    return add


class _Unscanned:
    """Has no scan, whose thread may see that a state has expired before anybody asks."""

    def _started(self) -> None:
        pass


class Parts(StateManagerDisk):
    """A manager made of other parts."""

    files_type: type[StateDirectory] = StateDirectory
    records_type: type[StateRecords] = StateRecords

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._files.__class__ = self.files_type
        self._records.__class__ = self.records_type


# Faults of the files


class _InPlace(StateDirectory):
    def write(self, record):
        descriptor = os.open(self._path(record.name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            files._write_all(descriptor, files._filled(record.data))
            os.utime(descriptor, ns=files._times(record.deadline))
        finally:
            os.close(descriptor)
        yield from ()


@found_by("test_change_that_fails", several=False)
class WritesInPlace(Parts):
    """A record is overwritten, and not replaced by another file."""

    files_type = _InPlace


class _OneByOne(StateDirectory):
    def write_together(self, ident, records):
        for record in records:
            yield from self.write(record)


@found_by("test_change_that_fails", several=True)
class WritesOneByOne(Parts):
    """Several states are written one after the other."""

    files_type = _OneByOne


class _CommitUnseen(StateDirectory):
    def _read_commit(self, ident):
        return {}


@found_by("test_change_that_fails", several=True)
class ReadersMissCommits(Parts):
    """Readers do not look for records that are being committed together."""

    files_type = _CommitUnseen


class _CommitLeft(StateDirectory):
    def recover(self, ident):
        yield from ()


@found_by("test_change_that_fails", several=True)
class NobodyFinishesCommits(Parts):
    """The lock's next holder does not finish what the one before has begun."""

    files_type = _CommitLeft


class _LooksOnce(StateDirectory):
    def _is_in_place(self, name, file):
        return True


@found_by("test_reader_of_a_file_that_is_used_again")
class ReaderLooksOnce(Parts):
    """A reader does not look afterwards whether its file is still the record."""

    files_type = _LooksOnce


class _ErrorsAreNothing(StateDirectory):
    def _read_file(self, name, limit=None):
        try:
            return super()._read_file(name, limit)
        except OSError:
            return None


@found_by("test_read_that_fails")
class FailedReadIsFresh(Parts):
    """Too many open files, say, and there is no state."""

    files_type = _ErrorsAreNothing


class _NoQuarantine(StateDirectory):
    def set_aside(self, name):
        self.drop(name)


@found_by("test_spoilt_record_is_set_aside_by_a_body")
class SetAsideDeletes(Parts):
    """What cannot be read makes room for what can."""

    files_type = _NoQuarantine


class _ShortNames(StateDirectory):
    def _path(self, name):
        return super()._path(name[0] * 32 + name[32:])


@found_by("test_any_ident_works")
class IdentsShareAName(Parts):
    """The digest of an ident is cut short, and some have the same."""

    files_type = _ShortNames


# Faults of the records


class _DamageIsNothing(StateRecords):
    def _open(self, place, file):
        record = super()._open(place, file)
        return None if isinstance(record, StateDecodeError) else record


@found_by("test_spoilt_record_raises_each_time")
class DamagedIsFresh(Parts):
    """A record that cannot be read is none."""

    records_type = _DamageIsNothing


class _AnyKey(StateRecords):
    def _open(self, place, file):
        return super()._open(Place(place.name, None), file)


@found_by("test_record_of_another_token")
class KeyIsNotCompared(Parts):
    """What is in the file is the state, whatever key stands with it."""

    records_type = _AnyKey


class _NeverGone(StateRecords):
    def _is_gone(self, place, deadline, since):
        return False


@found_by("test_state_is_gone_at_its_deadline", settled=False)
class ExpiredIsReadable(_Unscanned, Parts):
    """A reader finds a state until the purge comes to it."""

    records_type = _NeverGone


class _LoadsAll(StateRecords):
    def _load(self, place, since):
        return super()._load(place, 0.0)


@found_by("test_body_after_the_deadline_starts_afresh")
class ExpiredIsLoaded(_Unscanned, Parts):
    """A body finds a state until the purge comes to it."""

    records_type = _LoadsAll


class _ByTime(StateRecords):
    def _purge(self, name, now):
        deadline = self._files.deadline_of(name)
        if deadline is None or deadline > now:
            return deadline
        record = self._open(Place(name, None), self._files.read_locked(name))
        if isinstance(record, StateDecodeError):
            return None
        self._files.drop(name)
        return PURGED


@found_by("test_purge_of_what_has_not_expired", spoilt=False)
class PurgeGoesByTheFilesTime(Parts):
    """The purge does not look at the deadline in the record."""

    records_type = _ByTime


class _PurgesDamaged(StateRecords):
    def _purge(self, name, now):
        outcome = super()._purge(name, now)
        if outcome is None:
            self._files.drop(name)
        return outcome


@found_by("test_purge_of_what_has_not_expired", spoilt=True)
class PurgeDropsDamaged(Parts):
    """The purge takes for expired what it cannot read."""

    records_type = _PurgesDamaged


class _PurgesLocked(StateRecords):
    def _purge(self, name, now):
        idents, self._idents = self._idents, NoLocks()
        try:
            return super()._purge(name, now)
        finally:
            self._idents = idents


@found_by("test_state_locked_by_the_other_manager")
class PurgeTakesNoLock(Parts):
    """The purge knows the locks of its own manager only."""

    records_type = _PurgesLocked


# Faults of the locks


@found_by("test_bodies_of_two_managers_never_overlap")
class NoLockBetweenProcesses(StateManagerDisk):
    """A manager keeps its own tasks apart, and no others."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._idents.close()
        self._idents = self._records._idents = NoLocks()


class _OfTheProcess(RangeLocks):
    def take(self, ident, owner):
        return super().take(ident, self)

    def free(self, ident, owner):
        super().free(ident, self)


class _Everybodys(KeyedLocks):
    async def acquire(self, key, holder, timeout=None, on_free=None):
        holder.locked_since = self._clock.monotonic()
        self.holders[key] = holder

    def release(self, key):
        self.holders.pop(key, None)


@found_by("test_bodies_of_one_ident_never_overlap")
class NoLockBetweenTasks(StateManagerDisk):
    """A manager has the lock as a whole: what keeps others out lets all of its own tasks in."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._idents.__class__ = _OfTheProcess
        self._locks = _Everybodys(self._clock, self._redaction.ident)


# Faults of the exclusive mode


@found_by("test_states_expire_without_a_manager", ExclusiveHarness)
class ReadingStartsTheTimeAgain(ExclusiveStateManagerDisk):
    """A state that is read from its file has its full time, whatever stands there."""

    def _adopt(self, token, record):
        super()._adopt(token, record)
        self._touch_token(token.cache_key, self._now())


@found_by("test_renewed_state_outlives_its_manager", ExclusiveHarness, use="get_state")
class RenewalsAreNotWritten(ExclusiveStateManagerDisk):
    """A state that is read all the time expires with its manager."""

    def _write_later(self, tokens, *, state):
        if state:
            super()._write_later(tokens, state=state)


@found_by("test_body_that_raises_saves_nothing", ExclusiveHarness, error=KeyError)
class RaiseKeepsTheObject(ExclusiveStateManagerDisk):
    """The next body is given what the one that raised has left."""

    async def _abort(self, modification):
        entry = self._entries.get(modification.token.cache_key)
        live = entry and entry.live
        await super()._abort(modification)
        if entry is not None:
            entry.live = live


@found_by("test_change_that_fails", ExclusiveHarness, several=False)
class FailedWriteKeepsTheObject(ExclusiveStateManagerDisk):
    """The next body is given what the one before has left, and could not be written."""

    def _forget_live(self, token):
        pass


@found_by("test_change_that_fails", ExclusiveHarness, several=False)
class FailedWriteIsSeen(ExclusiveStateManagerDisk):
    """A change is in memory before it is written, and stays there if it is not."""

    async def _save(self, tokens, states, payloads):
        for token, state, payload in zip(tokens, states, payloads, strict=True):
            self._store(token, state, payload, self._now())
        await super()._save(tokens, states, payloads)


@found_by("test_record_is_of_no_body_at_work", DebounceHarness)
class QueuesObjects(ExclusiveStateManagerDisk):
    """What is put off is the object, and serialized when it is written."""

    def _changes_of(self, kinds):
        for entry in map(self._entries.get, kinds):
            if entry.live is not NONE:
                entry.payload = entry.encode(entry.live)
        return super()._changes_of(kinds)


@found_by("test_write_behind_that_fails", DebounceHarness)
class FailedWriteIsForgotten(ExclusiveStateManagerDisk):
    """What could not be written is not tried again."""

    def _write_again(self, lock_key, kinds):
        pass


@found_by("test_write_behind_beside_a_write", DebounceHarness)
@found_by("test_crash_beside_what_is_put_off", DebounceHarness)
class WritesPassTheQueue(ExclusiveStateManagerDisk):
    """What is written at once leaves alone what was put off, and comes before it."""

    async def _save(self, tokens, states, payloads):
        now = self._now()
        deadline = self._to_wall_clock(now) + self.token_expiration
        changes = [Change(*one, deadline) for one in zip(places_of(tokens), payloads, strict=True)]
        await self._trip(self._records.saving(changes, self))
        for one in zip(tokens, states, payloads, strict=True):
            self._store(*one, now)


@found_by("test_deleted_state_stays_deleted", DebounceHarness)
class DeletesPassTheQueue(ExclusiveStateManagerDisk):
    """A delete leaves alone what was put off, and is undone by it."""

    async def _delete(self, modification):
        token = modification.token
        await self._locks.acquire(token.lock_key, modification)
        try:
            found = self._find(token) is not None
            since = self._to_wall_clock(modification.locked_since)
            (place,) = places_of((token,))
            stored = await self._trip(self._records.deleting(place, since, self))
            for _ in range(10):  # so that a write which has become due is always in between
                await asyncio.sleep(0)
            self._forget(token)
        finally:
            self._release(token.lock_key)
        return found or stored


@found_by("test_close_saves_what_was_acknowledged", DebounceHarness)
class CloseWritesNothing(ExclusiveStateManagerDisk):
    """What is put off when the manager is closed is lost."""

    async def _close(self):
        self._unwritten.clear()
        await super()._close()
