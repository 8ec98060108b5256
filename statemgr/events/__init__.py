"""Events per ident, in order, off one queue on the server; on top of any state manager."""

from statemgr.events.base import BaseContext
from statemgr.events.context import EventContext
from statemgr.events.delta import REMOVED, Delta
from statemgr.events.event import Event
from statemgr.events.future import EventFuture
from statemgr.events.processor import EventProcessor
from statemgr.events.registry import RegistrationContext
from statemgr.events.tracing import EventListener

__all__ = [
    "REMOVED",
    "BaseContext",
    "Delta",
    "Event",
    "EventContext",
    "EventFuture",
    "EventListener",
    "EventProcessor",
    "RegistrationContext",
]
