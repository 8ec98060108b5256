"""Rule 5: a state that nobody uses is gone at its deadline, for good."""
# a whole body raises here, or is refused

from collections.abc import Awaitable, Callable

import pytest

from statemgr.manager import StateManager
from statemgr.testing.conformance.base import Contract, Stop, increment, requires, without
from statemgr.testing.conformance.states import Cart, Counter
from statemgr.testing.harness import EXPIRATION, Capability, Harness
from statemgr.token import AnyToken, StateToken


async def _discard(manager: StateManager, token: AnyToken) -> None:
    modification = manager.modify_state(token)
    async with modification:
        modification.discard()


async def _list(manager: StateManager) -> None:
    assert [info async for info in manager.tokens()]


Use = Callable[[StateManager, AnyToken], Awaitable[object]]

RENEWING: dict[str, Use] = {
    "get_state": lambda manager, token: manager.get_state(token),
    "get_states": lambda manager, token: manager.get_states(token),
    "modify_state": increment,
    "set_state": lambda manager, token: manager.set_state(token, Counter(1)),
    "touch": lambda manager, token: manager.touch(token),
}
NOT_RENEWING: dict[str, Use] = {
    "has_state": lambda manager, token: manager.has_state(token),
    "tokens": lambda manager, _: _list(manager),
}


async def assert_gone(manager: StateManager, token: AnyToken) -> None:
    """Assert in every way that there is no state."""
    assert not await manager.has_state(token)
    assert not await manager.touch(token)
    cache_keys = [f"{info.ident}/{info.class_name}" async for info in manager.tokens()]
    assert f"{token.ident}/{token.cls.__module__}:{token.cls.__qualname__}" not in cache_keys
    assert await manager.get_state(token) == token.create()
    assert await manager.get_states(token) == (token.create(),)
    assert not await manager.delete_state(token)


class ExpiringContract(Contract):
    """Sliding expiration of tokens that nobody has locked."""

    @pytest.mark.parametrize("use", sorted(RENEWING))
    async def test_using_renews(self, harness: Harness, use: str) -> None:
        """Reading, changing and touching give a state its full time again."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter(1))
        for _ in range(3):
            await harness.advance(EXPIRATION - 20)
            await RENEWING[use](manager, token)
        await harness.advance(EXPIRATION - 1)
        assert await manager.has_state(token)
        await harness.advance(2)
        await assert_gone(manager, token)

    @pytest.mark.parametrize("use", sorted(NOT_RENEWING))
    async def test_asking_does_not_renew(self, harness: Harness, use: str) -> None:
        """Who only asks what there is does not keep it alive."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter(1))
        await harness.advance(EXPIRATION - 20)
        await NOT_RENEWING[use](manager, token)
        await harness.advance(21)
        await assert_gone(manager, token)

    @pytest.mark.parametrize("settled", [False, True])
    async def test_state_is_gone_at_its_deadline(self, harness: Harness, settled: bool) -> None:
        """Whether or not a purge has come to it."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await increment(manager, token)
        await harness.advance(EXPIRATION - 1)
        assert await manager.has_state(token)
        await harness.advance(2)
        if settled:
            await harness.clock.settle()
        await assert_gone(manager, token)

    @pytest.mark.parametrize("first", ["get_state", "touch", "has_state", "delete_state", "tokens"])
    async def test_whoever_asks_first_finds_nothing(self, harness: Harness, first: str) -> None:
        """Each call by itself treats an expired state as none, before any purge."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await increment(manager, token)
        await harness.advance(EXPIRATION + 1)
        match first:
            case "get_state":
                assert await manager.get_state(token) == Counter()
            case "touch":
                assert await manager.touch(token) is False
            case "has_state":
                assert await manager.has_state(token) is False
            case "delete_state":
                assert await manager.delete_state(token) is False
            case "tokens":
                assert [info async for info in manager.tokens()] == []
        await assert_gone(manager, token)

    async def test_body_after_the_deadline_starts_afresh(self, harness: Harness) -> None:
        """It gets a default, and what it saves has its full time."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter(5))
        await harness.advance(EXPIRATION + 1)
        async with manager.modify_state(token) as counter:
            assert counter == Counter()
            counter.value = 1
        await harness.advance(EXPIRATION - 1)
        assert await manager.get_state(token) == Counter(1)

    async def test_expired_state_never_comes_back(self, harness: Harness) -> None:
        """Not by a read, a touch, a body that raises or is discarded, nor with time."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter(5))
        await harness.advance(EXPIRATION + 1)
        with pytest.raises(Stop):
            async with manager.modify_state(token) as counter:
                assert counter == Counter()
                raise Stop
        await assert_gone(manager, token)
        await _discard(manager, token)
        await assert_gone(manager, token)
        await harness.advance(1)
        await harness.clock.settle()
        await assert_gone(manager, token)
        assert [info async for info in manager.tokens()] == []

    async def test_classes_of_one_ident_expire_apart(self, harness: Harness) -> None:
        """Using one does not keep the others."""
        manager = await harness.open()
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)
        await manager.set_state(counter, Counter(1))
        await harness.advance(EXPIRATION - 20)
        await manager.set_state(cart, Cart(["apple"]))
        await harness.advance(21)
        await harness.clock.settle()
        await assert_gone(manager, counter)
        assert await manager.get_state(cart) == Cart(["apple"])

    async def test_own_expiration_of_a_manager(self, harness: Harness) -> None:
        """`token_expiration` is how long a state is kept."""
        manager = await harness.open(token_expiration=5.0)
        token = StateToken("user-1", Counter)
        await increment(manager, token)
        await harness.advance(4)
        assert await manager.get_state(token) == Counter(1)
        await harness.advance(6)
        await assert_gone(manager, token)

    @requires(Capability.PURGE)
    async def test_purge_drops_expired_states(self, harness: Harness) -> None:
        """The manager comes to them by itself, oldest first, and leaves the others."""
        manager = await harness.open()
        tokens = [StateToken(f"user-{number}", Counter) for number in range(200)]
        for token in tokens:
            await increment(manager, token)
        await harness.advance(EXPIRATION - 20)
        for token in tokens[:50]:
            await manager.touch(token)
        await harness.advance(21)
        await harness.eventually(lambda: manager.statistics().purged == 150)
        assert manager.statistics().tokens_held == 50
        await harness.advance(EXPIRATION + 1)
        await harness.eventually(lambda: manager.statistics().purged == 200)
        await harness.clock.settle()
        assert manager.statistics().tokens_held == 0

    @without(Capability.PURGE)
    async def test_no_purge_is_counted(self, harness: Harness) -> None:
        """A manager that leaves the purge to its store counts none."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await increment(manager, token)
        await harness.advance(EXPIRATION + 1)
        await harness.clock.settle()
        await assert_gone(manager, token)
        assert manager.statistics().purged == 0
