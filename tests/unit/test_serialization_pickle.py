"""The signed pickle loads only what a holder of the key has saved."""

import dataclasses
import pickle
from typing import Any, TypedDict

import pytest

from statemgr.errors import SettingsError, StateDecodeError, StateEncodeError
from statemgr.serialization import PickleSerializer

KEY = bytes(range(32))
OTHER_KEY = bytes(64)

ran = []


@dataclasses.dataclass
class Box:
    content: Any = None

    def __call__(self) -> None:
        """Only there to be something that pickle saves and msgpack does not."""


class Options(TypedDict):
    name: str


class Bomb:
    """Runs code when it is loaded, as any pickle may."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ran.append, ("boom",)


class Secretive:
    """Shows a state's value in an exception, as any class may."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise ValueError("secret")


def test_what_pickle_can_save_comes_back() -> None:
    """Arbitrary objects, shared parts included."""
    shared: list[Any] = []
    state = Box({"type": Box, "both": (shared, shared), "complex": 1j})
    serializer = PickleSerializer(key=KEY)
    back = serializer.deserialize(serializer.serialize(state, Box), Box)
    assert back == state
    assert back.content["both"][0] is back.content["both"][1]
    assert serializer.deserialize(serializer.serialize({"name": "a"}, Options), Options) == {
        "name": "a"
    }


def test_bytes_without_a_valid_signature_never_reach_pickle() -> None:
    """Any flipped bit, any truncation, another key, no signature at all."""
    serializer = PickleSerializer(key=KEY)
    data = serializer.serialize(Box(1), Box)
    bomb = pickle.dumps(Bomb())
    forged = [bomb, data[:32] + bomb, bytes(32) + bomb, b""]
    forged += [data[:size] for size in range(len(data))]
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        forged.append(bytes(flipped))
    for each in forged:
        with pytest.raises(StateDecodeError, match="signature"):
            serializer.deserialize(each, Box)
    with pytest.raises(StateDecodeError):
        PickleSerializer(key=OTHER_KEY).deserialize(data, Box)
    assert not ran


def test_the_signature_binds_the_class() -> None:
    """One state's bytes are not accepted for a state of another class."""
    serializer = PickleSerializer(key=KEY)
    twin = type("Xob", (), {"__module__": __name__})
    with pytest.raises(StateDecodeError, match="signature"):
        serializer.deserialize(serializer.serialize(Box(), Box), twin)


def test_keys_rotate() -> None:
    """The first key signs, every key is accepted."""
    old = PickleSerializer(key=KEY)
    rotated = PickleSerializer(key=[OTHER_KEY, KEY])
    assert rotated.deserialize(old.serialize(Box(1), Box), Box) == Box(1)
    with pytest.raises(StateDecodeError):
        old.deserialize(rotated.serialize(Box(1), Box), Box)


@pytest.mark.parametrize(
    "key", [b"", b"x" * 31, b"x" * 65, (), [KEY, b"short"], ["x" * 32], "x" * 32]
)
def test_weak_keys_are_refused(key: Any) -> None:
    """The error says what is allowed, and nothing of the key."""
    with pytest.raises(SettingsError) as caught:
        PickleSerializer(key=key)
    assert caught.value.variable == "key"
    assert "x" * 8 not in str(caught.value)


def test_the_wrong_object_and_what_pickle_refuses_are_encode_errors() -> None:
    """Neither shows a value."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    serializer = PickleSerializer(key=KEY)
    for state in ("hello", Box(lambda: None), Box(Secretive()), Box(deep)):
        with pytest.raises(StateEncodeError) as caught:
            serializer.serialize(state, Box)
        assert "secret" not in str(caught.value)
        assert caught.value.__context__ is None
    while deep:
        deep = deep.pop()


def test_what_cannot_be_loaded_is_a_decode_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also behind a valid signature: the class may have moved, or the state be of another."""
    serializer = PickleSerializer(key=KEY)
    data = serializer.serialize(Box(Options), Box)
    monkeypatch.delattr(f"{__name__}.Options")
    with pytest.raises(StateDecodeError, match="AttributeError"):
        serializer.deserialize(data, Box)
    monkeypatch.setattr(Box, "__reduce__", lambda _: (list, ()))
    with pytest.raises(StateDecodeError, match="holds a list"):
        serializer.deserialize(serializer.serialize(Box(), Box), Box)
