"""The state machine finds each fault that calls one after the other can show."""

from typing import Any

import pytest
from conformance import disk_mutants, mutants, redis_mutants, state_mutants
from conformance.test_memory import MemoryHarness
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from statemgr.errors import StateManagerError
from statemgr.testing.stateful import StoreMachine

UNTIL_FOUND = settings(
    derandomize=True,
    deadline=None,
    max_examples=400,
    stateful_step_count=40,
    phases=[Phase.generate],
    database=None,
)


@pytest.mark.parametrize(
    "mutant",
    [
        mutants.NamesakesShareAKey,
        mutants.TwoIdentsShareAKey,
        state_mutants.DefaultIsShared,
        state_mutants.DiscardSaves,
        state_mutants.ExpiredIsReadable,
        state_mutants.FalsyIsNotSaved,
        state_mutants.FalsySetIsNotSaved,
        state_mutants.LockedIsPurged,
        state_mutants.RaiseKeepsTheChange,
        state_mutants.RaiseKeepsTheObject,
        state_mutants.ReadDoesNotRenew,
        state_mutants.ReadStores,
        state_mutants.ReaderSeesUncommitted,
        state_mutants.SetKeepsTheCallersObject,
        state_mutants.SomeOfSeveral,
    ],
)
def test_mutant_differs_from_the_model(mutant: Any) -> None:
    """A few hundred runs are enough, and most need one."""

    class MutantHarness(MemoryHarness):
        async def make(self, **options: Any) -> Any:
            return mutant(**options)

    class MutantMachine(StoreMachine):
        harness_type = MutantHarness

    with pytest.raises(AssertionError):
        run_state_machine_as_test(MutantMachine, settings=UNTIL_FOUND)


@pytest.mark.parametrize(
    "mutant",
    [
        disk_mutants.CloseWritesNothing,
        disk_mutants.ExpiredIsLoaded,
        disk_mutants.ExpiredIsReadable,
        disk_mutants.IdentsShareAName,
        disk_mutants.PurgeGoesByTheFilesTime,
        disk_mutants.PurgeTakesNoLock,
        disk_mutants.QueuesObjects,
        disk_mutants.RaiseKeepsTheObject,
        disk_mutants.RenewalsAreNotWritten,
    ],
)
def test_disk_mutant_differs_from_the_model(mutant: Any) -> None:
    """In the mode in which a test of the kit finds it too."""
    modes: dict[Any, Any] = {row[0]: row[1] for row in disk_mutants.MUTANTS}

    class MutantHarness(modes[mutant]):  # type: ignore[misc]
        async def make(self, **options: Any) -> Any:
            return mutant(self.directory / "store", **self.mode, **options)

    class MutantMachine(StoreMachine):
        harness_type = MutantHarness

    with pytest.raises(AssertionError):
        run_state_machine_as_test(MutantMachine, settings=UNTIL_FOUND)


@pytest.mark.parametrize(
    "mutant",
    [
        redis_mutants.AskingRenews,
        redis_mutants.CachesByIdent,
        redis_mutants.ExpiredIsLoaded,
        redis_mutants.ExpiredIsReadable,
        redis_mutants.ExpiredIsRenewed,
        redis_mutants.FalsyIsUnchanged,
        redis_mutants.LockedExpires,
        redis_mutants.ReadDoesNotRenew,
        redis_mutants.SomeOfSeveral,
    ],
)
def test_redis_mutant_differs_from_the_model(mutant: Any) -> None:
    """In the mode in which a test of the kit finds it too."""
    modes: dict[Any, Any] = {row[0]: row[1] for row in redis_mutants.MUTANTS}

    class MutantHarness(modes[mutant]):  # type: ignore[misc]
        async def make(self, **options: Any) -> Any:
            return mutant(self.client(), key_prefix=self.prefix, **self.mode, **options)

    class MutantMachine(StoreMachine):
        harness_type = MutantHarness

    with pytest.raises((AssertionError, StateManagerError)):
        run_state_machine_as_test(MutantMachine, settings=UNTIL_FOUND)
