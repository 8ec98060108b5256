"""`Settings`: every option by name, from the environment or from code."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from statemgr.errors import SettingsError
from statemgr.options import OPTIONS, VARIABLE_PREFIX, check_option, refused, variable_of

# What tells a container of a service or a linked container called statemgr, or statemgr-redis: no
# setting of anybody's. The names are those of FromServices() and makeLinkVariables() in
# https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/envvars/envvars.go
# and of Link.ToEnv() in https://github.com/moby/moby/blob/master/daemon/links/links.go
_OF_CONTAINERS: Final = re.compile(
    rf"{VARIABLE_PREFIX}(?:[A-Z0-9_]+_)?"
    r"(?:SERVICE_HOST=|SERVICE_PORT(?:_[A-Z0-9_]+)?=\d+$|NAME=/|ENV_[^=]+=|PORT=(?:tcp|udp|sctp)://"
    r"|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|ADDR|PORT|START|END|PORT_START|PORT_END))?=)"
)


def _default(name: str) -> Any:
    return field(default=OPTIONS[name].default, repr=not OPTIONS[name].secret)


@dataclass(frozen=True)
class Settings:
    """Say which backend to use, and how. Durations are seconds, sizes bytes.

    Each field is read from the environment variable of its name in capitals with `STATEMGR_`
    before it: `token_expiration` from `STATEMGR_TOKEN_EXPIRATION`. A backend takes from here
    what concerns it and leaves the rest. `statemgr.options.OPTIONS` describes each. A path becomes
    a str here, and a list of keys a tuple.

    Raises:
        SettingsError: If a value, or a pair of values, cannot be used. It names the variable,
            the value and what is allowed; secrets are left out.
    """

    mode: str = _default("mode")
    redis_url: str | None = _default("redis_url")
    disk_directory: str | os.PathLike[str] = _default("disk_directory")  # noqa: RUF009  # a field
    token_expiration: float = _default("token_expiration")
    lock_expiration: float = _default("lock_expiration")
    lock_warning_threshold: float = _default("lock_warning_threshold")
    oplock: str = _default("oplock")
    oplock_hold_time: float = _default("oplock_hold_time")
    redis_durability: str = _default("redis_durability")
    redis_replicas: int = _default("redis_replicas")
    disk_exclusive: bool = _default("disk_exclusive")
    disk_debounce: float = _default("disk_debounce")
    disk_fsync: bool = _default("disk_fsync")
    memory_rollback: bool = _default("memory_rollback")
    key_prefix: str = _default("key_prefix")
    on_decode_error: str = _default("on_decode_error")
    max_state_size: int = _default("max_state_size")
    compress_above: int | None = _default("compress_above")
    encryption_keys: Sequence[bytes] = _default("encryption_keys")
    log_idents: bool = _default("log_idents")
    log_key: str | None = _default("log_key")

    def __post_init__(self) -> None:
        if isinstance(self.disk_directory, os.PathLike):
            object.__setattr__(self, "disk_directory", os.fspath(self.disk_directory))
        if isinstance(self.encryption_keys, list):
            object.__setattr__(self, "encryption_keys", tuple(self.encryption_keys))
        for name in OPTIONS:
            check_option(name, getattr(self, name), variable=variable_of(name))
        if not self.mode:
            object.__setattr__(self, "mode", "redis" if self.redis_url else "memory")
        self._check_below("lock_warning_threshold", "lock_expiration")
        self._check_below("oplock_hold_time", "lock_expiration")
        if self.disk_debounce and not self.disk_exclusive:
            raise refused(
                variable_of("disk_debounce"),
                repr(self.disk_debounce),
                f"0 unless {variable_of('disk_exclusive')} is on: with other processes on the "
                "directory a change is written before it is acknowledged",
            )

    def _check_below(self, name: str, limit: str) -> None:
        if getattr(self, name) < getattr(self, limit):
            return
        blamed, other, side = name, limit, "below"
        if getattr(self, name) == OPTIONS[name].default:  # nobody has set it
            blamed, other, side = limit, name, "above"
        value = getattr(self, other)
        note = " (its default)" if value == OPTIONS[other].default else ""
        raise refused(
            variable_of(blamed),
            repr(getattr(self, blamed)),
            f"a number of seconds {side} {variable_of(other)}={value!r}{note}",
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings from `environ`, the process's own environment by default.

        An empty variable counts as not set. What Kubernetes and Docker tell of a service called
        `statemgr` is left alone.

        Raises:
            SettingsError: If a variable's value cannot be used, or a variable begins with
                `STATEMGR_` and is none of ours: a misspelt one must not go unseen.
        """
        environ = os.environ if environ is None else environ
        variables = {variable_of(name): name for name in OPTIONS}
        values = {}
        for variable in sorted(environ):
            if not variable.startswith(VARIABLE_PREFIX) or not environ[variable]:
                continue
            if variable not in variables:
                if _OF_CONTAINERS.match(f"{variable}={environ[variable]}"):
                    continue
                raise _unknown(variable, list(variables))
            values[variables[variable]] = _parse(variables[variable], environ[variable])
        return cls(**values)


def _parse(name: str, text: str) -> Any:
    option = OPTIONS[name]
    try:
        return option.parse(text)
    except ValueError:
        raise refused(variable_of(name), option.show(text), option.allowed) from None


def _unknown(variable: str, known: list[str]) -> SettingsError:
    import difflib  # for this message only, and slow to import

    likely = difflib.get_close_matches(variable, known, n=1, cutoff=0.85)
    hint = f"did you mean {likely[0]}?" if likely else f"the settings are {', '.join(known)}"
    return SettingsError(
        f"{variable} is not a setting: {hint}", variable=variable, allowed=", ".join(known)
    )
