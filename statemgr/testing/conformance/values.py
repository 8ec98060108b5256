"""Rule 10 and tokens of the user's own: what is kept, and how it is made and written."""
# a whole body raises here, or is refused

import json
from dataclasses import dataclass
from typing import Any, BinaryIO

import pytest

from statemgr.testing.conformance.base import Contract, Stop, requires
from statemgr.testing.conformance.states import Counter, Falsy
from statemgr.testing.harness import Capability, Harness
from statemgr.token import StateToken

FALSY: list[Any] = [[], {}, (), 0, 0.0, "", b"", False, None, Falsy(0)]


def _identify(value: object) -> str:
    return f"{type(value).__name__}"


class TruthyToken(StateToken[Any]):
    """A token whose default is not what its class makes."""

    def create(self) -> Any:
        """Return a state that is true, and that no test saves."""
        return Counter(-1)


@dataclass
class Profile:
    """A state that goes to JSON."""

    name: str = ""


class JsonToken(StateToken[Profile]):
    """A token that does its own serialization, and its own default."""

    def create(self) -> Profile:
        """Return a profile named after the ident."""
        return Profile(f"new {self.ident}")

    def serialize(self, state: Profile) -> bytes:
        """Return JSON."""
        return json.dumps({"json": state.name}).encode()

    def deserialize(self, data: bytes | None = None, fp: BinaryIO | None = None) -> Profile:
        """Return the profile; it tells that it was read."""
        if data is None:
            assert fp is not None
            data = fp.read()
        return Profile(json.loads(data)["json"] + "!")


class ValuesContract(Contract):
    """States of all kinds."""

    @pytest.mark.parametrize("value", FALSY, ids=_identify)
    async def test_falsy_state_is_saved(self, harness: Harness, value: Any) -> None:
        """It is a state like any other: stored, read, found, listed and dropped."""
        manager = await harness.open()
        token: StateToken[Any] = TruthyToken("user-1", type(value))
        await manager.set_state(token, value)
        assert await manager.has_state(token)
        found = await manager.get_state(token)
        assert found == value
        assert type(found) is type(value)
        assert (await manager.get_states(token)) == (value,)
        async with manager.modify_state(token) as state:
            assert state == value
        assert [info.ident async for info in manager.tokens()] == ["user-1"]
        assert await manager.touch(token)
        assert await manager.delete_state(token)
        assert await manager.get_state(token) == Counter(-1)

    @pytest.mark.parametrize("value", FALSY, ids=_identify)
    async def test_state_replaced_by_a_falsy_one(self, harness: Harness, value: Any) -> None:
        """A body that assigns it has changed the state, and one that leaves it keeps it."""
        manager = await harness.open()
        token: StateToken[Any] = TruthyToken("user-1", type(value))
        modification = manager.modify_state(token)
        async with modification:
            modification.state = value
        assert await manager.has_state(token)
        assert await manager.get_state(token) == value
        with pytest.raises(Stop):
            async with manager.modify_state(token) as state:
                assert state == value
                raise Stop
        assert await manager.get_state(token) == value

    async def test_emptied_state_is_saved(self, harness: Harness) -> None:
        """A list that a body emptied is empty, not what it was nor absent."""
        manager = await harness.open()
        token = StateToken("user-1", list)
        await manager.set_state(token, [1, 2])
        async with manager.modify_state(token) as state:
            state.clear()
        assert await manager.has_state(token)
        assert await manager.get_state(token) == []

    async def test_token_with_a_default_of_its_own(self, harness: Harness) -> None:
        """`create` makes what readers and bodies find where there is nothing."""
        manager = await harness.open()
        token = JsonToken("user-1", Profile)
        assert await manager.get_state(token) == Profile("new user-1")
        assert not await manager.has_state(token)
        async with manager.modify_state(token) as profile:
            assert profile == Profile("new user-1")

    @requires(Capability.ROLLBACK)
    async def test_token_with_serialization_of_its_own(self, harness: Harness) -> None:
        """`serialize` and `deserialize` of the token are what is used, on every way."""
        manager = await harness.open()
        token = JsonToken("user-1", Profile)
        await manager.set_state(token, Profile("Ada"))
        assert await manager.get_state(token) == Profile("Ada!")
        modification = manager.modify_state(token)
        async with modification:
            modification.state = Profile("Grace")
        assert await manager.get_states(token) == (Profile("Grace!"),)
        other = StateToken("user-1", Counter)
        several = manager.modify_states(other, token)
        async with several:
            several.state = (Counter(1), Profile("Joan"))
        assert await manager.get_states(token, other) == (Profile("Joan!"), Counter(1))

    @requires(Capability.ROLLBACK)
    async def test_large_state(self, harness: Harness) -> None:
        """A state of a megabyte comes back whole."""
        manager = await harness.open()
        token = StateToken("user-1", bytes)
        value = bytes(range(256)) * 4096
        await manager.set_state(token, value)
        assert await manager.get_state(token) == value
