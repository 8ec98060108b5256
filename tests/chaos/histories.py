"""Histories for tests of the checkers, and an oracle that tries all orders."""

from collections.abc import Sequence

from chaos.history import Kind, Operation, Outcome

OK, FAILED, UNCERTAIN = Outcome.OK, Outcome.FAILED, Outcome.UNCERTAIN


def add(invoked: int, returned: int | None, value: int | None, outcome: Outcome = OK) -> Operation:
    seen = None if value is None else value - 1
    return Operation(1, Kind.ADD, 0, invoked, returned, outcome, value, seen=seen)


def look(invoked: int, returned: int, seen: int) -> Operation:
    return Operation(1, Kind.LOOK, 0, invoked, returned, OK, seen=seen)


def write(invoked: int, returned: int | None, value: int, outcome: Outcome = OK) -> Operation:
    return Operation(1, Kind.WRITE, 0, invoked, returned, outcome, value)


def read(invoked: int, returned: int, seen: int, outcome: Outcome = OK) -> Operation:
    return Operation(1, Kind.READ, 0, invoked, returned, outcome, seen=seen)


def change(
    invoked: int, returned: int | None, seen: int, value: int | None, outcome: Outcome = OK
) -> Operation:
    return Operation(1, Kind.CHANGE, 0, invoked, returned, outcome, value, seen=seen)


def is_explained(history: Sequence[Operation], final: int) -> bool:
    """Say whether some order of a register's operations explains them, by trying all.

    What has failed is left out; what is uncertain may be, and never has to be before anything.
    """
    definite = tuple(one for one in history if one.outcome is OK)
    uncertain = tuple(one for one in history if one.outcome is UNCERTAIN and one.value is not None)
    return _explain(definite, uncertain, 0, final)


def _explain(
    definite: tuple[Operation, ...], uncertain: tuple[Operation, ...], value: int, final: int
) -> bool:
    if not definite and value == final:
        return True
    for one in (*definite, *uncertain):
        if any(other.returned < one.invoked for other in definite if other is not one):
            continue
        if one.kind is not Kind.WRITE and one.seen != value:
            continue
        after = value if one.value is None else one.value
        rest = [tuple(o for o in each if o is not one) for each in (definite, uncertain)]
        if _explain(rest[0], rest[1], after, final):
            return True
    return False
