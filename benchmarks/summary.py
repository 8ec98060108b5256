"""Turns measurements into rows: medians over rounds, and ratios."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.results import Case, Latency, Measurement, Point, Ratio, Row
from benchmarks.subject import Role, Subject, rivals


@dataclass(frozen=True, slots=True)
class _Group:
    """All rounds of one case, part and subject; `points` by round."""

    case: Case
    part: str
    subject: Subject
    points: Mapping[int, Point]

    @property
    def rate(self) -> float:
        return median(point.rate for point in self.points.values())


def summarize(measurements: Sequence[Measurement], subjects: Mapping[str, Subject]) -> list[Row]:
    """Make a row of each case, part and subject: the cases as measured, the subjects by role.

    A ratio is the median of the ratios of the single rounds: within a round the two were
    measured one after the other, so most of the machine's moods cancel out.

    Args:
        measurements: Those of one run.
        subjects: Every subject by name.
    """
    by_key: dict[tuple[Case, str, str], dict[int, Point]] = defaultdict(dict)
    for measured in measurements:
        for point in measured.points:
            by_key[measured.case, point.part, measured.subject][measured.round] = point
    groups = [
        _Group(case, part, subjects[name], points) for (case, part, name), points in by_key.items()
    ]
    cases: dict[tuple[Case, str], list[_Group]] = defaultdict(list)
    for group in groups:
        cases[group.case, group.part].append(group)
    roles = list(Role)
    return [
        _row(group, beside, subjects)
        for beside in cases.values()
        for group in sorted(beside, key=lambda group: roles.index(group.subject.role))
    ]


def _row(group: _Group, beside: Sequence[_Group], subjects: Mapping[str, Subject]) -> Row:
    points = list(group.points.values())
    rates = [point.rate for point in points]
    return Row(
        case=group.case,
        part=group.part,
        subject=group.subject.name,
        role=group.subject.role,
        rounds=len(points),
        rate=median(rates),
        rate_min=min(rates),
        rate_max=max(rates),
        cpu_per_operation=median(point.cpu_seconds / point.operations for point in points),
        latency=_latency([point.latency for point in points if point.latency]),
        memory_growth=_whole_median(
            [point.memory_growth for point in points if point.memory_growth is not None]
        ),
        versus_peer=_versus(Role.PEER, group, beside, subjects),
        versus_floor=_versus(Role.FLOOR, group, beside, subjects),
        extra={name: _typical([point.extra[name] for point in points]) for name in points[0].extra},
    )


def _versus(
    role: Role, group: _Group, beside: Sequence[_Group], subjects: Mapping[str, Subject]
) -> Ratio | None:
    """Compare with the fastest of a role that is meant for the group's subject."""
    subject = group.subject
    if subject.role in (role, Role.FLOOR):
        return None
    if subject.role is Role.OURS:
        meant = {rival.name for rival in rivals(subject, subjects.values())}
    else:  # a peer has the floors of what it is compared with
        meant = {
            other.name
            for other in subjects.values()
            if not set(subject.against).isdisjoint(other.against)
        }
    others = [
        other for other in beside if other.subject.role is role and other.subject.name in meant
    ]
    if not others:
        return None
    best = max(others, key=lambda other: other.rate)
    rounds = group.points.keys() & best.points.keys()
    if not rounds:
        return None
    ratio = median(group.points[number].rate / best.points[number].rate for number in rounds)
    return Ratio(best.subject.name, ratio)


def _latency(latencies: Sequence[Latency]) -> Latency | None:
    if not latencies:
        return None
    return Latency(
        p50=median(latency.p50 for latency in latencies),
        p99=median(latency.p99 for latency in latencies),
        max=median(latency.max for latency in latencies),
        samples=sum(latency.samples for latency in latencies),
    )


def _typical(values: Sequence[Any]) -> Any:
    """Return the median of numbers, and of anything else the last."""
    return median(values) if type(values[-1]) in (int, float) else values[-1]


def _whole_median(values: Sequence[int]) -> int | None:
    return round(median(values)) if values else None
