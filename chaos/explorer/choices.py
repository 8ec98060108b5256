"""What a schedule does where it could do something else: as planned, or as a seed has it.

A schedule without choices is the canonical one: what is ready runs, what was sent first arrives
first, and time goes on when nothing else is left. A *deviation* is a step at which something else
happens: the number of the step, and which of the alternatives. A schedule is known by its scenario
and its deviations, wherever these came from.
"""

import math
import random
from collections.abc import Callable
from typing import Any, Final

Deviations = dict[int, int]

NEVER: Final = 1 << 60


class Choices:
    """Choose as planned.

    Args:
        planned: The deviations.
        widths: Filled in with the number of alternatives at each step behind the last deviation;
            None spares that.

    Attributes:
        next_step: The first step at which it is to be asked again: before that all is canonical.
        made: The deviations that were made: what is out of reach is not.
    """

    def __init__(self, planned: Deviations, widths: dict[int, int] | None = None) -> None:
        self._planned = planned
        self._steps = sorted(planned, reverse=True)
        self._widths = widths
        self.made: Deviations = {}
        self.next_step = 0
        self._look_ahead(0)

    def _look_ahead(self, step: int) -> None:
        if self._steps:
            self.next_step = self._steps[-1]
        else:
            self.next_step = NEVER if self._widths is None else step

    def choose(self, step: int, alternatives: Callable[[], list[Any]]) -> Any:
        """Return one of the alternatives, or None for what is canonical."""
        found = alternatives()
        if not self._steps:
            if self._widths is not None:
                self._widths[step] = len(found)
            self.next_step = step + 1
            return None
        which = self._planned[self._steps.pop()]
        self._look_ahead(step + 1)
        if which >= len(found):
            return None
        self.made[step] = which
        return found[which]


class RandomChoices(Choices):
    """Choose by chance.

    Args:
        source: Where chance comes from.
        rate: How probable a deviation is at a step.
    """

    def __init__(self, source: random.Random, rate: float) -> None:
        super().__init__({})
        self._random = source.random
        self._scale = 1 / math.log(1 - rate)
        self._draw(0)

    def _draw(self, step: int) -> None:
        """Draw how many steps stay canonical."""
        self.next_step = step + int(math.log(1 - self._random()) * self._scale)

    def choose(self, step: int, alternatives: Callable[[], list[Any]]) -> Any:
        """Return one of the alternatives, or None for what is canonical."""
        self._draw(step + 1)
        found = alternatives()
        if not found:
            return None
        # First what kind of event, else the kinds with many targets would crowd out the others.
        kinds = sorted({event[0] for event in found})
        kind = kinds[int(self._random() * len(kinds))]
        those = [which for which, event in enumerate(found) if event[0] == kind]
        which = those[int(self._random() * len(those))]
        self.made[step] = which
        return found[which]
