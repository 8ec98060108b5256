r"""`Grants`: which idents this process owns in Redis, and which it waits for.

A grant is the process's ownership of an ident. It is asked for under an owner of its own,
INSTANCE.NUMBER, which makes every step one that can be repeated:

    new --acquire--> waiting --message, acquire--> held --release, commit--> gone
      \--acquire-------------------------------->/  \--not renewed in time--> lost

The worst races, and what they cost:

    A  acquire, cancelled before the reply comes      A sends release after it, in order: the
                                                      lock is given back, or the place is
    A  commit passes the lock to B's claim            B is dead: the claim ends, and whoever
                                                      looks next passes it on
    server  message to B                  x-- lost    B looks by itself within half a second
    A  stopped; its lock expires; B commits
    A  goes on, commits                               the server knows that A is not the owner:
                                                      nothing is written, LockExpiredError

Tasks of one process share one grant. It is passed between them locally, and handed over when
another process waits and all those have had their turn who waited here when it came.
"""

import asyncio
import functools
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from statemgr.backends.redis.channel import Channel
from statemgr.backends.redis.keys import Keys, class_of
from statemgr.backends.redis.link import Call
from statemgr.backends.redis.scripts import ACQUIRE, COMMIT, EXTEND, RELEASE
from statemgr.clock import Clock, Timer
from statemgr.errors import BackendUnavailableError, LockTimeoutError, StateManagerError

if TYPE_CHECKING:
    from statemgr.token import AnyToken

_CLAIM: Final = 1.0  # seconds, at most: how long a lock that is passed to a dead process is lost
_FIRST_LOOK: Final = 0.05  # seconds until a waiter looks by itself
_LONGEST_LOOK: Final = 0.5
_SLICE: Final = 0.01  # seconds after which a process hands over, whoever waits here
_MARGIN: Final = 0.002  # seconds after a lock's expiry at which to look: clocks count in ms

# Class, record, size, and how many ms ago it was used, as commit.lua has them.
Change = tuple[bytes, bytes, bytes, int]


class Grant:
    """The ownership of one ident, or the wait for it.

    Attributes:
        lock_key: Of the ident.
        owner: Under which name it is asked for.
        held: Whether this process has the lock, as far as it knows.
        lost: Whether the server has said that it does not, or no more.
        spoilt: Whether a commit has failed while a later body was at work on it: the lock is kept
            until that body ends, and what it leaves is not written.
        fence: The fence, while it is held.
        deadline: When the lock expires by the monotonic clock, reckoned from before it was
            asked for or renewed: never later than the server has it.
        wanted: Whether another process waits.
        turns: How many of those have not had their turn who waited here when it came.
        turn_ends_at: When it is handed over at the latest if another process waits.
        hold_ends_at: When an oplock ends.
        records: By cache key, the records that were read and not looked into yet.
        payloads: By cache key, the committed states; None where there is none.
        live: By cache key, the object of a committed state that the last body has left, and the
            token that it was made by.
        unsaved: By class, states that are acknowledged and not in Redis yet: cache key,
            payload, and when that was.
        sent: How many commits are on their way, and
        unacknowledged: how many of these no caller has been told of.
        last_commit: The number of the last one.
        touched: Classes whose states are to be renewed with the next commit or release, and
            when they were used.
    """

    __slots__ = (
        "asking",
        "called",
        "deadline",
        "failure",
        "fence",
        "held",
        "hold_ends_at",
        "key",
        "last_commit",
        "live",
        "lock_key",
        "lost",
        "owner",
        "pause",
        "payloads",
        "queued",
        "records",
        "renewed_at",
        "sent",
        "spoilt",
        "touched",
        "turn_ends_at",
        "turns",
        "unacknowledged",
        "unsaved",
        "wanted",
    )

    def __init__(self, lock_key: str, key: str, owner: bytes) -> None:
        self.lock_key = lock_key
        self.key = key
        self.owner = owner
        self.held = self.lost = self.spoilt = self.wanted = self.queued = self.called = False
        self.sent = self.unacknowledged = 0
        self.last_commit = 0
        self.fence = 0
        self.deadline = self.renewed_at = self.turn_ends_at = self.hold_ends_at = 0.0
        self.turns = 0
        self.records: dict[str, bytes | None] = {}
        self.payloads: dict[str, bytes | None] = {}
        self.live: dict[str, tuple[AnyToken, Any]] = {}
        self.unsaved: dict[bytes, tuple[str, bytes, float]] = {}
        self.touched: dict[bytes, float] = {}
        self.asking: Call | None = None  # the last acquire, until it has succeeded
        self.failure: StateManagerError | None = None  # what the wait is to end with
        self.pause: asyncio.Future[None] | None = None  # until it is time to ask again

    def is_good(self, now: float) -> bool:
        """Whether this process has the lock without a doubt."""
        return self.held and not self.lost and not self.spoilt and now < self.deadline

    def must_go(self, now: float) -> bool:
        """Whether it is another process's turn."""
        return self.wanted and (self.turns <= 0 or now >= self.turn_ends_at)

    def touch(self, tokens: "Iterable[AnyToken]", now: float) -> None:
        """Have states renewed, that were used just now, with the next commit or release."""
        for token in tokens:
            self.touched[class_of(token)] = now

    def put_off(self, token: "AnyToken", payload: bytes, now: float) -> None:
        """Take a state to be written later; one that is as it was is only to be renewed."""
        key = token.cache_key
        self.live.pop(key, None)
        if self.payloads.get(key) == payload:
            self.touched[class_of(token)] = now
        else:
            self.payloads[key] = payload
            self.unsaved[class_of(token)] = key, payload, now


class Grants:
    """Ask for grants, keep them alive, and give them up.

    Args:
        channel: Where the server is.
        keys: What things are called there.
        clock: What waits are measured by.
        lock_expiration: Seconds after which the lock of a dead process is free.
        token_expiration: Seconds after which an untouched state is dropped.
        keeps: Whether grants are kept after a change, so that they must be asked for.
        name: Turns a lock key into what an error message may call it.
        on_wanted: Called with a grant that another process waits for, or that was lost.
    """

    def __init__(
        self,
        channel: Channel,
        keys: Keys,
        clock: Clock,
        *,
        lock_expiration: float,
        token_expiration: float,
        keeps: bool,
        name: Callable[[str], str],
        on_wanted: Callable[[Grant], None],
    ) -> None:
        self._channel = channel
        self._keys = keys
        self._clock = clock
        self._monotonic = clock.monotonic
        self._lock_expiration = lock_expiration
        self._keeps = b"1" if keeps else b"0"
        self._name = name
        self._on_wanted = on_wanted
        self._term = _ms(lock_expiration)
        self._claim = _ms(min(_CLAIM, lock_expiration / 3))
        self._expiration = _ms(token_expiration)
        self._instance = secrets.token_urlsafe(9)
        self._number = 0
        self._waiting: dict[str, Grant] = {}  # by lock key
        self._queued: dict[bytes, Grant] = {}  # by owner
        self._held: dict[bytes, Grant] = {}  # by owner, those renewed longest ago first
        self._renewing: Timer | None = None
        self._listening = False
        self._openings = 0  # of the inbox

    @property
    def waiting(self) -> int:
        """How many idents this process is in a queue for."""
        return len(self._queued)

    # Asking

    async def obtain(
        self,
        lock_key: str,
        classes: Sequence[bytes],
        timeout: float | None,
        left: float | None = None,
    ) -> tuple[Grant, list[bytes | None]]:
        """Own an ident, after those who asked before.

        Args:
            lock_key: The ident's.
            classes: Whose records to return.
            timeout: The longest wait in seconds; None waits for ever, 0 or less not at all.
            left: How much of it is left; None for all.

        Returns:
            The grant, and a record for each class, None where there is none.

        Raises:
            LockTimeoutError: If it did not become free in time, as far as the server has said.
            BackendUnavailableError: If the server cannot be asked, or not in time.
            asyncio.CancelledError: If cancelled. As after every error, `give_up` is to be
                called, or the place in the queue is to be taken over by calling again.
        """
        grant = self._waiting.get(lock_key)
        if grant is None:
            grant = self._waiting[lock_key] = self._new(lock_key)
        self.listen()  # before there is need: opening takes longer than most waits
        joins = timeout is None or timeout > 0
        timer = None
        if timeout is not None and joins:
            seconds = timeout if left is None else left
            timer = self._clock.call_later(seconds, self._time_out, grant, timeout)
        try:
            pause = _FIRST_LOOK
            while True:
                if grant.failure is not None:
                    raise grant.failure
                if not grant.queued or grant.called:
                    grant.called = False
                    asked_at, openings = self._monotonic(), self._openings
                    reply = await self._ask(grant, classes, joins).future
                    if reply[0] == 1:
                        now = self._monotonic()
                        if now < asked_at + self._lock_expiration:
                            self._renewed(grant, asked_at)
                            break
                        continue  # it took too long: is it still ours?
                    if not joins:
                        raise self._timed_out(lock_key, timeout or 0.0)
                    self._queue(grant)
                    # Opened since we joined the queue: a message before that was not heard.
                    grant.called |= self._openings != openings
                    pause_now = min(pause, reply[1] / 1000 + _MARGIN)
                    pause = min(2 * pause, _LONGEST_LOOK)
                else:
                    pause_now = pause
                if not grant.called:
                    await self._wait(grant, pause_now)
        finally:
            grant.failure = None
            if timer is not None:
                timer.cancel()
        self._unqueue(grant)
        grant.asking = None
        grant.fence = int(reply[1])
        grant.wanted = reply[2] == 1 or grant.called
        grant.turn_ends_at = now + _SLICE
        return grant, reply[3:]

    async def reread(self, grant: Grant, classes: Sequence[bytes]) -> list[bytes | None] | None:
        """Return records of an ident that is owned; None if it is not any more."""
        asked_at = self._monotonic()
        call = self._ask(grant, classes, joins=False)
        try:
            reply = await call.future
        except asyncio.CancelledError:
            if call.future.cancelled():
                call.late = functools.partial(self._still_has, grant)
            else:  # it came together with the cancel
                self._still_has(grant, call.future.exception() or call.future.result())
            raise
        grant.asking = None
        if not self._still_has(grant, reply):
            return None
        self._renewed(grant, asked_at)
        records: list[bytes | None] = reply[3:]
        return records

    def _still_has(self, grant: Grant, reply: Any) -> bool:
        """Whether an acquire under a grant says that it goes on; give back what it took anew."""
        if isinstance(reply, Exception) or reply[0] != 1:
            return False
        if grant.held and int(reply[1]) == grant.fence:
            return True
        self.release(grant)  # it was given up, or lost
        return False

    def _ask(self, grant: Grant, classes: Sequence[bytes], joins: bool) -> Call:
        call = self._channel.call(
            ACQUIRE,
            grant.key,
            grant.owner,
            self._term,
            self._claim,
            b"1" if joins else b"0",
            self._keeps,
            *classes,
        )
        grant.asking = call
        return call

    def _queue(self, grant: Grant) -> None:
        grant.queued = True
        self._queued[grant.owner] = grant

    def _unqueue(self, grant: Grant) -> None:
        if self._waiting.get(grant.lock_key) is grant:
            del self._waiting[grant.lock_key]
        if grant.queued:
            grant.queued = False
            del self._queued[grant.owner]

    async def _wait(self, grant: Grant, seconds: float) -> None:
        """Wait until the lock is passed to us, or for some seconds."""
        grant.pause = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(seconds, self._call, grant)
        try:
            await grant.pause
        finally:
            timer.cancel()
            grant.pause = None

    def _call(self, grant: Grant) -> None:
        """Have a waiter ask again."""
        grant.called = True
        if grant.pause is not None and not grant.pause.done():
            grant.pause.set_result(None)

    def _time_out(self, grant: Grant, timeout: float) -> None:
        error: StateManagerError | None = None
        if grant.pause is None and grant.asking is not None and not grant.asking.future.done():
            error = self.trouble(grant.lock_key, timeout, was_told=grant.queued)
        self._fail(grant, error or self._timed_out(grant.lock_key, timeout))

    def trouble(
        self, lock_key: str, timeout: float, *, was_told: bool
    ) -> BackendUnavailableError | None:
        """Return why it is not known whether a lock is free; None if the server does answer.

        Args:
            lock_key: The ident's.
            timeout: How long it was waited for, or for who has the lock here, in seconds. For
                most of it nobody was told anything, if this returns an error.
            was_told: Whether somebody may have been told before: then a reply that is just on
                its way is no trouble.
        """
        limit = min(timeout / 2, _LONGEST_LOOK)
        if was_told:
            limit = max(limit, _FIRST_LOOK)
        return self._channel.trouble(self._keys.ident(lock_key), limit)

    def _fail(self, grant: Grant, error: StateManagerError) -> None:
        """End a wait with an error, at once or when it has just been given its turn."""
        waits_on = grant.pause
        if waits_on is None and grant.asking is not None:
            waits_on = grant.asking.future
        if waits_on is not None and not waits_on.done():
            waits_on.set_exception(error)
        else:
            grant.failure = error

    def _timed_out(self, lock_key: str, timeout: float) -> LockTimeoutError:
        return LockTimeoutError(
            f"the lock of {self._name(lock_key)} was not free within {timeout:g} s",
            lock_key=lock_key,
            timeout=timeout,
        )

    def _new(self, lock_key: str) -> Grant:
        self._number += 1
        owner = f"{self._instance}.{self._number}".encode()
        return Grant(lock_key, self._keys.ident(lock_key), owner)

    # Keeping

    def _renewed(self, grant: Grant, asked_at: float) -> None:
        grant.held = True
        grant.renewed_at = asked_at
        grant.deadline = asked_at + self._lock_expiration
        self._held.pop(grant.owner, None)
        self._held[grant.owner] = grant
        if self._renewing is None:
            self._renewing = self._clock.call_later(self._lock_expiration / 3, self._renew)

    def _renew(self) -> None:
        """Renew the grants that are a third of their time old."""
        self._renewing = None
        now = self._monotonic()
        for owner, grant in list(self._held.items()):
            due = grant.renewed_at + self._lock_expiration / 3
            if due > now + _MARGIN:
                self._renewing = self._clock.call_later(due - now, self._renew)
                return
            grant.renewed_at = now
            del self._held[owner]
            self._held[owner] = grant
            call = self._channel.call(EXTEND, grant.key, grant.owner, self._term, grant.fence)
            call.future.add_done_callback(functools.partial(self._extended, grant, now))
        if self._held:
            self._renewing = self._clock.call_later(self._lock_expiration / 3, self._renew)

    def _extended(self, grant: Grant, asked_at: float, future: "asyncio.Future[Any]") -> None:
        if future.cancelled() or future.exception() is not None or not grant.held:
            return  # the next renewal tries again; without one the grant ends by itself
        reply = future.result()
        if reply[0] == 1:
            grant.deadline = max(grant.deadline, asked_at + self._lock_expiration)
            if reply[1]:
                self._want(grant)
        else:
            grant.lost = True
            self._on_wanted(grant)

    def listen(self) -> None:
        """Listen to who says that our turn has come, or that somebody waits."""
        if not self._listening:
            self._listening = True
            inbox = self._keys.inbox(self._instance)
            self._channel.listen(inbox, self._look_again, self._hear)

    def _look_again(self) -> None:
        """Have all who wait ask again: what was sent before the inbox was open was not heard."""
        self._openings += 1
        for grant in self._queued.values():
            self._call(grant)

    def _hear(self, owner: bytes) -> None:
        grant = self._queued.get(owner)
        if grant is not None:
            self._call(grant)
        elif (grant := self._held.get(owner)) is not None:
            self._want(grant)
        else:
            # It may be ahead of the reply to who asked: that comes by another connection.
            for grant in self._waiting.values():
                if grant.owner == owner:
                    grant.called = True

    def _want(self, grant: Grant) -> None:
        grant.wanted = True
        self._on_wanted(grant)

    # Giving up

    def commit(
        self,
        grant: Grant,
        changes: Iterable[Change],
        *,
        keep: bool,
        rejoin: bool,
    ) -> Call:
        """Write records, and keep the lock or pass it on.

        Args:
            grant: Under which to write.
            changes: What.
            keep: Whether to keep the lock.
            rejoin: Whether to wait for it again at once, after those who wait now.
        """
        self._number += 1
        number = self._number
        again = self._new(grant.lock_key) if rejoin else None
        call = self._channel.call(
            COMMIT,
            grant.key,
            grant.owner,
            number,
            b"keep" if keep else b"release",
            self._term,
            self._claim,
            self._expiration,
            again.owner if again is not None else b"",
            grant.last_commit if grant.sent else 0,
            grant.fence,
            *[part for change in changes for part in change],
        )
        grant.sent += 1
        grant.last_commit = number
        if not keep:
            self.forget(grant)
        if again is not None:
            self._waiting[grant.lock_key] = again
            self._queue(again)
        return call

    def forget(self, grant: Grant) -> None:
        """Renew a grant no more: it was given up, or is lost."""
        self._held.pop(grant.owner, None)
        grant.held = False

    def release(self, grant: Grant) -> None:
        """Give up a grant, or the wait for it; nobody waits for the reply."""
        asked = grant.asking if not grant.held and not grant.queued else None
        self.forget(grant)
        self._unqueue(grant)
        now = self._monotonic()
        renewals = [part for name, at in grant.touched.items() for part in (name, age_ms(now, at))]
        call = self._channel.call(
            RELEASE, grant.key, grant.owner, self._claim, self._expiration, *renewals
        )
        if asked is not None:
            call.undoes = asked

    def give_up(self, lock_key: str) -> None:
        """Wait no more for an ident, if anybody does."""
        grant = self._waiting.get(lock_key)
        if grant is not None:
            self.release(grant)

    def fail_waits(self, error: Callable[[], StateManagerError]) -> None:
        """Make every wait end with an error."""
        for grant in list(self._waiting.values()):
            self._fail(grant, error())
            self.release(grant)  # now, while there is a connection

    def stop(self) -> None:
        """Give up what is left, and renew nothing any more."""
        for grant in list(self._held.values()):
            self.release(grant)
        if self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None


def age_ms(now: float, then: float) -> int:
    """Return how long ago something was, in ms."""
    return max(0, round((now - then) * 1000))


def _ms(seconds: float) -> bytes:
    return b"%d" % max(1, round(seconds * 1000))
