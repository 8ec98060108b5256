"""Puts the page together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, groupby
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from benchmarks.figures import factor
from benchmarks.files import Report
from benchmarks.page.bars import draw_bars, draw_latency_ranges
from benchmarks.page.canvas import drawing
from benchmarks.page.charts import Chart, charts
from benchmarks.page.curves import draw_curves, draw_latency_curves, draw_swatch
from benchmarks.page.facts import chance, collector_table, facts, verdict_counts
from benchmarks.page.families import families, present
from benchmarks.page.ratios import draw_ratios
from benchmarks.page.samples import BYTES, PROCESS_BYTES, RATE, Samples
from benchmarks.page.styles import Style
from benchmarks.page.styles import styles as styles_of
from benchmarks.page.svg import inline
from benchmarks.page.tables import Table, chart_table, standing_table
from benchmarks.page.verdicts import Standing, Verdict, standing, tallies
from benchmarks.results import Row
from benchmarks.scenario import Scenario
from benchmarks.subject import Subject
from benchmarks.summary import failure_lines

_HERE = Path(__file__).parent

_SECTIONS = {
    "tasks": "By concurrency",
    "size": "By state size",
    "tokens": "By number of tokens",
    "processes": "By number of processes",
    "": "At one setting",
}
"""The axes, each with its part of the page, in this order."""


@dataclass(frozen=True, slots=True)
class Card:
    """Plots of one family, what their lines stand for, and the table below them.

    Attributes:
        title: What is shown.
        plots: The elements.
        legend: Subjects; empty where the plots name them.
        table: The figures.
    """

    title: str
    plots: list[Markup]
    legend: list[str]
    table: Table


@dataclass(frozen=True, slots=True)
class Block:
    """The cards of one scenario.

    Attributes:
        scenario: Its name.
        summary: What it does.
        notes: What it has to add to its figures.
        cards: One for each chart.
    """

    scenario: str
    summary: str
    notes: list[str]
    cards: list[Card]


@dataclass(frozen=True, slots=True)
class Section:
    """The scenarios that grow along one axis, or along none."""

    anchor: str
    heading: str
    blocks: list[Block]


def make_page(
    report: Report, subjects: Mapping[str, Subject], scenarios: Mapping[str, Scenario]
) -> str:
    """Return the text of the page."""
    shown = present(report.rows, subjects)
    groups = families(shown)
    drawn = charts(report.rows, groups)
    standings = [one for group in groups if (one := standing(group, drawn)).comparisons]
    rounds = max((row.rounds for row in report.rows), default=0)
    with drawing():
        artist = _Artist(Samples(report.measurements), styles_of(shown, groups))
        return _template().render(
            report=report,
            facts=facts(report),
            rounds=rounds,
            chance=chance(rounds),
            tallies=[list(tallies(one)) for one in standings],
            total=verdict_counts(standings),
            once=sum(one.row.rounds == 1 for each in standings for one in each.comparisons),
            with_peers=any(one.with_peers for one in standings),
            Verdict=Verdict,
            standings=[artist.standing_card(one) for one in standings],
            sections=list(_sections(drawn, report.rows, scenarios, artist)),
            subjects=shown,
            collector=collector_table(report.rows),
            failures=failure_lines([one for one in report.failures if not one.base]),
            lacking=[subject for subject in shown.values() if subject.lacks],
            numbers={name: number for number, name in enumerate(shown)},
            swatches=artist.swatches(),
            factor=factor,
            css=(_HERE / "page.css").read_text(encoding="utf-8"),
        )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")


class _Artist:
    """Draws everything, and numbers the plots."""

    def __init__(self, samples: Samples, subject_styles: Mapping[str, Style]) -> None:
        self._samples = samples
        self._styles = subject_styles
        self._numbers = count(1)

    def swatches(self) -> dict[str, Markup]:
        """Draw what stands for each subject in a legend."""
        return {name: self._inline(draw_swatch(style)) for name, style in self._styles.items()}

    def standing_card(self, one: Standing) -> Card:
        """Draw how a family stands."""
        name = one.family.name
        figure = draw_ratios(one, self._styles)
        return Card(
            title=name,
            plots=self._plots((figure, f"ratios of {name}")),
            legend=one.ours,
            table=standing_table(one),
        )

    def card(self, chart: Chart) -> Card:
        """Draw a chart."""
        in_bytes = any("bytes_per_token" in row.extra for row in chart.rows)
        along = bool(chart.axis) and not in_bytes
        return Card(
            title=chart.title,
            plots=self._bytes(chart) if in_bytes else self._speed(chart),
            legend=chart.subjects if along else [],
            table=chart_table(chart),
        )

    def _speed(self, chart: Chart) -> list[Markup]:
        samples, styles = self._samples, self._styles
        if chart.axis:
            drawn = draw_curves(chart, RATE, samples, styles)
            latency = draw_latency_curves(chart, samples, styles)
            what = f" by {chart.axis}"
        else:
            drawn = draw_bars(chart, RATE, samples, styles)
            latency = draw_latency_ranges(chart, styles)
            what = ""
        about = f"{what}: {chart.scenario}, {chart.title}"
        return self._plots(
            (drawn, f"{RATE.name}{about}"), (latency, f"latency p50, p99 and max{about}")
        )

    def _bytes(self, chart: Chart) -> list[Markup]:
        """Draw what a token is kept in; along an axis the last value, for it hardly moves."""
        last = chart.last
        plots = []
        for quantity in (BYTES, PROCESS_BYTES):
            named = replace(quantity, name=f"{quantity.name}, {last.title.partition(': ')[2]}")
            about = f"{named.name}: {chart.scenario}, {chart.family.name}"
            plots.append((draw_bars(last, named, self._samples, self._styles), about))
        return self._plots(*plots)

    def _plots(self, *drawn: tuple[Figure | None, str]) -> list[Markup]:
        return [
            self._inline(figure, f"{label}; the table below has the figures")
            for figure, label in drawn
            if figure
        ]

    def _inline(self, figure: Figure, label: str = "") -> Markup:
        return inline(figure, next(self._numbers), label)


def _sections(
    drawn: Sequence[Chart],
    rows: Sequence[Row],
    scenarios: Mapping[str, Scenario],
    artist: _Artist,
) -> Iterator[Section]:
    for axis, heading in _SECTIONS.items():
        chosen = [chart for chart in drawn if chart.axis == axis]
        blocks = []
        for name, group in groupby(chosen, key=lambda chart: chart.scenario):
            known = scenarios.get(name)
            own = [row for row in rows if row.case.scenario == name]
            blocks.append(
                Block(
                    scenario=name,
                    summary=known.summary if known else "",
                    notes=_notes(known, own) if known else [],
                    cards=[artist.card(chart) for chart in group],
                )
            )
        if blocks:
            yield Section(f"by-{axis or 'setting'}", heading, blocks)


def _notes(scenario: Scenario, rows: Sequence[Row]) -> list[str]:
    try:
        return scenario.notes(rows)
    except LookupError:  # the rows are of a version that had other facts
        return []
