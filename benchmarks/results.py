"""What is measured and what is made of it: plain data, the shape of the JSON report."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Case:
    """One setting of a scenario, the same for every subject.

    Attributes:
        scenario: The scenario's name.
        tasks: Tasks that work side by side.
        tokens: Tokens that exist.
        seconds: Time to measure for, once everything is prepared.
    """

    scenario: str
    tasks: int
    tokens: int
    seconds: float

    def __str__(self) -> str:
        return self.scenario if self.tasks == 1 else f"{self.scenario}, {self.tasks} tasks"


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
        part: Tells apart several results of one process; empty when there is one.
        extra: Facts of one scenario only. Numbers become medians in a `Row`.
    """

    operations: int
    seconds: float
    cpu_seconds: float
    latency: Latency | None = None
    memory_growth: int | None = None
    part: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one process reported about one case and one subject."""

    case: Case
    subject: str
    round: int
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A process that reported nothing, and why."""

    case: Case
    subject: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as many operations per second as `against` did."""

    against: str
    value: float


@dataclass(frozen=True, slots=True)
class Row:
    """The rounds of one case, part and subject: medians, and the range of the rate."""

    case: Case
    part: str
    subject: str
    role: str
    rounds: int
    rate: float
    rate_min: float
    rate_max: float
    cpu_per_operation: float
    latency: Latency | None
    memory_growth: int | None
    versus_peer: Ratio | None
    versus_floor: Ratio | None
    extra: dict[str, Any]
