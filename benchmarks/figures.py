"""How figures are written: three digits and a unit."""

from collections.abc import Callable

from benchmarks.results import Ratio, Row


def digits(value: float) -> str:
    """Write a number below 1000 in three digits."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def _scaled(value: float) -> tuple[float, str]:
    for unit in ("", "k", "M"):
        if value < 999.5:
            return value, unit
        value /= 1000
    return value, "G"


def count(value: float) -> str:
    """Write a number as `1.95k` or `210k`."""
    value, unit = _scaled(value)
    return digits(value) + unit


def span(low: float, high: float) -> str:
    """Write two numbers with one unit, as `98.2..104k`."""
    scaled, unit = _scaled(high)
    return f"{digits(low * scaled / high)}..{digits(scaled)}{unit}"


def duration(seconds: float) -> str:
    """Write a time as `1.95us` or `210ms`."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return digits(seconds / size) + unit
    return digits(seconds) + "s"


def share(value: float) -> str:
    """Write a part of a whole as `0.3%`."""
    return f"{value * 100:.1f}%"


def factor(value: float) -> str:
    """Write a ratio, which may be far from 1 on either side."""
    if value < 0.0995:
        return f"{value:.2g}"
    return digits(value) if value < 999.5 else f"{value:,.0f}"


def times(ratio: Ratio | None) -> str:
    """Write a ratio as `1.95x`, and as `~1.02x` if the rounds do not agree on who is faster."""
    if ratio is None:
        return "-"
    return f"{'' if ratio.told else '~'}{factor(ratio.value)}x"


# What `cells` writes, the subject's name aside.
MEASURES = ("op/s", "min..max", "p50", "p99", "max", "CPU/op", "GC", "memory", "/peer", "/floor")


def cells(row: Row, ratio: Callable[[Ratio | None], str]) -> tuple[str, ...]:
    """Write what was measured, as in every table, behind the subject's name.

    Args:
        row: What was measured.
        ratio: Writes how it is beside the peer, and the floor.
    """
    latency = (row.latency.p50, row.latency.p99, row.latency.max) if row.latency else ()
    growth = row.memory_growth
    return (
        row.subject,
        count(row.rate),
        span(row.rate_min, row.rate_max),
        *([duration(time) for time in latency] or ["-"] * 3),
        duration(row.cpu_per_operation),
        share(row.collector_share),
        "-" if growth is None else f"{digits(growth / 2**20)}M",
        ratio(row.versus_peer),
        ratio(row.versus_floor),
    )
