"""A process that is short of memory or of stack says nothing of the bytes, and damages none."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from statemgr import StateManagerDisk, StateManagerMemory, StateToken
from statemgr.errors import StateDecodeError
from statemgr.record import RecordCodec
from statemgr.serialization import MsgpackSerializer, PickleSerializer

KEY = bytes(range(32))


def run_out_of_memory(*_: object) -> NoReturn:
    """Stand for whatever asks for more memory than there is."""
    raise MemoryError


def run_out_of_stack(*_: object) -> NoReturn:
    """Make calls until the interpreter has enough."""

    def deeper() -> NoReturn:
        deeper()

    deeper()


each_shortage = pytest.mark.parametrize(
    ("run_out", "error"),
    [(run_out_of_memory, MemoryError), (run_out_of_stack, RecursionError)],
    ids=["memory", "stack"],
)


class Unpicklable:
    """Loading it runs `run_out`."""

    def __init__(self, run_out: Callable[..., NoReturn]) -> None:
        self.run_out = run_out

    def __reduce__(self) -> Any:
        return self.run_out, ()


class JsonToken(StateToken[Any]):
    """A token with a serialization of its own, which is recursive."""

    def deserialize(self, data: bytes) -> Any:
        return json.loads(data)


@each_shortage
@pytest.mark.parametrize("hint", [int, Any], ids=["typed", "tagged"])
def test_loading_raises_it_as_it_is(hint: Any, run_out: Any, error: type[Exception]) -> None:
    """Wherever it happens: in a default, in a migration."""
    serializer = MsgpackSerializer()
    field: Any = dataclasses.field(default_factory=run_out)
    old = dataclasses.make_dataclass("State", [("a", hint)])
    with_default = dataclasses.make_dataclass("State", [("a", hint), ("b", hint, field)])
    migrating = dataclasses.make_dataclass(
        "State",
        [("a", hint)],
        namespace={"__state_version__": 1, "__migrate__": staticmethod(run_out)},
    )
    data = serializer.serialize(old(1), old)
    for cls in (with_default, migrating):
        with pytest.raises(error):
            serializer.deserialize(data, cls)


@each_shortage
def test_so_does_loading_a_pickle(run_out: Any, error: type[Exception]) -> None:
    """It was signed, so it is what was saved."""
    serializer = PickleSerializer(key=KEY)
    data = serializer.serialize(Unpicklable(run_out), Unpicklable)
    with pytest.raises(error):
        serializer.deserialize(data, Unpicklable)


@each_shortage
def test_so_does_decrypting(
    run_out: Any, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which would else look like a wrong key."""
    codec = RecordCodec(encryption_keys=[KEY])
    record = codec.pack("key", b"payload", 1.0)
    monkeypatch.setattr(codec, "_cipher", run_out)
    with pytest.raises(error):
        codec.unpack(record)


@each_shortage
async def test_a_manager_does_not_reset_a_state_for_it(
    run_out: Any, error: type[Exception], tmp_path: Path
) -> None:
    """A body that cannot load its state does not run, and the state stays."""

    class ShortToken(StateToken[Any]):
        def deserialize(self, data: bytes) -> Any:
            run_out()

    async with StateManagerDisk(tmp_path, on_decode_error="reset") as manager:
        await manager.set_state(StateToken("ident", list), [1])
    async with StateManagerDisk(tmp_path, on_decode_error="reset") as manager:
        with pytest.raises(error):
            async with manager.modify_state(ShortToken("ident", list)):
                pass
        assert await manager.get_state(StateToken("ident", list)) == [1]


def test_a_manager_and_its_serializer_agree_on_what_a_shortage_is() -> None:
    """At whatever depth of the stack a state does not load, it is no error of the record."""
    manager, token = StateManagerMemory(), StateToken("ident", list)
    state: list[Any] = []
    for _ in range(90):
        state = [state]
    data = token.serialize(state)

    def descend() -> Any:
        try:
            return descend()
        except RecursionError:  # on the way up, until there is room enough
            return manager._decode(token, data)

    assert descend() == state


def test_bytes_that_are_too_deep_are_damage_for_any_token() -> None:
    """They exhaust a decoder's recursion, and not the stack."""
    manager = StateManagerMemory()
    for token, data in (
        (JsonToken("ident", list), b"[" * 100_000),
        (StateToken("ident", list), b"\x01\x00" + b"\x91" * 100_000),
    ):
        with pytest.raises(StateDecodeError):
            manager._decode(token, data)
