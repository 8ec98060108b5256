"""Rule 3: reads see committed states, and what they return is the reader's own."""

import asyncio

from statemgr.testing.conformance.base import Contract, requires
from statemgr.testing.conformance.states import Cart, Counter
from statemgr.testing.harness import Capability, Harness
from statemgr.token import StateToken


class ReadingContract(Contract):
    """`get_state` and `get_states`."""

    async def test_absent_token_gives_a_fresh_default(self, harness: Harness) -> None:
        """Each reader gets one of its own, and nothing is stored."""
        manager = await harness.open()
        token = StateToken("user-1", Cart)
        first = await manager.get_state(token)
        first.items.append("apple")
        assert await manager.get_state(token) == Cart()
        async with manager.modify_state(token) as cart:
            assert cart == Cart()

    async def test_reading_an_absent_token_stores_nothing(self, harness: Harness) -> None:
        """Neither one read, nor a read of several, nor asking and touching."""
        manager = await harness.open()
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)
        await manager.get_state(counter)
        await manager.get_states(counter, cart)
        assert not await manager.touch(counter)
        for token in (counter, cart):
            assert not await manager.has_state(token)
        assert [info async for info in manager.tokens()] == []

    @requires(Capability.ROLLBACK)
    async def test_reader_does_not_see_a_body_at_work(self, harness: Harness) -> None:
        """It sees the state of before, until the body has been saved."""
        manager = await harness.open()
        token = StateToken("user-1", Cart)
        for expected in (Cart(), Cart(["apple"]), Cart(["apple", "apple"])):
            async with manager.modify_state(token) as cart:
                cart.items.append("apple")
                assert await manager.get_state(token) == expected
                await asyncio.sleep(0)
                assert await manager.get_states(token) == (expected,)
                assert await harness.spawn(manager.get_state(token)) == expected
        assert await manager.get_state(token) == Cart(["apple"] * 3)

    @requires(Capability.ROLLBACK)
    async def test_state_being_replaced_is_not_seen(self, harness: Harness) -> None:
        """Also an assignment to `state` counts only when the body has ended."""
        manager = await harness.open()
        token = StateToken("user-1", int)
        await manager.set_state(token, 1)
        modification = manager.modify_state(token)
        async with modification:
            modification.state = 2
            assert await manager.get_state(token) == 1
        assert await manager.get_state(token) == 2

    async def test_first_body_is_not_seen_before_its_end(self, harness: Harness) -> None:
        """A token that was never written is still one while its first body runs."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        async with manager.modify_state(token) as counter:
            counter.value = 1
            assert await manager.get_state(token) == Counter()
            assert not await manager.has_state(token)
            assert [info async for info in manager.tokens()] == []
        assert await manager.has_state(token)

    @requires(Capability.ROLLBACK)
    async def test_changing_what_was_read_saves_nothing(self, harness: Harness) -> None:
        """Neither other readers nor a body see it."""
        manager = await harness.open()
        token = StateToken("user-1", Cart)
        await manager.set_state(token, Cart(["apple"]))
        mine = await manager.get_state(token)
        (again,) = await manager.get_states(token)
        mine.items.append("pear")
        assert again == Cart(["apple"])
        assert await manager.get_state(token) == Cart(["apple"])
        async with manager.modify_state(token) as cart:
            assert cart == Cart(["apple"])
        mine.items.append("plum")
        assert await manager.get_state(token) == Cart(["apple"])

    @requires(Capability.ROLLBACK)
    async def test_changing_what_was_set_saves_nothing(self, harness: Harness) -> None:
        """`set_state` saves the state as it was then; the object stays the caller's."""
        manager = await harness.open()
        token = StateToken("user-1", Cart)
        mine = Cart(["apple"])
        await manager.set_state(token, mine)
        mine.items.append("pear")
        assert await manager.get_state(token) == Cart(["apple"])
        async with manager.modify_state(token) as cart:
            assert cart == Cart(["apple"])
            cart.items.append("plum")
        assert mine == Cart(["apple", "pear"])

    @requires(Capability.ROLLBACK)
    async def test_set_state_that_waits_saves_one_moment(self, harness: Harness) -> None:
        """A state changed while its `set_state` waits is saved as it was before or after."""
        manager = await harness.open()
        token = StateToken("user-1", Cart)
        mine = Cart(["apple"])
        async with manager.modify_state(token):
            setting = harness.spawn(manager.set_state(token, mine))
            await harness.eventually(lambda: manager.statistics().waiters == 1)
            mine.items.append("pear")
        await setting
        mine.items.append("plum")
        assert await manager.get_state(token) in (Cart(["apple"]), Cart(["apple", "pear"]))

    async def test_several_states_at_once(self, harness: Harness) -> None:
        """`get_states` takes tokens of any idents and classes, and keeps their order."""
        manager = await harness.open()
        one, two = StateToken("user-1", Counter), StateToken("user-2", Cart)
        absent = StateToken("user-3", Counter)
        await manager.set_state(one, Counter(1))
        await manager.set_state(two, Cart(["apple"]))
        states = await manager.get_states(two, absent, one)
        assert states == (Cart(["apple"]), Counter(), Counter(1))
        assert isinstance(states, tuple)
        assert await manager.get_states() == ()
        assert await manager.get_states(one, one) == (Counter(1), Counter(1))
