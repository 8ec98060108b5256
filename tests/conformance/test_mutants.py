"""The kit finds what it is to find: each mutant fails the test it is named with."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from statemgr.errors import StateManagerError
from statemgr.testing import Capability, Conformance, Harness
from statemgr.testing.conformance.base import Contract

from . import disk_mutants, mutants, redis_mutants, shelf_mutants, state_mutants
from .disk_faults import DiskFaults
from .redis_faults import OplockFaults, RedisFaults, WriteBehindFaults
from .redis_harness import RedisHarness
from .test_disk import DiskHarness
from .test_example import ShelfHarness
from .test_memory import LiveHarness, MemoryHarness

PATIENCE = 0.3  # seconds, after which a mutant that waits for ever is told apart from a sound one

MEMORY = [pytest.param(*row, id=row[0].__name__) for row in mutants.MUTANTS]
SHELF = [pytest.param(*row, id=row[0].__name__) for row in shelf_mutants.MUTANTS]
DISK = [pytest.param(*row, id=row[0].__name__) for row in disk_mutants.MUTANTS]
REDIS = [pytest.param(*row, id=row[0].__name__) for row in redis_mutants.MUTANTS]
assert state_mutants.StateManagerMemory  # importing it has added its mutants


def run(harness: Harness, test: str, arguments: dict[str, Any]) -> None:
    """Run one test of the kit; what it leaves behind ends with its loop."""
    asyncio.run(getattr(Conformance, test)(Conformance(), harness=harness, **arguments))


class RedisConformance(RedisFaults, OplockFaults, WriteBehindFaults, Conformance):
    """All tests that a Redis backend has to pass in one mode or another."""


async def run_and_close(
    contract: type[Contract], harness: Harness, test: str, arguments: dict[str, Any]
) -> None:
    """Run one test, and end its managers' threads and connections."""
    try:
        await getattr(contract, test)(contract(), harness=harness, **arguments)
    finally:
        with contextlib.suppress(TimeoutError):  # a mutant may have forgotten how to close
            await harness.close()


@pytest.mark.parametrize(("mutant", "test", "arguments"), MEMORY)
def test_memory_mutant(tmp_path: Path, mutant: Any, test: str, arguments: dict[str, Any]) -> None:
    """The test passes on the memory backend, and fails on the mutant of it."""

    class MutantHarness(MemoryHarness):
        patience = PATIENCE

        async def make(self, **options: Any) -> Any:
            return mutant(**options)

    run(MemoryHarness(tmp_path), test, arguments)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run(MutantHarness(tmp_path), test, arguments)


@pytest.mark.parametrize(("mutant", "test", "arguments"), SHELF)
def test_shelf_mutant(tmp_path: Path, mutant: Any, test: str, arguments: dict[str, Any]) -> None:
    """The test passes on the example backend, and fails on the mutant of it."""

    class MutantHarness(ShelfHarness):
        patience = PATIENCE

        async def make(self, **options: Any) -> Any:
            return mutant(self.shelf, **options)

    run(ShelfHarness(tmp_path), test, arguments)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run(MutantHarness(tmp_path), test, arguments)


@pytest.mark.parametrize(("mutant", "harness_type", "test", "arguments"), DISK)
def test_disk_mutant(
    tmp_path: Path,
    mutant: Any,
    harness_type: type[DiskHarness],
    test: str,
    arguments: dict[str, Any],
) -> None:
    """The test passes on the disk backend, and fails on the mutant of it."""

    class MutantHarness(harness_type):  # type: ignore[misc, valid-type]
        async def make(self, **options: Any) -> Any:
            return mutant(self.directory / "store", **self.mode, **options)

    for name in ("sound", "mutant"):
        (tmp_path / name).mkdir()
    asyncio.run(run_and_close(DiskFaults, harness_type(tmp_path / "sound"), test, arguments))
    # A record that is refused for good reason is not what the test wants to see either.
    with pytest.raises((AssertionError, pytest.fail.Exception, StateManagerError)):
        asyncio.run(run_and_close(DiskFaults, MutantHarness(tmp_path / "mutant"), test, arguments))


@pytest.mark.parametrize(("mutant", "harness_type", "test", "arguments"), REDIS)
def test_redis_mutant(
    tmp_path: Path,
    mutant: Any,
    harness_type: type[RedisHarness],
    test: str,
    arguments: dict[str, Any],
) -> None:
    """The test passes on the Redis backend, and fails on the mutant of it."""

    class MutantHarness(harness_type):  # type: ignore[misc, valid-type]
        patience = PATIENCE

        async def make(self, **options: Any) -> Any:
            return mutant(self.client(), key_prefix=self.prefix, **self.mode, **options)

    asyncio.run(run_and_close(RedisConformance, harness_type(tmp_path), test, arguments))
    with pytest.raises((AssertionError, pytest.fail.Exception, StateManagerError)):
        asyncio.run(run_and_close(RedisConformance, MutantHarness(tmp_path), test, arguments))


@pytest.mark.parametrize(
    ("undeclared", "test"),
    [
        (Capability.SHARED, "test_store_is_not_shared"),
        (Capability.DURABLE, "test_states_end_with_their_manager"),
        (Capability.ROLLBACK, "test_states_are_the_objects_themselves"),
        (Capability.RAW_RECORDS, "test_there_are_no_raw_records"),
        (Capability.FENCE, "test_there_is_no_fence"),
    ],
)
def test_undeclared_capability_is_found(tmp_path: Path, undeclared: Capability, test: str) -> None:
    """A backend that offers more than it declares fails the test that it is left with."""

    class Modest(Conformance):
        harness_type = type(
            "ModestHarness", (ShelfHarness,), {"capabilities": frozenset({Capability.PURGE})}
        )

    assert getattr(Modest, test) is not None
    with pytest.raises((Exception, pytest.fail.Exception)):  # any failure
        run(ShelfHarness(tmp_path), test, {})


def test_tests_follow_the_capabilities() -> None:
    """What a backend does not declare is left out of its class, not skipped."""

    class Live(Conformance):
        harness_type = LiveHarness

    class Shelf(Conformance):
        harness_type = ShelfHarness

    assert Live.test_body_that_raises_saves_nothing is None
    assert Shelf.test_body_that_raises_saves_nothing is not None
    assert Live.test_states_are_the_objects_themselves is not None
    assert Shelf.test_states_are_the_objects_themselves is None
    assert Conformance.test_states_are_the_objects_themselves is not None


def test_no_test_hides_another() -> None:
    """The parts of the contract are one class: each test has a name of its own."""
    names = [
        name for part in Conformance.__bases__ for name in vars(part) if name.startswith("test_")
    ]
    assert len(names) == len(set(names))
