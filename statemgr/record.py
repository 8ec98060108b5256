"""The envelope around a serialized state, as it lies on disk and in Redis.

All numbers are big-endian.

    offset  size  what
    0       4     magic, b"smgr"
    4       1     format version, 1
    5       1     flags: 1 the payload is compressed, 2 the body is encrypted
    6       8     expires_at, float64: seconds of the wall clock since the epoch
    14      4     size of the payload as it was given to `pack`
    18      4     size of the body
    22      4     size of the cache key
    26      k     the cache key, UTF-8
    26+k    b     the body
    26+k+b  16    BLAKE2b of all before it

The body is the payload, deflated by zlib where that made it smaller. If encrypted, it is

    0       8     key id: a BLAKE2b of the key, so that rotated keys are found without trying
    8       32    salt, random
    40      ...   AES-256-GCM of the payload, and its tag of 16 bytes

with everything before the body as associated data: a record with another deadline or under
another key does not decrypt.

A GCM nonce has 96 bits, and drawn at random it is safe for some 2^32 records under one key: at a
thousand writes a second, two months in one process and days in a cluster. Here no two records
share a key. Each draws a salt of 256 bits, and a keyed BLAKE2b of it gives the record's own AES
key and nonce. A repetition would take about 2^128 records.

The checksum finds damage; it is no defence against somebody who writes to the store, which is
what encryption is for. Compression shows, through the length, how repetitive a state is: do not
compress states in which a secret stands beside text that an attacker chooses.
"""

import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from .errors import SettingsError, StateDecodeError, StateTooLargeError

_MAGIC = b"smgr"
_FORMAT = 1
_COMPRESSED = 1
_ENCRYPTED = 2

_HEAD = struct.Struct(">4sBBdIII")
_EXPIRES_AT = struct.Struct(">d")
_EXPIRES_AT_OFFSET = 6
_CHECKSUM_SIZE = 16
_KEY_SIZE = 32
_KEY_ID_SIZE = 8
_SALT_SIZE = 32
_NONCE_SIZE = 12
_SEAL_SIZE = _KEY_ID_SIZE + _SALT_SIZE

_MAX_SIZE = 2**31 - 1  # what AES-GCM of `cryptography` takes at once


class Record(NamedTuple):
    """One state of one token.

    Attributes:
        cache_key: The `cache_key` of the token.
        expires_at: When it expires, in seconds of the wall clock; `inf` for never.
        payload: The serialized state.
    """

    cache_key: str
    expires_at: float
    payload: bytes


@dataclass(frozen=True, slots=True)
class RecordHead:
    """What a record tells without being decoded, and without being checked for damage.

    Attributes:
        cache_key: The `cache_key` of the token.
        expires_at: When it expires, in seconds of the wall clock.
        size: The size of the serialized state in bytes, before compression.
    """

    cache_key: str
    expires_at: float
    size: int


class RecordCodec:
    """Pack serialized states into records, and check them on the way back."""

    def __init__(
        self,
        *,
        compress_above: int | None = None,
        encryption_keys: Sequence[bytes] = (),
        max_state_size: int = 16 * 2**20,
    ) -> None:
        """Check the options.

        Args:
            compress_above: Compress payloads of more bytes than this; None for never.
            encryption_keys: Keys of 32 bytes. The first one encrypts, all of them decrypt. With
                any key, records that are not encrypted are refused.
            max_state_size: The largest payload in bytes.

        Raises:
            SettingsError: An option has an impossible value, or `cryptography` is not installed.
        """
        _require(
            compress_above is None or compress_above >= 0,
            "compress_above",
            "None, or a number of bytes from 0",
        )
        _require(
            0 < max_state_size <= _MAX_SIZE,
            "max_state_size",
            f"a number of bytes from 1 to {_MAX_SIZE}",
        )
        _require(
            all(type(key) is bytes and len(key) == _KEY_SIZE for key in encryption_keys),
            "encryption_keys",
            f"a sequence of keys of {_KEY_SIZE} bytes each",
        )
        self._compress_above = math.inf if compress_above is None else compress_above
        self._max_state_size = max_state_size
        self._keys = {_key_id(key): key for key in encryption_keys}
        self._first_key_id = next(iter(self._keys), b"")
        self._cipher = _load_cipher() if self._keys else None

    def pack(self, cache_key: str, payload: bytes, expires_at: float) -> bytes:
        """Return the record of a serialized state.

        Args:
            cache_key: The `cache_key` of the token.
            payload: The serialized state.
            expires_at: When it expires, in seconds of the wall clock; `inf` for never.

        Raises:
            StateTooLargeError: `payload` is larger than `max_state_size`.
        """
        size = len(payload)
        if size > self._max_state_size:
            raise StateTooLargeError(
                f"the serialized state has {size} bytes; {self._max_state_size} are allowed",
                size=size,
                limit=self._max_state_size,
            )
        flags = 0
        if size > self._compress_above:
            import zlib

            compressed = zlib.compress(payload)
            if len(compressed) < size:
                flags, payload = _COMPRESSED, compressed
        return self._assemble(flags, expires_at, size, _encode_key(cache_key), payload)

    def unpack(self, data: bytes, cache_key: str | None = None) -> Record:
        """Return what a record holds.

        Args:
            data: What `pack` or `renew` returned.
            cache_key: The key that the record must be of; None for any.

        Raises:
            StateDecodeError: `data` is damaged, of another key, not encrypted although keys are
                configured, encrypted with a key that is not, or larger than `max_state_size`
                when decompressed.
        """
        head, key, body = self._open(data)
        _, _, flags, expires_at, size, _, _ = head
        if cache_key is None:
            name = _decode_key(key)
        elif key == _encode_key(cache_key):
            name = cache_key
        else:
            _decode_key(key)  # one that is no text is damaged
            raise StateDecodeError("the record belongs to another token", key=cache_key)
        if flags & _COMPRESSED:
            body = self._decompress(body, size)
        if len(body) != size:
            raise _damaged("the payload does not have the size that was noted")
        return Record(name, expires_at, body)

    def renew(self, data: bytes, expires_at: float) -> bytes:
        """Return a record like `data` that expires at another time.

        The payload is neither decompressed nor looked into. An encrypted record is encrypted
        anew, with the first key, because its deadline is authenticated.

        Raises:
            StateDecodeError: `data` cannot be read; see `unpack`.
        """
        (_, _, flags, _, size, _, _), key, body = self._open(data)
        return self._assemble(flags & _COMPRESSED, expires_at, size, key, body)

    @staticmethod
    def peek(data: bytes) -> RecordHead:
        """Return what the beginning of a record tells, for lists and purges.

        Args:
            data: The record, or its beginning up to the end of the cache key at least.

        Raises:
            StateDecodeError: `data` is not a record, or too little of it.
        """
        (_, _, _, expires_at, size, _, key_size) = _read_head(data)
        key = data[_HEAD.size : _HEAD.size + key_size]
        if len(key) != key_size:
            raise _damaged("it ends inside its key")
        return RecordHead(_decode_key(key), expires_at, size)

    @staticmethod
    def size_of(data: bytes) -> int:
        """Return how many bytes a record takes, as its beginning tells.

        Raises:
            StateDecodeError: `data` is not a record, or too little of it.
        """
        *_, body_size, key_size = _read_head(data)
        return int(_HEAD.size + key_size + body_size + _CHECKSUM_SIZE)

    def _assemble(self, flags: int, expires_at: float, size: int, key: bytes, body: bytes) -> bytes:
        if math.isnan(expires_at):
            raise ValueError("expires_at must be a number")
        body_size = len(body)
        if self._cipher is not None:
            flags |= _ENCRYPTED
            body_size += _SEAL_SIZE + _CHECKSUM_SIZE  # a GCM tag has 16 bytes too
        head = _HEAD.pack(_MAGIC, _FORMAT, flags, expires_at, size, body_size, len(key)) + key
        if self._cipher is not None:
            salt = os.urandom(_SALT_SIZE)
            subkey, nonce = _derive(self._keys[self._first_key_id], salt)
            sealed = self._cipher(subkey).encrypt(nonce, body, head)
            body = self._first_key_id + salt + sealed
        record = head + body
        return record + _checksum(record)

    def _open(self, data: bytes) -> tuple[tuple[Any, ...], bytes, bytes]:
        """Return the head's numbers, the key, and the body checked and decrypted."""
        head = _read_head(data)
        _, _, flags, _, _, body_size, key_size = head
        start = _HEAD.size + key_size
        end = start + body_size
        if len(data) != end + _CHECKSUM_SIZE:
            raise _damaged("it does not have the length that was noted")
        if _checksum(data[:end]) != data[end:]:
            raise _damaged("its checksum is wrong")
        key, body = data[_HEAD.size : start], data[start:end]
        if flags & _ENCRYPTED:
            body = self._decrypt(body, data[:start])
        elif self._keys:
            raise StateDecodeError("the record is not encrypted, and encryption_keys are set")
        return head, key, body

    def _decrypt(self, body: bytes, head: bytes) -> bytes:
        if self._cipher is None:
            raise StateDecodeError("the record is encrypted, and no encryption_keys are set")
        key = self._keys.get(body[:_KEY_ID_SIZE])
        if key is None:
            raise StateDecodeError("the record is encrypted with none of the encryption_keys")
        subkey, nonce = _derive(key, body[_KEY_ID_SIZE:_SEAL_SIZE])
        plain: bytes | None = None
        try:
            plain = self._cipher(subkey).decrypt(nonce, body[_SEAL_SIZE:], head)
        except (MemoryError, RecursionError):  # which no record can cause
            raise
        except Exception:  # noqa: S110 - InvalidTag, or ValueError where there is no tag
            pass
        if plain is None:
            raise StateDecodeError("the record was not encrypted with this key, or was altered")
        return plain

    def _decompress(self, body: bytes, size: int) -> bytes:
        import zlib

        if size > self._max_state_size:
            raise StateDecodeError("the record is larger than max_state_size when decompressed")
        inflate = zlib.decompressobj()
        try:
            payload = inflate.decompress(body, size + 1)  # one more would show that it is too long
        except zlib.error:
            payload = b""
        if not inflate.eof or inflate.unused_data:
            raise _damaged("its compressed payload is not whole")
        return payload


def _read_head(data: bytes) -> tuple[Any, ...]:
    if len(data) < _HEAD.size:
        raise _damaged("it ends inside its head")
    head = _HEAD.unpack_from(data)
    magic, version, flags, expires_at, *_ = head
    if magic != _MAGIC or version != _FORMAT or flags & ~(_COMPRESSED | _ENCRYPTED):
        raise _damaged("it does not begin like a record of this format")
    if math.isnan(expires_at):
        raise _damaged("its deadline is not a number")
    return head


def _encode_key(cache_key: str) -> bytes:
    return cache_key.encode("utf-8", "surrogatepass")


def _decode_key(key: bytes) -> str:
    try:
        return key.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise _damaged("its key is not UTF-8") from None


def _checksum(data: bytes) -> bytes:
    return blake2b(data, digest_size=_CHECKSUM_SIZE).digest()


def _key_id(key: bytes) -> bytes:
    return blake2b(key=key, digest_size=_KEY_ID_SIZE, person=b"statemgr key id").digest()


def _derive(key: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """Return the AES key and the nonce that one record alone uses."""
    size = _KEY_SIZE + _NONCE_SIZE
    derived = blake2b(salt, key=key, digest_size=size, person=b"statemgr record").digest()
    return derived[:_KEY_SIZE], derived[_KEY_SIZE:]


def _load_cipher() -> Callable[[bytes], Any]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise SettingsError(
            "encryption needs the package cryptography: pip install 'statemgr[crypto]'",
            variable="encryption_keys",
            allowed="none, unless the extra `crypto` is installed",
        ) from None
    return AESGCM


def _require(condition: bool, variable: str, allowed: str) -> None:
    if not condition:
        raise SettingsError(f"{variable} must be {allowed}", variable=variable, allowed=allowed)


def _damaged(how: str) -> StateDecodeError:
    return StateDecodeError(f"the record is damaged: {how}")
