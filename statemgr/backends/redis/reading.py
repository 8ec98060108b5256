"""`Reader`: what there is, asked without taking a lock: states by token, and all there are.

With an oplock, what this process keeps is read here, while that is the committed state without a
doubt: the grant is good, and no commit under it is without a reply.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

from statemgr.backends.redis.channel import Channel
from statemgr.backends.redis.grants import Grant
from statemgr.backends.redis.keys import Keys, class_of
from statemgr.backends.redis.scripts import DESCRIBE, READ
from statemgr.backends.redis.writing import Writer
from statemgr.clock import Clock
from statemgr.statistics import StateInfo
from statemgr.token import AnyToken, StateToken

_SCAN_COUNT: Final = 500  # keys looked at in one step of a scan


class Local:
    """The payload of a state that this process keeps; None if it knows that there is none."""

    __slots__ = ("payload",)

    def __init__(self, payload: bytes | None) -> None:
        self.payload: Any = payload


class Reader:
    """Read states, and list them.

    Args:
        channel: Where the server is.
        keys: What things are called there.
        clock: What times are measured by.
        granted: By lock key, the grants of this process.
        writer: Writes under them.
        keeps: Whether grants are kept after a change, so that states are known here.
    """

    def __init__(
        self,
        channel: Channel,
        keys: Keys,
        clock: Clock,
        granted: dict[str, Grant],
        writer: Writer,
        *,
        keeps: bool,
    ) -> None:
        self._channel = channel
        self._keys = keys
        self._clock = clock
        self._granted = granted
        self._writer = writer
        self._keeps = keeps

    async def ask(self, tokens: Sequence[AnyToken], expiration: int, *, records: bool) -> list[Any]:
        """Return what there is of each token: a record, or a `Local`, or None.

        Args:
            tokens: Of any idents.
            expiration: For how many ms to renew them; 0 for not at all.
            records: Whether the records are wanted; else what is returned for one only says
                that it is there.

        Raises:
            StateManagerError: What a flush for one of their idents has failed with.
            BackendUnavailableError: If the server cannot be asked.
        """
        writer = self._writer
        if writer.flushing or writer.failures:
            for token in tokens:
                await writer.raise_failure(token.lock_key)
        found: list[Any] = [None] * len(tokens)
        groups: dict[str, list[int]] = {}
        for number, token in enumerate(tokens):
            local = self._local(token) if self._keeps else None
            if local is None:
                groups.setdefault(token.lock_key, []).append(number)
            else:
                found[number] = local if local.payload is not None else None
                if expiration:
                    self._granted[token.lock_key].touch((token,), self._clock.monotonic())
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

    def _local(self, token: AnyToken) -> Local | None:
        """Return the state that this process keeps; None if it does not know."""
        grant = self._granted.get(token.lock_key)
        if (
            grant is None
            or grant.unacknowledged
            or token.cache_key not in grant.payloads
            or not grant.is_good(self._clock.monotonic())
        ):
            return None
        return Local(grant.payloads[token.cache_key])

    async def scan(self, prefix: str) -> AsyncGenerator[StateInfo, None]:
        """Iterate over the states whose ident begins with `prefix`; first, write what is not."""
        for grant in list(self._granted.values()):
            if grant.unsaved or grant.touched:
                self._writer.flush(grant, keep=True)
        await self._writer.flushes_ended()
        start = StateToken(prefix, object).lock_key if prefix else ""
        seen: set[bytes] = set()
        for link in await self._channel.primaries():
            cursor: Any = 0
            while True:
                began = int(cursor) == 0
                step = (b"SCAN", cursor, b"MATCH", self._keys.pattern(start), b"COUNT", _SCAN_COUNT)
                cursor, keys = await self._channel.command_on(link, *step).future
                if began:
                    connections = link.connections
                elif connections != link.connections:  # another server knows no such cursor
                    cursor = 0
                    continue
                keys = [key for key in keys if key not in seen]
                seen.update(keys)
                calls = [self._channel.call(DESCRIBE, key.decode()) for key in keys]
                for key, call in zip(keys, calls, strict=True):
                    for info in self._described(key, await call.future):
                        if info.ident.startswith(prefix):
                            yield info
                if int(cursor) == 0:
                    break

    def _described(self, key: bytes, found: Sequence[Any]) -> list[StateInfo]:
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
