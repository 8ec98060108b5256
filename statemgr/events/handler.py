"""`Handler`: one registered function, and what its signature asks for."""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from inspect import Parameter
from typing import Any

from statemgr.errors import EventHandlerError
from statemgr.events.context import EventContext
from statemgr.events.payload import Payload
from statemgr.serialization.hints import UNION_ORIGINS, is_typed_dict, strip
from statemgr.serialization.registry import shape_of


class Handler:
    """What is known of one handler.

    Attributes:
        name: The event's name.
        fn: The function.
        states: The parameters that take states, with their classes.
        classes: Those classes, in the same order.
        context: The parameters that take the `EventContext`.
        payload: What makes its other arguments.
        background: Whether it runs beside its ident's queue.
        supersedes: Whether its newest chain cancels older ones.
        timeout: The longest that it may take, in seconds, waiting for the lock included; None
            for no bound.
        thread: Whether it runs in a thread.
        simple: Whether it takes nothing but its payload, and any time it wants, here.
    """

    __slots__ = (
        "background",
        "classes",
        "context",
        "fn",
        "name",
        "payload",
        "simple",
        "states",
        "supersedes",
        "thread",
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
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
            raise EventHandlerError(f"handler {name!r}: timeout is more than 0 seconds, or None")
        self.name = name
        self.fn = fn
        self.thread = thread
        if thread and _is_no_function(fn):
            raise EventHandlerError(f"handler {name!r}: only an ordinary function runs in a thread")
        self.background = background
        self.supersedes = supersedes
        self.timeout = timeout
        self.states: dict[str, type] = {}
        self.context: list[str] = []
        rest: Any = None
        parameters: dict[str, tuple[Parameter, Any]] = {}
        for parameter, hint in _parameters(fn, name, scope):
            if parameter.kind is Parameter.VAR_KEYWORD:
                rest = hint
                continue
            plain = _without_none(hint)
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
        self.simple = not (thread or self.states or self.context or timeout is not None)


def _without_none(hint: Any) -> Any:
    """Return the class that a parameter is annotated with; of `Cart | None` it is Cart."""
    plain, _ = strip(hint)
    if typing.get_origin(plain) in UNION_ORIGINS:
        others = [part for part in typing.get_args(plain) if part is not types.NoneType]
        if len(others) == 1:
            return strip(others[0])[0]
    return plain


def _unwrapped(fn: Any) -> Any:
    """Return the function behind a partial, a static method or an object that can be called."""
    while isinstance(fn, (partial, staticmethod)):
        fn = fn.func if isinstance(fn, partial) else fn.__func__
    if not inspect.isroutine(fn) and not isinstance(fn, type):
        fn = getattr(fn, "__call__", fn)  # noqa: B004  # the method is what is asked for
    return fn


def _is_no_function(fn: Any) -> bool:
    inner = _unwrapped(fn)
    return (
        inspect.iscoroutinefunction(inner)
        or inspect.isgeneratorfunction(inner)
        or inspect.isasyncgenfunction(inner)
    )


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
    fn = _unwrapped(fn)
    if isinstance(fn, type):
        fn = vars(fn).get("__init__", fn)
    inner = inspect.unwrap(fn)
    # Not that of what it returns, which is nobody's business and often there for checkers only.
    parameters = {p: a for p, a in getattr(fn, "__annotations__", {}).items() if p != "return"}
    # Only of a function that was made in one, names may be those of a function's variables.
    local = dict(scope) if "<locals>" in getattr(inner, "__qualname__", "") else None
    try:
        return typing.get_type_hints(
            types.SimpleNamespace(__annotations__=parameters),
            globalns=getattr(inner, "__globals__", {}),
            localns=local,
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
