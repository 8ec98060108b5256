"""What the contract's tests have in common: the harness, the bound on each, the capabilities."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import pytest
import pytest_asyncio

from statemgr.manager import StateManager
from statemgr.testing.harness import Capability, Harness
from statemgr.token import AnyToken

F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, None]])


def requires(capability: Capability) -> Callable[[F], F]:
    """Have a test run only on backends that declare a capability."""
    return functools.partial(_mark, capability, True)


def without(capability: Capability) -> Callable[[F], F]:
    """Have a test run only on backends that do not declare a capability."""
    return functools.partial(_mark, capability, False)


def _mark(capability: Capability, declared: bool, test: F) -> F:
    test.__dict__.setdefault("_conditions", []).append((capability, declared))
    return test


class Contract:
    """Collect tests. Each takes `harness`, and fails when it takes longer than its `patience`.

    Attributes:
        harness_type: The backend under test. A class that has one is run by pytest; tests of
            what the backend does not declare are left out of it.
    """

    harness_type: ClassVar[type[Harness]]
    pytestmark = pytest.mark.asyncio

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, test in list(vars(cls).items()):
            if not name.startswith("test_") or not callable(test):
                continue
            if "harness" in inspect.signature(test).parameters:
                setattr(cls, name, _bounded(test))
        if hasattr(cls, "harness_type"):
            cls._leave_out(cls.harness_type.capabilities)

    @classmethod
    def _leave_out(cls, declared: frozenset[Capability]) -> None:
        for name in dir(cls):
            conditions = getattr(getattr(cls, name), "_conditions", ())
            if any((capability in declared) != wanted for capability, wanted in conditions):
                setattr(cls, name, None)  # pytest does not see it then

    @pytest_asyncio.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[Harness]:
        """Make the harness of one test. Override it for one that needs other fixtures."""
        harness = self.harness_type(tmp_path)
        yield harness
        await harness.close()


def _bounded(test: Callable[..., Coroutine[Any, Any, None]]) -> Any:
    @functools.wraps(test)
    async def bounded(self: Contract, harness: Harness, **arguments: Any) -> None:
        limit = asyncio.timeout(harness.patience)
        try:
            async with limit:
                await test(self, harness, **arguments)
        except TimeoutError:
            if not limit.expired():
                raise
            raise AssertionError(
                f"still waiting after {harness.patience:g} s: a lock or a waiter is lost"
            ) from None

    return bounded


class Occupancy:
    """Count who is inside at a time; `with` is coming in and going out."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0

    def __enter__(self) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.inside -= 1


class Stop(Exception):  # noqa: N818  # raised by a test's body to leave it
    """End a body by an exception."""


async def waiting(harness: Harness, manager: StateManager, count: int) -> None:
    """Return once `count` calls of the manager wait for a lock."""
    await harness.eventually(lambda: manager.statistics().waiters == count)


async def assert_idle(harness: Harness, manager: StateManager, token: AnyToken) -> None:
    """Assert that no lock is held or waited for, and that the token's can be taken."""
    await harness.eventually(lambda: manager.statistics().locks_held == 0)
    assert manager.statistics().waiters == 0
    modification = manager.modify_state(token)
    async with modification:
        modification.discard()


async def increment(manager: StateManager, token: AnyToken, by: int = 1) -> None:
    """Add to the `value` of a state, with turns of the loop between its reading and writing."""
    async with manager.modify_state(token) as state:
        value = state.value
        await asyncio.sleep(0)
        state.value = value + by
