"""What the ratios of ours come to, and which of them the noise leaves open."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from benchmarks.page.canvas import step_name
from benchmarks.page.charts import Chart
from benchmarks.page.families import Family
from benchmarks.results import AXES, Case, Ratio, Row

_SINGULAR = {"tasks": "task", "tokens": "token", "processes": "process"}


class Verdict(StrEnum):
    """What a ratio says."""

    FASTER = "faster"
    SLOWER = "slower"
    OPEN = "not told from noise"


def verdict(ratio: Ratio) -> Verdict:
    """Judge a ratio: one round alone tells nothing."""
    if not ratio.told:
        return Verdict.OPEN
    return Verdict.FASTER if ratio.value > 1 else Verdict.SLOWER


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row of ours, and whom it is compared with.

    Attributes:
        row: Ours.
        ratio: To the fastest peer that loses no update, or to the fastest floor.
        ratios: To all peers, or to that floor.
        setting: The scenario, and what tells the case from the others of its family.
        at_end: Whether it is at an end of its axis, or has none.
    """

    row: Row
    ratio: Ratio | None
    ratios: tuple[Ratio, ...]
    setting: str
    at_end: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """All comparisons of a family.

    Attributes:
        family: Whose.
        with_peers: Whether they are with peers; with floors if no peer was measured.
        comparisons: In the order of the charts.
    """

    family: Family
    with_peers: bool
    comparisons: tuple[Comparison, ...]

    @property
    def ours(self) -> list[str]:
        """Who of ours is compared."""
        compared = {one.row.subject for one in self.comparisons}
        return [name for name in self.family.ours if name in compared]

    @property
    def others(self) -> list[str]:
        """Whom ours are compared with."""
        against = {ratio.against for one in self.comparisons for ratio in one.ratios}
        return [name for name in self.family.others if name in against]


@dataclass(frozen=True, slots=True)
class Tally:
    """The comparisons of one of ours with one other, counted."""

    subject: str
    against: str
    counts: dict[Verdict, int]
    least: float
    middle: float
    most: float


def standing(family: Family, charts: Sequence[Chart]) -> Standing:
    """Compare a family with its peers, or with its floors if no peer was measured."""
    own = [
        (chart, row)
        for chart in charts
        if chart.family == family
        for row in chart.rows
        if row.subject in family.ours
    ]
    with_peers = any(row.versus_peers for _, row in own)
    cases = [row.case for _, row in own]
    found: dict[tuple[Case, str, str], Comparison] = {}
    for chart, row in own:
        ratio = row.versus_peer if with_peers else row.versus_floor
        ratios = row.versus_peers if with_peers else (ratio,) if ratio else ()
        if ratios:
            # of two axes of one scenario each has its chart of the row
            found.setdefault(
                (row.case, row.part, row.subject),
                Comparison(
                    row, ratio, tuple(ratios), setting_name(row, cases), _at_end(chart, row)
                ),
            )
    return Standing(family, with_peers, tuple(found.values()))


def tallies(standing: Standing) -> Iterator[Tally]:
    """Count the comparisons of each of ours with each other."""
    for subject in standing.ours:
        own = [one for one in standing.comparisons if one.row.subject == subject]
        for against in standing.others:
            pairs = [
                (one.row, ratio) for one in own for ratio in one.ratios if ratio.against == against
            ]
            if pairs:
                verdicts = [verdict(ratio) for row, ratio in pairs]
                values = [ratio.value for _, ratio in pairs]
                yield Tally(
                    subject=subject,
                    against=against,
                    counts={kind: verdicts.count(kind) for kind in Verdict},
                    least=min(values),
                    middle=median(values),
                    most=max(values),
                )


def setting_name(row: Row, cases: Sequence[Case]) -> str:
    """Name a row by its scenario, and by what tells it from other cases, in a few letters.

    Args:
        row: One of them.
        cases: All that the name is to tell apart.
    """
    beside = {case for case in cases if case.scenario == row.case.scenario}
    axes = list(AXES)
    for axis in AXES:  # an axis that only follows another one is left out
        if len({_place(case, axes) for case in beside}) == len(
            {_place(case, [other for other in axes if other != axis]) for case in beside}
        ):
            axes.remove(axis)
    words = (_short(row.case, axis) for axis in axes)
    return " ".join(filter(None, (row.case.scenario, row.part, *words)))


def _place(case: Case, axes: Sequence[str]) -> tuple[int, ...]:
    return tuple(getattr(case, axis) for axis in axes)


def _short(case: Case, axis: str) -> str:
    value: int = getattr(case, axis)
    if axis == "size":
        return f"{step_name(value)}{'B' if value else ''}"
    if axis in case.scenario:  # whose name says of what
        return step_name(value)
    return f"{step_name(value)} {axis if value > 1 else _SINGULAR[axis]}"


def _at_end(chart: Chart, row: Row) -> bool:
    if not chart.axis:
        return True
    return getattr(row.case, chart.axis) in (chart.values[0], chart.values[-1])
