"""What type checkers make of the public names: checked by them, never run.

Each line that is to be refused is marked for mypy and for pyright, and both are told to report a
mark that nothing needs.
"""

# pyright: strict

from collections.abc import AsyncIterator
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
