"""`EventQueue`: who runs next.

Each ident has a lane, in which one event runs at a time and the others wait in order. Where a
bound is reached, events stand outside: first until their lane has room, then until the whole
queue has. They come in in the order in which they asked.
"""

from asyncio import Future
from collections import OrderedDict
from collections.abc import Callable

from statemgr.events.future import EventFuture, Place

# Those that wait, in order, by number: any can be taken out in the same short time.
_Waiting = OrderedDict[int, EventFuture]
_Outside = OrderedDict[int, tuple[EventFuture, Future[None]]]


class _Lane:
    """The events of one ident.

    Attributes:
        accepted: How many there are that are not over, those in the background included, and
            those that stand outside for lack of room in the whole queue.
        running: The one that runs now.
        waiting: Those that are to run after it.
        outside: Those for which the lane has no room.
    """

    __slots__ = ("accepted", "outside", "running", "waiting")

    def __init__(self) -> None:
        self.accepted = 0
        self.running: EventFuture | None = None
        self.waiting: _Waiting | None = None
        self.outside: _Outside | None = None


class EventQueue:
    """Order events by ident, and bound their number.

    Args:
        start: Called with each event when its turn has come.
        limit: How many events may be accepted and not over.
        limit_per_ident: The same for one ident.
    """

    def __init__(
        self, start: Callable[[EventFuture], None], limit: int, limit_per_ident: int
    ) -> None:
        self._start = start
        self._limit = limit
        self._limit_per_ident = limit_per_ident
        self._accepted = 0
        self._lanes: dict[str, _Lane] = {}
        self._outside: _Outside = OrderedDict()

    def add_if_room(self, future: EventFuture) -> bool:
        """Accept an event if it overtakes none that waits for room; return whether it was."""
        if self._accepted >= self._limit or self._outside:
            return False
        ident = future._context.ident
        lane = self._lanes.get(ident)
        if lane is None:
            lane = self._lanes[ident] = _Lane()
        elif lane.accepted >= self._limit_per_ident or lane.outside:
            return False
        lane.accepted += 1
        self._enter(future, lane)
        return True

    def add(self, future: EventFuture) -> None:
        """Accept an event, whether there is room or not."""
        ident = future._context.ident
        lane = self._lanes.get(ident)
        if lane is None:
            lane = self._lanes[ident] = _Lane()
        lane.accepted += 1
        self._enter(future, lane)

    def add_outside(self, future: EventFuture) -> Future[None]:
        """Accept an event when there is room; what is returned is done then, or when it is over."""
        waiter: Future[None] = future.get_loop().create_future()
        future._place = Place.OUTSIDE
        context = future._context
        lane = self._lanes.get(context.ident)
        if lane is None:
            lane = self._lanes[context.ident] = _Lane()
        if lane.accepted < self._limit_per_ident and not lane.outside:
            lane.accepted += 1
            self._outside[context._number] = future, waiter
        else:
            if lane.outside is None:
                lane.outside = OrderedDict()
            lane.outside[context._number] = future, waiter
        return waiter

    def remove(self, future: EventFuture) -> None:
        """Forget an event that is over, wherever it stands, and let the next ones in."""
        place, future._place = future._place, Place.OVER
        context = future._context
        lane = self._lanes[context.ident]
        if place is Place.OUTSIDE:
            if lane.outside is not None and context._number in lane.outside:
                _, waiter = lane.outside.pop(context._number)
            else:
                _, waiter = self._outside.pop(context._number)
                lane.accepted -= 1
            if not waiter.done():
                waiter.set_result(None)
        else:
            lane.accepted -= 1
            self._accepted -= 1
            if lane.running is future:
                lane.running = None
                if lane.waiting:
                    _, lane.running = lane.waiting.popitem(last=False)
                    self._start(lane.running)
            elif lane.waiting:
                lane.waiting.pop(context._number, None)  # those in the background are not there
        if lane.outside and lane.accepted < self._limit_per_ident:
            number, outsider = lane.outside.popitem(last=False)
            lane.accepted += 1
            self._outside[number] = outsider
        while self._outside and self._accepted < self._limit:
            _, (outsider_future, waiter) = self._outside.popitem(last=False)
            if not waiter.done():
                waiter.set_result(None)
            self._enter(outsider_future, self._lanes[outsider_future._context.ident])
        if not lane.accepted and not lane.outside:
            self._lanes.pop(context.ident, None)
            if not self._lanes:
                self._lanes.clear()  # gives back the room that so many lanes took

    def clear(self) -> None:
        """Forget all events at once: none will be started any more."""
        for outside in (self._outside, *(lane.outside for lane in self._lanes.values())):
            for _, waiter in (outside or {}).values():
                if not waiter.done():
                    waiter.set_result(None)
        self._lanes.clear()
        self._outside = OrderedDict()

    def _enter(self, future: EventFuture, lane: _Lane) -> None:
        self._accepted += 1
        future._place = Place.QUEUED
        if future._handler.background:
            self._start(future)
        elif lane.running is None:
            lane.running = future
            self._start(future)
        else:
            if lane.waiting is None:
                lane.waiting = OrderedDict()
            lane.waiting[future._context._number] = future
