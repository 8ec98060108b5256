"""What the processes of a schedule do: a few short programs, on one ident."""

import dataclasses
from typing import Final

from statemgr.token import StateToken


@dataclasses.dataclass
class Counter:
    """A state that remembers which bodies made it, in their order."""

    stamps: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Other:
    """Another state of the same ident."""

    stamps: list[int] = dataclasses.field(default_factory=list)


COUNTER: Final = StateToken("it", Counter)
OTHER: Final = StateToken("it", Other)

MODES: Final = ("off", "through", "behind")
LOCK_EXPIRATION: Final = 2.0  # seconds, as for the others
HOLD_TIME: Final = 1.5
TOKEN_EXPIRATION: Final = 50.0


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One thing that a task does.

    Attributes:
        kind: "change" one state, "both" states in one body, "delete" the other one, "read", or
            "sleep".
        seconds: How long the body takes, or the sleep.
        timeout: Of a change.
    """

    kind: str
    seconds: float = 0.0
    timeout: float | None = None


# A process is its tasks, a task its steps.
Program = tuple[tuple[Step, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Scenario:
    """Processes, the mode in which their managers are, and how they are called in a report.

    Attributes:
        closes: Whether the managers are closed at the end; else the processes just end.
    """

    name: str
    mode: str
    processes: tuple[Program, ...]
    closes: bool = True


CHANGE, READ = Step("change"), Step("read")
LONG, LONGER = Step("change", 0.9), Step("change", 2.6)
SHORT, HALF = Step("change", 0.004), Step("change", 0.5)
BOTH, DELETE = Step("both"), Step("delete")


def _sleep(seconds: float) -> Step:
    return Step("sleep", seconds)


_PROGRAMS: Final[dict[str, tuple[Program, ...]]] = {
    # two processes want it at once
    "two": (((CHANGE,),), ((CHANGE,),)),
    # one after the other, and again
    "again": (((CHANGE, CHANGE),), ((_sleep(0.01), CHANGE),)),
    # three, so that there is a queue
    "three": (((SHORT,),), ((CHANGE,),), ((CHANGE,),)),
    # the same, and who looks first is not who asked first
    "order": (((SHORT,),), ((_sleep(0.002), CHANGE),), ((CHANGE,),)),
    # tasks of one process share its grant
    "shared": (((SHORT,), (CHANGE,), (CHANGE,)), ((CHANGE,),)),
    # a body that begins while the commit before it is on its way, and takes its time
    "chain": (((SHORT,), (HALF,)), ((_sleep(0.6), CHANGE),)),
    # a body that lasts until its lock is renewed, and one longer than a lock lasts without that
    "long": (((LONG,),), ((_sleep(0.01), CHANGE),)),
    "longer": (((LONGER,),), ((_sleep(0.01), LONGER),)),
    # several classes, a delete, reads
    "classes": (((BOTH, READ), (DELETE,)), ((CHANGE, READ), (BOTH,))),
    # who waits no longer than this
    "timeouts": (
        ((Step("change", 0.05),),),
        ((Step("change", 0.0, 0.02), CHANGE),),
        ((Step("change", 0.0, 1.5),),),
    ),
    # a process that keeps what it does not need for now
    "kept": (((CHANGE, _sleep(0.5), READ, _sleep(1.5), CHANGE),), ((_sleep(0.01), CHANGE),)),
    # reads beside changes
    "reads": (((CHANGE, READ, READ),), ((_sleep(0.005), CHANGE, READ),)),
    # an ident that was gone meanwhile
    "gone": (((CHANGE,),), ((_sleep(80.0), CHANGE),)),
}

SCENARIOS: Final = {
    f"{name}-{mode}": Scenario(f"{name}-{mode}", mode, processes)
    for mode in MODES
    for name, processes in _PROGRAMS.items()
}
# The shortest of all.
_PAIR: Final = (((SHORT,),), ((_sleep(0.002), CHANGE),))
SCENARIOS["pair-off"] = Scenario("pair-off", "off", _PAIR, closes=False)

# In which two deviations are placed systematically, in this order.
DEEP: Final = ("pair-off", "two-off", "again-behind", "again-through")
