"""What is measured and what is made of it: plain data, the shape of the JSON report."""

from dataclasses import dataclass, field
from typing import Any

AXES = ("tasks", "tokens", "size", "processes")
"""The fields of a `Case` along which a scenario can grow."""


@dataclass(frozen=True, slots=True)
class Case:
    """One setting of a scenario, the same for every subject.

    Attributes:
        scenario: The scenario's name.
        tasks: Tasks that work side by side.
        tokens: Tokens that exist.
        seconds: Time to measure for, once everything is prepared.
        size: Bytes of a serialized state, about; 0 is the reference state.
        processes: Processes that work side by side; `tasks` are those of all together.
    """

    scenario: str
    tasks: int
    tokens: int
    seconds: float
    size: int = 0
    processes: int = 1

    def __str__(self) -> str:
        return ", ".join((self.scenario, *self.setting(*AXES)))

    def setting(self, *axes: str) -> list[str]:
        """Return some of its axes in words, those left out that say nothing."""
        words = {
            "tasks": f"{self.tasks} tasks" if self.tasks > 1 else "",
            "tokens": f"{self.tokens:,} tokens" if self.tokens > 1 else "1 token",
            "size": f"{self.size:,} B" if self.size else "",
            "processes": f"{self.processes} processes" if self.processes > 1 else "",
        }
        return [words[axis] for axis in axes if words[axis]]


@dataclass(frozen=True, slots=True)
class Latency:
    """How long single operations took, in seconds."""

    p50: float
    p99: float
    max: float
    samples: int


@dataclass(frozen=True, slots=True)
class Point:
    """One result of one process.

    Attributes:
        operations: Operations in the throughput pass.
        seconds: Wall time of that pass.
        cpu_seconds: Processor time of the measured process in that pass, all threads.
        latency: From a pass of its own, which reads the clock around each operation.
        memory_growth: Bytes by which the peak of the resident memory rose between the moment the
            tokens were built and the end; None where the memory says nothing.
        collector_seconds: The part of `seconds` that went to the garbage collector.
        part: Tells apart several results of one process; empty when there is one.
        extra: Facts of one scenario only. Numbers become medians in a `Row`.
    """

    operations: int
    seconds: float
    cpu_seconds: float
    latency: Latency | None = None
    memory_growth: int | None = None
    collector_seconds: float = 0.0
    part: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one process reported about one case and one subject.

    Attributes:
        case: What it measured.
        subject: On what.
        round: In which round, from 1 on.
        points: What it found.
        base: Whether the subject was that of the other checkout, which ours is compared with.
    """

    case: Case
    subject: str
    round: int
    points: tuple[Point, ...]
    base: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A process that reported nothing, and why."""

    case: Case
    subject: str
    round: int
    reason: str
    base: bool = False


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as many operations per second as `against` did.

    Attributes:
        against: The subject that it is beside.
        value: The median over the rounds.
        low: The least that a round found.
        high: The most.
        rounds: How many rounds there are.
    """

    against: str
    value: float
    low: float
    high: float
    rounds: int

    @property
    def told(self) -> bool:
        """Whether there are several rounds, and all agree on which of the two is faster."""
        return self.rounds > 1 and not self.low <= 1 <= self.high


@dataclass(frozen=True, slots=True)
class Row:
    """The rounds of one case, part and subject: medians, and the range of the rate.

    `collector_share` is the garbage collector's part of the time, from 0 to 1. `versus_peers` has
    all peers that were measured, the fastest first; `versus_peer` is the first of them that loses
    no update, as ours lose none.
    """

    case: Case
    part: str
    subject: str
    role: str
    rounds: int
    rate: float
    rate_min: float
    rate_max: float
    cpu_per_operation: float
    collector_share: float
    latency: Latency | None
    memory_growth: int | None
    versus_peers: tuple[Ratio, ...]
    versus_peer: Ratio | None
    versus_floor: Ratio | None
    extra: dict[str, Any]
