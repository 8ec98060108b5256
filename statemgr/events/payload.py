"""From an event's payload to a handler's arguments, by the handler's annotations."""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter
from typing import Any, Final

import msgspec

from statemgr.errors import EventHandlerError, EventPayloadError
from statemgr.serialization.hints import classes_in, strip
from statemgr.serialization.refusal import Refusal

_MISFIT: Final = "does not fit its annotation"
_SHOWN: Final = 50  # characters of a name that nobody declared
_EXACT: Final = frozenset({bool, int, float, str, bytes, type(None)})
_CONTAINERS: Final = frozenset({dict, list, tuple, set, bytearray})
_missing = re.compile(r"Object missing required field `([^`]+)`").match
_path = re.compile(r"(.*?) - at `(?:`?key`? in )?`?\$(.*?)`$", re.DOTALL).match


class Payload:
    """Check and convert payloads for one handler.

    Args:
        name: The event's name, for messages.
        parameters: The parameters that come from the payload, with their annotations.
        rest: The annotation of what the handler takes by `**`; None if it takes no names that it
            does not declare.
        reserved: The parameters that a payload must not name, with what they are.

    Raises:
        EventHandlerError: If an annotation is of a kind that no value can be checked against.
    """

    __slots__ = ("_checks", "_name", "_required", "_reserved", "_rest")

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, tuple[Parameter, Any]],
        *,
        rest: Any,
        reserved: Mapping[str, str],
    ) -> None:
        self._name = name
        self._rest = None if rest is None else _check_of(rest, f"a parameter of {name!r} by **")
        self._reserved = reserved
        self._checks: dict[str, tuple[Any, Callable[[Any], Any] | None]] = {}
        for parameter, (_, hint) in parameters.items():
            self._checks[parameter] = _check_of(hint, f"parameter {parameter!r} of {name!r}")
        self._required = {
            parameter
            for parameter, (declared, _) in parameters.items()
            if declared.default is Parameter.empty
        }

    def arguments(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments; a parameter with a default may be missing.

        No container in them is the payload's own: several idents may be sent one event.

        Raises:
            EventPayloadError: If something is missing, unknown, or of another type.
        """
        arguments = {}
        checks = self._checks
        for parameter, value in payload.items():
            check = checks.get(parameter)
            if check is None:
                check = self._admit(parameter)
            exact, convert = check
            kind = type(value)
            if kind is exact:
                arguments[parameter] = value
                continue
            try:
                own = _copied(value) if kind in _CONTAINERS else value
                arguments[parameter] = own if convert is None else convert(own)
            except Exception as error:
                raise self._misfit(parameter, error) from None
        # Nearly always all are given, and then nothing is missing.
        if len(arguments) < len(checks) or self._rest is not None:
            for parameter in self._required:
                if parameter not in arguments:
                    raise self._error(parameter, "is missing")
        return arguments

    def _admit(self, name: Any) -> tuple[Any, Callable[[Any], Any] | None]:
        """Return the check for a name that is not a parameter's."""
        if name in self._reserved:
            raise self._error(
                name,
                f"is {self._reserved[name]}, which no payload can give; a class that comes in "
                "payloads is to be registered by registry.payload()",
            )
        if self._rest is not None and isinstance(name, str):
            return self._rest
        known = ", ".join(map(repr, self._checks)) or "nothing"
        # Names come from clients too: none is to fill a log, or to look like a line of it.
        shown = repr(name[:_SHOWN] if isinstance(name, str) else type(name))
        raise EventPayloadError(
            f"{self._name!r}: {shown} is unknown; the handler takes {known}", field=str(name)
        )

    def _misfit(self, parameter: str, error: Exception) -> EventPayloadError:
        if isinstance(error, Refusal):
            return self._error(parameter + error.path, error.reason)
        message = str(error) if isinstance(error, msgspec.ValidationError) else ""
        found = _path(message)
        reason, path = (found[1], found[2]) if found else (message, "")
        if missing := _missing(reason):
            reason, path = "is missing", f"{path}.{missing[1]}"
        if not reason.startswith(("Expected `", "is missing")):
            # The others show the value, or are a class's own.
            reason = _MISFIT
        return self._error(parameter + path, reason)

    def _error(self, field: str, reason: str) -> EventPayloadError:
        # By ** and in mappings names come from clients, as in _admit.
        shown = field if len(field) <= _SHOWN and field.isprintable() else repr(field[:_SHOWN])
        return EventPayloadError(f"{self._name!r}: {shown}: {reason}", field=field)


def _check_of(hint: Any, where: str) -> tuple[Any, Callable[[Any], Any] | None]:
    """Return the exact type that needs no conversion, and what converts any other value."""
    plain, constrained = strip(hint)
    try:
        hash(plain)
    except TypeError:
        raise EventHandlerError(f"{where}: no value can be checked against {hint!r}") from None
    if plain is Any or plain is object or plain is Parameter.empty:
        return None, None
    pydantic: Any = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(plain, type) and issubclass(plain, pydantic.BaseModel):
        return plain, partial(_validate, plain)
    exact = plain if plain in _EXACT and not constrained else _Never
    try:
        # The annotation is compiled here, so that a bad one shows when the handler is registered.
        msgspec.json.Decoder(hint)
    except Exception as error:
        raise EventHandlerError(f"{where}: no value can be checked against {hint!r}") from error
    # Keys of a JSON object are strings, whatever they stand for.
    convert = partial(msgspec.convert, type=hint, str_keys=True, dec_hook=_foreign)
    if any(dataclasses.is_dataclass(cls) for cls in classes_in(hint)):
        return exact, lambda value: _completed(convert(value))
    return exact, convert


def _copied(value: Any) -> Any:
    """Copy containers at any depth; what else they hold stays the same."""
    kind = type(value)
    if kind is dict:
        return {k: _copied(v) if type(v) in _CONTAINERS else v for k, v in value.items()}
    if kind is list or kind is tuple:
        return kind([_copied(v) if type(v) in _CONTAINERS else v for v in value])
    return kind(value)


def _completed(value: Any) -> Any:
    """Give dataclass instances, at any depth, the attributes of their own that they lack.

    msgspec leaves a default that the class has to the class. Then such an instance, once part of
    a state, would not be like others.
    """
    kind = type(value)
    if kind in (list, tuple, set, frozenset):
        for item in value:
            _completed(item)
    elif kind is dict:
        for item in value.values():
            _completed(item)
    elif dataclasses.is_dataclass(kind) and hasattr(value, "__dict__"):
        own = vars(value)
        for field in dataclasses.fields(kind):
            if field.name not in own and hasattr(value, field.name):
                own[field.name] = getattr(value, field.name)
            _completed(own.get(field.name))
    return value


def _foreign(cls: Any, value: Any) -> Any:
    """Make what msgspec does not know; what is returned as it came, it checks by the class."""
    return cls.model_validate(value) if hasattr(cls, "model_validate") else value


def _validate(model: Any, value: Any) -> Any:
    try:
        return model.model_validate(value)
    except ValueError as error:
        found: Any = error
        # Deeper parts may be keys that came with the payload.
        field = next(iter(found.errors()[0]["loc"]), None) if hasattr(found, "errors") else None
        path = f".{field}" if field in model.model_fields else ""
        raise Refusal(_MISFIT, path) from None


class _Never:
    """No value's type."""
