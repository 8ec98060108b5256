"""Listeners: what they are told of each event, in which order; and the spans made of it."""

import asyncio
import contextlib
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from statemgr import StateManagerMemory
from statemgr.errors import EventPayloadError, LockTimeoutError, UnknownEventError
from statemgr.events import (
    Event,
    EventContext,
    EventFuture,
    EventListener,
    EventProcessor,
    RegistrationContext,
)
from statemgr.events.opentelemetry import OpenTelemetryListener
from statemgr.token import StateToken

from .conftest import SOON


@dataclass
class Cart:
    n: int = 0


class TroubleError(Exception):
    """What handlers fail with here."""


class Notes(EventListener):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.contexts: dict[str, EventContext] = {}

    def _note(self, what: str, context: EventContext, *rest: Any) -> None:
        assert self.contexts.setdefault(context.txid, context) is context
        *other, seconds = rest or (0.0,)
        assert isinstance(seconds, float)
        assert seconds >= 0
        self.told.append((what, context.name, *map(type, other)))

    def enqueued(self, context: EventContext) -> None:
        self._note("enqueued", context)

    def started(self, context: EventContext, seconds: float) -> None:
        assert EventContext.get() is context
        self._note("started", context, seconds)

    def waited(self, context: EventContext, seconds: float) -> None:
        assert EventContext.get() is context
        self._note("waited", context, seconds)

    def committed(self, context: EventContext, seconds: float) -> None:
        assert EventContext.get() is context
        self._note("committed", context, seconds)

    def finished(self, context: EventContext, seconds: float) -> None:
        assert EventContext.get() is context
        self._note("finished", context, seconds)

    def failed(self, context: EventContext, error: BaseException, seconds: float) -> None:
        self._note("failed", context, error, seconds)

    def of(self, name: str) -> list[str]:
        """Return what was told of the events of one name."""
        return [told[0] for told in self.told if told[1] == name]


class Application:
    """Handlers that end in every way there is."""

    def __init__(self) -> None:
        self.registry = registry = RegistrationContext()
        self.runs = asyncio.Event()
        self.go_on = asyncio.Event()

        @registry.handler
        def plain() -> None: ...

        @registry.handler
        async def save(cart: Cart) -> None:
            cart.n += 1

        @registry.handler
        def fail(cart: Cart) -> None:
            raise TroubleError("it broke")

        @registry.handler
        async def hold(cart: Cart) -> None:
            self.runs.set()
            await self.go_on.wait()

        @registry.handler
        def number(n: int) -> None: ...

        @registry.handler(supersedes=True)
        async def search() -> None:
            self.runs.set()
            await self.go_on.wait()

        @registry.handler
        def chain() -> list[Event]:
            return [Event("plain"), Event("save")]

        @registry.handler(background=True)
        async def modify(ctx: EventContext, fails: bool) -> None:
            for _ in range(2):
                async with ctx.modify(Cart) as cart:
                    cart.n += 1
            with contextlib.suppress(TroubleError):
                async with ctx.modify(Cart):
                    if fails:
                        raise TroubleError

        @registry.handler(background=True)
        async def impatient(ctx: EventContext) -> None:
            async with ctx.modify(Cart, timeout=0.001):
                pass

        @registry.handler(background=True)
        async def leave_work(ctx: EventContext) -> asyncio.Task[None]:
            async def work() -> None:
                async with ctx.modify(Cart) as cart:
                    self.runs.set()
                    await self.go_on.wait()
                    cart.n += 1

            task = asyncio.create_task(work())
            await self.runs.wait()
            return task


@pytest.fixture
async def app() -> Application:
    return Application()


@contextlib.asynccontextmanager
async def running(
    app: Application, listener: EventListener, **options: Any
) -> AsyncIterator[EventProcessor]:
    async with (
        StateManagerMemory(**options) as manager,
        EventProcessor(
            manager, app.registry, listener=listener, exception_handler=lambda error: None
        ) as processor,
        asyncio.timeout(SOON),
    ):
        yield processor


async def outcome(future: EventFuture) -> type[BaseException] | None:
    await asyncio.wait((future,))
    if future.cancelled():
        return asyncio.CancelledError
    error = future.exception()
    return None if error is None else type(error)


class TestWhatAListenerIsTold:
    @pytest.mark.parametrize(
        ("event", "expected"),
        [
            (Event("plain"), ["enqueued", "started", "finished"]),
            (Event("save"), ["enqueued", "started", "waited", "committed", "finished"]),
            (Event("fail"), ["enqueued", "started", "waited", "failed"]),
            (Event("number", {"n": "x"}), ["enqueued", "failed"]),
            (Event("nobody"), ["enqueued", "failed"]),
            (
                Event("modify", {"fails": False}),
                ["enqueued", "started", *["waited", "committed"] * 3, "finished"],
            ),
            (
                Event("modify", {"fails": True}),
                ["enqueued", "started", *["waited", "committed"] * 2, "waited", "finished"],
            ),
        ],
        ids=lambda value: repr(value) if isinstance(value, Event) else "",
    )
    async def test_of_one_event(self, app: Application, event: Event, expected: list[str]) -> None:
        notes = Notes()
        async with running(app, notes) as processor:
            await outcome(await processor.enqueue("u", event))
            assert notes.of(event.name) == expected
        assert len(notes.told) == len(expected)

    async def test_errors_are_told_as_the_future_has_them(self, app: Application) -> None:
        notes = Notes()
        async with running(app, notes) as processor:
            for event in (Event("fail"), Event("number"), Event("nobody")):
                await outcome(await processor.enqueue("u", event))
        assert [told[1:] for told in notes.told if told[0] == "failed"] == [
            ("fail", TroubleError),
            ("number", EventPayloadError),
            ("nobody", UnknownEventError),
        ]

    async def test_of_one_that_is_cancelled_in_the_queue(self, app: Application) -> None:
        """It never started."""
        notes = Notes()
        async with running(app, notes) as processor:
            processor.enqueue_nowait("u", Event("hold"))
            waits = processor.enqueue_nowait("u", Event("save"))
            await app.runs.wait()
            waits.cancel()
            app.go_on.set()
        assert notes.of("save") == ["enqueued", "failed"]
        assert ("failed", "save", asyncio.CancelledError) in notes.told

    async def test_of_one_that_is_cancelled_on_its_way(self, app: Application) -> None:
        notes = Notes()
        async with running(app, notes) as processor:
            future = processor.enqueue_nowait("u", Event("hold"))
            await app.runs.wait()
            future.cancel()
            assert notes.of("hold") == ["enqueued", "started", "waited"]
            await outcome(future)
        assert notes.of("hold") == ["enqueued", "started", "waited", "failed"]

    async def test_of_one_that_is_superseded(self, app: Application) -> None:
        notes = Notes()
        async with running(app, notes) as processor:
            older = processor.enqueue_nowait("u", Event("search"))
            await app.runs.wait()
            newer = processor.enqueue_nowait("u", Event("search"))
            app.go_on.set()
            assert await outcome(older) is asyncio.CancelledError
            assert await outcome(newer) is None
        assert notes.of("search") == [
            *("enqueued", "started", "enqueued", "failed", "started", "finished")
        ]

    async def test_of_one_that_does_not_get_the_lock_in_time(self, app: Application) -> None:
        notes = Notes()
        async with running(app, notes) as processor:
            processor.enqueue_nowait("u", Event("hold"))
            await app.runs.wait()
            late = processor.enqueue_nowait("u", Event("impatient"))
            assert await outcome(late) is LockTimeoutError
            app.go_on.set()
        assert notes.of("impatient") == ["enqueued", "started", "failed"]

    async def test_of_a_chain(self, app: Application) -> None:
        """Children are enqueued before their parent is finished; ids lead from them to it."""
        notes = Notes()
        async with running(app, notes) as processor:
            future = await processor.enqueue("u", Event("chain"))
            await future.wait_all()
        assert [told[:2] for told in notes.told[:6]] == [
            *(("enqueued", "chain"), ("started", "chain")),
            *(("enqueued", "plain"), ("enqueued", "save")),
            *(("finished", "chain"), ("started", "plain")),
        ]
        children = [c for c in notes.contexts.values() if c.name != "chain"]
        assert {context.parent_txid for context in children} == {future.txid}

    async def test_of_events_that_are_cancelled_at_the_deadline(self, app: Application) -> None:
        notes = Notes()
        async with running(app, notes) as processor:
            processor.enqueue_nowait("u", Event("hold"))
            processor.enqueue_nowait("u", Event("save"))
            await app.runs.wait()
            await processor.stop(0)
        assert notes.of("hold") == ["enqueued", "started", "waited", "failed"]
        assert notes.of("save") == ["enqueued", "failed"]

    async def test_of_one_that_is_left_behind(self, app: Application) -> None:
        """The loop tells that it failed; that it has saved all the same comes after that."""

        @app.registry.handler
        async def refuse(cart: Cart) -> None:
            app.runs.set()
            while not app.go_on.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await app.go_on.wait()

        class Tasks(Notes):
            def failed(self, context: EventContext, error: BaseException, seconds: float) -> None:
                assert asyncio.current_task() is None
                super().failed(context, error, seconds)

        notes = Tasks()
        async with running(app, notes) as processor:
            processor.enqueue_nowait("u", Event("refuse"))
            await app.runs.wait()
            await processor.stop(0)
            assert notes.of("refuse") == ["enqueued", "started", "waited", "failed"]
            app.go_on.set()
            async with processor.manager.modify_state(StateToken("u", Cart)):
                pass
        assert notes.of("refuse")[4:] == ["committed"]

    async def test_what_it_raises_is_logged_and_changes_nothing(
        self, app: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(EventListener):
            def __getattribute__(self, name: str) -> Any:
                def broken(*arguments: Any) -> None:
                    raise TroubleError

                return broken

        async with running(app, Broken()) as processor:
            assert await outcome(await processor.enqueue("u", Event("save"))) is None
            assert await outcome(await processor.enqueue("u", Event("nobody"))) is UnknownEventError
            assert await processor.manager.get_state(StateToken("u", Cart)) == Cart(1)
        assert caplog.text.count("the listener failed") == 5 + 2

    async def test_one_that_overrides_nothing_is_told_all_the_same(self, app: Application) -> None:
        async with running(app, EventListener()) as processor:
            for event in (Event("save"), Event("fail"), Event("modify", {"fails": True})):
                await outcome(await processor.enqueue("u", event))


place: ContextVar[str] = ContextVar("place")


class TestWhereAListenerIsTold:
    async def test_in_the_context_variables_of_the_handler(self, app: Application) -> None:
        """They are a copy of those of who enqueued; what `started` sets is there for the rest."""
        seen = []

        class Placing(EventListener):
            def started(self, context: EventContext, seconds: float) -> None:
                seen.append(place.get())
                place.set("handler")

            def finished(self, context: EventContext, seconds: float) -> None:
                seen.append(place.get())

        app.registry.handler(lambda: seen.append(place.get()), name="see")
        async with running(app, Placing()) as processor:
            token = place.set("outside")
            await (await processor.enqueue("u", Event("see")))
            assert place.get() == "outside"
            place.reset(token)
        assert seen == ["outside", "handler", "handler"]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


def named(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    (span,) = [span for span in exporter.get_finished_spans() if span.name == name]
    return span


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


class TestSpans:
    async def test_of_an_event_that_is_saved(
        self, app: Application, provider: TracerProvider, exporter: InMemorySpanExporter
    ) -> None:
        async with running(app, OpenTelemetryListener(provider)) as processor:
            future = await processor.enqueue("user-42", Event("save"))
            await future
        span = named(exporter, "save")
        assert span.attributes is not None
        queued = span.attributes["statemgr.event.queued_seconds"]
        assert isinstance(queued, float)
        assert queued >= 0
        assert dict(span.attributes) == {
            "statemgr.event.name": "save",
            "statemgr.event.txid": future.txid,
            "statemgr.event.queued_seconds": queued,
            "statemgr.ident": span.attributes["statemgr.ident"],
        }
        assert [event.name for event in span.events] == ["lock acquired", "committed"]
        for event in span.events:
            assert event.attributes is not None
            seconds = event.attributes["seconds"]
            assert isinstance(seconds, float)
            assert seconds >= 0
        assert span.status.is_unset
        assert parent_of(span) is None

    async def test_the_ident_is_named_as_the_managers_logs_do(
        self, app: Application, provider: TracerProvider, exporter: InMemorySpanExporter
    ) -> None:
        """By a keyed digest, which is the same in all workers that have one key."""
        shown = []
        for options in ({"log_key": "k"}, {"log_key": "k"}, {"log_key": "l"}, {}):
            async with running(app, OpenTelemetryListener(provider), **options) as processor:
                await (await processor.enqueue("user 42", Event("plain")))
            text = named(exporter, "plain").to_json()
            assert "user" not in text
            assert "42" not in named(exporter, "plain").name
            attributes = named(exporter, "plain").attributes
            assert attributes is not None
            shown.append(attributes["statemgr.ident"])
            exporter.clear()
        assert shown[0] == shown[1]
        assert len(set(shown)) == 3
        async with running(app, OpenTelemetryListener(provider), log_idents=True) as processor:
            await (await processor.enqueue("user 42", Event("plain")))
        attributes = named(exporter, "plain").attributes
        assert attributes is not None
        assert attributes["statemgr.ident"] == "ident 'user%2042'"

    async def test_its_parent_is_the_span_in_which_the_event_was_enqueued(
        self, app: Application, provider: TracerProvider, exporter: InMemorySpanExporter
    ) -> None:
        """Also if that is over when its turn comes, and another one is the current one."""
        tracer = provider.get_tracer("test")
        async with running(app, OpenTelemetryListener(provider)) as processor:
            processor.enqueue_nowait("u", Event("hold"))
            await app.runs.wait()
            with tracer.start_as_current_span("request") as request:
                future = processor.enqueue_nowait("u", Event("plain"))
            with tracer.start_as_current_span("other request"):
                app.go_on.set()
                await future
        assert parent_of(named(exporter, "plain")) == request.get_span_context().span_id
        assert parent_of(named(exporter, "hold")) is None

    async def test_a_chained_event_hangs_below_the_one_that_chained_it(
        self, app: Application, provider: TracerProvider, exporter: InMemorySpanExporter
    ) -> None:
        async with running(app, OpenTelemetryListener(provider)) as processor:
            future = await processor.enqueue("u", Event("chain"))
            await future.wait_all()
        chain = named(exporter, "chain")
        assert chain.context is not None
        for name in ("plain", "save"):
            child = named(exporter, name)
            assert child.attributes is not None
            assert parent_of(child) == chain.context.span_id
            assert child.attributes["statemgr.event.parent_txid"] == future.txid

    async def test_it_is_the_current_span_of_the_handler_and_of_its_tasks(
        self, app: Application, provider: TracerProvider, exporter: InMemorySpanExporter
    ) -> None:
        tracer = provider.get_tracer("test")

        async def deep() -> None:
            with tracer.start_as_current_span("in a task"):
                await asyncio.sleep(0)

        @app.registry.handler
        async def work() -> None:
            with tracer.start_as_current_span("query"):
                await asyncio.create_task(deep())

        app.registry.handler(
            lambda: tracer.start_span("in a thread").end(), name="block", thread=True
        )
        async with running(app, OpenTelemetryListener(provider)) as processor:
            for name in ("work", "block"):
                await (await processor.enqueue("u", Event(name)))
            assert not trace.get_current_span().get_span_context().is_valid
        for name, parent in (("query", "work"), ("in a task", "query"), ("in a thread", "block")):
            above = named(exporter, parent).context
            assert above is not None
            assert parent_of(named(exporter, name)) == above.span_id

    async def test_of_an_event_that_fails(
        self, app: Application, provider: TracerProvider, exporter: InMemorySpanExporter
    ) -> None:
        async with running(app, OpenTelemetryListener(provider)) as processor:
            await outcome(await processor.enqueue("u", Event("fail")))
        span = named(exporter, "fail")
        assert span.status.status_code is trace.StatusCode.ERROR
        assert span.status.description == "TroubleError: it broke"
        acquired, recorded = span.events
        assert (acquired.name, recorded.name) == ("lock acquired", "exception")
        assert recorded.attributes is not None
        assert recorded.attributes["exception.message"] == "it broke"
        assert str(recorded.attributes["exception.type"]).endswith("TroubleError")

    async def test_of_an_event_that_is_refused(
        self, app: Application, provider: TracerProvider, exporter: InMemorySpanExporter
    ) -> None:
        """Below the span of who sent it; a name that nobody registered makes no kind of spans."""
        tracer = provider.get_tracer("test")
        async with running(app, OpenTelemetryListener(provider)) as processor:
            with tracer.start_as_current_span("request") as request:
                for event in (Event("number", {"n": "hunter2"}), Event("no\ud800body")):
                    await outcome(await processor.enqueue("u", event))
        for name in ("number", "unknown"):
            span = named(exporter, name)
            assert parent_of(span) == request.get_span_context().span_id
            assert span.status.status_code is trace.StatusCode.ERROR
            assert "hunter2" not in span.to_json()
            span.to_json().encode()
        attributes = named(exporter, "unknown").attributes
        assert attributes is not None
        assert "statemgr.event.name" not in attributes

    async def test_a_cancel_is_no_error(
        self, app: Application, provider: TracerProvider, exporter: InMemorySpanExporter
    ) -> None:
        """And one that is cancelled before its turn has no span."""
        async with running(app, OpenTelemetryListener(provider)) as processor:
            future = processor.enqueue_nowait("u", Event("hold"))
            waiting = processor.enqueue_nowait("u", Event("save"))
            await app.runs.wait()
            waiting.cancel()
            future.cancel()
        (span,) = exporter.get_finished_spans()
        assert span.status.is_unset
        assert [event.name for event in span.events] == ["lock acquired", "cancelled"]

    async def test_what_outlives_its_handler_adds_nothing(
        self,
        app: Application,
        provider: TracerProvider,
        exporter: InMemorySpanExporter,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        async with running(app, OpenTelemetryListener(provider)) as processor:
            task = await (await processor.enqueue("u", Event("leave_work")))
            app.go_on.set()
            await task
            assert await processor.manager.get_state(StateToken("u", Cart)) == Cart(1)
        assert [e.name for e in named(exporter, "leave_work").events] == ["lock acquired"]
        assert caplog.text == ""

    async def test_spans_that_are_over_are_not_kept(
        self, app: Application, provider: TracerProvider
    ) -> None:
        listener = OpenTelemetryListener(provider)
        async with running(app, listener) as processor:
            for name in ("save", "fail", "nobody", "number", "chain"):
                future = await processor.enqueue("u", Event(name))
                with contextlib.suppress(Exception):
                    await future.wait_all()
        assert listener._spans == {}

    async def test_a_program_that_has_set_no_provider_pays_with_nothing_but_time(
        self, app: Application
    ) -> None:
        async with running(app, OpenTelemetryListener()) as processor:
            for name in ("save", "fail", "nobody"):
                await outcome(await processor.enqueue("u", Event(name)))


class TestTheExtra:
    def run(self, script: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_who_does_not_ask_for_spans_does_not_import_opentelemetry(self) -> None:
        assert (
            self.run("""
                import sys
                import statemgr.events
                print("opentelemetry" in sys.modules)
            """)
            == "False\n"
        )

    def test_without_it_the_module_says_what_to_install(self) -> None:
        assert (
            self.run("""
                import sys
                sys.modules["opentelemetry"] = None
                try:
                    import statemgr.events.opentelemetry
                except ImportError as error:
                    print(error)
            """)
            == "statemgr.events.opentelemetry needs OpenTelemetry: pip install 'statemgr[otel]'\n"
        )
