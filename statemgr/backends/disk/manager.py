"""`StateManagerDisk`: states in the files of a directory, for several processes of one machine.

A change takes two trips to a thread: one takes the ident's lock and reads the record, the other
one writes it and lets the lock go. First in first out holds among the tasks of a manager, by
`KeyedLocks`; the first of them then asks for the lock between processes (locks.py).

What a body finds has expired if its deadline passed before its lock was asked for. A reader
that finds a deadline passed tries the ident's lock: if somebody has it, the state lives, for a
body that took the lock later would have removed it; if nobody has, the reader removes it. So a
state that was seen to be gone does not come back.
"""

import asyncio
import contextlib
import contextvars
import errno
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, Unpack, cast

from statemgr.backends.disk.files import StateDirectory, UnsyncedError, ident_name, ident_of
from statemgr.backends.disk.locks import DirectoryClaim, IdentLocks, NoLocks, ident_locks
from statemgr.backends.disk.records import (
    PURGED,
    Change,
    Found,
    Place,
    Scanned,
    StateRecords,
    place_of,
    places_of,
)
from statemgr.backends.disk.trips import Job, Trips
from statemgr.errors import (
    BackendUnavailableError,
    CommitUncertainError,
    LockTimeoutError,
    SettingsError,
    StateDecodeError,
    WrongProcessError,
)
from statemgr.expiration import StateManagerExpiration
from statemgr.locks import KeyedLocks
from statemgr.manager import ManagerOptions, StateManager, manager_options
from statemgr.modification import StateModification
from statemgr.options import OPTIONS, check_option, refused, variable_of
from statemgr.record import RecordCodec
from statemgr.statistics import StateInfo, Statistics
from statemgr.token import AnyToken

if TYPE_CHECKING:
    import os

    from statemgr.settings import Settings

T = TypeVar("T")

logger = logging.getLogger("statemgr")

_LOCKED: Final = object()  # what an attempt returns when somebody else has the lock
_SHORTEST_PAUSE = 0.001  # seconds until a lock is asked for again
_LONGEST_PAUSE = 0.05
_PAUSE_FOR_EACH = 0.0005  # more for each other one that waits for a lock
PURGE_SLICE = 8  # files removed in one trip: other calls wait for it


class StateManagerDisk(StateManagerExpiration, StateManager):
    """Keep states in the files of a directory.

    By default any number of processes of one machine share the directory. What `modify_state`
    has acknowledged is in a renamed file: it outlives the process. A crash of the machine loses
    what the kernel had not written, unless `fsync` is on.

    Args:
        directory: Where; made if it is missing. It must be this user's own, and on a local file
            system: over a network others may not see the locks.
        exclusive: Claim the directory for this manager. States are then kept in memory too.
        debounce: Seconds for which a change may wait in memory to be written with others.
            A crash loses these. Needs `exclusive`.
        fsync: Acknowledge a change once it is on stable storage.
        compress_above: Compress states of more bytes than this; None for never.
        encryption_keys: Keys of 32 bytes. The first one encrypts, all of them decrypt.
        options: What every `StateManager` takes.

    Raises:
        SettingsError: If an option cannot have its value, the directory is not this user's own
            or can be written to by others, or the platform has no locks to share it by.
        StateDirectoryInUseError: If somebody else uses the directory, and one of the two wants
            it alone.
        BackendUnavailableError: If the directory cannot be made or used.
    """

    def __new__(cls, *_: Any, exclusive: bool = False, **__: Any) -> Self:
        """Make a manager of the one kind or the other."""
        if exclusive and cls is StateManagerDisk:
            from statemgr.backends.disk.exclusive import ExclusiveStateManagerDisk

            return cast("Self", object.__new__(ExclusiveStateManagerDisk))
        return super().__new__(cls)

    def __init__(
        self,
        directory: "str | os.PathLike[str]" = OPTIONS["disk_directory"].default,
        *,
        exclusive: bool = False,
        debounce: float = 0.0,
        fsync: bool = False,
        compress_above: int | None = None,
        encryption_keys: Sequence[bytes] = (),
        **options: Unpack[ManagerOptions],
    ) -> None:
        super().__init__(**options)
        check_option("disk_exclusive", exclusive)
        check_option("disk_debounce", debounce)
        check_option("disk_fsync", fsync)
        if debounce and not exclusive:
            raise refused("disk_debounce", repr(debounce), "0 unless disk_exclusive is True")
        codec = RecordCodec(
            compress_above=compress_above,
            encryption_keys=encryption_keys,
            max_state_size=self.max_state_size,
        )
        self._init_expiration(self._clock.time)
        self.directory = Path(directory).absolute()  # the working directory may change
        self._locks = KeyedLocks(self._clock, self._redaction.ident)
        # Idents whose lock is held or waited for here, and their lock keys; and those of which
        # the lock between processes is held.
        self._names: dict[str, str] = {}
        self._inside: set[str] = set()
        self._pauses: set[asyncio.Future[None]] = set()  # waits for another process's lock
        self._scan_task: asyncio.Task[None] | None = None
        with contextlib.ExitStack() as opened:
            try:
                self._files = StateDirectory(self.directory, fsync=fsync)
                opened.callback(self._files.close)
                self._claim = DirectoryClaim(self.directory / "lock", exclusive=exclusive)
                opened.callback(self._claim.close)
                self._idents: IdentLocks = NoLocks() if exclusive else ident_locks(self.directory)
            except OSError as error:
                raise _unavailable(f"{self.directory} cannot be used", error) from error
            opened.pop_all()
        self._records = StateRecords(
            self._files, codec, self._idents, self._clock, reset=self.on_decode_error == "reset"
        )
        self._trips = Trips("statemgr-disk", syncs=fsync)

    @classmethod
    def from_settings(cls, settings: "Settings") -> Self:
        try:
            return cls(
                settings.disk_directory,
                exclusive=settings.disk_exclusive,
                debounce=settings.disk_debounce,
                fsync=settings.disk_fsync,
                compress_above=settings.compress_above,
                encryption_keys=settings.encryption_keys,
                **manager_options(settings),
            )
        except SettingsError as error:
            if error.variable != "disk_directory":
                raise
            variable = variable_of("disk_directory")
            raise refused(variable, repr(settings.disk_directory), error.allowed) from None

    # Changing

    async def _begin(self, modification: StateModification[Any]) -> None:
        places = places_of(modification.tokens)
        loaded = await self._take(modification, lambda since: self._records.loading(places, since))
        found = iter(loaded)
        damaged: list[AnyToken] = []

        def load(token: AnyToken) -> Any:
            try:
                return self._state_of(token, next(found))
            except StateDecodeError as error:
                fresh = self._recover(token, error)
                damaged.append(token)
                return fresh

        try:
            modification.load_states(load)
            if damaged:
                await self._trip(self._records.setting_aside(places_of(damaged)))
        except BaseException:
            await self._leave(modification, self._freeing(modification))
            raise

    async def _commit(
        self, modification: StateModification[Any], payloads: Sequence[bytes]
    ) -> None:
        deadline = self._clock.time() + self.token_expiration
        places = places_of(modification.tokens)
        changes = [Change(*one, deadline) for one in zip(places, payloads, strict=True)]
        await self._leave(modification, self._records.saving(changes, modification))
        self._touch_found(places, payloads)

    async def _abort(self, modification: StateModification[Any]) -> None:
        if self._is_over():  # which has let the lock go
            self._let_go(modification)
            return
        places = places_of(modification.tokens)
        deadline = self._clock.time() + self.token_expiration
        await self._leave(modification, self._records.renewing(places, deadline, modification))

    async def _write(self, modification: StateModification[Any]) -> None:
        payload = self._encode(modification.token, modification.state)
        places = places_of(modification.tokens)

        def replacing(_: float) -> Job[None]:
            change = Change(places[0], payload, self._clock.time() + self.token_expiration)
            return self._records.replacing(change, modification)

        await self._take(modification, replacing)
        self._let_go(modification)
        self._touch_found(places, (payload,))

    async def _delete(self, modification: StateModification[Any]) -> bool:
        place = place_of(modification.token)
        found = await self._take(
            modification, lambda since: self._records.deleting(place, since, modification)
        )
        self._let_go(modification)
        self._token_expires_at.pop(place.name, None)
        return found

    def _freeing(self, modification: StateModification[Any]) -> Job[None]:
        return self._records.freeing(modification.grant, modification)

    # The lock: first this manager's own, in its order; then the one between processes

    async def _take(
        self, modification: StateModification[Any], job: Callable[[float], Job[T]]
    ) -> T:
        """Take the ident's lock, and run a job in the same trip.

        Args:
            modification: The holder.
            job: Makes the job; it is given the time since which the lock is held or waited for.
        """
        lock_key = modification.lock_key
        started = self._monotonic()
        await self._locks.acquire(lock_key, modification, modification.timeout, self._freed)
        modification.grant = ident_name(lock_key)
        try:
            self._check_open()
            self._names[modification.grant] = lock_key
            since = self._clock.time() - (self._monotonic() - modification.locked_since)
            result = await self._trip(self._attempt(modification, job(since)))
            pause = _SHORTEST_PAUSE
            while result is _LOCKED:
                await self._pause(modification, started, pause)
                pause = min(_LONGEST_PAUSE, pause * 1.25)
                result = await self._trip(self._attempt(modification, job(since)))
            self._inside.add(modification.grant)
        except BaseException:
            await self._leave(modification, self._freeing(modification))
            raise
        return cast("T", result)

    def _attempt(self, modification: StateModification[Any], job: Job[T]) -> Job[T | object]:
        """Take the lock between processes and run the job, or say that it is locked."""
        if not self._idents.take(modification.grant, modification):
            job.close()
            return _LOCKED
        return (yield from job)

    async def _pause(
        self, modification: StateModification[Any], started: float, pause: float
    ) -> None:
        """Wait until it is time to ask for the lock again."""
        # Many that wait ask less often each, or their asking is all that is done.
        pause += len(self._pauses) * _PAUSE_FOR_EACH
        timeout = modification.timeout
        if timeout is not None:
            left = started + timeout - self._monotonic()
            if not left > 0:
                name = self._redaction.ident(modification.lock_key)
                raise LockTimeoutError(
                    f"the lock of {name} was not free within {timeout:g} s",
                    lock_key=modification.lock_key,
                    timeout=timeout,
                )
            pause = min(pause, left)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pauses.add(over)
        timer = self._clock.call_later(pause, end_wait, over)
        try:
            await over
        finally:
            timer.cancel()
            self._pauses.discard(over)

    async def _leave(self, modification: StateModification[Any], job: Job[T]) -> T:
        """Run a job that lets the lock between processes go, then let go this manager's own."""
        try:
            return await self._trip(job, modification.lock_key)
        finally:
            self._let_go(modification)

    def _let_go(self, modification: StateModification[Any]) -> None:
        lock_key = modification.lock_key
        self._inside.discard(modification.grant)
        self._locks.release(lock_key)
        if lock_key not in self._locks.holders:
            self._freed(lock_key, modification.grant)

    def _freed(self, lock_key: str, name: str | None = None) -> None:
        """Forget an ident whose lock no task here has."""
        self._names.pop(name or ident_name(lock_key), None)
        self._lock_released(lock_key)

    # Reading

    async def _read(self, tokens: Sequence[AnyToken]) -> Sequence[Any]:
        places = places_of(tokens)
        found = await self._look(places, renew=True)
        return [self._state_read(token, one) for token, one in zip(tokens, found, strict=True)]

    def _state_read(self, token: AnyToken, found: Found) -> Any:
        if found is None:
            self._misses += 1
        else:
            self._hits += 1
        try:
            return self._state_of(token, found)
        except StateDecodeError as error:
            return self._recover(token, error)

    async def _has(self, token: AnyToken) -> bool:
        return (await self._look([place_of(token)]))[0] is not None

    async def _renew(self, token: AnyToken) -> bool:
        return (await self._look([place_of(token)], renew=True))[0] is not None

    async def _look(self, places: Sequence[Place], *, renew: bool = False) -> list[Found]:
        """Read without the lock."""
        since = self._locked_since(places)
        renew_until = self._clock.time() + self.token_expiration if renew else None
        found = await self._trip(self._records.looking(places, since, renew_until))
        if renew:
            self._touch_found(places, found)
        return found

    def _locked_since(self, places: Iterable[Place]) -> dict[str, float]:
        """Return since when idents are locked here or waited for: wall clock, seconds.

        Only of those that are locked: for who waits, another process's body decides.
        """
        to_wall_clock = self._clock.time() - self._monotonic()
        return {
            place.ident: self._locks.holders[self._names[place.ident]].locked_since + to_wall_clock
            for place in places
            if place.ident in self._inside
        }

    async def _list(self, prefix: str) -> AsyncIterator[StateInfo]:
        names = self._files.names()
        while (batch := await self._trip(self._records.listing(names))) is not None:
            for info in batch:
                if info.ident.startswith(prefix):
                    yield info

    def _state_of(self, token: AnyToken, found: Found) -> Any:
        if found is None:
            return token.create()
        if isinstance(found, StateDecodeError):
            raise self._undecodable(token, found)
        return self._decode(token, found)

    # Expiration

    def _touch_found(self, places: Sequence[Place], found: Sequence[object]) -> None:
        now = self._now()
        for place, one in zip(places, found, strict=True):
            if one is not None and self._refusal is None:
                self._touch_token(place.name, now)

    def _lock_held_of(self, key: str) -> str | None:
        return self._names.get(ident_of(key))

    async def _drop_tokens(self, keys: Sequence[str]) -> None:
        now = self._now()
        for key, outcome in await self._purge_files(keys):
            if outcome is PURGED:
                self._purged += 1
            deadline = self._expires_at(key)
            if deadline is not None and deadline <= now:  # else it was used meanwhile
                del self._token_expires_at[key]
                if isinstance(outcome, float):
                    self._track_file(key, outcome)

    async def _purge_files(self, names: Sequence[str]) -> list[tuple[str, object]]:
        """Remove what has expired, a few at a time; return what came of each name."""
        outcomes: list[tuple[str, object]] = []
        for start in range(0, len(names), PURGE_SLICE):
            some = names[start : start + PURGE_SLICE]
            found = await self._trip(self._records.purging(some, self._clock.time()))
            outcomes += zip(some, found, strict=True)
        return outcomes

    def _track_file(self, name: str, deadline: float) -> None:
        """Have a file looked at when its state expires, or after a full time if that is sooner.

        `deadline` is the wall clock's, in seconds.
        """
        left = min(deadline - self._clock.time(), self.token_expiration)
        self._track_token(name, self._now() + left)

    def _started(self) -> None:
        self._scan_task = asyncio.get_running_loop().create_task(
            self._scan_again_and_again(),
            name=f"{type(self).__name__} scan",
            context=contextvars.Context(),
        )

    async def _scan_again_and_again(self) -> None:
        """Learn of the states that other programs have left, to purge them in time."""
        while True:
            over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            timer = self._clock.call_later(self.token_expiration, end_wait, over)
            try:
                await self._scan_or_log()
                await over
            finally:
                timer.cancel()

    async def _scan_or_log(self) -> None:
        try:
            await self._scan()
        except Exception:
            logger.exception("%s cannot be searched for expired states", self.directory)

    async def _scan(self) -> None:
        names = self._files.names()
        while (batch := await self._trip(self._scanning(names))) is not None:
            self._purged += len(batch.purged)
            for name in batch.purged:
                if (self._expires_at(name) or math.inf) <= self._now():
                    del self._token_expires_at[name]
            for name, deadline in batch.found:
                self._track_file(name, deadline)

    def _scanning(self, names: Iterator[str]) -> Job[Scanned | None]:
        return self._records.scanning(names, purge=True)

    # The manager's life

    def _statistics(self) -> Statistics:
        elsewhere = len(self._pauses)
        return self._counted(
            tokens_held=len(self._token_expires_at),
            locks_held=len(self._locks.holders) - elsewhere,
            waiters=self._locks.waiting + elsewhere,
        )

    async def _close(self) -> None:
        self._locks.fail_waiters(self._refused)
        for pause in self._pauses:
            if not pause.done():
                pause.set_exception(self._refused())
        await self._stop_scan()
        self._token_expires_at.clear()
        await self._stop_expiration()
        await self._close_directory()

    async def _stop_scan(self) -> None:
        if self._scan_task is not None:
            self._scan_task.cancel()
            await asyncio.wait([self._scan_task])

    async def _close_directory(self) -> None:
        await self._trips.close()
        self._idents.close()
        self._claim.close()
        self._files.close()

    def _check_open(self) -> None:
        """Refuse what goes on after waiting, if the manager was closed meanwhile."""
        if self._refusal is not None:
            raise self._refused()

    def _is_over(self) -> bool:
        """Return whether the thread has ended, or was left in the parent process."""
        return self._trips.closed or self._refusal is WrongProcessError

    async def _trip(self, job: Job[T], lock_key: str = "") -> T:
        """Run a job in the thread.

        Raises:
            CommitUncertainError: If a change was made, and could not be brought to storage.
            BackendUnavailableError: If the file system refuses.
            StateManagerClosedError: If the manager is closed.
        """
        if self._is_over():
            job.close()
            raise self._refused()
        try:
            return await self._trips.run(job)
        except UnsyncedError as error:
            raise CommitUncertainError(
                f"the change is in {self.directory}, but may not be on stable storage: "
                f"{error.strerror}",
                lock_key=lock_key,
            ) from error
        except OSError as error:
            raise _unavailable(f"{self.directory} refuses to serve", error) from error


def end_wait(waiting: "asyncio.Future[None]") -> None:
    """Wake who awaits a future, if nobody has: for timers."""
    if not waiting.done():
        waiting.set_result(None)


def _unavailable(what: str, error: OSError) -> BackendUnavailableError:
    hint = _HINTS.get(error.errno or 0, "")
    return BackendUnavailableError(f"{what}: {error.strerror or error}{hint}")


_HINTS = {
    errno.ENOSPC: "; free some space",
    errno.EDQUOT: "; free some space, or raise the quota",
    errno.EMFILE: "; let the process open more files (ulimit -n)",
    errno.ENFILE: "; let the machine open more files",
    errno.EACCES: "; this user may not use it",
    errno.EPERM: "; this user may not use it",
    errno.EROFS: "; make it writable, or choose another directory",
}
