"""Damaged and hostile bytes end in StateDecodeError: soon, in little memory, loading nothing."""

import dataclasses
import enum
import random
import sys
import time
import tracemalloc
import types
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statemgr.errors import StateDecodeError
from statemgr.serialization import MsgpackSerializer
from statemgr.serialization.codec import LOOSE, TAGGED, TYPED
from statemgr.serialization.tagged import EXT, Mark

serializer = MsgpackSerializer()


class Rights(enum.Flag):
    READ = 1


@dataclasses.dataclass
class Item:
    sku: str = ""
    quantity: int = 0


@dataclasses.dataclass
class Cart:
    owner: str
    items: list[Item]
    tags: set[str]
    total: float
    by_name: dict[str, tuple[int, str]]
    when: datetime
    price: Decimal | None


@dataclasses.dataclass
class Holder:
    anything: Any
    items: list[Item] = dataclasses.field(default_factory=list)


WHEN = datetime(2024, 1, 2)  # noqa: DTZ001 - the typed path takes naive ones
CART = Cart("u", [Item("a", 1)], {"t"}, 1.5, {"k": (1, "b")}, WHEN, Decimal(1))
HOLDER = Holder(
    [
        {"a": (1, {2}), 3: frozenset({"x"})}, Item("b", 2**70), Rights.READ, Rights(0), "\ud800",
        datetime(2024, 1, 2, tzinfo=ZoneInfo("Europe/Paris")), date(2024, 1, 2), timedelta(1),
        Decimal("1.5"), UUID(int=1), b"raw", None, True, 1.5,
    ]
)  # fmt: skip
STATES = [(CART, TYPED), (HOLDER, TAGGED), (dataclasses.replace(CART, owner=None), LOOSE)]
each_state = pytest.mark.parametrize(("state", "form"), STATES, ids=["typed", "tagged", "loose"])


def load(data: bytes, cls: type = Holder) -> Any:
    """Load, and let nothing but StateDecodeError out; its text shows nothing of the state."""
    try:
        return serializer.deserialize(data, cls)
    except StateDecodeError as caught:
        error = caught
    assert error.__context__ is None
    return error


def tagged(root: Any, *classes: list[Any]) -> bytes:
    """Return bytes of the tagged form, written by hand."""
    return bytes([TAGGED, 0]) + msgpack.packb([list(classes), root])


@each_state
def test_every_truncation_is_an_error(state: Any, form: int) -> None:
    """No part of a state passes for a state."""
    data = serializer.serialize(state, type(state))
    assert data[0] == form
    for size in range(len(data)):
        assert type(load(data[:size], type(state))) is StateDecodeError
    assert type(load(data + b"\0", type(state))) is StateDecodeError


@each_state
def test_every_flipped_bit_is_an_error_or_a_state_of_the_class(state: Any, form: int) -> None:
    """The envelope finds flips; here none may do more than change a value."""
    data = serializer.serialize(state, type(state))
    assert data[0] == form
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        assert type(load(bytes(flipped), type(state))) in (type(state), StateDecodeError)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=64), form=st.sampled_from([TYPED, TAGGED, LOOSE]))
def test_random_bytes_are_an_error(data: bytes, form: int) -> None:
    """With and without a proper beginning."""
    for cls in (Cart, Holder, list, dict):
        load(data, cls)
        load(bytes([form, 0]) + data, cls)
        load(bytes([form, 0, 0x92, 0x90]) + data, cls)


def test_mutated_states_are_an_error_or_a_state() -> None:
    """Bytes cut, doubled, swapped and overwritten, in their thousands."""
    chance = random.Random(7)  # noqa: S311
    for state, _ in STATES:
        original = serializer.serialize(state, type(state))
        for _ in range(1500):
            data = bytearray(original)
            for _ in range(chance.randint(1, 4)):
                at = chance.randrange(2, len(data))
                size = chance.randint(0, 6)
                data[at : at + chance.randint(0, 6)] = chance.choice(
                    [chance.randbytes(size), data[at : at + size] * 2, b"\xdd\xff\xff\xff\xff"]
                )
            assert type(load(bytes(data), type(state))) in (type(state), StateDecodeError)


small = msgpack.ExtType
INSTANCE, DICT, SET, TUPLE = EXT[Mark.INSTANCE], EXT[Mark.DICT], EXT[Mark.SET], EXT[Mark.TUPLE]
HOLDER_CLASS = ["", "anything"]


@pytest.mark.parametrize(
    "node",
    [
        [SET, 1, 1], [SET, 1, True], [SET, [SET]], [DICT, 1], [DICT, [1], 2], [DICT, 1, 2, 1, 3],
        [SET, small(23, b"sNaN")], [INSTANCE], [INSTANCE, 9], [INSTANCE, -1], [INSTANCE, "a"],
        [INSTANCE, True, 1], [INSTANCE, 0, 1, 2], INSTANCE, [1, SET], {"a": 1}, {1: 2},
        small(99, b""), small(4, b"x"), small(17, b"\xff"),
        small(18, b"\0" * 13), small(18, b""), small(19, b"\0\0\0\0"), small(20, b"\xff" * 8),
        small(20, b"\0" * 8 + b"Z../../etc/passwd"), small(20, b"\0" * 8 + b"Z/etc/passwd"),
        small(20, b"\0" * 8 + b"ZNo/Where"), small(20, b"\0" * 8 + b"ZAmerica"),
        small(20, b"\0" * 8 + b"Q"), small(20, b"\0" * 8 + b"Z\0"), small(20, b"\0" * 8 + b"Z"),
        small(21, b"\x7f" + b"\xff" * 11), small(22, b"short"), small(23, b"secret"),
        small(23, b"1E+9999999999999999999999"), msgpack.Timestamp(1, 0),
        [EXT[Mark.ENUM], 0, "X"], [EXT[Mark.ENUM], 1, "X"], [EXT[Mark.FLAG], 1, "READ", 0],
        [EXT[Mark.FLAG], 2, 1 << 9], [EXT[Mark.FLAG], 2, "WRITE", 0], [EXT[Mark.FLAG], 2, -1.5],
    ],
    ids=repr,
)  # fmt: skip
def test_nodes_that_no_writer_writes_are_errors(node: Any) -> None:
    """Wrong counts, payloads, indexes, keys; the same key twice."""
    classes = (HOLDER_CLASS, ["nowhere:Nothing"], [f"{__name__}:Rights"])
    error = load(tagged([INSTANCE, 0, node], *classes))
    assert type(error) is StateDecodeError
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    "classes",
    [[], [[]], [[1]], ["ab"], [["", 1]], [["", "anything", "anything"]], [None], [["", ["a"]]]],
    ids=repr,
)
def test_a_table_of_classes_that_no_writer_writes_is_an_error(classes: Any) -> None:
    """Its entries are lists of names."""
    assert type(load(tagged([INSTANCE, 0, 1, 2], *classes))) is StateDecodeError
    plain = type("Plain", (), {})
    assert type(load(tagged([INSTANCE, 0, 1], ["", 7]), plain)) is StateDecodeError


@pytest.mark.parametrize(
    "name",
    ["os:system", "builtins:list", "subprocess:Popen", f"{__name__}:Trap", "typing:Any", ":", ""],
)
def test_a_class_that_the_program_did_not_declare_is_never_made(name: str) -> None:
    """A name finds only what annotations and __state_classes__ lead to."""
    for mark in (Mark.INSTANCE, Mark.ENUM, Mark.FLAG):
        error = load(
            tagged([EXT[mark], 1, "x"], HOLDER_CLASS, [name, "a"][: 1 + (mark == 5)]), list
        )
        assert type(error) is StateDecodeError
    assert not Trap.sprung


class Trap:
    sprung = False

    def __new__(cls, *_: Any) -> "Trap":
        cls.sprung = True
        return super().__new__(cls)

    def __setattr__(self, *_: Any) -> None:
        type(self).sprung = True


def test_an_enum_is_found_without_running_or_importing_anything() -> None:
    """Only by lookups in the dicts of modules that are loaded."""
    touched = []

    class Lazy(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            touched.append(name)
            return Rights

        def __getattribute__(self, name: str) -> Any:
            touched.append(name)
            return super().__getattribute__(name)

    sys.modules["lazy_module_of_this_test"] = Lazy("lazy_module_of_this_test")
    touched.clear()
    try:
        for name in ("lazy_module_of_this_test:Rights", "antigravity:Rights", "os:path.Rights"):
            error = load(tagged([EXT[Mark.ENUM], 0, "READ"], [name]), list)
            assert type(error) is StateDecodeError
    finally:
        del sys.modules["lazy_module_of_this_test"]
    assert not touched
    assert "antigravity" not in sys.modules
    found = load(tagged([[EXT[Mark.ENUM], 0, "READ"]], [f"{__name__}:Rights"]), list)
    assert found == [Rights.READ]


KEYS = [n * sys.hash_info.modulus for n in range(2, 20_000)]
BOMBS = {
    "huge array": b"\xdd\xff\xff\xff\xff",
    "nested arrays that could be": b"\xdc\x07\xd0" * 900,
    "huge map": b"\xdf\xff\xff\xff\xff",
    "huge str": b"\xdb\xff\xff\xff\xff",
    "huge bin": b"\xc6\xff\xff\xff\xff",
    "huge ext": b"\xc9\xff\xff\xff\xff\x10",
    "deep arrays": b"\x91" * 400 + b"\xc0",
    "deeper arrays": b"\x91" * 100_000 + b"\xc0",
    "deep maps": b"\x81\xa1a" * 100_000 + b"\xc0",
    "deep tuples": b"\x92\xc7\x00\x01" * 101 + b"\xc0",
    "keys of one hash": msgpack.packb([SET, *[small(16, n.to_bytes(10, "big")) for n in KEYS]]),
    "deep keys": b"\x92\xc7\x00\x03" * 300 + b"\xc0",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("head", [b"", b"\x92\x90", b"\x92\x90\x91", b"\x81\xa8anything"])
def test_bombs_take_little_time_and_memory(bomb: bytes, head: bytes) -> None:
    """What a header claims costs nothing; what is deep or hashes alike is refused."""
    for form in (TYPED, TAGGED):
        for cls in (Cart, Holder, list):
            tracemalloc.start()
            begin = time.process_time()
            error = load(bytes([form, 0]) + head + bomb, cls)
            took = time.process_time() - begin
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert type(error) is StateDecodeError
            assert took < 5
            assert most < 1_000_000 + 100 * len(bomb)


def test_giant_numbers_cost_what_their_bytes_cost() -> None:
    """An int of a million bytes is its bytes, a decimal with a giant exponent a few."""
    numbers = [1 << 8_000_000, Decimal("1E+999999999999999999"), Decimal("1E-999999999")]
    giants = {number: number for number in numbers}
    begin = time.process_time()
    assert load(serializer.serialize(giants, dict), dict) == giants
    assert time.process_time() - begin < 5


def test_errors_in_the_programs_own_hash_stay_inside() -> None:
    """Keys are hashed when they are loaded, with the class's own code."""

    class Unwilling:
        def __hash__(self) -> int:
            if vars(self):
                raise OSError("secret")
            return 1

    cls = type("Root", (), {"__state_classes__": (Unwilling,)})
    name = f"{__name__}:{Unwilling.__qualname__}"
    error = load(tagged([INSTANCE, 0, [SET, [INSTANCE, 1, 5]]], ["", "a"], [name, "b"]), cls)
    assert type(error) is StateDecodeError
    assert "secret" not in str(error)
