"""What to measure, in which order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.results import Case
from benchmarks.scenario import Scale, Scenario
from benchmarks.subject import Role, Subject, rivals


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
            for all but the optional ones.
        peers: Whether to take what is not always taken: peers, and optional variants.

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
        if subject.name in backends
        or subject.backend in backends
        or (not backends and (peers or not subject.optional))
    ]
    others = [
        subject
        for subject in _rivals_of_any(chosen, list(subjects.values()))
        if peers or subject.always or subject.role is Role.FLOOR
    ]
    return chosen + sorted(others, key=lambda subject: subject.role is Role.FLOOR)


def _rivals_of_any(ours: Sequence[Subject], subjects: Sequence[Subject]) -> list[Subject]:
    names = {rival.name for subject in ours for rival in rivals(subject, subjects)}
    return [subject for subject in subjects if subject.name in names]


def choose_scenarios(
    scenarios: Mapping[str, Scenario], names: Sequence[str], *, optional: bool
) -> list[Scenario]:
    """Choose scenarios by name; when none is given all, the optional ones if they are asked for.

    Raises:
        LookupError: A name fits none.
    """
    if unknown := [name for name in names if name not in scenarios]:
        raise LookupError(f"unknown scenario {unknown[0]!r}, there are: {', '.join(scenarios)}")
    return [
        scenario
        for scenario in scenarios.values()
        if scenario.name in names or (not names and (optional or not scenario.optional))
    ]


def make_plan(
    scenarios: Sequence[Scenario], subjects: Sequence[Subject], scale: Scale, rounds: int
) -> list[Step]:
    """Lay out every case of every scenario that one of ours offers."""
    steps = []
    for scenario in scenarios:
        able = tuple(
            subject
            for subject in subjects
            if scenario.runs_on(subject) and (scenario.usual_on(subject) or not scale.brief)
        )
        by_case: dict[Case, list[Subject]] = {}
        for subject in able:
            if subject.role is Role.OURS:
                kept = replace(scale, in_files=subject.in_files, on_server=subject.on_server)
                for case in scenario.cases(kept):
                    by_case.setdefault(case, []).append(subject)
        steps += [
            Step(scenario, case, (*ours, *_rivals_of_any(ours, able)), rounds)
            for case, ours in by_case.items()
        ]
    return steps
