"""`StateManagerRedis`: states in Redis, for any number of processes on any number of machines.

A change takes two round trips: one takes the ident's lock and reads the records, the other one
writes them and lets the lock go. First in first out holds among the tasks of a manager, by
`KeyedLocks`; the first of them asks for the grant (grants.py). What Redis does is in scripts/.

With an oplock the grant is kept when the body has ended, and with it the states: the next
change needs no acquire, and a read no trip. "through" still writes each change before it is
acknowledged; "behind" acknowledges at once, and writes when another process waits or the hold
time is over. What ends a kept grant in time is `StateManagerExpiration`, by lock key.

Here is who has the lock, in this process and in Redis, and what a body is given. How changes are
written is in writing.py, how states are read without the lock in reading.py.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, cast

import statemgr.serialization.codec  # noqa: F401  # else imported under the first change's lock
from statemgr.backends.redis.channel import Client, channel_to
from statemgr.backends.redis.durability import Durability
from statemgr.backends.redis.grants import Grant, Grants
from statemgr.backends.redis.keys import Keys, class_of
from statemgr.backends.redis.link import UNREACHABLE, Call
from statemgr.backends.redis.reading import Local, Reader
from statemgr.backends.redis.urls import client_from_url
from statemgr.backends.redis.writing import States, Writer
from statemgr.errors import BackendUnavailableError, LockTimeoutError, StateDecodeError
from statemgr.expiration import StateManagerExpiration
from statemgr.locks import KeyedLocks
from statemgr.manager import ManagerOptions, StateManager, manager_options
from statemgr.modification import StateModification
from statemgr.options import OPTIONS, check_option, refused
from statemgr.record import RecordCodec
from statemgr.statistics import StateInfo, Statistics
from statemgr.token import AnyToken

if TYPE_CHECKING:
    from statemgr.settings import Settings


class StateManagerRedis(StateManagerExpiration, StateManager):
    """Keep states in Redis, Valkey, or what speaks like them; alone, with Sentinel, in Cluster.

    What `modify_state` has acknowledged is in Redis; what Redis itself may lose, by a crash
    without persistence or a fail-over, is lost. A holder that lost its lock writes nothing.

    Nothing is connected before the first call, not by `async with` either. To see whether the
    server is there, await `has_state(StateToken("health", int))`, with a token that nobody
    changes: it asks once, takes no lock and leaves nothing behind, and raises
    `BackendUnavailableError` within the client's timeout, or about twice if the server is silent.

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
        self._keeps = oplock != "off"
        self._writes_behind = oplock == "behind"
        self._init_expiration(self._monotonic)
        self._expiration_ms = max(1, round(self.token_expiration * 1000))

    @classmethod
    def from_settings(cls, settings: "Settings") -> Self:
        if settings.redis_url is None:
            raise refused("STATEMGR_REDIS_URL", None, "the URL of a server")
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
        self._writer = Writer(
            self._grants,
            self._codec,
            Durability(self._channel, self.durability, self.replicas, self._redaction.ident),
            self._clock,
            lock_expiration=self.lock_expiration,
            hold_time=self.oplock_hold_time,
            name=self._redaction.ident,
            on_wanted=self._wanted,
            on_gone=self._drop,
            on_spoilt=self._spoil,
        )
        self._reader = Reader(
            self._channel, self._keys, self._clock, self._granted, self._writer, keeps=self._keeps
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
        if lock_key in self._writer.failures:
            return False  # to be told
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
            grant.touch(modification.tokens, self._monotonic())
            self._end(modification.lock_key, grant)
            raise

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
            record = self._writer.pack(token.cache_key, grant.payloads[token.cache_key] or b"")
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
                grant.put_off(token, payload, now)
        else:
            token, state = modification.token, modification.state
            live = grant.live.get(key)
            kept = live is not None and live[1] is state  # else it is the caller's own object
            grant.put_off(token, self._encode(token, state), now)
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

    def _commit(
        self, modification: StateModification[Any], payloads: Sequence[bytes]
    ) -> Coroutine[Any, Any, None]:
        states: dict[str, tuple[bytes, bytes | None]] = {}
        for token, payload in zip(modification.tokens, payloads, strict=True):
            states[token.cache_key] = class_of(token), payload
        return self._save(modification.grant, states)

    def _save(self, grant: Grant, states: States) -> Coroutine[Any, Any, None]:
        """Send a commit, and let go of the lock here; what is returned waits for the reply.

        The lock is free here as soon as the commit is on its way: what the next task sends under
        this grant is done after it, and only if it was done.

        Raises:
            LockExpiredError: If the lock was lost.
            BackendUnavailableError: If what the body was made on could not be written.
        """
        lock_key = grant.lock_key
        if grant.spoilt:
            self._end(lock_key, grant)
            raise self._writer.unfounded(lock_key)
        if grant.lost or not grant.held:
            self._writer.lose(grant, self._writer.expired(lock_key))
            self._end(lock_key, None)
            raise self._writer.expired(lock_key)
        now = self._monotonic()
        waited_for = lock_key in self._locks.queues
        keep = not grant.must_go(now) and (
            waited_for or (self._keeps and not grant.wanted and now < grant.hold_ends_at)
        )
        commit, call = self._writer.send(grant, states, keep=keep, rejoin=waited_for and not keep)
        self._end(lock_key, grant if keep else None)
        return self._writer.done(commit, call)

    async def _abort(self, modification: StateModification[Any]) -> None:
        grant: Grant = modification.grant
        for token in modification.tokens:
            grant.live.pop(token.cache_key, None)
        grant.touch(modification.tokens, self._monotonic())
        self._end(modification.lock_key, grant)

    def _fence_of(self, modification: StateModification[Any]) -> int | None:
        grant: Grant | None = getattr(modification, "grant", None)
        return None if grant is None else grant.fence

    async def _write(self, modification: StateModification[Any]) -> None:
        token = modification.token
        payload = self._encode(token, modification.state)
        grant = await self._own(modification, ())
        now = self._monotonic()
        if self._may_write_later(grant, now):
            grant.put_off(token, payload, now)
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

    # The lock, here and in Redis

    async def _own(self, modification: StateModification[Any], tokens: Sequence[AnyToken]) -> Grant:
        """Take the ident's lock, here and in Redis, and have the records of these tokens."""
        lock_key, timeout = modification.lock_key, modification.timeout
        left = None
        modification.grant = None
        if lock_key not in self._locks.holders:
            self._locks.holders[lock_key] = modification
            modification.locked_since = self._monotonic()
        else:
            since = self._monotonic()
            try:
                await self._locks.acquire(lock_key, modification, timeout, self._freed)
            except LockTimeoutError as error:
                self._raise_trouble(lock_key, error.timeout)
                raise
            if timeout is not None:
                left = timeout - (self._monotonic() - since)
                left = max(left, 0.001)  # its turn has come: a look at the least
        try:
            self._check_usable()  # closed while this waited
            writer = self._writer
            if writer.flushing or writer.failures:
                await writer.raise_failure(lock_key)
            grant = self._granted.get(lock_key)
            if grant is not None and not await self._can_go_on(grant, tokens):
                self._check_usable()
                grant = None
            if grant is None:
                classes = [class_of(token) for token in tokens]
                grant, records = await self._grants.obtain(lock_key, classes, timeout, left)
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

    def _raise_trouble(self, lock_key: str, timeout: float) -> None:
        """Raise why a wait for a task here was in vain, if that one waits for the server too."""
        holder = self._locks.holders.get(lock_key)
        if timeout > 0 and getattr(holder, "grant", None) is None:
            error = self._grants.trouble(lock_key, timeout, was_told=True)
            if error is not None:
                raise error

    async def _can_go_on(self, grant: Grant, tokens: Sequence[AnyToken]) -> bool:
        """Use a grant that a body before has left, if it is ours to use; else give it up."""
        now = self._monotonic()
        if grant.must_go(now) or not grant.is_good(now):
            self._let_go(grant)
            await self._writer.raise_failure(grant.lock_key)
            return False
        missing = [token for token in tokens if token.cache_key not in grant.payloads]
        if missing:
            records = await self._grants.reread(grant, [class_of(token) for token in missing])
            if records is None:
                self._writer.lose(grant, self._writer.expired(grant.lock_key))
                await self._writer.raise_failure(grant.lock_key)
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

    def _end(self, lock_key: str, grant: Grant | None) -> None:
        """Let go of the lock here: the next task has it, or nobody."""
        if grant is not None and grant.spoilt:
            self._grants.release(grant)
            grant = None
        self._locks.release(lock_key)
        if lock_key not in self._locks.holders:
            self._freed(lock_key, grant)

    def _freed(self, lock_key: str, grant: Grant | None = None) -> None:
        """Give up what is not to be kept of an ident whose lock no task here has."""
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
            self._writer.flush(grant, keep=False)
        else:
            self._release(grant)

    def _spoil(self, grant: Grant) -> None:
        """Give up a grant under which a commit has failed, when no body uses it any more."""
        self._drop(grant)
        holder = self._locks.holders.get(grant.lock_key)
        if getattr(holder, "grant", None) is grant:
            grant.spoilt = True
        else:
            self._grants.release(grant)

    def _release(self, grant: Grant) -> None:
        self._drop(grant)
        if grant.held and not grant.lost:
            self._grants.release(grant)
        else:
            self._grants.forget(grant)

    def _drop(self, grant: Grant) -> None:
        if self._granted.get(grant.lock_key) is grant:
            del self._granted[grant.lock_key]
            self._token_expires_at.pop(grant.lock_key, None)

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
                self._writer.flush(grant, keep=True)

    # Reading

    async def _read(self, tokens: Sequence[AnyToken]) -> Sequence[Any]:
        found = await self._ask(tokens, self._expiration_ms, records=True)
        return [self._state_of(token, data) for token, data in zip(tokens, found, strict=True)]

    def _state_of(self, token: AnyToken, data: bytes | Local | None) -> Any:
        try:
            if data is None:
                self._misses += 1
                return token.create()
            self._hits += 1
            payload = data.payload if isinstance(data, Local) else self._unpack(token, data)
            return self._decode(token, payload)
        except StateDecodeError as error:
            return self._recover(token, error)

    async def _has(self, token: AnyToken) -> bool:
        return (await self._ask((token,), 0, records=False))[0] is not None

    async def _renew(self, token: AnyToken) -> bool:
        found = await self._ask((token,), self._expiration_ms, records=False)
        return found[0] is not None

    async def _list(self, prefix: str) -> AsyncIterator[StateInfo]:
        try:
            async with contextlib.aclosing(self._reader.scan(prefix)) as infos:
                async for info in infos:
                    yield info
        except BackendUnavailableError:
            if self._refusal is not None:
                raise self._refused() from None
            raise

    async def _ask(
        self, tokens: Sequence[AnyToken], expiration: int, *, records: bool
    ) -> list[Any]:
        try:
            return await self._reader.ask(tokens, expiration, records=records)
        except BackendUnavailableError:
            if self._refusal is not None:  # closed meanwhile
                raise self._refused() from None
            raise

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
        since = asyncio.get_running_loop().time()
        for grant in list(self._granted.values()):
            self._let_go(grant)
        await self._writer.flushes_ended()
        self._grants.stop()
        # What flushes have waited for in vain is not waited for once more.
        waited = asyncio.get_running_loop().time() - since
        await self._channel.close(max(0.0, self._channel.timeout - waited))
        if self._owns_client:
            with contextlib.suppress(*UNREACHABLE):
                await self._client.aclose()
        self._writer.raise_failures()


def _are_alike(one: AnyToken, other: AnyToken) -> bool:
    """Return whether tokens make the same state of the same bytes."""
    return one == other and one.cls is other.cls
