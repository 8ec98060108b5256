"""The report as one HTML file, with plots of throughput and latency over time.

It loads nothing and runs no script. Colours follow the reader's light or dark scheme.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chaos.analysis import Bin, Figures
from chaos.harness import Setting
from chaos.plan import FaultKind
from chaos.report import NOTES, describe, remarks, rows_of

_LEFT, _RIGHT, _WIDTH, _HEIGHT, _LANE = 90, 10, 1100, 150, 14

_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --back: #ffffff; --faint: #d8d8d8;
  --one: #1464a0; --two: #b3540b; --fault: #a3193c; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --back: #161616; --faint: #444444;
  --one: #6fb7ee; --two: #f0a35e; --fault: #ff7a9c; } }
body { color: var(--text); background: var(--back); font: 15px/1.45 system-ui, sans-serif;
  max-width: 1120px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; }
th, td { padding: 0.15em 0.8em; border-bottom: 1px solid var(--faint); text-align: right; }
th:first-child, td:first-child { text-align: left; white-space: pre; }
svg { width: 100%; height: auto; display: block; margin: 0.4em 0 1.2em; }
svg text { fill: var(--text); font-size: 11px; }
.axis { stroke: var(--faint); stroke-width: 1; }
.one { stroke: var(--one); fill: none; stroke-width: 1.3; }
.two { stroke: var(--two); fill: none; stroke-width: 1; }
.fault { fill: var(--fault); }
.keyone { fill: var(--one) !important; } .keytwo { fill: var(--two) !important; }
"""


def write_page(
    path: Path, figures: Sequence[Figures], setting: Setting, environment: Mapping[str, Any]
) -> None:
    """Write the page."""
    heads = "".join(f"<th>{html.escape(one.subject)}</th>" for one in figures)
    body = "".join(
        f"<tr><td>{html.escape(heading)}</td>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>\n"
        for heading, cells in rows_of(figures)
    )
    notes = "".join(
        f"<p>{html.escape(text)}</p>\n" for text in (*NOTES, describe(setting, environment))
    )
    said = "".join(f"<li>{html.escape(text)}</li>\n" for text in remarks(figures))
    plots = "".join(_plots(one) for one in figures)
    path.write_text(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>A run of the chaos harness</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>A run of the chaos harness</h1>\n<table>\n<tr><th></th>{heads}</tr>\n{body}</table>\n"
        f"<ul>\n{said}</ul>\n{notes}{plots}</body>\n</html>\n",
        encoding="utf-8",
    )


def _plots(one: Figures) -> str:
    """Draw throughput, latency, and a lane for each kind of fault, on one axis of time."""
    end = max([one_bin.at for one_bin in one.bins] + [mark.ended for mark in one.marks], default=1)
    kinds = [kind for kind in FaultKind if any(mark.kind == kind for mark in one.marks)]

    def across(seconds: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * seconds / end

    highest = max((one_bin.rate for one_bin in one.bins), default=1) or 1
    rate = _path(one.bins, across, lambda b: _HEIGHT - (_HEIGHT - 20) * b.rate / highest, one.width)
    answered = [one_bin for one_bin in one.bins if one_bin.rate]
    slow = _path(answered, across, lambda b: 2 * _HEIGHT - _level(b.p99), one.width)
    usual = _path(answered, across, lambda b: 2 * _HEIGHT - _level(b.median), one.width)
    parts = [
        f'<text x="0" y="14" class="keyone">operations/s</text><text x="{_LEFT - 6}" y="24" '
        f'text-anchor="end">{highest:.0f}</text>',
        f'<text x="0" y="{_HEIGHT + 22}" class="keyone">median</text>'
        f'<text x="0" y="{_HEIGHT + 36}" class="keytwo">p99</text>',
        f'<path class="one" d="{rate}"/><path class="two" d="{slow}"/>'
        f'<path class="one" d="{usual}"/>',
    ]
    parts += [_line(height) for height in (_HEIGHT, 2 * _HEIGHT)]
    parts += [
        f'<text x="{_LEFT - 6}" y="{2 * _HEIGHT - _level(level) + 4:.0f}" text-anchor="end">{name}'
        f"</text>{_line(2 * _HEIGHT - _level(level))}"
        for level, name in ((0.001, "1 ms"), (0.01, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"))
    ]
    for lane, kind in enumerate(kinds):
        top = 2 * _HEIGHT + 12 + lane * _LANE
        parts.append(f'<text x="0" y="{top + 9}">{kind}</text>')
        parts += [
            f'<rect class="fault" x="{across(mark.begun):.1f}" y="{top}" height="{_LANE - 4}" '
            f'width="{max(1.2, across(mark.ended) - across(mark.begun)):.1f}">'
            f"<title>{kind}, {mark.begun:.2f} to {mark.ended:.2f} s</title></rect>"
            for mark in one.marks
            if mark.kind == kind
        ]
    bottom = 2 * _HEIGHT + 24 + len(kinds) * _LANE
    step = _step(end)
    parts += [
        f'<text x="{across(number * step):.1f}" y="{bottom}" text-anchor="middle">'
        f"{number * step:g} s</text>"
        for number in range(int(end / step) + 1)
    ]
    label = f"{html.escape(one.subject)}: throughput, latency and faults over time"
    return (
        f'<h2>{html.escape(one.subject)}</h2>\n<svg viewBox="0 0 {_WIDTH} {bottom + 6}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>\n'
    )


def _line(height: float) -> str:
    return f'<path class="axis" d="M{_LEFT} {height:.1f}H{_WIDTH - _RIGHT}"/>'


def _level(seconds: float) -> float:
    """Return the height of a time, on a logarithmic axis from 0.1 ms to 10 s."""
    decades = math.log10(max(seconds, 0.0001)) + 4
    return min(decades, 5) / 5 * (_HEIGHT - 20)


def _path(
    bins: Sequence[Bin],
    across: Callable[[float], float],
    height: Callable[[Bin], float],
    width: float,
) -> str:
    """Draw a line, with gaps where there is no bin, as between rounds."""
    parts = []
    last = -math.inf
    for one in bins:
        move = "L" if one.at - last < 1.5 * width else "M"
        parts.append(f"{move}{across(one.at):.1f} {height(one):.1f}")
        last = one.at
    return "".join(parts)


def _step(seconds: float) -> float:
    for step in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800):
        if seconds / step <= 12:
            return step
    return 3600 * math.ceil(seconds / 3600 / 12)
