"""`Superseding`: of a handler that supersedes, only the newest chain of an ident runs."""

from collections.abc import Callable

from statemgr.events.future import EventFuture, Scope

_Key = tuple[str, str]  # a handler's name, and an ident


class Superseding:
    """Have the newest chain cancel what older ones run of the same handler for the same ident.

    Args:
        cancel: Called with the events to be cancelled.

    Attributes:
        newest: By handler and ident, what the newest chain runs; gone when that is over.
    """

    def __init__(self, cancel: Callable[[list[EventFuture]], None]) -> None:
        self._cancel = cancel
        self.newest: dict[_Key, _Runs] = {}

    def admit(self, future: EventFuture) -> bool:
        """Cancel what an event supersedes; return False if it is superseded itself."""
        key = future._context.name, future._context.ident
        while (newest := self.newest.get(key)) is not None:
            if newest.root > future._root:
                return False
            if newest.root == future._root:
                break
            del self.newest[key]
            self._cancel(list(newest.members.values()))  # a listener may enqueue a newer one
        else:
            newest = self.newest[key] = _Runs(future._root, key, self.newest)
        if newest not in future._scopes:
            future._scopes += (newest,)
            newest.members[future._context._number] = future
        return True


class _Runs(Scope):
    """What one chain runs of a handler for an ident, and all that came of it."""

    __slots__ = ("_key", "_newest")

    def __init__(self, root: int, key: _Key, newest: "dict[_Key, _Runs]") -> None:
        super().__init__(root)
        self._key = key
        self._newest = newest

    def ended(self) -> None:
        """Be the newest no more."""
        if self._newest.get(self._key) is self:
            del self._newest[self._key]
