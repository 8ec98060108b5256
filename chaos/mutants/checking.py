"""Look for a mutant's fault: by the kit, by the state machine, by cancels, by the explorer."""

import asyncio
import contextlib
import inspect
import itertools
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from chaos.cancels.calls import CALLS
from chaos.cancels.stage import Stage
from chaos.cancels.stores import Stores
from chaos.cancels.tally import cancel_everywhere
from chaos.explorer.explore import explore
from chaos.explorer.mutants import MUTANTS as EXPLORED
from chaos.mutants.catalogue import Check, Mutant, contract_of, mutants_of
from statemgr.testing import Harness
from statemgr.testing.conformance.base import Contract
from statemgr.testing.stateful import StoreMachine

PATIENCE = 0.3  # seconds, after which a mutant that waits for ever is told apart from a sound one
_LONG_PATIENCE = 2.0  # the same for any test of the kit
_MODEL_PATIENCE = 5.0  # and for a call of the state machine
_MOST_RUNS = 400  # of the state machine
_MOST_SCHEDULES = 2_000  # of the explorer
_ONLY_SCHEDULES = 20_000  # where nothing else looks for it
_SCHEDULES_IN_ONE = 500


@dataclass(frozen=True)
class Finding:
    """How one way of looking for a fault has ended.

    Attributes:
        way: "kit", "model", "cancels" or "explorer".
        by: What has found it; None if nothing has.
        operations: How much was done up to there: tests, calls, runs or schedules.
        unit: Which of these.
        seconds: How long it took.
    """

    way: str
    by: str | None
    operations: int
    unit: str
    seconds: float


# The kit


@dataclass(frozen=True)
class KitTest:
    """A test of the kit, with parameters if it has some."""

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value!r:.20}" for name, value in self.arguments)
        return f"{self.name}[{values}]" if values else self.name


def kit_tests(contract: type[Contract]) -> list[KitTest]:
    """Return the tests of a contract that need nothing of pytest's but their parameters."""
    found = []
    for name in dir(contract):
        test = getattr(contract, name)
        if not name.startswith("test_") or test is None:
            continue
        several = [
            _values(mark.args) for mark in getattr(test, "pytestmark", ()) if len(mark.args) == 2
        ]
        given = {"self", "harness", *(name for values in several for name, _ in values[0])}
        if not set(inspect.signature(test).parameters) - given:
            found += [KitTest(name, sum(values, ())) for values in itertools.product(*several)]
    return found


def _values(mark: tuple[Any, ...]) -> list[tuple[tuple[str, Any], ...]]:
    """Return what one mark of pytest's has a test called with."""
    names, rows = mark
    assert isinstance(names, str), names
    if "," in names:
        return [tuple(zip(names.split(","), row, strict=True)) for row in rows]
    return [((names, row),) for row in rows]


def failure_of(
    contract: type[Contract], harness_type: type[Harness], test: str, arguments: dict[str, Any]
) -> BaseException | None:
    """Run a test, and return what it failed with; None if it did not."""
    with tempfile.TemporaryDirectory(prefix="statemgr-mutants-") as directory:
        harness = harness_type(Path(directory))
        try:
            asyncio.run(_run_and_close(contract, harness, test, arguments))
        except pytest.skip.Exception:
            return None
        except (Exception, pytest.fail.Exception) as error:
            return error
    return None


async def _run_and_close(
    contract: type[Contract], harness: Harness, test: str, arguments: dict[str, Any]
) -> None:
    """Run one test, and end its managers' threads and connections."""
    try:
        await getattr(contract, test)(contract(), harness=harness, **arguments)
    finally:
        with contextlib.suppress(TimeoutError):  # a mutant may have forgotten how to close
            await harness.close()


def check_failures(
    mutant: Mutant, check: Check
) -> tuple[BaseException | None, BaseException | None]:
    """Run the test that a mutant is named with, on the sound backend and on the mutant."""
    contract = contract_of(mutant.backend, check.harness_type)
    harness_type = check.harness_type
    sound = failure_of(contract, harness_type, check.test, check.arguments)
    if mutant.backend != "disk":  # whose tests of failing calls take long by themselves
        harness_type = mutant.harness(harness_type, PATIENCE)
    else:
        harness_type = mutant.harness(harness_type, harness_type.patience)
    return sound, failure_of(contract, harness_type, check.test, check.arguments)


def by_the_kit(mutant: Mutant, seed: int, until: float | None = None) -> Finding:
    """Run all tests of the kit in an order of this seed, until one finds the fault.

    What fails on the sound backend too, as on a machine that is too busy, is no finding.

    Args:
        mutant: The mutant.
        seed: Makes the order.
        until: The monotonic time after which only the tests that the mutant is named with are
            left; None for none.
    """
    started = time.monotonic()
    check = mutant.checks[0]
    contract = mutant.contract
    harness_type = mutant.harness(check.harness_type, _LONG_PATIENCE)
    tests = kit_tests(contract)
    random.Random(f"{seed} {mutant.label}").shuffle(tests)
    for number, test in enumerate(tests, 1):
        if until is not None and time.monotonic() > until:
            break
        arguments = dict(test.arguments)
        failure = failure_of(contract, harness_type, test.name, arguments)
        if failure is not None and _is_sound(contract, check.harness_type, test):
            return Finding("kit", str(test), number, "tests", time.monotonic() - started)
    for number, check in enumerate(mutant.checks, len(tests) + 1):
        sound, failure = check_failures(mutant, check)
        if sound is None and failure is not None:
            by = str(KitTest(check.test, tuple(check.arguments.items())))
            return Finding("kit", by, number, "tests", time.monotonic() - started)
    return Finding("kit", None, len(tests), "tests", time.monotonic() - started)


def _is_sound(contract: type[Contract], harness_type: type[Harness], test: KitTest) -> bool:
    """Tell whether the sound backend passes a test, in the same time."""
    patient: Any = type("PatientHarness", (harness_type,), {"patience": _LONG_PATIENCE})
    return failure_of(contract, patient, test.name, dict(test.arguments)) is None


# The state machine


class CountingMachine(StoreMachine):
    """The state machine, with a count of the `calls` that it has made."""

    calls = 0


def machine_of(mutant: Mutant, patience: float | None = None) -> type[CountingMachine]:
    """Return the state machine on a mutant.

    Args:
        mutant: The mutant.
        patience: Seconds after which a call that still waits has failed; None for the backend's.
    """
    sound = mutant.checks[0].harness_type
    harness = mutant.harness(sound, sound.patience if patience is None else patience)

    class MutantMachine(CountingMachine):
        harness_type = harness

        def check_invariants(self, *arguments: Any, **options: Any) -> None:
            type(self).calls += 1
            super().check_invariants(*arguments, **options)

    return MutantMachine


_UNTIL_FOUND = hypothesis.settings(
    derandomize=False,  # the seed is given
    deadline=None,
    max_examples=_MOST_RUNS,
    stateful_step_count=40,
    phases=[hypothesis.Phase.generate],
    database=None,
    print_blob=False,
    verbosity=hypothesis.Verbosity.quiet,
    suppress_health_check=list(hypothesis.HealthCheck),
)


def run_machine(machine: type[CountingMachine], seed: int) -> None:
    """Make up calls by this seed; raise what is raised when mutant and model do not agree."""
    run_state_machine_as_test(hypothesis.seed(seed)(machine), settings=_UNTIL_FOUND)


def by_the_model(mutant: Mutant, seed: int) -> Finding:
    """Make up calls by this seed, until the mutant and the model do not agree."""
    started = time.monotonic()
    machine = machine_of(mutant, _MODEL_PATIENCE)
    found = None
    try:
        run_machine(machine, seed)
    except (Exception, pytest.fail.Exception):
        found = "state machine"
    return Finding("model", found, machine.calls, "calls", time.monotonic() - started)


# Cancels


def by_cancels(mutant: Mutant) -> Finding:
    """Cancel the calls at every await, until a promise is broken."""
    started = time.monotonic()
    runs = 0
    stores = Stores()

    async def open_stage() -> Stage:
        store = stores.make(mutant.backend)
        store.kind = mutant.kind
        return Stage(store)

    try:
        for call in CALLS:
            tally = asyncio.run(
                cancel_everywhere(mutant.backend, call, open_stage, twice=False, until_broken=True)
            )
            runs += tally.runs
            if tally.broken:
                by = f"{call.name}, {tally.broken[0].plan}"
                return Finding("cancels", by, runs, "runs", time.monotonic() - started)
    finally:
        stores.close()
    return Finding("cancels", None, runs, "runs", time.monotonic() - started)


# The explorer


def explored_name(mutant: Mutant) -> str | None:
    """Return what the explorer calls a mutant that it has too; None if it has not."""
    if mutant.backend != "redis":
        return None
    return next((name for name in EXPLORED if _camel(name) == mutant.name), None)


def only_explored() -> list[str]:
    """Return the explorer's names of the mutants that it alone has."""
    others = {mutant.name for mutant in mutants_of("redis")}
    return [name for name in EXPLORED if _camel(name) not in others]


def _camel(name: str) -> str:
    return name.title().replace("-", "")


def by_the_explorer(name: str, seed: int, until: float | None = None) -> Finding:
    """Run the protocol's steps in other and other orders, until a promise is broken.

    Args:
        name: What the explorer calls the mutant.
        seed: Of what is by chance.
        until: The monotonic time after which it is left to others to find it; None if nobody
            else looks for it.
    """
    schedules, seconds = 0, 0.0
    most = _ONLY_SCHEDULES if until is None else _MOST_SCHEDULES
    parts = most // _SCHEDULES_IN_ONE
    for part in range(parts):
        if until is not None and time.monotonic() > until:
            break
        outcome = explore(seed, most, (part, parts), mutant=name)
        schedules += outcome.total
        seconds += outcome.seconds
        if outcome.findings:
            by = f"schedule {outcome.findings[0].place}"
            return Finding("explorer", by, schedules, "schedules", seconds)
    return Finding("explorer", None, schedules, "schedules", seconds)
