"""What a reader should know of a run before looking at its figures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

from benchmarks.figures import share
from benchmarks.files import Report
from benchmarks.page.tables import Table
from benchmarks.page.verdicts import Standing, Verdict, setting_name, verdict
from benchmarks.results import Row


@dataclass(frozen=True, slots=True)
class Fact:
    """A line of the head."""

    name: str
    value: str


def facts(report: Report) -> list[Fact]:
    """Tell when, on what and how it was measured, as far as the report says so."""
    environment, options = report.environment, report.options
    found = {
        "Measured": _when(environment),
        "Processor": _processor(environment),
        "System": _words(environment, "system", "machine"),
        "Load before": " ".join(f"{load:.2f}" for load in environment.get("load_average", ())),
        "Python": _words(environment, "implementation", "python"),
        "Packages": _packages(environment.get("versions", {})),
        "Server": str(environment.get("server", "")),
        "Files on": str(environment.get("file_system", "")),
        "Rounds": _rounds(report),
        "Asked for": _asked(options),
        "Measurements": _amount(report),
    }
    return [Fact(name, value) for name, value in found.items() if value]


def chance(rounds: int) -> str:
    """Say how often that many rounds of two equals would agree on one of them by chance."""
    return share(2.0 ** (1 - rounds))


def verdict_counts(standings: Sequence[Standing]) -> Counter[Verdict]:
    """Count what the ratios of ours to the fastest other say."""
    return Counter(
        verdict(one.ratio) for standing in standings for one in standing.comparisons if one.ratio
    )


def collector_table(rows: Sequence[Row]) -> Table:
    """Write what part of the time the garbage collector took, the most first."""
    by_subject: dict[str, list[Row]] = {}
    for row in rows:
        by_subject.setdefault(row.subject, []).append(row)
    cases = [row.case for row in rows]
    lines = []
    for subject, own in by_subject.items():
        worst = max(own, key=lambda row: row.collector_share)
        typical = median(row.collector_share for row in own)
        lines.append((worst.collector_share, subject, typical, setting_name(worst, cases)))
    lines.sort(key=lambda line: -line[0])
    return Table(
        names=("subject",),
        figures=("median of its rows", "most", "where"),
        lines=tuple((name, share(half), share(most), where) for most, name, half, where in lines),
    )


def _when(environment: Mapping[str, Any]) -> str:
    words = []
    if started := environment.get("started"):
        words.append(datetime.fromisoformat(started).strftime("%Y-%m-%d %H:%M %Z").strip())
    if seconds := environment.get("seconds"):
        words.append(f"in {seconds / 60:.1f} minutes" if seconds >= 100 else f"in {seconds:.0f} s")
    return " ".join(words)


def _processor(environment: Mapping[str, Any]) -> str:
    number, name = environment.get("processors"), environment.get("processor")
    return " x ".join(str(word) for word in (number, name) if word)


def _packages(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _words(environment: Mapping[str, Any], *names: str) -> str:
    return " ".join(str(environment[name]) for name in names if environment.get(name))


def _rounds(report: Report) -> str:
    number = max((one.round for one in report.measurements), default=0)
    seconds = report.options.get("scale", {}).get("seconds")
    if not number or not seconds:
        return ""
    most = "" if report.complete else "up to "
    return f"{most}{number} of {seconds:g} s each, interleaved; each measurement a fresh process"


def _asked(options: Mapping[str, Any]) -> str:
    scale = options.get("scale", {})
    named = {
        **{name: options.get(name) for name in ("backends", "scenarios")},
        **{name: scale.get(name) for name in ("tasks", "sizes", "tokens", "processes")},
    }
    words = [f"{name} {', '.join(map(str, values))}" for name, values in named.items() if values]
    if options.get("peers"):
        words.append("with peers and all variants")
    if scale.get("full"):
        words.append("the large numbers")
    return "; ".join(words) or "the usual run"


def _amount(report: Report) -> str:
    failed = sum(not failure.base for failure in report.failures)
    measured = sum(not measured.base for measured in report.measurements)
    return f"{measured:,}" + (f", and {failed} that failed" if failed else "")
