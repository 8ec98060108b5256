"""What a store should hold after some calls: states with deadlines, in a dict."""

from dataclasses import dataclass

Key = tuple[str, type]
Value = tuple[int, ...]


@dataclass
class Stored:
    """One state.

    Attributes:
        value: What it holds.
        expires_at: Its deadline, by the monotonic clock.
    """

    value: Value
    expires_at: float


class Model:
    """Be the dict that a backend is compared with.

    Args:
        expiration: Seconds from a use to the deadline.

    Attributes:
        locked_since: The idents whose lock is held, and since when.
    """

    def __init__(self, expiration: float) -> None:
        self.expiration = expiration
        self.states: dict[Key, Stored] = {}
        self.locked_since: dict[str, float] = {}

    def find(self, key: Key, now: float) -> Stored | None:
        """Return a state that has not expired; forget one that has.

        A deadline that passes while the ident is locked does not count.
        """
        stored = self.states.get(key)
        if stored is not None and stored.expires_at <= now:
            since = self.locked_since.get(key[0])
            if since is None or stored.expires_at <= since:
                del self.states[key]
                return None
        return stored

    def read(self, key: Key, now: float) -> Value:
        """Return what a reader finds, and renew it."""
        stored = self.find(key, now)
        if stored is None:
            return ()
        stored.expires_at = now + self.expiration
        return stored.value

    def write(self, key: Key, value: Value, now: float) -> None:
        """Replace a state."""
        self.states[key] = Stored(value, now + self.expiration)

    def delete(self, key: Key, now: float) -> bool:
        """Drop a state; return whether there was one."""
        found = self.find(key, now) is not None
        self.states.pop(key, None)
        return found

    def stored(self, now: float) -> set[Key]:
        """Return the keys of all states."""
        return {key for key in list(self.states) if self.find(key, now) is not None}

    def forget_all(self) -> None:
        """Lose everything, as a store does that ends with its manager."""
        self.states.clear()
