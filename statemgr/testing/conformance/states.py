"""The classes whose states the kit keeps."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counter:
    """A number."""

    value: int = 0


@dataclass
class Cart:
    """A list of anything, also of what cannot be saved."""

    items: list[Any] = field(default_factory=list)


@dataclass
class Journal:
    """Numbers in the order in which they were entered."""

    entries: list[int] = field(default_factory=list)


@dataclass
class Falsy:
    """An object that says that it is false."""

    value: int = 0

    def __bool__(self) -> bool:
        return False


@dataclass
class NoDefault:
    """A class that needs an argument."""

    name: str


class Shop:
    """Holds a class that is called as one of `Bar`."""

    @dataclass
    class Till:
        """What is in the till."""

        value: int = 0


class Bar:
    """Holds a class that is called as one of `Shop`."""

    @dataclass
    class Till:
        """What is in the till."""

        value: int = 0
