"""Plots along an axis: a line for each subject, and the range of the rounds at each value."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.page.canvas import TEXT, WIDTH, canvas, headline, place, scale, steps
from benchmarks.page.charts import Chart
from benchmarks.page.samples import LATENCIES, Quantity, Samples, Spread
from benchmarks.page.styles import Style
from benchmarks.page.svg import colour

AXIS_NAMES = {
    "tasks": "tasks side by side",
    "tokens": "tokens",
    "size": "bytes of a serialized state",
    "processes": "processes side by side",
}

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 20, 40
_GAP = 24
_HEIGHT = 212


class _Curve(NamedTuple):
    subject: str
    spreads: dict[int, Spread]


def draw_curves(
    chart: Chart, quantity: Quantity, samples: Samples, styles: Mapping[str, Style]
) -> Figure | None:
    """Draw one quantity, or nothing if nobody has it."""
    curves = _curves(chart, quantity, samples)
    if not curves:
        return None
    figure = canvas(WIDTH, _HEIGHT)
    axes = place(figure, _LEFT, _TOP, _RIGHT, _BOTTOM)
    scale(axes.yaxis, _all_values(curves), quantity.write)
    headline(axes, quantity.name, _LEFT)
    _draw(axes, chart, curves, styles, room=7)
    _name_axis(figure, chart.axis)
    return figure


def draw_latency_curves(
    chart: Chart, samples: Samples, styles: Mapping[str, Style]
) -> Figure | None:
    """Draw p50, p99 and max side by side, on one logarithmic axis, if there is any latency."""
    sets = [_curves(chart, quantity, samples) for quantity in LATENCIES]
    values = [value for curves in sets for value in _all_values(curves)]
    if not values:
        return None
    figure = canvas(WIDTH, _HEIGHT)
    width = (WIDTH - _LEFT - _RIGHT - 2 * _GAP) / 3
    for number, (quantity, curves) in enumerate(zip(LATENCIES, sets, strict=True)):
        left = _LEFT + number * (width + _GAP)
        axes = place(figure, left, _TOP, WIDTH - left - width, _BOTTOM)
        scale(axes.yaxis, values, quantity.write, log=True)
        if number:
            axes.yaxis.set_tick_params(labelleft=False)
            headline(axes, quantity.name)
        else:
            headline(axes, f"latency {quantity.name}", _LEFT)
        _draw(axes, chart, curves, styles, room=3)
    _name_axis(figure, chart.axis)
    return figure


def _curves(chart: Chart, quantity: Quantity, samples: Samples) -> list[_Curve]:
    found = []
    for subject in reversed(chart.subjects):  # ours last, so that they lie on top
        spreads = {
            getattr(row.case, chart.axis): spread
            for row in chart.of(subject)
            if (spread := samples.spread(row, quantity))
        }
        if spreads:
            found.append(_Curve(subject, spreads))
    return found


def _all_values(curves: Sequence[_Curve]) -> list[float]:
    return list(_values(curves))


def _values(curves: Sequence[_Curve]) -> Iterator[float]:
    for curve in curves:
        for spread in curve.spreads.values():
            yield from spread


def _draw(
    axes: Axes, chart: Chart, curves: Sequence[_Curve], styles: Mapping[str, Style], room: int
) -> None:
    places = steps(axes.xaxis, chart.values, room)
    for curve in curves:
        style = styles[curve.subject]
        drawn = colour(style.colour)
        x = [places[value] for value in curve.spreads]
        spreads = curve.spreads.values()
        axes.vlines(
            x,
            [spread.low for spread in spreads],
            [spread.high for spread in spreads],
            color=drawn,
            linewidth=1,
            clip_on=False,
        )
        axes.plot(
            x,
            [spread.value for spread in spreads],
            color=drawn,
            linestyle=style.line,
            linewidth=style.width,
            marker=style.marker,
            markersize=5,
            markerfacecolor=drawn if style.filled else colour("paper"),
            markeredgecolor=drawn,
            clip_on=False,
        )


def _name_axis(figure: Figure, axis: str) -> None:
    figure.text(
        (_LEFT + (WIDTH - _LEFT - _RIGHT) / 2) / WIDTH,
        8 / _HEIGHT,
        AXIS_NAMES[axis],
        horizontalalignment="center",
        fontsize=TEXT,
        color=colour("muted"),
    )


def draw_swatch(style: Style) -> Figure:
    """Draw what stands for a subject in a legend."""
    figure = canvas(34, 14)
    axes = place(figure, 0, 0, 0, 0)
    axes.set_axis_off()
    axes.set_xlim(0, 34)
    axes.set_ylim(0, 14)
    drawn = colour(style.colour)
    axes.plot([1, 33], [7, 7], color=drawn, linestyle=style.line, linewidth=style.width)
    axes.plot(
        [17],
        [7],
        marker=style.marker,
        markersize=6,
        markerfacecolor=drawn if style.filled else colour("paper"),
        markeredgecolor=drawn,
    )
    return figure
