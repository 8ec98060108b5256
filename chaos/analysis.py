"""Figures of a run, from its histories."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from chaos.counters import check_counter
from chaos.faults import Applied
from chaos.history import Kind, Operation, Outcome
from chaos.plan import FaultKind
from chaos.registers import Verdict, check_register
from chaos.subjects import Subject
from chaos.workload import Counter as CounterState
from chaos.workload import class_of

CHANGES = (Kind.ADD, Kind.WRITE, Kind.CHANGE)
BIN = 0.5  # seconds
_BINS = 600  # at most
_TOLD = 20  # violations that are told one by one,
_TOLD_OF_ONE = 2  # and of one counter


@dataclass
class Round:
    """What one round has left.

    Attributes:
        number: Its number.
        begun: When it began, in nanoseconds of the monotonic clock.
        calm: When its last fault was over.
        ended: When the processes were told to end.
        operations: What was done.
        applied: What went wrong.
        values: What is in each token at the end; None if that could not be read.
        held: Tokens whose lock is held at the end.
        broken: What else must not be, in words.
        closings: With what error managers have closed.
    """

    number: int
    begun: int
    calm: int
    ended: int
    operations: list[Operation]
    applied: list[Applied]
    values: list[int] | None
    held: list[int]
    broken: list[str]
    closings: Counter[str]


@dataclass
class Bin:
    """What was acknowledged in a stretch of time.

    Attributes:
        at: Its middle, in seconds after the start.
        rate: Operations a second.
        median, p99, longest: Their times, in seconds.
    """

    at: float
    rate: float
    median: float
    p99: float
    longest: float


@dataclass
class Mark:
    """A fault, to be shown."""

    kind: str
    begun: float
    ended: float


@dataclass
class Figures:
    """What is told of one subject.

    Attributes:
        subject: Its name.
        seed: Of the run.
        window: Seconds of changes that this mode may lose.
        is_ours: Whether it is held to what statemgr promises.
        rounds: How many there were.
        seconds: How long they took, without the checks.
        operations: How many began.
        acknowledged: Changes that were.
        reads: Reads that were answered.
        failed: Operations of which the manager says that they did nothing.
        uncertain: Those that may have happened.
        stops: Processes that were stopped.
        beyond: Those of them for longer than the expiration.
        holding: Those of these with a lock that they held from before to after.
        faults: How many of each kind.
        lost: Acknowledged changes of counters that have left nothing.
        doubled: Values of counters that nobody can have made.
        counted: Acknowledged changes of counters, the only ones that are lost one by one.
        violations: What was found wrong: how much, and the first of them in words.
        checked: Histories of tokens that were checked.
        undecided: Those of which the checker could not tell.
        steps: How many steps of a search that took.
        held: Locks that were held at the end.
        recovery: Seconds until every token was changed again after the last fault, at most.
        median, p99: Time of an operation, in seconds.
        errors: Errors by class.
        closings: Errors with which managers have closed.
    """

    subject: str
    seed: int
    expiration: float
    window: float = 0.0
    is_ours: bool = True
    rounds: int = 0
    seconds: float = 0.0
    operations: int = 0
    acknowledged: int = 0
    reads: int = 0
    failed: int = 0
    uncertain: int = 0
    stops: int = 0
    beyond: int = 0
    holding: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    counted: int = 0
    violated: int = 0
    violations: list[str] = field(default_factory=list)
    checked: int = 0
    undecided: int = 0
    steps: int = 0
    held: int = 0
    recovery: float = 0.0
    median: float = 0.0
    p99: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    closings: Counter[str] = field(default_factory=Counter)
    bins: list[Bin] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    width: float = BIN

    @property
    def rate(self) -> float:
        """Acknowledged operations a second."""
        return (self.acknowledged + self.reads) / self.seconds if self.seconds else 0.0

    @property
    def bound(self) -> float | None:
        """What share of changes may be lost, at 95%, if none was."""
        return 3 / self.acknowledged if self.acknowledged and not self.is_wrong else None

    @property
    def is_wrong(self) -> bool:
        """Whether anything was found that must not be."""
        lost = 0 if self.window else self.lost
        return bool(lost or self.doubled or self.violated or self.held)


class Analysis:
    """Take in one round after the other."""

    def __init__(self, subject: Subject, seed: int, expiration: float, seconds: float) -> None:
        self.figures = Figures(
            subject.name,
            seed,
            expiration,
            window=subject.window,
            is_ours=subject.is_ours,
            width=max(BIN, seconds / _BINS),
        )
        self._subject = subject
        self._start: int | None = None
        self._latencies: list[float] = []

    def add(self, one: Round) -> None:
        """Check a round, and add its figures."""
        figures = self.figures
        if self._start is None:
            self._start = one.begun
        figures.rounds += 1
        figures.seconds += (one.ended - one.begun) / 1e9
        figures.held += len(one.held)
        figures.closings += one.closings
        for text in one.broken:
            self._violation(one, text)
        self._count(one)
        self._count_faults(one)
        self._check(one)
        self._plot(one)

    def _violation(self, one: Round, text: str) -> None:
        self.figures.violated += 1
        if len(self.figures.violations) < _TOLD:
            self.figures.violations.append(f"round {one.number}: {text}")

    def _count(self, one: Round) -> None:
        figures = self.figures
        for operation in one.operations:
            figures.operations += 1
            match operation.outcome:
                case Outcome.OK if operation.kind in CHANGES:
                    figures.acknowledged += 1
                case Outcome.OK:
                    figures.reads += 1
                case Outcome.FAILED:
                    figures.failed += 1
                case Outcome.UNCERTAIN:
                    figures.uncertain += 1
                case Outcome.BROKEN:
                    self._violation(one, f"token {operation.token}: {operation.error}")
            if operation.outcome is not Outcome.OK:
                figures.errors[operation.error] += 1

    def _count_faults(self, one: Round) -> None:
        figures = self.figures
        by_worker = defaultdict(list)
        for operation in one.operations:
            if operation.entered is not None:
                by_worker[operation.worker].append(operation)
        for fault in one.applied:
            figures.faults[fault.kind] += 1
            if fault.kind is not FaultKind.STOP:
                continue
            figures.stops += 1
            if (fault.ended - fault.begun) / 1e9 > figures.expiration:
                figures.beyond += 1
                figures.holding += any(
                    operation.entered is not None
                    and operation.entered <= fault.begun
                    and operation.returned is not None
                    and operation.returned >= fault.ended
                    for operation in by_worker[fault.worker or 0]
                )

    def _check(self, one: Round) -> None:
        by_token = defaultdict(list)
        for operation in one.operations:
            by_token[operation.token].append(operation)
        for token, operations in sorted(by_token.items()):
            if one.values is None:
                continue
            if class_of(token) is CounterState:
                self._check_counter(one, token, operations, one.values[token])
            elif not self._subject.window:
                self._check_register(one, token, operations, one.values[token])
            self._look_for_progress(one, token, operations)

    def _check_counter(
        self, one: Round, token: int, operations: Sequence[Operation], final: int
    ) -> None:
        figures = self.figures
        verdict = check_counter(operations, final)
        figures.checked += 1
        figures.counted += verdict.acknowledged
        figures.lost += verdict.lost
        figures.doubled += verdict.doubled
        if not self._subject.window:
            figures.violated += len(verdict.violations[_TOLD_OF_ONE:])
            for text in verdict.violations[:_TOLD_OF_ONE]:
                self._violation(one, f"counter {token}: {text}")

    def _check_register(
        self, one: Round, token: int, operations: Sequence[Operation], final: int
    ) -> None:
        figures = self.figures
        verdict = check_register(operations, final)
        figures.checked += 1
        figures.steps += verdict.steps
        if verdict.verdict is Verdict.UNDECIDED:
            figures.undecided += 1
        elif verdict.verdict is Verdict.VIOLATED:
            self._violation(one, f"register {token}: {verdict.reason}")

    def _look_for_progress(self, one: Round, token: int, operations: Sequence[Operation]) -> None:
        """Find when a token was changed again after the last fault."""
        first = min(
            (
                operation.returned
                for operation in operations
                if operation.outcome is Outcome.OK
                and operation.kind in CHANGES
                and operation.returned is not None
                and operation.returned >= one.calm
            ),
            default=None,
        )
        if first is None:
            self._violation(one, f"nobody could change token {token} after the last fault")
        else:
            self.figures.recovery = max(self.figures.recovery, (first - one.calm) / 1e9)

    def _plot(self, one: Round) -> None:
        assert self._start is not None
        figures = self.figures
        latencies: defaultdict[int, list[float]] = defaultdict(list)
        for operation in one.operations:
            if operation.outcome is Outcome.OK and operation.returned is not None:
                place = int((operation.returned - self._start) / 1e9 / figures.width)
                latencies[place].append((operation.returned - operation.invoked) / 1e9)
        first = int((one.begun - self._start) / 1e9 / figures.width)
        for place in range(first, max(latencies, default=first) + 1):
            times = sorted(latencies[place])
            figures.bins.append(
                Bin(
                    (place + 0.5) * figures.width,
                    len(times) / figures.width,
                    quantile(times, 0.5),
                    quantile(times, 0.99),
                    times[-1] if times else 0.0,
                )
            )
            self._latencies += times
        self._latencies.sort()
        figures.median = quantile(self._latencies, 0.5)
        figures.p99 = quantile(self._latencies, 0.99)
        figures.marks += [
            Mark(
                str(fault.kind),
                (fault.begun - self._start) / 1e9,
                (fault.ended - self._start) / 1e9,
            )
            for fault in one.applied
        ]


def quantile(sorted_values: Sequence[float], share: float) -> float:
    """Return a quantile of values in order; 0 if there are none."""
    if not sorted_values:
        return 0.0
    return sorted_values[min(len(sorted_values) - 1, math.floor(share * len(sorted_values)))]
