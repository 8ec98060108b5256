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

import logging
from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statemgr.events.context import EventContext
    from statemgr.events.future import EventFuture

logger = logging.getLogger("statemgr.events")


class StatesBody:
    """Enter a `modify_state` body, and emit the deltas of what happens in it.

    Args:
        context: The event's context.
        classes: Whose states.
        future: The event's future: it is told of the commit, and of errors in emitting.
        timeout: The longest wait for the lock in seconds; None waits for ever.
    """

    __slots__ = (
        "_classes",
        "_context",
        "_emits",
        "_fields",
        "_future",
        "_modification",
        "_original",
        "_states",
        "_tokens",
        "_told",
    )

    _modification: Any
    _states: tuple[Any, ...]
    # Images, one for each class: of the states as they were, and as the client knows them.
    _original: list[Any]
    _told: list[Any]

    def __init__(
        self,
        context: "EventContext",
        classes: Sequence[type[Any]],
        future: "EventFuture",
        timeout: float | None = None,
    ) -> None:
        processor = context.processor
        self._context = context
        self._classes = classes
        self._future = future
        self._tokens = [processor._token(context.ident, cls) for cls in classes]
        self._emits = processor._emits(future)
        self._fields = [processor._fields(cls) for cls in classes] if self._emits else []
        if len(classes) == 1:
            self._modification = processor.manager.modify_state(self._tokens[0], timeout=timeout)
        else:
            self._modification = processor.manager.modify_states(*self._tokens, timeout=timeout)

    async def __aenter__(self) -> tuple[Any, ...]:
        listener = self._context.processor._listener
        started = monotonic() if listener is not None else 0.0
        state = await self._modification.__aenter__()
        self._states = (state,) if len(self._classes) == 1 else state
        if self._emits:
            try:
                self._original = self._told = self._images()
            except BaseException as error:
                await self._modification.__aexit__(type(error), error, error.__traceback__)
                raise
        if listener is not None:
            self._context.processor._trace(listener.waited, self._context, monotonic() - started)
        return self._states

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
                    await self._tell(self._original)
            return
        if not self._emits:
            await self._commit()
            return
        try:
            images = self._images()
        except BaseException as error:  # it cannot be saved either
            await self._modification.__aexit__(type(error), error, error.__traceback__)
            await self._tell(self._original)
            raise
        await self._commit()
        await self._tell(images)

    async def _commit(self) -> None:
        listener = self._context.processor._listener
        started = monotonic() if listener is not None else 0.0
        try:
            await self._modification.__aexit__(None, None, None)
        except BaseException:
            if self._emits:
                await self._tell_what_is_stored()
            raise
        self._future.committed = True
        if listener is not None:
            self._context.processor._trace(listener.committed, self._context, monotonic() - started)

    def _images(self) -> list[Any]:
        # Of what the modification holds: it is that which is saved.
        return [fields.image(s) for fields, s in zip(self._fields, self._states, strict=True)]

    async def _tell(self, images: list[Any]) -> None:
        processor = self._context.processor
        delta = {}
        for number, image in enumerate(images):
            if changes := self._fields[number].changes(self._told[number], image):
                delta[processor.registry.name_of(self._classes[number])] = changes
        if not delta:
            return
        try:
            sent = processor._send_delta(self._context, self._future, delta)
            if sent is not None:
                await sent
        except Exception as error:
            # The change itself goes on: it is the future that ends with the error, and what was
            # not told is part of the next delta.
            if self._future._emission_error is None:
                self._future._emission_error = error
        else:
            self._told = images

    async def _tell_what_is_stored(self) -> None:
        """Put the client right after a commit that may have been done, or another's overwritten."""
        try:
            states = await self._context.manager.get_states(*self._tokens)
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


class Modifying:
    """What `async with ctx.modify(Cart) as cart` runs on."""

    __slots__ = ("_body",)

    def __init__(self, body: StatesBody) -> None:
        self._body = body

    async def __aenter__(self) -> Any:
        states = await self._body.__aenter__()
        return states[0] if len(states) == 1 else states

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._body.__aexit__(exc_type, exc, traceback)
