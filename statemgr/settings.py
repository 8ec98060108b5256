"""`Settings`: every option by name, from the environment or from code, checked in one place."""

import difflib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from typing import Any, Self

from statemgr.errors import SettingsError
from statemgr.redaction import redact_url

PREFIX = "STATEMGR_"


@dataclass(frozen=True, slots=True)
class Option:
    """Say how one setting is read, and what is allowed.

    Attributes:
        help: What the setting does, in a sentence.
        allowed: What is accepted, as an error message says it.
        parse: Turns an environment variable's text into a value; raises `ValueError`.
        accepts: Whether a value, not None, may be used.
        show: What an error message or a repr may show of a value.
    """

    help: str
    allowed: str
    parse: Callable[[str], Any]
    accepts: Callable[[Any], bool]
    show: Callable[[Any], str] = repr


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
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value > 0
    )


def _is_seconds_or_zero(value: Any) -> bool:
    return (value == 0 and not isinstance(value, bool)) or _is_seconds(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_keys(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(k, bytes) and len(k) == 32 for k in value)


def _hidden(_: Any) -> str:
    return "(hidden)"


def _one_of(value: Any, choices: tuple[str, ...]) -> bool:
    return isinstance(value, str) and value in choices


_seconds = partial(Option, allowed="a number of seconds above 0", parse=float, accepts=_is_seconds)
_switch = partial(
    Option,
    allowed="1, true, yes or on; 0, false, no or off",
    parse=_parse_switch,
    accepts=lambda value: isinstance(value, bool),
)
_text = partial(Option, allowed="a text that is not empty", parse=str, accepts=_is_text)
_size = partial(Option, allowed="a number of bytes above 0", parse=int, accepts=_is_size)


def _choice(help: str, *choices: str) -> Option:  # noqa: A002  # reads as the field it fills
    return Option(
        help=help,
        allowed=" or ".join(choices),
        parse=str,
        accepts=partial(_one_of, choices=choices),
    )


def _option(default: Any, option: Option, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"option": option}, repr=not secret)


@dataclass(frozen=True, slots=True)
class Settings:
    """Say which backend to use, and how. Durations are seconds, sizes bytes.

    Each field is read from the environment variable of its name in capitals with `STATEMGR_`
    before it: `token_expiration` from `STATEMGR_TOKEN_EXPIRATION`. A backend takes from here
    what concerns it and leaves the rest.

    Raises:
        SettingsError: If a value, or a pair of values, cannot be used. It names the variable,
            the value and what is allowed; secrets are left out.
    """

    mode: str = _option("", _text(help="The backend: memory, or the name of an installed one."))
    redis_url: str | None = _option(
        None,
        _text(help="The Redis server.", show=lambda url: repr(redact_url(str(url)))),
        secret=True,
    )
    disk_directory: str = _option(".statemgr", _text(help="Where the disk backend keeps records."))
    token_expiration: float = _option(
        3600.0, _seconds(help="After how long an untouched state is dropped.")
    )
    lock_expiration: float = _option(
        10.0, _seconds(help="How soon the lock of a dead Redis client is given to the next.")
    )
    lock_warning_threshold: float = _option(
        1.0, _seconds(help="A body that holds its lock for longer is logged.")
    )
    oplock: str = _option(
        "off",
        _choice(
            "Whether a Redis lock is kept for the next change here.", "off", "through", "behind"
        ),
    )
    oplock_hold_time: float = _option(1.0, _seconds(help="How long an oplock is kept at most."))
    disk_exclusive: bool = _option(
        False, _switch(help="Claim the disk directory for this process, and keep states in memory.")
    )
    disk_debounce: float = _option(
        0.0,
        Option(
            help="How long writes may wait to be written together; needs disk_exclusive.",
            allowed="a number of seconds, 0 or more",
            parse=float,
            accepts=_is_seconds_or_zero,
        ),
    )
    disk_fsync: bool = _option(
        False, _switch(help="Acknowledge a change once it is on stable storage.")
    )
    memory_rollback: bool = _option(
        True, _switch(help="Keep a serialized copy, which a failed body goes back to.")
    )
    key_prefix: str = _option("statemgr", _text(help="What every Redis key begins with."))
    on_decode_error: str = _option(
        "raise",
        _choice("What to do about a record that cannot be decoded: it is kept.", "raise", "reset"),
    )
    max_state_size: int = _option(
        16 * 2**20, _size(help="A serialized state larger than this is refused.")
    )
    compress_above: int | None = _option(
        None, _size(help="Records with more bytes than this are compressed.")
    )
    encryption_keys: tuple[bytes, ...] = _option(
        (),
        Option(
            help="Keys that records are encrypted with: the first encrypts, all decrypt.",
            allowed="keys of 64 hexadecimal digits each, separated by commas",
            parse=lambda text: tuple(bytes.fromhex(key) for key in text.split(",")),
            accepts=_is_keys,
            show=_hidden,
        ),
        secret=True,
    )
    log_idents: bool = _option(
        False, _switch(help="Name idents in logs and errors as they are, not by a digest.")
    )
    log_key: str | None = _option(
        None,
        _text(
            help="The key of these digests: give workers the same to compare their logs.",
            show=_hidden,
        ),
        secret=True,
    )

    def __post_init__(self) -> None:
        for name in OPTIONS:
            value = getattr(self, name)
            if value != DEFAULTS[name]:
                check_option(name, value, variable=variable_of(name))
        if not self.mode:
            object.__setattr__(self, "mode", "redis" if self.redis_url else "memory")
        self._check_below("lock_warning_threshold", "lock_expiration")
        self._check_below("oplock_hold_time", "lock_expiration")
        if self.disk_debounce and not self.disk_exclusive:
            raise _refused(
                variable_of("disk_debounce"),
                repr(self.disk_debounce),
                f"0 unless {variable_of('disk_exclusive')} is on: with other processes on the "
                "directory a change is written before it is acknowledged",
            )

    def _check_below(self, name: str, limit: str) -> None:
        if getattr(self, name) >= getattr(self, limit):
            raise _refused(
                variable_of(name),
                repr(getattr(self, name)),
                f"a number of seconds below {variable_of(limit)}={getattr(self, limit)!r}",
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings from `environ`, the process's own environment by default.

        An empty variable counts as not set.

        Raises:
            SettingsError: If a variable's value cannot be used, or a variable begins with
                `STATEMGR_` and is none of ours: a misspelt one must not go unseen.
        """
        environ = os.environ if environ is None else environ
        variables = {variable_of(name): name for name in OPTIONS}
        values = {}
        for variable in sorted(environ):
            if not variable.startswith(PREFIX) or not environ[variable]:
                continue
            if variable not in variables:
                raise _unknown(variable, list(variables))
            values[variables[variable]] = _parse(variables[variable], environ[variable])
        return cls(**values)


OPTIONS: dict[str, Option] = {f.name: f.metadata["option"] for f in fields(Settings)}
DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}


def variable_of(name: str) -> str:
    """Return the environment variable of the setting `name`."""
    return PREFIX + name.upper()


def check_option(name: str, value: object, *, variable: str | None = None) -> None:
    """Refuse a value that the setting `name` cannot have.

    Args:
        name: The setting.
        value: Its value.
        variable: What the error calls it: `name`, unless given.

    Raises:
        SettingsError: If the value is not allowed.
    """
    option = OPTIONS[name]
    if not option.accepts(value):
        raise _refused(variable or name, option.show(value), option.allowed)


def _parse(name: str, text: str) -> Any:
    option = OPTIONS[name]
    try:
        return option.parse(text)
    except ValueError:
        raise _refused(variable_of(name), option.show(text), option.allowed) from None


def _refused(variable: str, shown: str, allowed: str) -> SettingsError:
    return SettingsError(
        f"{variable}={shown}: expected {allowed}", variable=variable, allowed=allowed
    )


def _unknown(variable: str, known: list[str]) -> SettingsError:
    likely = difflib.get_close_matches(variable, known, n=1)
    hint = f"did you mean {likely[0]}?" if likely else f"the settings are {', '.join(known)}"
    return SettingsError(
        f"{variable} is not a setting: {hint}", variable=variable, allowed=", ".join(known)
    )
