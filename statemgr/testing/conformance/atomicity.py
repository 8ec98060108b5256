"""Rule 2: a body that ends is saved, one that raises or is discarded leaves nothing."""
# a whole body raises here, or is refused

import pytest

from statemgr.errors import StateEncodeError, StateTooLargeError
from statemgr.testing.conformance.base import Contract, Stop, assert_idle, requires
from statemgr.testing.conformance.states import Cart, Counter
from statemgr.testing.harness import Capability, Harness
from statemgr.token import StateToken


class Halt(BaseException):
    """An error that is not an `Exception`."""


class AtomicityContract(Contract):
    """A body's work is saved as a whole, or not at all."""

    async def test_body_that_ends_is_saved(self, harness: Harness) -> None:
        """What it changed in place is there for the next reader, and the next body."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        async with manager.modify_state(token) as counter:
            counter.value = 1
        assert await manager.get_state(token) == Counter(1)
        async with manager.modify_state(token) as counter:
            assert counter == Counter(1)
            counter.value = 2
        assert await manager.get_state(token) == Counter(2)

    async def test_replaced_state_is_saved(self, harness: Harness) -> None:
        """Assigning to `state` replaces it, as an immutable one needs."""
        manager = await harness.open()
        token = StateToken("user-1", int)
        modification = manager.modify_state(token)
        async with modification as state:
            assert state == 0
            modification.state = 7
        assert await manager.get_state(token) == 7

    @requires(Capability.ROLLBACK)
    @pytest.mark.parametrize("error", [Stop, Halt])
    async def test_body_that_raises_saves_nothing(
        self, harness: Harness, error: type[BaseException]
    ) -> None:
        """The next reader and the next body find the state as it was before."""
        manager = await harness.open()
        token = StateToken("user-1", Cart)
        await manager.set_state(token, Cart(["apple"]))
        with pytest.raises(error):
            async with manager.modify_state(token) as cart:
                cart.items.append("pear")
                raise error
        assert await manager.get_state(token) == Cart(["apple"])
        async with manager.modify_state(token) as cart:
            assert cart == Cart(["apple"])

    async def test_error_of_a_body_is_passed_on(self, harness: Harness) -> None:
        """It is the very error that was raised, and the lock is free."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        error = Stop()
        with pytest.raises(Stop) as caught:
            async with manager.modify_state(token):
                raise error
        assert caught.value is error
        await assert_idle(harness, manager, token)

    async def test_first_body_that_raises_stores_nothing(self, harness: Harness) -> None:
        """A token that was never written is still one after a body that raised."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        with pytest.raises(Stop):
            async with manager.modify_state(token) as counter:
                counter.value = 1
                raise Stop
        assert not await manager.has_state(token)
        assert await manager.get_state(token) == Counter()

    async def test_replaced_state_of_a_body_that_raises(self, harness: Harness) -> None:
        """What was assigned to `state` is dropped with the body."""
        manager = await harness.open()
        token = StateToken("user-1", int)
        await manager.set_state(token, 1)
        modification = manager.modify_state(token)
        with pytest.raises(Stop):
            async with modification:
                modification.state = 2
                raise Stop
        assert await manager.get_state(token) == 1

    @requires(Capability.ROLLBACK)
    async def test_discarded_body_saves_nothing(self, harness: Harness) -> None:
        """`discard` leaves the state as it was, and the block without an error."""
        manager = await harness.open()
        token = StateToken("user-1", Cart)
        await manager.set_state(token, Cart(["apple"]))
        modification = manager.modify_state(token)
        async with modification as cart:
            cart.items.append("pear")
            modification.discard()
        assert await manager.get_state(token) == Cart(["apple"])
        await assert_idle(harness, manager, token)

    async def test_first_body_that_is_discarded_stores_nothing(self, harness: Harness) -> None:
        """A token that was never written is still one after a discarded body."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        modification = manager.modify_state(token)
        async with modification as counter:
            counter.value = 1
            modification.discard()
        assert not await manager.has_state(token)

    @requires(Capability.ROLLBACK)
    async def test_object_kept_from_a_body_that_raised(self, harness: Harness) -> None:
        """Changing it later is not seen by readers, nor by the next body."""
        manager = await harness.open()
        token = StateToken("user-1", Cart)
        await manager.set_state(token, Cart(["apple"]))
        with pytest.raises(Stop):
            async with manager.modify_state(token) as cart:
                kept = cart
                raise Stop
        kept.items.append("pear")
        assert await manager.get_state(token) == Cart(["apple"])
        async with manager.modify_state(token) as cart:
            assert cart == Cart(["apple"])

    async def test_several_states_are_saved_together(self, harness: Harness) -> None:
        """`modify_states` gives the states in the order of the tokens, and saves them all."""
        manager = await harness.open()
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)
        await manager.set_state(cart, Cart(["apple"]))
        async with manager.modify_states(cart, counter) as (one, two):
            assert (one, two) == (Cart(["apple"]), Counter())
            one.items.append("pear")
            two.value = 2
        assert await manager.get_states(counter, cart) == (Counter(2), Cart(["apple", "pear"]))
        modification = manager.modify_states(counter, cart)
        async with modification:
            modification.state = (Counter(3), Cart())
        assert await manager.get_states(counter, cart) == (Counter(3), Cart())

    @requires(Capability.ROLLBACK)
    async def test_several_states_of_a_body_that_raises(self, harness: Harness) -> None:
        """None of them is changed: neither one that was there, nor one that was not."""
        manager = await harness.open()
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)
        await manager.set_state(counter, Counter(1))
        with pytest.raises(Stop):
            async with manager.modify_states(counter, cart) as (one, two):
                one.value = 2
                two.items.append("pear")
                raise Stop
        assert await manager.get_state(counter) == Counter(1)
        assert not await manager.has_state(cart)
        modification = manager.modify_states(counter, cart)
        async with modification as (one, two):
            assert (one, two) == (Counter(1), Cart())
            one.value = 2
            modification.discard()
        assert await manager.get_state(counter) == Counter(1)

    @requires(Capability.ROLLBACK)
    async def test_one_of_several_states_is_refused(self, harness: Harness) -> None:
        """If one cannot be saved, none is: not those before it either."""
        manager = await harness.open(max_state_size=1000)
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)
        await manager.set_state(counter, Counter(1))
        with pytest.raises(StateEncodeError):
            async with manager.modify_states(counter, cart) as (one, two):
                one.value = 2
                two.items.append(object())
        with pytest.raises(StateTooLargeError):
            async with manager.modify_states(counter, cart) as (one, two):
                one.value = 3
                two.items.append("x" * 1000)
        modification = manager.modify_states(counter, cart)
        with pytest.raises(StateEncodeError):
            async with modification as (one, _):
                one.value = 4
                modification.state = None  # type: ignore[assignment]  # the mistake
        assert await manager.get_state(counter) == Counter(1)
        assert not await manager.has_state(cart)
        await assert_idle(harness, manager, counter)
