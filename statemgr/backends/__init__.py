"""Where backends are found: a mode's name to its class."""

from importlib import import_module
from typing import TYPE_CHECKING

from statemgr.errors import SettingsError
from statemgr.manager import StateManager
from statemgr.options import variable_of
from statemgr.redaction import redact_url

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "statemgr.backends"

BUILT_IN = {
    "memory": ("statemgr.backends.memory", "StateManagerMemory"),
    "disk": ("statemgr.backends.disk", "StateManagerDisk"),
    "redis": ("statemgr.backends.redis", "StateManagerRedis"),
}


def load_backend(mode: str) -> type[StateManager]:
    """Return the class of the backend called `mode`.

    A built-in one comes first, then what other packages offer in the entry-point group
    `statemgr.backends`.

    Raises:
        SettingsError: If there is none, or it cannot be loaded.
    """
    if mode in BUILT_IN:
        module, name = BUILT_IN[mode]
        backend = getattr(import_module(module), name)
    else:
        backend = _load(_find(mode))
    if (
        not (isinstance(backend, type) and issubclass(backend, StateManager))
        or backend.__abstractmethods__
    ):
        raise _unusable(mode, "a backend that is a concrete subclass of StateManager")
    return backend


def _find(mode: str) -> "EntryPoint":
    # Imported here: it costs more than all of what a program with memory states imports.
    from importlib.metadata import entry_points

    offered = entry_points(group=ENTRY_POINT_GROUP)
    if mode not in offered.names:
        allowed = " or ".join(sorted({*BUILT_IN, *offered.names}))
        raise _unusable(mode, allowed)
    return offered[mode]


def _load(entry_point: "EntryPoint") -> object:
    try:
        return entry_point.load()
    except Exception as error:
        raise _unusable(
            entry_point.name, f"a backend that can be imported; {entry_point.value} cannot"
        ) from error


def _unusable(mode: str, allowed: str) -> SettingsError:
    variable = variable_of("mode")
    return SettingsError(
        f"{variable}={redact_url(mode)!r}: expected {allowed}", variable=variable, allowed=allowed
    )
