"""`StatesBody`: states that a handler changes under their lock, and what its client is told.

begin            image A taken                     the client has A
each yield       image B; the delta A -> B sent    the client has B, which is not saved
the end          image C taken, then the commit
  saved          the delta B -> C sent             the client has C, as the store does
  the body       the delta B -> A sent             the client has A, as the store does
   failed
  the commit     the store is read: D              the client has D, as the store does
   failed        the delta B -> D sent

A manager that does not roll back keeps what a body that failed has changed: then too the store is
read. The delta B -> A begins before the lock is free, or a newer change might be told before it:

    the handler             raises; lets the lock go
    another, that waits     takes the lock, commits, tells of its change
    the handler             tells of A: the client has A, the store the other's change
"""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Sequence
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from statemgr.cancellation import outlast
from statemgr.events.delta import REMOVED
from statemgr.events.tracing import notify

if TYPE_CHECKING:
    from statemgr.events.context import EventContext
    from statemgr.events.future import Progress

_PATIENCE: Final = 5.0  # seconds for telling a client of what was undone; half for reading it

logger = logging.getLogger("statemgr.events")


def modification_of(
    context: "EventContext", classes: Sequence[type[Any]], timeout: float | None = None
) -> Any:
    """Return what `async with` changes an ident's state on, or the tuple of several."""
    processor = context.processor
    if len(classes) == 1:
        token = processor._token(context.ident, classes[0])
        return processor.manager.modify_state(token, timeout=timeout)
    tokens = [processor._token(context.ident, cls) for cls in classes]
    return processor.manager.modify_states(*tokens, timeout=timeout)


class StatesBody:
    """Enter a modification, emit the deltas of what happens in it, and tell the listener.

    Args:
        modification: What `modification_of` returned.
        context: The event's context.
        classes: The states' classes.
        progress: Is told of the commit, and of errors in emitting.
    """

    __slots__ = (
        "_classes",
        "_context",
        "_emits",
        "_fields",
        "_kept",
        "_modification",
        "_names",
        "_original",
        "_progress",
        "_states",
        "_told",
        "_unsure",
    )

    _states: tuple[Any, ...]
    # Images, one for each class: of the states as they were, and as the client knows them.
    _original: list[Any]
    _told: list[Any]

    def __init__(
        self,
        modification: Any,
        context: "EventContext",
        classes: Sequence[type[Any]],
        progress: "Progress",
    ) -> None:
        self._modification = modification
        self._context = context
        self._classes = classes
        self._progress = progress
        processor = context.processor
        self._emits = progress.stream is not None or processor._emit_delta_to is not None
        self._kept = False  # whether images are the manager's own bytes
        if self._emits:
            self._names = [processor.registry.name_of(cls) for cls in classes]
            self._fields = [processor._fields(cls) for cls in classes]
            # By class, the fields of deltas whose emission failed: the client knows them, or not.
            self._unsure: dict[int, set[str]] = {}

    async def __aenter__(self) -> Any:
        processor = self._context.processor
        started = monotonic() if processor._listener is not None else 0.0
        state = await self._modification.__aenter__()
        self._states = (state,) if len(self._classes) == 1 else state
        if self._emits:
            try:
                images = self._kept_images()
                self._kept = images is not None
                self._original = self._told = self._images() if images is None else images
            except BaseException as error:
                await self._modification.__aexit__(type(error), error, error.__traceback__)
                raise
        if processor._listener is not None:
            seconds = monotonic() - started
            notify(processor._listener.waited, self._context, seconds)
        return state

    async def tell(self) -> None:
        """Emit what has changed since the last delta, before it is saved."""
        if self._emits and (sent := self._send(self._images())) is not None:
            await sent

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            await self._undo(exc_type, exc, traceback)
            return
        processor = self._context.processor
        started = monotonic() if processor._listener is not None else 0.0
        images: list[Any] = []
        if self._emits and not self._kept:
            try:
                images = self._images()
            except BaseException as error:  # it cannot be saved either
                await self._undo(type(error), error, error.__traceback__)
                raise
        try:
            await self._modification.__aexit__(None, None, None)
        except BaseException:
            if self._emits:
                await _to_the_end(asyncio.create_task(self._tell_what_is_stored()))
            raise
        self._progress.committed = True
        if processor._listener is not None:
            seconds = monotonic() - started
            notify(processor._listener.committed, self._context, seconds)
        if self._emits:
            if self._kept:  # made by the commit, which would have told of what cannot be saved
                images = self._kept_images() or self._images()
            if images != self._told or self._unsure:
                sent = self._send(images)
                if sent is not None:
                    await sent

    async def _undo(self, *error: Any) -> None:
        """Save nothing, and tell the client what is stored."""
        telling: asyncio.Task[None] | None = None
        try:
            if self._emits:
                if getattr(self._context.manager, "rollback", True):
                    sent = self._send(self._original)
                else:
                    sent = self._tell_what_is_stored()
                if sent is not None:
                    telling = asyncio.create_task(sent)
                    await asyncio.sleep(0)  # it begins while the lock is held
        finally:
            try:
                await self._modification.__aexit__(*error)
            finally:
                if telling is not None:
                    await _to_the_end(telling)

    def _kept_images(self) -> list[Any] | None:
        """Return the images that the manager's own bytes are, if it has any."""
        if len(self._classes) > 1:
            return None
        payload = self._context.processor.manager._payload_of(self._modification)
        image = self._fields[0].image_of(payload)
        return None if image is None else [image]

    def _images(self) -> list[Any]:
        # Of what the modification holds: it is that which is saved.
        return [fields.image(s) for fields, s in zip(self._fields, self._states, strict=True)]

    def _send(self, images: list[Any]) -> Coroutine[Any, Any, None] | None:
        """Send what has changed since the last delta; return what is still to be awaited."""
        delta: dict[int, dict[str, Any]] = {}
        for number, image in enumerate(images):
            changes = self._fields[number].changes(self._told[number], image)
            if self._unsure and (unsure := self._unsure.get(number, set()) - changes.keys()):
                values = self._fields[number].values(image)
                changes |= {name: values.get(name, REMOVED) for name in unsure}
            if changes:
                delta[number] = changes
        if not delta:
            return None
        processor = self._context.processor
        named = {self._names[number]: changes for number, changes in delta.items()}
        try:
            sent = processor._send_delta(self._context, self._progress.stream, named)
        except BaseException as error:
            if not self._goes_on(delta, error):
                raise
            return None
        if sent is not None:
            return self._arrival(sent, delta, images)
        self._told = images
        self._unsure.clear()
        return None

    async def _arrival(
        self, sent: Awaitable[object], delta: dict[int, dict[str, Any]], images: list[Any]
    ) -> None:
        try:
            await sent
        except BaseException as error:
            if not self._goes_on(delta, error):
                raise
        else:
            self._told = images
            self._unsure.clear()

    def _goes_on(self, delta: dict[int, dict[str, Any]], error: BaseException) -> bool:
        """Note that a delta may not have arrived; return whether the change itself goes on."""
        for number, changes in delta.items():
            self._unsure.setdefault(number, set()).update(changes)
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and not task.cancelling():
            # Nobody has cancelled the event: emit_delta waited for something that was cancelled.
            cancelled, error = error, RuntimeError("emit_delta ended with a CancelledError")
            error.__cause__ = cancelled
        if not isinstance(error, Exception):
            return False
        if self._progress.emission_error is None:  # it is the future that ends with it
            self._progress.emission_error = error
        return True

    async def _tell_what_is_stored(self) -> None:
        """Put the client right where that need not be what it was before."""
        try:
            tokens = [self._context.token(cls) for cls in self._classes]
            async with asyncio.timeout(_PATIENCE / 2):
                states = await self._context.manager.get_states(*tokens)
            stored = [fields.image(s) for fields, s in zip(self._fields, states, strict=True)]
        except Exception:
            logger.warning(
                "event %s failed, and its states cannot be read; its client is told what they were "
                "before",
                self._context.txid,
                exc_info=True,
            )
            stored = self._original
        sent = self._send(stored)
        if sent is not None:
            await sent


async def _to_the_end(telling: asyncio.Task[None]) -> None:
    """Put the client right, however often the event is cancelled meanwhile; but not for ever."""
    cancelled = await outlast(telling, _PATIENCE)
    if not telling.done():
        telling.cancel()
        logger.error("a client could not be told within %g s that a change was undone", _PATIENCE)
    if cancelled is not None:
        raise cancelled
    if telling.done():
        telling.result()
