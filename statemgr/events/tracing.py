"""`EventListener`: the one place from which events can be watched."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statemgr.events.context import EventContext

logger = logging.getLogger("statemgr.events")


class EventListener:
    """Be told what happens to each event; override what is of interest.

    Each call gets the event's context, with its name, ident and ids. Durations are seconds of
    the monotonic clock. `enqueued` is called by whoever enqueues; the others in the task that runs
    the handler, in its context variables, but for `failed` of an event that never started: that
    comes from whoever refuses or cancels it. `failed` of a handler that `stop` leaves behind comes
    from the loop. A call must not block. What one raises is logged, and changes nothing.

    For each event comes `enqueued`, then perhaps `started`, and at last either `finished` or
    `failed`. In between come `waited` and `committed`, once for each lock that is taken; those of a
    task that outlives its event, as that of a handler left behind does, may come later.
    """

    def enqueued(self, context: "EventContext") -> None:
        """An event was accepted, or was refused: then `failed` follows."""

    def started(self, context: "EventContext", seconds: float) -> None:
        """Its handler is about to run, after `seconds` in the queue."""

    def waited(self, context: "EventContext", seconds: float) -> None:
        """It has got the lock and loaded the states, which took `seconds`."""

    def committed(self, context: "EventContext", seconds: float) -> None:
        """What it changed is saved, which took `seconds`."""

    def finished(self, context: "EventContext", seconds: float) -> None:
        """It is done, `seconds` after it was enqueued."""

    def failed(self, context: "EventContext", error: BaseException, seconds: float) -> None:
        """It ended with an error, or was cancelled, `seconds` after it was enqueued."""


def notify(told: Callable[..., None], *arguments: Any) -> None:
    """Call a listener's method; what that raises is logged, and changes nothing."""
    try:
        told(*arguments)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        logger.exception("the listener failed")
