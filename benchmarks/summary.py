"""Turns measurements into rows: medians over rounds, and ratios; and failures into lines."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.results import Case, Failure, Latency, Measurement, Point, Ratio, Row
from benchmarks.subject import Role, Subject, rivals

Key = tuple[Case, str, str]
"""A case, a part of it, and the name of a subject."""

Points = Mapping[int, Point]
"""What was found in each round."""


@dataclass(frozen=True, slots=True)
class _Group:
    """All rounds of one case, part and subject; `points` by round."""

    case: Case
    part: str
    subject: Subject
    points: Points

    @property
    def rate(self) -> float:
        return median(point.rate for point in self.points.values())


def points_of(measurements: Iterable[Measurement], *, base: bool = False) -> dict[Key, Points]:
    """Return the points of each case, part and subject by round.

    Args:
        measurements: Those of one run.
        base: Whether to take those of the other checkout.
    """
    found: dict[Key, dict[int, Point]] = defaultdict(dict)
    for measured in measurements:
        if measured.base is base:
            for point in measured.points:
                found[measured.case, point.part, measured.subject][measured.round] = point
    return dict(found)


def failure_lines(failures: Iterable[Failure]) -> list[str]:
    """Tell each reason once for each case and subject, that of the other checkout apart."""
    reasons = Counter((one.case, one.subject, one.base, one.reason) for one in failures)
    return [
        f"{number}x: {case}, {subject}{' (base)' if base else ''}: {reason}"
        for (case, subject, base, reason), number in reasons.items()
    ]


def summarize(measurements: Sequence[Measurement], subjects: Mapping[str, Subject]) -> list[Row]:
    """Make a row of each case, part and subject: the cases as measured, the subjects by role.

    A ratio is the median of the ratios of the single rounds: within a round the two were
    measured one after the other, so most of the machine's moods cancel out.

    Args:
        measurements: Those of one run; of the other checkout's there are no rows.
        subjects: Every subject by name.
    """
    groups = [
        _Group(case, part, subjects[name], points)
        for (case, part, name), points in points_of(measurements).items()
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
    peers = _versus(Role.PEER, group, beside, subjects)
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
        collector_share=median(point.collector_seconds / point.seconds for point in points),
        latency=_latency([point.latency for point in points if point.latency]),
        memory_growth=_whole_median(
            [point.memory_growth for point in points if point.memory_growth is not None]
        ),
        versus_peers=tuple(peers.values()),
        versus_peer=next((peers[name] for name in peers if subjects[name].exclusive), None),
        versus_floor=next(iter(_versus(Role.FLOOR, group, beside, subjects).values()), None),
        extra={name: _typical([point.extra[name] for point in points]) for name in points[0].extra},
    )


def _versus(
    role: Role, group: _Group, beside: Sequence[_Group], subjects: Mapping[str, Subject]
) -> dict[str, Ratio]:
    """Compare with those of a role that are meant for the group's subject, the fastest first."""
    subject = group.subject
    if subject.role in (role, Role.FLOOR):
        return {}
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
    others.sort(key=lambda other: other.rate, reverse=True)
    ratios = (ratio_of(other.subject.name, group.points, other.points) for other in others)
    return {ratio.against: ratio for ratio in ratios if ratio}


def ratio_of(against: str, points: Points, others: Points) -> Ratio | None:
    """Compare the rounds that two have in common; None if there are none.

    Args:
        against: The name of the other one.
        points: Those of the one.
        others: Those of the other one.
    """
    ratios = [points[number].rate / others[number].rate for number in points.keys() & others.keys()]
    return Ratio(against, median(ratios), min(ratios), max(ratios), len(ratios)) if ratios else None


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
