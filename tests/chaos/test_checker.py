"""The checkers find what is wrong with a history, and nothing else."""

import dataclasses
from typing import Any

import pytest
from histories import FAILED, UNCERTAIN, add, change, is_explained, look, read, write
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.counters import check_counter
from chaos.history import Operation, Outcome
from chaos.registers import Step, Verdict, check_register, linearize

# Counters

GOOD_COUNTERS: dict[str, tuple[list[Operation], int]] = {
    "nothing done": ([], 0),
    "one after the other": ([add(0, 1, 1), look(2, 3, 1), add(4, 5, 2)], 2),
    "side by side, in either order": ([add(0, 9, 2), add(0, 9, 1), look(0, 9, 0)], 2),
    "uncertain, and it happened": ([add(0, 1, 1), add(2, None, 2, UNCERTAIN)], 2),
    "uncertain, and it did not": ([add(0, 1, 1), add(2, None, 2, UNCERTAIN)], 1),
    "uncertain, and another one took its value": (
        [add(0, 1, 1), add(2, None, 2, UNCERTAIN), add(3, 4, 2)],
        2,
    ),
    "uncertain, and seen before it was over": ([add(0, 9, 1, UNCERTAIN), look(2, 3, 1)], 1),
    "failed, and its value was another one's": ([add(0, 1, 1, FAILED), add(2, 3, 1)], 1),
}


@pytest.mark.parametrize(("history", "final"), GOOD_COUNTERS.values(), ids=GOOD_COUNTERS)
def test_good_counter(history: list[Operation], final: int) -> None:
    verdict = check_counter(history, final)
    assert (verdict.lost, verdict.doubled, verdict.violations) == (0, 0, [])


BAD_COUNTERS: dict[str, tuple[list[Operation], int, int, int]] = {
    "lost at the end": ([add(0, 1, 1), add(2, 3, 2)], 1, 1, 0),
    "lost under another one": ([add(0, 5, 1), add(1, 6, 1)], 1, 1, 0),
    "lost, and made up for by an uncertain one": (
        [add(0, 5, 1), add(1, 6, 1), add(7, None, 2, UNCERTAIN)],
        2,
        1,
        0,
    ),
    "done twice": ([add(0, 1, 1)], 2, 0, 1),
    "failed, and done": ([add(0, 1, 1), add(2, 3, 2, FAILED)], 2, 0, 1),
    "killed in the body, and done": ([add(0, 1, 1), add(2, None, None, UNCERTAIN)], 2, 0, 1),
    "stale read": ([add(0, 1, 1), look(2, 3, 0)], 1, 0, 0),
    "reads that go back": ([add(0, 9, 1), look(1, 2, 1), look(3, 4, 0)], 1, 0, 0),
    "read before it was begun": ([look(0, 1, 1), add(2, 3, 1)], 1, 0, 0),
    "read of what failed": ([add(0, 1, 1, FAILED), look(2, 3, 1)], 0, 0, 0),
    "out of order": ([add(0, 1, 2), add(2, 3, 1)], 2, 0, 0),
}


@pytest.mark.parametrize(
    ("history", "final", "lost", "doubled"), BAD_COUNTERS.values(), ids=BAD_COUNTERS
)
def test_bad_counter(history: list[Operation], final: int, lost: int, doubled: int) -> None:
    verdict = check_counter(history, final)
    assert verdict.lost == lost
    assert verdict.doubled == doubled
    assert verdict.violations


# Registers

GOOD_REGISTERS: dict[str, tuple[list[Operation], int]] = {
    "nothing done": ([], 0),
    "one after the other": ([write(0, 1, 5), read(2, 3, 5), change(4, 5, 5, 6)], 6),
    "a change that did not find what it expected": ([write(0, 1, 5), change(2, 3, 5, None)], 5),
    "side by side": ([write(0, 9, 5), write(0, 9, 6), read(1, 2, 6), read(3, 4, 5)], 5),
    "uncertain, and never seen": ([write(0, None, 5, UNCERTAIN), read(1, 2, 0)], 0),
    "uncertain, and seen late": (
        [write(0, 1, 5, UNCERTAIN), read(2, 3, 0), write(4, 5, 6), read(6, 7, 5)],
        5,
    ),
    "uncertain, and seen by another one that was seen": (
        [
            write(0, None, 5, UNCERTAIN),
            change(1, None, 5, 6, UNCERTAIN),
            read(2, 3, 0),
            read(4, 5, 6),
        ],
        6,
    ),
    "uncertain, and at the end": ([write(0, None, 5, UNCERTAIN)], 5),
    "failed": ([write(0, 1, 5, FAILED), read(2, 3, 0)], 0),
}


@pytest.mark.parametrize(("history", "final"), GOOD_REGISTERS.values(), ids=GOOD_REGISTERS)
def test_good_register(history: list[Operation], final: int) -> None:
    assert is_explained(history, final)
    assert check_register(history, final).verdict is Verdict.LINEARIZABLE


BAD_REGISTERS: dict[str, tuple[list[Operation], int]] = {
    "lost": ([write(0, 1, 5)], 0),
    "lost under a change": ([write(0, 1, 5), write(2, 3, 6), change(4, 5, 5, 7)], 7),
    "two changes of one value": ([change(0, 9, 0, 5), change(0, 9, 0, 6)], 6),
    "stale read": ([write(0, 1, 5), read(2, 3, 0)], 5),
    "reads that go back": (
        [write(0, 9, 5), write(0, 9, 6), *(read(2 * n, 2 * n + 1, 5 + n % 2) for n in range(3))],
        6,
    ),
    "read before it was written": ([read(0, 1, 5), write(2, 3, 5)], 5),
    "read of what failed": ([write(0, 1, 5, FAILED), read(2, 3, 5)], 5),
    "read of what nobody wrote": ([read(0, 1, 5)], 0),
    "an uncertain change of what was not there": (
        [write(0, 1, 5), change(2, None, 0, 6, UNCERTAIN), read(3, 4, 6)],
        6,
    ),
}


@pytest.mark.parametrize(("history", "final"), BAD_REGISTERS.values(), ids=BAD_REGISTERS)
def test_bad_register(history: list[Operation], final: int) -> None:
    assert not is_explained(history, final)
    verdict = check_register(history, final)
    assert verdict.verdict is Verdict.VIOLATED
    assert verdict.reason


def test_search_that_takes_too_long_is_undecided() -> None:
    """It ends after so many steps, and says neither."""
    history = [write(0, 100, value) for value in range(1, 20)]
    assert check_register(history, 7, steps=5).verdict is Verdict.UNDECIDED
    assert check_register(history, 7).verdict is Verdict.LINEARIZABLE


def test_search_goes_back() -> None:
    """Values that are written more than once leave open which write was seen."""
    twice = [Step(0, 9, None, 1), Step(0, 9, None, 2), Step(0, 9, 2, 1), Step(1, 9, 1, 3)]
    assert linearize([*twice, Step(10, 11, 3, None)], 0).verdict is Verdict.LINEARIZABLE
    assert linearize([*twice, Step(10, 11, 2, None)], 0).verdict is Verdict.VIOLATED


def test_value_that_is_written_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="unique"):
        check_register([write(0, 1, 5), write(2, 3, 5)], 5)


# Histories of what is really there

SPREAD = st.integers(0, 40)  # of an interval around the moment when it happens, one each 10


@st.composite
def register_histories(draw: Any) -> tuple[list[Operation], int]:
    """Draw a history by doing it: each operation happens at some moment of its interval."""
    value, history = 0, []
    for number in range(draw(st.integers(0, 7))):
        moment = 100 + 10 * number
        invoked, returned = moment - draw(SPREAD), moment + draw(SPREAD)
        outcome = draw(st.sampled_from([Outcome.OK] * 3 + [UNCERTAIN, FAILED]))
        happens = outcome is Outcome.OK or (outcome is UNCERTAIN and draw(st.booleans()))
        kind, new = draw(st.sampled_from("rwc")), number + 1
        if outcome is not Outcome.OK:
            returned = draw(st.sampled_from([None, max(invoked, moment - 5)]))
        if kind == "r":
            history.append(read(invoked, returned, value, outcome))
            continue
        if kind == "c":
            left = new if draw(st.booleans()) else None
            history.append(change(invoked, returned, value, left, outcome))
            happens = happens and left is not None
        else:
            history.append(write(invoked, returned, new, outcome))
        if happens:
            value = new
    return draw(st.permutations(history)), value


@given(register_histories())
@settings(max_examples=300, deadline=None)
def test_history_of_a_real_register_is_accepted(drawn: tuple[list[Operation], int]) -> None:
    history, final = drawn
    assert check_register(history, final).verdict is Verdict.LINEARIZABLE


@given(register_histories(), st.data())
@settings(max_examples=500, deadline=None)
def test_altered_history_is_judged_as_by_trying_all_orders(
    drawn: tuple[list[Operation], int], data: st.DataObject
) -> None:
    """One thing of a real history is changed: what was seen, when, or how it ended."""
    history, final = drawn
    if history:
        at = data.draw(st.integers(0, len(history) - 1))
        one, shift = history[at], data.draw(st.integers(-40, 40))
        later = None if one.returned is None else one.returned + shift
        altered: list[dict[str, Any]] = [{"invoked": one.invoked + shift, "returned": later}]
        if one.seen is not None:
            altered.append({"seen": data.draw(st.integers(0, 8))})
        if one.returned is not None:
            altered += [{"outcome": outcome} for outcome in (Outcome.OK, FAILED, UNCERTAIN)]
        history[at] = dataclasses.replace(one, **data.draw(st.sampled_from(altered)))
    else:
        final = 1
    found = check_register(history, final).verdict is Verdict.LINEARIZABLE
    assert found == is_explained(history, final)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_history_of_a_real_counter_is_accepted(data: st.DataObject) -> None:
    value, history = 0, []
    for number in range(data.draw(st.integers(0, 12))):
        moment = 100 + 10 * number
        invoked, returned = moment - data.draw(SPREAD), moment + data.draw(SPREAD)
        kind = data.draw(st.sampled_from(["look", "done", "lost reply", "failed", "killed"]))
        if kind == "look":
            history.append(look(invoked, returned, value))
            continue
        outcome = {"done": Outcome.OK, "failed": FAILED}.get(kind, UNCERTAIN)
        history.append(add(invoked, None if kind == "killed" else returned, value + 1, outcome))
        value += kind in ("done", "lost reply")
    verdict = check_counter(data.draw(st.permutations(history)), value)
    assert (verdict.lost, verdict.doubled, verdict.violations) == (0, 0, [])
