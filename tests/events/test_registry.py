"""`RegistrationContext`: what can be a handler, what is a state, and how clearly all else fails."""

from __future__ import annotations

import contextlib
import functools
import inspect
import typing
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypedDict

import attrs
import msgspec
import pydantic
import pytest

from statemgr import StateManagerMemory, StateToken
from statemgr.errors import (
    EventHandlerError,
    EventPayloadError,
    SettingsError,
    UnknownEventError,
)
from statemgr.events import Event, EventContext, EventProcessor, RegistrationContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nowhere import Missing  # type: ignore[import-not-found]


@dataclass
class Cart:
    items: dict[str, int] = field(default_factory=dict)


@dataclass
class Profile:
    name: str = ""


@dataclass
class Item:
    sku: str
    count: int = 1


# What a decorator, a caller or a lambda refers to.
Alias = Cart
NewCart = typing.NewType("NewCart", Cart)


@pytest.fixture
def registry() -> RegistrationContext:
    return RegistrationContext()


async def run(
    registry: RegistrationContext, name: str, payload: dict[str, Any] | None = None
) -> Any:
    """Run one event, and return its result."""
    async with StateManagerMemory() as manager, EventProcessor(manager, registry) as processor:
        return await (await processor.enqueue("u", Event(name, payload or {})))


class TestForms:
    """Ways to register; each returns what was decorated, which can be called as before."""

    async def test_bare(self, registry: RegistrationContext) -> None:
        @registry.handler
        async def add(n: int) -> int:
            return n + 1

        assert await run(registry, "add", {"n": 1}) == 2
        assert await add(1) == 2

    async def test_called_without_options(self, registry: RegistrationContext) -> None:
        @registry.handler()
        def add(n: int) -> int:
            return n + 1

        assert await run(registry, "add", {"n": 1}) == 2

    async def test_with_a_name_alone(self, registry: RegistrationContext) -> None:
        @registry.handler("cart.add")
        def add(n: int) -> int:
            return n + 1

        assert await run(registry, "cart.add", {"n": 1}) == 2
        assert list(registry.handlers) == ["cart.add"]

    async def test_with_options(self, registry: RegistrationContext) -> None:
        @registry.handler(name="a", background=True, supersedes=True, timeout=2.5)
        def add() -> None:
            pass

        @registry.handler("b", thread=True)
        def block() -> str:
            return "done"

        handler = registry.handlers["a"]
        assert (handler.background, handler.supersedes, handler.timeout) == (True, True, 2.5)
        assert await run(registry, "b") == "done"

    async def test_by_a_plain_call(self, registry: RegistrationContext) -> None:
        def add(n: int) -> int:
            return n + 1

        assert registry.handler(add, name="cart.add") is add
        assert registry.handler(add) is add
        assert await run(registry, "cart.add", {"n": 1}) == 2
        assert await run(registry, "add", {"n": 2}) == 3

    @pytest.mark.parametrize("name", ["", "a b", "cart/add", "\N{SNOWMAN}", "\n"])
    async def test_any_string_is_a_name(self, registry: RegistrationContext, name: str) -> None:
        registry.handler(lambda: "ran", name=name)
        assert await run(registry, name) == "ran"

    async def test_a_method_bound_to_an_object(self, registry: RegistrationContext) -> None:
        class Shop:
            def __init__(self) -> None:
                self.sold: list[str] = []

            async def sell(self, cart: Cart, sku: str) -> None:
                self.sold.append(sku)
                cart.items[sku] = 1

        shop = Shop()
        registry.handler(shop.sell)
        await run(registry, "sell", {"sku": "tea"})
        assert shop.sold == ["tea"]
        assert registry.handlers["sell"].states == {"cart": Cart}

    async def test_class_and_static_methods(self, registry: RegistrationContext) -> None:
        class Shop:
            name = "shop"

            @classmethod
            async def whose(cls) -> str:
                return cls.name

            @staticmethod
            def double(n: int) -> int:
                return n * 2

        registry.handler(Shop.whose)
        registry.handler(Shop.double)
        assert await run(registry, "whose") == "shop"
        assert await run(registry, "double", {"n": 2}) == 4

    async def test_a_static_method_on_its_way_into_a_class(
        self, registry: RegistrationContext
    ) -> None:
        ran = []

        class Shop:
            @registry.handler
            @staticmethod
            async def double(n: int) -> int:
                return n * 2

            @registry.handler
            @staticmethod
            def steps():
                yield
                ran.append("step")

        assert await Shop.double(2) == 4
        assert await run(registry, "double", {"n": 2}) == 4
        with pytest.raises(EventPayloadError):
            await run(registry, "double", {"n": "2"})
        await run(registry, "steps")
        assert ran == ["step"]

    async def test_a_partial_needs_a_name_and_gives_its_arguments(
        self, registry: RegistrationContext
    ) -> None:
        async def add(n: int, by: int) -> int:
            return n + by

        with pytest.raises(EventHandlerError, match="partial has no name: give one by name="):
            registry.handler(functools.partial(add, by=2))
        registry.handler(functools.partial(add, by=2), name="add_two")
        registry.handler(functools.partial(add, 5), name="to_five")
        assert await run(registry, "add_two", {"n": 1}) == 3
        assert await run(registry, "to_five", {"by": 1}) == 6

    async def test_partials_of_generators_and_of_partials(
        self, registry: RegistrationContext
    ) -> None:
        ran = []

        def steps(ctx: EventContext, first: int, second: int):
            ran.append((first, second))
            yield Event("last")

        registry.handler(
            functools.partial(functools.partial(steps, first=1), second=2), name="steps"
        )
        registry.handler(lambda: ran.append("last"), name="last")
        await run(registry, "steps")
        assert ran == [(1, 2), "last"]

    @pytest.mark.parametrize("kind", ["function", "coroutine", "generator", "async generator"])
    async def test_an_object_that_can_be_called(
        self, registry: RegistrationContext, kind: str
    ) -> None:
        ran = []

        class Function:
            def __call__(self, n: int) -> None:
                ran.append(n)

        class Coroutine:
            async def __call__(self, n: int) -> None:
                ran.append(n)

        class Generator:
            def __call__(self, n: int):
                yield
                ran.append(n)

        class AsyncGenerator:
            async def __call__(self, n: int):
                yield
                ran.append(n)

        classes: list[Callable[[], Any]] = [Function, Coroutine, Generator, AsyncGenerator]
        called = dict(
            zip(["function", "coroutine", "generator", "async generator"], classes, strict=True)
        )
        registry.handler(called[kind](), name="call")
        await run(registry, "call", {"n": 3})
        assert ran == [3]
        with pytest.raises(EventPayloadError):
            await run(registry, "call", {"n": "3"})

    async def test_a_lambda(self, registry: RegistrationContext) -> None:
        registry.handler(lambda n=1: n + 1, name="next")
        assert await run(registry, "next") == 2
        assert await run(registry, "next", {"n": 2}) == 3

    @pytest.mark.parametrize("decorated", ["coroutine", "generator", "async generator"])
    async def test_a_decorated_function_of_any_kind(
        self, registry: RegistrationContext, decorated: str
    ) -> None:
        """The wrapper is an ordinary function that passes on what it wraps."""
        ran = []

        def logged(fn: Any) -> Any:
            @functools.wraps(fn)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                ran.append("wrapper")
                return fn(*args, **kwargs)

            return wrapper

        @registry.handler("coroutine")
        @logged
        async def coroutine(cart: Cart, n: int) -> None:
            ran.append(n)

        @registry.handler("generator")
        @logged
        def generator(cart: Cart, n: int):
            yield
            ran.append(n)

        @registry.handler("async generator")
        @logged
        async def async_generator(cart: Cart, n: int):
            yield
            ran.append(n)

        await run(registry, decorated, {"n": 3})
        assert ran == ["wrapper", 3]
        assert registry.handlers[decorated].states == {"cart": Cart}

    async def test_a_decorated_generator_without_states(
        self, registry: RegistrationContext
    ) -> None:
        ran = []

        def plain(fn: Any) -> Any:
            return functools.wraps(fn)(lambda **kwargs: fn(**kwargs))

        @registry.handler
        @plain
        def steps(n: int):
            yield
            ran.append(n)

        await run(registry, "steps", {"n": 3})
        assert ran == [3]

    async def test_a_function_that_returns_an_awaitable(
        self, registry: RegistrationContext
    ) -> None:
        async def later() -> str:
            return "later"

        registry.handler(lambda: later(), name="call")
        assert await run(registry, "call") == "later"


class TestParameters:
    async def test_states_context_and_payload_in_any_order(
        self, registry: RegistrationContext
    ) -> None:
        seen = {}

        @registry.handler
        async def mixed(
            n: int, cart: Cart, ctx: EventContext, *, profile: Profile, text: str = "x", free=None
        ) -> None:
            seen.update(n=n, cart=cart, ctx=ctx, profile=profile, text=text, free=free)

        handler = registry.handlers["mixed"]
        assert handler.states == {"cart": Cart, "profile": Profile}
        await run(registry, "mixed", {"n": 1, "free": [2]})
        assert (seen["n"], seen["text"], seen["free"]) == (1, "x", [2])
        assert (seen["cart"], seen["profile"]) == (Cart(), Profile())
        assert seen["ctx"].name == "mixed"

    @pytest.mark.parametrize("annotation", [Cart, Annotated[Cart, "his"], NewCart, Alias])
    def test_a_state_is_known_behind_other_names(
        self, registry: RegistrationContext, annotation: Any
    ) -> None:
        def add(cart: Any) -> None: ...

        add.__annotations__["cart"] = annotation
        registry.handler(add)
        assert registry.handlers["add"].states == {"cart": Cart}

    async def test_names_that_only_the_function_around_knows(
        self, registry: RegistrationContext
    ) -> None:
        """All annotations of this module are text: they are resolved where the handler is made."""

        @dataclass
        class Local:
            n: int = 0

        @registry.handler
        async def change(local: Local, by: int) -> None:
            local.n += by

        @registry.handler(name="again")
        async def change_again(local: Local) -> int:
            return local.n

        assert registry.handlers["change"].states == {"local": Local}
        assert registry.handlers["again"].states == {"local": Local}
        assert await run(registry, "again") == 0

    def test_names_of_the_caller_do_not_hide_those_of_the_functions_module(
        self, registry: RegistrationContext
    ) -> None:
        """A handler of a module is registered by a function that has a `Cart` of its own."""
        Cart = Profile  # noqa: F841, N806
        registry.handler(module_handler)
        assert registry.handlers["module_handler"].states == {"cart": globals()["Cart"]}

    async def test_what_a_handler_returns_may_be_annotated_with_a_name_for_checkers_only(
        self, registry: RegistrationContext
    ) -> None:
        """As linters advise for `AsyncIterator` and its like."""

        @registry.handler
        def steps(n: int) -> Missing:
            return n

        assert await run(registry, "steps", {"n": 1}) == 1


def module_handler(cart: Cart) -> None: ...


@contextlib.contextmanager
def refused(registry: RegistrationContext, text: str) -> Iterator[None]:
    """Expect an `EventHandlerError` with this text, which leaves the handlers as they were."""
    before = dict(registry.handlers)
    with pytest.raises(EventHandlerError, match=text) as caught:
        yield
    assert isinstance(caught.value, ValueError)
    assert dict(registry.handlers) == before


class TestRefusals:
    """Each says what is wrong, and changes nothing."""

    def test_a_name_that_is_taken(self, registry: RegistrationContext) -> None:
        registry.handler(lambda: 1, name="add")
        with refused(registry, "'add' is the name of another handler"):
            registry.handler(lambda: 2, name="add")
        with refused(registry, "'add' is the name of another handler"):

            @registry.handler
            def add() -> None: ...

    def test_positional_parameters(self, registry: RegistrationContext) -> None:
        def only(n: int, /) -> None: ...

        def many(*numbers: int) -> None: ...

        with refused(registry, "'only': 'n' cannot be given by name"):
            registry.handler(only)
        with refused(registry, "'many': 'numbers' cannot be given by name"):
            registry.handler(many)

    def test_a_wrapper_that_does_not_say_what_it_wraps(self, registry: RegistrationContext) -> None:
        with refused(registry, "'x': 'args' cannot be given by name"):
            registry.handler(lambda *args, **kwargs: None, name="x")

    def test_a_state_in_the_background(self, registry: RegistrationContext) -> None:
        def add(cart: Cart) -> None: ...

        with refused(registry, r"'add' .* 'cart', enter `async with ctx\.modify"):
            registry.handler(add, background=True)

    def test_one_state_twice(self, registry: RegistrationContext) -> None:
        def add(one: Cart, other: Cart) -> None: ...

        with refused(registry, "'add' takes one state by two parameters"):
            registry.handler(add)

    def test_a_thread_for_what_is_no_ordinary_function(self, registry: RegistrationContext) -> None:
        async def coroutine() -> None: ...

        def generator():
            yield

        async def async_generator():
            yield

        for fn in (coroutine, generator, async_generator, functools.partial(coroutine)):
            with refused(registry, "'x': only an ordinary function runs in a thread"):
                registry.handler(fn, thread=True, name="x")

    def test_an_annotation_that_names_nothing(self, registry: RegistrationContext) -> None:
        def add(cart: Missing) -> None: ...

        with refused(registry, "'add': its annotations cannot be resolved .*'Missing'"):
            registry.handler(add)

    @pytest.mark.parametrize("timeout", [0, -1, 0.0, float("nan"), "1", [1]])
    def test_a_timeout_that_is_none(self, registry: RegistrationContext, timeout: Any) -> None:
        with refused(registry, "'x': timeout is more than 0 seconds, or None"):
            registry.handler(lambda: 1, timeout=timeout, name="x")

    @pytest.mark.parametrize(
        "hint", ["list[int, str]", "tuple[int, [str]]", "Annotated[int, ...][0]", "5"]
    )
    def test_an_annotation_that_is_no_type(self, registry: RegistrationContext, hint: str) -> None:
        def add(n: Any) -> None: ...

        add.__annotations__["n"] = hint
        with refused(registry, "'add'"):
            registry.handler(add)

    def test_a_union_of_which_no_message_tells_the_parts(
        self, registry: RegistrationContext
    ) -> None:
        @dataclass
        class Other:
            sku: str

        def add(thing: Item | Other) -> None: ...

        with refused(registry, "parameter 'thing' of 'add': no value can be checked against"):
            registry.handler(add)

    def test_what_cannot_be_called(self, registry: RegistrationContext) -> None:
        thing: Any = 5
        with refused(registry, "'x'"):
            registry.handler(thing, name="x")

    def test_a_function_without_a_signature(self, registry: RegistrationContext) -> None:
        with pytest.raises(ValueError, match="signature"):
            inspect.signature(min)
        with refused(registry, "'min' has no signature to go by"):
            registry.handler(min)

    def test_a_name_that_is_no_string(self, registry: RegistrationContext) -> None:
        name: Any = 5
        with refused(registry, "name"):
            registry.handler(lambda: 1, name=name)

    def test_a_refused_handler_leaves_no_state_behind(self, registry: RegistrationContext) -> None:
        """So that the class can be registered as what it is."""

        @dataclass
        class Options:
            fast: bool = False

        def start(options: Options) -> bool:
            return options.fast

        with refused(registry, "'start' runs in the background"):
            registry.handler(start, background=True)
        assert registry.states == {}
        registry.payload(Options)
        registry.handler(start, background=True)


class TestWhatIsTakenForAState:
    """A class that nobody registered, if it has fields and can be made without arguments."""

    def test_classes_of_every_kind(self, registry: RegistrationContext) -> None:
        @attrs.define
        class Attrs:
            n: int = 0

        class Struct(msgspec.Struct):
            n: int = 0

        class Model(pydantic.BaseModel):
            n: int = 0

        class Plain:
            def __init__(self) -> None:
                self.n = 0

        class Defaults:
            def __init__(self, n: int = 0, *args: int, **kwargs: int) -> None:
                self.n = n

        @dataclass(frozen=True, slots=True)
        class Frozen:
            n: int = 0

        for cls in (Attrs, Struct, Model, Plain, Defaults, Frozen):

            def take(state: Any) -> None: ...

            take.__annotations__["state"] = cls
            registry.handler(take, name=cls.__name__)
            assert registry.handlers[cls.__name__].states == {"state": cls}
            assert registry.states[cls.__name__] is cls

    def test_classes_of_values(self, registry: RegistrationContext) -> None:
        class Color(Enum):
            RED = 1

        class Point(NamedTuple):
            x: int = 0

        class Options(TypedDict, total=False):
            fast: bool

        class Required:
            def __init__(self, n: int) -> None:
                self.n = n

        for cls in (Item, Color, Point, Options, Required, datetime, OrderedDict, dict, int, Any):

            def take(value: Any) -> None: ...

            take.__annotations__["value"] = cls
            name = str(cls)
            registry.handler(take, name=name)
            assert registry.handlers[name].states == {}
        assert registry.states == {}

    def test_classes_that_have_no_instances_of_their_own(
        self, registry: RegistrationContext
    ) -> None:
        class Cartlike(typing.Protocol):
            items: dict[str, int]

        class Numbers(list[int]):
            pass

        def take(one: Cartlike, other: Numbers) -> None: ...

        registry.handler(take)
        assert registry.states == {}


class TestStates:
    async def test_by_a_name_and_a_kind_of_its_own(self, registry: RegistrationContext) -> None:
        """The kind makes the default, and decides what is saved."""
        saved: list[bytes] = []

        class CartToken(StateToken[Cart]):
            def create(self) -> Cart:
                return Cart({"gift for " + self.ident: 1})

            def serialize(self, state: Cart) -> bytes:
                saved.append(",".join(state.items).encode())
                return saved[-1]

            def deserialize(self, data: bytes | None = None, fp: Any = None) -> Cart:
                text = (fp.read() if data is None else data).decode()
                return Cart(dict.fromkeys(text.split(","), 1))

        @registry.state(name="basket", kind=CartToken)
        @dataclass
        class Basket(Cart):
            pass

        assert registry.state(Cart, name="cart", kind=CartToken) is Cart
        assert dict(registry.states) == {"basket": Basket, "cart": Cart}

        @registry.handler
        async def add(cart: Cart, item: str) -> None:
            cart.items[item] = 1

        deltas: list[Any] = []
        async with (
            StateManagerMemory() as manager,
            EventProcessor(
                manager, registry, emit_delta=lambda ident, delta: deltas.append(delta)
            ) as processor,
        ):
            assert await processor.snapshot("u", Cart) == {"cart": {"items": {"gift for u": 1}}}
            await (await processor.enqueue("u", Event("add", {"item": "tea"})))
            assert await manager.get_state(CartToken("u", Cart)) == Cart(
                {"gift for u": 1, "tea": 1}
            )
        assert b"gift for u,tea" in saved
        assert deltas == [{"cart": {"items": {"gift for u": 1, "tea": 1}}}]

    async def test_a_container_can_be_a_state(self, registry: RegistrationContext) -> None:
        registry.state(list)
        registry.state(dict, name="table")

        @registry.handler
        def add(log: list, table: dict, entry: str) -> int:
            log.append(entry)
            table[entry] = len(log)
            return len(log)

        async with StateManagerMemory() as manager, EventProcessor(manager, registry) as processor:
            for count in (1, 2):
                assert await (await processor.enqueue("u", Event("add", {"entry": "a"}))) == count
            assert await manager.get_state(registry.token("u", dict)) == {"a": 2}
        assert registry.name_of(list) == "list"

    def test_what_is_registered_as_a_payload_is_none(self, registry: RegistrationContext) -> None:
        @registry.payload
        @dataclass
        class Options:
            fast: bool = False

        @registry.handler
        def start(options: Options) -> None: ...

        assert registry.handlers["start"].states == {}
        with pytest.raises(EventHandlerError, match="registered already"):
            registry.state(Options)
        registry.payload(Options)

    def test_a_state_is_none_for_payloads(self, registry: RegistrationContext) -> None:
        registry.state(Cart)
        with pytest.raises(EventHandlerError, match="Cart is registered as a state"):
            registry.payload(Cart)

    def test_a_state_with_required_fields_by_its_kind(self, registry: RegistrationContext) -> None:
        class ItemToken(StateToken[Item]):
            def create(self) -> Item:
                return Item("none")

        registry.state(Item, kind=ItemToken)

        @registry.handler
        def take(item: Item) -> None: ...

        assert registry.handlers["take"].states == {"item": Item}
        assert registry.token("u", Item).create() == Item("none")

    def test_names_that_are_taken(self, registry: RegistrationContext) -> None:
        def other() -> type:
            @dataclass
            class Cart:
                n: int = 0

            return Cart

        registry.state(Cart)
        with pytest.raises(EventHandlerError, match="Cart is registered already"):
            registry.state(Cart, name="again")
        with pytest.raises(EventHandlerError, match="'Cart' is the name of another state class"):
            registry.state(other())

        def take(cart: Any) -> None: ...

        take.__annotations__["cart"] = other()
        with pytest.raises(EventHandlerError, match=r"registry\.state\(cls, name=\.\.\.\)"):
            registry.handler(take)
        registry.state(other(), name="OtherCart")

    @pytest.mark.parametrize("thing", [5, "Cart", Cart(), list[int]])
    def test_what_is_no_class(self, registry: RegistrationContext, thing: Any) -> None:
        with pytest.raises(EventHandlerError, match="a state's class is a class, not"):
            registry.state(thing)

    def test_the_tables_are_to_be_read(self, registry: RegistrationContext) -> None:
        handlers: Any = registry.handlers
        with pytest.raises(TypeError):
            handlers["add"] = None

    def test_an_unknown_event(self, registry: RegistrationContext) -> None:
        with pytest.raises(UnknownEventError, match="'add'") as caught:
            registry.find("add")
        assert caught.value.name == "add"


class TestForks:
    async def test_a_fork_and_its_original_do_not_change_each_other(
        self, registry: RegistrationContext
    ) -> None:
        class CartToken(StateToken[Cart]):
            def create(self) -> Cart:
                return Cart({"gift": 1})

        registry.state(Cart, name="cart", kind=CartToken)
        registry.handler(lambda: "first", name="first")
        registry.payload(Profile)
        fork = registry.fork()
        fork.handler(lambda: "second", name="second")
        registry.handler(lambda: "third", name="third")
        fork.state(Item)

        def take(profile: Profile) -> None: ...

        fork.handler(take)
        assert set(fork.handlers) == {"first", "second", "take"}
        assert set(registry.handlers) == {"first", "third"}
        assert set(registry.states) == {"cart"}
        assert set(fork.states) == {"cart", "Item"}
        assert fork.handlers["take"].states == {}
        assert fork.token("u", Cart).create() == Cart({"gift": 1})
        assert type(fork) is RegistrationContext
        assert await run(fork, "first") == "first"
        with pytest.raises(UnknownEventError):
            await run(fork, "third")

    def test_a_fork_may_give_a_name_anew(self, registry: RegistrationContext) -> None:
        """Not to a handler that it has."""
        registry.handler(lambda: 1, name="add")
        with pytest.raises(EventHandlerError):
            registry.fork().handler(lambda: 2, name="add")


class TestAsAContext:
    async def test_a_processor_takes_the_registry_that_was_entered(
        self, registry: RegistrationContext
    ) -> None:
        registry.handler(lambda: "ran", name="call")
        async with StateManagerMemory() as manager:
            with registry:
                assert RegistrationContext.get() is registry
                processor = EventProcessor(manager)
            with pytest.raises(LookupError, match="no RegistrationContext here"):
                RegistrationContext.get()
            async with processor:
                assert await (await processor.enqueue("u", Event("call"))) == "ran"

    async def test_a_processor_without_a_registry_says_so(self) -> None:
        async with StateManagerMemory() as manager:
            with pytest.raises(LookupError, match="no registry: give a RegistrationContext"):
                EventProcessor(manager)

    async def test_a_manager_in_the_place_of_a_registry_is_refused(self) -> None:
        async with StateManagerMemory() as manager:
            with pytest.raises(SettingsError, match="cannot be a StateManagerMemory"):
                EventProcessor(manager, manager)  # type: ignore[arg-type]

    async def test_one_of_a_subclass_is_found_too(self) -> None:
        """Its fork is one like it, with what it has of its own."""

        class Shop(RegistrationContext):
            def __init__(self, name: str) -> None:
                super().__init__()
                self.name = name

        shop = Shop("tea")
        shop.handler(lambda: "ran", name="call")
        fork = shop.fork()
        assert (type(fork), fork.name, set(fork.handlers)) == (Shop, "tea", {"call"})
        async with StateManagerMemory() as manager:
            with RegistrationContext(), shop:
                assert Shop.get() is RegistrationContext.get() is shop
                processor = EventProcessor(manager)
            async with processor:
                assert await (await processor.enqueue("u", Event("call"))) == "ran"

    def test_the_innermost_counts(self, registry: RegistrationContext) -> None:
        fork = registry.fork()
        with registry:
            with fork:
                assert RegistrationContext.get() is fork
            assert RegistrationContext.get() is registry
