"""The states that are measured: the reference state, and a minimal one for large numbers."""

from dataclasses import dataclass, field
from functools import cache

from statemgr import StateToken

LEAST_ITEM = 16
"""Bytes that a serialized item has at least."""


@dataclass
class Item:
    """One line of a cart."""

    sku: str = ""
    quantity: int = 0


@dataclass
class Cart:
    """The reference state: small, typed, with nested dataclasses and a set."""

    owner: str = ""
    items: list[Item] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    total: float = 0.0
    version: int = 0


@dataclass
class Counter:
    """The smallest state, for scenarios about the number of tokens and not about their states."""

    version: int = 0


def cart(size: int = 0) -> Cart:
    """Build a cart.

    Args:
        size: Bytes that it has at most when serialized, but for one without items; 0 for the
            reference state: eight items, about 300 bytes.
    """
    return _cart(_items(size) if size else 8)


def _cart(items: int) -> Cart:
    lines = [Item(f"sku-{i}", i + 1) for i in range(items)]
    return Cart("user-42", lines, {"a", "bb", "ccc"}, 123.4, 7)


@cache
def _items(size: int) -> int:
    """Return how many items a cart of a size has."""
    token = StateToken("user-42", Cart)
    least, most = 0, size // LEAST_ITEM
    while least < most:
        middle = (least + most + 1) // 2
        if len(token.serialize(_cart(middle))) <= size:
            least = middle
        else:
            most = middle - 1
    return least
