"""Each script on real servers, by the contract at its head."""

import itertools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from statemgr.backends.redis import scripts
from statemgr.backends.redis.scripts import (
    ACQUIRE,
    COMMIT,
    DESCRIBE,
    EXTEND,
    READ,
    RELEASE,
    Script,
)
from statemgr.testing.servers import Server

if TYPE_CHECKING:
    from redis import Redis

TERM, CLAIM, EXPIRATION = 10_000, 8_000, 60_000  # ms
SLACK = 5_000  # ms that a call may take on a busy machine
DAY = 86_400_000  # ms

# Two owners of one instance, and of others.
A, A2, B, C = "a.1", "a.2", "b.1", "c.1"

_numbers = itertools.count(1)


@dataclass
class Lock:
    """What is in a lock field: see keys.py."""

    owner: str
    until: int
    term: int
    since: int
    fence: int
    kept: int
    prune: int
    wait: str


PARTS = [field.name for field in fields(Lock)]


class Ident:
    """One ident's key on a server: calls the scripts, and reaches behind them."""

    def __init__(self, client: "Redis") -> None:
        self.client: Any = client
        self.key = f"scripts:{{ident-{next(_numbers)}}}"

    def run(self, script: Script, *args: Any) -> Any:
        return self.client.eval(script.source, 1, self.key, *args)

    def acquire(self, owner: str, *classes: str, joins: bool = True, told: bool = False) -> Any:
        return self.run(ACQUIRE, owner, TERM, CLAIM, int(joins), int(told), *classes)

    def commit(
        self,
        owner: str,
        number: int,
        *changes: tuple[Any, ...],
        keep: bool = False,
        rejoin: str = "",
        expiration: int = EXPIRATION,
        after: int = 0,
        fence: int | None = None,
    ) -> Any:
        how = "keep" if keep else "release"
        flat = [part for change in changes for part in (*change, 0)[:4]]
        start = owner, number, how, TERM, CLAIM, expiration, rejoin, after, self.fence(fence)
        return self.run(COMMIT, *start, *flat)

    def extend(self, owner: str, term: int = TERM, fence: int | None = None) -> Any:
        return self.run(EXTEND, owner, term, self.fence(fence))

    def fence(self, fence: int | None) -> int:
        """The fence of a grant; that of the lock as it is now unless it is given."""
        if fence is None:
            return self.lock.fence if self.client.hexists(self.key, "lock") else 0
        return fence

    def release(self, owner: str, *classes: str, age: int = 0) -> Any:
        renewals = [part for name in classes for part in (name, age)]
        return self.run(RELEASE, owner, CLAIM, EXPIRATION, *renewals)

    def read(self, *classes: str, expiration: int = EXPIRATION, records: bool = True) -> Any:
        return self.run(READ, expiration, int(records), *classes)

    def describe(self) -> dict[bytes, tuple[int, int]]:
        found = self.run(DESCRIBE)
        return {found[i]: (found[i + 1], found[i + 2]) for i in range(0, len(found), 3)}

    def store(self, *changes: tuple[Any, ...], owner: str = "z.1") -> None:
        """Write states, and leave the lock free."""
        assert self.acquire(owner)[0] == 1
        assert self.commit(owner, next(_numbers), *changes) == [1, 0]

    # Behind the scripts

    @property
    def now(self) -> int:
        seconds, microseconds = self.client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    @property
    def lock(self) -> Lock:
        values = self.client.hget(self.key, "lock").decode().split(" ", len(PARTS) - 1)
        as_text = {"owner", "wait"}
        return Lock(*[v if p in as_text else int(v) for p, v in zip(PARTS, values, strict=True)])

    def set_lock(self, **parts: Any) -> None:
        lock = vars(self.lock) | parts
        self.client.hset(self.key, "lock", " ".join(str(lock[part]) for part in PARTS))

    def expire_lock(self) -> None:
        self.set_lock(until=self.now - 1)

    def left(self, name: str) -> int:
        """Return the ms until a state expires."""
        return int(self.client.hget(self.key, f"d:{name}")[:15]) - self.now

    def set_left(self, name: str, ms: int) -> None:
        size = self.client.hget(self.key, f"d:{name}")[15:]
        self.client.hset(self.key, f"d:{name}", b"%015d%b" % (self.now + ms, size))

    @property
    def fields(self) -> set[bytes]:
        return set(self.client.hkeys(self.key))

    @property
    def ttl(self) -> int:
        """The key's TTL in ms; it always has one."""
        ttl = int(self.client.pttl(self.key))
        assert ttl > 0
        return ttl


class Inbox:
    """Listen as an instance does."""

    def __init__(self, client: "Redis", instance: str) -> None:
        self._channel: Any = client.pubsub()
        self._channel.subscribe(f"scripts:inbox:{instance}")
        assert self._channel.get_message(timeout=5)["type"] == "subscribe"

    def heard(self) -> list[bytes]:
        """Return what was published before the last call's reply."""
        heard = []
        while message := self._channel.get_message(timeout=0.05 if heard else 1.0):
            heard.append(message["data"])
        return heard

    def is_silent(self) -> bool:
        """A ping comes back after whatever was said before it."""
        self._channel.ping()
        return self._channel.get_message(timeout=5)["type"] == "pong"

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def client(any_server: Server) -> Iterator["Redis"]:
    with any_server.client() as client:
        yield client


@pytest.fixture
def ident(client: "Redis") -> Ident:
    return Ident(client)


@pytest.fixture
def inbox(client: "Redis") -> Iterator[Any]:
    """Make inboxes of instances."""
    made: list[Inbox] = []

    def make(instance: str) -> Inbox:
        made.append(Inbox(client, instance))
        return made[-1]

    yield make
    for one in made:
        one.close()


def about(expected: int) -> Any:
    """Be equal to a duration that began a moment ago."""
    return pytest.approx(expected - SLACK / 2, abs=SLACK / 2)


# acquire


def test_free_lock_is_taken(ident: Ident) -> None:
    """And expires with its term; the key lives longer, so that the lock never outlives it."""
    reply = ident.acquire(A)
    lock = ident.lock
    assert reply == [1, str(lock.fence).encode(), 0]
    assert (lock.owner, lock.term, lock.wait, lock.kept) == (A, TERM, "", 0)
    assert lock.until - ident.now == about(TERM)
    assert lock.since == lock.until - TERM
    assert ident.ttl > TERM


def test_acquire_repeated_after_a_lost_reply(ident: Ident) -> None:
    """Is the same grant, with its full term again, and no place in the queue."""
    first = ident.acquire(A)
    ident.set_lock(until=ident.now + 1000, since=ident.now - 5000)
    before = ident.lock
    assert ident.acquire(A, told=True) == first
    lock = ident.lock
    assert (lock.since, lock.wait, lock.kept) == (before.since, "", 1)
    assert lock.until - ident.now == about(TERM)


def test_held_lock_is_waited_for_in_order(ident: Ident) -> None:
    """Asking again does not cost the place, and does not take a second one."""
    ident.acquire(A)
    for owner in (B, C, A2, B, C):
        taken, left = ident.acquire(owner)
        assert (taken, left) == (0, about(TERM))
    assert ident.lock.wait == f"{B} {C} {A2}"
    assert ident.acquire(A)[2] == 1  # others wait
    assert ident.lock.owner == A


def test_acquire_without_waiting_takes_no_place(ident: Ident) -> None:
    """Whether the lock is held, or has expired and somebody else is first."""
    ident.acquire(A)
    assert ident.acquire(B, joins=False)[0] == 0
    assert ident.lock.wait == ""
    ident.acquire(C)
    ident.expire_lock()
    assert ident.acquire(B, joins=False) == [0, CLAIM]
    assert (ident.lock.owner, ident.lock.wait) == (C, "")


def test_holder_of_a_kept_lock_is_told(ident: Ident, inbox: Any) -> None:
    """Each time that somebody asks; whoever is not to be told is not."""
    ears = inbox("a")
    ident.acquire(A)
    ident.acquire(B)
    assert ears.is_silent()
    ident.acquire(A, told=True)
    ident.acquire(B)
    ident.acquire(C, joins=False)
    assert ears.heard() == [A.encode()] * 2


def test_expired_lock_is_taken_with_a_new_fence(ident: Ident) -> None:
    """The old holder cannot write, renew or let go any more."""
    first = int(ident.acquire(A)[1])
    ident.expire_lock()
    assert int(ident.acquire(B)[1]) > first
    assert ident.lock.since == ident.lock.until - TERM
    assert ident.commit(A, 1, ("X", "old", 3)) == [0]
    assert ident.extend(A) == [0]
    assert ident.release(A) == 0
    assert ident.lock.owner == B
    assert b"s:X" not in ident.fields


def test_expired_lock_is_not_its_owners_own(ident: Ident) -> None:
    """Who asks again gets a new grant, and is told so by the fence."""
    first = int(ident.acquire(A)[1])
    ident.expire_lock()
    assert int(ident.acquire(A)[1]) > first


def test_expired_lock_goes_to_the_first_in_the_queue(ident: Ident, inbox: Any) -> None:
    """Not to whoever asks: that one waits behind the others."""
    ears = inbox("b")
    fence = int(ident.acquire(A)[1])
    ident.acquire(B)
    ident.expire_lock()
    assert ident.acquire(C) == [0, CLAIM]
    lock = ident.lock
    assert (lock.owner, lock.wait, lock.term, lock.kept) == (B, C, CLAIM, 0)
    assert lock.until - ident.now == about(CLAIM)
    assert lock.fence > fence
    assert ears.heard() == [B.encode()]
    assert ident.acquire(B) == [1, str(lock.fence).encode(), 1]
    assert ident.lock.until - ident.now == about(TERM)


def test_first_in_the_queue_takes_an_expired_lock(ident: Ident) -> None:
    """And leaves the queue."""
    ident.acquire(A)
    ident.acquire(B)
    ident.acquire(C)
    ident.expire_lock()
    assert ident.acquire(B)[::2] == [1, 1]
    assert (ident.lock.owner, ident.lock.wait) == (B, C)


def test_claim_that_is_not_taken_up_passes_on(ident: Ident) -> None:
    """The one whose process died is skipped, and stands behind the others if it lives."""
    ident.acquire(A)
    for owner in (B, C):
        ident.acquire(owner)
    assert ident.commit(A, 1) == [1, 1]
    assert ident.lock.owner == B
    ident.expire_lock()
    assert ident.acquire(C)[0] == 1
    assert ident.acquire(B)[0] == 0
    assert (ident.lock.owner, ident.lock.wait) == (C, B)


def test_records_come_with_the_lock(ident: Ident) -> None:
    """In the order of the classes; nil where there is no state; not for who has to wait."""
    ident.store(("X", b"x\x00\xff", 3), ("Y", "y", 1))
    assert ident.acquire(A, "Y", "Z", "X")[3:] == [b"y", None, b"x\x00\xff"]
    assert len(ident.acquire(B, "X")) == 2


def test_acquire_does_not_renew_states(ident: Ident) -> None:
    """How the body ends does that."""
    ident.store(("X", "x", 1))
    ident.set_left("X", 5_000)
    ident.acquire(A, "X")
    assert ident.left("X") <= 5_000


def test_expired_state_is_not_given_to_a_holder(ident: Ident) -> None:
    """Unless it expired while the lock was held without a gap."""
    ident.store(("X", "x", 1))
    ident.set_left("X", -10)
    assert ident.acquire(A, "X")[3] is None
    ident.set_lock(since=ident.now - 1000)
    assert ident.acquire(A, "X")[3] == b"x"
    ident.acquire(B)
    assert ident.release(A) == 1
    assert ident.acquire(B, "X")[3] == b"x"
    ident.expire_lock()
    assert ident.acquire(C, "X")[3] is None


def test_clock_that_is_set_back_frees_the_lock(ident: Ident) -> None:
    """Nobody waits a day for a holder that died: the lock was never granted for so long."""
    fence = int(ident.acquire(A)[1])
    ident.set_lock(until=ident.now + DAY, since=ident.now + DAY, fence=fence + DAY * 1000)
    assert ident.extend(A) == [0]
    assert int(ident.acquire(B)[1]) == fence + DAY * 1000 + 1
    assert ident.lock.until - ident.now == about(TERM)
    assert ident.commit(A, 1, ("X", "old", 3)) == [0]


def test_clock_that_is_set_back_a_little_keeps_the_lock(ident: Ident) -> None:
    """By less than the lock's term."""
    ident.acquire(A)
    ident.set_lock(until=ident.now + TERM * 2 - SLACK)
    assert ident.acquire(B)[0] == 0
    assert ident.commit(A, 1, ("X", "x", 1)) == [1, 1]


def test_fence_grows_though_the_ident_was_gone(ident: Ident) -> None:
    first = int(ident.acquire(A)[1])
    ident.client.delete(ident.key)
    assert int(ident.acquire(A)[1]) > first


def test_fence_grows_with_each_way_to_the_lock(ident: Ident) -> None:
    """Free, expired, passed on by a commit, a release, or a claim that ended."""
    fences = [int(ident.acquire(A)[1])]
    ident.acquire(B)
    ident.commit(A, 1)
    fences.append(int(ident.acquire(B)[1]))
    ident.acquire(C)
    ident.release(B)
    ident.acquire(A2)
    ident.expire_lock()
    fences.append(int(ident.acquire(A2)[1]))
    ident.release(A2)
    fences.append(int(ident.acquire(B)[1]))
    ident.expire_lock()
    fences.append(int(ident.acquire(B)[1]))
    assert fences == sorted(set(fences))


# commit


def test_commit_writes_and_frees(ident: Ident) -> None:
    """All classes, each with its deadline and its size."""
    ident.acquire(A)
    assert ident.commit(A, 1, ("X", "xx", 7), ("Y", b"\x00", 0)) == [1, 0]
    assert ident.read("X", "Y", "Z", expiration=0) == [b"xx", b"\x00", None]
    described = ident.describe()
    assert described[b"X"] == (7, about(EXPIRATION))
    assert described[b"Y"] == (0, about(EXPIRATION))
    assert ident.lock.owner == ""
    assert ident.acquire(B)[0] == 1


def test_commit_counts_from_the_use(ident: Ident) -> None:
    """A state that was used some time ago expires that much sooner."""
    ident.acquire(A)
    ident.commit(A, 1, ("X", "x", 1, 20_000))
    assert ident.left("X") == about(EXPIRATION - 20_000)


def test_commit_that_keeps_the_lock(ident: Ident) -> None:
    """Renews it, and says whether others wait."""
    fence = ident.acquire(A, told=True)[1]
    ident.set_lock(until=ident.now + 1000)
    before = ident.lock
    assert ident.commit(A, 1, ("X", "x", 1), keep=True) == [1, 0]
    lock = ident.lock
    assert (lock.owner, lock.kept, lock.since) == (A, 1, before.since)
    assert lock.until - ident.now == about(TERM)
    ident.acquire(B)
    assert ident.commit(A, 2, ("X", "y", 1), keep=True) == [1, 1]
    assert ident.acquire(A, "X") == [1, fence, 1, b"y"]
    assert ident.lock.wait == B


def test_commit_passes_the_lock_on(ident: Ident, inbox: Any) -> None:
    """To the first who waits, who is told and has it for a moment only."""
    ears = inbox("b")
    ident.acquire(A)
    ident.acquire(B)
    ident.acquire(C)
    since = ident.lock.since
    assert ident.commit(A, 1, ("X", "x", 1)) == [1, 1]
    lock = ident.lock
    assert (lock.owner, lock.wait, lock.term, lock.since) == (B, C, CLAIM, since)
    assert lock.until - ident.now == about(CLAIM)
    assert ears.heard() == [B.encode()]
    assert ident.acquire(B, "X") == [1, str(lock.fence).encode(), 1, b"x"]


def test_commit_joins_the_queue_again(ident: Ident) -> None:
    """Behind those who wait; if there are none the lock is its own again, as another owner."""
    ident.acquire(A)
    ident.acquire(B)
    assert ident.commit(A, 1, rejoin=A2) == [1, 1]
    assert (ident.lock.owner, ident.lock.wait) == (B, A2)
    ident.commit(B, 2, rejoin="b.3")
    ident.release("b.3")
    ident.acquire(A2)
    ident.commit(A2, 3, rejoin="a.4")
    assert (ident.lock.owner, ident.lock.wait) == ("a.4", "")


@pytest.mark.parametrize("how", ["never", "other", "expired", "passed on", "released"])
def test_commit_without_the_lock_writes_nothing(ident: Ident, how: str) -> None:
    """Not a field is changed."""
    if how != "never":
        ident.acquire(A)
    if how == "expired":
        ident.expire_lock()
    if how == "released":
        ident.release(A)
    if how in ("other", "passed on"):
        ident.acquire(B)
    if how == "passed on":
        ident.release(A)
    owner = C if how == "other" else A
    before = ident.client.hgetall(ident.key)
    for keep in (False, True):
        assert ident.commit(owner, 1, ("X", "x", 1), keep=keep) == [0]
    assert ident.client.hgetall(ident.key) == before


def test_commit_repeated_after_a_lost_reply(ident: Ident) -> None:
    """Reports success, and does not undo what others have done since."""
    ident.acquire(A)
    assert ident.commit(A, 7, ("X", "a", 1)) == [1, 0]
    ident.acquire(B)
    assert ident.commit(B, 1, ("X", "b", 1)) == [1, 0]
    before = ident.client.hgetall(ident.key)
    assert ident.commit(A, 7, ("X", "a", 1)) == [1, 0]
    assert ident.commit(A, 6, ("X", "a", 1)) == [1, 0]
    assert ident.client.hgetall(ident.key) == before
    assert ident.commit(A, 8, ("X", "a", 1)) == [0]


def test_commit_repeated_under_the_same_lock(ident: Ident) -> None:
    """Is done once; the next number is another commit."""
    ident.acquire(A)
    ident.commit(A, 9, ("X", "a", 1), keep=True)
    assert ident.commit(A, 9, ("X", "b", 1), keep=True) == [1, 0]
    assert ident.read("X") == [b"a"]
    assert ident.commit(A, 10, ("X", "b", 1), keep=True) == [1, 0]
    assert ident.read("X") == [b"b"]


def test_commit_that_depends_on_another(ident: Ident) -> None:
    """Is not done unless that one was, or a later one."""
    ident.acquire(A)
    before = ident.client.hgetall(ident.key)
    assert ident.commit(A, 6, ("X", "b", 1), after=5) == [2]
    assert ident.client.hgetall(ident.key) == before
    assert ident.commit(A, 5, ("X", "a", 1), keep=True) == [1, 0]
    assert ident.commit(A, 6, ("X", "b", 1), keep=True, after=5) == [1, 0]
    assert ident.commit(A, 7, ("X", "c", 1), after=5) == [1, 0]
    assert ident.read("X") == [b"c"]
    assert ident.commit(A, 8, after=9) == [0]


def test_commits_of_two_instances_are_told_apart(ident: Ident) -> None:
    """Their numbers have nothing to do with each other."""
    ident.acquire(A)
    ident.commit(A, 100, ("X", "a", 1))
    ident.acquire(B)
    assert ident.commit(B, 1, ("X", "b", 1)) == [1, 0]
    assert ident.read("X") == [b"b"]
    ident.acquire(A2)
    assert ident.commit(A2, 101, ("X", "c", 1)) == [1, 0]
    assert ident.read("X") == [b"c"]


@pytest.mark.parametrize("done", [False, True])
def test_commit_that_comes_behind_a_later_grant(ident: Ident, done: bool) -> None:
    """A later owner of the instance has left its mark: nobody knows, and nothing is written."""
    ident.acquire(A)
    if done:
        assert ident.commit(A, 5, ("X", "a", 1)) == [1, 0]
    else:
        ident.expire_lock()
    ident.acquire(A2)
    fence = ident.lock.fence
    assert ident.commit(A2, 6, ("X", "b", 1)) == [1, 0]
    before = ident.client.hgetall(ident.key)
    assert ident.commit(A, 5, ("X", "a", 1), fence=fence) == [3]
    assert ident.client.hgetall(ident.key) == before


def test_commit_depends_on_one_of_its_own_owner(ident: Ident) -> None:
    """A later number of another owner does not say that it was done."""
    ident.acquire(A)
    ident.commit(A, 9, ("X", "a", 1))
    ident.acquire(A2)
    assert ident.commit(A2, 10, ("X", "b", 1), after=8) == [2]
    assert ident.read("X") == [b"a"]


def test_unchanged_state_is_renewed(ident: Ident) -> None:
    """Its record and size stay; its deadline never comes sooner."""
    ident.store(("X", "x", 5))
    ident.set_left("X", 1000)
    ident.acquire(A)
    ident.commit(A, 1, ("X", "", "", 10_000), keep=True)
    assert ident.describe()[b"X"] == (5, about(EXPIRATION - 10_000))
    ident.commit(A, 2, ("X", "", "", 50_000), keep=True)
    assert ident.left("X") == about(EXPIRATION - 10_000)
    assert ident.read("X") == [b"x"]


def test_unchanged_state_that_is_gone_stays_gone(ident: Ident) -> None:
    """Whether there never was one, or it expired before the lock was taken."""
    ident.store(("X", "x", 1))
    ident.set_left("X", -10)
    ident.acquire(A)
    ident.commit(A, 1, ("X", "", ""), ("Y", "", ""), keep=True)
    assert ident.describe() == {}
    assert ident.read("X", "Y") == [None, None]


def test_unchanged_state_that_expired_under_the_lock_is_renewed(ident: Ident) -> None:
    ident.store(("X", "x", 1))
    ident.acquire(A)
    ident.set_lock(since=ident.now - 1000)
    ident.set_left("X", -10)
    ident.commit(A, 1, ("X", "", ""))
    assert ident.left("X") == about(EXPIRATION)


def test_dropped_state_is_gone(ident: Ident) -> None:
    """With its fields; the others of the ident stay."""
    ident.store(("X", "x", 1), ("Y", "y", 1))
    ident.acquire(A)
    assert ident.commit(A, 1, ("X", "", "-"), ("Y", "z", 1), ("Z", "", "-")) == [1, 0]
    assert ident.read("X", "Y") == [None, b"z"]
    assert not {b"s:X", b"d:X", b"s:Z", b"d:Z"} & ident.fields


def test_expired_states_are_removed_with_time(ident: Ident) -> None:
    """And marks of commits that nobody repeats any more."""
    ident.store(("X", "x", 1), ("Y", "y", 1), owner="old.1")
    ident.set_left("X", -10)
    ident.client.hset(ident.key, "c:old", f"1 {ident.now - DAY} 1")
    ident.client.hset(ident.key, "c:new", f"1 {ident.now - TERM} 1")
    ident.acquire(A)
    ident.commit(A, 1, keep=True)
    assert {b"s:X", b"c:old"} <= ident.fields  # it is not time to look yet
    ident.set_lock(prune=ident.now - 1)
    ident.commit(A, 2, keep=True)
    assert ident.fields == {b"lock", b"s:Y", b"d:Y", b"c:new", b"c:a"}
    assert ident.lock.prune - ident.now == about(EXPIRATION)


def test_many_marks_are_removed_with_time(ident: Ident) -> None:
    """More than Lua hands to one command: of programs that ran for a moment each."""
    ident.acquire(A)
    marks = {f"c:i{number}": f"1 {ident.now - DAY} 1" for number in range(9000)}
    ident.client.hset(ident.key, mapping=marks)
    ident.set_lock(prune=0)
    assert ident.commit(A, 1, ("X", "x", 1)) == [1, 0]
    assert ident.fields == {b"lock", b"s:X", b"d:X", b"c:a"}


def test_state_that_expired_under_the_lock_is_not_removed(ident: Ident) -> None:
    """As long as the lock is kept or passed on; then it is."""
    ident.store(("X", "x", 1))
    ident.acquire(A)
    ident.set_lock(since=ident.now - 1000)
    ident.set_left("X", -10)
    ident.acquire(B)
    ident.set_lock(prune=0)
    ident.commit(A, 1, keep=True)
    ident.set_lock(prune=0)
    ident.commit(A, 2)
    assert b"s:X" in ident.fields
    ident.acquire(B)
    ident.set_lock(prune=0)
    ident.commit(B, 3)
    assert b"s:X" not in ident.fields


def test_ident_without_states_is_soon_gone(ident: Ident) -> None:
    """Once it is free: what is left is a mark that a repeated commit is known by."""
    ident.acquire(A)
    ident.commit(A, 1, ("X", "x", 1), keep=True, expiration=DAY)
    ident.commit(A, 2, ("X", "", "-"), keep=True)
    assert ident.ttl >= DAY - SLACK
    ident.commit(A, 3, ("X", "", "-"))
    assert ident.ttl <= DAY / 2
    assert ident.commit(A, 3) == [1, 0]


def test_key_outlives_its_longest_state(ident: Ident) -> None:
    """Another commit with a shorter expiration does not shorten it."""
    ident.acquire(A)
    ident.commit(A, 1, ("X", "x", 1), keep=True, expiration=DAY)
    ident.commit(A, 2, ("Y", "y", 1), expiration=1000)
    assert ident.ttl >= DAY - SLACK


def test_key_always_has_a_ttl(ident: Ident) -> None:
    """Whatever comes first, and whatever comes then."""
    steps: list[Any] = [
        lambda: ident.acquire(A),
        lambda: ident.acquire(B),
        lambda: ident.extend(A),
        lambda: ident.release(A),
        lambda: ident.acquire(B),
        lambda: ident.commit(B, 1, ("X", "x", 1), keep=True, expiration=1),
        lambda: ident.commit(B, 2),
        lambda: ident.read("X"),
    ]
    for step in steps:
        step()
        assert ident.ttl > 0
    ident.acquire(A)
    assert ident.ttl >= TERM


# extend


def test_extend_renews(ident: Ident) -> None:
    """And says whether others wait."""
    ident.acquire(A)
    before = ident.lock
    assert ident.extend(A, TERM * 3) == [1, 0]
    lock = ident.lock
    assert (lock.fence, lock.since, lock.term) == (before.fence, before.since, TERM * 3)
    assert lock.until - ident.now == about(TERM * 3)
    assert ident.ttl >= TERM * 3
    ident.acquire(B)
    assert ident.extend(A) == [1, 1]


def test_extend_without_the_lock(ident: Ident) -> None:
    """Changes nothing: for another owner, for one that waits, for one that lost it."""
    assert ident.extend(A) == [0]
    assert not ident.client.exists(ident.key)
    ident.acquire(A)
    ident.acquire(B)
    before = ident.lock
    assert ident.extend(B) == [0]
    assert ident.extend(A2) == [0]
    assert ident.lock == before
    ident.expire_lock()
    assert ident.extend(A) == [0]


# release


def test_release_frees(ident: Ident) -> None:
    """Once."""
    ident.acquire(A)
    assert ident.release(A) == 1
    assert ident.lock.owner == ""
    assert ident.release(A) == 0
    assert ident.acquire(B)[0] == 1


def test_release_passes_the_lock_on(ident: Ident, inbox: Any) -> None:
    """To the first who waits, who is told; a repeated one does not take it from there."""
    ears = inbox("b")
    ident.acquire(A)
    ident.acquire(B)
    ident.acquire(C)
    assert ident.release(A) == 1
    assert (ident.lock.owner, ident.lock.wait, ident.lock.term) == (B, C, CLAIM)
    assert ears.heard() == [B.encode()]
    assert ident.release(A) == 0
    assert (ident.lock.owner, ident.lock.wait) == (B, C)


def test_release_of_another_owner_changes_nothing(ident: Ident) -> None:
    """Nor of one that is not known, nor of no lock at all."""
    assert ident.release(A) == 0
    assert not ident.client.exists(ident.key)
    ident.store(("X", "x", 1))
    ident.set_left("X", 5_000)
    ident.acquire(A)
    before = ident.client.hgetall(ident.key)
    assert ident.release(B, "X") == 0
    assert ident.client.hgetall(ident.key) == before


def test_release_of_an_expired_lock_leaves_it_to_others(ident: Ident) -> None:
    ident.acquire(A)
    ident.acquire(B)
    ident.expire_lock()
    assert ident.release(A) == 0
    assert ident.acquire(B)[0] == 1


def test_release_gives_up_a_place(ident: Ident) -> None:
    """The others keep theirs."""
    ident.acquire(A)
    for owner in ("b.1", "b.11", "c.1"):
        ident.acquire(owner)
    assert ident.release("b.1") == 2
    assert ident.lock.wait == "b.11 c.1"
    assert ident.release("b.1") == 0
    assert ident.release("c.1") == 2
    assert ident.lock.wait == "b.11"
    assert ident.lock.owner == A


def test_release_renews_states(ident: Ident) -> None:
    """From their use on, and those that there are."""
    ident.store(("X", "x", 3))
    ident.set_left("X", 100)
    ident.acquire(A)
    assert ident.release(A, "X", "Y", age=10_000) == 1
    assert ident.describe() == {b"X": (3, about(EXPIRATION - 10_000))}
    assert ident.ttl >= EXPIRATION - SLACK
    ident.set_left("X", -10)
    ident.acquire(A)
    ident.release(A, "X")
    assert ident.describe() == {}


# read and describe


def test_read_of_nothing_stores_nothing(ident: Ident) -> None:
    assert ident.read("X", "Y") == [None, None]
    assert ident.read("X", records=False) == [None]
    assert ident.describe() == {}
    assert not ident.client.exists(ident.key)


@pytest.mark.parametrize("records", [True, False])
def test_read_renews(ident: Ident, records: bool) -> None:
    """Unless it is not to; others of the ident stay as they are."""
    ident.store(("X", "x", 7), ("Y", "y", 1))
    for name in ("X", "Y"):
        ident.set_left(name, 5_000)
    ident.client.pexpire(ident.key, 6_000)
    found = [b"x" if records else 1, None]
    assert ident.read("X", "Z", expiration=0, records=records) == found
    assert ident.left("X") <= 5_000
    assert ident.read("X", "Z", records=records) == found
    assert ident.describe()[b"X"] == (7, about(EXPIRATION))
    assert ident.left("Y") <= 5_000
    assert ident.ttl >= EXPIRATION - SLACK


def test_read_never_makes_a_state_expire_sooner(ident: Ident) -> None:
    """A reader with a shorter expiration leaves the deadline where it is."""
    ident.store(("X", "x", 7))
    ident.set_left("X", EXPIRATION)
    assert ident.read("X", expiration=100) == [b"x"]
    assert ident.left("X") == about(EXPIRATION)


def test_read_finds_no_expired_state(ident: Ident) -> None:
    """And does not bring it back."""
    ident.store(("X", "x", 1))
    ident.set_left("X", -1)
    for records in (True, False):
        assert ident.read("X", records=records) == [None]
    assert ident.left("X") <= -1
    assert ident.describe() == {}


def test_read_finds_a_state_that_expired_under_the_lock(ident: Ident) -> None:
    """While the lock is held that was held then."""
    ident.store(("X", "x", 1))
    ident.acquire(A)
    ident.set_lock(since=ident.now - 1000)
    ident.set_left("X", -10)
    assert ident.read("X", expiration=0) == [b"x"]
    assert ident.describe()[b"X"][0] == 1
    ident.expire_lock()
    assert ident.read("X", expiration=0) == [None]
    assert ident.describe() == {}


# The files


def test_any_class_name_is_a_field(ident: Ident) -> None:
    """Bytes with spaces, colons and percent signs, and a name that looks like another field."""
    names: list[Any] = [b"a b:c%d", b"lock", b"\xff\xfe", "d:X"]
    ident.store(*[(name, b"r%d" % number, 2) for number, name in enumerate(names)])
    assert ident.read(*names) == [b"r0", b"r1", b"r2", b"r3"]
    assert ident.acquire(A, *names)[3:] == [b"r0", b"r1", b"r2", b"r3"]
    assert len(ident.describe()) == 4


def test_every_script_is_in_the_package() -> None:
    """As a file of the package, with `common.lua` before each."""
    directory = resources.files(scripts)
    names = {path.name for path in directory.iterdir() if path.name.endswith(".lua")}
    found = [script for script in vars(scripts).values() if isinstance(script, Script)]
    assert names == {f"{script.name}.lua" for script in found} | {"common.lua"}
    common = directory.joinpath("common.lua").read_bytes()
    for script in found:
        text = directory.joinpath(f"{script.name}.lua").read_bytes()
        assert script.source == common + text
        assert text.startswith(b"-- ")
        assert b"-- KEYS[1]  the ident's key" in text
        assert b"-- Returns" in text


def test_server_calls_a_script_by_our_digest(client: Any) -> None:
    for script in (ACQUIRE, COMMIT, DESCRIBE, EXTEND, READ, RELEASE):
        assert client.script_load(script.source).encode() == script.sha


def test_wheel_takes_the_whole_package() -> None:
    """Nothing in the build's rules leaves out a file of it, which the scripts are."""
    text = Path(__file__).parents[2].joinpath("pyproject.toml").read_text("utf-8")
    hatch = tomllib.loads(text)["tool"]["hatch"]["build"]
    assert hatch["targets"]["wheel"] == {"packages": ["statemgr"]}
    assert set(hatch) == {"targets"}
    assert set(hatch["targets"]["sdist"]) == {"include"}


def test_an_older_grant_of_the_same_owner_neither_writes_nor_renews(ident: Ident) -> None:
    """Who goes on under it does not know what was written in between.

    An acquire that was sent again may arrive late, when its grant has expired, and is granted anew.
    """
    first = ident.acquire(A)[1]
    ident.expire_lock()
    ident.store(("C", b"of another", 10))
    later = ident.acquire(A)[1]
    assert later > first
    assert ident.extend(A, fence=first) == [0]
    assert ident.commit(A, next(_numbers), ("C", b"of A", 4), fence=first) == [0]
    assert ident.lock.owner == A
    assert ident.acquire(A, "C")[3] == b"of another"
    assert ident.commit(A, next(_numbers), ("C", b"of A", 4), fence=later) == [1, 0]
