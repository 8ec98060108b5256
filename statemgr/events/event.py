"""`Event`: what happened, by name and with a payload."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from statemgr.errors import EventHandlerError

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Event:
    """Name a handler to run, and the values of its parameters.

    Attributes:
        name: The name that the handler is registered under.
        payload: A value for each of its parameters: what JSON has, or Python's own objects.

    Raises:
        EventHandlerError: If the name is not a string, or the payload no mapping. It is a
            `ValueError`.
    """

    __slots__ = ("name", "payload")

    name: str
    payload: Mapping[str, Any]

    def __init__(self, name: str, payload: Mapping[str, Any] = NOTHING) -> None:
        if not isinstance(name, str):
            raise EventHandlerError(f"an event's name is a string, not {type(name).__name__}")
        if type(payload) is not dict and not isinstance(payload, Mapping):
            raise EventHandlerError(f"a payload is a mapping, not {type(payload).__name__}")
        self.name = name
        self.payload = payload

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return self.name == other.name and self.payload == other.payload

    __hash__ = None  # type: ignore[assignment]  # a payload has none

    def __repr__(self) -> str:
        # Not the values: an event may end up in a log.
        return f"Event({self.name!r}, {{{', '.join(map(repr, self.payload))}}})"
