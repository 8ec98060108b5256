"""More mutants: faults of a backend with a store, seeded in the example backend."""

import asyncio
from typing import Any

from .example_backend import Record, Shelf, StateManagerShelf

MUTANTS: list[tuple[type[StateManagerShelf], str, dict[str, Any]]] = []


def found_by(test: str, **arguments: Any) -> Any:
    """Name the test of the kit that fails on a mutant, and its parameters."""

    def add(mutant: type[StateManagerShelf]) -> type[StateManagerShelf]:
        MUTANTS.append((mutant, test, arguments))
        return mutant

    return add


@found_by("test_cancel_at_every_await_of_a_body")
class CancelWhileCommittingLeaks(StateManagerShelf):
    """A commit that is cancelled does not let the lock go."""

    async def _commit(self, modification, payloads):
        await asyncio.sleep(0)
        await super()._commit(modification, payloads)


@found_by("test_cancel_at_every_await_of_a_body")
class CancelWhileLoadingLeaks(StateManagerShelf):
    """A body that is cancelled as it loads does not let the lock go."""

    async def _begin(self, modification):
        await super()._begin(modification)
        await asyncio.sleep(0)


@found_by("test_cancel_at_every_await_of_several_states")
class CancelDividesACommit(StateManagerShelf):
    """Several states are written with a turn of the loop between them."""

    async def _commit(self, modification, payloads):
        try:
            for token, payload in zip(modification.tokens, payloads, strict=True):
                await asyncio.sleep(0)
                self._store(token, payload)
        finally:
            self._release(modification.lock_key)


@found_by("test_commit_is_seen_by_the_other_manager")
class ReadsAreCached(StateManagerShelf):
    """A record is read once, and then taken from memory."""

    def _find(self, token):
        cache = self.__dict__.setdefault("cache", {})
        return cache.setdefault(token.cache_key, super()._find(token))


class _ForgivingShelf(Shelf):
    """Does not mind that a lock is given back which nobody has."""

    def give_back(self, lock_key):
        if lock_key in self.owners:
            super().give_back(lock_key)


class _EverybodysShelf(_ForgivingShelf):
    def take(self, lock_key, owner):
        self.owners.clear()
        return super().take(lock_key, owner)


@found_by("test_bodies_of_two_managers_never_overlap")
class LockIsNotShared(StateManagerShelf):
    """Each manager has the lock when it asks for it."""

    def __init__(self, shelf, **options):
        shelf.__class__ = _EverybodysShelf
        super().__init__(shelf, **options)


@found_by("test_fence_grows")
class FenceStartsAgain(StateManagerShelf):
    """A deleted ident's fence is forgotten, so that an old holder's is as good as a new one's."""

    async def _delete(self, modification):
        found = await super()._delete(modification)
        self._shelf.fences.clear()
        return found


@found_by("test_spoilt_record_is_set_aside_by_a_body")
class SpoiltRecordIsDropped(StateManagerShelf):
    """With "reset" an undecodable record is overwritten."""

    def _load(self, token):
        state = super()._load(token)
        self._shelf.aside.clear()
        return state


@found_by("test_empty_record_is_no_fresh_state")
class EmptyRecordIsFresh(StateManagerShelf):
    """A record without bytes is taken for none."""

    def _find(self, token):
        record = super()._find(token)
        return record if record is not None and record.data else None


@found_by("test_states_outlive_their_manager")
class CloseLosesStates(StateManagerShelf):
    """What was acknowledged goes with the manager."""

    async def _close(self):
        await super()._close()
        self._shelf.records.clear()


@found_by("test_states_expire_without_a_manager")
class DeadlineStartsAgain(StateManagerShelf):
    """A new manager gives every state its full time again."""

    def __init__(self, shelf, **options):
        super().__init__(shelf, **options)
        expires_at = self._clock.time() + self.token_expiration
        for key, record in shelf.records.items():
            shelf.records[key] = Record(record.ident, record.data, expires_at)


@found_by("test_closing_one_manager_leaves_the_other")
class CloseBreaksLocks(StateManagerShelf):
    """A manager that closes lets go everybody's locks."""

    def __init__(self, shelf, **options):
        shelf.__class__ = _ForgivingShelf
        super().__init__(shelf, **options)

    async def _close(self):
        await super()._close()
        self._shelf.owners.clear()


@found_by("test_wait_for_the_other_manager_is_bounded")
class TimeoutIsLocal(StateManagerShelf):
    """A timeout bounds the wait for this manager's own tasks only."""

    async def _wait_for_shelf(self, modification, started):
        modification.timeout = None
        await super()._wait_for_shelf(modification, started)
