"""`Event`: what happened, by name and with a payload."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from statemgr.errors import EventHandlerError, EventPayloadError

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_SHOWN: Final = 200  # characters of names that may have come from a client


class Event:
    """Name a handler to run, and the values of its parameters.

    Attributes:
        name: The name that the handler is registered under.
        payload: A value for each of its parameters: what JSON has, or Python's own objects. A new
            dict if none is given.

    Raises:
        EventPayloadError: If the payload is no mapping: a client may have sent a list.
        EventHandlerError: If the name is not a string. It is a `ValueError`.
    """

    __slots__ = ("name", "payload")

    name: str
    payload: Mapping[str, Any]

    def __init__(self, name: str, payload: Mapping[str, Any] = NOTHING) -> None:
        if not isinstance(name, str):
            raise EventHandlerError(f"an event's name is a string, not {type(name).__name__}")
        if type(payload) is not dict and not isinstance(payload, Mapping):
            raise EventPayloadError(
                f"{name[:_SHOWN]!r}: a payload is a mapping, not {type(payload).__name__}", field=""
            )
        self.name = name
        self.payload = {} if payload is NOTHING else payload

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return self.name == other.name and self.payload == other.payload

    __hash__ = None  # type: ignore[assignment]  # a payload has none

    def __repr__(self) -> str:
        # Not the values: an event may end up in a log. Nor is a client to fill that by names.
        names = ", ".join(map(repr, self.payload))
        if len(names) > _SHOWN:
            names = names[:_SHOWN] + "..."
        return f"Event({self.name[:_SHOWN]!r}, {{{names}}})"
