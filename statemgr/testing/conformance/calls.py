"""Section 2: the public calls, one by one."""

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import pytest

from statemgr.errors import StateManagerClosedError
from statemgr.manager import StateManager
from statemgr.statistics import StateInfo
from statemgr.testing.conformance.base import Contract, assert_idle, increment
from statemgr.testing.conformance.states import Cart, Counter
from statemgr.testing.harness import EXPIRATION, Harness
from statemgr.token import AnyToken, StateToken

Call = Callable[[StateManager, AnyToken], Awaitable[object]]


async def _enter(modification: Any) -> None:
    async with modification:
        pass


async def _list(manager: StateManager, prefix: str = "") -> dict[str, StateInfo]:
    return {info.ident: info async for info in manager.tokens(prefix)}


# Every public call that needs the loop, by its name.
CALLS: dict[str, Call] = {
    "get_state": lambda manager, token: manager.get_state(token),
    "get_states": lambda manager, token: manager.get_states(token),
    "set_state": lambda manager, token: manager.set_state(token, Counter()),
    "modify_state": lambda manager, token: _enter(manager.modify_state(token)),
    "modify_states": lambda manager, token: _enter(manager.modify_states(token)),
    "delete_state": lambda manager, token: manager.delete_state(token),
    "has_state": lambda manager, token: manager.has_state(token),
    "touch": lambda manager, token: manager.touch(token),
    "tokens": lambda manager, _: _list(manager),
}


class CallsContract(Contract):
    """What each call takes and returns."""

    async def test_set_then_get(self, harness: Harness) -> None:
        """What was set is read; setting again replaces it."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        await manager.set_state(token, Counter(1))
        assert await manager.get_state(token) == Counter(1)
        await manager.set_state(token, Counter(2))
        assert await manager.get_state(token) == Counter(2)
        await increment(manager, token)
        assert await manager.get_state(token) == Counter(3)

    async def test_has_state(self, harness: Harness) -> None:
        """It tells whether a state is stored."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        assert await manager.has_state(token) is False
        await manager.set_state(token, Counter())
        assert await manager.has_state(token) is True
        assert await manager.has_state(token.with_cls(Cart)) is False

    async def test_delete_state(self, harness: Harness) -> None:
        """It tells whether there was one, and leaves the ident's other classes."""
        manager = await harness.open()
        counter, cart = StateToken("user-1", Counter), StateToken("user-1", Cart)
        await manager.set_state(counter, Counter(1))
        await manager.set_state(cart, Cart(["apple"]))
        assert await manager.delete_state(counter) is True
        assert await manager.delete_state(counter) is False
        assert await manager.get_states(counter, cart) == (Counter(), Cart(["apple"]))
        await increment(manager, counter)
        assert await manager.get_state(counter) == Counter(1)
        await assert_idle(harness, manager, counter)

    async def test_touch(self, harness: Harness) -> None:
        """It tells whether there is a state."""
        manager = await harness.open()
        token = StateToken("user-1", Counter)
        assert await manager.touch(token) is False
        await manager.set_state(token, Counter(1))
        assert await manager.touch(token) is True
        assert await manager.get_state(token) == Counter(1)

    async def test_tokens(self, harness: Harness) -> None:
        """Each stored state is listed once, by ident and class, with its deadline."""
        manager = await harness.open()
        began = perf_counter()
        for number in range(300):
            await manager.set_state(StateToken(f"user-{number}", Counter), Counter(number))
        await manager.set_state(StateToken("user-0", Cart), Cart(["apple"]))
        listed = [info async for info in manager.tokens()]
        assert len(listed) == 301
        assert {info.ident for info in listed} == {f"user-{number}" for number in range(300)}
        classes = {info.class_name for info in listed if info.ident == "user-0"}
        assert classes == {f"{cls.__module__}:{cls.__qualname__}" for cls in (Counter, Cart)}
        expires_at = harness.clock.time() + EXPIRATION
        elapsed = perf_counter() - began  # has passed in a store with a clock of its own
        for info in listed:
            assert expires_at - elapsed - 0.01 <= info.expires_at <= expires_at + 0.01
            assert info.size is None or info.size > 0

    async def test_tokens_by_prefix(self, harness: Harness) -> None:
        """The prefix is compared with the ident as it is, character by character."""
        manager = await harness.open()
        idents = {"user-1", "user-10", "User-1", "a/b", "a%2Fb", "a*b", "a[1]", "_x", "é"}
        for ident in idents:
            await manager.set_state(StateToken(ident, Counter), Counter())
        for prefix in ("user-1", "user", "a", "a/", "a%", "a*", "a[", "*", "?", "_", "é", "none"):
            assert set(await _list(manager, prefix)) == {
                ident for ident in idents if ident.startswith(prefix)
            }

    async def test_tokens_leaves_out_deleted_states(self, harness: Harness) -> None:
        """A state that is gone is not listed, a changed one once."""
        manager = await harness.open()
        one, two = StateToken("user-1", Counter), StateToken("user-2", Counter)
        await increment(manager, one)
        await increment(manager, two)
        await increment(manager, two)
        await manager.delete_state(one)
        assert [info.ident async for info in manager.tokens()] == ["user-2"]

    @pytest.mark.parametrize("call", sorted(set(CALLS) - {"tokens"}))
    @pytest.mark.parametrize("token", [None, "user-1", Counter, ("user-1", Counter)])
    async def test_only_tokens_are_taken(self, harness: Harness, call: str, token: Any) -> None:
        """Anything else is refused by a `ValueError`, and nothing is stored."""
        manager = await harness.open()
        with pytest.raises(ValueError, match="token"):
            await CALLS[call](manager, token)
        assert [info async for info in manager.tokens()] == []

    async def test_states_of_several_idents_are_not_changed_together(
        self, harness: Harness
    ) -> None:
        """`modify_states` takes different classes of one ident, at least one."""
        manager = await harness.open()
        one, two = StateToken("user-1", Counter), StateToken("user-2", Cart)
        for tokens in ((), (one, two), (one, one), (one, one.with_cls(Cart), one)):
            with pytest.raises(ValueError, match="modify_states"):
                await _enter(manager.modify_states(*tokens))
        async with manager.modify_states(one) as (counter,):
            counter.value = 1
        assert await manager.get_state(one) == Counter(1)

    async def test_manager_is_closed_by_its_block(self, harness: Harness) -> None:
        """`async with` gives the manager itself, and closes it at the end."""
        manager = await harness.open()
        async with manager as entered:
            assert entered is manager
            await increment(manager, StateToken("user-1", Counter))
        with pytest.raises(StateManagerClosedError):
            await manager.get_state(StateToken("user-1", Counter))
