"""What the rounds found: medians, and the range that the plots show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from benchmarks.figures import count, duration
from benchmarks.results import Measurement, Point, Row
from benchmarks.summary import points_of


class Spread(NamedTuple):
    """A median over the rounds, and the extremes."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that each round has a figure of.

    Attributes:
        name: In words, with its unit.
        of: Take it from a point; None where there is none.
        write: Write a figure.
    """

    name: str
    of: Callable[[Point], float | None]
    write: Callable[[float], str]


def _latency(percentile: str) -> Quantity:
    def of(point: Point) -> float | None:
        return getattr(point.latency, percentile) if point.latency else None

    return Quantity(percentile, of, duration)


RATE = Quantity("operations per second", lambda point: point.rate, count)
BYTES = Quantity("bytes per token", lambda point: point.extra.get("bytes_per_token"), count)
PROCESS_BYTES = Quantity(
    "bytes per token in the process itself",
    lambda point: point.extra.get("process_bytes_per_token"),
    count,
)
LATENCIES = tuple(map(_latency, ("p50", "p99", "max")))


class Samples:
    """The points of a run, to be asked for by row.

    Args:
        measurements: Those of the run; what another checkout did is left out.
    """

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self._points = points_of(measurements)

    def spread(self, row: Row, quantity: Quantity) -> Spread | None:
        """Return what the rounds of a row found, None if none has a figure."""
        points = self._points.get((row.case, row.part, row.subject), {}).values()
        found = [figure for figure in map(quantity.of, points) if figure is not None]
        return Spread(median(found), min(found), max(found)) if found else None
