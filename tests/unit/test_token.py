"""A token names one state and no other, whatever its ident and its class are called."""

import copy
import enum
import io
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any, BinaryIO
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statemgr import StateToken
from statemgr.errors import InvalidTokenError, StateDecodeError, StateDefaultError, StateEncodeError
from statemgr.token import ident_of


@dataclass
class Cart:
    items: list[str] = field(default_factory=list)

    class Line:
        pass


@dataclass
class Profile:
    name: str = ""


@dataclass(frozen=True)
class Versioned(StateToken[Any]):
    """A kind of state with a field of its own, and its own bytes and default."""

    version: int = 1

    def create(self) -> Any:
        return Cart([f"v{self.version}"])

    def serialize(self, state: Any) -> bytes:
        return bytes([self.version]) + ",".join(state.items).encode()

    def deserialize(self, data: bytes | None = None, fp: BinaryIO | None = None) -> Any:
        raw = data if data is not None else fp.read()
        return Cart(raw[1:].decode().split(","))


class Plain(StateToken[Any]):
    """A kind of state without fields of its own."""


class Colour(str, enum.Enum):  # noqa: UP042  # a StrEnum would print as its value
    RED = "red"


def _class_named(module: str, qualname: str) -> type:
    return type("C", (), {"__module__": module, "__qualname__": qualname})


odd_text = st.text(st.sampled_from("a/:%.{}\n\0 -~é😀\ud800\udfff23AF"), min_size=1, max_size=6)
names = st.one_of(odd_text, st.text(st.characters(), min_size=1, max_size=8))

COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(lambda token, p=p: pickle.loads(pickle.dumps(token, p)) for p in range(2, 6)),  # noqa: S301
]


class TestKeys:
    @settings(deadline=None)
    @given(a=names, b=names)
    def test_two_idents_never_share_a_key(self, a: str, b: str) -> None:
        """Slashes, percent signs and lone surrogates included."""
        first, second = StateToken(a, Cart), StateToken(b, Cart)
        assert (first.lock_key == second.lock_key) == (a == b)
        assert (first.cache_key == second.cache_key) == (a == b)

    @settings(deadline=None)
    @given(ident=names)
    def test_an_ident_comes_back_from_its_lock_key(self, ident: str) -> None:
        """Whatever is in it, lone surrogates included."""
        assert ident_of(StateToken(ident, list).lock_key) == ident

    @given(ident=names)
    def test_a_lock_key_is_the_ident_in_printable_ascii_without_a_slash(self, ident: str) -> None:
        key = StateToken(ident, Cart).lock_key
        assert key.isascii()
        assert key.isprintable()
        assert not set(key) & set("/:{}* ")
        assert unquote(key, errors="surrogatepass") == ident

    @settings(deadline=None)
    @given(a=st.tuples(names, names, names), b=st.tuples(names, names, names))
    def test_ident_module_and_qualname_together_make_the_key(
        self, a: tuple[str, str, str], b: tuple[str, str, str]
    ) -> None:
        """No part can pass for the beginning or the end of its neighbour."""
        first, second = (StateToken(ident, _class_named(m, q)) for ident, m, q in (a, b))
        assert (first.cache_key == second.cache_key) == (a == b)

    @settings(deadline=None)
    @given(text=st.text(st.sampled_from("a:%/3A25"), min_size=5, max_size=12), data=st.data())
    def test_a_cut_at_another_place_is_another_class(self, text: str, data: st.DataObject) -> None:
        """The same letters, divided into module and qualified name at another place."""
        cuts = st.integers(1, len(text) - 2)
        i, j = data.draw(cuts), data.draw(cuts)
        keys = {StateToken("u", _class_named(text[:n], text[n + 1 :])).cache_key for n in (i, j)}
        same = (text[:i], text[i + 1 :]) == (text[:j], text[j + 1 :])
        assert len(keys) == (1 if same else 2)

    def test_a_quoted_slash_and_a_slash_are_two_idents(self) -> None:
        keys = {StateToken(ident, Cart).cache_key for ident in ("a/b", "a%2Fb", "a%252Fb")}
        assert len(keys) == 3

    def test_a_nested_class_is_not_the_class_around_it(self) -> None:
        assert StateToken("u", Cart.Line).cache_key == f"u/{__name__}:Cart.Line"
        assert StateToken("u", Cart).cache_key == f"u/{__name__}:Cart"

    def test_classes_of_one_ident_share_its_lock(self) -> None:
        assert StateToken("u 1", Cart).lock_key == StateToken("u 1", Profile).lock_key == "u%201"

    def test_str_is_the_cache_key(self) -> None:
        token = StateToken("a/b", Cart)
        assert str(token) == f"{token}" == token.cache_key == f"a%2Fb/{__name__}:Cart"

    def test_repr_says_ident_and_class_and_not_the_keys(self) -> None:
        assert repr(StateToken("u", Cart)) == f"StateToken(ident='u', cls={Cart!r})"

    def test_an_ident_of_a_subclass_of_str_goes_by_its_text(self) -> None:
        """An enum member prints as something else than it equals: one key, not two states."""
        member, text = StateToken(Colour.RED, Cart), StateToken("red", Cart)
        assert member == text
        assert (member.lock_key, member.cache_key) == (text.lock_key, text.cache_key)
        printed = StateToken("Colour.RED", Cart)
        assert (member.cache_key == printed.cache_key) == (member.lock_key == printed.lock_key)


class TestArguments:
    @pytest.mark.parametrize("ident", ["", None, 1, b"u", ["u"]])
    def test_an_ident_that_is_no_text_is_refused(self, ident: Any) -> None:
        """Also as a ValueError, and without its value in the message."""
        with pytest.raises(InvalidTokenError, match="ident") as caught:
            StateToken(ident, Cart)
        assert isinstance(caught.value, ValueError)

    @pytest.mark.parametrize("cls", [None, "Cart", Cart(), list[int], dict[str, int] | None])
    def test_a_class_that_is_none_is_refused(self, cls: Any) -> None:
        with pytest.raises(ValueError, match="cls is a class"):
            StateToken("u", cls)
        with pytest.raises(InvalidTokenError):
            StateToken("u", Cart).with_cls(cls)

    def test_a_class_without_a_module_is_refused_or_named(self) -> None:
        """A class can set `__module__` to None; that is no reason for an AttributeError."""
        odd = type("Odd", (), {"__module__": None})
        try:
            key = StateToken("u", odd).cache_key
        except InvalidTokenError:
            return
        assert key.endswith("Odd")


class TestHooks:
    def test_with_cls_keeps_the_ident_and_the_kind(self) -> None:
        token = Versioned("u", Cart, version=3).with_cls(Profile)
        assert type(token) is Versioned
        assert (token.ident, token.cls, token.version) == ("u", Profile, 3)
        assert token.cache_key == StateToken("u", Profile).cache_key
        assert type(Plain("u", Cart).with_cls(Profile)) is Plain

    def test_create_gives_a_fresh_default_each_time(self) -> None:
        token = StateToken("u", Cart)
        first = token.create()
        first.items.append("pen")
        assert token.create() == Cart()
        assert Versioned("u", Cart, version=2).create() == Cart(["v2"])

    def test_a_class_without_a_default_says_what_to_do(self) -> None:
        class Room:
            def __init__(self, name: str) -> None:
                self.name = name

        token = StateToken("u", Room)
        with pytest.raises(StateDefaultError, match=r"Room\(\) failed.*create\(\)") as caught:
            token.create()
        assert caught.value.key == token.cache_key
        assert isinstance(caught.value.__cause__, TypeError)

    def test_what_a_constructor_raises_is_passed_on(self) -> None:
        class Broken:
            def __init__(self) -> None:
                raise KeyError("database")

        with pytest.raises(KeyError, match="database"):
            StateToken("u", Broken).create()

    def test_serialize_and_deserialize_are_each_other_reversed(self) -> None:
        token = StateToken("u", Cart)
        data = token.serialize(Cart(["pen"]))
        assert token.deserialize(data=data) == token.deserialize(data) == Cart(["pen"])
        assert token.deserialize(fp=io.BytesIO(data)) == Cart(["pen"])

    @pytest.mark.parametrize("arguments", [{}, {"data": b"x", "fp": io.BytesIO(b"x")}])
    def test_deserialize_takes_exactly_one_source(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="exactly one of data and fp"):
            StateToken("u", Cart).deserialize(**arguments)

    def test_empty_bytes_are_a_source_and_no_state(self) -> None:
        with pytest.raises(StateDecodeError):
            StateToken("u", Cart).deserialize(data=b"")
        with pytest.raises(StateDecodeError):
            StateToken("u", Cart).deserialize(fp=io.BytesIO())

    def test_another_class_is_no_state_of_this_one(self) -> None:
        with pytest.raises(StateEncodeError, match="Profile"):
            StateToken("u", Cart).serialize(Profile())  # type: ignore[arg-type]


class TestIdentity:
    def test_equal_tokens_are_equal_and_have_one_hash(self) -> None:
        assert StateToken("u", Cart) == StateToken("u", Cart)
        assert len({StateToken("u", Cart), StateToken("u", Cart), StateToken("u", Profile)}) == 2
        assert StateToken("u", Cart) != StateToken("v", Cart)
        assert StateToken("u", Cart) != "u"

    def test_two_kinds_are_two_tokens_of_one_key(self) -> None:
        plain, versioned = Plain("u", Cart), Versioned("u", Cart)
        assert plain != versioned
        assert plain.cache_key == versioned.cache_key
        assert Versioned("u", Cart, version=2) != versioned

    @pytest.mark.parametrize("copied", COPIES)
    @pytest.mark.parametrize(
        "token",
        [StateToken("a/\ud800", Cart), Plain("u", Cart), Versioned("u", Cart, version=5)],
        ids=lambda token: type(token).__name__,
    )
    def test_a_copy_is_the_same_token(self, copied: Callable[[Any], Any], token: Any) -> None:
        """By copy, deepcopy and every pickle protocol, keys and fields of a kind's own included."""
        other = copied(token)
        assert type(other) is type(token)
        assert other == token
        assert hash(other) == hash(token)
        assert (other.lock_key, other.cache_key) == (token.lock_key, token.cache_key)
        assert getattr(other, "version", None) == getattr(token, "version", None)

    @pytest.mark.parametrize("name", ["ident", "cls", "lock_key", "cache_key"])
    def test_a_token_cannot_be_changed(self, name: str) -> None:
        with pytest.raises(FrozenInstanceError):
            setattr(StateToken("u", Cart), name, "v")

    def test_another_attribute_cannot_be_set_either(self) -> None:
        """An AttributeError, as for every object with slots."""
        with pytest.raises(AttributeError):
            StateToken("u", Cart).note = "x"  # type: ignore[attr-defined]

    def test_a_token_may_be_made_of_the_parametrized_class(self) -> None:
        """`StateToken[Cart]("u", Cart)` is how some spell a generic class."""
        assert StateToken[Cart]("u", Cart) == StateToken("u", Cart)

    def test_a_kind_with_a_constructor_of_its_own_keeps_with_cls(self) -> None:
        class OfUser(StateToken[Any]):
            def __init__(self, number: int) -> None:
                super().__init__(f"user-{number}", Cart)

        token = OfUser(7).with_cls(Profile)
        assert (token.ident, token.cls) == ("user-7", Profile)
