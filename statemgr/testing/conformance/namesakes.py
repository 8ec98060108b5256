"""A class of the same qualified name as one in `statemgr.testing.conformance.states`."""

from dataclasses import dataclass


@dataclass
class Counter:
    """Another number."""

    value: int = 0
