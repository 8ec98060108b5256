"""How a value that cannot be saved, or does not fit, says where it is.

The walkers keep no path while all goes well. A `Refusal` collects it on its way out. Entries of
dicts and sets are named by their position, because a key is part of the state: `Cart.prices[#3]`
is the value of the fourth entry, `Cart.prices[key #3]` its key.
"""

import sys
from traceback import walk_stack, walk_tb

MAX_DEPTH = 100
"""How many containers and instances may stand inside each other, when saving and when loading."""

TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep, or refers to itself"


class Refusal(Exception):  # noqa: N818 - it becomes an error of the public kind where it is caught
    """Carry the reason and the path, which grows from the inside out.

    Attributes:
        reason: What is wrong, without any value.
        path: Where, such as `.items[3].handle`; empty at the root.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path

    def inside(self, step: str) -> "Refusal":
        """Return this refusal as seen from one level further out."""
        self.path = step + self.path
        return self


class Ambiguity(Refusal):
    """Several alternatives fit, and nothing tells which one was meant."""


def is_shortage(error: BaseException) -> bool:
    """Tell whether `error` speaks of the process, short of memory or of stack, and not of the data.

    Data that is nested too deeply may raise a `RecursionError` too. It does so inside of a decoder
    written in C, far from the limit of Python's own stack.
    """
    if not isinstance(error, RecursionError):
        return isinstance(error, MemoryError)
    frames = len([*walk_stack(sys._getframe()), *walk_tb(error.__traceback__)])
    return frames > sys.getrecursionlimit() - 2 * MAX_DEPTH
