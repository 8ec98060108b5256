"""How ours stand beside their peers: a line for each setting, a mark for each of ours."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.page.canvas import WIDTH, canvas, headline, place, subdivisions
from benchmarks.page.styles import Style
from benchmarks.page.svg import colour, plain
from benchmarks.page.verdicts import Standing, Verdict, verdict
from benchmarks.results import Ratio

_LEFT, _TOP, _RIGHT, _BOTTOM = 142, 20, 14, 22
_MARK = 5.5
"""Pixels from one mark to the next in the same line."""


def draw_ratios(standing: Standing, styles: Mapping[str, Style]) -> Figure | None:
    """Draw the ratios with the range of their rounds, hollow where the noise leaves them open.

    Of an axis the two ends are drawn: its own plot has the rest.
    """
    drawn = [(one, one.ratio) for one in standing.comparisons if one.at_end and one.ratio]
    if not drawn:
        return None
    settings = list(dict.fromkeys(one.setting for one, _ in drawn))
    line = max(18, _MARK * len(standing.ours) + 6)
    figure = canvas(WIDTH, _TOP + line * len(settings) + _BOTTOM)
    axes = place(figure, _LEFT, _TOP, _RIGHT, _BOTTOM)
    axes.set_ylim(len(settings) - 0.5, -0.5)
    axes.set_yticks(range(len(settings)), [plain(setting) for setting in settings])
    axes.tick_params(axis="y", labelcolor=colour("ink"))
    _scale(axes, [ratio for _, ratio in drawn])
    beside = "peer that loses no update" if standing.with_peers else "floor"
    headline(axes, f"times the op/s of its fastest {beside}", _LEFT)
    for one, ratio in drawn:
        style = styles[one.row.subject]
        shade = colour(style.colour)
        middle = (len(standing.ours) - 1) / 2
        height = (standing.ours.index(one.row.subject) - middle) * _MARK / line
        height += settings.index(one.setting)
        axes.hlines([height], [ratio.low], [ratio.high], color=shade, linewidth=1.6)
        axes.plot(
            [ratio.value],
            [height],
            marker=style.marker,
            markersize=5,
            markerfacecolor=shade if verdict(ratio) is not Verdict.OPEN else colour("paper"),
            markeredgecolor=shade,
            zorder=3,
        )
    return figure


def _scale(axes: Axes, ratios: Sequence[Ratio]) -> None:
    """Lay out a logarithmic axis that has 1, where the two are equally fast, in any case."""
    low = min(0.9, *(ratio.low for ratio in ratios)) / 1.1
    high = max(1.1, *(ratio.high for ratio in ratios)) * 1.1
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=subdivisions(low, high), numticks=7))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.grid(True, color=colour("grid"), linewidth=1)
    axes.axvline(1, color=colour("ink"), linewidth=1.2)
