"""A record gives back exactly what it was made of, or an error."""

import math
import struct
import sys
import tracemalloc
import zlib
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemgr.errors import SettingsError, StateDecodeError, StateTooLargeError
from statemgr.record import Record, RecordCodec, RecordHead

KEY, OTHER_KEY = bytes(range(32)), bytes(32)
CODECS = {
    "plain": RecordCodec(),
    "compressed": RecordCodec(compress_above=0),
    "encrypted": RecordCodec(encryption_keys=[KEY]),
    "both": RecordCodec(compress_above=0, encryption_keys=[KEY]),
}
each_mode = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
PAYLOAD = b"state " * 8


def sealed(record: bytes) -> bytes:
    """Return `record` with a checksum that fits, as an attacker would make it."""
    return record[:-16] + blake2b(record[:-16], digest_size=16).digest()


def altered(record: bytes, offset: int, new: bytes) -> bytes:
    """Return `record` with other bytes in one place, and a checksum that fits."""
    return sealed(record[:offset] + new + record[offset + len(new) :])


@each_mode
@given(
    key=st.text(st.characters(), max_size=20),
    payload=st.binary(max_size=60) | st.binary(max_size=3).map(lambda b: b * 50),
    expires_at=st.floats(allow_nan=False),
)
def test_what_goes_in_comes_out(
    codec: RecordCodec, key: str, payload: bytes, expires_at: float
) -> None:
    """Any key, lone surrogates included, any payload, any deadline, `inf` included."""
    record = codec.pack(key, payload, expires_at)
    assert codec.unpack(record) == codec.unpack(record, key) == Record(key, expires_at, payload)
    assert RecordCodec.peek(record) == RecordHead(key, expires_at, len(payload))


@each_mode
def test_every_flipped_bit_and_every_truncation_is_an_error(codec: RecordCodec) -> None:
    """Nothing damaged is ever read as a state."""
    record = codec.pack("key", PAYLOAD, 1.5)
    assert codec.unpack(record).payload == PAYLOAD
    for size in range(len(record)):
        with pytest.raises(StateDecodeError):
            codec.unpack(record[:size])
    for position in range(len(record) * 8):
        flipped = bytearray(record)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(StateDecodeError):
            codec.unpack(bytes(flipped))
    with pytest.raises(StateDecodeError):
        codec.unpack(record + b"\0")


@pytest.mark.parametrize("mode", ["encrypted", "both"])
def test_an_encrypted_record_cannot_be_altered_behind_a_right_checksum(mode: str) -> None:
    """The deadline, the key and the flags are authenticated with the payload."""
    codec = CODECS[mode]
    record = codec.pack("key", PAYLOAD, 1.5)
    for position in range((len(record) - 16) * 8):
        flipped = bytearray(record)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(StateDecodeError):
            codec.unpack(sealed(bytes(flipped)))


@each_mode
def test_a_record_of_another_token_is_refused(codec: RecordCodec) -> None:
    """A record that was moved to another key does not load."""
    record = codec.pack("one", PAYLOAD, 1.5)
    with pytest.raises(StateDecodeError) as caught:
        codec.unpack(record, "two")
    assert caught.value.key == "two"


@each_mode
def test_renewing_changes_the_deadline_only(codec: RecordCodec) -> None:
    """A damaged record is not given a fresh checksum."""
    record = codec.pack("key", PAYLOAD, 1.5)
    renewed = codec.renew(record, math.inf)
    assert codec.unpack(renewed) == Record("key", math.inf, PAYLOAD)
    for size in (10, len(record) - 20):
        damaged = record[:size] + b"\xff" + record[size + 1 :]
        with pytest.raises(StateDecodeError):
            codec.renew(damaged, 2.0)


def test_peeking_needs_the_beginning_only() -> None:
    """Lists and purges read a few bytes of each file."""
    record = CODECS["compressed"].pack("key" * 100, PAYLOAD * 100, 1.5)
    end = 26 + 300
    assert RecordCodec.peek(record[:end]) == RecordHead("key" * 100, 1.5, len(PAYLOAD) * 100)
    for size in (0, 25, 26, end - 1):
        with pytest.raises(StateDecodeError):
            RecordCodec.peek(record[:size])


def test_the_layout_is_the_documented_one() -> None:
    """Records outlive the program that wrote them."""
    record = CODECS["plain"].pack("k\u00e9y", b"payload", 1.5)
    head = struct.pack(">4sBBdIII", b"smgr", 1, 0, 1.5, 7, 7, 4) + "k\u00e9y".encode()
    assert record == sealed(head + b"payload" + bytes(16))
    compressed = CODECS["compressed"].pack("k", bytes(99), 1.5)
    assert compressed[5] == 1
    assert zlib.decompress(compressed[27:-16]) == bytes(99)
    assert CODECS["encrypted"].pack("k", b"", 1.5)[5] == 2


def test_compression_is_used_only_where_it_helps() -> None:
    """Not below the size that was set, and not where the payload would grow."""
    codec = RecordCodec(compress_above=100)
    assert codec.pack("k", bytes(100), 0)[5] == 0
    assert codec.pack("k", bytes(101), 0)[5] == 1
    noise = blake2b(b"noise").digest() * 1
    assert RecordCodec(compress_above=0).pack("k", noise, 0)[5] == 0
    assert RecordCodec().unpack(codec.pack("k", bytes(101), 0)).payload == bytes(101)


def test_a_decompression_bomb_is_refused_in_little_memory() -> None:
    """Neither the noted size nor max_state_size is exceeded by more than a byte."""
    bomb = zlib.compress(bytes(50_000_000))
    for noted in (10, 2**32 - 1, 17 * 2**20):
        head = struct.pack(">4sBBdIII", b"smgr", 1, 1, 1.5, noted, len(bomb), 1) + b"k"
        tracemalloc.start()
        with pytest.raises(StateDecodeError):
            RecordCodec().unpack(sealed(head + bomb + bytes(16)))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 1_000_000


@pytest.mark.parametrize(
    "body",
    [b"", b"not zlib", zlib.compress(PAYLOAD)[:-1], zlib.compress(PAYLOAD) + b"more",
     zlib.compress(PAYLOAD[1:]), zlib.compress(PAYLOAD + b"x")],
)  # fmt: skip
def test_a_compressed_payload_that_is_not_whole_is_an_error(body: bytes) -> None:
    """Behind a right checksum, too."""
    head = struct.pack(">4sBBdIII", b"smgr", 1, 1, 1.5, len(PAYLOAD), len(body), 1) + b"k"
    with pytest.raises(StateDecodeError):
        RecordCodec().unpack(sealed(head + body + bytes(16)))


def test_a_size_format_deadline_or_key_that_is_wrong_is_an_error() -> None:
    """Behind a right checksum, too."""
    record = CODECS["plain"].pack("k", PAYLOAD, 1.5)
    for offset, new in ((4, b"\x02"), (5, b"\x04"), (6, struct.pack(">d", math.nan)),
                        (14, struct.pack(">I", 1)), (26, b"\xff")):  # fmt: skip
        with pytest.raises(StateDecodeError):
            RecordCodec().unpack(altered(record, offset, new))


def test_keys_rotate() -> None:
    """The first key encrypts, all decrypt; renewing encrypts with the first."""
    old = RecordCodec(encryption_keys=[KEY])
    rotated = RecordCodec(encryption_keys=[OTHER_KEY, KEY])
    new = RecordCodec(encryption_keys=[OTHER_KEY])
    record = old.pack("k", PAYLOAD, 1.5)
    assert rotated.unpack(record).payload == PAYLOAD
    assert new.unpack(rotated.renew(record, 2.0)).payload == PAYLOAD
    with pytest.raises(StateDecodeError, match="none of the encryption_keys"):
        new.unpack(record)
    with pytest.raises(StateDecodeError, match="no encryption_keys"):
        RecordCodec().unpack(record)


def test_a_record_that_is_not_encrypted_is_refused_once_keys_are_set() -> None:
    """Or whoever writes to the store could choose the state."""
    record = RecordCodec().pack("k", PAYLOAD, 1.5)
    with pytest.raises(StateDecodeError, match="not encrypted"):
        CODECS["encrypted"].unpack(record)
    with pytest.raises(StateDecodeError, match="not encrypted"):
        CODECS["encrypted"].renew(record, 2.0)


def test_no_two_encrypted_records_are_alike_or_show_the_payload() -> None:
    """Each draws its own salt, and with it its own key and nonce."""
    records = [CODECS["encrypted"].pack("k", PAYLOAD, 1.5) for _ in range(100)]
    salts = {record[27 + 8 : 27 + 40] for record in records}
    assert len(salts) == len({record[27 + 40 :] for record in records}) == 100
    assert not any(PAYLOAD[:8] in record for record in records)


def test_a_state_that_is_too_large_is_refused() -> None:
    """Before anything is compressed or written."""
    codec = RecordCodec(max_state_size=10, compress_above=0)
    with pytest.raises(StateTooLargeError) as caught:
        codec.pack("k", bytes(11), 0)
    assert (caught.value.size, caught.value.limit) == (11, 10)
    codec.pack("k", bytes(10), 0)
    large = CODECS["compressed"].pack("k", bytes(99), 0)
    with pytest.raises(StateDecodeError, match="max_state_size"):
        codec.unpack(large)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("compress_above", -1),
        ("max_state_size", 0),
        ("max_state_size", 2**32),
        ("encryption_keys", [b"short"]),
        ("encryption_keys", [KEY, bytes(33)]),
        ("encryption_keys", KEY),
        ("encryption_keys", ["x" * 32]),
    ],
)
def test_impossible_options_are_settings_errors(variable: str, value: Any) -> None:
    """They name the option and what is allowed, and no key."""
    with pytest.raises(SettingsError) as caught:
        RecordCodec(**{variable: value})
    assert caught.value.variable == variable
    assert "x" * 8 not in str(caught.value)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encryption is the only part that needs it."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    RecordCodec()
    with pytest.raises(SettingsError, match=r"pip install 'statemgr\[crypto\]'"):
        RecordCodec(encryption_keys=[KEY])


def test_a_deadline_that_is_not_a_number_is_refused() -> None:
    """It would never be reached, and never be said to be."""
    with pytest.raises(ValueError, match="expires_at"):
        RecordCodec().pack("k", b"", math.nan)


def test_a_record_is_immutable() -> None:
    """It may be shared."""
    with pytest.raises(AttributeError):
        RecordCodec().unpack(RecordCodec().pack("k", b"", 0)).payload = b"x"  # type: ignore[misc]


@each_mode
def test_size_of_tells_where_a_record_ends(codec: RecordCodec) -> None:
    """Whatever follows it, and from its head alone."""
    record = codec.pack("u/m:C", PAYLOAD, 1.0)
    assert RecordCodec.size_of(record + bytes(100)) == len(record)
    assert RecordCodec.size_of(record[:26]) == len(record)
    with pytest.raises(StateDecodeError):
        RecordCodec.size_of(record[:25])
