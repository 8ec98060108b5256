"""Explore: the canonical schedules with every fault, then with two, then by chance."""

import dataclasses
import gc
import hashlib
import random
import time
from collections import Counter as Tally
from collections.abc import Iterator
from typing import Final

from chaos.explorer.choices import Choices, Deviations, RandomChoices
from chaos.explorer.mutants import MUTANTS, REAL, Mutant
from chaos.explorer.process import deterministic
from chaos.explorer.scenarios import DEEP, SCENARIOS, Scenario
from chaos.explorer.schedule import Schedule, Verdict
from chaos.explorer.server import ModelServer

_RATES: Final = (0.02, 0.05, 0.12, 0.3)
_SYSTEMATIC: Final = 0.8  # of the schedules; the others are by chance
PLANNED: Final = ("canonical", "one deviation", "two deviations")
_COLLECT_EVERY: Final = 100  # schedules


@dataclasses.dataclass
class Finding:
    """A schedule in which something was wrong.

    Attributes:
        place: By which it is replayed: SEED:NUMBER, or SCENARIO/STEP=ALTERNATIVE,...
        after: How many schedules had been run before it, in the same job.
    """

    place: str
    scenario: str
    deviations: Deviations
    faults: list[str]
    after: int = 0


@dataclasses.dataclass
class Outcome:
    """What an exploration has covered and found."""

    schedules: Tally[str] = dataclasses.field(default_factory=Tally)  # by mode
    kinds: Tally[str] = dataclasses.field(default_factory=Tally)  # see PLANNED; random
    steps: int = 0
    distinct: set[bytes] = dataclasses.field(default_factory=set)
    transitions: dict[str, Tally[str]] = dataclasses.field(default_factory=dict)  # by mode
    findings: list[Finding] = dataclasses.field(default_factory=list)
    complete: Tally[str] = dataclasses.field(default_factory=Tally)  # by how many jobs
    seconds: float = 0.0  # of processor time

    @property
    def total(self) -> int:
        """How many schedules were run."""
        return self.schedules.total()

    def add(self, other: "Outcome") -> None:
        """Add what another job has done."""
        self.schedules += other.schedules
        self.kinds += other.kinds
        self.steps += other.steps
        self.distinct |= other.distinct
        for mode, tally in other.transitions.items():
            self.transitions.setdefault(mode, Tally()).update(tally)
        self.findings += other.findings
        self.complete += other.complete
        self.seconds += other.seconds


class Explorer:
    """Run schedules of the real protocol, or of a mutant.

    Args:
        mutant: Which one.
        most_findings: After how many findings to stop.
    """

    def __init__(self, mutant: Mutant = REAL, most_findings: int = 1) -> None:
        self.server = ModelServer(mutant.edits)
        self._manager_type = mutant.manager_type
        self._most_findings = most_findings
        self.outcome = Outcome()

    @property
    def is_done(self) -> bool:
        """Whether enough was found."""
        return len(self.outcome.findings) >= self._most_findings

    def run(self, scenario: Scenario, choices: Choices, *, traces: bool = False) -> Verdict:
        """Run one schedule, outside of what is counted."""
        return Schedule(scenario, self.server, choices, self._manager_type, traces=traces).run()

    def _counted(self, scenario: Scenario, choices: Choices, kind: str, place: str) -> Verdict:
        verdict = self.run(scenario, choices)
        outcome = self.outcome
        outcome.schedules[scenario.mode] += 1
        outcome.kinds[kind] += 1
        outcome.steps += verdict.steps
        outcome.transitions.setdefault(scenario.mode, Tally()).update(verdict.tally)
        outcome.distinct.add(
            hashlib.blake2b(f"{scenario.name}{verdict.deviations}".encode(), digest_size=8).digest()
        )
        if verdict.faults:
            place = place or text_of(scenario, verdict.deviations)
            outcome.findings.append(
                Finding(place, scenario.name, verdict.deviations, verdict.faults, outcome.total)
            )
        if outcome.total % _COLLECT_EVERY == 0:
            gc.collect()
        return verdict

    # By plan

    def systematic(self, budget: int, share: tuple[int, int] = (0, 1)) -> None:
        """Try no deviation, then each one in each scenario, then each two in the short ones.

        Args:
            budget: After how many schedules to stop.
            share: Which part of how many to do.
        """
        singles = [
            (f"{scenario.name}, {count} deviation", self.plans(scenario, count, share))
            for count in (0, 1)
            for scenario in SCENARIOS.values()
        ]
        n = len(SCENARIOS)
        pairs = [(f"{name}, 2 deviations", self.plans(SCENARIOS[name], 2, share)) for name in DEEP]
        # Scenarios take turns, so that what is easily found is found soon; pairs do not, so that
        # at least some are complete.
        for group in (singles[:n], singles[n:], *([pair] for pair in pairs)):
            going = dict(group)
            while going:
                for name, plans in list(going.items()):
                    if self.outcome.total >= budget or self.is_done:
                        return
                    if next(plans, None) is None:
                        del going[name]
                        self.outcome.complete[name] += 1

    def plans(
        self, scenario: Scenario, count: int, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Verdict]:
        """Run all that can be reached by exactly so many deviations, depth first."""
        part, parts = share
        stack: list[Deviations] = [{}]
        while stack:
            planned = stack.pop()
            if len(planned) == count:
                if planned or part == 0:
                    yield self._counted(scenario, Choices(planned), PLANNED[count], "")
                continue
            widths: dict[int, int] = {}
            self.run(scenario, Choices(planned, widths))
            children = [
                {**planned, step: which} for step, width in widths.items() for which in range(width)
            ]
            if not planned:
                # In no order, that those next to each other, which show the same, are not tried
                # one after the other.
                random.Random(scenario.name).shuffle(children)
                children = children[part::parts]
            stack.extend(reversed(children))

    # By chance

    def by_chance(self, seed: int, numbers: range, scenarios: list[Scenario] | None = None) -> None:
        """Run the schedules that a seed has under these numbers."""
        among = scenarios or list(SCENARIOS.values())
        for number in numbers:
            if self.is_done:
                return
            scenario, choices = self.drawn(seed, number, among)
            self._counted(scenario, choices, "random", f"{seed}:{number}")

    @staticmethod
    def drawn(seed: int, number: int, among: list[Scenario]) -> tuple[Scenario, RandomChoices]:
        """Return a scenario, and what chooses in it."""
        source = random.Random(f"{seed}:{number}")
        scenario = among[source.randrange(len(among))]
        return scenario, RandomChoices(source, source.choice(_RATES))

    # What was found

    def smallest(self, finding: Finding) -> Verdict:
        """Return a schedule with the same kind of fault that has no deviation to spare."""
        scenario = SCENARIOS[finding.scenario]
        best = dict(finding.deviations)
        shrinks = True
        while shrinks:
            shrinks = False
            for step in sorted(best, reverse=True):
                fewer = {s: which for s, which in best.items() if s != step}
                verdict = self.run(scenario, Choices(fewer))
                if verdict.faults:
                    best, shrinks = dict(verdict.deviations), True
                    break
        return self.run(scenario, Choices(best), traces=True)


def text_of(scenario: Scenario, deviations: Deviations) -> str:
    """Return what a schedule is replayed by."""
    return scenario.name + "/" + ",".join(f"{s}={w}" for s, w in deviations.items())


def read_text(text: str) -> tuple[Scenario, Deviations]:
    """Return the schedule that `text_of` has described."""
    name, _, rest = text.partition("/")
    pairs = (pair.split("=") for pair in rest.split(",") if pair)
    return SCENARIOS[name], {int(step): int(which) for step, which in pairs}


def replay(place: str, mutant: Mutant = REAL) -> Verdict:
    """Run one schedule again, with its timeline."""
    explorer = Explorer(mutant)
    with deterministic():
        if "/" in place:
            scenario, deviations = read_text(place)
            return explorer.run(scenario, Choices(deviations), traces=True)
        seed, number = map(int, place.split(":"))
        scenario, choices = explorer.drawn(seed, number, list(SCENARIOS.values()))
        return explorer.run(scenario, choices, traces=True)


def explore(
    seed: int,
    schedules: int,
    share: tuple[int, int] = (0, 1),
    mutant: str = "",
    most_findings: int = 1,
) -> Outcome:
    """Explore by plan, and then by chance until there were so many schedules in all jobs.

    Args:
        seed: Of what is by chance.
        schedules: How many schedules all jobs are to run.
        share: Which of how many jobs this is.
        mutant: The mutant's name; empty for the real protocol.
        most_findings: After how many findings to stop.
    """
    explorer = Explorer(MUTANTS[mutant] if mutant else REAL, most_findings)
    began = time.process_time()
    with deterministic():
        gc.collect()
        gc.freeze()
        part, parts = share
        explorer.systematic(int(schedules * _SYSTEMATIC) // parts, share)
        left = max(0, schedules // parts - explorer.outcome.total)
        explorer.by_chance(seed, range(part, left * parts, parts))
    explorer.outcome.seconds = time.process_time() - began
    return explorer.outcome
