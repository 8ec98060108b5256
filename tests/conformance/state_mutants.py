"""More of `mutants`: faults of what is saved, read and expired."""

import copy

from statemgr import StateManager, StateManagerMemory

from .mutants import found_by

# Faults of what is saved


@found_by("test_body_that_raises_saves_nothing", error=KeyError)
class RaiseKeepsTheChange(StateManagerMemory):
    """A body that raises is saved."""

    async def _abort(self, modification):
        if modification._saves:
            self._commit_nowait(modification, self._now())
        else:
            await super()._abort(modification)


@found_by("test_body_that_raises_saves_nothing", error=KeyError)
class RaiseKeepsTheObject(StateManagerMemory):
    """Readers are not shown what a body that raised has left, but the next body is."""

    async def _abort(self, modification):
        entry = self._entries.get(modification.token.cache_key)
        live = entry and entry.live
        await super()._abort(modification)
        if entry is not None:
            entry.live = live


@found_by("test_discarded_body_saves_nothing")
class DiscardSaves(StateManagerMemory):
    """`discard` discards nothing."""

    async def _abort(self, modification):
        if modification._saves:
            await super()._abort(modification)
        else:
            self._commit_nowait(modification, self._now())


@found_by("test_one_of_several_states_is_refused")
class SomeOfSeveral(StateManagerMemory):
    """Several states are saved one by one, until one is refused."""

    def _encode_states(self, tokens, states):
        payloads = []
        for token, state in zip(tokens, states, strict=True):
            payload = self._encode(token, state)
            self._store(token, state, payload, self._now())
            payloads.append(payload)
        return payloads


@found_by("test_falsy_state_is_saved", value=[])
class FalsySetIsNotSaved(StateManagerMemory):
    """`set_state` takes a falsy state for none."""

    async def _write(self, modification):
        if modification.state:
            await super()._write(modification)


@found_by("test_state_replaced_by_a_falsy_one", value=0)
class FalsyIsNotSaved(StateManagerMemory):
    """A body that leaves a falsy state has left none."""

    def _commit_nowait(self, modification, now):
        if modification.state:
            return super()._commit_nowait(modification, now)
        self._release(modification.lock_key)
        return True


@found_by("test_changing_what_was_set_saves_nothing")
class SetKeepsTheCallersObject(StateManagerMemory):
    """Bodies are given the object that the caller of `set_state` still has."""

    async def _write(self, modification):
        await super()._write(modification)
        self._entries[modification.token.cache_key].live = modification.state


# Faults of what is read


@found_by("test_reader_does_not_see_a_body_at_work")
class ReaderSeesUncommitted(StateManagerMemory):
    """A reader is given what a body is changing."""

    async def _read(self, tokens):
        states = list(await super()._read(tokens))
        for index, token in enumerate(tokens):
            holder = self._locks.holders.get(token.lock_key)
            if holder is not None and token.cache_key in self._entries:
                states[index] = copy.deepcopy(holder.state)
        return states


@found_by("test_reading_an_absent_token_stores_nothing")
class ReadStores(StateManagerMemory):
    """Reading an absent token stores its default."""

    async def _read(self, tokens):
        states = await super()._read(tokens)
        for token, state in zip(tokens, states, strict=True):
            if token.cache_key not in self._entries:
                await StateManager.set_state(self, token, state)
        return states


@found_by("test_absent_token_gives_a_fresh_default")
class DefaultIsShared(StateManagerMemory):
    """All readers of an absent token are given one object."""

    async def _read(self, tokens):
        states = await super()._read(tokens)
        defaults = self.__dict__.setdefault("defaults", {})
        return [
            state if token.cache_key in self._entries else defaults.setdefault(token.cls, state)
            for token, state in zip(tokens, states, strict=True)
        ]


@found_by("test_undecodable_state_raises_each_time")
class UndecodableIsFresh(StateManagerMemory):
    """What cannot be decoded is a fresh state, whatever was asked for."""

    def _recover(self, token, error):
        return token.create()


# Faults of the expiration


@found_by("test_state_is_gone_at_its_deadline", settled=False)
class ExpiredIsReadable(StateManagerMemory):
    """A state is there until the purge comes to it."""

    def _find(self, token):
        return self._entries.get(token.cache_key)


@found_by("test_locked_state_is_not_purged")
class LockedIsPurged(StateManagerMemory):
    """The purge does not look at locks."""

    def _lock_held_of(self, key):
        return None


@found_by("test_waited_for_state_is_not_purged")
class WaitedForExpires(StateManagerMemory):
    """A deadline that passes while a lock is waited for counts once the waiter is served."""

    async def _begin(self, modification):
        await self._locks.acquire(modification.lock_key, modification, modification.timeout)
        modification.locked_since = self._now()
        self._load(modification)


@found_by("test_passed_over_state_is_purged_on_release")
class ReleaseWakesNoPurge(StateManagerMemory):
    """What a purge passed over stays until something else is touched."""

    def _lock_released(self, lock_key):
        pass


@found_by("test_using_renews", use="touch")
class TouchDoesNotRenew(StateManagerMemory):
    """`touch` only looks."""

    async def _renew(self, token):
        return await self._has(token)


@found_by("test_using_renews", use="get_state")
class ReadDoesNotRenew(StateManagerMemory):
    """A state that is read all the time expires."""

    async def _read(self, tokens):
        before = {key: deadline.expires_at for key, deadline in self._token_expires_at.items()}
        states = await super()._read(tokens)
        for key in [key for key in reversed(before) if key in self._token_expires_at]:
            self._token_expires_at[key].expires_at = before[key]
            self._token_expires_at.move_to_end(key, last=False)
        return states


@found_by("test_asking_does_not_renew", use="has_state")
class AskingRenews(StateManagerMemory):
    """`has_state` keeps alive what it finds."""

    async def _has(self, token):
        return await self._renew(token)


@found_by("test_classes_of_one_ident_expire_apart")
class ClassesExpireTogether(StateManagerMemory):
    """Using one state of an ident renews all."""

    def _touch_token(self, key, now):
        for other in [*self._token_expires_at]:
            if other.partition("/")[0] == key.partition("/")[0]:
                super()._touch_token(other, now)
        return super()._touch_token(key, now)
