"""States into bytes, and back."""

from typing import TYPE_CHECKING, Any

from .base import Serializer
from .messagepack import MsgpackSerializer

if TYPE_CHECKING:
    from .signed_pickle import PickleSerializer

__all__ = ["MsgpackSerializer", "PickleSerializer", "Serializer"]


def __getattr__(name: str) -> Any:
    if name == "PickleSerializer":  # few want it, and pickle is slow to import
        from .signed_pickle import PickleSerializer

        return PickleSerializer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
