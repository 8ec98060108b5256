"""`StateManagerMemory`: states in this process."""

from typing import TYPE_CHECKING, Any, Self, Unpack

from statemgr.live import LiveStates
from statemgr.manager import ManagerOptions, manager_options
from statemgr.modification import StateModification
from statemgr.options import check_option

if TYPE_CHECKING:
    from statemgr.settings import Settings


class StateManagerMemory(LiveStates):
    """Keep states in the memory of this process. They end with it.

    Args:
        rollback: Serialize each state when it is committed. Off, a change costs less than half,
            and states may be of any type and size; but a body that raises keeps the changes it
            made in place to a stored object, readers get that object and see bodies at work,
            and nothing finds out whether a state could be saved on another backend.
        options: What every `StateManager` takes.

    Raises:
        SettingsError: If an option cannot have its value.
    """

    def __init__(self, *, rollback: bool = True, **options: Unpack[ManagerOptions]) -> None:
        super().__init__(**options)
        check_option("memory_rollback", rollback)
        self._init_live(rollback=rollback)

    @classmethod
    def from_settings(cls, settings: "Settings") -> Self:
        return cls(rollback=settings.memory_rollback, **manager_options(settings))

    def _payload_of(self, modification: StateModification[Any]) -> bytes | None:
        entry = modification.grant  # None for several classes
        return None if entry is None else entry.payload
