"""The figures that the README shows, from the committed result file.

`figures.md.jinja` is the text around them. What it can ask for are the public methods of `Figures`.
"""

from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.figures import digits, duration
from benchmarks.files import Report
from benchmarks.results import Point
from benchmarks.summary import Points, points_of, ratio_of

TEMPLATE = "figures.md.jinja"


class Figures:
    """Looks figures up by scenario, subject, and the axes that tell one case from another."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._points = points_of(report.measurements)

    def _found(self, scenario: str, subject: str, part: str, axes: dict[str, int]) -> Points:
        found = [
            points
            for (case, of_part, name), points in self._points.items()
            if (case.scenario, of_part, name) == (scenario, part, subject)
            and all(getattr(case, axis) == value for axis, value in axes.items())
        ]
        if len(found) != 1:
            raise LookupError(f"{len(found)} cases are {scenario} {part} {subject} {axes}")
        return found[0]

    def ratio(self, scenario: str, subject: str, *against: str, part: str = "", **axes: int) -> str:
        """Return how many times as fast a subject is as the fastest of others: `2.37x`."""
        ours = self._found(scenario, subject, part, axes)
        others = {name: self._found(scenario, name, part, axes) for name in against}
        fastest = max(others, key=lambda name: _rate(others[name]))
        ratio = ratio_of(fastest, ours, others[fastest])
        if ratio is None:
            raise LookupError(f"{subject} and {fastest} have no round of {scenario} in common")
        return f"{digits(ratio.value)}x"

    def rate(self, scenario: str, subject: str, *, part: str = "", **axes: int) -> str:
        """Return the operations per second in three digits: `12,500`."""
        value = _rate(self._found(scenario, subject, part, axes))
        unit = 10 ** max(0, len(str(int(value))) - 3)
        return f"{round(value / unit) * unit:,}"

    def slowest(self, scenario: str, subject: str, **axes: int) -> str:
        """Return the longest that an operation took, as the median of the rounds: `2.40 ms`."""
        points = self._found(scenario, subject, "", axes).values()
        text = duration(median(point.latency.max for point in points if point.latency))
        return text.rstrip("mus") + " " + text.lstrip("0123456789.")

    def extra(self, name: str, scenario: str, subject: str, **axes: int) -> str:
        """Return another figure of a scenario, as the median of the rounds: `1,040`."""
        points = self._found(scenario, subject, "", axes).values()
        return f"{median(point.extra[name] for point in points):,.0f}"

    @property
    def environment(self) -> Any:
        """Return what is known of the machine."""
        return self._report.environment

    @property
    def options(self) -> Any:
        """Return what was asked for."""
        return self._report.options


def _rate(points: Points) -> float:
    return median(map(_rate_of, points.values()))


def _rate_of(point: Point) -> float:
    return point.rate


def figures_text(report: Report) -> str:
    """Return the README's tables with the figures of a report.

    Raises:
        LookupError: The report lacks a figure, or has several that fit.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  # it is Markdown
        trim_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(figures=Figures(report)).strip()
