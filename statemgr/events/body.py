"""`StatesBody`: states that a handler changes under their lock, and what its client is told.

begin            image A taken                     the client has A
each yield       image B; the delta A -> B sent    the client has B, which is not saved
the end          image C taken, then the commit
  saved          the delta B -> C sent             the client has C, as the store does
  the body       the delta B -> A sent             the client has A, as the store does
   failed
  the commit     the store is read: D              the client has D, as the store does
   failed        the delta B -> D sent
"""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from statemgr.cancellation import outlast
from statemgr.events.delta import REMOVED
from statemgr.events.tracing import notify

if TYPE_CHECKING:
    from statemgr.events.context import EventContext
    from statemgr.events.future import Progress

_PATIENCE: Final = 5.0  # seconds for telling a client of what was undone

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
        if self._emits:
            await self._tell(self._images())

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            try:
                await self._modification.__aexit__(exc_type, exc, traceback)
            finally:
                if self._emits:
                    await _to_the_end(self._tell(self._original))
            return
        processor = self._context.processor
        started = monotonic() if processor._listener is not None else 0.0
        images: list[Any] = []
        if self._emits and not self._kept:
            try:
                images = self._images()
            except BaseException as error:  # it cannot be saved either
                await self._modification.__aexit__(type(error), error, error.__traceback__)
                await _to_the_end(self._tell(self._original))
                raise
        try:
            await self._modification.__aexit__(None, None, None)
        except BaseException:
            if self._emits:
                await _to_the_end(self._tell_what_is_stored())
            raise
        self._progress.committed = True
        if processor._listener is not None:
            seconds = monotonic() - started
            notify(processor._listener.committed, self._context, seconds)
        if self._emits:
            if self._kept:  # made by the commit, which would have told of what cannot be saved
                images = self._kept_images() or self._images()
            if images != self._told or self._unsure:
                await self._tell(images)

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

    async def _tell(self, images: list[Any]) -> None:
        delta: dict[int, dict[str, Any]] = {}
        for number, image in enumerate(images):
            changes = self._fields[number].changes(self._told[number], image)
            if self._unsure and (unsure := self._unsure.get(number, set()) - changes.keys()):
                values = self._fields[number].values(image)
                changes |= {name: values.get(name, REMOVED) for name in unsure}
            if changes:
                delta[number] = changes
        if not delta:
            return
        processor = self._context.processor
        name_of = processor.registry.name_of
        named = {name_of(self._classes[number]): changes for number, changes in delta.items()}
        try:
            sent = processor._send_delta(self._context, self._progress.stream, named)
            if sent is not None:
                await sent
        except BaseException as error:
            for number, changes in delta.items():
                self._unsure.setdefault(number, set()).update(changes)
            # The change itself goes on: it is the future that ends with the error.
            if not isinstance(error, Exception):
                raise
            if self._progress.emission_error is None:
                self._progress.emission_error = error
        else:
            self._told = images
            self._unsure.clear()

    async def _tell_what_is_stored(self) -> None:
        """Put the client right after a commit that may have been done, or another's overwritten."""
        try:
            tokens = [self._context.token(cls) for cls in self._classes]
            states = await self._context.manager.get_states(*tokens)
            stored = [fields.image(s) for fields, s in zip(self._fields, states, strict=True)]
        except Exception:
            logger.warning(
                "event %s: the commit failed, and the states cannot be read; its client is told "
                "what they were before",
                self._context.txid,
                exc_info=True,
            )
            stored = self._original
        await self._tell(stored)


async def _to_the_end(telling: Coroutine[Any, Any, None]) -> None:
    """Put the client right, however often the event is cancelled meanwhile; but not for ever."""
    task = asyncio.create_task(telling)
    cancelled = await outlast(task, _PATIENCE)
    if not task.done():
        task.cancel()
        logger.error("a client could not be told within %g s that a change was undone", _PATIENCE)
    if cancelled is not None:
        raise cancelled
    if task.done():
        task.result()
