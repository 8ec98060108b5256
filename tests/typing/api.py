"""What type checkers make of the public names: checked by them, never run.

Each line that is to be refused is marked for mypy and for pyright, and both are told to report a
mark that nothing needs.
"""

# pyright: strict

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextvars import Token
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self, assert_type

from statemgr import (
    MsgpackSerializer,
    PickleSerializer,
    Serializer,
    Settings,
    StateInfo,
    StateManager,
    StateManagerMemory,
    StateModification,
    StateToken,
    Statistics,
    errors,
)
from statemgr.events import (
    BaseContext,
    Delta,
    Event,
    EventContext,
    EventFuture,
    EventListener,
    EventProcessor,
    RegistrationContext,
)


@dataclass
class Cart:
    """A state."""

    items: list[str] = field(default_factory=list[str])


@dataclass
class Profile:
    """Another."""

    name: str = ""


class CartToken(StateToken[Cart]):
    """A kind with its own default and its own bytes."""

    serializer = PickleSerializer(key=b"k" * 32)

    def create(self) -> Cart:
        """Return a cart with a gift."""
        return Cart(["gift"])

    def serialize(self, state: Cart) -> bytes:
        """Return the items."""
        return ",".join(state.items).encode()

    def deserialize(self, data: bytes | None = None, fp: BinaryIO | None = None) -> Cart:
        """Return a cart of the items."""
        return Cart((data or b"").decode().split(","))


CART = StateToken("u", Cart)
PROFILE = StateToken("u", Profile)
NUMBER = StateToken("u", int)


def tokens() -> None:
    """A token knows the class of its state."""
    assert_type(CART, StateToken[Cart])
    assert_type(CART.ident, str)
    assert_type(CART.cls, type[Cart])
    assert_type(CART.lock_key, str)
    assert_type(CART.cache_key, str)
    assert_type(CART.create(), Cart)
    assert_type(CART.serialize(Cart()), bytes)
    assert_type(CART.deserialize(data=b""), Cart)
    assert_type(CART.with_cls(Profile), StateToken[Profile])
    assert_type(CartToken("u", Cart).create(), Cart)
    assert_type(CartToken("u", Cart).with_cls(Profile), StateToken[Profile])
    serializers: list[Serializer] = [MsgpackSerializer(), PickleSerializer(key=b"k" * 32)]
    assert_type(serializers[0].serialize(Cart(), Cart), bytes)
    assert_type(serializers[0].deserialize(b"", Cart), Cart)

    StateToken(b"u", Cart)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    StateToken("u", Cart())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    CART.serialize(Profile())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    CART.deserialize("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    CART.ident = "v"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


async def reading(manager: StateManager) -> None:
    """What is read has the class of its token, in the order of the tokens."""
    assert_type(await manager.get_state(CART), Cart)
    assert_type(await manager.get_state(NUMBER), int)
    assert_type(await manager.get_state(CartToken("u", Cart)), Cart)
    assert_type(await manager.get_states(CART), tuple[Cart])
    assert_type(await manager.get_states(CART, PROFILE), tuple[Cart, Profile])
    assert_type(await manager.get_states(CART, PROFILE, NUMBER), tuple[Cart, Profile, int])
    assert_type(
        await manager.get_states(CART, PROFILE, NUMBER, CART), tuple[Cart, Profile, int, Cart]
    )
    many = [StateToken(str(number), Cart) for number in range(9)]
    assert_type(await manager.get_states(*many), tuple[Cart, ...])
    assert_type(await manager.has_state(CART), bool)
    assert_type(await manager.touch(CART), bool)
    assert_type(manager.tokens("u"), AsyncIterator[StateInfo])
    async for info in manager.tokens():
        assert_type(info.size, int | None)
    assert_type(manager.statistics(), Statistics)
    assert_type(manager.statistics().commits, int)

    await manager.get_state("u")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await manager.get_state(Cart)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await manager.has_state("u")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    manager.tokens(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def changing(manager: StateManager) -> None:
    """A body gets the state, and puts one of its class in its place."""
    assert_type(manager.modify_state(CART), StateModification[Cart])
    async with manager.modify_state(CART, timeout=1.5) as cart:
        assert_type(cart, Cart)
    async with manager.modify_state(CartToken("u", Cart)) as cart:
        assert_type(cart, Cart)

    modification = manager.modify_state(NUMBER)
    async with modification as number:
        assert_type(number, int)
        assert_type(modification.state, int)
        assert_type(modification.fence, int | None)
        modification.state = number + 1
        modification.discard()
        modification.state = "1"  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]

    async with manager.modify_states(CART, PROFILE) as states:
        assert_type(states, tuple[Cart, Profile])
    async with manager.modify_states(CART, PROFILE, NUMBER, timeout=1) as (_, profile, number):
        assert_type(profile, Profile)
        assert_type(number, int)
    async with manager.modify_states(CART, PROFILE, NUMBER, CART) as four:
        assert_type(four, tuple[Cart, Profile, int, Cart])
    async with manager.modify_states(*[CART, CART]) as any_number:
        assert_type(any_number, tuple[Any, ...])

    await manager.set_state(CART, Cart())
    await manager.set_state(NUMBER, 1)
    assert_type(await manager.delete_state(CART), bool)

    await manager.set_state(NUMBER, "1")  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    await manager.set_state(CART, Profile())  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    await manager.set_state(CART)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    manager.modify_state(CART, 1.5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    manager.modify_state("u")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with manager.modify_state(CART):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass


async def making() -> None:
    """A manager is made from settings, or by its own class."""
    assert_type(StateManager.create(), StateManager)
    assert_type(StateManager.create(Settings.from_env({})), StateManager)
    assert_type(StateManagerMemory.from_settings(Settings()), StateManagerMemory)
    async with StateManagerMemory(rollback=False, token_expiration=60, log_key="k") as manager:
        assert_type(manager, StateManagerMemory)
    assert_type(Settings(token_expiration=60).redis_url, str | None)

    StateManager()  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]
    StateManagerMemory(rolback=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    StateManagerMemory(token_expiration="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    StateManagerMemory(on_decode_error="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Settings(mode=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Settings().mode = "disk"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    StateManager.create({})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def handling(error: Exception) -> object:
    """Each error's fields have their types."""
    match error:
        case errors.LockTimeoutError():
            assert_type(error.timeout, float)
            return assert_type(error.lock_key, str)
        case errors.StateDecodeError():
            return assert_type(error.key, str | None)
        case errors.StateTooLargeError():
            return assert_type(error.size, int)
        case errors.StateManagerError():
            return error.owner  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
        case _:
            return None


class Counter(StateManagerMemory):
    """A backend may be subclassed and keeps its own type."""

    async def __aenter__(self) -> Self:
        """Return the counter itself."""
        return await super().__aenter__()


async def subclass() -> None:
    """The subclass comes out of `async with`."""
    async with Counter() as counter:
        assert_type(counter, Counter)


registry = RegistrationContext()


@registry.handler
def function(cart: Cart, item: str, count: int = 1) -> None:
    """Be registered bare."""


@registry.handler()
async def coroutine(cart: Cart, item: str) -> int:
    """Be registered without options."""
    return 1


@registry.handler("cart.steps", timeout=1.5)
def generator(cart: Cart) -> Iterator[Event | None]:
    """Be registered by a name."""
    yield Event("function", {"item": "pen"})


@registry.handler(name="later", background=True, supersedes=True, timeout=None)
async def async_generator(ctx: EventContext) -> AsyncIterator[list[Event]]:
    """Be registered with options."""
    yield [Event("function")]


@registry.state
@dataclass
class Basket:
    """A state."""

    items: list[str] = field(default_factory=list[str])


@registry.state(name="wishes", kind=StateToken)
@dataclass
class Wishes:
    """Another, by a name."""

    items: list[str] = field(default_factory=list[str])


@registry.payload
@dataclass
class Options:
    """What comes in payloads."""

    fast: bool = False


class Shop:
    """Something with methods."""

    async def sell(self, cart: Cart, item: str) -> bool:
        """Be registered as bound to an object."""
        return True


def registering() -> None:
    """What is registered is what it was, for who calls it."""
    assert_type(function(Cart(), "pen"), None)
    assert_type(function(Cart(), item="pen", count=2), None)
    assert_type(generator(Cart()), Iterator[Event | None])
    assert_type(Basket(["pen"]), Basket)
    assert_type(Wishes().items, list[str])
    assert_type(Options(fast=True), Options)

    called = registry.handler(function, name="again", thread=True)
    assert_type(called(Cart(), "pen"), None)
    bare = registry.handler(function)
    assert_type(bare(Cart(), "pen"), None)
    sell: Callable[[Cart, str], Awaitable[bool]] = registry.handler(Shop().sell, name="sell")
    registry.handler(sell, name="again")
    assert_type(registry.state(Cart, name="cart"), type[Cart])
    assert_type(registry.fork(), RegistrationContext)
    assert_type(registry.token("u", Cart).lock_key, str)

    function(Cart())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    generator("u")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    registry.handler(5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    registry.handler(function, "name")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    registry.handler("a", name="b")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    registry.handler(background="yes")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    registry.state(Cart())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    Event(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Event("add", [("item", "pen")])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def calling() -> None:
    """Coroutines and asynchronous generators stay what they were."""
    assert_type(await coroutine(Cart(), "pen"), int)
    async for events in async_generator(EventContext.get()):
        assert_type(events, list[Event])


async def returning(ctx: EventContext) -> int:
    """A block does not swallow errors, so that nothing is missing behind it."""
    async with ctx.modify(Cart) as cart:
        return len(cart.items)


async def handling_events(ctx: EventContext) -> None:
    """A handler's context knows the classes of the states it is asked for."""
    async with ctx.modify(Cart) as cart:
        assert_type(cart, Cart)
    async with ctx.modify(Cart, timeout=1.5) as cart:
        assert_type(cart, Cart)
    async with ctx.modify(Cart, Profile) as (cart, profile):
        assert_type(cart, Cart)
        assert_type(profile, Profile)
    async with ctx.modify(Cart, Profile, Basket) as many:
        assert_type(many, tuple[Cart, Profile, Basket])
    async with ctx.modify(Cart, Profile, Basket, Wishes) as four:
        assert_type(four, tuple[Cart, Profile, Basket, Wishes])
    async with ctx.modify(*[Cart, Cart]) as any_number:
        assert_type(any_number, Any)
    assert_type(ctx.ident, str)
    assert_type(ctx.txid, str)
    assert_type(ctx.parent_txid, str | None)
    assert_type(ctx.manager, StateManager)
    assert_type(ctx.token(Cart), StateToken[Cart])
    assert_type(ctx.fork("child"), EventContext)
    assert_type(await ctx.enqueue(Event("add"), ident="v"), EventFuture)
    assert_type(ctx.enqueue_nowait(Event("add")), EventFuture)
    await ctx.emit_delta({"Cart": {"items": []}})
    await ctx.emit_event(Event("alert"), Event("reload"))

    ctx.modify("Cart")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.enqueue("add")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Requests(BaseContext):
    """A context of the application's own."""


async def contexts() -> None:
    """Each class finds its own."""
    assert_type(Requests.get(), Requests)
    assert_type(EventContext.get(), EventContext)
    token = Requests.set(Requests())
    assert_type(token, Token[Requests])
    Requests.reset(token)
    with Requests() as request:
        assert_type(request, Requests)
    async with registry as entered:
        assert_type(entered, RegistrationContext)


class Listener(EventListener):
    """A listener overrides what is of interest."""

    def failed(self, context: EventContext, error: BaseException, seconds: float) -> None:
        """Be told of errors."""
        assert_type(context.name, str)


async def send(ident: str, delta: Delta) -> None:
    """Send a delta."""
    assert_type(delta, Mapping[str, Mapping[str, Any]])


async def processing(manager: StateManager) -> None:
    """What is enqueued has a future."""

    def report(error: BaseException) -> None: ...

    def pass_on(ident: str, *events: Event) -> None: ...

    async with EventProcessor(
        manager,
        registry,
        emit_delta=send,
        emit_event=pass_on,
        exception_handler=report,
        listener=Listener(),
        stop_timeout=5,
    ) as processor:
        assert_type(processor, EventProcessor)
        future = await processor.enqueue("u", Event("add", {"item": "pen"}))
        assert_type(future, EventFuture)
        assert_type(await future, Any)
        assert_type(await future.wait_all(), Any)
        assert_type(future.children, tuple[EventFuture, ...])
        assert_type(future.cancel(), bool)
        assert_type(future.committed, bool)
        assert_type(processor.enqueue_nowait("u", Event("add")), EventFuture)
        async for delta in processor.enqueue_stream_delta("u", Event("add")):
            assert_type(delta, Mapping[str, Mapping[str, Any]])
        assert_type(await processor.snapshot("u", Cart, Profile), Mapping[str, Mapping[str, Any]])
        await processor.stop(timeout=1.5)

        await processor.enqueue(Event("add"))  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
        await processor.enqueue("u", "add")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EventProcessor("memory")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EventProcessor(manager, emit_delta=report)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
