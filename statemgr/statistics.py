"""What a manager tells about itself: `Statistics`, and `StateInfo` for each state it holds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StateInfo:
    """Describe one stored state.

    Attributes:
        ident: Whose it is.
        class_name: Its class: module, a colon, qualified name.
        size: Bytes of the serialized state; None where a backend keeps it as an object only.
        expires_at: When it expires if nobody uses it: wall clock, seconds since the epoch.
    """

    ident: str
    class_name: str
    size: int | None
    expires_at: float


@dataclass(frozen=True)
class Statistics:
    """Count what one manager holds now, and has done since it was made.

    Attributes:
        tokens_held: States held or tracked by this manager.
        locks_held: Idents whose lock this manager's bodies hold.
        waiters: Calls of this manager that wait for a lock.
        hits: Reads that found a stored state.
        misses: Reads that got a fresh default.
        commits: Bodies and writes that were saved.
        aborts: Bodies that raised, were cancelled or were discarded.
        purged: States dropped because they had expired.
    """

    tokens_held: int
    locks_held: int
    waiters: int
    hits: int
    misses: int
    commits: int
    aborts: int
    purged: int
