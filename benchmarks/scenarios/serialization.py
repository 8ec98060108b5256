"""Encode and decode of the reference state."""

from collections.abc import Sequence
from time import perf_counter, process_time

from benchmarks.measure import LATENCY, MAX_SAMPLES, THROUGHPUT, WARM_UP, latency_of
from benchmarks.results import Case, Point, Row
from benchmarks.scenario import Scale, Scenario
from benchmarks.states import reference_cart
from benchmarks.subject import Codec, Subject


class RoundTripError(Exception):
    """What came back is not what went in."""


def _cases(scale: Scale) -> list[Case]:
    return [Case("serialization", 1, 1, scale.seconds)]


def _measure(subject: Subject, case: Case) -> list[Point]:
    assert subject.codec is not None
    codec = subject.codec()
    data = codec.encode(reference_cart())
    if codec.decode(data) != reference_cart():
        raise RoundTripError(f"{subject.name} does not give the reference state back")

    per_batch = _warm_up(codec, case.seconds * WARM_UP)
    operations = 0
    cpu_started, started = process_time(), perf_counter()
    while (elapsed := perf_counter() - started) < case.seconds * THROUGHPUT:
        _round_trips(codec, per_batch)
        operations += per_batch
    cpu = process_time() - cpu_started
    samples = _sample(codec, case.seconds * LATENCY)
    return [Point(operations, elapsed, cpu, latency_of(samples), extra={"bytes": len(data)})]


def _round_trips(codec: Codec, count: int) -> None:
    encode, decode = codec
    state = reference_cart()
    for _ in range(count):
        decode(encode(state))


def _warm_up(codec: Codec, seconds: float) -> int:
    """Run growing batches for a while; return the size of one that takes a tenth of it."""
    count = 1
    while True:
        started = perf_counter()
        _round_trips(codec, count)
        elapsed = perf_counter() - started
        if elapsed > seconds / 2:
            return max(1, count // 5)
        count *= 2


def _sample(codec: Codec, seconds: float) -> list[float]:
    encode, decode = codec
    state = reference_cart()
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
    return [f"serialization: encode and decode of the reference state: {sizes}."]


SCENARIO = Scenario(
    name="serialization",
    summary="encode and decode of the reference state",
    runs_on=lambda subject: subject.codec is not None,
    cases=_cases,
    measure=_measure,
    notes=_notes,
)
