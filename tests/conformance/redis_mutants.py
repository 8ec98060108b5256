"""The Redis backend with one fault seeded in each class, and the test that finds it."""

import hashlib
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from statemgr import StateManagerRedis
from statemgr.backends.redis import scripts
from statemgr.backends.redis.grants import Grants
from statemgr.backends.redis.keys import Keys
from statemgr.backends.redis.reading import Reader
from statemgr.backends.redis.scripts import ACQUIRE, COMMIT, EXTEND, READ, RELEASE, Script
from statemgr.backends.redis.writing import Writer
from statemgr.errors import LockExpiredError

from .redis_harness import RedisHarness
from .test_redis import BehindHarness, ThroughHarness, ValkeyHarness

M = TypeVar("M", bound=type)

MUTANTS: list[tuple[type[StateManagerRedis], type[RedisHarness], str, dict[str, Any]]] = []


def found_by(
    test: str, harness: type[RedisHarness] = ValkeyHarness, **arguments: Any
) -> Callable[[M], M]:
    """Name the test that fails on a mutant, the mode in which it does, and its parameters."""

    def add(mutant: M) -> M:
        MUTANTS.append((mutant, harness, test, arguments))
        return mutant

    return add


def mutated(script: Script, old: str, new: str) -> Script:
    """Return a script with another text in place of one that it has once."""
    assert script.source.count(old.encode()) == 1, (script.name, old)
    mutant = object.__new__(Script)
    mutant.name = script.name
    mutant.source = script.source.replace(old.encode(), new.encode())
    mutant.sha = hashlib.sha1(mutant.source, usedforsecurity=False).hexdigest().encode()
    return mutant


def mutated_common(old: str, new: str) -> dict[Script, Script]:
    """Return all scripts with another text in what they share."""
    found = [script for script in vars(scripts).values() if isinstance(script, Script)]
    return {script: mutated(script, old, new) for script in found}


class Scripted(StateManagerRedis):
    """A manager with other scripts, or other parts."""

    scripts: ClassVar[dict[Script, Script]] = {}
    grants_type: ClassVar[type[Grants]] = Grants
    writer_type: ClassVar[type[Writer]] = Writer
    reader_type: ClassVar[type[Reader]] = Reader

    def _started(self):
        super()._started()
        self._grants.__class__ = self.grants_type
        self._writer.__class__ = self.writer_type
        self._reader.__class__ = self.reader_type
        call = self._channel.call
        self._channel.call = lambda script, *args: call(self.scripts.get(script, script), *args)


_OWNED = (
    "if owner ~= me or fence ~= ARGV[9] or not is_held(owner, until_, its_term) then return {0} end"
)


# Faults of the scripts


@found_by("test_cancelled_wait_for_the_other_manager")
class ReleasesWhoeverHasIt(Scripted):
    """A release is a GETDEL: the lock is let go, whoever has it."""

    scripts: ClassVar = {
        RELEASE: mutated(
            RELEASE, "if owner ~= me or not is_held(owner, until_, term) then", "if false then"
        )
    }


@found_by("test_lock_lost_before_each_call")
class CommitsWithoutTheLock(Scripted):
    """A commit does not ask who the owner is."""

    scripts: ClassVar = {COMMIT: mutated(COMMIT, _OWNED, "")}


@found_by("test_lock_lost_before_each_call")
class ChecksThenSets(CommitsWithoutTheLock):
    """The owner is checked in one call, and the records are written in another."""

    async def _save(self, grant, states):
        term = round(self.lock_expiration * 1000)
        call = self._channel.call(EXTEND, grant.key, grant.owner, term, grant.fence)
        if (await call.future)[0] != 1:
            self._writer.lose(grant, self._writer.expired(grant.lock_key))
            self._end(grant.lock_key, None)
            raise LockExpiredError("the lock was lost", lock_key=grant.lock_key)
        await super()._save(grant, states)


@found_by("test_place_of_a_dead_waiter")
class ClaimsDoNotEnd(Scripted):
    """A lock that is passed on stays where it is, though nobody takes it up."""

    scripts: ClassVar = mutated_common(
        "now + claim, claim, since", "now + 1e10, '10000000000', since"
    )


@found_by("test_lost_replies")
class RepeatedCommitFails(Scripted):
    """A commit that is sent again does not know that it was done."""

    scripts: ClassVar = {
        COMMIT: mutated(COMMIT, "if done >= tonumber(ARGV[2]) then", "if false then")
    }


@found_by("test_lost_replies")
class WaitsForItself(Scripted):
    """An acquire that is sent again waits for the lock that the first one has got."""

    scripts: ClassVar = {ACQUIRE: mutated(ACQUIRE, "if held and owner ~= me then", "if held then")}


@found_by("test_renewal_of_a_lost_lock")
class RenewsWhoeverHasIt(Scripted):
    """A renewal does not ask who the owner is."""

    scripts: ClassVar = {
        EXTEND: mutated(EXTEND, "owner ~= ARGV[1] or fence ~= ARGV[3] or not", "not")
    }


@found_by("test_fence_grows")
class FenceStays(Scripted):
    """A grant has the number of the one before."""

    scripts: ClassVar = mutated_common(
        "math.max(last + 1, clock[1] * 1e6 + clock[2])", "math.max(last, 1)"
    )


@found_by("test_fence_grows_though_the_ident_was_gone")
class FenceStartsAgain(Scripted):
    """The number is kept with the ident, and expires with it."""

    scripts: ClassVar = mutated_common("math.max(last + 1, clock[1] * 1e6 + clock[2])", "last + 1")


@found_by("test_processes_are_served_in_order")
class LastInFirstOut(Scripted):
    """Who comes last is served first."""

    scripts: ClassVar = mutated_common("return wait .. ' ' .. owner", "return owner .. ' ' .. wait")


@found_by("test_processes_are_served_in_order")
class LatecomersOvertake(Scripted):
    """An expired lock goes to whoever asks first, not to the first who waits."""

    scripts: ClassVar = {ACQUIRE: mutated(ACQUIRE, "if heir ~= me then", "if false then")}


@found_by("test_using_renews", use="get_state")
class ReadDoesNotRenew(Scripted):
    """A state that is only read expires."""

    scripts: ClassVar = {
        READ: mutated(READ, "if expiration > 0 and #set > 0 then", "if false then")
    }


@found_by("test_asking_does_not_renew", use="has_state")
class AskingRenews(Scripted):
    """A state lives on because somebody asks whether it does."""

    scripts: ClassVar = {READ: mutated(READ, "tonumber(ARGV[1]), {}, {}", "60000, {}, {}")}


@found_by("test_state_is_gone_at_its_deadline", settled=False)
class ExpiredIsReadable(Scripted):
    """A reader finds a state until it is removed."""

    scripts: ClassVar = {
        READ: mutated(READ, "if lives(found[i], held, since) then", "if found[i] then")
    }


@found_by("test_body_after_the_deadline_starts_afresh")
class ExpiredIsLoaded(Scripted):
    """A body finds a state until it is removed."""

    scripts: ClassVar = {
        ACQUIRE: mutated(ACQUIRE, "lives(found[i], true, since) and found[i - 1]", "found[i - 1]")
    }


@found_by("test_expired_state_never_comes_back")
class ExpiredIsRenewed(Scripted):
    """The end of a body renews a state that was gone when it began."""

    scripts: ClassVar = {
        RELEASE: mutated(RELEASE, "if lives(due, true, since) then", "if due then")
    }


@found_by("test_locked_state_is_not_purged")
class LockedExpires(Scripted):
    """A state expires under the lock of its ident."""

    scripts: ClassVar = mutated_common(" or (held and deadline > tonumber(since))", "")


@found_by("test_state_waited_for_by_another_process")
class WaitedForExpires(Scripted):
    """The lock that is passed on is a new one: what expired before is gone."""

    scripts: ClassVar = mutated_common(
        "lock_text(heir, now + claim, claim, since,", "lock_text(heir, now + claim, claim, now,"
    )


@found_by("test_place_of_who_gave_up")
class WithdrawLeavesThePlace(Scripted):
    """Who waits no more is still in the queue."""

    scripts: ClassVar = {
        RELEASE: mutated(RELEASE, "kept, prune, without(wait, me))", "kept, prune, wait)")
    }


class _WritesOne(Writer):
    def _changes(self, grant, states, now):
        return list(super()._changes(grant, states, now))[:1]


@found_by("test_several_states_are_saved_together")
class SomeOfSeveral(Scripted):
    """A commit writes the first of several classes."""

    writer_type = _WritesOne


@found_by("test_every_key_expires")
class KeysStay(Scripted):
    """A key has no TTL."""

    scripts: ClassVar = mutated_common("redis.call('PTTL', key) < needed", "false")


# Faults of the grants


class _Orphans(Grants):
    def give_up(self, lock_key):
        grant = self._waiting.get(lock_key)
        if grant is not None:
            self._unqueue(grant)


@found_by("test_cancelled_while_asking")
class CancelLeavesTheLock(Scripted):
    """A cancel while the acquire is on its way does not give the lock back."""

    grants_type = _Orphans


class _DoNotRenew(Grants):
    def _renew(self):
        pass


@found_by("test_renewed_lock_is_kept")
class BodiesAreNotRenewed(Scripted):
    """The lock of a long body expires."""

    grants_type = _DoNotRenew


class _Deaf(Grants):
    def _want(self, grant):
        pass


@found_by("test_oplock_gives_way_at_once", ThroughHarness)
@found_by("test_oplock_gives_way_at_once", BehindHarness)
class OplockStays(Scripted):
    """A kept lock is given up when its hold time is over, whoever waits."""

    grants_type = _Deaf


class _ByIdent(dict[str, Any]):
    """Takes the keys of one ident for one."""

    def __getitem__(self, key):
        return super().__getitem__(key.partition("/")[0])

    def __setitem__(self, key, value):
        super().__setitem__(key.partition("/")[0], value)

    def __contains__(self, key):
        return super().__contains__(key.partition("/")[0])

    def get(self, key, default=None):
        return super().get(key.partition("/")[0], default)


class _CachesByIdent(Grants):
    def _new(self, lock_key):
        grant = super()._new(lock_key)
        grant.payloads = _ByIdent()
        return grant


@found_by("test_several_states_are_saved_together", ThroughHarness)
class CachesByIdent(Scripted):
    """What is kept with a lock is one state, of whatever class."""

    grants_type = _CachesByIdent


class _Trusting(Grants):
    def _time_out(self, grant, timeout):
        pass


@found_by("test_wait_for_the_other_manager_is_bounded")
class WaitsForEver(Scripted):
    """A timeout bounds the wait for tasks here only."""

    grants_type = _Trusting


# Faults of the manager


class _Credulous(Reader):
    def _local(self, token):
        grant = self._granted.get(token.lock_key)
        if grant is not None:
            grant.deadline = self._clock.monotonic() + 1
        return super()._local(token)


@found_by("test_oplock_that_was_lost_answers_no_read", ThroughHarness)
@found_by("test_oplock_that_was_lost_answers_no_read", BehindHarness)
class ReadsPastTheDeadline(Scripted):
    """A read is answered from a lock that may have gone to somebody else."""

    reader_type = _Credulous


@found_by("test_nothing_is_acknowledged_past_the_deadline", BehindHarness)
class AcknowledgesPastTheDeadline(StateManagerRedis):
    """A change is acknowledged under a lock that may have gone to somebody else."""

    def _may_write_later(self, grant, now):
        grant.deadline = now + 1
        return super()._may_write_later(grant, min(now, grant.hold_ends_at - 1))


class _Forgetful(Writer):
    def lose(self, grant, failure):
        grant.unsaved.clear()
        super().lose(grant, failure)


@found_by("test_lost_flush_is_an_error_to_somebody", BehindHarness)
class LossIsForgotten(Scripted):
    """What was acknowledged and could not be written is nobody's business."""

    writer_type = _Forgetful


@found_by("test_close_saves_what_was_acknowledged", BehindHarness)
class CloseWritesNothing(StateManagerRedis):
    """What was put off is lost when the manager is closed."""

    async def _close(self):
        for grant in self._granted.values():
            grant.unsaved.clear()
        await super()._close()


@found_by("test_spoilt_record_is_set_aside_by_a_body")
class SetAsideDeletes(StateManagerRedis):
    """What cannot be read makes room for what can."""

    def _set_aside(self, grant, token):
        return self._channel.command(grant.key, b"PING")


class _ShortKeys(Keys):
    def ident(self, lock_key):
        return super().ident(lock_key[:20])


@found_by("test_any_ident_works")
class IdentsShareAKey(StateManagerRedis):
    """The key of an ident is cut short, and some have the same."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._keys.__class__ = _ShortKeys


class _WritesTruthy(Writer):
    def _changes(self, grant, states, now):
        written = {
            key: state
            for key, state in states.items()
            if state[1] and state[1][-1:] not in b"\x00\x90\x80\xc2\xa0"
        }
        return super()._changes(grant, written, now)


@found_by("test_falsy_state_is_saved", value=[])
class FalsyIsUnchanged(Scripted):
    """An empty state is none."""

    writer_type = _WritesTruthy
