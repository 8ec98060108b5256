"""Plots of a single setting: a line of text and a mark for each subject."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import duration
from benchmarks.page.canvas import TEXT, WIDTH, canvas, headline, is_wide, place, scale
from benchmarks.page.charts import Chart
from benchmarks.page.families import Family
from benchmarks.page.samples import Quantity, Samples
from benchmarks.page.styles import Style
from benchmarks.page.svg import colour, plain

_LEFT, _TOP, _BOTTOM = 140, 20, 22
_FIGURES = 44
"""Pixels right of the axes for figures."""

_MARGIN = 12
_LINE = 20
"""Pixels for each subject."""


def draw_bars(
    chart: Chart, quantity: Quantity, samples: Samples, styles: Mapping[str, Style]
) -> Figure | None:
    """Draw one quantity, or nothing if nobody has it.

    The length of a bar means something from zero on only: where the figures want a logarithmic
    axis, there are marks in place of bars.
    """
    spreads = {
        row.subject: spread for row in chart.rows if (spread := samples.spread(row, quantity))
    }
    if not spreads:
        return None
    figure, axes = _lines(chart.family, list(spreads), _FIGURES)
    values = [value for spread in spreads.values() for value in spread]
    scale(axes.xaxis, values, quantity.write)
    headline(axes, quantity.name, _LEFT)
    for line, (subject, spread) in enumerate(spreads.items()):
        style = styles[subject]
        if is_wide(values):
            _mark(axes, spread.value, line, style)
            shade = style.colour
        else:
            _bar(axes, spread.value, line, style)
            shade = "ink"
        axes.hlines([line], [spread.low], [spread.high], color=colour(shade), linewidth=1.4)
        axes.annotate(
            quantity.write(spread.value),
            (1, line),
            xytext=(_FIGURES - 2, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            horizontalalignment="right",
            verticalalignment="center_baseline",
            fontsize=TEXT,
            color=colour("ink"),
        )
    return figure


def draw_latency_ranges(chart: Chart, styles: Mapping[str, Style]) -> Figure | None:
    """Draw p50, p99 and max of each subject on a logarithmic axis, if there is any latency."""
    found = {row.subject: row.latency for row in chart.rows if row.latency}
    if not found:
        return None
    figure, axes = _lines(chart.family, list(found), _MARGIN)
    values = [value for one in found.values() for value in (one.p50, one.p99, one.max)]
    scale(axes.xaxis, values, duration, log=True)
    headline(axes, "latency: p50 (mark), p99 (thick), max (thin)", _LEFT)
    for line, (subject, latency) in enumerate(found.items()):
        style = styles[subject]
        drawn = colour(style.colour)
        axes.hlines([line], [latency.p99], [latency.max], color=drawn, linewidth=1.2)
        axes.hlines([line], [latency.p50], [latency.p99], color=drawn, linewidth=4)
        axes.vlines([latency.max], [line - 0.2], [line + 0.2], color=drawn, linewidth=1.2)
        _mark(axes, latency.p50, line, style)
    return figure


def _lines(family: Family, subjects: Sequence[str], right: float) -> tuple[Figure, Axes]:
    """Lay out a line for each subject, the names on the left and those of ours in bold."""
    figure = canvas(WIDTH, _TOP + _LINE * len(subjects) + _BOTTOM)
    axes = place(figure, _LEFT, _TOP, right, _BOTTOM)
    axes.set_ylim(len(subjects) - 0.5, -0.5)
    axes.set_yticks(range(len(subjects)), [plain(subject) for subject in subjects])
    axes.yaxis.grid(True, color=colour("grid"), linewidth=1)
    for label, subject in zip(axes.get_yticklabels(), subjects, strict=True):
        label.set_color(colour("ink"))
        label.set_fontweight("bold" if subject in family.ours else "normal")
    return figure, axes


def _bar(axes: Axes, value: float, line: int, style: Style) -> None:
    drawn = colour(style.colour)
    if style.filled:  # pale, so that the range of the rounds can be seen on it
        axes.barh(line, value, height=0.6, color=drawn, alpha=0.4)
    axes.barh(line, value, height=0.6, fill=False, edgecolor=drawn, linestyle=style.line)


def _mark(axes: Axes, value: float, line: int, style: Style) -> None:
    drawn = colour(style.colour)
    axes.plot(
        [value],
        [line],
        marker=style.marker,
        markersize=6,
        markerfacecolor=drawn if style.filled else colour("paper"),
        markeredgecolor=drawn,
        zorder=3,
        clip_on=False,
    )
