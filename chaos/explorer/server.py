"""`ModelServer`: what of a Redis server the protocol touches, in this process and in virtual time.

The scripts are the real ones. They run in the Lua that Redis has (5.1), by lupa; what they call is
in server.lua.
"""

import contextlib
import importlib
import re
from importlib import resources
from typing import Any, Final, NamedTuple

from statemgr.backends.redis import scripts
from statemgr.backends.redis.scripts import Script

SCRIPTS: Final = tuple(script for script in vars(scripts).values() if isinstance(script, Script))

# A script's name, the text that it has once or what matches that, and what stands there instead.
Edit = tuple[str, str | re.Pattern[str], str]


class Ran(NamedTuple):
    """What a script has done.

    Attributes:
        script: Its name.
        args: With which it was called.
        reply: As it goes over the wire.
        before: The lock field before it; None without one.
        after: The lock field after it.
        written: Records, with their fields, in the order of being written; None for a record that
            was dropped. An empty field: the whole key has expired.
        published: Channels and messages.
    """

    script: str
    args: tuple[Any, ...]
    reply: bytes
    before: bytes | None
    after: bytes | None
    written: list[tuple[bytes, bytes | None]]
    published: list[tuple[bytes, bytes]]


class ModelServer:
    """Run scripts on one store.

    Args:
        edits: Changes to the scripts' text, for mutants. A client asks for a script by the digest
            of the real one, and gets the changed one.
    """

    def __init__(self, edits: tuple[Edit, ...] = ()) -> None:
        runtime = _lua().LuaRuntime(encoding=None, register_eval=False, register_builtins=False)
        source = resources.files(__package__).joinpath("server.lua").read_bytes()
        model = runtime.execute(source)
        self._run: Any = model[b"run"]
        self._reset: Any = model[b"reset"]
        self._dump: Any = model[b"dump"]
        self._compile: Any = model[b"compile"]
        self._by_text: dict[bytes, tuple[str, int]] = {}
        self._by_digest: dict[bytes, tuple[str, int]] = {}
        for script in SCRIPTS:
            known = self.load(script.name, edited(script, edits))
            self._by_text[script.source] = self._by_digest[script.sha] = known

    def load(self, name: str, source: bytes) -> tuple[str, int]:
        """Make a script known, and return what `run` takes."""
        return name, self._compile(source)

    def reset(self) -> None:
        """Forget all keys."""
        self._reset()

    def find(self, name: bytes, which: bytes) -> tuple[str, int] | None:
        """Return the script that EVAL or EVALSHA asks for; None if it is not known."""
        return (self._by_digest if name == b"EVALSHA" else self._by_text).get(which)

    def run(self, script: tuple[str, int], now_us: int, key: bytes, *args: bytes) -> Ran:
        """Run a script, `now_us` microseconds after the epoch."""
        seconds, microseconds = divmod(now_us, 1_000_000)
        reply, before, after, written, published = self._run(
            script[1], seconds, microseconds, key, *args
        )
        return Ran(
            script[0],
            args,
            reply,
            before or None,
            after or None,
            [] if written is None else [(k, v or None) for k, v in _pairs(written)],
            [] if published is None else _pairs(published),
        )

    def dump(self, key: bytes) -> tuple[int, dict[bytes, bytes]] | None:
        """Return a key's TTL in ms, and its fields; None if there is none."""
        found = self._dump(key)
        if found is False:
            return None
        if isinstance(found, int):
            found = (found,)
        return found[0], dict(zip(found[1::2], found[2::2], strict=True))


def _lua() -> Any:
    """Return a Lua of the version that Redis has: LuaJIT, twice as fast, where there is one."""
    # Brought by fakeredis[lua], which the tests have and a program that only explores need not.
    for name in ("luajit21", "lua51"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(f"lupa.{name}")
    raise ImportError("the explorer needs lupa: pip install 'statemgr[servers]'")


def edited(script: Script, edits: tuple[Edit, ...]) -> bytes:
    """Return the text of a script after the edits that are for it; '*' is for each that has it."""
    source = script.source.decode()
    for name, old, new in edits:
        if name in (script.name, "*"):
            pattern = re.escape(old) if isinstance(old, str) else old
            source, count = re.subn(pattern, lambda _, new=new: new, source)
            assert count == 1 or (name == "*" and count == 0), (script.name, old)
    return source.encode()


def _pairs(table: Any) -> list[tuple[Any, Any]]:
    values = [table[i] for i in range(1, len(table) + 1)]
    return list(zip(values[::2], values[1::2], strict=True))
