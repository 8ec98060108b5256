"""Typed, per-token, server-side state for async programs, the same on every backend."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from statemgr import errors as errors

if TYPE_CHECKING:
    from statemgr.backends.disk import StateManagerDisk
    from statemgr.backends.memory import StateManagerMemory
    from statemgr.backends.redis import StateManagerRedis
    from statemgr.expiration import StateManagerExpiration
    from statemgr.manager import StateManager
    from statemgr.modification import StateModification
    from statemgr.serialization import MsgpackSerializer, PickleSerializer, Serializer
    from statemgr.settings import Settings
    from statemgr.statistics import StateInfo, Statistics
    from statemgr.token import StateToken

# Loaded at the first touch: a program that keeps states in memory never imports redis.
_HOMES = {
    "MsgpackSerializer": "statemgr.serialization",
    "PickleSerializer": "statemgr.serialization",
    "Serializer": "statemgr.serialization",
    "Settings": "statemgr.settings",
    "StateInfo": "statemgr.statistics",
    "StateManager": "statemgr.manager",
    "StateManagerDisk": "statemgr.backends.disk",
    "StateManagerExpiration": "statemgr.expiration",
    "StateManagerMemory": "statemgr.backends.memory",
    "StateManagerRedis": "statemgr.backends.redis",
    "StateModification": "statemgr.modification",
    "StateToken": "statemgr.token",
    "Statistics": "statemgr.statistics",
}

__all__ = [
    "MsgpackSerializer",
    "PickleSerializer",
    "Serializer",
    "Settings",
    "StateInfo",
    "StateManager",
    "StateManagerDisk",
    "StateManagerExpiration",
    "StateManagerMemory",
    "StateManagerRedis",
    "StateModification",
    "StateToken",
    "Statistics",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
