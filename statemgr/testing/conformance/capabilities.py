"""What a backend declares works, and what it does not declare is not offered."""
# a whole body raises here, or is refused

import asyncio
import contextlib
import itertools

import pytest

from statemgr.errors import StateManagerError
from statemgr.testing.conformance.base import Contract, Stop, increment, requires, without
from statemgr.testing.conformance.expiring import RENEWING
from statemgr.testing.conformance.states import Cart, Counter
from statemgr.testing.harness import EXPIRATION, Capability, Harness
from statemgr.token import AnyToken, StateToken


class CapabilitiesContract(Contract):
    """`Harness.capabilities`. PURGE is checked with expiration, SHARED also by itself."""

    @without(Capability.SHARED)
    async def test_store_is_not_shared(self, harness: Harness) -> None:
        """A second manager is refused, or knows nothing of the first one's states."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await increment(manager, token)
        try:
            second = await harness.make(clock=harness.clock)
            found = await second.has_state(token)
        except StateManagerError:
            pass
        else:
            assert not found
            await second.close()
        assert await manager.get_state(token) == Counter(1)

    @requires(Capability.DURABLE)
    async def test_states_outlive_their_manager(self, harness: Harness) -> None:
        """The next manager finds them as they were, with what is left of their time."""
        one, two = StateToken("user-1", Counter), StateToken("user-2", Cart)
        async with await harness.open() as manager:
            await manager.set_state(one, Counter(1))
            await harness.advance(EXPIRATION - 20)
            await manager.set_state(two, Cart(["apple"]))
        await harness.advance(15)
        manager = await harness.open()
        assert {info.ident async for info in manager.tokens()} == {"user-1", "user-2"}
        assert await manager.get_state(two) == Cart(["apple"])
        await harness.advance(6)
        assert not await manager.has_state(one)
        async with manager.modify_state(two) as cart:
            assert cart == Cart(["apple"])

    @requires(Capability.DURABLE)
    async def test_states_expire_without_a_manager(self, harness: Harness) -> None:
        """One whose deadline passed while nothing was open is gone."""
        token = StateToken("user-1", Counter)
        async with await harness.open() as manager:
            await manager.set_state(token, Counter(1))
        await harness.advance(EXPIRATION + 1)
        manager = await harness.open()
        assert not await manager.has_state(token)
        assert await manager.get_state(token) == Counter()
        assert [info async for info in manager.tokens()] == []

    @requires(Capability.DURABLE)
    @pytest.mark.parametrize("use", sorted(RENEWING))
    async def test_renewed_state_outlives_its_manager(self, harness: Harness, use: str) -> None:
        """What renewed a state counts for the next manager too."""
        token = StateToken("user-1", Counter)
        async with await harness.open() as manager:
            await manager.set_state(token, Counter(1))
        async with await harness.open() as manager:
            await harness.advance(EXPIRATION - 20)
            await RENEWING[use](manager, token)
        await harness.advance(EXPIRATION - 20)
        manager = await harness.open()
        assert await manager.has_state(token)
        await harness.advance(21)
        assert not await manager.has_state(token)

    @requires(Capability.DURABLE)
    async def test_deleted_state_stays_deleted(self, harness: Harness) -> None:
        """A change that was to be written when the delete came is not written after it."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        for seconds in (1, 2, 5):
            await increment(manager, token)
            await harness.clock.settle()
            deleting = harness.spawn(manager.delete_state(token))
            await asyncio.sleep(0)
            await harness.advance(seconds)
            assert await deleting
            await harness.clock.settle()
            assert not await manager.has_state(token)
            await manager.close()
            manager = await harness.open()
            assert not await manager.has_state(token)

    @without(Capability.DURABLE)
    async def test_states_end_with_their_manager(self, harness: Harness) -> None:
        """The next manager starts empty."""
        token = StateToken("user-1", Counter)
        async with await harness.open() as manager:
            await manager.set_state(token, Counter(1))
        manager = await harness.open()
        assert not await manager.has_state(token)

    @without(Capability.ROLLBACK)
    async def test_states_are_the_objects_themselves(self, harness: Harness) -> None:
        """They may be of any kind, readers get the object, and a failed body changed it."""
        manager = await harness.open(max_state_size=10)
        token = StateToken("user-1", Cart)
        thing = object()
        await manager.set_state(token, Cart([thing, "x" * 1000]))
        with pytest.raises(Stop):
            async with manager.modify_state(token) as cart:
                cart.items.append("apple")
                assert await manager.get_state(token) is cart
                raise Stop
        assert (await manager.get_state(token)).items == [thing, "x" * 1000, "apple"]

    @requires(Capability.RAW_RECORDS)
    async def test_records_are_in_the_store(self, harness: Harness) -> None:
        """One for each state, there after the commit and gone after the delete."""
        assert Capability.DURABLE in harness.capabilities
        manager = await harness.open()
        one, two = StateToken("user-1", Counter), StateToken("user-1", Cart)
        assert await harness.read_raw(one) is None
        await increment(manager, one)
        await manager.set_state(two, Cart(["apple"]))
        await manager.close()
        records = [await harness.read_raw(token) for token in (one, two)]
        assert all(records)
        assert records[0] != records[1]
        async with await harness.open() as manager:
            await manager.delete_state(one)
        assert await harness.read_raw(one) is None
        assert await harness.read_raw(two) == records[1]

    @requires(Capability.RAW_RECORDS)
    @requires(Capability.ROLLBACK)
    async def test_record_is_of_no_body_at_work(self, harness: Harness) -> None:
        """A record that is written while a body runs holds what was committed before it."""
        manager = await harness.open()
        token: AnyToken = StateToken("user-1", Counter)
        await increment(manager, token)
        await harness.clock.settle()
        record: bytes | None = None

        async def read_record() -> None:
            nonlocal record
            while record is None:
                await asyncio.sleep(0)
                record = await harness.read_raw(token)

        modification = manager.modify_state(token)
        async with modification as counter:
            counter.value = 2
            await harness.advance(10)  # writes may have been put off
            await harness.drive(read_record())
            modification.discard()
        await manager.close()
        assert record is not None
        await harness.write_raw(token, record)
        manager = await harness.open()
        assert await manager.get_state(token) == Counter(1)

    @requires(Capability.RAW_RECORDS)
    async def test_records_are_what_is_read(self, harness: Harness) -> None:
        """An older record that was put back is the state again."""
        token: AnyToken = StateToken("user-1", Counter)
        async with await harness.open() as manager:
            await manager.set_state(token, Counter(1))
        record = await harness.read_raw(token)
        assert record is not None
        async with await harness.open() as manager:
            await manager.set_state(token, Counter(2))
        await harness.write_raw(token, record)
        manager = await harness.open()
        assert await manager.get_state(token) == Counter(1)

    @requires(Capability.RAW_RECORDS)
    async def test_record_that_expired_in_the_store(self, harness: Harness) -> None:
        """Its deadline is the store's to tell."""
        one, two = StateToken("user-1", Counter), StateToken("user-2", Counter)
        async with await harness.open() as manager:
            await manager.set_state(one, Counter(1))
            await manager.set_state(two, Counter(2))
        await harness.expire(one)
        manager = await harness.open()
        assert not await manager.has_state(one)
        assert await manager.get_states(one, two) == (Counter(), Counter(2))

    @without(Capability.RAW_RECORDS)
    async def test_there_are_no_raw_records(self, harness: Harness) -> None:
        """A harness that does not declare them does not reach them."""
        await harness.open()
        with pytest.raises(NotImplementedError):
            await harness.read_raw(StateToken("user-1", Counter))

    @requires(Capability.FENCE)
    async def test_fence_grows(self, harness: Harness) -> None:
        """With each grant of an ident's lock, also after the ident expired or was deleted.

        A grant may be kept for the next body of the same manager, for less than `EXPIRATION`.
        """
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        fences = []
        for then in ("change", "raise", "delete", "expire", "change", "reopen", "expire", "change"):
            modification = manager.modify_state(token)
            with contextlib.suppress(Stop):
                async with modification:
                    assert modification.fence is not None
                    fences.append(modification.fence)
                    if then == "raise":
                        raise Stop
            if then == "delete":
                await manager.delete_state(token)
            if then == "expire":
                await harness.advance(2 * EXPIRATION)
                await harness.clock.settle()
            if then == "reopen":
                await manager.close()
                manager = await harness.open()
        assert fences == sorted(fences)
        kept = [fences[:4], fences[4:6], fences[6:7], fences[7:]]  # what one grant may be for
        assert all(before[-1] < after[0] for before, after in itertools.pairwise(kept))
        several = manager.modify_states(token, token.with_cls(Cart))
        async with several:
            assert several.fence is not None
            assert several.fence >= fences[-1]

    @without(Capability.FENCE)
    async def test_there_is_no_fence(self, harness: Harness) -> None:
        """It is None where the backend has none."""
        manager = await harness.open()
        modification = manager.modify_state(StateToken("user-1", Counter))
        async with modification:
            assert modification.fence is None
