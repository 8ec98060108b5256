"""`Handler`: one registered function, and what its signature asks for."""

import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from enum import Enum, auto
from functools import partial
from inspect import Parameter
from typing import Any

from statemgr.errors import EventHandlerError
from statemgr.events.context import EventContext
from statemgr.events.payload import Payload
from statemgr.serialization.hints import is_typed_dict, strip
from statemgr.serialization.registry import shape_of


class Kind(Enum):
    """How a handler runs."""

    FUNCTION = auto()
    COROUTINE = auto()
    GENERATOR = auto()
    ASYNC_GENERATOR = auto()
    THREAD = auto()


class Handler:
    """What is known of one handler.

    Attributes:
        name: The event's name.
        fn: The function.
        kind: How it runs.
        states: The parameters that take states, with their classes.
        classes: Those classes, in the same order.
        context: The parameters that take the `EventContext`.
        payload: What makes its other arguments.
        background: Whether it runs beside its ident's queue.
        supersedes: Whether its newest chain cancels older ones.
        timeout: The longest that it may take, in seconds, waiting for the lock included; None
            for no bound.
        simple: Whether it is a function or a coroutine that takes nothing but its payload, and
            any time it wants.
    """

    __slots__ = (
        "background",
        "classes",
        "context",
        "fn",
        "kind",
        "name",
        "payload",
        "simple",
        "states",
        "supersedes",
        "timeout",
    )

    def __init__(
        self,
        fn: Callable[..., Any],
        name: str,
        *,
        background: bool,
        supersedes: bool,
        timeout: float | None,
        thread: bool,
        is_state: Callable[[Any], bool],
        scope: Mapping[str, Any],
    ) -> None:
        """Look at the signature; `scope` has names that its annotations may use.

        Raises:
            EventHandlerError: If it is not one that a handler can have.
        """
        if timeout is not None and not timeout > 0:
            raise EventHandlerError(f"handler {name!r}: timeout is more than 0 seconds, or None")
        self.name = name
        self.fn = fn
        self.kind = _kind_of(fn, name, thread=thread)
        self.background = background
        self.supersedes = supersedes
        self.timeout = timeout
        self.states: dict[str, type] = {}
        self.context: list[str] = []
        rest = False
        parameters: dict[str, tuple[Parameter, Any]] = {}
        for parameter, hint in _parameters(fn, name, scope):
            if parameter.kind is Parameter.VAR_KEYWORD:
                rest = True
                continue
            plain, _ = strip(hint)
            if plain is EventContext:
                self.context.append(parameter.name)
            elif is_state(plain):
                self.states[parameter.name] = plain
            else:
                parameters[parameter.name] = parameter, hint
        if len(set(self.states.values())) < len(self.states):
            raise EventHandlerError(f"handler {name!r} takes one state by two parameters")
        self.classes = tuple(self.states.values())
        if background and self.states:
            first = next(iter(self.states))
            raise EventHandlerError(
                f"handler {name!r} runs in the background and cannot hold the lock all the time: "
                f"in place of the parameter {first!r}, enter `async with ctx.modify(...)` where "
                "its state is needed"
            )
        reserved = dict.fromkeys(self.states, "a state") | dict.fromkeys(
            self.context, "the context"
        )
        self.payload = Payload(name, parameters, rest=rest, reserved=reserved)
        self.simple = (
            self.kind in (Kind.FUNCTION, Kind.COROUTINE)
            and timeout is None
            and not (self.states or self.context)
        )


def _kind_of(fn: Callable[..., Any], name: str, *, thread: bool) -> Kind:
    inner: Any = fn
    while isinstance(inner, partial):
        inner = inner.func
    if not inspect.isroutine(inner) and not isinstance(inner, type):
        inner = getattr(inner, "__call__", inner)  # noqa: B004  # an object that can be called
    if inspect.isasyncgenfunction(inner):
        kind = Kind.ASYNC_GENERATOR
    elif inspect.iscoroutinefunction(inner):
        kind = Kind.COROUTINE
    elif inspect.isgeneratorfunction(inner):
        kind = Kind.GENERATOR
    else:
        kind = Kind.FUNCTION
    if not thread:
        return kind
    if kind is not Kind.FUNCTION:
        raise EventHandlerError(f"handler {name!r}: only an ordinary function runs in a thread")
    return Kind.THREAD


def _parameters(
    fn: Callable[..., Any], name: str, scope: Mapping[str, Any]
) -> list[tuple[Parameter, Any]]:
    """Return the parameters with their resolved annotations."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        raise EventHandlerError(f"handler {name!r} has no signature to go by") from None
    for parameter in signature.parameters.values():
        if parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.VAR_POSITIONAL):
            raise EventHandlerError(
                f"handler {name!r}: {parameter.name!r} cannot be given by name, as all are"
            )
    hints = _hints(fn, name, scope)
    return [(p, hints.get(p.name, p.annotation)) for p in signature.parameters.values()]


def _hints(fn: Any, name: str, scope: Mapping[str, Any]) -> dict[str, Any]:
    while isinstance(fn, partial):
        fn = fn.func
    if not inspect.isroutine(fn) and not isinstance(fn, type):
        fn = fn.__call__
    try:
        return typing.get_type_hints(
            vars(fn).get("__init__", fn) if isinstance(fn, type) else fn,
            localns=dict(scope),
            include_extras=True,
        )
    except Exception as error:
        raise EventHandlerError(
            f"handler {name!r}: its annotations cannot be resolved ({error}); what they name has "
            "to be there when it is registered"
        ) from error


def looks_like_a_state(cls: Any) -> bool:
    """Tell whether a class that nobody registered is taken for a state.

    It is one if it has fields and can be made without arguments, as fresh states are. Classes of
    values (named tuples, typed dicts, enums, all that comes with Python) are not.
    """
    if not isinstance(cls, type) or cls.__module__.partition(".")[0] in sys.stdlib_module_names:
        return False
    if issubclass(cls, (tuple, Enum)) or is_typed_dict(cls) or shape_of(cls) is None:
        return False
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):
        return False
    return all(
        p.default is not Parameter.empty
        or p.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        for p in parameters
    )
