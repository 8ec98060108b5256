"""The catalogue of seeded faults, and the command that looks for them."""

import argparse

import pytest

from chaos.mutants import add_arguments, main
from chaos.mutants.catalogue import Promise, catalogue, mutants_of
from chaos.mutants.checking import explored_name, kit_tests, only_explored
from chaos.mutants.command import Verdict, all_labels, digest, look

BACKENDS = {"memory", "shelf", "disk", "redis"}
SAMPLE = ["memory/ServesAfterClose", "shelf/CloseLosesStates", "disk/CloseWritesNothing"]
SEED = 1  # by which these are found soon


def test_catalogue_is_whole() -> None:
    """Every mutant has a name of its own, a backend, a promise, a fault, and what finds it."""
    mutants = list(catalogue().values())
    assert len(mutants) > 100
    assert len({mutant.label for mutant in mutants}) == len(mutants)
    assert {mutant.backend for mutant in mutants} == BACKENDS
    for mutant in mutants:
        assert mutant.name
        assert mutant.promise in Promise
        assert mutant.fault.endswith(".")
        assert mutant.checks
    assert {mutant.promise for mutant in mutants} == set(Promise)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_kit_has_the_tests(backend: str) -> None:
    """What a mutant is named with is among what is tried on it."""
    for mutant in mutants_of(backend):
        names = {test.name for test in kit_tests(mutant.contract)}
        assert {mutant.checks[0].test} <= names


def test_marked_mutants_are_there() -> None:
    """Whatever is marked as shown by the state machine or by cancels is a mutant."""
    mutants = catalogue().values()
    assert sum(mutant.by_model for mutant in mutants) == 33
    assert sum(mutant.by_cancels for mutant in mutants) == 7


def test_explorer_has_redis_mutants() -> None:
    """Some under the same name; those that it alone has are looked for too."""
    assert any(explored_name(mutant) for mutant in mutants_of("redis"))
    assert set(all_labels()) == {*catalogue(), *(f"protocol/{name}" for name in only_explored())}


@pytest.mark.parametrize("label", SAMPLE)
def test_fault_is_found(label: str) -> None:
    """The kit's tests run in an order that the seed makes; the same seed finds the same."""
    first, second = look(label, SEED), look(label, SEED)
    assert first.found
    assert first.findings[0].by == second.findings[0].by
    assert first.findings[0].operations == second.findings[0].operations
    assert digest([first]) == digest([second])


def test_nothing_left_of_the_time() -> None:
    """Then the test that a mutant is named with is what finds it."""
    verdict = look("memory/FalsySetIsNotSaved", 1, until=0.0)
    assert verdict.findings[0].by == "test_falsy_state_is_saved[value=[]]"


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Its exit code says whether all were found; what is printed, by what."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = ["--seed", "3", "--jobs", "1", "--only", "shelf/Spoilt", "--only", "shelf/Empty"]
    assert main(parser.parse_args(options)) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 found" in printed
    assert "seed 3" in printed
    assert "test_empty_record_is_no_fresh_state" in printed
    assert main(parser.parse_args(["--seed", "3", "--only", "no such mutant"])) == 1


def test_verdict_tells_found_from_not_found() -> None:
    """One that nothing has found is another verdict."""
    found = look("shelf/EmptyRecordIsFresh", 3)
    missed = Verdict(found.label, found.promise, ())
    assert digest([found]) != digest([missed])
