"""All seeded faults: whose they are, which promise each breaks, and what is to find it.

The mutants stand beside the tests and harnesses that they are made for, in tests/conformance. This
is the one list of them: the command and the tests go by it.
"""

import enum
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from statemgr.testing import Harness
from statemgr.testing.conformance.base import Contract

_TESTS = Path(__file__).resolve().parents[2] / "tests"


class Promise(enum.Enum):
    """What statemgr promises; the numbers are those of the kit's modules."""

    EXCLUSIVE = "1: one body at a time; who lost the lock writes nothing"
    ATOMIC = "2: a body is saved as a whole, or leaves nothing"
    COMMITTED = "3: reads see committed states, and are the reader's own"
    ACKNOWLEDGED = "4: what was acknowledged is kept"
    EXPIRATION = "5: a state lives until its deadline, and not again"
    BOUNDED = "6: waiting is bounded, and nobody waits for itself"
    KEPT = "7: what cannot be read raises and is kept"
    KEYS = "8: different tokens have different states"
    LIFE = "9: one loop, one process, nothing after close()"
    FALSY = "10: an empty state is one"
    SECRETS = "11: messages tell no idents"


@dataclass(frozen=True)
class Check:
    """A test that fails on a mutant.

    Attributes:
        harness_type: The mode in which it does.
        test: Its name.
        arguments: Its parameters.
    """

    harness_type: type[Harness]
    test: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Mutant:
    """A backend with one fault.

    Attributes:
        name: The class's name.
        backend: Whose fault: "memory", "shelf" for the small backend with a store that the kit
            is tried on, "disk", or "redis".
        kind: The class.
        promise: What it breaks.
        checks: Each finds it.
        by_model: Whether calls one after the other show it, as the state machine makes them.
        by_cancels: Whether a cancel does, as `python -m chaos cancels` has it.
    """

    name: str
    backend: str
    kind: Any
    promise: Promise
    checks: tuple[Check, ...]
    by_model: bool
    by_cancels: bool

    @property
    def label(self) -> str:
        """What it is called where mutants of all backends are."""
        return f"{self.backend}/{self.name}"

    @property
    def fault(self) -> str:
        """What is wrong with it, in a sentence."""
        return inspect.getdoc(self.kind) or ""

    @property
    def contract(self) -> type[Contract]:
        """All tests that a sound backend passes in the mode of the first check."""
        return contract_of(self.backend, self.checks[0].harness_type)

    def harness(self, harness_type: type[Harness], patience: float) -> type[Harness]:
        """Return a harness that opens the mutant in place of the sound backend.

        Args:
            harness_type: The sound one's.
            patience: Seconds after which a test that still waits has failed.
        """
        return _mutated(harness_type, self.kind, _ARGUMENTS[self.backend], patience)


def _mutated(
    harness_type: type[Harness], kind: Any, arguments: Callable[[Any], Any], limit: float
) -> type[Harness]:
    base: Any = harness_type

    class MutantHarness(base):  # type: ignore[misc]  # not known before it runs
        patience = limit

        async def make(self, **options: Any) -> Any:
            positional, named = arguments(self)
            return kind(*positional, **named, **options)

    return MutantHarness


# What each backend's harness opens a manager with.
_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "memory": lambda _: ((), {}),
    "shelf": lambda harness: ((harness.shelf,), {}),
    "disk": lambda harness: ((harness.directory / "store",), harness.mode),
    "redis": lambda harness: ((harness.client(),), {"key_prefix": harness.prefix, **harness.mode}),
}

# The promise by what finds the fault: a test of the kit has that of its module.
_BY_MODULE = {
    "atomicity": Promise.ATOMIC,
    "calls": Promise.COMMITTED,
    "cancellation": Promise.ATOMIC,
    "capabilities": Promise.ACKNOWLEDGED,
    "decoding": Promise.KEPT,
    "exclusion": Promise.EXCLUSIVE,
    "expiring": Promise.EXPIRATION,
    "idents": Promise.KEYS,
    "life": Promise.LIFE,
    "locked_expiring": Promise.EXPIRATION,
    "places": Promise.EXCLUSIVE,
    "reading": Promise.COMMITTED,
    "refusals": Promise.ATOMIC,
    "secrets": Promise.SECRETS,
    "sharing": Promise.EXCLUSIVE,
    "values": Promise.FALSY,
    "waiting": Promise.BOUNDED,
}
_BY_TEST = {
    "test_change_that_fails": Promise.ATOMIC,
    "test_read_that_fails": Promise.KEPT,
    "test_write_behind_that_fails": Promise.ACKNOWLEDGED,
    "test_write_behind_beside_a_write": Promise.ACKNOWLEDGED,
    "test_crash_beside_what_is_put_off": Promise.ACKNOWLEDGED,
    "test_reader_of_a_file_that_is_used_again": Promise.COMMITTED,
    "test_purge_of_what_has_not_expired": Promise.EXPIRATION,
    "test_purge_beside_another_manager": Promise.EXPIRATION,
    "test_record_of_another_token": Promise.KEYS,
    "test_record_is_of_no_body_at_work": Promise.ATOMIC,
    "test_lock_lost_before_each_call": Promise.EXCLUSIVE,
    "test_renewal_of_a_lost_lock": Promise.EXCLUSIVE,
    "test_renewed_lock_is_kept": Promise.EXCLUSIVE,
    "test_place_of_a_dead_waiter": Promise.EXCLUSIVE,
    "test_processes_are_served_in_order": Promise.EXCLUSIVE,
    "test_state_waited_for_by_another_process": Promise.EXPIRATION,
    "test_fence_grows_though_the_ident_was_gone": Promise.EXCLUSIVE,
    "test_lost_replies": Promise.ACKNOWLEDGED,
    "test_cancelled_while_asking": Promise.ATOMIC,
    "test_place_of_who_gave_up": Promise.EXCLUSIVE,
    "test_every_key_expires": Promise.EXPIRATION,
    "test_oplock_gives_way_at_once": Promise.BOUNDED,
    "test_oplock_that_was_lost_answers_no_read": Promise.COMMITTED,
    "test_nothing_is_acknowledged_past_the_deadline": Promise.ACKNOWLEDGED,
    "test_lost_flush_is_an_error_to_somebody": Promise.ACKNOWLEDGED,
    # Where what breaks is not what the test's module is about.
    "test_states_expire_without_a_manager": Promise.EXPIRATION,
    "test_renewed_state_outlives_its_manager": Promise.EXPIRATION,
    "test_states_outlive_their_manager": Promise.ACKNOWLEDGED,
    "test_close_saves_what_was_acknowledged": Promise.ACKNOWLEDGED,
    "test_commit_is_seen_by_the_other_manager": Promise.COMMITTED,
    "test_changing_what_was_set_saves_nothing": Promise.COMMITTED,
    "test_wait_for_the_other_manager_is_bounded": Promise.BOUNDED,
    "test_state_locked_by_the_other_manager": Promise.EXPIRATION,
    "test_using_renews": Promise.EXPIRATION,
    "test_fence_grows": Promise.EXCLUSIVE,
}

_BY_MODEL = {
    "memory": {
        *("DefaultIsShared", "DiscardSaves", "ExpiredIsReadable", "FalsyIsNotSaved"),
        *("FalsySetIsNotSaved", "LockedIsPurged", "NamesakesShareAKey", "RaiseKeepsTheChange"),
        *("RaiseKeepsTheObject", "ReadDoesNotRenew", "ReadStores", "ReaderSeesUncommitted"),
        *("SetKeepsTheCallersObject", "SomeOfSeveral", "TwoIdentsShareAKey"),
    },
    "disk": {
        *("CloseWritesNothing", "ExpiredIsLoaded", "ExpiredIsReadable", "IdentsShareAName"),
        *("PurgeGoesByTheFilesTime", "PurgeTakesNoLock", "QueuesObjects", "RaiseKeepsTheObject"),
        "RenewalsAreNotWritten",
    },
    "redis": {
        *("AskingRenews", "CachesByIdent", "ExpiredIsLoaded", "ExpiredIsReadable"),
        *("ExpiredIsRenewed", "FalsyIsUnchanged", "LockedExpires", "ReadDoesNotRenew"),
        "SomeOfSeveral",
    },
}
_BY_CANCELS = {
    "memory": {
        *("CancelAsTheTurnComesLeaks", "CancelWhileHoldingLeaks", "CancelWhileWaitingLeaks"),
        "RaiseKeepsTheChange",
    },
    "disk": {"NoLockBetweenProcesses"},
    "redis": {"CancelLeavesTheLock", "WithdrawLeavesThePlace"},
}


def from_tests(module: str) -> Any:
    """Import a module of the tests."""
    if str(_TESTS) not in sys.path:
        sys.path.append(str(_TESTS))
    return importlib.import_module(module)


@cache
def contract_of(backend: str, harness_type: type[Harness]) -> type[Contract]:
    """Return all tests that a sound backend passes in this mode."""
    kit = from_tests("statemgr.testing").Conformance
    if backend == "disk":
        bases: tuple[Any, ...] = (from_tests("conformance.disk_faults").DiskFaults,)
    elif backend == "redis":
        faults = from_tests("conformance.redis_faults")
        oplock = getattr(harness_type, "mode", {}).get("oplock", "off")
        bases = (faults.RedisFaults, kit)
        if oplock != "off":
            bases = (faults.OplockFaults, *bases)
        if oplock == "behind":
            bases = (faults.WriteBehindFaults, *bases)
    else:
        bases = (kit,)
    return type("Sound", bases, {"harness_type": harness_type})


@cache
def catalogue() -> dict[str, Mutant]:
    """Return all mutants, by label."""
    return {mutant.label: mutant for mutant in _mutants()}


def mutants_of(backend: str) -> list[Mutant]:
    """Return one backend's."""
    return [mutant for mutant in catalogue().values() if mutant.backend == backend]


def _mutants() -> Iterator[Mutant]:
    for backend in _ARGUMENTS:
        checks: dict[Any, list[Check]] = {}
        for kind, check in _rows(backend):
            checks.setdefault(kind, []).append(check)
        for kind, found in checks.items():
            yield Mutant(
                name=kind.__name__,
                backend=backend,
                kind=kind,
                promise=_promise(backend, found[0]),
                checks=tuple(found),
                by_model=kind.__name__ in _BY_MODEL.get(backend, ()),
                by_cancels=kind.__name__ in _BY_CANCELS.get(backend, ()),
            )


def _rows(backend: str) -> Iterator[tuple[Any, Check]]:
    if backend in ("disk", "redis"):
        for kind, *row in from_tests(f"conformance.{backend}_mutants").MUTANTS:
            yield kind, Check(*row)
        return
    if backend == "memory":
        harness_type = from_tests("conformance.test_memory").MemoryHarness
        from_tests("conformance.state_mutants")  # which adds its own to the others
        rows = from_tests("conformance.mutants").MUTANTS
    else:
        harness_type = from_tests("conformance.test_example").ShelfHarness
        rows = from_tests("conformance.shelf_mutants").MUTANTS
    for kind, test, arguments in rows:
        yield kind, Check(harness_type, test, arguments)


def _promise(backend: str, check: Check) -> Promise:
    if check.test in _BY_TEST:
        return _BY_TEST[check.test]
    test = getattr(contract_of(backend, check.harness_type), check.test)
    return _BY_MODULE[test.__module__.rpartition(".")[2]]
