"""The web application: a page for each room, and a WebSocket that events and deltas go over.

client to server    {"name": "click", "payload": {"by": 1, "name": "Ada", "hue": 200}}
server to client    {"worker": "4711"}                       once, at the start
                    {"delta": {"Room": {"count": 3, ...}}}   first all fields, then what changed
                    {"error": "'click': by: ..."}            an event of this client was refused
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from statemgr import StateManager
from statemgr.errors import EventPayloadError, UnknownEventError
from statemgr.events import Event, EventProcessor

from .rooms import FROM_CLIENTS, Room, registry
from .views import Fields, View, Views

PAGE = Path(__file__).with_name("page.html").read_text()

logger = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """Open what the sockets need; what is yielded is `websocket.state`."""
    views = Views()
    manager = StateManager.create()  # the environment says where states are kept
    processor = EventProcessor(
        manager, registry, emit_delta=views.follow, exception_handler=log_failure
    )
    # The end is the other way round, when the sockets are closed: the watchers take leave, the
    # processor drains, the manager closes. What was accepted is saved.
    async with manager, processor, views:
        yield {"processor": processor, "views": views}


def log_failure(error: BaseException) -> None:
    """Log what is the server's fault: clients learn by themselves what they did wrong."""
    if not isinstance(error, (EventPayloadError, UnknownEventError)):
        logger.error("an event failed", exc_info=error)


async def page(request: Request) -> HTMLResponse:
    """Send the page, which is the same for every room."""
    return HTMLResponse(PAGE)


async def lobby(request: Request) -> RedirectResponse:
    """Lead to a room that everybody finds."""
    return RedirectResponse(request.url_for("room", name="lobby"))


async def socket(websocket: WebSocket) -> None:
    """Serve one viewer of one room, until one side goes."""
    if not is_from_our_page(websocket):
        await websocket.close()  # before it was accepted: a refusal, 403
        return
    await websocket.accept()
    room: str = websocket.path_params["name"]
    processor: EventProcessor = websocket.state.processor
    views: Views = websocket.state.views
    async with views.viewing(room, processor) as view:
        try:
            async with asyncio.TaskGroup() as tasks:  # whichever ends first ends the other
                tasks.create_task(send_changes(websocket, view))
                tasks.create_task(take_events(websocket, room, processor))
        except* WebSocketDisconnect:
            pass  # it is the viewer who has gone: nobody else is concerned


def is_from_our_page(websocket: WebSocket) -> bool:
    """Tell whether another site's page opens this socket, which browsers do not prevent.

    Programs that are no browsers send no origin.
    """
    origin = websocket.headers.get("origin")
    return origin is None or origin.partition("://")[2] == websocket.headers.get("host")


async def send_changes(websocket: WebSocket, view: View) -> None:
    """Send what differs from what was sent before."""
    await send(websocket, {"worker": str(os.getpid())})
    known: Fields = {}
    while True:
        fields = await view.differing_from(known)
        changes = {
            name: value
            for name, value in fields.items()
            if name not in known or known[name] != value
        }
        await send(websocket, {"delta": {Room.__name__: changes}})
        known = fields


async def take_events(websocket: WebSocket, room: str, processor: EventProcessor) -> None:
    """Do what the client asks, one event at a time, and answer what cannot be done."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        try:
            event = event_in(message.get("text") or message.get("bytes") or "")
            future = await processor.enqueue(room, event)
            # Shielded: what was accepted is done, also if its client goes meanwhile.
            await asyncio.shield(future)
        except (BadMessageError, EventPayloadError, UnknownEventError) as error:
            await send(websocket, {"error": str(error)})
        except Exception:  # what a handler ends with is logged by log_failure
            await send(websocket, {"error": "that could not be done, please try again"})


class BadMessageError(Exception):
    """What a client sent is no event."""


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """What a client sends."""

    name: str
    payload: dict[str, Any] = {}


def event_in(data: str | bytes) -> Event:
    """Return the event that a client has sent.

    Raises:
        BadMessageError: If it has sent something else.
        UnknownEventError: If it is one that clients must not send.
    """
    try:
        message = msgspec.json.decode(data, type=Message)
    except (ValueError, RecursionError) as error:
        raise BadMessageError(f"this is no event: {error}") from None
    if message.name not in FROM_CLIENTS:
        raise UnknownEventError(f"no client may send {message.name!r}", name=message.name)
    return Event(message.name, message.payload)


async def send(websocket: WebSocket, message: Any) -> None:
    """Send a message as JSON."""
    await websocket.send_text(msgspec.json.encode(message).decode())


app = Starlette(
    routes=[
        Route("/", lobby),
        Route("/room/{name}", page, name="room"),
        WebSocketRoute("/room/{name}/socket", socket),
    ],
    lifespan=lifespan,
)
