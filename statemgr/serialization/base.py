"""The interface between states and bytes."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from .fields import Fields

T = TypeVar("T")


class Serializer(ABC):
    """Turn a state into bytes and back.

    What `deserialize` returns equals what `serialize` was given, types included. A serializer
    holds no reference to a state, and may be used from several threads.
    """

    @abstractmethod
    def serialize(self, state: object, cls: type[T]) -> bytes:
        """Return the bytes that stand for `state`.

        Args:
            state: An instance of exactly `cls` (for a `TypedDict`, a dict).
            cls: The class that `deserialize` will be given.

        Raises:
            StateEncodeError: Something in `state` would not come back as it is.
        """

    @abstractmethod
    def deserialize(self, data: bytes, cls: type[T]) -> T:
        """Return the state that `data` stands for.

        Args:
            data: What `serialize` returned, now or in an earlier version of the program.
            cls: The class of the state.

        Raises:
            StateDecodeError: `data` is damaged, or does not fit `cls`.
            MemoryError, RecursionError: The process is short of memory or of stack; `data` may be
                as good as any.
        """

    def encoder(self, cls: type[T]) -> Callable[[T], bytes]:
        """Return what `serialize` does for states of `cls`, for who calls it again and again."""
        return partial(self.serialize, cls=cls)

    def fields(self, cls: type) -> "Fields":
        """Return what tells which fields of a state of `cls` have changed."""
        from .fields import CopiedFields

        return CopiedFields(partial(self.serialize, cls=cls), partial(self.deserialize, cls=cls))
