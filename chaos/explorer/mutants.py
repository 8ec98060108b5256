"""The protocol with one fault in each mutant: what the explorer has to find.

A fault of the scripts is a change to their text, made in the model of the server: the client asks
for the real script and gets the changed one. A fault of the client is a subclass.
"""

import dataclasses
import re
from typing import Any, ClassVar, Final

from chaos.explorer.server import Edit
from statemgr import StateManagerRedis
from statemgr.backends.redis.grants import Grant, Grants
from statemgr.backends.redis.reading import Reader
from statemgr.backends.redis.scripts import EXTEND
from statemgr.backends.redis.writing import States, Writer
from statemgr.errors import LockExpiredError, StateManagerError


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One faulty protocol.

    Attributes:
        name: What it is called.
        about: What it does wrong.
        edits: What is changed in the scripts.
        manager_type: The manager that has the fault, or the real one.
    """

    name: str
    about: str
    edits: tuple[Edit, ...] = ()
    manager_type: type[StateManagerRedis] = StateManagerRedis


REAL: Final = Mutant("", "the real protocol")

_UNOWNED: Final[Edit] = ("commit", re.compile(r"if owner ~= me or .* then return \{0\} end"), "")


# Faults of the client


class _Changed(StateManagerRedis):
    """A manager with other parts."""

    grants_type: ClassVar[type[Grants]] = Grants
    writer_type: ClassVar[type[Writer]] = Writer
    reader_type: ClassVar[type[Reader]] = Reader

    def _started(self) -> None:
        super()._started()
        self._grants.__class__ = self.grants_type
        self._writer.__class__ = self.writer_type
        self._reader.__class__ = self.reader_type


class _ChecksThenSets(StateManagerRedis):
    async def _save(self, grant: Grant, states: States) -> None:
        term = round(self.lock_expiration * 1000)
        call = self._channel.call(EXTEND, grant.key, grant.owner, term, grant.fence)
        if (await call.future)[0] != 1:
            self._writer.lose(grant, self._writer.expired(grant.lock_key))
            self._end(grant.lock_key, None)
            raise LockExpiredError("the lock was lost", lock_key=grant.lock_key)
        await super()._save(grant, states)


class _ByIdent(dict[str, Any]):
    """Take the keys of one ident for one."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key.partition("/")[0])

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key.partition("/")[0], value)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(str(key).partition("/")[0])

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key.partition("/")[0], default)


class _CachingByIdent(Grants):
    def _new(self, lock_key: str) -> Grant:
        grant = super()._new(lock_key)
        grant.payloads = _ByIdent()
        return grant


class _CachesByIdent(_Changed):
    grants_type = _CachingByIdent


class _Orphaning(Grants):
    def give_up(self, lock_key: str) -> None:
        grant = self._waiting.get(lock_key)
        if grant is not None:
            self._unqueue(grant)


class _Orphans(_Changed):
    grants_type = _Orphaning


class _Deaf(Grants):
    def _want(self, grant: Grant) -> None:
        pass


class _OplockStays(_Changed):
    grants_type = _Deaf


class _NotRenewing(Grants):
    def _renew(self) -> None:
        pass


class _BodiesAreNotRenewed(_Changed):
    grants_type = _NotRenewing


class _Trusting(Grants):
    def _time_out(self, grant: Grant, timeout: float) -> None:
        pass


class _WaitsForEver(_Changed):
    grants_type = _Trusting


class _Listening(Grants):
    async def _wait(self, grant: Grant, seconds: float) -> None:
        await super()._wait(grant, 1e6)


class _WaitsForMessages(_Changed):
    grants_type = _Listening


class _Renumbering(Grants):
    """Count commits by grant, not by instance."""

    def commit(self, grant: Grant, *args: Any, **options: Any) -> Any:
        number, self._number = self._number, grant.last_commit
        try:
            return super().commit(grant, *args, **options)
        finally:
            self._number = max(self._number, number)


class _CommitsNumberedByGrant(_Changed):
    grants_type = _Renumbering


class _Credulous(Reader):
    def _local(self, token: Any) -> Any:
        grant = self._granted.get(token.lock_key)
        if grant is not None:
            grant.deadline = self._clock.monotonic() + 1
        return super()._local(token)


class _ReadsPastTheDeadline(_Changed):
    reader_type = _Credulous


class _AcknowledgesPastTheDeadline(StateManagerRedis):
    def _may_write_later(self, grant: Grant, now: float) -> bool:
        grant.deadline = now + 1
        return super()._may_write_later(grant, min(now, grant.hold_ends_at - 1))


class _Forgetful(Writer):
    def lose(self, grant: Grant, failure: StateManagerError) -> None:
        grant.unsaved.clear()
        super().lose(grant, failure)


class _LossIsForgotten(_Changed):
    writer_type = _Forgetful


class _CloseWritesNothing(StateManagerRedis):
    async def _close(self) -> None:
        for grant in self._granted.values():
            grant.unsaved.clear()
        await super()._close()


class _WritingOne(Writer):
    def _changes(self, grant: Grant, states: States, now: float) -> Any:
        return list(super()._changes(grant, states, now))[:1]


class _SomeOfSeveral(_Changed):
    writer_type = _WritingOne


_ALL: Final = (
    Mutant(
        "releases-whoever-has-it",
        "a release is a GETDEL: the lock is let go, whoever has it",
        (("release", "if owner ~= me or not is_held(owner, until_, term) then", "if false then"),),
    ),
    Mutant("commits-without-the-lock", "a commit does not ask who the owner is", (_UNOWNED,)),
    Mutant(
        "checks-then-sets",
        "the owner is checked in one call, and the records are written in another",
        (_UNOWNED,),
        _ChecksThenSets,
    ),
    Mutant(
        "claims-do-not-end",
        "a lock that is passed on stays where it is, though nobody takes it up",
        (("*", "now + claim, claim, since", "now + 1e10, '10000000000', since"),),
    ),
    Mutant(
        "repeated-commit-fails",
        "a commit that is sent again does not know that it was done",
        (("commit", "if done >= tonumber(ARGV[2]) then", "if false then"),),
    ),
    Mutant(
        "repeated-commit-is-done-again",
        "a commit that is sent again is done again, whoever has the lock by now",
        (("commit", "if done >= tonumber(ARGV[2]) then", "if false then"), _UNOWNED),
    ),
    Mutant(
        "waits-for-itself",
        "an acquire that is sent again waits for the lock that the first one has got",
        (("acquire", "if held and owner ~= me then", "if held then"),),
    ),
    Mutant(
        "writes-under-an-older-fence",
        "an owner that lost its lock, and got it again by an acquire that came late, is trusted",
        (("*", re.compile(r"fence ~= ARGV\[\d+\]"), "false"),),
    ),
    Mutant(
        "joins-twice",
        "an acquire that is sent again has two places in the queue",
        (
            (
                "acquire",
                "  if ARGV[4] == '1' and not waits(wait, me) then\n",
                "  if ARGV[4] == '1' then\n",
            ),
        ),
    ),
    Mutant(
        "renews-whoever-has-it",
        "a renewal does not ask who the owner is",
        (
            (
                "extend",
                re.compile(r"if owner ~= ARGV\[1\] or .* then"),
                "if not is_held(owner, until_, its_term) then",
            ),
        ),
    ),
    Mutant(
        "fence-stays",
        "a grant has the number of the one before",
        (("*", "math.max(last + 1, clock[1] * 1e6 + clock[2])", "math.max(last, 1)"),),
    ),
    Mutant(
        "fence-starts-again",
        "the number is kept with the ident, and expires with it",
        (("*", "math.max(last + 1, clock[1] * 1e6 + clock[2])", "last + 1"),),
    ),
    Mutant(
        "last-in-first-out",
        "who comes last is served first",
        (("*", "return wait .. ' ' .. owner", "return owner .. ' ' .. wait"),),
    ),
    Mutant(
        "latecomers-overtake",
        "an expired lock goes to whoever asks first, not to the first who waits",
        (("acquire", "if heir ~= me then", "if false then"),),
    ),
    Mutant(
        "withdraw-leaves-the-place",
        "who waits no more is still in the queue",
        (("release", "kept, prune, without(wait, me))", "kept, prune, wait)"),),
    ),
    Mutant(
        "follows-a-commit-that-was-not-done",
        "a commit does not ask whether the one before it was done",
        (("commit", "if done < tonumber(ARGV[8]) then return {2} end", ""),),
    ),
    Mutant(
        "cancel-leaves-the-lock",
        "a cancel while the acquire is on its way does not give the lock back",
        (),
        _Orphans,
    ),
    Mutant("bodies-are-not-renewed", "the lock of a long body expires", (), _BodiesAreNotRenewed),
    Mutant("oplock-stays", "a kept lock is not given up, whoever waits", (), _OplockStays),
    Mutant("waits-for-ever", "a timeout bounds the wait for tasks here only", (), _WaitsForEver),
    Mutant(
        "waits-for-messages",
        "a waiter relies on being told: it does not look by itself",
        (),
        _WaitsForMessages,
    ),
    Mutant(
        "caches-by-ident",
        "what is kept with a lock is one state, of whatever class",
        (),
        _CachesByIdent,
    ),
    Mutant(
        "commits-numbered-by-grant",
        "commits are counted from one with each grant",
        (),
        _CommitsNumberedByGrant,
    ),
    Mutant(
        "reads-past-the-deadline",
        "a read is answered from a lock that may have gone to somebody else",
        (),
        _ReadsPastTheDeadline,
    ),
    Mutant(
        "acknowledges-past-the-deadline",
        "a change is acknowledged under a lock that may have gone to somebody else",
        (),
        _AcknowledgesPastTheDeadline,
    ),
    Mutant(
        "loss-is-forgotten",
        "what was acknowledged and could not be written is nobody's business",
        (),
        _LossIsForgotten,
    ),
    Mutant(
        "close-writes-nothing",
        "what was put off is lost when the manager is closed",
        (),
        _CloseWritesNothing,
    ),
    Mutant("some-of-several", "a commit writes the first of several classes", (), _SomeOfSeveral),
)

MUTANTS: Final = {mutant.name: mutant for mutant in _ALL}
