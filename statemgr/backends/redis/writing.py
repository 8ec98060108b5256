"""`Writer`: what is written under a grant, and who is told what became of it.

A commit is on its way when `send` returns. The lock is free here from then on: the next task's body
begins on what was sent, and its commit is done only if this one was
(docs/decisions/0014-commits-on-their-way.md). Each task waits for the reply to its own, by `done`:

    A  commit 7, after 0 -------------->  no memory: an error, nothing is written
    B  its body, on what 7 is to leave
    B  commit 8, after 7 -------------->  7 was not done: {2}, nothing is written
    A  done() raises
    B  done() raises

With an oplock "behind" a change is acknowledged before it is written. A flush writes what was put
off, and no task waits for that: what it fails with is kept for whoever comes next, by
`raise_failure`, or for `close()`:

    A  a change, put off and acknowledged
    A  stopped; its lock expires; B commits
    A  goes on, flushes --------------->  {0}: nothing is written, the change is lost
    A  the next call for that ident       LockExpiredError, once
"""

import asyncio
import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from statemgr.backends.redis.durability import Durability
from statemgr.backends.redis.grants import Change, Grant, Grants, age_ms
from statemgr.backends.redis.link import Call
from statemgr.clock import Clock
from statemgr.errors import (
    BackendUnavailableError,
    CommitUncertainError,
    LockExpiredError,
    StateManagerError,
)
from statemgr.record import RecordCodec

logger = logging.getLogger("statemgr")

States: TypeAlias = Mapping[str, tuple[bytes, bytes | None]]
"""By cache key: the class, as `class_of` has it, and the payload; None drops the state."""

_UNCHANGED: Final = b""  # for commit.lua, in place of a size
_DROPPED: Final = b"-"


class Commit:
    """A commit that is on its way.

    Attributes:
        grant: Under which it was sent.
        states: What a body has changed; none of a flush.
        unsaved: What it writes of what was acknowledged before.
        asked_at: When it was sent.
        keep: Whether it keeps the lock.
        copies: What tells whether it would outlive a crash; None if that is not asked.
    """

    # NOTE: the call is not here. It has this in `late`, and there would be a cycle in each change.
    __slots__ = ("_writer", "asked_at", "copies", "grant", "keep", "states", "unsaved")

    def __init__(
        self, writer: "Writer", grant: Grant, states: States, asked_at: float, *, keep: bool
    ) -> None:
        self._writer = writer
        self.grant = grant
        self.states = states
        self.unsaved = grant.unsaved
        self.asked_at = asked_at
        self.keep = keep
        self.copies: Call | None = None

    def conclude(self, reply: Any) -> None:
        """Have the writer take note of the reply, or error."""
        self._writer._concluded(self, reply)


class Writer:
    """Write states under grants, and tell what became of it.

    Args:
        grants: What commits are sent by.
        codec: What records are made by.
        durability: What commits wait for beside the reply.
        clock: What times are measured by.
        lock_expiration: Seconds for which a commit that keeps the lock renews it.
        hold_time: Seconds for which an oplock is kept anew if its time was over at a commit.
        name: Turns a lock key into what an error message may call it.
        on_wanted: Called with a grant that another process waits for.
        on_gone: Called with a grant that a commit gives up, or that is lost.
        on_spoilt: Called with a grant that is ours still, and under which a commit has failed.

    Attributes:
        flushing: By lock key, the flushes that are on their way.
        failures: By lock key, what flushes have failed with and nobody has been told.
    """

    def __init__(
        self,
        grants: Grants,
        codec: RecordCodec,
        durability: Durability,
        clock: Clock,
        *,
        lock_expiration: float,
        hold_time: float,
        name: Callable[[str], str],
        on_wanted: Callable[[Grant], None],
        on_gone: Callable[[Grant], None],
        on_spoilt: Callable[[Grant], None],
    ) -> None:
        self._grants = grants
        self._codec = codec
        self._durability = durability
        self._monotonic = clock.monotonic
        self._lock_expiration = lock_expiration
        self._hold_time = hold_time
        self._name = name
        self._on_wanted = on_wanted
        self._on_gone = on_gone
        self._on_spoilt = on_spoilt
        self.flushing: dict[str, asyncio.Task[None]] = {}
        self.failures: dict[str, StateManagerError] = {}

    # A commit

    def send(
        self, grant: Grant, states: States, *, keep: bool, rejoin: bool = False
    ) -> tuple[Commit, Call]:
        """Send a commit of these states, and of what was not written before.

        Args:
            grant: Under which to write.
            states: What a body has changed.
            keep: Whether to keep the lock.
            rejoin: Whether to wait for it again at once, after those who wait now.
        """
        now = self._monotonic()
        commit = Commit(self, grant, states, now, keep=keep)
        changes = self._changes(grant, states, now)
        call = self._grants.commit(grant, changes, keep=keep, rejoin=rejoin)
        call.late = commit.conclude
        for key, (_, payload) in states.items():
            grant.payloads[key] = payload
            grant.live.pop(key, None)
        grant.unsaved, grant.touched = {}, {}
        if states:
            grant.unacknowledged += 1
        if not keep:
            self._on_gone(grant)
        commit.copies = self._durability.ask(grant)
        return commit, call

    async def done(self, commit: Commit, call: Call) -> None:
        """Wait until a body's commit was done.

        Raises:
            LockExpiredError: If the lock was lost.
            CommitUncertainError: If the outcome cannot be known.
            BackendUnavailableError: If the server could not be asked, or refuses.
        """
        lock_key = commit.grant.lock_key
        try:
            reply = await call.future
        except asyncio.CancelledError:
            if not call.future.cancelled():  # it came together with the cancel
                commit.conclude(call.future.exception() or call.future.result())
            raise
        except BackendUnavailableError as error:
            commit.conclude(error)
            if not call.sent:
                raise
            raise self._uncertain(lock_key, error) from error.__cause__
        commit.conclude(reply)
        if reply[0] == 2:
            raise self.unfounded(lock_key)
        if reply[0] == 3 and call.doubts:
            raise self._overtaken(lock_key)
        if reply[0] != 1:
            raise self.expired(lock_key)
        if commit.copies is not None:
            await self._durability.confirm(commit.grant, call, commit.copies)

    def _changes(self, grant: Grant, states: States, now: float) -> Iterable[Change]:
        """Return what is to be written: these states, and what waits to be."""
        changes: dict[bytes, Change] = {}
        for name, touched_at in grant.touched.items():
            changes[name] = name, b"", _UNCHANGED, age_ms(now, touched_at)
        for name, (key, unsaved, changed_at) in grant.unsaved.items():
            age = age_ms(now, max(changed_at, grant.touched.get(name, changed_at)))
            changes[name] = name, self.pack(key, unsaved), b"%d" % len(unsaved), age
        for key, (name, payload) in states.items():
            if payload is None:
                changes[name] = name, b"", _DROPPED, 0
            elif payload == grant.payloads.get(key) and name not in grant.unsaved:
                changes[name] = name, b"", _UNCHANGED, 0
            else:
                changes[name] = name, self.pack(key, payload), b"%d" % len(payload), 0
        return changes.values()

    def pack(self, cache_key: str, payload: bytes) -> bytes:
        """Return the record of a state."""
        return self._codec.pack(cache_key, payload, math.inf)  # the hash has the deadline

    def _concluded(self, commit: Commit, reply: Any) -> None:
        """Take note of how a commit has ended."""
        grant = commit.grant
        grant.sent -= 1
        if commit.states:
            grant.unacknowledged -= 1
        if isinstance(reply, Exception) or reply[0] != 1:
            grant.unsaved = commit.unsaved | grant.unsaved
            self.lose(grant, self._failure_of(grant.lock_key, reply))
        elif commit.keep:
            grant.deadline = max(grant.deadline, commit.asked_at + self._lock_expiration)
            if grant.hold_ends_at <= commit.asked_at:
                grant.hold_ends_at = commit.asked_at + self._hold_time
            if reply[1] == 1:
                grant.wanted = True
                self._on_wanted(grant)

    # A flush

    def flush(self, grant: Grant, *, keep: bool) -> None:
        """Have written what is not; an error is kept for whoever comes next."""
        if grant.lost or not grant.held:
            self.lose(grant, self.expired(grant.lock_key))
            return
        commit, call = self.send(grant, {}, keep=keep)
        flushing = asyncio.get_running_loop().create_task(self._flush_done(commit, call))
        self.flushing[grant.lock_key] = flushing
        flushing.add_done_callback(functools.partial(self._flush_ended, grant.lock_key))

    async def _flush_done(self, commit: Commit, call: Call) -> None:
        try:
            reply = await call.future
        except BackendUnavailableError as error:
            commit.conclude(error)
            return
        commit.conclude(reply)
        if reply[0] == 1 and commit.copies is not None:
            try:
                await self._durability.confirm(commit.grant, call, commit.copies)
            except CommitUncertainError as error:
                logger.error("changes that were acknowledged may be lost: %s", error)  # noqa: TRY400  # it says why
                self.failures[commit.grant.lock_key] = error

    def _flush_ended(self, lock_key: str, flushing: "asyncio.Task[None]") -> None:
        if self.flushing.get(lock_key) is flushing:
            del self.flushing[lock_key]

    async def flushes_ended(self) -> None:
        """Wait for the flushes that are on their way, however they end."""
        if self.flushing:
            await asyncio.wait(set(self.flushing.values()))

    # What was lost

    def lose(self, grant: Grant, failure: StateManagerError) -> None:
        """Forget a grant. What was acknowledged under it is an error to be seen.

        Args:
            grant: The grant.
            failure: Why: `LockExpiredError` if it is lost, else what a commit has failed with.
        """
        if grant.unsaved:
            what = "may be" if isinstance(failure, CommitUncertainError) else "are"
            logger.error("changes that were acknowledged %s lost: %s", what, failure)
            self.failures[grant.lock_key] = failure
            grant.unsaved.clear()
        if isinstance(failure, LockExpiredError):
            self._on_gone(grant)
            self._grants.forget(grant)
        else:
            self._on_spoilt(grant)

    def _failure_of(self, lock_key: str, reply: Any) -> StateManagerError:
        """Return why what was acknowledged before a commit is lost, if it ends so."""
        if isinstance(reply, Exception):
            return self._uncertain(lock_key, reply)
        if reply[0] == 2:
            return self.unfounded(lock_key)
        return self._overtaken(lock_key) if reply[0] == 3 else self.expired(lock_key)

    async def raise_failure(self, lock_key: str) -> None:
        """Raise what a flush has failed with, once; wait for one that is on its way."""
        if (flushing := self.flushing.get(lock_key)) is not None:
            await asyncio.wait([flushing])
        if (failure := self.failures.pop(lock_key, None)) is not None:
            raise failure

    def raise_failures(self) -> None:
        """Raise one of those that nobody has been told, if there are any, and forget them."""
        if self.failures:
            failures, self.failures = self.failures, {}
            raise next(iter(failures.values()))

    def expired(self, lock_key: str) -> LockExpiredError:
        """Return the error of a lock that was lost."""
        return LockExpiredError(
            f"the lock of {self._name(lock_key)} was lost, and nothing was written: "
            f"it could not be renewed within lock_expiration={self._lock_expiration:g} s",
            lock_key=lock_key,
        )

    def unfounded(self, lock_key: str) -> BackendUnavailableError:
        """Return the error of a change that was made on one that has failed."""
        return BackendUnavailableError(
            f"nothing was written: another change of {self._name(lock_key)}, "
            "which this one was made on, was not written before it"
        )

    def _overtaken(self, lock_key: str) -> CommitUncertainError:
        return CommitUncertainError(
            f"whether the change of {self._name(lock_key)} was written is not known: "
            "the connection was lost, and a later change of this process has come before it",
            lock_key=lock_key,
        )

    def _uncertain(self, lock_key: str, cause: Exception) -> CommitUncertainError:
        error = CommitUncertainError(
            f"whether the change of {self._name(lock_key)} was written is not known: {cause}",
            lock_key=lock_key,
        )
        error.__cause__ = cause.__cause__
        return error
