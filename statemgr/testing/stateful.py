"""A backend beside a model: Hypothesis makes up calls, and both must answer the same.

Subclass `StoreMachine`, set its `harness_type`, and have pytest collect its `TestCase`.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from statemgr.testing.harness import Capability
from statemgr.testing.machine import (
    OPTIONS,
    Marks,
    ModelledMachine,
    Notes,
    Outcome,
    token_of,
    value_of,
)
from statemgr.testing.model import Key, Value

_idents = st.sampled_from(["a/b", "a%2Fb"])
_keys = st.tuples(_idents, st.sampled_from([Notes, Marks]))
_outcomes = st.sampled_from(["end", "end", "raise", "discard", "refuse"])
_pauses = st.sampled_from([0, 0, 0, 10, 20, 25])  # seconds that pass before a call
_values = st.lists(st.integers(-3, 300), max_size=3).map(tuple)


class StoreMachine(ModelledMachine):
    """Compare one manager with a `Model`. Set `harness_type` in a subclass."""

    # Reading

    @rule(pause=_pauses, key=_keys)
    def get(self, pause: int, key: Key) -> None:
        """Read one state."""
        self._pass(pause)
        state = self._run(self.manager.get_state(token_of(key)))
        assert value_of(state) == self.model.read(key, self._now)
        if self._rolls_back:
            state.numbers.append(-99)  # nobody sees it

    @rule(pause=_pauses, keys=st.lists(_keys, max_size=4))
    def get_several(self, pause: int, keys: list[Key]) -> None:
        """Read several states."""
        self._pass(pause)
        states = self._run(self.manager.get_states(*map(token_of, keys)))
        assert [*map(value_of, states)] == [self.model.read(key, self._now) for key in keys]

    @rule(pause=_pauses, key=_keys)
    def has(self, pause: int, key: Key) -> None:
        """Ask for a state."""
        self._pass(pause)
        found = self._run(self.manager.has_state(token_of(key)))
        assert found == (self.model.find(key, self._now) is not None)

    @rule(pause=_pauses, key=_keys)
    def touch(self, pause: int, key: Key) -> None:
        """Renew a state."""
        self._pass(pause)
        found = self._run(self.manager.touch(token_of(key)))
        assert found == (self.model.find(key, self._now) is not None)
        self.model.read(key, self._now)

    # Changing

    def _free(self, ident: str) -> bool:
        return ident not in self.held

    @rule(pause=_pauses, key=_keys, value=_values)
    def set(self, pause: int, key: Key, value: Value) -> None:
        """Replace a state."""
        self._pass(pause)
        if self._free(key[0]):
            state = key[1](list(value))
            self._run(self.manager.set_state(token_of(key), state))
            self.model.write(key, value, self._now)
            if self._rolls_back:
                state.numbers.append(-99)  # nobody sees it

    @rule(pause=_pauses, key=_keys)
    def delete(self, pause: int, key: Key) -> None:
        """Drop a state."""
        self._pass(pause)
        if self._free(key[0]):
            found = self._run(self.manager.delete_state(token_of(key)))
            assert found == self.model.delete(key, self._now)

    @rule(pause=_pauses, key=_keys, number=st.integers(0, 99), outcome=_outcomes)
    def modify(self, pause: int, key: Key, number: int, outcome: Outcome) -> None:
        """Run a body on one state."""
        self._pass(pause)
        if self._free(key[0]):
            self._run(self._modify([key], number, outcome))

    @rule(pause=_pauses, ident=_idents, number=st.integers(0, 99), outcome=_outcomes)
    def modify_both(self, pause: int, ident: str, number: int, outcome: Outcome) -> None:
        """Run a body on both states of an ident."""
        self._pass(pause)
        if self._free(ident):
            self._run(self._modify([(ident, Notes), (ident, Marks)], number, outcome))

    # A body that runs while other calls are made

    @rule(pause=_pauses, key=_keys)
    def enter(self, pause: int, key: Key) -> None:
        """Begin a body that stays inside."""
        self._pass(pause)
        if self._free(key[0]):
            self._run(self._enter(key))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), number=st.integers(0, 99), outcome=_outcomes)
    def leave(self, data: st.DataObject, number: int, outcome: Outcome) -> None:
        """End a body that stayed inside."""
        ident = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held.pop(ident)

        async def leave() -> None:
            held.leaving.set_result((outcome, number))
            await held.task

        self._run(leave())
        self._model_body(held.key, (*held.value, number), outcome)
        del self.model.locked_since[ident]
        # A body that failed late may have renewed its state as it began, or as it ended.
        self.touch(0, held.key)

    # Time

    @rule(seconds=st.sampled_from([1, 10, 31]), key=_keys)
    def advance(self, seconds: int, key: Key) -> None:
        """Move time on, perhaps beyond deadlines, and look before a purge has its turn."""

        async def advance() -> tuple[bool, list[tuple[str, str]]]:
            await self.harness.advance(seconds)
            return await self.manager.has_state(token_of(key)), await self._list()

        found, listed = self._run(advance())
        assert found == (self.model.find(key, self._now) is not None)
        assert listed == self._expected_list()

    @rule()
    def purge(self) -> None:
        """Give a purge that is due its turn."""
        self._run(self.harness.clock.settle())

    @precondition(lambda self: not self.held)
    @rule()
    def reopen(self) -> None:
        """Close the manager, and open another one on the store."""
        self._run(self.manager.close())
        self.manager = self._run(self.harness.open(**OPTIONS))
        if Capability.DURABLE not in self.harness_type.capabilities:
            self.model.forget_all()

    @invariant()
    def listing_agrees(self) -> None:
        """What is listed is what is stored; one body at most holds each ident's lock."""
        assert self._run(self._list()) == self._expected_list()
        assert self.manager.statistics().locks_held == len(self.held)


# Time is measured by the harness's clock; what a run takes on a busy machine says nothing.
StoreMachine.TestCase.settings = settings(deadline=None)
