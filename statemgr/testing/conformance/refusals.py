"""What cannot be saved, or cannot be made, is refused before anything is changed."""
# a whole body raises here, or is refused

from typing import Any

import pytest

from statemgr.errors import StateDefaultError, StateEncodeError, StateTooLargeError
from statemgr.testing.conformance.base import Contract, assert_idle, increment, requires, waiting
from statemgr.testing.conformance.states import Cart, Counter, NoDefault
from statemgr.testing.faults import faulty_token
from statemgr.testing.harness import Capability, Harness
from statemgr.token import StateToken


class Unready:
    """A class whose making fails."""

    def __init__(self) -> None:
        raise OSError("not today")


class RefusalsContract(Contract):
    """Errors of a state itself."""

    @requires(Capability.ROLLBACK)
    async def test_body_with_what_cannot_be_saved(self, harness: Harness) -> None:
        """The error tells where it is; the old state is intact, and the lock free."""
        manager = await harness.open()
        token = StateToken("user-1", Cart)
        await manager.set_state(token, Cart(["apple"]))
        with pytest.raises(StateEncodeError) as caught:
            async with manager.modify_state(token) as cart:
                cart.items += ["pear", object()]
        assert caught.value.path.startswith("Cart.items[2]")
        assert await manager.get_state(token) == Cart(["apple"])
        await assert_idle(harness, manager, token)
        async with manager.modify_state(token) as cart:
            assert cart == Cart(["apple"])
        assert manager.statistics().commits == 2

    @requires(Capability.ROLLBACK)
    async def test_first_body_with_what_cannot_be_saved(self, harness: Harness) -> None:
        """Nothing is stored."""
        manager = await harness.open()
        token = StateToken("user-1", Cart)
        with pytest.raises(StateEncodeError):
            async with manager.modify_state(token) as cart:
                cart.items.append(object())
        assert not await manager.has_state(token)
        await assert_idle(harness, manager, token)

    @requires(Capability.ROLLBACK)
    async def test_setting_what_cannot_be_saved(self, harness: Harness) -> None:
        """As with a body: the old state is intact, and the lock free."""
        manager = await harness.open(max_state_size=1000)
        token = StateToken("user-1", Cart)
        with pytest.raises(StateEncodeError):
            await manager.set_state(token, Cart([object()]))
        assert not await manager.has_state(token)
        await manager.set_state(token, Cart(["apple"]))
        with pytest.raises(StateEncodeError):
            await manager.set_state(token, Cart([object()]))
        with pytest.raises(StateTooLargeError):
            await manager.set_state(token, Cart(["x" * 1000]))
        assert await manager.get_state(token) == Cart(["apple"])
        await assert_idle(harness, manager, token)

    @requires(Capability.ROLLBACK)
    @pytest.mark.parametrize("wrong", [True, 1.0, "1", None, b"1", Cart()], ids=repr)
    async def test_field_of_a_wrong_type(self, harness: Harness, wrong: Any) -> None:
        """It is refused, or comes back as it is: it is never changed, and never unreadable."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter(1))
        for _ in range(2):
            before = await manager.get_state(token)
            try:
                async with manager.modify_state(token) as counter:
                    counter.value = wrong
            except StateEncodeError:
                assert await manager.get_state(token) == before
            else:
                found = await manager.get_state(token)
                assert found == Counter(wrong)
                assert type(found.value) is type(wrong)
            await manager.set_state(token, Counter(0))
            await increment(manager, token)

    @requires(Capability.ROLLBACK)
    async def test_state_that_is_too_large(self, harness: Harness) -> None:
        """The error tells both sizes; the old state is intact, and the lock free."""
        manager = await harness.open(max_state_size=1000)
        token = StateToken("user-1", Cart)
        await manager.set_state(token, Cart(["apple"]))
        with pytest.raises(StateTooLargeError) as caught:
            async with manager.modify_state(token) as cart:
                cart.items.append("x" * 1000)
        assert caught.value.limit == 1000
        assert 1000 < caught.value.size < 1200
        assert await manager.get_state(token) == Cart(["apple"])
        await assert_idle(harness, manager, token)
        async with manager.modify_state(token) as cart:
            cart.items.append("x" * 900)
        assert (await manager.get_state(token)).items == ["apple", "x" * 900]

    @requires(Capability.ROLLBACK)
    async def test_error_of_a_tokens_own_serialize(self, harness: Harness) -> None:
        """It reaches the caller as it is; the old state is intact, and the next is served."""
        manager = await harness.open()
        token, faults = faulty_token("user-1", Counter)
        await manager.set_state(token, Counter(1))

        async def change() -> None:
            async with manager.modify_state(token) as counter:
                counter.value += 1

        error = RuntimeError("no bytes today")
        with pytest.raises(RuntimeError) as caught:
            async with manager.modify_state(token) as counter:
                counter.value = 5
                task = harness.spawn(change())
                await waiting(harness, manager, 1)
                faults.encode = error
        assert caught.value is error
        faults.encode = None
        await task
        assert await manager.get_state(token) == Counter(2)
        await assert_idle(harness, manager, token)

    async def test_class_without_a_default(self, harness: Harness) -> None:
        """Reading nothing is an error that names the key; once set, it is read and changed."""
        manager = await harness.open()
        token = StateToken("user-1", NoDefault)
        with pytest.raises(StateDefaultError) as caught:
            await manager.get_state(token)
        assert caught.value.key == token.cache_key
        with pytest.raises(StateDefaultError):
            async with manager.modify_state(token):
                raise AssertionError("a body without a state")
        with pytest.raises(StateDefaultError):
            async with manager.modify_states(StateToken("user-1", Counter), token):
                raise AssertionError("a body without a state")
        assert not await manager.has_state(token)
        await manager.set_state(token, NoDefault("Ada"))
        async with manager.modify_state(token) as state:
            state.name += " Lovelace"
        assert await manager.get_state(token) == NoDefault("Ada Lovelace")
        await assert_idle(harness, manager, token)

    async def test_class_whose_making_fails(self, harness: Harness) -> None:
        """Its own error is passed on, and the lock is free for the next."""
        manager = await harness.open()
        token = StateToken("user-1", Unready)
        with pytest.raises(OSError, match="not today"):
            await manager.get_state(token)
        with pytest.raises(OSError, match="not today"):
            async with manager.modify_state(token):
                raise AssertionError("a body without a state")
        await assert_idle(harness, manager, StateToken("user-1", Counter))
