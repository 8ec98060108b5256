"""`DeltaStream`: the deltas of one chain on their way to who asked for them."""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from statemgr.events.future import Scope

if TYPE_CHECKING:
    from statemgr.events.delta import Delta


class DeltaStream(Scope):
    """Hand deltas from the handlers of a chain to one reader, until the chain is over.

    Attributes:
        ident: Whose deltas it takes.
        open: Whether it takes any more.
        outcome: What the chain's first event ended with; None for a result. Kept here, and not
            its future, which holds those of all that came of it.
    """

    __slots__ = ("_arrived", "_deltas", "ident", "open", "outcome")

    def __init__(self, ident: str, root: int) -> None:
        super().__init__(root)
        self.ident = ident
        self.open = True
        self.outcome: BaseException | None = None
        self._deltas: deque[Delta] = deque()
        self._arrived = asyncio.Event()

    def put(self, delta: "Delta") -> None:
        """Add a delta, however many wait: who adds them may hold what the reader waits for."""
        self._deltas.append(delta)
        self._arrived.set()

    def ended(self) -> None:
        """Let the reader leave when it has read what is there."""
        self.open = False
        self._arrived.set()

    async def get(self) -> "Delta | None":
        """Return the next delta, None at the end."""
        while not self._deltas:
            if not self.open:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._deltas.popleft()
