"""Finds scenarios and subjects: one module each, so that a new one is a new file."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

from benchmarks import backends, peers, scenarios
from benchmarks.scenario import Scenario
from benchmarks.subject import Subject


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        if not info.name.startswith("_"):
            yield importlib.import_module(f"{package.__name__}.{info.name}")


def _scenario_of(module: ModuleType) -> Scenario:
    scenario: Scenario = module.SCENARIO
    return replace(scenario, module=module.__name__)


def _subjects_of(module: ModuleType) -> Iterator[Subject]:
    for subject in module.SUBJECTS:
        yield replace(subject, module=module.__name__)


def find_subjects() -> dict[str, Subject]:
    """Return every subject by name: `SUBJECTS` of each module of `backends` and `peers`.

    Raises:
        ValueError: Two subjects have the same name.
    """
    found: dict[str, Subject] = {}
    for package in (backends, peers):
        for module in _modules(package):
            for subject in _subjects_of(module):
                if subject.name in found:
                    raise ValueError(
                        f"{subject.name!r} is defined in {found[subject.name].module} "
                        f"and in {subject.module}"
                    )
                found[subject.name] = subject
    return found


def find_scenarios() -> dict[str, Scenario]:
    """Return every scenario by name: `SCENARIO` of each module of `scenarios`."""
    found = [_scenario_of(module) for module in _modules(scenarios)]
    return {scenario.name: scenario for scenario in found}


def load_scenario(module: str) -> Scenario:
    """Import one scenario and nothing else."""
    return _scenario_of(importlib.import_module(module))


def load_subject(module: str, name: str) -> Subject:
    """Import one subject and nothing else, so that no other one's imports weigh on it.

    Raises:
        LookupError: The module does not define the subject.
    """
    for subject in _subjects_of(importlib.import_module(module)):
        if subject.name == name:
            return subject
    raise LookupError(f"{module} defines no subject {name!r}")
