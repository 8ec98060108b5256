"""Who stands beside whom: a backend of ours with its variants, its peers and its floors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from benchmarks.results import Row
from benchmarks.subject import Role, Subject, rivals


@dataclass(frozen=True, slots=True)
class Family:
    """A backend of ours, and what it is compared with.

    Attributes:
        name: The backend's.
        ours: Its variants.
        others: Their peers, then their floors.
    """

    name: str
    ours: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def members(self) -> tuple[str, ...]:
        """All of them, ours first."""
        return self.ours + self.others


def present(rows: Sequence[Row], subjects: Mapping[str, Subject]) -> dict[str, Subject]:
    """Return the subjects that rows speak of, in the order of `subjects`.

    One that is not among `subjects`, because the rows were written by another version, gets a
    stand-in: it is compared with all of ours that were measured in the same cases.
    """
    named = dict.fromkeys(row.subject for row in rows)
    known = {name: subject for name, subject in subjects.items() if name in named}
    return known | {name: _stand_in(name, rows) for name in named if name not in known}


def _stand_in(name: str, rows: Sequence[Row]) -> Subject:
    own = [row for row in rows if row.subject == name]
    cases = {row.case for row in own}
    beside = {row.subject for row in rows if row.case in cases and row.role == Role.OURS}
    backends = dict.fromkeys(other.partition("/")[0] for other in sorted(beside))
    role = Role(own[0].role)
    return Subject(
        name=name,
        role=role,
        summary="",
        against=() if role is Role.OURS else tuple(backends),
    )


def families(subjects: Mapping[str, Subject]) -> list[Family]:
    """Sort subjects into families: one of ours is in one, the others may be in several."""
    ours = [subject for subject in subjects.values() if subject.role is Role.OURS]
    found = []
    for backend in dict.fromkeys(subject.backend for subject in ours):
        variants = [subject for subject in ours if subject.backend == backend]
        compared = _names(rivals(variant, subjects.values()) for variant in variants)
        others = [name for name in subjects if name in compared]
        others.sort(key=lambda name: subjects[name].role is Role.FLOOR)
        found.append(Family(backend, tuple(one.name for one in variants), tuple(others)))
    return found


def _names(groups: Iterable[Iterable[Subject]]) -> set[str]:
    return {subject.name for subject in chain.from_iterable(groups)}
