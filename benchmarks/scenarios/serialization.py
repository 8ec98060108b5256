"""Encode and decode of a state by itself."""

from collections.abc import Sequence
from time import perf_counter, process_time

from benchmarks.measure import LATENCY, MAX_SAMPLES, THROUGHPUT, WARM_UP, latency_of
from benchmarks.resources import collector_time
from benchmarks.results import Case, Point, Row
from benchmarks.scenario import Scale, Scenario
from benchmarks.states import Cart, cart
from benchmarks.subject import Codec, Subject


class RoundTripError(Exception):
    """What came back is not what went in."""


def _cases(scale: Scale) -> list[Case]:
    return [Case("serialization", 1, 1, scale.seconds, size) for size in scale.sizes or (0,)]


def _measure(subject: Subject, case: Case) -> list[Point]:
    assert subject.codec is not None
    codec = subject.codec()
    state = cart(case.size)
    data = codec.encode(state)
    if codec.decode(data) != state:
        raise RoundTripError(f"{subject.name} does not give the state back")

    per_batch = _warm_up(codec, state, case.seconds * WARM_UP)
    operations = 0
    with collector_time() as collected:
        cpu_started, started = process_time(), perf_counter()
        while (elapsed := perf_counter() - started) < case.seconds * THROUGHPUT:
            _round_trips(codec, state, per_batch)
            operations += per_batch
        cpu = process_time() - cpu_started
    return [
        Point(
            operations,
            elapsed,
            cpu,
            latency_of(_sample(codec, state, case.seconds * LATENCY)),
            collector_seconds=collected(),
            extra={"bytes": len(data)},
        )
    ]


def _round_trips(codec: Codec, state: Cart, count: int) -> None:
    encode, decode = codec
    for _ in range(count):
        decode(encode(state))


def _warm_up(codec: Codec, state: Cart, seconds: float) -> int:
    """Run growing batches for a while; return the size of one that takes a tenth of it."""
    count = 1
    while True:
        started = perf_counter()
        _round_trips(codec, state, count)
        elapsed = perf_counter() - started
        if elapsed > seconds / 2:
            return max(1, count // 5)
        count *= 2


def _sample(codec: Codec, state: Cart, seconds: float) -> list[float]:
    encode, decode = codec
    samples: list[float] = []
    deadline = perf_counter() + seconds
    while len(samples) < MAX_SAMPLES:
        started = perf_counter()
        decode(encode(state))
        now = perf_counter()
        samples.append(now - started)
        if now > deadline:
            break
    return samples


def _notes(rows: Sequence[Row]) -> list[str]:
    sizes = ", ".join(f"{row.subject} {row.extra['bytes']:g} bytes" for row in rows)
    return [f"serialization: encode and decode, to {sizes}."]


SCENARIO = Scenario(
    name="serialization",
    summary="encode and decode, with no backend",
    runs_on=lambda subject: subject.codec is not None,
    cases=_cases,
    measure=_measure,
    notes=_notes,
)
