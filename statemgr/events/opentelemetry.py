"""`OpenTelemetryListener`: a span for each event. Needs the extra `otel`."""

from asyncio import CancelledError
from typing import TYPE_CHECKING

from statemgr.errors import UnknownEventError
from statemgr.events.tracing import EventListener
from statemgr.token import StateToken

try:
    from opentelemetry import context as variables
    from opentelemetry import trace
except ImportError as error:
    raise ImportError(f"{__name__} needs OpenTelemetry: pip install 'statemgr[otel]'") from error

if TYPE_CHECKING:
    from statemgr.events.context import EventContext


class OpenTelemetryListener(EventListener):
    """Make a span of each event, from the start of its handler to its end.

        EventProcessor(manager, registry, listener=OpenTelemetryListener())

    Its parent is the span in which the event was enqueued: that of the request, or of the event
    that chained it. It is the current span of whatever the handler does. An event that is refused
    has a span without duration; one that is cancelled before its turn has none.

    Attributes are `statemgr.event.name`, `.txid`, `.parent_txid` (of one that was chained),
    `.queued_seconds`, and `statemgr.ident`, which is the digest by which the manager's logs name
    the ident too, or the ident itself if that is what the manager's `log_idents` asks for. A
    lock that was got and a commit are span events with their `seconds`. An error is recorded as
    an exception, with its text; a cancel is a span event, and no error.

    Args:
        tracer_provider: Makes the spans; None takes the one that the program has set.
    """

    def __init__(self, tracer_provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("statemgr", tracer_provider=tracer_provider)
        self._spans: dict[str, trace.Span] = {}  # of the events that run, by txid

    def started(self, context: "EventContext", seconds: float) -> None:
        """Begin the span, and make it the current one."""
        span = self._spans[context.txid] = self._begin(context)
        span.set_attribute("statemgr.event.queued_seconds", seconds)
        # NOTE: nothing detaches it. The event's task has context variables of its own, which end
        # with it; and whoever handles its error finds the trace that it belongs to.
        variables.attach(trace.set_span_in_context(span))

    def waited(self, context: "EventContext", seconds: float) -> None:
        """Note the lock."""
        self._note(context, "lock acquired", seconds)

    def committed(self, context: "EventContext", seconds: float) -> None:
        """Note the commit."""
        self._note(context, "committed", seconds)

    def finished(self, context: "EventContext", seconds: float) -> None:
        """End the span."""
        self._spans.pop(context.txid).end()

    def failed(self, context: "EventContext", error: BaseException, seconds: float) -> None:
        """End the span with its error, or make one for an event that was refused."""
        span = self._spans.pop(context.txid, None)
        cancelled = isinstance(error, CancelledError)
        if span is None:
            if cancelled:
                return
            span = self._begin(context, known=not isinstance(error, UnknownEventError))
        if cancelled:
            span.add_event("cancelled")
        else:
            span.record_exception(error)
            span.set_status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}")
        span.end()

    def _begin(self, context: "EventContext", *, known: bool = True) -> trace.Span:
        lock_key = StateToken(context.ident, object).lock_key
        attributes = {
            "statemgr.event.txid": context.txid,
            "statemgr.ident": context.manager._redaction.ident(lock_key),
        }
        if context.parent_txid is not None:
            attributes["statemgr.event.parent_txid"] = context.parent_txid
        # A name that nobody registered may be any text that a client sent: as the name of a span
        # it would be a kind of its own, and an exporter may not be able to send it at all.
        if known:
            attributes["statemgr.event.name"] = context.name
        return self._tracer.start_span(context.name if known else "unknown", attributes=attributes)

    def _note(self, context: "EventContext", what: str, seconds: float) -> None:
        # What a handler has started may still be at work when it has ended, and its span too.
        if (span := self._spans.get(context.txid)) is not None:
            span.add_event(what, {"seconds": seconds})
