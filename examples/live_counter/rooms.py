"""What a room is and what happens in it. Nothing here knows of sockets, workers or stores."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Literal

from msgspec import Meta

from statemgr.events import Event, RegistrationContext

RECENT = 8  # clicks that a room remembers
ROUND = 10  # each count that is a multiple of it is noted
FORGOTTEN_AFTER = 15.0  # seconds without a word, after which a worker is taken for dead

FROM_CLIENTS = frozenset({"click"})
"""The events that may come over a socket; all others are the server's own."""

Name = Annotated[str, Meta(min_length=1, max_length=24)]
Hue = Annotated[int, Meta(ge=0, lt=360)]

registry = RegistrationContext()


@dataclass
class Click:
    """Say who has clicked, and what came of it."""

    by: int
    name: str
    hue: int
    count: int
    at: datetime


@dataclass
class Audience:
    """Say how many viewers one worker has, and when it said so (seconds, wall clock)."""

    viewers: int
    said_at: float


@registry.state
@dataclass
class Room:
    """Be what all who are in a room see; what begins with an underscore stays on the server.

    Attributes:
        revision: Grows by one with each change that can be seen.
        count: The counter.
        clicks: The last clicks, the newest first.
        milestone: The last round number that the counter came to.
        viewers: How many sockets are open, on all workers.
    """

    revision: int = 0
    count: int = 0
    clicks: list[Click] = field(default_factory=list)
    milestone: int | None = None
    viewers: int = 0
    _audiences: dict[str, Audience] = field(default_factory=dict)  # by worker


@registry.handler
def click(room: Room, by: Literal[-1, 1], name: Name, hue: Hue) -> Event | None:
    """Count; the annotations are all the checking that a payload needs."""
    room.revision += 1
    room.count += by
    room.clicks.insert(0, Click(by, name, hue, room.count, datetime.now(UTC)))
    del room.clicks[RECENT:]
    # Chained: it runs when this is saved, without a trip to the client.
    return None if room.count % ROUND else Event("celebrate", {"milestone": room.count})


@registry.handler
def celebrate(room: Room, milestone: int) -> None:
    """Note a round number."""
    room.revision += 1
    room.milestone = milestone


@registry.handler
def attend(room: Room, worker: str, viewers: int) -> None:
    """Note how many viewers a worker has. One that has died without a word is forgotten."""
    now = time.time()
    room._audiences[worker] = Audience(viewers, now)
    for other, audience in list(room._audiences.items()):
        if not audience.viewers or now - audience.said_at > FORGOTTEN_AFTER:
            del room._audiences[other]
    total = sum(audience.viewers for audience in room._audiences.values())
    if total != room.viewers:
        room.revision += 1
        room.viewers = total
