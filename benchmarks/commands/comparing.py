"""`compare`: what a change made faster or slower."""

from collections import Counter
from collections.abc import Iterator, Sequence

from benchmarks.comparison import (
    ITS_BASE,
    Change,
    Verdict,
    changes_between,
    changes_within,
    rounds_needed,
)
from benchmarks.exits import DONE, FAILED
from benchmarks.files import FileError, read_report
from benchmarks.options import CompareOptions
from benchmarks.table import Line, print_table, print_wrapped


def compare(options: CompareOptions) -> int:
    """Print what differs, and return the exit code: 1 if anything is slower.

    Raises:
        FileError: A file is not what `--json` writes, or the two have nothing in common.
    """
    after = read_report(options.after)
    if options.before is None:
        changes = changes_within(after, options.confidence)
        lacks = f"{options.after} holds no base: make it with --base DIR, or name two files"
    else:
        changes = changes_between(read_report(options.before), after, options.confidence)
        lacks = f"{options.before} and {options.after} have no case of ours in common"
    if not changes:
        raise FileError(lacks)
    return print_changes(changes, options.confidence, options.threshold)


def print_changes(changes: Sequence[Change], confidence: float, threshold: float) -> int:
    """Print changes, and return the exit code: 1 if one is slower."""
    verdicts = [
        change.interval.verdict(threshold) if change.interval else Verdict.UNTOLD
        for change in changes
    ]
    print_table(
        ("rounds", "ratio", "interval", "verdict", "beside"),
        [
            Line(change.case, change.part, _cells(change, verdict))
            for change, verdict in zip(changes, verdicts, strict=True)
        ],
    )
    for note in _notes(changes, verdicts, confidence, threshold):
        print_wrapped(note)
    return FAILED if Verdict.SLOWER in verdicts else DONE


def _cells(change: Change, verdict: Verdict) -> list[str]:
    value, limits = "-", "-"
    if interval := change.interval:
        value, limits = f"{interval.value:.3f}x", f"{interval.low:.3f}..{interval.high:.3f}"
    return [change.subject, str(change.rounds), value, limits, verdict, change.beside or "nothing"]


def _notes(
    changes: Sequence[Change], verdicts: Sequence[Verdict], confidence: float, threshold: float
) -> Iterator[str]:
    counts = Counter(verdicts)
    found = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    matters = f"{100 * threshold:g}%"
    yield (
        f"{found}. The ratio is that of the rates: below 1 is slower. Faster and slower are those "
        f"by {matters} and more whose {100 * confidence:g}% interval does not hold 1; the same, "
        f"those whose interval lies within {matters}. Of a hundred such intervals about "
        f"{100 * (1 - confidence):.0f} are wrong by chance."
    )
    if Verdict.UNTOLD in verdicts:
        needed = rounds_needed(confidence, pairs=changes[0].beside == ITS_BASE)
        yield f"Not told: more --repeats (at least {needed}) or more --seconds narrow an interval."
    if not all(change.beside for change in changes):
        yield (
            "Beside nothing: no floor or peer ran with it, so the machine's own moods count too. "
            "--base measures two checkouts in turn."
        )
