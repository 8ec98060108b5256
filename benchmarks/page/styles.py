"""How a subject is drawn, the same on the whole page.

Ours are solid lines in cool colours with filled markers, peers dashed ones in warm colours with
hollow markers, floors dotted and grey: the three differ without any colour too. Within a role
both the colour and the marker tell one from the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.page.families import Family
from benchmarks.subject import Role, Subject


@dataclass(frozen=True, slots=True)
class Style:
    """How a subject is drawn.

    Attributes:
        colour: The CSS variable of its colour, without the dashes in front.
        marker: A marker of matplotlib.
        line: A line style of matplotlib.
        width: The line's.
        filled: Whether the marker is.
    """

    colour: str
    marker: str
    line: str | tuple[float, tuple[float, ...]]
    width: float
    filled: bool


@dataclass(frozen=True, slots=True)
class _Manner:
    """What those of one role have in common; the lists are gone through again and again."""

    colours: tuple[str, ...]
    markers: str
    line: str | tuple[float, tuple[float, ...]]
    width: float
    filled: bool


_MANNERS = {
    Role.OURS: _Manner(("ours-1", "ours-2", "ours-3", "ours-4"), "osD^v", "-", 2.0, filled=True),
    Role.PEER: _Manner(
        ("peer-1", "peer-2", "peer-3", "peer-4", "peer-5"), "sD^ov<", (0, (4, 2)), 1.4, filled=False
    ),
    Role.FLOOR: _Manner(("floor-1", "floor-2"), "xP*", (0, (1, 1.8)), 1.4, filled=True),
}

COLOURS = tuple(colour for manner in _MANNERS.values() for colour in manner.colours)


def styles(subjects: Mapping[str, Subject], families: Sequence[Family]) -> dict[str, Style]:
    """Give each subject a style that no other one of its role has in any of its families."""
    chosen: dict[str, int] = {}
    for name, subject in subjects.items():
        beside = {
            other
            for family in families
            if name in family.members
            for other in family.members
            if subjects[other].role is subject.role
        }
        taken = {chosen[other] for other in beside if other in chosen}
        chosen[name] = next(index for index in range(len(taken) + 1) if index not in taken)
    return {name: _style(_MANNERS[subjects[name].role], index) for name, index in chosen.items()}


def _style(manner: _Manner, index: int) -> Style:
    return Style(
        colour=manner.colours[index % len(manner.colours)],
        marker=manner.markers[index % len(manner.markers)],
        line=manner.line,
        width=manner.width,
        filled=manner.filled,
    )
