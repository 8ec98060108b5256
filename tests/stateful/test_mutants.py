"""The state machine finds each fault that calls one after the other can show."""

import pytest

from chaos.mutants.catalogue import Mutant, mutants_of
from chaos.mutants.checking import machine_of, run_machine
from statemgr.errors import StateManagerError

SEED = 7  # by which each is found
PATIENCE = 3.0  # seconds for a call in memory

ROWS = {
    backend: [
        pytest.param(mutant, id=mutant.name) for mutant in mutants_of(backend) if mutant.by_model
    ]
    for backend in ("memory", "disk", "redis")
}


@pytest.mark.parametrize("mutant", ROWS["memory"])
def test_mutant_differs_from_the_model(mutant: Mutant) -> None:
    """A few hundred runs are enough, and most need one."""
    # Two idents of one key also have one lock, which a run may wait for while it has it.
    with pytest.raises((AssertionError, TimeoutError)):
        run_machine(machine_of(mutant, PATIENCE), SEED)


@pytest.mark.parametrize("mutant", ROWS["disk"])
def test_disk_mutant_differs_from_the_model(mutant: Mutant) -> None:
    """In the mode in which a test of the kit finds it too."""
    with pytest.raises(AssertionError):
        run_machine(machine_of(mutant), SEED)


@pytest.mark.parametrize("mutant", ROWS["redis"])
def test_redis_mutant_differs_from_the_model(mutant: Mutant) -> None:
    """In the mode in which a test of the kit finds it too."""
    with pytest.raises((AssertionError, StateManagerError)):
        run_machine(machine_of(mutant), SEED)
