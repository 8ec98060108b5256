"""Check the history of a counter: each change adds one, so no two may leave the same value."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from chaos.history import Kind, Operation, Outcome


@dataclass
class CounterVerdict:
    """What became of the changes of one counter.

    Attributes:
        acknowledged: How many changes were.
        uncertain: How many may have happened.
        lost: How many acknowledged ones have left nothing.
        doubled: How many ones nobody can have added: some change was made twice, or was said to
            have failed.
        violations: What is wrong, in words.
    """

    acknowledged: int = 0
    uncertain: int = 0
    lost: int = 0
    doubled: int = 0
    violations: list[str] = field(default_factory=list)


def check_counter(operations: Iterable[Operation], final: int) -> CounterVerdict:
    """Check a history against the value that was found at its end.

    An acknowledged change has one value for itself, from 1 to the final one. What no acknowledged
    one has left must be what an uncertain one was about to leave. What began after something else
    had returned comes after it.
    """
    everything = list(operations)
    changes = [one for one in everything if one.kind is Kind.ADD]
    acknowledged = [one for one in changes if one.outcome is Outcome.OK]
    uncertain = [one for one in changes if one.outcome is Outcome.UNCERTAIN]
    values = Counter(one.value for one in acknowledged)
    claimed = values.keys() | {one.value for one in uncertain}
    surviving = sum(1 for value in values if value is not None and 1 <= value <= final)
    unclaimed = [value for value in range(1, final + 1) if value not in claimed]
    verdict = CounterVerdict(
        acknowledged=len(acknowledged),
        uncertain=len(uncertain),
        lost=max(0, len(acknowledged) - min(final, surviving)),
        doubled=len(unclaimed),
    )
    violations = verdict.violations
    violations += [
        f"{times} acknowledged changes made it {value}"
        for value, times in values.items()
        if times > 1
    ]
    violations += [f"nobody can have made it {value}" for value in unclaimed]
    looks = [one for one in everything if one.kind is Kind.LOOK and one.outcome is Outcome.OK]
    violations += _out_of_order([*acknowledged, *looks], final)
    violations += _too_early(changes, looks)
    return verdict


def _left(one: Operation) -> int:
    """Return the value that was there when an operation was done."""
    found = one.seen if one.kind is Kind.LOOK else one.value
    assert found is not None
    return found


def _out_of_order(done: Sequence[Operation], final: int) -> list[str]:
    """Find operations that began after another one had returned, and come before it."""
    found = []
    returns = sorted(done, key=lambda one: one.returned or 0)
    at = 0
    highest = 0
    for one in sorted(done, key=lambda one: one.invoked):
        while at < len(returns) and (returns[at].returned or 0) < one.invoked:
            highest = max(highest, _left(returns[at]))
            at += 1
        if one.kind is Kind.LOOK and _left(one) < highest:
            found.append(f"{_left(one)} was read after {highest} had been there")
        elif one.kind is Kind.ADD and _left(one) <= highest:
            found.append(f"a change began after {highest} had been there, and made it {_left(one)}")
    highest = max(map(_left, done), default=0)
    if final < highest:
        found.append(f"it is {final} at the end, after {highest} had been there")
    return found


def _too_early(changes: Sequence[Operation], looks: Sequence[Operation]) -> list[str]:
    """Find reads of what nobody had yet begun to make."""
    begun: dict[int, int] = {0: 0}
    for one in changes:
        if one.value is not None and one.outcome in (Outcome.OK, Outcome.UNCERTAIN):
            begun[one.value] = min(begun.get(one.value, one.invoked), one.invoked)
    found = []
    for look in looks:
        seen = _left(look)
        if seen not in begun:
            found.append(f"{seen} was read, which nobody made")
        elif look.returned is not None and begun[seen] > look.returned:
            found.append(f"{seen} was read before anybody began to make it")
    return found
