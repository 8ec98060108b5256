"""What all plots have in common: their size, their scales, their ticks.

A plot is as wide as a phone, and its unit is a pixel there: wide pages show several side by side
in place of larger ones. Margins are given, not measured, so that the fonts of the machine that
draws do not matter.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from benchmarks.page.svg import colour, plain

WIDTH = 360
TEXT = 11
DECADE = 10.0

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a name may hold a dollar sign
    "path.simplify": False,
}

_DOTS_PER_INCH = 72
_NUMBER = re.compile(r"[\d.]+")


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with the same settings on every machine."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure of a size in pixels."""
    return Figure(figsize=(width / _DOTS_PER_INCH, height / _DOTS_PER_INCH))


def place(figure: Figure, left: float, top: float, right: float, bottom: float) -> Axes:
    """Add axes to a figure.

    Args:
        figure: From `canvas`.
        left: Pixels between them and that edge of the figure, as are the others.
        top: The same.
        right: The same.
        bottom: The same.
    """
    width, height = (inches * _DOTS_PER_INCH for inches in figure.get_size_inches())
    axes = figure.add_axes(
        (
            left / width,
            bottom / height,
            (width - left - right) / width,
            (height - top - bottom) / height,
        )
    )
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_tick_params(which="both", length=0, pad=4, labelsize=TEXT)
        axis.set_tick_params(which="both", labelcolor=colour("muted"))
    return axes


def headline(axes: Axes, text: str, left: float = 0) -> None:
    """Write what the axes show above them.

    Args:
        axes: Of a plot.
        text: What they show.
        left: Pixels to the left of the axes at which it begins.
    """
    axes.annotate(
        plain(text),
        (0, 1),
        xytext=(-left, 7),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=TEXT,
        color=colour("muted"),
    )


def is_wide(values: Sequence[float]) -> bool:
    """Tell whether values span more than a decade, so that they want a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) > DECADE


def scale(
    axis: Axis, values: Sequence[float], write: Callable[[float], str], *, log: bool | None = None
) -> None:
    """Lay out the axis of a quantity.

    Args:
        axis: The one of the two.
        values: All that it is to show.
        write: Write a figure.
        log: Whether it is logarithmic; None for as the values want it. Else it begins at zero.
    """
    low, high = min(values), max(values)
    if log is None:
        log = is_wide(values)
    if log:
        _set_scale(axis, "log")
        low = min((value for value in values if value > 0), default=1.0)
        high = max(low, high)
        low, high = low / 1.15, high * 1.15
        axis.set_major_locator(LogLocator(subs=subdivisions(low, high), numticks=7))
    else:
        low, high = min(0.0, low), high * 1.06 if high > 0 else 1.0
        axis.set_major_locator(MaxNLocator(4))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(write(value))))
    _set_limits(axis, low, high)
    axis.grid(True, color=colour("grid"), linewidth=1)


def subdivisions(low: float, high: float) -> tuple[float, ...]:
    """Return which multiples of powers of ten to write along a logarithmic axis."""
    span = high / low
    return (1.0,) if span > 300 else (1.0, 3.0) if span > 20 else (1.0, 2.0, 5.0)


def steps(axis: Axis, values: Sequence[int], room: int) -> dict[int, float]:
    """Lay out the axis along which a scenario grows, and return where each value is.

    Args:
        axis: The horizontal one.
        values: Those that were measured, in order.
        room: How many of them can be written.
    """
    places = {value: float(value) for value in values}
    if values[0] == 0:  # the reference state, whose place is not told
        places = {value: float(place) for place, value in enumerate(values)}
        _set_limits(axis, -0.3, len(values) - 0.7)
    elif is_wide(values):
        _set_scale(axis, "log")
        margin = (values[-1] / values[0]) ** 0.06
        _set_limits(axis, values[0] / margin, values[-1] * margin)
    else:
        margin = (values[-1] - values[0]) * 0.06
        _set_limits(axis, values[0] - margin, values[-1] + margin)
    shown = min(room, len(values))
    written = {values[place * (len(values) - 1) // (shown - 1 or 1)] for place in range(shown)}
    names = {places[value]: step_name(value) for value in sorted(written)}
    axis.set_major_locator(FixedLocator(list(names)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda place, _: names.get(place, "")))
    return places


def step_name(value: int) -> str:
    """Write a value of an axis."""
    if value == 0:
        return "ref."
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if value >= size and value % (size // 10) == 0:
            return f"{value / size:g}{unit}"
    return str(value)


def short(figure: str) -> str:
    """Return a figure without the zeros that say nothing: `1.00k` as `1k`."""
    return _NUMBER.sub(lambda number: f"{float(number[0]):g}", figure)


def _set_scale(axis: Axis, name: str) -> None:
    (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)(name)


def _set_limits(axis: Axis, low: float, high: float) -> None:
    (axis.axes.set_xlim if axis is axis.axes.xaxis else axis.axes.set_ylim)(low, high)
