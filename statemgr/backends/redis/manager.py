"""`StateManagerRedis`: states in Redis, for any number of processes on any number of machines.

A change takes two round trips: one takes the ident's lock and reads the records, the other one
writes them and lets the lock go. First in first out holds among the tasks of a manager, by
`KeyedLocks`; the first of them asks for the grant (grants.py). What Redis does is in scripts/.

With an oplock the grant is kept when the body has ended, and with it the states: the next
change needs no acquire, and a read no trip. "through" still writes each change before it is
acknowledged; "behind" acknowledges at once, and writes when another process waits or the hold
time is over. What ends a kept grant in time is `StateManagerExpiration`, by lock key.
"""

import asyncio
import contextlib
import functools
import hashlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Self, Unpack, cast

import statemgr.serialization.codec  # noqa: F401  # else imported under the first change's lock
from statemgr.backends.redis.channel import Client, channel_to
from statemgr.backends.redis.grants import Change, Grant, Grants, age_ms
from statemgr.backends.redis.keys import Keys, class_of
from statemgr.backends.redis.link import UNREACHABLE, Call
from statemgr.backends.redis.scripts import DESCRIBE, READ
from statemgr.backends.redis.urls import client_from_url
from statemgr.errors import (
    BackendUnavailableError,
    CommitUncertainError,
    LockExpiredError,
    StateDecodeError,
    StateManagerError,
)
from statemgr.expiration import StateManagerExpiration
from statemgr.locks import KeyedLocks
from statemgr.manager import ManagerOptions, StateManager, manager_options
from statemgr.modification import StateModification
from statemgr.options import OPTIONS, check_option, refused
from statemgr.record import RecordCodec
from statemgr.statistics import StateInfo, Statistics
from statemgr.token import AnyToken, StateToken

if TYPE_CHECKING:
    from statemgr.settings import Settings

logger = logging.getLogger("statemgr")

_UNCHANGED: Final = b""  # for commit.lua, in place of a size
_DROPPED: Final = b"-"
_SCAN_COUNT: Final = 500  # keys looked at in one step of a scan


class StateManagerRedis(StateManagerExpiration, StateManager):
    """Keep states in Redis, Valkey, or what speaks like them; alone, with Sentinel, in Cluster.

    What `modify_state` has acknowledged is in Redis; what Redis itself may lose, by a crash
    without persistence or a fail-over, is lost. A holder that lost its lock writes nothing.

    Args:
        redis: A client of `redis.asyncio`, or a URL: `redis://`, `rediss://`, `unix://`,
            `redis+sentinel://host:port,host:port/service/db`,
            `redis+cluster://host:port,host:port`, the last two also as `rediss+...`. Of a
            client its way to connect is used; it stays the caller's to close.
        key_prefix: What every key and channel begins with.
        lock_expiration: Seconds after which the lock of a dead process goes to the next. A
            body may take longer: its lock is renewed meanwhile.
        oplock: Whether a lock is kept for the next change of this process. "through" writes
            each change as it is made; "behind" when another process waits, or the hold time
            is over: a crash loses these.
        oplock_hold_time: Seconds for which an oplock is kept at most.
        durability: What a change waits for beside Redis's answer: "replicated" for the
            acknowledgement of `replicas`, "aof" for the server's disk (WAITAOF: server 7.2 or
            later, with its append-only file on). Without it in time the change ends with
            `CommitUncertainError`: it is in Redis, but may not outlive a crash.
        replicas: How many replicas have to acknowledge a change.
        compress_above: Compress states of more bytes than this; None for never.
        encryption_keys: Keys of 32 bytes. The first one encrypts, all of them decrypt.
        options: What every `StateManager` takes.

    Raises:
        SettingsError: If an option cannot have its value, or the URL cannot be used.
    """

    def __init__(
        self,
        redis: Client | str,
        *,
        key_prefix: str = OPTIONS["key_prefix"].default,
        lock_expiration: float = OPTIONS["lock_expiration"].default,
        oplock: Literal["off", "through", "behind"] = "off",
        oplock_hold_time: float = OPTIONS["oplock_hold_time"].default,
        durability: Literal["off", "replicated", "aof"] = "off",
        replicas: int = OPTIONS["redis_replicas"].default,
        compress_above: int | None = None,
        encryption_keys: Sequence[bytes] = (),
        **options: Unpack[ManagerOptions],
    ) -> None:
        super().__init__(**options)
        check_option("key_prefix", key_prefix)
        check_option("lock_expiration", lock_expiration)
        check_option("oplock", oplock)
        check_option("oplock_hold_time", oplock_hold_time)
        check_option("redis_durability", durability)
        check_option("redis_replicas", replicas)
        if oplock != "off" and oplock_hold_time >= lock_expiration:
            raise refused(
                "oplock_hold_time",
                repr(oplock_hold_time),
                f"a number of seconds below lock_expiration={lock_expiration!r}",
            )
        self.lock_expiration = lock_expiration
        self.oplock = oplock
        self.oplock_hold_time = oplock_hold_time
        self.durability = durability
        self.replicas = replicas
        self._codec = RecordCodec(
            compress_above=compress_above,
            encryption_keys=encryption_keys,
            max_state_size=self.max_state_size,
        )
        self._keys = Keys(key_prefix)
        self._owns_client = isinstance(redis, str)
        self._client = client_from_url(redis) if isinstance(redis, str) else redis
        if not isinstance(self._client, Client):
            kind = f"{type(redis).__module__}.{type(redis).__qualname__}"
            raise refused("redis", kind, "a URL, or a client of redis.asyncio")
        self._locks = KeyedLocks(self._clock, self._redaction.ident)
        self._granted: dict[str, Grant] = {}  # by lock key
        self._flushing: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, StateManagerError] = {}
        self._keeps = oplock != "off"
        self._writes_behind = oplock == "behind"
        self._init_expiration(self._monotonic)
        self._expiration_ms = max(1, round(self.token_expiration * 1000))

    @classmethod
    def from_settings(cls, settings: "Settings") -> Self:
        if settings.redis_url is None:
            raise refused("STATEMGR_REDIS_URL", "None", "the URL of a server")
        return cls(
            settings.redis_url,
            key_prefix=settings.key_prefix,
            lock_expiration=settings.lock_expiration,
            oplock=cast("Literal['off', 'through', 'behind']", settings.oplock),
            oplock_hold_time=settings.oplock_hold_time,
            durability=cast("Literal['off', 'replicated', 'aof']", settings.redis_durability),
            replicas=settings.redis_replicas,
            compress_above=settings.compress_above,
            encryption_keys=settings.encryption_keys,
            **manager_options(settings),
        )

    def _started(self) -> None:
        self._channel = channel_to(self._client)
        self._grants = Grants(
            self._channel,
            self._keys,
            self._clock,
            lock_expiration=self.lock_expiration,
            token_expiration=self.token_expiration,
            keeps=self._keeps,
            name=self._redaction.ident,
            on_wanted=self._wanted,
        )
        if self._keeps:
            self._grants.listen()

    # Entering a body

    def _begin_nowait(self, modification: StateModification[Any], now: float) -> bool:
        lock_key = modification.lock_key
        grant = self._granted.get(lock_key)
        if grant is None or grant.wanted or lock_key in self._locks.holders:
            return False
        if not grant.is_good(now) or now >= grant.hold_ends_at:
            return False
        key, token = modification.state_key, modification.token
        live = None
        if key is None:
            if not all(token.cache_key in grant.payloads for token in modification.tokens):
                return False
        elif key in grant.payloads:
            live = grant.live.get(key)
        else:
            return False
        self._locks.holders[lock_key] = modification
        modification.locked_since = now
        modification.grant = grant
        if live is not None and (live[0] is token or _are_alike(live[0], token)):
            modification.state = live[1]
            return True
        asides: list[Call] = []
        try:
            modification.load_states(self._load_from(grant, asides))
        except BaseException:
            self._end(lock_key, grant)
            raise
        if key is not None and not asides and self._writes_behind:
            grant.live[key] = token, modification.state
        if asides:  # to be waited for
            self._end(lock_key, grant)
            return False
        return True

    async def _begin(self, modification: StateModification[Any]) -> None:
        grant = await self._own(modification, modification.tokens)
        asides: list[Call] = []
        try:
            modification.load_states(self._load_from(grant, asides))
            for call in asides:
                await call.future
        except BaseException:
            self._touch(grant, modification.tokens)
            self._end(modification.lock_key, grant)
            raise

    async def _own(self, modification: StateModification[Any], tokens: Sequence[AnyToken]) -> Grant:
        """Take the ident's lock, here and in Redis, and have the records of these tokens."""
        lock_key, timeout = modification.lock_key, modification.timeout
        modification.grant = None
        if lock_key not in self._locks.holders:
            self._locks.holders[lock_key] = modification
            modification.locked_since = self._monotonic()
        else:
            since = self._monotonic()
            await self._locks.acquire(lock_key, modification, timeout)
            if timeout is not None:
                timeout -= self._monotonic() - since
                timeout = max(timeout, 0.001)  # its turn has come: a look at the least
        try:
            self._check_usable()  # closed while this waited
            if self._flushing or self._failures:
                await self._raise_failure(lock_key)
            grant = self._granted.get(lock_key)
            if grant is None or not await self._can_go_on(grant, tokens):
                classes = [class_of(token) for token in tokens]
                grant, records = await self._grants.obtain(lock_key, classes, timeout)
                queue = self._locks.queues.get(lock_key)
                grant.turns = 0 if queue is None else len(queue)
                for token, record in zip(tokens, records, strict=True):
                    grant.records[token.cache_key] = record
                self._granted[lock_key] = grant
                if self._keeps:
                    self._hold(grant)
        except BaseException:
            self._end(lock_key, None)
            raise
        modification.grant = grant
        return grant

    async def _can_go_on(self, grant: Grant, tokens: Sequence[AnyToken]) -> bool:
        """Use a grant that a body before has left, if it is ours to use; else give it up."""
        now = self._monotonic()
        if grant.must_go(now) or not grant.is_good(now):
            self._let_go(grant)
            await self._raise_failure(grant.lock_key)
            return False
        missing = [token for token in tokens if token.cache_key not in grant.payloads]
        if missing:
            records = await self._grants.reread(grant, [class_of(token) for token in missing])
            if records is None:
                self._lose(grant)
                await self._raise_failure(grant.lock_key)
                return False
            for token, record in zip(missing, records, strict=True):
                grant.records[token.cache_key] = record
        grant.turns -= 1
        return True

    def _hold(self, grant: Grant) -> None:
        """Have an oplock end in time."""
        now = self._monotonic()
        grant.hold_ends_at = now + self.oplock_hold_time
        held_for = min(self.oplock_hold_time, self.token_expiration)
        self._track_token(grant.lock_key, now + held_for)

    def _load_from(self, grant: Grant, asides: list[Call]) -> Callable[[AnyToken], Any]:
        """Return what makes a state of what the grant has read."""

        def load(token: AnyToken) -> Any:
            key = token.cache_key
            try:
                payload = self._payload(grant, token)
                return token.create() if payload is None else self._decode(token, payload)
            except StateDecodeError as error:
                fresh = self._recover(token, error)
                asides.append(self._set_aside(grant, token))
                # Whatever the body leaves is another state than the one that is there.
                grant.payloads.pop(key, None)
                return fresh

        return load

    def _payload(self, grant: Grant, token: AnyToken) -> bytes | None:
        key = token.cache_key
        if key not in grant.payloads:
            record = grant.records[key]
            grant.payloads[key] = None if record is None else self._unpack(token, record)
        return grant.payloads[key]

    def _unpack(self, token: AnyToken, record: bytes) -> bytes:
        try:
            return self._codec.unpack(record, token.cache_key).payload
        except StateDecodeError as error:
            raise self._undecodable(token, error) from error.__cause__

    def _set_aside(self, grant: Grant, token: AnyToken) -> Call:
        """Keep a record that cannot be decoded, before the body that starts afresh replaces it."""
        record = grant.records.get(token.cache_key)
        if record is None:  # it was decoded once, or another kind of token wrote it here
            record = self._pack(token.cache_key, grant.payloads[token.cache_key] or b"")
        digest = hashlib.blake2b(record, digest_size=8).hexdigest()
        return self._channel.command(grant.key, b"SET", self._keys.kept(token, digest), record)

    # Leaving a body

    def _commit_nowait(self, modification: StateModification[Any], now: float) -> bool:
        grant: Grant = modification.grant
        if not self._may_write_later(grant, now):
            return False
        key = modification.state_key
        if key is None:
            tokens = modification.tokens
            payloads = self._encode_states(tokens, modification.states())
            for token, payload in zip(tokens, payloads, strict=True):
                self._write_later(grant, token, payload, now)
        else:
            token, state = modification.token, modification.state
            live = grant.live.get(key)
            kept = live is not None and live[1] is state  # else it is the caller's own object
            self._write_later(grant, token, self._encode(token, state), now)
            if live is not None and kept:
                grant.live[key] = live
        self._end(modification.lock_key, grant)
        return True

    def _may_write_later(self, grant: Grant, now: float) -> bool:
        return (
            self._writes_behind
            and not grant.wanted
            and not grant.unacknowledged
            and grant.is_good(now)
            and now < grant.hold_ends_at
        )

    def _write_later(self, grant: Grant, token: AnyToken, payload: bytes, now: float) -> None:
        key = token.cache_key
        grant.live.pop(key, None)
        if grant.payloads.get(key) == payload:
            grant.touched[class_of(token)] = now
        else:
            grant.payloads[key] = payload
            grant.unsaved[class_of(token)] = key, payload, now

    def _commit(
        self, modification: StateModification[Any], payloads: Sequence[bytes]
    ) -> Coroutine[Any, Any, None]:
        states: dict[str, tuple[bytes, bytes | None]] = {}
        for token, payload in zip(modification.tokens, payloads, strict=True):
            states[token.cache_key] = class_of(token), payload
        return self._save(modification.grant, states)

    async def _save(self, grant: Grant, states: dict[str, tuple[bytes, bytes | None]]) -> None:
        """Write states, None for those to be dropped, and let go of the lock here.

        The lock is free here as soon as the commit is on its way: what the next task sends under
        this grant is done after it, and only if it was done.

        Raises:
            LockExpiredError: If the lock was lost.
            CommitUncertainError: If the outcome cannot be known.
            BackendUnavailableError: If the server could not be asked, or refuses.
        """
        lock_key = grant.lock_key
        if grant.lost or not grant.held:
            self._lose(grant)
            self._end(lock_key, None)
            raise self._expired(lock_key)
        now = self._monotonic()
        waited_for = lock_key in self._locks.queues
        keep = not grant.must_go(now) and (
            waited_for or (self._keeps and not grant.wanted and now < grant.hold_ends_at)
        )
        saving, call = self._send(grant, states, keep=keep, rejoin=waited_for and not keep)
        waiting = self._wait_for_copies(grant)
        grant.unacknowledged += 1
        self._end(lock_key, grant if keep else None)
        try:
            reply = await call.future
        except asyncio.CancelledError:
            if not call.future.cancelled():  # it came together with the cancel
                saving.conclude(call.future.exception() or call.future.result())
            raise
        except BackendUnavailableError as error:
            saving.conclude(error)
            raise self._uncertain(lock_key, error) if call.sent else error from error.__cause__
        saving.conclude(reply)
        if reply[0] == 2:
            raise BackendUnavailableError(
                f"nothing was written: another change of {self._redaction.ident(lock_key)}, "
                "which this one was made on, could not be written"
            )
        if reply[0] != 1:
            raise self._expired(lock_key)
        if waiting is not None:
            await self._confirm(grant, call, waiting)

    def _send(
        self,
        grant: Grant,
        states: dict[str, tuple[bytes, bytes | None]],
        *,
        keep: bool,
        rejoin: bool = False,
    ) -> "tuple[_Saving, Call]":
        """Send a commit of these states, and of what was not written before."""
        saving = _Saving(self, grant, states, self._monotonic(), keep=keep)
        call = self._grants.commit(grant, self._changes(grant, states), keep=keep, rejoin=rejoin)
        call.late = saving.conclude
        for key, (_, payload) in states.items():
            grant.payloads[key] = payload
            grant.live.pop(key, None)
        grant.unsaved, grant.touched = {}, {}
        if not keep:
            self._drop(grant)
        return saving, call

    def _wait_for_copies(self, grant: Grant) -> Call | None:
        """Have the server say when others, or its disk, have what was sent before."""
        if self.durability == "off":
            return None
        seconds = self._channel.timeout / 2
        if self.durability == "aof":
            command: tuple[Any, ...] = (b"WAITAOF", 1, 0, round(seconds * 1000))
        else:
            command = (b"WAIT", self.replicas, round(seconds * 1000))
        return self._channel.command(grant.key, *command)

    async def _confirm(self, grant: Grant, call: Call, waiting: Call) -> None:
        """Wait for them.

        Raises:
            CommitUncertainError: If they do not have it in time, or it cannot be known.
        """
        try:
            reply = await waiting.future
        except BackendUnavailableError as error:
            raise CommitUncertainError(
                f"the change of {self._redaction.ident(grant.lock_key)} is in Redis; whether it "
                f"would outlive a crash is not known: {error}",
                lock_key=grant.lock_key,
            ) from error.__cause__
        copies, needed = (reply[0], 1) if self.durability == "aof" else (reply, self.replicas)
        # On another connection than the commit's, it tells about what was written there.
        if waiting.doubts != call.doubts:
            raise CommitUncertainError(
                f"the change of {self._redaction.ident(grant.lock_key)} is in Redis; whether it "
                "would outlive a crash is not known: the connection was lost",
                lock_key=grant.lock_key,
            )
        if copies < needed:
            raise CommitUncertainError(
                f"the change of {self._redaction.ident(grant.lock_key)} is in Redis, but "
                f"{'its disk' if self.durability == 'aof' else f'{copies} of {needed} replicas'} "
                f"had it within {self._channel.timeout / 2:g} s",
                lock_key=grant.lock_key,
            )

    def _changes(
        self, grant: Grant, states: dict[str, tuple[bytes, bytes | None]]
    ) -> Iterable[Change]:
        """Return what is to be written: these states, and what waits to be."""
        changes: dict[bytes, Change] = {}
        now = self._monotonic()
        for name, touched_at in grant.touched.items():
            changes[name] = name, b"", _UNCHANGED, age_ms(now, touched_at)
        for name, (key, unsaved, changed_at) in grant.unsaved.items():
            age = age_ms(now, max(changed_at, grant.touched.get(name, changed_at)))
            changes[name] = name, self._pack(key, unsaved), b"%d" % len(unsaved), age
        for key, (name, payload) in states.items():
            if payload is None:
                changes[name] = name, b"", _DROPPED, 0
            elif payload == grant.payloads.get(key) and name not in grant.unsaved:
                changes[name] = name, b"", _UNCHANGED, 0
            else:
                changes[name] = name, self._pack(key, payload), b"%d" % len(payload), 0
        return changes.values()

    def _pack(self, cache_key: str, payload: bytes) -> bytes:
        return self._codec.pack(cache_key, payload, math.inf)  # the hash has the deadline

    def _saved(self, saving: "_Saving", reply: Any) -> None:
        """Take note of how a commit has ended."""
        grant = saving.grant
        grant.sent -= 1
        if saving.states:
            grant.unacknowledged -= 1
        if isinstance(reply, Exception) or reply[0] != 1:
            grant.unsaved = saving.unsaved | grant.unsaved
            self._lose(grant, reply if isinstance(reply, Exception) else None)
        elif saving.keep:
            grant.deadline = max(grant.deadline, saving.asked_at + self.lock_expiration)
            if grant.hold_ends_at <= saving.asked_at:
                grant.hold_ends_at = saving.asked_at + self.oplock_hold_time
            if reply[1] == 1:
                grant.wanted = True
                self._wanted(grant)

    def _expired(self, lock_key: str) -> LockExpiredError:
        return LockExpiredError(
            f"the lock of {self._redaction.ident(lock_key)} was lost, and nothing was written: "
            f"it could not be renewed within lock_expiration={self.lock_expiration:g} s",
            lock_key=lock_key,
        )

    def _uncertain(self, lock_key: str, cause: Exception) -> CommitUncertainError:
        if isinstance(cause, CommitUncertainError):
            return cause
        error = CommitUncertainError(
            f"whether the change of {self._redaction.ident(lock_key)} was written is not known: "
            f"{cause}",
            lock_key=lock_key,
        )
        error.__cause__ = cause.__cause__
        return error

    async def _abort(self, modification: StateModification[Any]) -> None:
        grant: Grant = modification.grant
        for token in modification.tokens:
            grant.live.pop(token.cache_key, None)
        self._touch(grant, modification.tokens)
        self._end(modification.lock_key, grant)

    def _touch(self, grant: Grant, tokens: Iterable[AnyToken]) -> None:
        now = self._monotonic()
        for token in tokens:
            grant.touched[class_of(token)] = now

    def _fence_of(self, modification: StateModification[Any]) -> int | None:
        grant: Grant | None = getattr(modification, "grant", None)
        return None if grant is None else grant.fence

    async def _write(self, modification: StateModification[Any]) -> None:
        token = modification.token
        payload = self._encode(token, modification.state)
        grant = await self._own(modification, ())
        now = self._monotonic()
        if self._may_write_later(grant, now):
            self._write_later(grant, token, payload, now)
            self._end(token.lock_key, grant)
        else:
            await self._save(grant, {token.cache_key: (class_of(token), payload)})

    async def _delete(self, modification: StateModification[Any]) -> bool:
        token = modification.token
        grant = await self._own(modification, (token,))
        key = token.cache_key
        found = grant.payloads.get(key, grant.records.get(key)) is not None
        if found:
            await self._save(grant, {key: (class_of(token), None)})
        else:
            self._end(token.lock_key, grant)
        return found

    # What becomes of grants

    def _end(self, lock_key: str, grant: Grant | None) -> None:
        """Let go of the lock here: the next task has it, or nobody."""
        self._locks.release(lock_key)
        if lock_key in self._locks.holders:
            return
        if self._passed_over:
            self._lock_released(lock_key)
        self._grants.give_up(lock_key)
        grant = grant or self._granted.get(lock_key)
        if grant is None:
            return
        keeps = self._keeps and self._refusal is None and not grant.wanted
        if not keeps or self._monotonic() >= grant.hold_ends_at:
            self._let_go(grant)

    def _wanted(self, grant: Grant) -> None:
        """Give up a kept grant that another process waits for; forget one that is lost."""
        if grant.lock_key not in self._locks.holders:
            self._let_go(grant)

    def _let_go(self, grant: Grant) -> None:
        """Give up a grant that no body uses, and have what is not written yet written."""
        if self._granted.get(grant.lock_key) is not grant:
            return
        if grant.unsaved:
            self._flush(grant, keep=False)
        else:
            self._release(grant)

    def _flush(self, grant: Grant, *, keep: bool) -> None:
        """Have written what is not; an error is kept for whoever comes next."""
        if grant.lost or not grant.held:
            self._lose(grant)
            return
        saving, call = self._send(grant, {}, keep=keep)
        flushing = asyncio.get_running_loop().create_task(
            self._conclude_flush(saving, call, self._wait_for_copies(grant))
        )
        self._flushing[grant.lock_key] = flushing
        flushing.add_done_callback(functools.partial(self._flushed, grant.lock_key))

    async def _conclude_flush(self, saving: "_Saving", call: Call, waiting: Call | None) -> None:
        reply: Any
        try:
            reply = await call.future
            if reply[0] == 1 and waiting is not None:
                await self._confirm(saving.grant, call, waiting)
        except StateManagerError as error:
            reply = error
        saving.conclude(reply)

    def _flushed(self, lock_key: str, flushing: "asyncio.Task[None]") -> None:
        if self._flushing.get(lock_key) is flushing:
            del self._flushing[lock_key]

    def _release(self, grant: Grant) -> None:
        self._drop(grant)
        if grant.held and not grant.lost:
            self._grants.release(grant)
        else:
            self._grants.forget(grant)

    def _lose(self, grant: Grant, error: Exception | None = None) -> None:
        """Forget a grant that is lost. What was acknowledged under it is an error to be seen."""
        if grant.unsaved:
            failure = (
                self._expired(grant.lock_key)
                if error is None
                else self._uncertain(grant.lock_key, error)
            )
            logger.error("changes that were acknowledged are lost: %s", failure)
            self._failures[grant.lock_key] = failure
            grant.unsaved.clear()
        self._drop(grant)
        if error is not None:
            self._grants.release(grant)
        else:
            self._grants.forget(grant)

    def _drop(self, grant: Grant) -> None:
        if self._granted.get(grant.lock_key) is grant:
            del self._granted[grant.lock_key]
            self._token_expires_at.pop(grant.lock_key, None)

    async def _raise_failure(self, lock_key: str) -> None:
        """Raise the error of a flush, once, when it has ended."""
        if (flushing := self._flushing.get(lock_key)) is not None:
            await asyncio.wait([flushing])
        if (failure := self._failures.pop(lock_key, None)) is not None:
            raise failure

    def _lock_held_of(self, key: str) -> str | None:
        # One in use is looked at too if it has something to be written.
        in_use = key in self._locks.holders and not self._granted[key].unsaved
        return key if in_use else None

    async def _drop_tokens(self, keys: Sequence[str]) -> None:
        """End oplocks whose hold time is over; of those in use, write what they have."""
        for key in keys:
            if self._token_expires_at.pop(key, None) is None:
                continue  # given up since the purge began
            grant = self._granted[key]
            if key not in self._locks.holders:
                self._let_go(grant)
            else:
                self._track_token(key, self._monotonic() + self.oplock_hold_time)
                self._flush(grant, keep=True)

    # Reading

    async def _read(self, tokens: Sequence[AnyToken]) -> Sequence[Any]:
        found = await self._ask(tokens, self._expiration_ms, records=True)
        return [self._state_of(token, data) for token, data in zip(tokens, found, strict=True)]

    def _state_of(self, token: AnyToken, data: "bytes | _Local | None") -> Any:
        try:
            if data is None:
                self._misses += 1
                return token.create()
            self._hits += 1
            payload = data.payload if isinstance(data, _Local) else self._unpack(token, data)
            return self._decode(token, payload)
        except StateDecodeError as error:
            return self._recover(token, error)

    async def _has(self, token: AnyToken) -> bool:
        return (await self._ask((token,), 0, records=False))[0] is not None

    async def _renew(self, token: AnyToken) -> bool:
        return (await self._ask((token,), self._expiration_ms, records=False))[0] is not None

    async def _ask(
        self, tokens: Sequence[AnyToken], expiration: int, *, records: bool
    ) -> list[Any]:
        """Return what there is of each token: a record, or what this process keeps, or None."""
        if self._flushing or self._failures:
            for token in tokens:
                await self._raise_failure(token.lock_key)
        found: list[Any] = [None] * len(tokens)
        groups: dict[str, list[int]] = {}
        for number, token in enumerate(tokens):
            local = self._local(token) if self._keeps else None
            if local is None:
                groups.setdefault(token.lock_key, []).append(number)
            else:
                found[number] = local if local.payload is not None else None
                if expiration:
                    self._touch(self._granted[token.lock_key], (token,))
        calls = [
            self._channel.call(
                READ,
                self._keys.ident(lock_key),
                expiration,
                b"1" if records else b"0",
                *[class_of(tokens[number]) for number in numbers],
            )
            for lock_key, numbers in groups.items()
        ]
        for call, numbers in zip(calls, groups.values(), strict=True):
            for number, record in zip(numbers, await call.future, strict=True):
                found[number] = record
        return found

    def _local(self, token: AnyToken) -> "_Local | None":
        """Return the state that this process keeps; None if it does not know."""
        grant = self._granted.get(token.lock_key)
        if (
            grant is None
            or grant.unacknowledged
            or token.cache_key not in grant.payloads
            or not grant.is_good(self._monotonic())
        ):
            return None
        return _Local(grant.payloads[token.cache_key])

    async def _list(self, prefix: str) -> AsyncIterator[StateInfo]:
        for grant in list(self._granted.values()):
            if grant.unsaved or grant.touched:
                self._flush(grant, keep=True)
        if self._flushing:
            await asyncio.wait(set(self._flushing.values()))
        start = StateToken(prefix, object).lock_key if prefix else ""
        seen: set[bytes] = set()
        for link in await self._channel.primaries():
            cursor: Any = 0
            while True:
                step = (b"SCAN", cursor, b"MATCH", self._keys.pattern(start), b"COUNT", _SCAN_COUNT)
                cursor, keys = await self._channel.command_on(link, *step).future
                keys = [key for key in keys if key not in seen]
                seen.update(keys)
                calls = [self._channel.call(DESCRIBE, key.decode()) for key in keys]
                for key, call in zip(keys, calls, strict=True):
                    for info in self._described(key, await call.future):
                        if info.ident.startswith(prefix):
                            yield info
                if int(cursor) == 0:
                    break

    def _described(self, key: bytes, found: list[Any]) -> list[StateInfo]:
        ident, now = self._keys.ident_of(key), self._clock.time()
        return [
            StateInfo(
                ident=ident,
                class_name=found[i].decode("utf-8", "surrogatepass"),
                size=found[i + 1],
                expires_at=now + found[i + 2] / 1000,
            )
            for i in range(0, len(found), 3)
        ]

    def _statistics(self) -> Statistics:
        grants = list(self._granted.values())
        holders = list(self._locks.holders.values())
        held = sum(getattr(holder, "grant", None) is not None for holder in holders)
        return self._counted(
            tokens_held=sum(len(grant.payloads) for grant in grants) if self._keeps else 0,
            locks_held=held,
            waiters=self._locks.waiting + (self._grants.waiting if holders else 0),
        )

    # Ending

    async def _close(self) -> None:
        self._locks.fail_waiters(self._refused)
        self._grants.fail_waits(self._refused)
        await self._stop_expiration()
        for grant in list(self._granted.values()):
            self._let_go(grant)
        if self._flushing:
            await asyncio.wait(set(self._flushing.values()))
        self._grants.stop()
        await self._channel.close(self._channel.timeout)
        if self._owns_client:
            with contextlib.suppress(*UNREACHABLE):
                await self._client.aclose()
        if self._failures:
            failures, self._failures = self._failures, {}
            raise next(iter(failures.values()))


def _are_alike(one: AnyToken, other: AnyToken) -> bool:
    """Return whether tokens make the same state of the same bytes."""
    return one == other and one.cls is other.cls


class _Saving:
    """A commit that is on its way.

    Attributes:
        states: What a body has changed; none of a flush.
        unsaved: What it writes of what was acknowledged before.
    """

    __slots__ = ("_manager", "asked_at", "grant", "keep", "states", "unsaved")

    def __init__(
        self,
        manager: StateManagerRedis,
        grant: Grant,
        states: dict[str, tuple[bytes, bytes | None]],
        asked_at: float,
        *,
        keep: bool,
    ) -> None:
        self._manager = manager
        self.grant = grant
        self.states = states
        self.asked_at = asked_at
        self.keep = keep
        self.unsaved = grant.unsaved

    def conclude(self, reply: Any) -> None:
        """Have the manager take note of the reply, or error."""
        self._manager._saved(self, reply)


class _Local:
    """A state that this process keeps; None if it knows that there is none."""

    __slots__ = ("payload",)

    def __init__(self, payload: bytes | None) -> None:
        self.payload: Any = payload
