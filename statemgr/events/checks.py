"""What a processor may be given, and the errors that name what it may not."""

from typing import Any

from statemgr.errors import EventHandlerError, InvalidTokenError, SettingsError
from statemgr.events.event import Event
from statemgr.events.registry import RegistrationContext


def registry_of(registry: object) -> RegistrationContext:
    """Return the registry that was given, or the context's for None."""
    if registry is None:
        try:
            return RegistrationContext.get()
        except LookupError:
            raise LookupError(
                "no registry: give a RegistrationContext as the second argument, or enter one"
            ) from None
    if not isinstance(registry, RegistrationContext):
        raise SettingsError(
            f"registry cannot be a {type(registry).__name__}",
            variable="registry",
            allowed="a RegistrationContext, behind the manager",
        )
    return registry


def check_ident(ident: object) -> None:
    """Refuse what is no ident."""
    if type(ident) is not str and not isinstance(ident, str):
        raise InvalidTokenError(f"an ident is a string, not {type(ident).__name__}")
    if not ident:
        raise InvalidTokenError("an ident cannot be empty")


def check_event(event: object) -> None:
    """Refuse what is no event."""
    if not isinstance(event, Event):
        raise EventHandlerError(f"an event is an Event, not {type(event).__name__}")


def check_positive(name: str, value: Any) -> None:
    """Refuse an argument that is no number of events."""
    if type(value) is not int or value < 1:
        raise SettingsError(
            f"{name} cannot be {value!r}", variable=name, allowed="an int of 1 or more"
        )


def check_timeout(name: str, value: Any) -> None:
    """Refuse an argument that is neither seconds nor None."""
    if value is not None and not (isinstance(value, (int, float)) and value >= 0):
        raise SettingsError(
            f"{name} cannot be {value!r}", variable=name, allowed="seconds, 0 or more, or None"
        )
