"""The memory backend: what the contract leaves to it, and what its two copies are for."""

import asyncio
import enum
import logging
from dataclasses import dataclass, field, make_dataclass
from datetime import date
from typing import Any

import pytest

from statemgr import StateInfo, StateManagerMemory, StateToken, Statistics
from statemgr.errors import (
    LockReentryError,
    LockTimeoutError,
    SettingsError,
    StateDecodeError,
    StateEncodeError,
    StateManagerClosedError,
    StateTooLargeError,
)
from statemgr.testing.clock import ManualClock

LIFE = 60.0


@dataclass
class Cart:
    items: list[str] = field(default_factory=list)


@dataclass
class Profile:
    name: str = ""


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int = 1


@dataclass
class Spot:
    x: int = 1


class Row(list[int]):
    pass


@dataclass
class Typed:
    """A state that is typed down to its leaves, and whose serializer takes the short way."""

    number: int = 1
    text: str = "red"
    row: tuple[int, ...] = (1, 2)
    items: list[int] = field(default_factory=lambda: [1, 2])
    point: Point = field(default_factory=Point)
    day: date = date(2025, 1, 1)
    ratio: float = 1.5


CART, PROFILE = StateToken("u", Cart), StateToken("u", Profile)


@dataclass(frozen=True)
class Tagged(StateToken[Any]):
    """A kind whose bytes begin with its tag, and are read by that tag only."""

    tag: int = 0

    def serialize(self, state: Any) -> bytes:
        return bytes([self.tag]) + StateToken.serialize(self, state)

    def deserialize(self, data: bytes | None = None, fp: Any = None) -> Any:
        if data is None or data[0] != self.tag:
            raise ValueError("another tag")
        return StateToken.deserialize(self, data[1:])


class Opaque(StateToken[Any]):
    """A kind that cannot be read back."""

    def deserialize(self, data: bytes | None = None, fp: Any = None) -> Any:
        raise RuntimeError("opaque")


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands still."""
    return ManualClock()


@pytest.fixture
async def memory(clock: ManualClock) -> StateManagerMemory:
    """Return a manager by that clock; it is closed after the test."""
    async with StateManagerMemory(token_expiration=LIFE, clock=clock) as manager:
        yield manager


async def _add(manager: StateManagerMemory, item: str, token: Any = CART) -> None:
    async with manager.modify_state(token) as cart:
        cart.items.append(item)


def _spoil(cart: Cart) -> None:
    cart.items.append("spoilt")
    raise KeyError


class _Entered:
    """A body in a task of its own, which runs until it is told to end."""

    def __init__(self, manager: StateManagerMemory, token: Any = CART, **arguments: Any) -> None:
        self.ends = asyncio.Event()
        self.state: Any = None
        self.task = asyncio.create_task(self._run(manager, token, arguments))

    async def _run(self, manager: StateManagerMemory, token: Any, arguments: Any) -> None:
        async with manager.modify_state(token, **arguments) as self.state:
            await self.ends.wait()

    async def end(self) -> None:
        self.ends.set()
        await self.task


class TestTwoCopies:
    async def test_bodies_change_one_object_and_readers_get_others(
        self, memory: StateManagerMemory
    ) -> None:
        await memory.set_state(CART, Cart())
        async with memory.modify_state(CART) as first:
            first.items.append("pen")
        async with memory.modify_state(CART) as second:
            assert second is first
        assert await memory.get_state(CART) == first
        assert await memory.get_state(CART) is not first
        assert await memory.get_state(CART) is not await memory.get_state(CART)

    async def test_changing_what_was_read_saves_nothing(self, memory: StateManagerMemory) -> None:
        await _add(memory, "pen")
        (await memory.get_state(CART)).items.clear()
        assert await memory.get_state(CART) == Cart(["pen"])
        async with memory.modify_state(CART) as cart:
            assert cart == Cart(["pen"])

    async def test_readers_see_the_committed_state_while_a_body_runs(
        self, memory: StateManagerMemory
    ) -> None:
        await _add(memory, "pen")
        async with memory.modify_state(CART) as cart:
            cart.items.append("ink")
            assert await memory.get_state(CART) == Cart(["pen"])
        assert await memory.get_state(CART) == Cart(["pen", "ink"])

    async def test_a_body_that_raises_costs_the_object(self, memory: StateManagerMemory) -> None:
        await _add(memory, "pen")
        with pytest.raises(KeyError):
            async with memory.modify_state(CART) as spoilt:
                _spoil(spoilt)
        async with memory.modify_state(CART) as cart:
            assert cart is not spoilt
            assert cart == Cart(["pen"])

    async def test_a_new_state_whose_body_raises_is_not_stored(
        self, memory: StateManagerMemory
    ) -> None:
        with pytest.raises(KeyError):
            async with memory.modify_state(CART) as cart:
                _spoil(cart)
        assert not await memory.has_state(CART)
        assert memory.statistics().tokens_held == 0

    async def test_a_state_that_cannot_be_saved_is_rolled_back(
        self, memory: StateManagerMemory
    ) -> None:
        await _add(memory, "pen")
        with pytest.raises(StateEncodeError):
            async with memory.modify_state(CART) as cart:
                cart.items.append(object())  # type: ignore[arg-type]
        async with memory.modify_state(CART) as cart:
            assert cart == Cart(["pen"])

    async def test_a_state_that_grew_too_large_is_rolled_back(self) -> None:
        async with StateManagerMemory(max_state_size=100) as memory:
            await _add(memory, "pen")
            with pytest.raises(StateTooLargeError):
                await _add(memory, "x" * 100)
            assert await memory.get_state(CART) == Cart(["pen"])
            await _add(memory, "ink")

    @pytest.mark.parametrize("with_another", [False, True], ids=["alone", "with another change"])
    @pytest.mark.parametrize("then", ["read", "read while a body runs", "roll back"])
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("number", True),
            ("number", 0),
            ("text", Colour.RED),
            ("row", [1, 2]),
            ("items", (1, 2)),
            ("items", {1, 2}),
            ("items", Row([1, 2])),
            ("point", Spot()),
            ("point", {"x": 1}),
            ("day", "2025-01-01"),
        ],
    )
    async def test_a_change_of_type_and_not_of_size_comes_back_or_is_refused(
        self, memory: StateManagerMemory, name: str, value: Any, then: str, with_another: bool
    ) -> None:
        """What was committed comes back, types included, or committing it was an error."""
        token = StateToken("u", Typed)
        for _ in range(2):
            async with memory.modify_state(token):
                pass
        values = {name: value} | ({"ratio": 2.5} if with_another else {})
        wanted = Typed(**values)
        try:
            async with memory.modify_state(token) as state:
                for changed in values:
                    setattr(state, changed, values[changed])
        except StateEncodeError:
            wanted = Typed()
        if then == "read":
            found = await memory.get_state(token)
        elif then == "roll back":
            modification = memory.modify_state(token)
            async with modification:
                modification.discard()
            async with memory.modify_state(token) as found:
                pass
        else:
            async with memory.modify_state(token):
                found = await memory.get_state(token)
        assert repr(found) == repr(wanted)
        assert type(getattr(found, name)) is type(getattr(wanted, name))

    async def test_what_is_changed_after_the_body_is_not_read(
        self, memory: StateManagerMemory
    ) -> None:
        """An object that got out of its body is nobody's committed state."""
        for item in ("nib", "ink", "pen"):
            async with memory.modify_state(CART) as cart:
                cart.items[:] = [item]
        cart.items[:] = ["ink"]
        assert await memory.get_state(CART) == Cart(["pen"])

    @pytest.mark.parametrize("then", ["read while a body runs", "roll back"])
    async def test_a_kind_may_serialize_a_state_to_nothing(
        self, memory: StateManagerMemory, then: str
    ) -> None:
        class Joined(StateToken[Any]):
            def serialize(self, state: Any) -> bytes:
                return ",".join(state.items).encode()

            def deserialize(self, data: bytes | None = None, fp: Any = None) -> Any:
                return Cart((data or b"").decode().split(",") if data else [])

        token = Joined("u", Cart)
        for item in ([], [], ["pen"]):
            async with memory.modify_state(token) as cart:
                cart.items += item
        modification = memory.modify_state(token)
        async with modification:
            during = await memory.get_state(token)
            modification.discard()
        found = during if then == "read while a body runs" else await memory.get_state(token)
        assert found == Cart(["pen"])

    async def test_a_read_does_not_fail_where_the_commit_was_taken(self) -> None:
        """Nothing larger than allowed is committed, so nothing larger can be found by a reader."""
        token = StateToken("u", Typed)
        size = len(token.serialize(Typed()))
        async with StateManagerMemory(max_state_size=size) as memory:
            for number, value in enumerate([(1, 2), (1, 2), [1, 2]]):
                try:
                    async with memory.modify_state(token) as state:
                        state.row = value  # type: ignore[assignment]
                        state.number = number
                except StateTooLargeError:
                    assert isinstance(value, list)
            assert isinstance(await memory.get_state(token), Typed)

    async def test_what_set_state_was_given_stays_the_callers(
        self, memory: StateManagerMemory
    ) -> None:
        mine = Cart(["pen"])
        await memory.set_state(CART, mine)
        mine.items.append("uncommitted")
        async with memory.modify_state(CART) as cart:
            assert cart == Cart(["pen"])
            cart.items.append("ink")
        assert mine == Cart(["pen", "uncommitted"])

    async def test_set_state_saves_what_it_was_given_when_it_was_called(
        self, memory: StateManagerMemory
    ) -> None:
        """Not what the object has become by the time the lock is free."""
        body = _Entered(memory)
        await asyncio.sleep(0)
        mine = Cart(["pen"])
        setting = asyncio.create_task(memory.set_state(CART, mine))
        await asyncio.sleep(0)
        mine.items.append("later")
        await body.end()
        await setting
        assert await memory.get_state(CART) == Cart(["pen"])

    async def test_a_state_that_two_bodies_put_in_place_is_not_one_for_two_idents(
        self, memory: StateManagerMemory
    ) -> None:
        """A constant assigned to many idents must not carry a change from one to another."""
        empty = Cart()
        ada, bob = StateToken("ada", Cart), StateToken("bob", Cart)
        for token in (ada, bob):
            modification = memory.modify_state(token)
            async with modification:
                modification.state = empty
        await _add(memory, "of ada", ada)
        async with memory.modify_state(bob) as cart:
            assert cart == Cart()

    @pytest.mark.parametrize("state", [0, "", False, None, [], {}, 0.0])
    async def test_falsy_states_are_states(self, memory: StateManagerMemory, state: Any) -> None:
        token = StateToken("u", type(state))
        await memory.set_state(token, state)
        assert await memory.has_state(token)
        assert await memory.get_state(token) == state
        async with memory.modify_state(token) as found:
            assert found == state
        assert memory.statistics().misses == 0

    async def test_a_state_that_compares_and_hashes_oddly_is_a_state(
        self, memory: StateManagerMemory
    ) -> None:
        class Odd:
            def __init__(self) -> None:
                self.n = 0

            def __eq__(self, other: object) -> bool:
                raise RuntimeError("compared")

            def __bool__(self) -> bool:
                raise RuntimeError("tested")

            __hash__ = None  # type: ignore[assignment]

        token = StateToken("u", Odd)
        for _ in range(3):
            async with memory.modify_state(token) as odd:
                odd.n += 1
        with pytest.raises(KeyError):
            async with memory.modify_state(token) as odd:
                raise KeyError
        assert (await memory.get_state(token)).n == 3


class TestWithoutRollback:
    @pytest.fixture
    async def bare(self) -> StateManagerMemory:
        """Return a manager that keeps no copies."""
        async with StateManagerMemory(rollback=False) as manager:
            yield manager

    async def test_a_body_that_raises_keeps_its_changes(self, bare: StateManagerMemory) -> None:
        await _add(bare, "pen")
        with pytest.raises(KeyError):
            async with bare.modify_state(CART) as cart:
                _spoil(cart)
        assert await bare.get_state(CART) == Cart(["pen", "spoilt"])

    async def test_readers_get_the_object_itself(self, bare: StateManagerMemory) -> None:
        async with bare.modify_state(CART) as cart:
            pass
        assert await bare.get_state(CART) is cart

    async def test_states_may_be_of_any_type_and_size(self, bare: StateManagerMemory) -> None:
        """Also of a class that no serializer would look at; and all are saved, or none."""

        class Wild:
            __state_version__ = "not a number"

            def __init__(self) -> None:
                self.lock = asyncio.Lock()

        async with bare.modify_states(CART, StateToken("u", Wild)) as (cart, wild):
            cart.items.append("x" * 2**25)
        async with bare.modify_state(StateToken("u", Wild)) as again:
            assert again is wild
        infos = [info async for info in bare.tokens()]
        assert {info.size for info in infos} == {None}

    async def test_it_comes_from_the_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STATEMGR_MEMORY_ROLLBACK", "off")
        assert not StateManagerMemory.create().rollback
        monkeypatch.delenv("STATEMGR_MEMORY_ROLLBACK")
        assert StateManagerMemory.create().rollback

    @pytest.mark.parametrize("rollback", [None, 1, 0, "off"])
    def test_it_is_true_or_false(self, rollback: Any) -> None:
        with pytest.raises(SettingsError) as caught:
            StateManagerMemory(rollback=rollback)
        assert "rollback" in caught.value.variable


class TestKinds:
    async def test_what_a_kind_wrote_is_read_by_the_kind_that_asks(
        self, memory: StateManagerMemory
    ) -> None:
        """A body gets what `get_state` would give, not what another kind's body left."""
        await _add(memory, "pen", Tagged("u", Cart, tag=1))
        with pytest.raises(StateDecodeError, match="ValueError"):
            await memory.get_state(Tagged("u", Cart, tag=2))
        with pytest.raises(StateDecodeError, match="ValueError"):
            async with memory.modify_state(Tagged("u", Cart, tag=2)):
                pytest.fail("a body got a state that its kind cannot read")
        assert await memory.get_state(Tagged("u", Cart, tag=1)) == Cart(["pen"])

    async def test_a_kind_of_another_class_reads_its_own_bytes_only(
        self, memory: StateManagerMemory
    ) -> None:
        await _add(memory, "pen", Tagged("u", Cart, tag=1))
        with pytest.raises(StateDecodeError):
            await memory.get_state(CART)
        with pytest.raises(StateDecodeError):
            async with memory.modify_state(CART):
                pytest.fail("a body got a state that its kind cannot read")

    async def test_a_body_is_saved_as_its_own_token_serializes_it(
        self, memory: StateManagerMemory
    ) -> None:
        """Two tokens of one kind may differ in a field that decides about the bytes."""

        @dataclass(frozen=True)
        class Salted(Tagged):
            def deserialize(self, data: bytes | None = None, fp: Any = None) -> Any:
                assert data is not None
                return Cart([*StateToken.deserialize(self, data[1:]).items, f"tag {data[0]}"])

        await _add(memory, "pen", Salted("u", Cart, tag=1))
        await _add(memory, "ink", Salted("u", Cart, tag=2))
        assert (await memory.get_state(Salted("u", Cart, tag=3))).items[-1] == "tag 2"

    async def test_kinds_whose_states_are_one_object_save_each_in_its_own_way(
        self, memory: StateManagerMemory
    ) -> None:
        """A small int is the same object wherever it comes from."""

        @dataclass(frozen=True)
        class Stamped(StateToken[int]):
            stamp: int = 0

            def serialize(self, state: int) -> bytes:
                return bytes([self.stamp, state])

            def deserialize(self, data: bytes | None = None, fp: Any = None) -> int:
                assert data is not None
                return data[1]

        first, second = Stamped("u", int, stamp=1), Stamped("u", int, stamp=2)
        for token in (first, first, second):
            async with memory.modify_state(token):
                pass
        assert memory._entries[first.cache_key].payload == bytes([2, 0])

    async def test_a_class_that_was_defined_anew_gets_objects_of_its_own(
        self, memory: StateManagerMemory
    ) -> None:
        """As after a module was reloaded: same name, same key, another class."""
        old, new = (
            make_dataclass("Page", [("hits", int, 0)], namespace={"__module__": "app"})
            for _ in range(2)
        )
        async with memory.modify_state(StateToken("u", old)) as page:
            page.hits = 3
        assert type(await memory.get_state(StateToken("u", new))) is new
        async with memory.modify_state(StateToken("u", new)) as page:
            assert type(page) is new
            page.hits += 1
        assert (await memory.get_state(StateToken("u", new))).hits == 4

    async def test_a_default_of_a_kind_is_used_by_bodies_and_readers(
        self, memory: StateManagerMemory
    ) -> None:
        class Stocked(StateToken[Any]):
            def create(self) -> Any:
                return Cart(["gift"])

        token = Stocked("u", Cart)
        assert await memory.get_state(token) == Cart(["gift"])
        assert not await memory.has_state(token)
        await _add(memory, "pen", token)
        assert await memory.get_state(token) == Cart(["gift", "pen"])

    async def test_a_hook_that_raises_leaves_no_lock(self, memory: StateManagerMemory) -> None:
        class Failing(StateToken[Any]):
            def create(self) -> Any:
                raise KeyError("create")

            def serialize(self, state: Any) -> bytes:
                raise KeyError("serialize")

        token = Failing("u", Cart)
        with pytest.raises(KeyError, match="create"):
            await memory.get_state(token)
        with pytest.raises(KeyError, match="create"):
            await _add(memory, "pen", token)
        with pytest.raises(KeyError, match="serialize"):
            await memory.set_state(token, Cart())
        await _add(memory, "pen")
        with pytest.raises(KeyError, match="serialize"):
            await _add(memory, "ink", token)
        assert memory.statistics().locks_held == 0
        assert await memory.get_state(CART) == Cart(["pen"])

    async def test_several_states_are_saved_all_or_none(self, memory: StateManagerMemory) -> None:
        class Failing(StateToken[Any]):
            def serialize(self, state: Any) -> bytes:
                raise KeyError("serialize")

        with pytest.raises(KeyError):
            async with memory.modify_states(CART, Failing("u", Profile)) as (cart, _):
                cart.items.append("pen")
        assert not await memory.has_state(CART)
        assert memory.statistics().locks_held == 0

    async def test_a_hook_that_asks_the_manager_for_its_own_lock_is_refused(
        self, memory: StateManagerMemory
    ) -> None:
        """A hook cannot wait; what it starts by hand finds the lock held by its own task."""

        class Nosy(StateToken[Any]):
            def serialize(self, state: Any) -> bytes:
                memory.set_state(CART, Cart()).send(None)
                raise AssertionError("the lock was taken twice")

        with pytest.raises(LockReentryError):
            async with memory.modify_state(Nosy("u", Cart)):
                pass
        assert memory.statistics().locks_held == 0


class TestUndecodable:
    async def test_raise_keeps_it_for_readers_and_bodies(
        self, memory: StateManagerMemory, caplog: pytest.LogCaptureFixture
    ) -> None:
        token = Opaque("u", Cart)
        await memory.set_state(token, Cart(["pen"]))
        for _ in range(2):
            with pytest.raises(StateDecodeError, match="Opaque"):
                await memory.get_state(token)
            with pytest.raises(StateDecodeError, match="Opaque"):
                await _add(memory, "ink", token)
        assert memory.statistics().locks_held == 0
        assert [record.levelno for record in caplog.records] == [logging.ERROR] * 4
        assert await memory.get_state(CART) == Cart(["pen"])

    async def test_reset_goes_on_with_a_fresh_state(self, caplog: pytest.LogCaptureFixture) -> None:
        async with StateManagerMemory(on_decode_error="reset") as memory:
            token = Opaque("u", Cart)
            await memory.set_state(token, Cart(["pen"]))
            assert await memory.get_state(token) == Cart()
            assert await memory.get_state(CART) == Cart(["pen"])
            async with memory.modify_state(token) as cart:
                assert cart == Cart()
                cart.items.append("ink")
            assert await memory.get_state(CART) == Cart(["ink"])
        assert len(caplog.records) == 2

    async def test_reset_of_one_of_several(self) -> None:
        async with StateManagerMemory(on_decode_error="reset") as memory:
            await memory.set_state(CART, Cart(["pen"]))
            await memory.set_state(PROFILE, Profile("Ada"))
            async with memory.modify_states(Opaque("u", Cart), PROFILE) as (cart, profile):
                assert (cart, profile) == (Cart(), Profile("Ada"))
            assert await memory.get_state(CART) == Cart()

    async def test_a_body_that_raises_after_a_reset_leaves_what_was_there(self) -> None:
        """It saves nothing; who can read the record still finds it."""
        async with StateManagerMemory(on_decode_error="reset") as memory:
            await memory.set_state(CART, Cart(["pen"]))
            with pytest.raises(KeyError):
                async with memory.modify_state(Opaque("u", Cart)):
                    raise KeyError
            assert await memory.get_state(CART) == Cart(["pen"])


class TestStatistics:
    async def test_each_thing_is_counted_as_described(
        self, memory: StateManagerMemory, clock: ManualClock
    ) -> None:
        assert memory.statistics() == Statistics(0, 0, 0, 0, 0, 0, 0, 0)
        await _add(memory, "pen")
        await memory.set_state(PROFILE, Profile())
        statistics = memory.statistics()
        assert (statistics.commits, statistics.tokens_held) == (2, 2)
        await memory.get_states(CART, PROFILE, StateToken("v", Cart))
        assert memory.statistics().hits - statistics.hits == 2
        assert memory.statistics().misses - statistics.misses == 1
        with pytest.raises(KeyError):
            async with memory.modify_state(CART) as cart:
                _spoil(cart)
        modification = memory.modify_state(CART)
        async with modification:
            assert memory.statistics().locks_held == 1
            modification.discard()
        assert (memory.statistics().aborts, memory.statistics().commits) == (2, 2)
        assert memory.statistics().locks_held == 0
        await clock.advance_and_settle(LIFE)
        assert (memory.statistics().purged, memory.statistics().tokens_held) == (2, 0)

    async def test_who_waits_is_counted(self, memory: StateManagerMemory) -> None:
        bodies = [_Entered(memory) for _ in range(3)]
        await asyncio.sleep(0)
        assert memory.statistics().waiters == 2
        assert memory.statistics().locks_held == 1
        for body in bodies:
            await body.end()
        assert (memory.statistics().waiters, memory.statistics().commits) == (0, 3)

    async def test_a_cancelled_body_is_an_abort_and_a_cancelled_wait_is_nothing(
        self, memory: StateManagerMemory
    ) -> None:
        bodies = [_Entered(memory), _Entered(memory)]
        await asyncio.sleep(0)
        for body in reversed(bodies):
            body.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await body.task
        assert (memory.statistics().aborts, memory.statistics().commits) == (1, 0)
        assert memory.statistics().locks_held == memory.statistics().waiters == 0

    async def test_an_expired_state_that_a_reader_finds_first_is_purged_once(
        self, memory: StateManagerMemory, clock: ManualClock
    ) -> None:
        await _add(memory, "pen")
        clock.advance(LIFE)
        assert not await memory.has_state(CART)
        await clock.settle()
        assert memory.statistics().purged == 1

    async def test_a_state_is_described(
        self, memory: StateManagerMemory, clock: ManualClock
    ) -> None:
        await memory.set_state(CART, Cart(["pen"]))
        await memory.set_state(StateToken("v/1", Cart), Cart())
        (info,) = [info async for info in memory.tokens("u")]
        size = len(CART.serialize(Cart(["pen"])))
        assert info == StateInfo("u", f"{__name__}:Cart", size, info.expires_at)
        assert info.expires_at == pytest.approx(clock.time() + LIFE)
        assert {info.ident async for info in memory.tokens()} == {"u", "v/1"}

    async def test_a_long_list_gives_the_loop_back(self, memory: StateManagerMemory) -> None:
        """And leaves out what goes meanwhile."""
        tokens = [StateToken(str(number), Cart) for number in range(1000)]
        for token in tokens:
            await memory.set_state(token, Cart())
        found: list[str] = []

        async def listing() -> None:
            found.extend([info.ident async for info in memory.tokens()])

        task = asyncio.create_task(listing())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        await memory.delete_state(tokens[-1])
        await task
        assert found == [token.ident for token in tokens[:-1]]


class TestExpiring:
    async def test_a_state_is_gone_at_its_deadline_before_any_purge(
        self, memory: StateManagerMemory, clock: ManualClock
    ) -> None:
        await _add(memory, "pen")
        clock.advance(LIFE - 0.001)
        assert await memory.has_state(CART)
        clock.advance(0.001)
        assert not await memory.has_state(CART)
        assert not await memory.touch(CART)
        assert not await memory.delete_state(CART)
        assert [info async for info in memory.tokens()] == []
        assert await memory.get_state(CART) == Cart()

    async def test_a_body_at_the_deadline_begins_afresh(
        self, memory: StateManagerMemory, clock: ManualClock
    ) -> None:
        await _add(memory, "pen")
        clock.advance(LIFE)
        async with memory.modify_state(CART) as cart:
            assert cart == Cart()

    async def test_reading_changing_aborting_and_touching_renew(
        self, memory: StateManagerMemory, clock: ManualClock
    ) -> None:
        await _add(memory, "pen")
        for _ in range(2):
            await clock.advance_and_settle(LIFE - 1)
            await memory.get_state(CART)
            await clock.advance_and_settle(LIFE - 1)
            await _add(memory, "ink")
            await clock.advance_and_settle(LIFE - 1)
            assert await memory.touch(CART)
            await clock.advance_and_settle(LIFE - 1)
            with pytest.raises(KeyError):
                async with memory.modify_state(CART):
                    raise KeyError
        await clock.advance_and_settle(LIFE - 1)
        assert await memory.get_state(CART) == Cart(["pen", "ink", "ink"])

    async def test_asking_whether_there_is_one_does_not(
        self, memory: StateManagerMemory, clock: ManualClock
    ) -> None:
        await _add(memory, "pen")
        await clock.advance_and_settle(LIFE - 1)
        assert await memory.has_state(CART)
        assert len([info async for info in memory.tokens()]) == 1
        await clock.advance_and_settle(1)
        assert not await memory.has_state(CART)

    async def test_a_state_outlives_its_deadline_while_its_lock_is_held_or_waited_for(
        self, memory: StateManagerMemory, clock: ManualClock
    ) -> None:
        """Also the other classes of the ident, and through the hand-over to a waiter."""
        await memory.set_state(PROFILE, Profile("Ada"))
        await _add(memory, "pen")
        bodies = [_Entered(memory), _Entered(memory)]
        await clock.settle()
        for body in bodies:
            await clock.advance_and_settle(LIFE + 1)
            assert await memory.has_state(PROFILE)
            assert body.state == Cart(["pen"])
            await body.end()
        await clock.settle()
        assert not await memory.has_state(PROFILE)
        assert await memory.get_state(CART) == Cart(["pen"])

    async def test_who_waited_finds_no_state_that_expired_before_the_lock_was_taken(
        self, memory: StateManagerMemory, clock: ManualClock
    ) -> None:
        """The first body of the ident is another class's, and came after the deadline."""
        for item in ("pen", "ink"):  # from the second one on, the object is kept
            await _add(memory, item)
        clock.advance(LIFE)  # and no turn of the loop in which it could be purged
        async with memory.modify_state(PROFILE):
            second = _Entered(memory)
            await asyncio.sleep(0)
        await clock.settle()
        assert second.state == Cart([])
        await second.end()

    async def test_a_purge_between_a_release_and_the_waiters_turn_makes_no_second_holder(
        self, memory: StateManagerMemory, clock: ManualClock
    ) -> None:
        first, second = _Entered(memory), _Entered(memory)
        await clock.settle()
        await clock.advance_and_settle(LIFE)
        first.ends.set()
        await asyncio.sleep(0)
        clock.advance(2 * LIFE)
        with pytest.raises(LockTimeoutError):
            async with memory.modify_state(CART, timeout=0):
                pytest.fail("two bodies ran at once")
        await clock.settle()
        await second.end()
        await first.task

    async def test_setting_the_wall_clock_moves_no_deadline(
        self, memory: StateManagerMemory, clock: ManualClock
    ) -> None:
        await _add(memory, "pen")
        for hours in (1, -2):
            clock.step_wall_clock(3600.0 * hours)
            await clock.settle()
            assert await memory.has_state(CART)
            (info,) = [info async for info in memory.tokens()]
            assert info.expires_at == pytest.approx(clock.time() + LIFE)

    async def test_an_expired_state_does_not_come_back(
        self, memory: StateManagerMemory, clock: ManualClock
    ) -> None:
        await _add(memory, "pen")
        clock.advance(LIFE)
        await _add(memory, "ink")
        assert await memory.get_state(CART) == Cart(["ink"])
        clock.advance(LIFE)
        with pytest.raises(KeyError):
            async with memory.modify_state(CART):
                raise KeyError
        assert not await memory.has_state(CART)


class TestWaiting:
    async def test_a_timeout_is_the_one_that_was_given(
        self, memory: StateManagerMemory, clock: ManualClock
    ) -> None:
        first = _Entered(memory)
        await clock.settle()
        late = _Entered(memory, timeout=5)
        await clock.settle()
        await clock.advance_and_settle(5)
        with pytest.raises(LockTimeoutError, match="ident #") as caught:
            await late.task
        assert (caught.value.lock_key, caught.value.timeout) == ("u", 5)
        await first.end()
        assert memory.statistics().locks_held == 0

    async def test_nesting_is_refused_for_bodies_writes_and_deletes(
        self, memory: StateManagerMemory
    ) -> None:
        async with memory.modify_state(CART) as cart:
            with pytest.raises(LockReentryError):
                async with memory.modify_state(PROFILE):
                    pytest.fail("nested")
            with pytest.raises(LockReentryError):
                await memory.set_state(CART, Cart())
            with pytest.raises(LockReentryError):
                await memory.delete_state(PROFILE)
            cart.items.append("pen")
        assert await memory.get_state(CART) == Cart(["pen"])

    async def test_writes_and_deletes_take_their_turn(self, memory: StateManagerMemory) -> None:
        body = _Entered(memory)
        await asyncio.sleep(0)
        calls = [
            asyncio.create_task(memory.set_state(CART, Cart(["set"]))),
            asyncio.create_task(memory.delete_state(CART)),
            asyncio.create_task(_add(memory, "last")),
        ]
        await asyncio.sleep(0)
        assert memory.statistics().waiters == 3
        await body.end()
        assert await asyncio.gather(*calls) == [None, True, None]
        assert await memory.get_state(CART) == Cart(["last"])

    async def test_a_cancelled_write_writes_nothing(self, memory: StateManagerMemory) -> None:
        body = _Entered(memory)
        await asyncio.sleep(0)
        call = asyncio.create_task(memory.set_state(PROFILE, Profile("Ada")))
        await asyncio.sleep(0)
        call.cancel()
        await body.end()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not await memory.has_state(PROFILE)
        assert memory.statistics().locks_held == 0

    async def test_a_body_in_a_generator_ends_with_the_generator(
        self, memory: StateManagerMemory
    ) -> None:
        async def rows() -> Any:
            async with memory.modify_state(CART) as cart:
                for item in "ab":
                    cart.items.append(item)
                    yield item

        generator = rows()
        assert await anext(generator) == "a"
        await generator.aclose()
        assert memory.statistics().locks_held == 0
        assert not await memory.has_state(CART)

    async def test_a_thousand_bodies_lose_no_change(self, memory: StateManagerMemory) -> None:
        async def change(number: int) -> None:
            async with memory.modify_state(CART) as cart:
                length = len(cart.items)
                if number % 3:
                    await asyncio.sleep(0)
                if number % 7 == 0:
                    raise KeyError
                cart.items.append(str(length))

        numbers = range(1000)
        results = await asyncio.gather(*map(change, numbers), return_exceptions=True)
        saved = results.count(None)
        assert (await memory.get_state(CART)).items == [str(n) for n in range(saved)]


class TestClosing:
    async def test_bodies_and_waiters_end_with_an_error_and_no_task_is_left(
        self, clock: ManualClock
    ) -> None:
        memory = StateManagerMemory(clock=clock)
        await _add(memory, "pen")
        body, waiter = _Entered(memory), _Entered(memory)
        writer = asyncio.create_task(memory.set_state(CART, Cart()))
        await clock.settle()
        await memory.close()
        body.ends.set()
        for task in (body.task, waiter.task, writer):
            with pytest.raises(StateManagerClosedError):
                await task
        await clock.settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert clock.timers == 0
        assert not memory._entries

    async def test_who_was_just_handed_the_lock_runs_no_body(self, clock: ManualClock) -> None:
        memory = StateManagerMemory(clock=clock)
        body, waiter = _Entered(memory), _Entered(memory)
        writer = asyncio.create_task(memory.set_state(PROFILE, Profile()))
        await clock.settle()
        body.ends.set()
        await asyncio.sleep(0)
        await memory.close()
        for task in (waiter.task, writer):
            with pytest.raises(StateManagerClosedError):
                await task
        assert waiter.state is None
        assert not memory._locks.holders

    @pytest.mark.parametrize("turns", range(6))
    async def test_a_body_that_ends_while_it_closes_starts_no_task(
        self, clock: ManualClock, turns: int
    ) -> None:
        """In whatever turn of the loop, between the first step of close() and its last."""
        memory = StateManagerMemory(clock=clock)
        await _add(memory, "pen")
        await clock.settle()
        body = _Entered(memory)
        await clock.settle()
        closing = asyncio.create_task(memory.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        body.ends.set()
        await closing
        with pytest.raises(StateManagerClosedError):
            await body.task
        await clock.settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert clock.timers == 0
