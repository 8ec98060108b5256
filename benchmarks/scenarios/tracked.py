"""The cost of a change with few and with many tokens held.

One process does all three parts, in this order: changes of the only 1,000 tokens, changes of the
same 1,000 with many others held, changes spread over all of them. The first ratio shows what the
bookkeeping costs as it grows, the second adds the misses of the processor's caches. Every token
has been changed once before, so that nothing made at a first change is timed.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.measure import (
    NEVER,
    Timing,
    build_tokens,
    check_changes,
    opener,
    time_operation,
)
from benchmarks.resources import peak_memory
from benchmarks.results import Case, Point, Row
from benchmarks.scenario import Scale, Scenario
from benchmarks.states import Counter
from benchmarks.subject import Subject

FEW = 1_000

ALONE, HOT, ALL = "alone", "hot", "all"


def _cases(scale: Scale) -> list[Case]:
    tokens = 300_000 if scale.full else 20_000
    return replace(scale, tasks=None).cases("tracked", tokens=(tokens,))


def _measure(subject: Subject, case: Case) -> list[Point]:
    return asyncio.run(_changes(subject, case))


async def _changes(subject: Subject, case: Case) -> list[Point]:
    async with opener(subject)(NEVER) as store:
        tokens = build_tokens(store, case.tokens, Counter)
        few, others = tokens[:FEW], tokens[FEW:]
        spread = random.Random(0).sample(tokens, len(tokens))  # noqa: S311
        before = peak_memory()

        def point(part: str, timing: Timing) -> Point:
            grown = alone.rate / timing.rate
            return timing.point(
                part=part, memory_growth=peak_memory() - before, extra={"grown": grown}
            )

        async def add(tokens: Sequence[Any]) -> None:
            await store.fill(tokens, Counter)
            await store.change(tokens)

        await add(few)
        alone = await time_operation(store.change, few, case.tasks, case.seconds)
        points = [point(ALONE, alone)]
        await add(others)
        hot = await time_operation(store.change, few, case.tasks, case.seconds)
        points.append(point(HOT, hot))
        changes = len(few) + alone.operations_in_all + hot.operations_in_all
        await check_changes(store, few, changes, start=0)
        spread_out = await time_operation(store.change, spread, case.tasks, case.seconds)
        points.append(point(ALL, spread_out))
        return points


def _notes(rows: Sequence[Row]) -> list[str]:
    times = {(row.subject, row.part): row.extra["grown"] for row in rows}
    grown = ", ".join(
        f"{subject} x{times[subject, HOT]:.2f} and x{times[subject, ALL]:.2f}"
        for subject, part in times
        if part == ALL
    )
    return [
        f"tracked: a change of {FEW:,} hot tokens and of all, with {rows[0].case.tokens:,} held, "
        f"costs as many times what it costs with {FEW:,} held: {grown}."
    ]


SCENARIO = Scenario(
    name="tracked",
    summary="a change with 20,000 tokens held (300,000 with --full) beside 1,000",
    runs_on=lambda subject: subject.open_store is not None,  # for the others there is `stored`
    slow=True,
    cases=_cases,
    measure=_measure,
    notes=_notes,
)
