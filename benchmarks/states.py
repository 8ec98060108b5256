"""The states that are measured: the reference state, and a minimal one for large numbers."""

from dataclasses import dataclass, field


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


def reference_cart() -> Cart:
    """Build the reference state: eight items, about 300 bytes when serialized."""
    items = [Item(f"sku-{i}", i + 1) for i in range(8)]
    return Cart("user-42", items, {"a", "bb", "ccc"}, 123.4, 7)
