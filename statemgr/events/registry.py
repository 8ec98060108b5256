"""`RegistrationContext`: the handlers and the state classes of one application."""

import sys
from collections.abc import Callable, Mapping
from copy import copy
from types import MappingProxyType
from typing import Any, Self, TypeVar, overload

from statemgr.errors import EventHandlerError, UnknownEventError
from statemgr.events.base import BaseContext
from statemgr.events.handler import Handler, looks_like_a_state
from statemgr.token import StateToken

_SHOWN = 50  # characters of an unknown event's name: it may come from a client

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)


class RegistrationContext(BaseContext):
    """Hold the handlers and the state classes of one application.

        registry = RegistrationContext()

        @registry.handler
        async def add(cart: Cart, item: str, count: int = 1) -> None:
            cart.items[item] = cart.items.get(item, 0) + count

    A parameter that is annotated with a state class receives that state of the event's ident,
    one annotated with `EventContext` the context; all others come from the event's payload.
    A class is a state's if it was registered by `state`. One that was not is taken for a state
    if it has fields and can be made without arguments, unless it was registered by `payload`.

    Subclasses share its place as a context: a processor finds one of any of them.
    """

    __slots__ = ("_handlers", "_kinds", "_names", "_payloads")

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._names: dict[type, str] = {}  # in deltas, also of classes that nobody registered
        self._kinds: dict[type, type[StateToken[Any]]] = {}  # of those that are registered
        self._payloads: set[type] = set()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._variable = RegistrationContext._variable

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by name. To be read."""
        return MappingProxyType(self._handlers)

    @property
    def states(self) -> Mapping[str, type]:
        """The state classes by name. To be read."""
        return {self._names[cls]: cls for cls in self._kinds}

    @overload
    def handler(self, fn: F, /) -> F: ...
    @overload
    def handler(
        self,
        fn: F,
        /,
        *,
        name: str | None = None,
        background: bool = False,
        supersedes: bool = False,
        timeout: float | None = None,
        thread: bool = False,
    ) -> F: ...
    @overload
    def handler(
        self,
        fn: str,
        /,
        *,
        background: bool = False,
        supersedes: bool = False,
        timeout: float | None = None,
        thread: bool = False,
    ) -> Callable[[F], F]: ...
    @overload
    def handler(
        self,
        /,
        *,
        name: str | None = None,
        background: bool = False,
        supersedes: bool = False,
        timeout: float | None = None,
        thread: bool = False,
    ) -> Callable[[F], F]: ...
    def handler(
        self,
        fn: Callable[..., Any] | str | None = None,
        /,
        *,
        name: str | None = None,
        background: bool = False,
        supersedes: bool = False,
        timeout: float | None = None,
        thread: bool = False,
    ) -> Any:
        """Register a function, a coroutine function, or a generator of either kind.

        As a decorator, bare, with a name or with options, or as a call:
        `registry.handler(fn, name="add")`. The function itself is returned, and can be called as
        before.

        Args:
            fn: The function, or the events' name.
            name: The events' name; None takes the function's own.
            background: Run it beside its ident's queue, without the ident's lock: it takes that
                where it needs it, by `async with ctx.modify(Cart) as cart`.
            supersedes: Cancel what older chains run of this handler for the same ident, with all
                that came of it. A chain that goes on by such handlers through ever new idents
                takes time by the square of their number.
            timeout: The longest that it may take in seconds, waiting for the lock included, its
                commit not; None for no bound.
            thread: Run an ordinary function in a thread, because it blocks. Nothing else of its
                ident runs meanwhile. It cannot be cancelled on its way.

        Raises:
            EventHandlerError: If the name is taken, or the function cannot be a handler.
        """
        if isinstance(fn, str):
            fn, name = None, fn
        scope = sys._getframe(1).f_locals  # annotations that are text may name what is there

        def register(fn: F) -> F:
            event = getattr(fn, "__name__", None) if name is None else name
            if not isinstance(event, str):
                raise EventHandlerError(f"{type(fn).__name__} has no name: give one by name=")
            if event in self._handlers:
                raise EventHandlerError(f"{event!r} is the name of another handler: name= it anew")
            names, kinds = dict(self._names), dict(self._kinds)
            try:
                self._handlers[event] = Handler(
                    fn,
                    event,
                    background=background,
                    supersedes=supersedes,
                    timeout=timeout,
                    thread=thread,
                    is_state=self._is_state,
                    scope=scope,
                )
            except BaseException:
                self._names, self._kinds = names, kinds  # none is left behind by what is refused
                raise
            return fn

        return register if fn is None else register(fn)

    @overload
    def state(self, cls: C, /) -> C: ...
    @overload
    def state(
        self, cls: C, /, *, name: str | None = None, kind: type[StateToken[Any]] = StateToken
    ) -> C: ...
    @overload
    def state(
        self, /, *, name: str | None = None, kind: type[StateToken[Any]] = StateToken
    ) -> Callable[[C], C]: ...
    def state(
        self,
        cls: Any = None,
        /,
        *,
        name: str | None = None,
        kind: type[StateToken[Any]] = StateToken,
    ) -> Any:
        """Register a state class, before the handlers that take it; returns the class.

        Args:
            cls: The class.
            name: Its name in deltas; None takes the class's own.
            kind: The class of its tokens, called with an ident and the class.

        Raises:
            EventHandlerError: If the name is another class's, or the class is registered.
        """

        def register(cls: Any) -> Any:
            if not isinstance(cls, type):
                raise EventHandlerError(f"a state's class is a class, not {type(cls).__name__}")
            if cls in self._kinds or cls in self._payloads:
                raise EventHandlerError(f"{cls.__qualname__} is registered already")
            self._add_state(cls, name or cls.__name__, kind)
            return cls

        return register if cls is None else register(cls)

    def payload(self, cls: C) -> C:
        """Register a class whose instances come in payloads, though it looks like a state's.

        Raises:
            EventHandlerError: If it is registered as a state.
        """
        if cls in self._kinds:
            raise EventHandlerError(f"{cls.__qualname__} is registered as a state")
        self._payloads.add(cls)
        return cls

    def fork(self) -> Self:
        """Return a copy, to which more can be added without changing this one."""
        fork = copy(self)
        fork._handlers = self._handlers.copy()
        fork._names = self._names.copy()
        fork._kinds = self._kinds.copy()
        fork._payloads = self._payloads.copy()
        return fork

    def find(self, name: str) -> Handler:
        """Return the handler of this name.

        Raises:
            UnknownEventError: If there is none.
        """
        try:
            return self._handlers[name]
        except KeyError:
            raise UnknownEventError(
                f"no handler is registered for {name[:_SHOWN]!r}", name=name
            ) from None

    def token(self, ident: str, cls: type) -> StateToken[Any]:
        """Return the token of an ident's state.

        Raises:
            InvalidTokenError: If the ident is not a string, or empty, or `cls` is no class.
        """
        return self._kinds.get(cls, StateToken)(ident, cls)

    def name_of(self, cls: type) -> str:
        """Return the name of a state class in deltas.

        Raises:
            EventHandlerError: If nobody registered the class, and its name is another one's.
        """
        name = self._names.get(cls)
        if name is None:
            name = cls.__name__
            self._add_name(cls, name)
        return name

    def _is_state(self, cls: Any) -> bool:
        try:
            if cls in self._kinds:
                return True
            if cls in self._payloads:
                return False
        except TypeError:  # an annotation that has no hash
            return False
        if not looks_like_a_state(cls):
            return False
        self._add_state(cls, cls.__name__, StateToken)
        return True

    def _add_state(self, cls: type, name: str, kind: type[StateToken[Any]]) -> None:
        self._add_name(cls, name)
        self._kinds[cls] = kind

    def _add_name(self, cls: type, name: str) -> None:
        if any(known == name for other, known in self._names.items() if other is not cls):
            raise EventHandlerError(
                f"{name!r} is the name of another state class: register one of the two by "
                "registry.state(cls, name=...)"
            )
        self._names[cls] = name
