"""Check the history of a register: is there one order that explains all that was seen?

This is the search of Wing and Gong: take any operation that began before all those not taken yet
have returned, if it fits the value that the ones taken have left; go back when none fits. Which
ones were taken, with the value they left, is remembered, so that no state is looked into twice.

What may or may not have happened would have the search try both at any later time. That is not
needed here, because each value is written once. An uncertain write whose value nobody has seen
can be left out of any order that has it: whatever comes next overwrites it unseen. One whose
value was seen has happened, and before whoever saw it returned. So `definite` turns a history
into one without uncertain operations, and the search has short intervals only.

Once each value is written once, two more things hold, and keep the search from going back much:
a value must not be overwritten while somebody has yet to see it, and a read that fits now may as
well be taken now.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from chaos.history import Kind, Operation, Outcome

INITIAL = 0
STEPS = 2_000_000
SECONDS = 60.0


class Step(NamedTuple):
    """An operation that has happened.

    Attributes:
        invoked: When it began.
        returned: When it ended, or the end of the time in which it must have happened.
        seen: The value that it found; None if it did not look.
        value: The value that it left; None if it changed nothing.
    """

    invoked: int
    returned: int
    seen: int | None
    value: int | None


class Verdict(StrEnum):
    """Whether there is such an order."""

    LINEARIZABLE = "linearizable"
    VIOLATED = "violated"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class RegisterVerdict:
    """What was found.

    Attributes:
        verdict: Whether there is an order.
        steps: How many the search has taken.
        reason: What is wrong, in words.
    """

    verdict: Verdict
    steps: int = 0
    reason: str = ""


def check_register(
    operations: Iterable[Operation],
    final: int,
    *,
    steps: int = STEPS,
    seconds: float = SECONDS,
) -> RegisterVerdict:
    """Check a history against the value that was found at its end.

    Args:
        operations: The history.
        final: The value, seen after all that has returned.
        steps: After how many steps of the search it is undecided.
        seconds: After how many seconds.
    """
    history = list(operations)
    times = [one.invoked for one in history] + [one.returned for one in history if one.returned]
    end = max(times, default=0) + 1
    history.append(
        Operation(-1, Kind.READ, -1, end, returned=end + 1, outcome=Outcome.OK, seen=final)
    )
    found, reason = definite(history)
    if reason:
        return RegisterVerdict(Verdict.VIOLATED, 0, reason)
    return linearize(found, INITIAL, steps=steps, seconds=seconds)


def definite(history: Sequence[Operation]) -> tuple[list[Step], str]:
    """Leave out what has not happened; return the rest, and what is wrong at first sight."""
    found: list[Step] = []
    writers: dict[int, Operation] = {}
    for one in history:
        if one.value is not None and one.outcome in (Outcome.OK, Outcome.UNCERTAIN):
            if one.value in writers:
                raise ValueError(f"{one.value} is written twice: a history has unique values")
            writers[one.value] = one
    seen_by: dict[int, int] = {}  # until when a value must have been there
    pending = []
    for one in history:
        if one.outcome is Outcome.OK and one.returned is not None:
            seen = None if one.kind is Kind.WRITE else one.seen
            found.append(Step(one.invoked, one.returned, seen, one.value))
            if seen is not None:
                pending.append((seen, one.returned))
    # An uncertain change that has happened has seen a value itself.
    while pending:
        value, returned = pending.pop()
        if value == INITIAL or (value in seen_by and seen_by[value] <= returned):
            continue
        seen_by[value] = returned
        writer = writers.get(value)
        if writer is None:
            return found, f"{value} was seen, which nobody has written, or only with a failure"
        if writer.invoked > returned:
            return found, f"{value} was seen before it was written"
        if writer.outcome is Outcome.UNCERTAIN and writer.kind is Kind.CHANGE:
            assert writer.seen is not None
            pending.append((writer.seen, returned))
    for value, returned in seen_by.items():
        writer = writers[value]
        if writer.outcome is Outcome.UNCERTAIN:
            seen = None if writer.kind is Kind.WRITE else writer.seen
            found.append(Step(writer.invoked, returned, seen, value))
    return found, ""


class _State(NamedTuple):
    """What was taken: all before `first`, and those whose bit is set, counted from there."""

    first: int
    taken: int
    value: int


def linearize(
    steps_found: Iterable[Step],
    initial: int,
    *,
    steps: int = STEPS,
    seconds: float = SECONDS,
) -> RegisterVerdict:
    """Search for an order."""
    history = sorted(steps_found, key=lambda one: (one.invoked, one.returned))
    written = [one.value for one in history if one.value is not None]
    unique = len({*written, initial}) == len(written) + 1
    # How many have yet to see each value.
    left = Counter(one.seen for one in history if one.seen is not None)
    end = time.monotonic() + seconds
    state = _State(0, 0, initial)
    visited = {state}
    # Each entry: where we were, the operation taken from there, and what else is to be tried.
    path: list[tuple[_State, int, list[int]]] = []
    choices = _choices(history, state, left, unique)
    count = furthest = 0
    while state.first < len(history):
        if not choices:
            if not path:
                return RegisterVerdict(Verdict.VIOLATED, count, _reason(history, furthest))
            state, taken, choices = path.pop()
            if (seen := history[taken].seen) is not None:
                left[seen] += 1
            continue
        count += 1
        if count > steps or (count % 1024 == 0 and time.monotonic() > end):
            return RegisterVerdict(Verdict.UNDECIDED, count)
        choice = choices.pop()
        after = _after(history, state, choice)
        if after in visited:
            continue
        visited.add(after)
        path.append((state, choice, choices))
        if (seen := history[choice].seen) is not None:
            left[seen] -= 1
        state = after
        furthest = max(furthest, state.first)
        choices = _choices(history, state, left, unique)
    return RegisterVerdict(Verdict.LINEARIZABLE, count)


def _after(history: Sequence[Step], state: _State, choice: int) -> _State:
    first, taken, value = state
    taken |= 1 << (choice - first)
    while taken & 1:
        taken >>= 1
        first += 1
    new = history[choice].value
    return _State(first, taken, value if new is None else new)


def _choices(history: Sequence[Step], state: _State, left: Counter[int], unique: bool) -> list[int]:
    """Return which operations may come next, the most promising one last."""
    first, taken, value = state
    found = []
    limit: float = float("inf")  # when the first of those not taken returned
    for number in range(first, len(history)):
        one = history[number]
        if one.invoked > limit:
            break
        if taken >> (number - first) & 1:
            continue
        limit = min(limit, one.returned)
        if one.seen is not None and one.seen != value:
            continue
        if one.value is None:
            return [number]  # to see what is there stands in nobody's way
        if unique and left[value] > (one.seen is not None):
            continue  # somebody else has yet to see what this would overwrite
        found.append(number)
    found.sort(key=lambda number: -history[number].returned)
    return found


def _reason(history: Sequence[Step], furthest: int) -> str:
    """Tell where the search got stuck."""
    around = history[max(0, furthest - 3) : furthest + 4]
    told = ", ".join(_told(one, history[0].invoked) for one in around)
    return f"no order explains what was seen around operation {furthest}: {told}"


def _told(one: Step, start: int) -> str:
    what = []
    if one.seen is not None:
        what.append(f"saw {one.seen}")
    if one.value is not None:
        what.append(f"wrote {one.value}")
    times = [(moment - start) / 1e9 for moment in (one.invoked, one.returned)]
    return f"[{times[0]:.4f}..{times[1]:.4f} s {' '.join(what)}]"
