"""`BaseContext`: an object that is there for whatever runs inside of it."""

from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, ClassVar, Self


class BaseContext:
    """Be found by `get()` from wherever runs inside of `with context:`.

    Each subclass has a `ContextVar` of its own: contexts of different classes do not hide each
    other. A task inherits what was entered where it was made. One object may be entered several
    times, also by several tasks at once.
    """

    __slots__ = ()

    _variable: ClassVar[ContextVar[Any]]
    # The tokens of what this task has entered by `with`, the innermost last.
    _entered: ClassVar[ContextVar[tuple[Token[Any], ...]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._variable = ContextVar(cls.__qualname__)
        cls._entered = ContextVar(f"{cls.__qualname__} entered", default=())

    @classmethod
    def get(cls) -> Self:
        """Return the context that was entered or set last.

        Raises:
            LookupError: If there is none.
        """
        try:
            context: Self = cls._variable.get()
        except LookupError:
            raise LookupError(
                f"there is no {cls.__name__} here: enter one by `with`, or set() it"
            ) from None
        return context

    @classmethod
    def set(cls, context: Self) -> Token[Self]:
        """Make `context` what `get()` returns; `reset` takes the token and undoes it."""
        return cls._variable.set(context)

    @classmethod
    def reset(cls, token: Token[Self]) -> None:
        """Undo the `set` that returned `token`, in the context of that call.

        Raises:
            ValueError: If it was in another one, or for another class.
            RuntimeError: If it was undone before.
        """
        cls._variable.reset(token)

    def __enter__(self) -> Self:
        token = self._variable.set(self)
        self._entered.set((*self._entered.get(), token))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        *outer, token = self._entered.get()
        self._entered.set(tuple(outer))
        self._variable.reset(token)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)
