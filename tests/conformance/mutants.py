"""The memory backend with one fault seeded in each class, and the kit's test that finds it."""

import asyncio
import copy
import sys
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import unquote

from statemgr import StateManagerMemory, StateModification, StateToken
from statemgr import manager as manager_module
from statemgr.locks import KeyedLocks
from statemgr.redaction import Redaction

M = TypeVar("M", bound=type)

MUTANTS: list[tuple[type[StateManagerMemory], str, dict[str, Any]]] = []


def found_by(test: str, **arguments: Any) -> Callable[[M], M]:
    """Name the test of the kit that fails on a mutant, and its parameters."""

    def add(mutant: M) -> M:
        MUTANTS.append((mutant, test, arguments))
        return mutant

    return add


# Faults of the locks


class _Forgiving(dict[str, Any]):
    """Does not mind that a lock is let go which nobody holds."""

    def __delitem__(self, key: str) -> None:
        super().pop(key, None)

    def pop(self, key: str, default: Any = None) -> Any:
        return super().pop(key, default)


@found_by("test_purge_between_a_release_and_its_waiters_turn")
class PurgeDropsWaitedForLock(StateManagerMemory):
    """Between a release and its waiter's turn the purge takes the lock for free, and drops it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._entered: dict[str, StateModification[Any]] = {}
        self._locks.holders = _Forgiving()

    def _begin_nowait(self, modification, now):
        begun = super()._begin_nowait(modification, now)
        if begun:
            self._entered[modification.lock_key] = modification
        return begun

    async def _begin(self, modification):
        await super()._begin(modification)
        self._entered[modification.lock_key] = modification

    def _lock_held_of(self, key):
        lock_key = super()._lock_held_of(key)
        holder = self._locks.holders.get(lock_key)
        return lock_key if holder is self._entered.get(lock_key) else None

    async def _drop_tokens(self, keys):
        for key in keys:
            self._locks.holders.pop(key.partition("/")[0])
        await super()._drop_tokens(keys)


class WithLocks(StateManagerMemory):
    locks_type: type[KeyedLocks]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._locks = self.locks_type(self._clock, self._redaction.ident)


class _LastFirst(KeyedLocks):
    def release(self, key):
        if key in self.queues:
            queue = self.queues[key]
            queue.move_to_end(next(reversed(queue)), last=False)
        super().release(key)


@found_by("test_waiters_are_served_in_order")
class LastWaiterFirst(WithLocks):
    """The queue is a stack."""

    locks_type = _LastFirst


class _ServesTheCancelled(KeyedLocks):
    def _withdraw(self, key, turn):
        pass

    def release(self, key):
        self.holders.pop(key)
        queue = self.queues.get(key)
        if queue:
            turn, holder = queue.popitem(last=False)
            holder.locked_since = self._clock.monotonic()
            self.holders[key] = holder
            if not turn.done():
                turn.set_result(None)
        if not queue:
            self.queues.pop(key, None)


@found_by("test_cancelled_waiter_leaves_the_queue")
class CancelWhileWaitingLeaks(WithLocks):
    """A cancelled waiter is handed the lock, and nobody lets it go."""

    locks_type = _ServesTheCancelled


class _KeepsWhatCameTooLate(KeyedLocks):
    def _give_up(self, key, turn, on_free):
        self._withdraw(key, turn)


@found_by("test_waiter_cancelled_as_its_turn_comes")
class CancelAsTheTurnComesLeaks(WithLocks):
    """A waiter cancelled in the turn of the release keeps the lock it was handed."""

    locks_type = _KeepsWhatCameTooLate


class _KeepsItsPlace(KeyedLocks):
    def _withdraw(self, key, turn):
        pass


@found_by("test_place_is_given_up_at_the_timeout")
class TimeoutKeepsThePlace(WithLocks):
    """Who gave up waiting is still in the queue."""

    locks_type = _KeepsItsPlace


@found_by("test_cancel_while_holding_frees_the_lock")
class CancelWhileHoldingLeaks(StateManagerMemory):
    """A cancelled body does not let its lock go."""

    async def _abort(self, modification):
        if not isinstance(sys.exc_info()[1], asyncio.CancelledError):
            await super()._abort(modification)


@found_by("test_own_lock_is_not_waited_for", call="modify_state")
class WaitsForItself(StateManagerMemory):
    """Nobody notices that a task holds already what it asks for."""

    async def _begin(self, modification):
        modification.task = None
        await super()._begin(modification)


class Unlocked(StateManagerMemory):
    def _without_lock(self, call: Any) -> Any:
        """Run a call that need not wait, as if all locks were free."""
        locks, self._locks = self._locks, KeyedLocks(self._clock, self._redaction.ident)
        try:
            call.send(None)
        except StopIteration as end:
            return end.value
        finally:
            self._locks = locks
        raise AssertionError("it waited")


@found_by("test_set_state_waits_for_the_body")
class SetTakesNoLock(Unlocked):
    """`set_state` writes in the middle of a body, which then overwrites it."""

    async def _write(self, modification):
        self._without_lock(super()._write(modification))


@found_by("test_delete_state_waits_for_the_body")
class DeleteTakesNoLock(Unlocked):
    """`delete_state` drops in the middle of a body, which then brings it back."""

    async def _delete(self, modification):
        return self._without_lock(super()._delete(modification))


# Faults of the life


class _FailsNobody(KeyedLocks):
    def fail_waiters(self, error):
        pass


@found_by("test_waiters_at_close", call="modify_state")
class CloseForgetsWaiters(WithLocks):
    """Who waits for a lock at `close` waits for ever."""

    locks_type = _FailsNobody


@found_by("test_body_at_close_saves_nothing")
class ServesAfterClose(StateManagerMemory):
    """`close` refuses nothing, and drops nothing."""

    def _refuse(self, refusal):
        pass

    async def _close(self):
        await self._stop_expiration()


@found_by("test_after_a_fork")
class ServesAfterFork(StateManagerMemory):
    """A forked child is not told that the manager is its parent's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        manager_module._managers.discard(self)


@found_by("test_waiting_errors_tell_no_ident")
class TellsIdents(StateManagerMemory):
    """Messages name idents as they are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._redaction = Redaction(show_idents=True)
        self._locks = KeyedLocks(self._clock, self._redaction.ident)


# Faults of the keys


def _folded(token: StateToken[Any]) -> StateToken[Any]:
    return StateToken(unquote(token.ident, errors="replace"), token.cls)


@found_by("test_any_ident_works")
class TwoIdentsShareAKey(StateManagerMemory):
    """`a/b` and `a%2Fb` are one."""

    async def get_state(self, token):
        return await super().get_state(_folded(token))

    def modify_state(self, token, *, timeout=None):
        return super().modify_state(_folded(token), timeout=timeout)


@found_by("test_classes_of_one_name_are_told_apart")
class NamesakesShareAKey(StateManagerMemory):
    """Of a class only its qualified name counts, not its module."""

    async def _read(self, tokens):
        return await super()._read([_without_module(token) for token in tokens])

    async def _write(self, modification):
        modification.token = _without_module(modification.token)
        await super()._write(modification)


def _without_module(token: StateToken[Any]) -> StateToken[Any]:
    token = copy.copy(token)
    object.__setattr__(token, "cache_key", f"{token.lock_key}/:{token.cls.__qualname__}")
    return token
