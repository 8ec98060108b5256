"""Contexts: what is entered is found by what runs inside, and by nothing else."""

import asyncio
import dataclasses
from typing import Any

import pytest

from statemgr import StateManagerMemory, StateToken
from statemgr.events import (
    BaseContext,
    Event,
    EventContext,
    EventProcessor,
    RegistrationContext,
)


class Request(BaseContext):
    def __init__(self, name: str = "") -> None:
        self.name = name


class Session(BaseContext):
    pass


class ApiRequest(Request):
    pass


class TestBaseContext:
    def test_it_is_found_inside_and_gone_outside(self) -> None:
        with Request("a") as request:
            assert Request.get() is request
        with pytest.raises(LookupError):
            Request.get()

    def test_that_there_is_none_is_said_with_a_way_out(self) -> None:
        with pytest.raises(
            LookupError, match=r"^there is no Request here: enter one by `with`, or set\(\) it$"
        ) as caught:
            Request.get()
        assert caught.value.__suppress_context__

    def test_each_class_has_a_place_of_its_own(self) -> None:
        """A subclass too: it neither hides its base's context nor is found in its place."""
        with Request() as request, Session() as session, ApiRequest() as api:
            assert (Request.get(), Session.get(), ApiRequest.get()) == (request, session, api)
        with ApiRequest(), pytest.raises(LookupError, match="no Request here"):
            Request.get()

    def test_the_innermost_is_found_until_it_is_left(self) -> None:
        with Request("outer") as outer:
            with Request("inner") as inner:
                assert Request.get() is inner
            assert Request.get() is outer

    def test_one_object_may_be_entered_again_inside_of_itself(self) -> None:
        request, other = Request(), Request()
        with request:
            with other, request:
                assert Request.get() is request
            assert Request.get() is request
        with pytest.raises(LookupError):
            Request.get()

    async def test_one_object_may_be_entered_by_two_tasks_at_once(self) -> None:
        """They leave it in the order in which they came, which is not that of nesting."""
        request, other = Request("shared"), Request("other")
        both_in = asyncio.Barrier(2)
        left = asyncio.Event()

        async def first() -> None:
            with request:
                await both_in.wait()
            with pytest.raises(LookupError):
                Request.get()
            left.set()

        async def second() -> None:
            with other:
                with request:
                    await both_in.wait()
                    await left.wait()
                    assert Request.get() is request
                assert Request.get() is other

        await asyncio.gather(first(), second())
        with pytest.raises(LookupError):
            Request.get()

    async def test_a_task_inherits_what_was_there_when_it_was_made(self) -> None:
        seen: list[Request] = []

        async def child() -> None:
            seen.append(Request.get())
            with Request("child's"):
                await asyncio.sleep(0)
            seen.append(Request.get())

        with Request("parent's") as request:
            task = asyncio.create_task(child())
            await asyncio.sleep(0)
            assert Request.get() is request
        await task
        assert seen == [request, request]

    async def test_a_task_may_leave_what_it_did_not_enter_to_its_maker(self) -> None:
        """Both go on with their own, and leave only what they have entered themselves."""
        with Request("outer") as outer:

            async def child() -> Request:
                with Request("inner"):
                    pass
                return Request.get()

            with Request("passing"):
                task = asyncio.create_task(child())
            assert (await task).name == "passing"
            assert Request.get() is outer

    async def test_async_with_does_the_same(self) -> None:
        async with Request("a") as request:
            assert Request.get() is request
            await asyncio.sleep(0)
            assert Request.get() is request
        with pytest.raises(LookupError):
            Request.get()

    def test_an_error_inside_leaves_it_too_and_is_passed_on(self) -> None:
        with pytest.raises(ZeroDivisionError), Request():
            _ = 1 / 0
        with pytest.raises(LookupError):
            Request.get()

    def test_set_and_reset(self) -> None:
        """For frameworks whose begin and end are two functions."""
        request, other = Request(), Request()
        token = Request.set(request)
        inner = Request.set(other)
        assert Request.get() is other
        Request.reset(inner)
        assert Request.get() is request
        Request.reset(token)
        with pytest.raises(LookupError):
            Request.get()

    def test_a_token_is_good_for_once_and_for_its_class(self) -> None:
        token = Request.set(Request())
        with pytest.raises(ValueError, match="different ContextVar"):
            Session.reset(token)  # type: ignore[arg-type]
        Request.reset(token)
        with pytest.raises(RuntimeError, match="already been used"):
            Request.reset(token)

    async def test_a_token_of_another_task_is_refused(self) -> None:
        async def child() -> Any:
            return Request.set(Request())

        token = await asyncio.create_task(child())
        with pytest.raises(ValueError, match="different Context"):
            Request.reset(token)


@pytest.fixture
def registry() -> RegistrationContext:
    return RegistrationContext()


@dataclasses.dataclass
class Cart:
    n: int = 0


async def run(registry: RegistrationContext, event: Event) -> Any:
    async with StateManagerMemory() as manager, EventProcessor(manager, registry) as processor:
        return await (await processor.enqueue("u", event)).wait_all()


class TestEventContext:
    async def test_it_knows_its_event(self, registry: RegistrationContext) -> None:
        registry.handler(lambda: EventContext.get(), name="call")
        async with StateManagerMemory() as manager, EventProcessor(manager, registry) as processor:
            future = await processor.enqueue("user/42", Event("call"))
            context = await future
            assert (context.ident, context.name) == ("user/42", "call")
            assert (context.txid, context.parent_txid) == (future.txid, None)
            assert context.processor is processor
            assert context.manager is manager

    async def test_a_chained_event_knows_its_parent(self, registry: RegistrationContext) -> None:
        contexts = {}

        @registry.handler
        async def first(ctx: EventContext) -> Event:
            contexts["first"] = ctx
            await ctx.enqueue(Event("last", {"name": "other"}), ident="other")
            return Event("last", {"name": "own"})

        @registry.handler
        def last(ctx: EventContext, name: str) -> None:
            contexts[name] = ctx

        await run(registry, Event("first"))
        first_one = contexts["first"]
        assert contexts["own"].parent_txid == contexts["other"].parent_txid == first_one.txid
        assert (contexts["own"].ident, contexts["other"].ident) == ("u", "other")
        assert len({context.txid for context in contexts.values()}) == 3

    async def test_ids_of_two_processors_differ(self, registry: RegistrationContext) -> None:
        """So that logs of several workers can be put together."""
        registry.handler(lambda: EventContext.get().txid, name="call")
        txids = [await run(registry, Event("call")) for _ in range(20)]
        assert len(set(txids)) == 20

    async def test_it_is_frozen(self, registry: RegistrationContext) -> None:
        registry.handler(lambda: EventContext.get(), name="call")
        context = await run(registry, Event("call"))
        for name in ("ident", "txid", "processor"):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(context, name, "other")
        with pytest.raises((AttributeError, TypeError)):
            context.new = 1

    async def test_its_repr_does_not_show_the_processor(
        self, registry: RegistrationContext
    ) -> None:
        registry.handler(lambda: repr(EventContext.get()), name="call")
        text = await run(registry, Event("call"))
        assert "name='call'" in text
        assert "processor" not in text.lower()

    async def test_a_fork_is_a_childs_context(self, registry: RegistrationContext) -> None:
        @registry.handler
        def call(ctx: EventContext) -> None:
            fork, other = ctx.fork("child"), ctx.fork("child", "other")
            assert (fork.ident, fork.name, fork.parent_txid) == ("u", "child", ctx.txid)
            assert (other.ident, other.parent_txid) == ("other", ctx.txid)
            assert len({ctx.txid, fork.txid, other.txid}) == 3
            assert fork.processor is ctx.processor
            with fork:
                assert EventContext.get() is fork
            assert EventContext.get() is ctx

        await run(registry, Event("call"))

    async def test_two_contexts_are_equal_only_if_they_are_one(
        self, registry: RegistrationContext
    ) -> None:
        registry.handler(lambda: EventContext.get(), name="call")
        context = await run(registry, Event("call"))
        same = context
        assert context == same
        assert context != await run(registry, Event("call"))
        assert len({context, same, context.fork("call")}) == 2

    async def test_the_token_is_of_the_kind_that_is_registered(
        self, registry: RegistrationContext
    ) -> None:
        class CartToken(StateToken[Cart]):
            pass

        registry.state(Cart, kind=CartToken)
        registry.handler(lambda: EventContext.get().token(Cart), name="call")
        token = await run(registry, Event("call"))
        assert type(token) is CartToken
        assert (token.ident, token.cls) == ("u", Cart)

    async def test_there_is_none_outside_of_handlers(self, registry: RegistrationContext) -> None:
        registry.handler(lambda: None, name="call")
        with pytest.raises(LookupError, match="there is no EventContext here"):
            EventContext.get()
        await run(registry, Event("call"))
        with pytest.raises(LookupError):
            EventContext.get()

    async def test_a_task_that_a_handler_makes_has_its_context(
        self, registry: RegistrationContext
    ) -> None:
        async def deep() -> EventContext:
            await asyncio.sleep(0)
            return EventContext.get()

        @registry.handler
        async def call(ctx: EventContext) -> None:
            assert await asyncio.create_task(deep()) is ctx
            assert await deep() is ctx
            assert await asyncio.to_thread(EventContext.get) is ctx

        await run(registry, Event("call"))

    async def test_a_handler_in_a_thread_has_it_too(self, registry: RegistrationContext) -> None:
        registry.handler(lambda: EventContext.get().name, name="call", thread=True)
        assert await run(registry, Event("call")) == "call"

    async def test_each_of_many_handlers_at_once_has_its_own(
        self, registry: RegistrationContext
    ) -> None:
        together = asyncio.Barrier(10)

        @registry.handler
        async def call(ctx: EventContext) -> bool:
            before = EventContext.get() is ctx
            await together.wait()
            return before and EventContext.get() is ctx

        async with StateManagerMemory() as manager, EventProcessor(manager, registry) as processor:
            futures = [processor.enqueue_nowait(f"u{n}", Event("call")) for n in range(10)]
            assert all([await future for future in futures])

    async def test_a_handler_sees_the_context_variables_of_who_enqueued(
        self, registry: RegistrationContext
    ) -> None:
        """And what it enters is gone after it: also for the next event of its ident."""

        @registry.handler
        def call() -> str:
            name = Request.get().name
            Request.set(Request("left behind"))
            return name

        async with StateManagerMemory() as manager, EventProcessor(manager, registry) as processor:
            with Request("outside"):
                futures = [processor.enqueue_nowait("u", Event("call")) for _ in range(3)]
            assert [await future for future in futures] == ["outside"] * 3
            with pytest.raises(LookupError):
                Request.get()
