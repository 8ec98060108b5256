"""The tables below the plots: the figures of the printed table, and the range of the ratios."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.figures import MEASURES, cells, count, digits, duration, factor
from benchmarks.page.charts import Chart
from benchmarks.page.verdicts import Standing
from benchmarks.results import Ratio, Row

_EXTRAS: dict[str, tuple[str, Callable[[float], str]]] = {
    "bytes_per_token": ("bytes/token", count),
    "process_bytes_per_token": ("of the process", count),
    "allocated_per_token": ("allocated", count),
    "files_per_token": ("files/token", digits),
    "commands": ("commands/op", digits),
    "reads": ("reads/op", digits),
    "server_cpu": ("server CPU/op", duration),
}
"""How facts of single scenarios are written; any other one is a number by its own name."""


@dataclass(frozen=True, slots=True)
class Table:
    """Text to be laid out.

    Attributes:
        names: The headings of the first columns, whose cells are names.
        figures: Those of the other columns, whose cells are figures.
        lines: The cells.
    """

    names: tuple[str, ...]
    figures: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def chart_table(chart: Chart) -> Table:
    """Write all figures of a chart."""
    extras = list(dict.fromkeys(name for row in chart.rows for name in _numbers(row.extra)))
    named = [_EXTRAS.get(name, (name.replace("_", " "), count)) for name in extras]
    return Table(
        names=(chart.axis, "subject") if chart.axis else ("subject",),
        figures=(*MEASURES, *(heading for heading, _ in named)),
        lines=tuple(
            (
                *((_value(chart.axis, row),) if chart.axis else ()),
                *cells(row, _ratio),
                *(
                    write(row.extra[name]) if name in row.extra else "-"
                    for name, (_, write) in zip(extras, named, strict=True)
                ),
            )
            for row in chart.rows
        ),
    )


def standing_table(standing: Standing) -> Table:
    """Write all comparisons of a family, a column for each of the others."""
    lines = []
    for one in standing.comparisons:
        ratios = {ratio.against: _with_range(ratio) for ratio in one.ratios}
        cells = (ratios.get(other, "-") for other in standing.others)
        lines.append((one.setting, one.row.subject, *cells))
    return Table(
        names=("setting", "subject"),
        figures=tuple(f"/{other}" for other in standing.others),
        lines=tuple(lines),
    )


def _numbers(extra: Mapping[str, Any]) -> list[str]:
    return [name for name, value in extra.items() if type(value) in (int, float)]


def _value(axis: str, row: Row) -> str:
    value: int = getattr(row.case, axis)
    return f"{value:,}" if value else "ref."


def _ratio(ratio: Ratio | None) -> str:
    return f"{_with_range(ratio)} {ratio.against}" if ratio else "-"


def _with_range(ratio: Ratio) -> str:
    mark = "" if ratio.told else "~"
    return f"{mark}{factor(ratio.value)}x ({factor(ratio.low)}..{factor(ratio.high)})"
