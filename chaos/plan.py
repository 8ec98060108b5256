"""The plan of faults: which, when, to whom and for how long. The same seed gives the same plan."""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """What goes wrong."""

    STOP = "stop"  # SIGSTOP of one process or several, and SIGCONT beyond the expiration
    KILL = "kill"  # SIGKILL of a process, and another one in its place
    CLOCK = "clock step"  # of the wall clock of one process
    CUT = "cut"  # of all connections through the proxy
    DROP = "dropped reply"  # and its connection is lost
    DELAY = "delay"  # of each message through the proxy
    PARTITION = "partition"  # nothing goes through the proxy beyond the expiration
    CLIENT_PAUSE = "client pause"  # the server answers nobody
    SERVER_STOP = "server stop"  # SIGSTOP of the server
    SERVER_KILL = "server kill"  # SIGKILL of the server, and a start from its files
    MEMORY = "full memory"  # the server refuses what needs memory
    IO_ERROR = "I/O error"  # the Nth call of the system fails
    DISK_FULL = "disk full"  # all calls fail that need space


ANYWHERE = frozenset({FaultKind.STOP, FaultKind.KILL})
SERVER = frozenset(
    {
        *(FaultKind.CUT, FaultKind.DROP, FaultKind.DELAY, FaultKind.PARTITION),
        *(FaultKind.CLIENT_PAUSE, FaultKind.SERVER_STOP, FaultKind.SERVER_KILL, FaultKind.MEMORY),
    }
)
DISK = frozenset({FaultKind.IO_ERROR, FaultKind.DISK_FULL})

# Seconds from one to the next. Of what stops everybody there is less: nothing else is found
# meanwhile.
EVERY = {
    FaultKind.STOP: 0.7,
    FaultKind.KILL: 2.0,
    FaultKind.CLOCK: 3.0,
    FaultKind.CUT: 6.0,
    FaultKind.DROP: 1.0,
    FaultKind.DELAY: 12.0,
    FaultKind.PARTITION: 15.0,
    FaultKind.CLIENT_PAUSE: 20.0,
    FaultKind.SERVER_STOP: 20.0,
    FaultKind.SERVER_KILL: 25.0,
    FaultKind.MEMORY: 15.0,
    FaultKind.IO_ERROR: 1.0,
    FaultKind.DISK_FULL: 10.0,
}

BEYOND = 1.6  # expirations that a process is stopped for, so that its locks are lost
INSIDE = 0.5  # of the stops: in the body of a change, where its lock is held
HOUR = 3600.0


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        at: Seconds after the start of the round.
        kind: What goes wrong.
        workers: For which processes, by their numbers; empty for all.
        seconds: For how long.
        amount: How much: the seconds of a clock step or of a delay, the number of the message
            or of the call of the system; of a stop, 1 for one in the body of the next change.
    """

    at: float
    kind: FaultKind
    workers: tuple[int, ...] = ()
    seconds: float = 0.0
    amount: float = 0.0


def make_plan(
    seed: int,
    number: int,
    kinds: Collection[FaultKind],
    *,
    seconds: float,
    processes: int,
    expiration: float,
    every: Mapping[FaultKind, float] = EVERY,
) -> Sequence[Fault]:
    """Draw the faults of a round: of each kind one at least, in the order of their times.

    Args:
        seed: Of the run.
        number: Of the round.
        kinds: What may go wrong.
        seconds: For how long; all is over by then.
        processes: How many there are.
        expiration: Of the locks.
        every: Seconds from one fault of a kind to the next.
    """
    faults: list[Fault] = []
    for kind in FaultKind:
        if kind not in kinds:
            continue
        drawn = random.Random(f"{seed} {number} {kind}")
        times = max(1, round(seconds / every[kind]))
        for index in range(times):
            fault = _draw(drawn, kind, processes, expiration)
            # One in each part of the time: spread, and not in step with anything.
            at = (index + drawn.random()) * seconds / times
            at = max(0.0, min(at, seconds - fault.seconds))
            faults.append(Fault(at, kind, fault.workers, fault.seconds, fault.amount))
    return sorted(faults, key=lambda fault: (fault.at, fault.kind))


def _draw(drawn: random.Random, kind: FaultKind, processes: int, expiration: float) -> Fault:
    one = (drawn.randrange(processes),)
    seconds = amount = 0.0
    workers: tuple[int, ...] = ()
    match kind:
        case FaultKind.STOP:
            count = min(processes, drawn.choices((1, 2, 3), (6, 3, 1))[0])
            workers = tuple(sorted(drawn.sample(range(processes), count)))
            seconds = BEYOND * expiration
            amount = float(drawn.random() < INSIDE)
        case FaultKind.KILL:
            workers = one
        case FaultKind.CLOCK:
            workers = one
            amount = drawn.choice((-24, -1, 1, 24)) * HOUR
        case FaultKind.DROP:
            amount = drawn.randint(1, 30)
        case FaultKind.DELAY:
            seconds, amount = 1.0, drawn.uniform(0.001, 0.03)
        case FaultKind.PARTITION:
            seconds = BEYOND * expiration
        case FaultKind.CLIENT_PAUSE | FaultKind.SERVER_STOP:
            seconds = drawn.uniform(0.2, 1.6)
        case FaultKind.MEMORY:
            seconds = drawn.uniform(0.1, 0.4)
        case FaultKind.IO_ERROR:
            workers, amount = one, drawn.randint(1, 40)
        case FaultKind.DISK_FULL:
            workers, seconds = one, drawn.uniform(0.05, 0.3)
        case _:
            pass
    return Fault(0.0, kind, workers, seconds, amount)
