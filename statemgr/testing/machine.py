"""What `StoreMachine` runs on: a manager, its model, and bodies that both are given."""

import asyncio
import contextlib
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from hypothesis.stateful import RuleBasedStateMachine

from statemgr.errors import StateEncodeError
from statemgr.testing.harness import Capability, Harness
from statemgr.testing.model import Key, Model, Value
from statemgr.token import AnyToken, StateToken

T = TypeVar("T")

# No sum of whole seconds is a deadline exactly: what holds then is another test's to say.
_EXPIRATION = 30.5
OPTIONS = {"token_expiration": _EXPIRATION, "lock_warning_threshold": 1e9}

Outcome = Literal["end", "raise", "discard", "refuse"]


@dataclass
class Notes:
    """A state that bodies change in place."""

    numbers: list[Any] = field(default_factory=list)


@dataclass
class Marks(Notes):
    """Another, which says that it is false."""

    def __bool__(self) -> bool:
        return False


class _Stop(Exception):  # noqa: N818  # leaves a body
    pass


def token_of(key: Key) -> AnyToken:
    """Return the token of a model's key."""
    return StateToken(*key)


def value_of(state: Any) -> Value:
    """Return a state as the model keeps it."""
    return tuple(state.numbers)


@dataclass
class _Held:
    """A body that stays inside."""

    key: Key
    value: Value
    leaving: "asyncio.Future[tuple[Outcome, int]]"
    task: "asyncio.Task[None]"


class ModelledMachine(RuleBasedStateMachine):
    """Hold a manager and its model, and no rules yet.

    Attributes:
        harness_type: The backend under test; it is made with an empty directory.
    """

    harness_type: ClassVar[type[Harness]]

    def __init__(self) -> None:
        super().__init__()
        self._resources = contextlib.ExitStack()
        self._directory = Path(self._resources.enter_context(tempfile.TemporaryDirectory()))
        self._runner = self._resources.enter_context(asyncio.Runner())
        self.harness = self._run(self.make_harness())
        self.manager = self._run(self.harness.open(**OPTIONS))
        self.model = Model(_EXPIRATION)
        self.held: dict[str, _Held] = {}

    async def make_harness(self) -> Harness:
        """Return the harness of one run. Override it for one that needs more than a directory."""
        return self.harness_type(self._directory)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(coroutine, self.harness_type.patience)

        return self._runner.run(bounded())

    @property
    def _now(self) -> float:
        return self.harness.clock.monotonic()

    @property
    def _rolls_back(self) -> bool:
        return Capability.ROLLBACK in self.harness_type.capabilities

    def _pass(self, seconds: int) -> None:
        if seconds:
            self._run(self.harness.advance(seconds))

    def teardown(self) -> None:
        """Close the manager and its store."""
        try:
            self._run(self.harness.close())
        finally:
            self._resources.close()

    async def _modify(self, keys: list[Key], number: int, outcome: Outcome) -> None:
        modification = self.manager.modify_states(*map(token_of, keys))
        before = [self.model.read(key, self._now) for key in keys]
        with contextlib.suppress(_Stop, StateEncodeError):
            async with modification as states:
                assert [*map(value_of, states)] == before
                for state in states:
                    state.numbers.append(number)
                self._leave(modification, states[-1], outcome)
        for key, value in zip(keys, before, strict=True):
            self._model_body(key, (*value, number), outcome)

    def _leave(self, modification: Any, state: Any, outcome: Outcome) -> None:
        """End a body; a state that cannot be saved is refused only where states are bytes."""
        if outcome == "refuse" and self._rolls_back:
            state.numbers.append(object())
        elif outcome == "discard":
            modification.discard()
        elif outcome != "end":
            raise _Stop

    def _model_body(self, key: Key, value: Value, outcome: Outcome) -> None:
        # Without rollback a body has changed the stored object itself, if there was one.
        stored = self.model.find(key, self._now) is not None
        if outcome == "end" or (stored and not self._rolls_back):
            self.model.write(key, value, self._now)
        else:
            self.model.read(key, self._now)

    async def _enter(self, key: Key) -> None:
        modification = self.manager.modify_state(token_of(key))
        loop = asyncio.get_running_loop()
        entered: asyncio.Future[Value] = loop.create_future()
        leaving: asyncio.Future[tuple[Outcome, int]] = loop.create_future()

        async def body() -> None:
            with contextlib.suppress(_Stop, StateEncodeError):
                async with modification as state:
                    entered.set_result(value_of(state))
                    state.numbers.append(-7)  # readers see it when the body has ended
                    outcome, number = await leaving
                    state.numbers.append(number)
                    self._leave(modification, state, outcome)

        task = self.harness.spawn(body())
        value = self.model.read(key, self._now)
        assert await entered == value
        if not self._rolls_back and self.model.find(key, self._now) is not None:
            self.model.write(key, (*value, -7), self._now)
        self.model.locked_since[key[0]] = self._now
        self.held[key[0]] = _Held(key, (*value, -7), leaving, task)

    def _expected_list(self) -> list[tuple[str, str]]:
        return sorted(
            (ident, f"{cls.__module__}:{cls.__qualname__}")
            for ident, cls in self.model.stored(self._now)
        )

    async def _list(self) -> list[tuple[str, str]]:
        return sorted([(info.ident, info.class_name) async for info in self.manager.tokens()])
