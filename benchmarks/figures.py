"""How figures are written: three digits and a unit."""

from benchmarks.results import Ratio


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
