"""What is drawn: the rows of a report, sorted into charts.

A chart has one family, one scenario and one part. Where one of the family was measured with two
or more values of an axis and all else equal, the chart is along that axis; every other setting has
one of its own. Peers and floors come along wherever one of ours has the same case.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.page.families import Family
from benchmarks.results import AXES, Case, Row

PREFERRED = ("processes", "size", "tokens", "tasks")
"""Which axis to take where several move at once: the one that the others follow."""
UNITS = {"tasks": "tasks", "tokens": "tokens", "size": "B", "processes": "processes"}


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn together.

    Attributes:
        scenario: Of all its rows.
        part: Of all its rows; empty if the scenario has none.
        family: Whose rows these are.
        axis: The field of `Case` along which they go, empty for a single setting.
        setting: What else is set, in words.
        rows: Ordered by the axis, ours first.
    """

    scenario: str
    part: str
    family: Family
    axis: str
    setting: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """Whom it shows, and under which conditions; the scenario is left out."""
        about = ", ".join(filter(None, (self.part, self.setting)))
        return f"{self.family.name}: {about}" if about else self.family.name

    @property
    def values(self) -> list[int]:
        """The values of its axis."""
        return sorted({getattr(row.case, self.axis) for row in self.rows})

    @property
    def last(self) -> "Chart":
        """Itself at the last value of its axis alone."""
        if not self.axis:
            return self
        value = self.values[-1]
        rows = tuple(row for row in self.rows if getattr(row.case, self.axis) == value)
        return replace(self, axis="", setting=_words(rows[0].case, AXES), rows=rows)

    def of(self, subject: str) -> list[Row]:
        """Return the rows of one subject."""
        return [row for row in self.rows if row.subject == subject]

    @property
    def subjects(self) -> list[str]:
        """Whom it shows."""
        shown = {row.subject for row in self.rows}
        return [name for name in self.family.members if name in shown]


def charts(rows: Sequence[Row], families: Sequence[Family]) -> list[Chart]:
    """Sort rows into charts, in the order of the rows and then of the families."""
    parted = _parted(rows)
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        scenario = row.case.scenario
        groups[scenario, row.part if scenario in parted else ""].append(row)
    return [
        chart
        for (scenario, part), group in groups.items()
        for family in families
        for chart in _of_family(scenario, part, family, group)
    ]


def _parted(rows: Iterable[Row]) -> set[str]:
    """Return the scenarios whose parts tell results of one case apart.

    Elsewhere a part only repeats what the case says.
    """
    parts: dict[Case, set[str]] = defaultdict(set)
    for row in rows:
        parts[row.case].add(row.part)
    return {case.scenario for case, names in parts.items() if len(names) > 1}


def _of_family(scenario: str, part: str, family: Family, rows: Sequence[Row]) -> Iterator[Chart]:
    order = {name: place for place, name in enumerate(family.members)}
    cases = list(dict.fromkeys(row.case for row in rows if row.subject in family.ours))

    def chart(axis: str, setting: str, shown: Sequence[Case]) -> Chart:
        chosen = [row for row in rows if row.case in shown and row.subject in order]
        chosen.sort(key=lambda row: (getattr(row.case, axis) if axis else 0, order[row.subject]))
        return Chart(scenario, part, family, axis, setting, tuple(chosen))

    single = dict.fromkeys(cases)
    for axis in AXES:
        others = [other for other in AXES if other != axis]
        for beside in _groups(cases, others):
            if len(_values(beside, axis)) > 1:
                yield chart(axis, _words(beside[0], others), beside)
                for case in beside:
                    single.pop(case, None)
    rest = list(single)
    if axis := _moving(rest):
        yield chart(axis, _followers(rest, axis), rest)
    else:
        for case in rest:
            yield chart("", _words(case, AXES), [case])


def _words(case: Case, axes: Sequence[str]) -> str:
    """Say what is set; one token of one task is nothing to speak of."""
    told = [axis for axis in axes if axis != "tokens" or case.tokens > 1 or case.tasks > 1]
    return ", ".join(case.setting(*told))


def _groups(cases: Sequence[Case], axes: Sequence[str]) -> list[list[Case]]:
    """Put together the cases that are the same on some axes."""
    groups: dict[tuple[int, ...], list[Case]] = defaultdict(list)
    for case in cases:
        groups[tuple(getattr(case, axis) for axis in axes)].append(case)
    return list(groups.values())


def _values(cases: Sequence[Case], axis: str) -> list[int]:
    return sorted({getattr(case, axis) for case in cases})


def _moving(cases: Sequence[Case]) -> str:
    """Return the axis that tells cases apart which differ on several, or nothing."""
    if len(cases) < 2:
        return ""
    return next((axis for axis in PREFERRED if len(_values(cases, axis)) == len(cases)), "")


def _followers(cases: Sequence[Case], axis: str) -> str:
    """Say what else is set, and what moves along with the axis."""
    words = []
    for other in AXES:
        values = _values(cases, other)
        if other != axis and len(values) == 1:
            words += cases[0].setting(other)
        elif other != axis:
            words.append(f"{values[0]:,} to {values[-1]:,} {UNITS[other]}")
    return ", ".join(words)
