"""Tells a change of speed from noise.

A machine's speed moves, from minute to minute and by far more than what a change makes. So no rate
is compared with a rate of another time: what is compared is, for each round,

- within one run with `--base`, a subject with the same one of the other checkout, which ran right
  before or after it: the pairs of a signed-rank test;
- between two runs, a subject's rate divided by that of the floors and peers of its round, which
  neither change has touched: the two samples of a rank-sum test. Where there is no such yardstick
  the rates themselves are compared, and the result says so.

The change is the Hodges-Lehmann estimate, and its confidence interval the one that inverts the
test (Hollander, Wolfe, Chicken: Nonparametric Statistical Methods, chapters 3 and 4). It asks
nothing of the noise but that it is alike on both sides. A wild round hardly moves the estimate,
though of a dozen it widens the interval. However alike they are, a few rounds cannot be sure of
anything: see `rounds_needed`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations_with_replacement, count, product
from statistics import fmean, median

from benchmarks.files import Report
from benchmarks.results import Case
from benchmarks.subject import Role
from benchmarks.summary import Key, Points, points_of

ITS_BASE = "its base"
"""What a subject stood beside in a run with `--base`."""


class Verdict(StrEnum):
    """What a comparison says."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    UNTOLD = "not told"


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio, and the least and the most that it may be."""

    value: float
    low: float
    high: float

    def verdict(self, threshold: float) -> Verdict:
        """Judge the ratio.

        Args:
            threshold: The least change that matters: 0.05 for one of 5%.

        Returns:
            Faster or slower if it is so by at least the threshold, and the interval does not
            hold 1; the same if the whole interval is nearer to 1 than the threshold; else not told.
        """
        least, most = 1 / (1 + threshold), 1 + threshold
        if self.value >= most and self.low > 1:
            return Verdict.FASTER
        if self.value <= least and self.high < 1:
            return Verdict.SLOWER
        if least <= self.low and self.high <= most:
            return Verdict.SAME
        return Verdict.UNTOLD


@dataclass(frozen=True, slots=True)
class Change:
    """How fast one subject was in one case, as a multiple of what it was before.

    Attributes:
        case: What was measured.
        part: Of it.
        subject: What it was measured on.
        rounds: How many rounds there are, of the file that has fewer.
        interval: None if there are too few rounds for one.
        beside: What each rate was divided by; empty for nothing.
    """

    case: Case
    part: str
    subject: str
    rounds: int
    interval: Interval | None
    beside: str


def changes_within(report: Report, confidence: float) -> list[Change]:
    """Compare ours with those of the other checkout, in one run with `--base`."""
    after, before = (points_of(report.measurements, base=base) for base in (False, True))
    changes = []
    for key, base in before.items():
        ours = after.get(key, {})
        both = ours.keys() & base.keys()
        logs = [math.log(ours[number].rate / base[number].rate) for number in both]
        changes.append(Change(*key, len(logs), paired(logs, confidence), ITS_BASE))
    return changes


def changes_between(before: Report, after: Report, confidence: float) -> list[Change]:
    """Compare what is ours in both of two runs."""
    first, second = (points_of(report.measurements) for report in (before, after))
    changes = []
    for row in after.rows:
        key = (row.case, row.part, row.subject)
        if row.role != Role.OURS or key not in first:
            continue
        rivals = [ratio.against for ratio in (row.versus_floor, row.versus_peer) if ratio]
        names = [name for name in rivals if (row.case, row.part, name) in first]
        beside = [(row.case, row.part, name) for name in names]
        old, new = (list(_relative(points, key, beside)) for points in (first, second))
        interval = unpaired(old, new, confidence)
        changes.append(Change(*key, min(len(old), len(new)), interval, ", ".join(names)))
    return changes


def _relative(points: Mapping[Key, Points], key: Key, beside: Sequence[Key]) -> Iterator[float]:
    """Return for each round the logarithm of a rate, divided by the mean of those beside it."""
    for number, point in points[key].items():
        others = [points[other][number].rate for other in beside if number in points[other]]
        if len(others) == len(beside):
            yield math.log(point.rate) - (fmean(map(math.log, others)) if others else 0.0)


def paired(logs: Sequence[float], confidence: float) -> Interval | None:
    """Estimate a ratio from the logarithms of the ratios of pairs; None if they are too few."""
    means = sorted((a + b) / 2 for a, b in combinations_with_replacement(logs, 2))
    return _interval(means, _signed_rank_counts(len(logs)), confidence)


def unpaired(before: Sequence[float], after: Sequence[float], confidence: float) -> Interval | None:
    """Estimate a ratio from the logarithms of two samples; None if they are too small."""
    differences = sorted(new - old for old, new in product(before, after))
    return _interval(differences, _rank_sum_counts(len(before), len(after)), confidence)


def rounds_needed(confidence: float, *, pairs: bool) -> int:
    """Return how many rounds it takes to give an interval at all, of each file if not in pairs."""
    for rounds in count(2):
        counts = _signed_rank_counts(rounds) if pairs else _rank_sum_counts(rounds, rounds)
        if _cut(counts, confidence):
            return rounds
    raise AssertionError  # count() does not end


def _interval(ranked: Sequence[float], counts: Sequence[int], confidence: float) -> Interval | None:
    cut = _cut(counts, confidence)
    if not ranked or not cut:
        return None
    return Interval(*map(math.exp, (median(ranked), ranked[cut - 1], ranked[-cut])))


def _cut(counts: Sequence[int], confidence: float) -> int:
    """Return how many of the ranked values may be left out on either side.

    Args:
        counts: How many of all equally likely orders have 0, 1, 2, ... values below the truth.
        confidence: Of the interval between the two.
    """
    spare = sum(counts) * (1 - confidence) / 2
    for cut, orders in enumerate(counts):
        spare -= orders
        if spare < 0:
            return cut
    return len(counts)


def _signed_rank_counts(size: int) -> list[int]:
    """Count the subsets of the ranks 1 to `size` by their sum."""
    counts = [1]
    for rank in range(1, size + 1):
        counts = _times_power(counts, rank, 1)
    return counts


def _rank_sum_counts(one: int, other: int) -> list[int]:
    """Count the ways to order two samples by how many pairs of one of each are the wrong way round.

    They are the coefficients of the Gaussian binomial: the product of (1 - x^(one + i)) over that
    of (1 - x^i), for i from 1 to `other`.
    """
    counts = [1]
    for i in range(1, other + 1):
        counts = _times_power(counts, one + i, -1)
        for place in range(i, len(counts)):
            counts[place] += counts[place - i]
    return counts[: one * other + 1]


def _times_power(counts: Sequence[int], power: int, sign: int) -> list[int]:
    """Multiply a polynomial by 1 + sign * x^power."""
    widened = [*counts, *[0] * power]
    for place, number in enumerate(counts):
        widened[place + power] += sign * number
    return widened
