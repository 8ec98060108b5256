"""The kit finds what it is to find: each mutant fails the test it is named with."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from chaos.mutants.catalogue import Check, Mutant, mutants_of
from chaos.mutants.checking import check_failures
from statemgr.errors import StateManagerError
from statemgr.testing import Capability, Conformance, Harness

from .test_example import ShelfHarness
from .test_memory import LiveHarness

ROWS = {
    backend: [
        pytest.param(mutant, check, id=mutant.name)
        for mutant in mutants_of(backend)
        for check in mutant.checks
    ]
    for backend in ("memory", "shelf", "disk", "redis")
}


def run(harness: Harness, test: str, arguments: dict[str, Any]) -> None:
    """Run one test of the kit; what it leaves behind ends with its loop."""
    asyncio.run(getattr(Conformance, test)(Conformance(), harness=harness, **arguments))


def assert_found(mutant: Mutant, check: Check) -> None:
    """Assert that the sound backend passes the test, and the mutant does not."""
    sound, failure = check_failures(mutant, check)
    assert sound is None
    # On a store, a record that is refused for good reason is not what the test wants to see either.
    expected = (AssertionError, pytest.fail.Exception)
    if mutant.backend in ("disk", "redis"):
        expected += (StateManagerError,)
    assert isinstance(failure, expected)


@pytest.mark.parametrize(("mutant", "check"), ROWS["memory"])
def test_memory_mutant(mutant: Mutant, check: Check) -> None:
    """The test passes on the memory backend, and fails on the mutant of it."""
    assert_found(mutant, check)


@pytest.mark.parametrize(("mutant", "check"), ROWS["shelf"])
def test_shelf_mutant(mutant: Mutant, check: Check) -> None:
    """The test passes on the example backend, and fails on the mutant of it."""
    assert_found(mutant, check)


@pytest.mark.parametrize(("mutant", "check"), ROWS["disk"])
def test_disk_mutant(mutant: Mutant, check: Check) -> None:
    """The test passes on the disk backend, and fails on the mutant of it."""
    assert_found(mutant, check)


@pytest.mark.parametrize(("mutant", "check"), ROWS["redis"])
def test_redis_mutant(mutant: Mutant, check: Check) -> None:
    """The test passes on the Redis backend, and fails on the mutant of it."""
    assert_found(mutant, check)


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
