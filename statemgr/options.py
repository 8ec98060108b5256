"""What each option of this package is called, accepts and is by default: one table.

`Settings` is made from it, and the managers check their parameters against it. It stands apart
from `Settings` because a program that makes its manager by hand needs only the checks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from statemgr.errors import SettingsError
from statemgr.redaction import redact_url


class Option(NamedTuple):
    """Say what one option is by default, how it is read, and what is allowed.

    Attributes:
        default: Its value where none is given; always allowed.
        help: What the setting does, in a sentence.
        allowed: What is accepted, as an error message says it.
        parse: Turns an environment variable's text into a value; raises `ValueError`.
        accepts: Whether a value, not None, may be used.
        show: What an error message may show of a value.
        secret: Whether a repr leaves it out.
    """

    default: Any
    help: str
    allowed: str
    parse: Callable[[str], Any]
    accepts: Callable[[Any], bool]
    show: Callable[[Any], str] = repr
    secret: bool = False


_SWITCH = {"1": True, "true": True, "yes": True, "on": True} | {
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def _parse_switch(text: str) -> bool:
    try:
        return _SWITCH[text.strip().lower()]
    except KeyError:
        raise ValueError(text) from None


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LONGEST


def _is_seconds_or_zero(value: Any) -> bool:
    return (value == 0 and not isinstance(value, bool)) or _is_seconds(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_text(value: Any) -> bool:
    # A variable that is not UTF-8 comes with lone surrogates.
    return isinstance(value, str) and bool(value) and value.isprintable()


def _is_key_prefix(value: Any) -> bool:
    # Braces say which part of a key decides on its place in a Cluster: the ident is to.
    return _is_text(value) and not set("{}") & set(value)


def _is_keys(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(k, bytes) and len(k) == 32 for k in value)


def _hidden(_: Any) -> str:
    return "(hidden)"


def _one_of(value: Any, choices: tuple[str, ...]) -> bool:
    return isinstance(value, str) and value in choices


_LONGEST = 1e10  # seconds: 300 years, and a clock's time plus this is still exact

_seconds = partial(
    Option, allowed="a number of seconds above 0, at most 1e10", parse=float, accepts=_is_seconds
)
_switch = partial(
    Option,
    allowed="1, true, yes or on; 0, false, no or off",
    parse=_parse_switch,
    accepts=lambda value: isinstance(value, bool),
)
_text = partial(
    Option, allowed="a text, not empty, of printable characters", parse=str, accepts=_is_text
)
_size = partial(Option, allowed="a whole number of bytes above 0", parse=int, accepts=_is_size)


def _choice(default: str, help: str, *others: str) -> Option:  # noqa: A002  # as the field
    choices = (default, *others)
    return Option(
        default=default,
        help=help,
        allowed=" or ".join(choices),
        parse=str,
        accepts=partial(_one_of, choices=choices),
    )


OPTIONS: dict[str, Option] = {
    "mode": _text(
        "",
        help="The backend: `memory`, `disk`, `redis`, or one that another package offers; "
        "`redis` if there is a `redis_url`, else `memory`, where none is given.",
    ),
    "redis_url": _text(
        None,
        help="The Redis server, sentinels or Cluster; for the mode `redis`.",
        show=lambda url: repr(redact_url(str(url))),
        secret=True,
    ),
    "disk_directory": _text(
        ".statemgr",
        help="Where the records are; made if missing, this user's own, on a local file system.",
    ),
    "token_expiration": _seconds(3600.0, help="After how long an untouched state is dropped."),
    "lock_expiration": _seconds(
        10.0,
        help="How soon the lock of a dead process goes to the next; a body may take longer, its "
        "lock is renewed.",
    ),
    "lock_warning_threshold": _seconds(
        1.0, help="A body that holds its lock for longer is logged."
    ),
    "oplock": _choice(
        "off",
        "Keep a lock for the next change of this process: `through` writes each change, `behind` "
        "writes later.",
        "through",
        "behind",
    ),
    "oplock_hold_time": _seconds(
        1.0, help="How long an oplock is kept at most, and `behind` puts a write off."
    ),
    "redis_durability": _choice(
        "off",
        "What else a change waits for: `replicated` for replicas that have it, `aof` for the "
        "server's disk.",
        "replicated",
        "aof",
    ),
    "redis_replicas": Option(
        default=1,
        help="How many replicas acknowledge a change, with `redis_durability` `replicated`.",
        allowed="a whole number above 0",
        parse=int,
        accepts=_is_size,
    ),
    "disk_exclusive": _switch(
        False, help="Claim the disk directory for this process, and keep states in memory."
    ),
    "disk_debounce": Option(
        default=0.0,
        help="How long writes may wait in memory to be written together; needs `disk_exclusive`.",
        allowed="a number of seconds from 0 to 1e10",
        parse=float,
        accepts=_is_seconds_or_zero,
    ),
    "disk_fsync": _switch(False, help="Acknowledge a change once it is on stable storage."),
    "memory_rollback": _switch(
        True, help="Keep a serialized copy, which a failed body goes back to."
    ),
    "key_prefix": Option(
        default="statemgr",
        help="What every key and channel in Redis begins with.",
        allowed="a text, not empty, of printable characters but braces",
        parse=str,
        accepts=_is_key_prefix,
    ),
    "on_decode_error": _choice(
        "raise",
        "What follows on a record that cannot be decoded, which is kept: an error, or, with "
        "`reset`, a fresh state.",
        "reset",
    ),
    "max_state_size": _size(16 * 2**20, help="A serialized state larger than this is refused."),
    "compress_above": _size(None, help="Records with more bytes than this are compressed."),
    "encryption_keys": Option(
        default=(),
        help="Keys that records are encrypted with: the first encrypts, all decrypt.",
        allowed="keys of 64 hexadecimal digits each, separated by commas",
        parse=lambda text: tuple(bytes.fromhex(key) for key in text.split(",")),
        accepts=_is_keys,
        show=_hidden,
        secret=True,
    ),
    "log_idents": _switch(
        False, help="Name idents in logs and errors as they are, not by a digest."
    ),
    "log_key": _text(
        None,
        help="The key of these digests: give workers the same to compare their logs.",
        show=_hidden,
        secret=True,
    ),
}


VARIABLE_PREFIX = "STATEMGR_"


def variable_of(name: str) -> str:
    """Return the environment variable of an option."""
    return VARIABLE_PREFIX + name.upper()


def check_option(name: str, value: object, *, variable: str | None = None) -> None:
    """Refuse a value that an option cannot have.

    Args:
        name: The option.
        value: Its value.
        variable: What the error calls it: `name`, unless given.

    Raises:
        SettingsError: If the value is neither allowed nor the default.
    """
    option = OPTIONS[name]
    is_default = type(value) is type(option.default) and value == option.default
    if not is_default and not option.accepts(value):
        raise refused(variable or name, option.show(value), option.allowed)


def refused(variable: str, shown: str | None, allowed: str) -> SettingsError:
    """Return the error for a value that cannot be used; None for one that is missing."""
    found = f"{variable} is not set" if shown is None else f"{variable}={shown}"
    return SettingsError(f"{found}: expected {allowed}", variable=variable, allowed=allowed)
