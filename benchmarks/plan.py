"""What to measure, in which order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.results import Case
from benchmarks.scenario import Scale, Scenario
from benchmarks.subject import Role, Subject


@dataclass(frozen=True, slots=True)
class Step:
    """One case on all subjects that offer it, `rounds` times over."""

    scenario: Scenario
    case: Case
    subjects: tuple[Subject, ...]
    rounds: int

    def __len__(self) -> int:
        return self.rounds * len(self.subjects)

    def __iter__(self) -> Iterator[tuple[int, Subject]]:
        """Go through the subjects in turn, so that a slow minute hits all of them alike."""
        for number in range(1, self.rounds + 1):
            for subject in self.subjects:
                yield number, subject


def choose_subjects(
    subjects: Mapping[str, Subject], backends: Sequence[str], *, peers: bool
) -> list[Subject]:
    """Choose ours by name, and what they are compared with.

    Args:
        subjects: All there are.
        backends: Names of backends, which stand for all their variants, or of variants. Empty
            for all.
        peers: Whether to take the peers that are not always taken.

    Raises:
        LookupError: A name fits nothing of ours.
    """
    ours = [subject for subject in subjects.values() if subject.role is Role.OURS]
    known = {name for subject in ours for name in (subject.backend, subject.name)}
    if unknown := [name for name in backends if name not in known]:
        raise LookupError(f"unknown backend {unknown[0]!r}, there are: {', '.join(sorted(known))}")
    chosen = [
        subject
        for subject in ours
        if not backends or subject.name in backends or subject.backend in backends
    ]
    families = {subject.backend for subject in chosen}
    others = [
        subject
        for subject in subjects.values()
        if not families.isdisjoint(subject.against)
        and (peers or subject.always or subject.role is Role.FLOOR)
    ]
    return chosen + sorted(others, key=lambda subject: subject.role is Role.FLOOR)


def choose_scenarios(scenarios: Mapping[str, Scenario], names: Sequence[str]) -> list[Scenario]:
    """Choose scenarios by name; all when none is given.

    Raises:
        LookupError: A name fits none.
    """
    if unknown := [name for name in names if name not in scenarios]:
        raise LookupError(f"unknown scenario {unknown[0]!r}, there are: {', '.join(scenarios)}")
    return [scenario for scenario in scenarios.values() if not names or scenario.name in names]


def make_plan(
    scenarios: Sequence[Scenario], subjects: Sequence[Subject], scale: Scale, rounds: int
) -> list[Step]:
    """Lay out every case of every scenario that one of ours offers."""
    steps = []
    for scenario in scenarios:
        able = tuple(subject for subject in subjects if scenario.runs_on(subject))
        ours = {subject.backend for subject in able if subject.role is Role.OURS}
        wanted = tuple(
            subject
            for subject in able
            if subject.role is Role.OURS or not ours.isdisjoint(subject.against)
        )
        if wanted:
            steps += [Step(scenario, case, wanted, rounds) for case in scenario.cases(scale)]
    return steps
