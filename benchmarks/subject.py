"""What can be measured: a backend of ours in one variant, a peer, or a floor."""

from abc import ABC, abstractmethod
from asyncio import Future
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Role(StrEnum):
    """Why a subject is measured."""

    OURS = "ours"
    PEER = "peer"  # what a user would pick instead
    FLOOR = "floor"  # the least that could do the work, without the promises


class Store(ABC):
    """An opened subject: the loops that the store scenarios time.

    Each coroutine that takes tokens does one operation per token, one after the other, written
    the way a user of the subject would write it. It holds the loop itself so that a batch costs
    one call, and no code of the harness runs between two operations.
    """

    @abstractmethod
    def token(self, ident: str, cls: type) -> Any:
        """Return what the subject goes by for one state; built before anything is timed."""

    @abstractmethod
    async def fill(self, tokens: Sequence[Any], factory: Callable[[], Any]) -> None:
        """Store a state made by `factory` for each token. Never timed."""

    @abstractmethod
    async def read(self, tokens: Sequence[Any]) -> None:
        """Read the state of each token."""

    @abstractmethod
    async def change(self, tokens: Sequence[Any]) -> None:
        """Add one to `version` of each token's state, under its lock."""

    @abstractmethod
    async def change_slowly(self, tokens: Sequence[Any]) -> None:
        """Do the same with one turn of the loop inside the body, so that other tasks queue up."""

    @abstractmethod
    async def version(self, token: Any) -> int:
        """Return `version` of a token's state: how many changes have arrived."""

    def held(self) -> int:
        """Return how many tokens are kept; only asked of a subject that `expires`."""
        raise NotImplementedError


class Codec(NamedTuple):
    """A pair of functions that turn a state into bytes and back."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


class Events(ABC):
    """An opened event processor: the loops that the event scenarios time.

    As in `Store`, each coroutine goes through all that it is given, written the way a user of the
    subject would write it, the events themselves made on the way.
    """

    @abstractmethod
    async def fill(self, idents: Sequence[str]) -> None:
        """Store what the handlers change, if they change anything. Never timed."""

    @abstractmethod
    async def send(self, idents: Sequence[str]) -> None:
        """Enqueue an event for each ident, and wait until it is settled before the next."""

    @abstractmethod
    async def enqueue(self, idents: Sequence[str]) -> Sequence[Future[Any]]:
        """Enqueue an event for each ident, and return what is done when they are settled."""

    @abstractmethod
    async def chain(self, idents: Sequence[str], length: int) -> None:
        """Enqueue the first of `length` events, each chained by the one before, and wait for all.

        One chain for each ident, one after the other.
        """

    @abstractmethod
    async def handled(self, idents: Sequence[str]) -> int:
        """Return how many events have been handled, by what they have left behind."""


class OpenDirectory(Protocol):
    """Opens a store whose states outlive it."""

    def __call__(
        self, directory: Path, token_expiration: float, *, ahead: float = 0.0
    ) -> AbstractAsyncContextManager[Store]:
        """Open a store on a directory, with the states that an earlier one left there.

        Args:
            directory: Is there, and nobody else's.
            token_expiration: Seconds after which its tokens expire.
            ahead: Seconds by which its clock is ahead; for those that `expires` only.
        """


class OpenServer(Protocol):
    """Opens a store whose states are on a Redis server, and outlive it."""

    def __call__(self, url: str, token_expiration: float) -> AbstractAsyncContextManager[Store]:
        """Open a store on a server, with the states that an earlier one left there.

        Args:
            url: Where the server is; its database is nobody else's.
            token_expiration: Seconds after which its tokens expire.
        """


class OpenEvents(Protocol):
    """Opens an event processor."""

    def __call__(self, place: str) -> AbstractAsyncContextManager[Events]:
        """Open a processor, with the states that an earlier one left there.

        Args:
            place: Where its states are: the directory or the URL that `open_directory` or
                `open_server` takes; empty if the subject has neither.
        """


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing to measure, and what it offers; a scenario runs on those that offer its need.

    Attributes:
        name: Unique. A variant of a backend is `backend/variant`.
        role: Ours, a peer or a floor.
        summary: One line for `list`.
        against: The backends or variants that a peer or a floor is compared with; see `rivals`.
        requires: Modules that must be importable; a peer with any runs under `--peers` only.
        always: Run a peer without `--peers` too, because it costs nothing to have.
        optional: Run a variant of ours only if it, or its backend, is named, or with `--peers`.
        lacks: What ours promise and it does not, in a few words each; printed with the ratios.
        open_store: Open a `Store` whose tokens expire after the given seconds.
        open_directory: Given in place of `open_store` if the states outlive the store in files.
        open_server: Given in place of `open_store` if they do so on a server.
        open_events: Open an event processor, whose handlers change the states kept so, if any.
        shared: Whether several processes may change what is there at once, and lose nothing.
        exclusive: Whether changes of one token by several tasks are one after the other. One that
            is not runs only where each task has its tokens.
        expires: Whether that store drops tokens by itself.
        codec: Make its `Codec`.
        statement: What a program runs to import it.
        module: Where the subject is defined; filled in by `discovery`.
    """

    name: str
    role: Role
    summary: str
    against: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    always: bool = False
    optional: bool = False
    lacks: tuple[str, ...] = ()
    open_store: Callable[[float], AbstractAsyncContextManager[Store]] | None = None
    open_directory: OpenDirectory | None = None
    open_server: OpenServer | None = None
    open_events: OpenEvents | None = None
    shared: bool = False
    exclusive: bool = True
    expires: bool = False
    codec: Callable[[], Codec] | None = None
    statement: str | None = None
    module: str = ""

    @property
    def backend(self) -> str:
        """The name without its variant."""
        return self.name.partition("/")[0]

    @property
    def in_files(self) -> bool:
        """Whether states are kept in a directory."""
        return self.open_directory is not None

    @property
    def on_server(self) -> bool:
        """Whether states are kept on a server."""
        return self.open_server is not None

    @property
    def lasting(self) -> bool:
        """Whether states outlive the store, so that another one can read them."""
        return self.in_files or self.on_server


def rivals(subject: Subject, others: Iterable[Subject]) -> list[Subject]:
    """Return the peers and the floors that one of ours is compared with.

    Of each role these are the ones that name the variant; where none does, those that name its
    backend.
    """
    found = []
    for role in (Role.PEER, Role.FLOOR):
        able = [other for other in others if other.role is role]
        exact = [other for other in able if subject.name in other.against]
        found += exact or [other for other in able if subject.backend in other.against]
    return found
