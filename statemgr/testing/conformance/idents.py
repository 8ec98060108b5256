"""Rule 8: any ident works, and different tokens are different states."""

from typing import Any

import pytest

from statemgr.testing.conformance import namesakes
from statemgr.testing.conformance.base import Contract, assert_idle
from statemgr.testing.conformance.states import Bar, Cart, Counter, Shop
from statemgr.testing.harness import Harness
from statemgr.token import StateToken

# Pairs and groups here would share a key if it were quoted, cut, folded or joined carelessly.
HOSTILE = [
    "a/b",
    "a%2Fb",
    "a%252Fb",
    "a:b",
    "a\\b",
    "a",
    "A",
    "a ",
    " a",
    "a.",
    ".",
    "..",
    "../a",
    "../../../../tmp/statemgr-escape",
    "/etc/passwd",
    "~",
    "-rf",
    "{a}",
    "{}",
    "}{",
    "%",
    "%%",
    "%s",
    "*",
    "?",
    "[a]",
    "a\nb",
    "a\r\nb",
    "\n",
    "\t",
    "\0",
    "a\0b",
    "a\0",
    "\x7f",
    "caf\u00e9",
    "cafe\u0301",  # looks the same
    "\u212a",  # KELVIN SIGN, folds to k
    "k",
    "\u202eabc",
    "\N{GRINNING FACE}",
    "\ud800",
    "\udfff",
    "a\ud83d",
    "con",
    "nul.txt",
    "'; DROP TABLE states; --",
    "None",
    "0",
    f"a/{Counter.__module__}:{Counter.__qualname__}",
    "lock:a",
    "a:lock",
    "x" * 10_000,
    "x" * 9_999 + "y",
    "\N{GRINNING FACE}" * 3_000,
]


class IdentsContract(Contract):
    """Each token is stored under its own key."""

    async def test_any_ident_works(self, harness: Harness) -> None:
        """All at once: each has a state of its own, and is listed back as it was given."""
        manager = await harness.open()
        tokens = [StateToken(ident, Counter) for ident in HOSTILE]
        for number, token in enumerate(tokens):
            await manager.set_state(token, Counter(number))
        for number, token in enumerate(tokens):
            async with manager.modify_state(token) as counter:
                assert counter == Counter(number)
                counter.value += 1000
        for number, token in enumerate(tokens):
            assert await manager.get_state(token) == Counter(number + 1000)
        listed = [info.ident async for info in manager.tokens()]
        assert sorted(listed) == sorted(HOSTILE)
        for token in tokens:
            assert await manager.touch(token)
            assert await manager.delete_state(token)
        assert [info async for info in manager.tokens()] == []

    async def test_hostile_idents_have_locks_of_their_own(self, harness: Harness) -> None:
        """Holding one keeps out nobody with a similar one."""
        manager = await harness.open()
        for one, two in zip(HOSTILE, HOSTILE[1:] + HOSTILE[:1], strict=True):
            async with manager.modify_state(StateToken(one, Counter)) as counter:
                counter.value = 1
                async with manager.modify_state(StateToken(two, Cart)) as cart:
                    cart.items.append("apple")
        await assert_idle(harness, manager, StateToken("a", Counter))

    @pytest.mark.parametrize("ident", ["a/b", "..", "\ud800", "a\0b", "x" * 10_000])
    async def test_deleting_one_ident_leaves_the_others(self, harness: Harness, ident: str) -> None:
        """What is dropped is that ident's alone."""
        manager = await harness.open()
        for other in HOSTILE:
            await manager.set_state(StateToken(other, Counter), Counter(1))
        await manager.delete_state(StateToken(ident, Counter))
        listed = {info.ident async for info in manager.tokens()}
        assert listed == set(HOSTILE) - {ident}

    @pytest.mark.parametrize("ident", ["", None, 1, b"user-1", ["user-1"]])
    async def test_what_is_no_ident_is_refused(self, harness: Harness, ident: Any) -> None:
        """An empty string, and whatever is no string: a `ValueError` before anything happens."""
        await harness.open()
        with pytest.raises(ValueError, match="ident"):
            StateToken(ident, Counter)

    @pytest.mark.parametrize("cls", [None, "Counter", Counter(), list[int]])
    async def test_what_is_no_class_is_refused(self, harness: Harness, cls: Any) -> None:
        """A state belongs to a class."""
        await harness.open()
        with pytest.raises(ValueError, match="class"):
            StateToken("user-1", cls)

    async def test_classes_of_one_name_are_told_apart(self, harness: Harness) -> None:
        """By the class they are nested in, and by their module."""
        manager = await harness.open()
        classes: list[Any] = [Counter, namesakes.Counter, Shop.Till, Bar.Till]
        tokens = [StateToken("user-1", cls) for cls in classes]
        for number, token in enumerate(tokens):
            await manager.set_state(token, token.cls(number))
        for number, token in enumerate(tokens):
            state = await manager.get_state(token)
            assert type(state) is token.cls
            assert state.value == number
        names = [info.class_name async for info in manager.tokens()]
        assert len(set(names)) == len(classes)
