"""What to measure, in which order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.results import Case
from benchmarks.scenario import Scale, Scenario
from benchmarks.subject import Role, Subject, rivals


class SelectionError(Exception):
    """What was asked for is not there; the text says what is."""


@dataclass(frozen=True, slots=True)
class Step:
    """One case on all subjects that offer it, one after the other.

    Attributes:
        scenario: What is measured.
        case: How.
        subjects: On what.
        with_base: Whether ours are measured in the other checkout too.
        once: Whether it is in the first round only.
    """

    scenario: Scenario
    case: Case
    subjects: tuple[Subject, ...]
    with_base: bool = False
    once: bool = False

    def __len__(self) -> int:
        ours = sum(subject.role is Role.OURS for subject in self.subjects)
        return len(self.subjects) + (ours if self.with_base else 0)

    def turns(self, number: int) -> Iterator[tuple[Subject, bool]]:
        """Return the subjects of a round, each with whether it is that of the other checkout.

        The two of a pair follow each other, in one order in odd rounds and in the other in even
        ones: what the first of them leaves warm must not count for one side only.
        """
        for subject in self.subjects:
            pair = self.with_base and subject.role is Role.OURS
            for base in (number % 2 == 1, number % 2 == 0) if pair else (False,):
                yield subject, base


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
        SelectionError: A name fits nothing of ours.
    """
    ours = [subject for subject in subjects.values() if subject.role is Role.OURS]
    known = {name for subject in ours for name in (subject.backend, subject.name)}
    if unknown := [name for name in backends if name not in known]:
        raise SelectionError(
            f"unknown backend {unknown[0]!r}, there are: {', '.join(sorted(known))}"
        )
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


def _fit(subjects: Sequence[Subject], case: Case) -> list[Subject]:
    """Leave out who would lose updates, where tasks change the same tokens."""
    return [subject for subject in subjects if subject.exclusive or case.tasks <= case.tokens]


def _rivals_of_any(ours: Sequence[Subject], subjects: Sequence[Subject]) -> list[Subject]:
    names = {rival.name for subject in ours for rival in rivals(subject, subjects)}
    return [subject for subject in subjects if subject.name in names]


def choose_scenarios(
    scenarios: Mapping[str, Scenario], names: Sequence[str], *, optional: bool
) -> list[Scenario]:
    """Choose scenarios by name; when none is given all, the optional ones if they are asked for.

    Raises:
        SelectionError: A name fits none.
    """
    if unknown := [name for name in names if name not in scenarios]:
        raise SelectionError(f"unknown scenario {unknown[0]!r}, there are: {', '.join(scenarios)}")
    return [
        scenario
        for scenario in scenarios.values()
        if scenario.name in names or (not names and (optional or not scenario.optional))
    ]


def make_plan(
    scenarios: Sequence[Scenario],
    subjects: Sequence[Subject],
    scale: Scale,
    *,
    with_base: bool = False,
) -> list[Step]:
    """Lay out every case of every scenario that one of ours offers: one round.

    Raises:
        SelectionError: There is none.
    """
    steps = []
    for scenario in scenarios:
        once = scenario.slow and not (scale.named or scale.brief)
        able = tuple(
            subject
            for subject in subjects
            if scenario.runs_on(subject)
            and (scenario.usual_on(subject) or not scale.brief)
            and not (once and subject.optional)
        )
        by_case: dict[Case, list[Subject]] = {}
        for subject in able:
            if subject.role is Role.OURS:
                kept = replace(scale, in_files=subject.in_files, on_server=subject.on_server)
                for case in scenario.cases(kept):
                    by_case.setdefault(case, []).append(subject)
        steps += [
            Step(scenario, case, (*ours, *_rivals_of_any(ours, _fit(able, case))), with_base, once)
            for case, ours in by_case.items()
        ]
    if not steps:
        raise SelectionError("none of these backends offers what these scenarios measure")
    return steps


def rounds_of(plan: Sequence[Step], rounds: int) -> list[tuple[int, Step]]:
    """Return the steps of each round, one round after the other, with its number from 1 on."""
    return [
        (number, step)
        for number in range(1, rounds + 1)
        for step in plan
        if number == 1 or not step.once
    ]
