"""Values without parts, as the payload of a MessagePack extension.

MessagePack itself carries None, bool, float, bytes, 64-bit int and valid UTF-8. The payloads of
the others are big-endian and of fixed layout, below in pairs of a writer and a reader. A reader
may raise any exception at a payload that its writer cannot have written.
"""

import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Context, Decimal, InvalidOperation
from types import NoneType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from .refusal import Refusal

_DATE = struct.Struct(">HBB")
_TIME = struct.Struct(">BBBIB")  # hour, minute, second, microsecond, fold
_SPAN = struct.Struct(">iII")  # days, seconds, microseconds
_EXACT = Context(traps=[InvalidOperation])  # whatever the program's own context ignores


def _write_zone(zone: Any) -> bytes:
    if zone is None:
        return b""
    if zone is UTC:
        return b"U"
    if type(zone) is timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]
        label = b"".join(b"N" + part.encode("utf-8", "surrogatepass") for part in name)
        return b"O" + _write_timedelta(offset) + label
    if type(zone) is ZoneInfo and zone.key is not None:
        try:
            zone.__reduce__()  # refused for a zone read from a file, which its key does not tell
            ZoneInfo(zone.key)
        except Exception:  # PicklingError, or whatever the time zone data gives
            raise Refusal("has a time zone that cannot be found by its key") from None
        return b"Z" + zone.key.encode()
    raise Refusal(f"has a time zone of the type {type(zone).__name__}, which cannot be saved")


def _read_zone(data: bytes) -> Any:
    if not data:
        return None
    kind, rest = data[:1], data[1:]
    if kind == b"U" and not rest:
        return UTC
    if kind == b"O":
        offset, label = _read_timedelta(rest[: _SPAN.size]), rest[_SPAN.size :]
        if not label:
            return timezone(offset)
        if label[:1] == b"N":
            return timezone(offset, label[1:].decode("utf-8", "surrogatepass"))
    if kind == b"Z":  # NOTE: ZoneInfo refuses a key that leads out of its directories
        return ZoneInfo(rest.decode("ascii"))
    raise ValueError


def _write_int(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _read_int(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _write_str(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def _read_str(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _write_date(value: date) -> bytes:
    return _DATE.pack(value.year, value.month, value.day)


def _read_date(data: bytes) -> date:
    return date(*_DATE.unpack(data))


def _write_time(value: time | datetime) -> bytes:
    head = _TIME.pack(value.hour, value.minute, value.second, value.microsecond, value.fold)
    return head + _write_zone(value.tzinfo)


def _read_time(data: bytes) -> time:
    hour, minute, second, microsecond, fold = _TIME.unpack_from(data)
    zone = _read_zone(data[_TIME.size :])
    return time(hour, minute, second, microsecond, zone, fold=fold)


def _write_datetime(value: datetime) -> bytes:
    return _write_date(value) + _write_time(value)


def _read_datetime(data: bytes) -> datetime:
    return datetime.combine(_read_date(data[: _DATE.size]), _read_time(data[_DATE.size :]))


def _write_timedelta(value: timedelta) -> bytes:
    return _SPAN.pack(value.days, value.seconds, value.microseconds)


def _read_timedelta(data: bytes) -> timedelta:
    return timedelta(*_SPAN.unpack(data))


def _write_uuid(value: UUID) -> bytes:
    return value.bytes


def _read_uuid(data: bytes) -> UUID:
    return UUID(bytes=data)


def _write_decimal(value: Decimal) -> bytes:
    return str(value).encode("ascii")


def _read_decimal(data: bytes) -> Decimal:
    return Decimal(data.decode("ascii"), _EXACT)


# NOTE: the codes are stored; they are never given another meaning.
EXTENSIONS: dict[int, tuple[type, Callable[[Any], bytes], Callable[[bytes], object]]] = {
    16: (int, _write_int, _read_int),
    17: (str, _write_str, _read_str),
    18: (datetime, _write_datetime, _read_datetime),
    19: (date, _write_date, _read_date),
    20: (time, _write_time, _read_time),
    21: (timedelta, _write_timedelta, _read_timedelta),
    22: (UUID, _write_uuid, _read_uuid),
    23: (Decimal, _write_decimal, _read_decimal),
}

LEAVES = frozenset({NoneType, bool, float, bytes, *(cls for cls, _, _ in EXTENSIONS.values())})
"""The classes of all values without parts."""
