"""Whatever happens to a file, what comes out is the state that was saved, or an error.

Never another state, never a fresh one; and the file is kept as it is.
"""

import asyncio
import importlib.util
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from statemgr import StateManagerDisk, StateToken
from statemgr.backends.disk.files import StateDirectory, ident_name, state_name
from statemgr.backends.disk.records import places_of
from statemgr.backends.disk.trips import Job
from statemgr.errors import StateDecodeError
from statemgr.manager import StateManager
from statemgr.testing import ManualClock
from statemgr.token import AnyToken

from .programs import PATIENCE

BLOCK = 4096
KEY = bytes(range(32))


@dataclass
class Note:
    text: bytes = b"fresh"


@dataclass
class Label:
    text: bytes = b"fresh"


NOTE, LABEL = StateToken("one", Note), StateToken("one", Label)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Each error is logged, thousands of times here: another test looks at that."""
    logging.getLogger("statemgr").setLevel(logging.CRITICAL + 1)
    yield
    logging.getLogger("statemgr").setLevel(logging.NOTSET)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311


# By name, the manager's options, what is saved, and whether it fills more than one block.
KINDS: dict[str, tuple[dict[str, Any], bytes, bool]] = {
    "small": ({}, noise(100), False),
    "large": ({}, noise(20_000), True),
    "compressed": ({"compress_above": 100}, noise(300) * 40, False),
    "compressed large": ({"compress_above": 100}, noise(9_000) * 2, True),
    "encrypted": ({"encryption_keys": [KEY]}, noise(100), False),
    "encrypted large": ({"encryption_keys": [KEY]}, noise(20_000), True),
}
HAS_CRYPTOGRAPHY = importlib.util.find_spec("cryptography") is not None
NEEDS_CRYPTOGRAPHY = pytest.mark.skipif(not HAS_CRYPTOGRAPHY, reason="needs cryptography")
each_kind = pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=NEEDS_CRYPTOGRAPHY if "encrypted" in kind else ()) for kind in KINDS],
)
shared_and_exclusive = pytest.mark.parametrize("mode", [{}, {"exclusive": True}], ids=str)


def path_of(directory: Path, token: AnyToken) -> Path:
    return directory / "states" / state_name(token.cache_key)


def put(file: Path, content: bytes) -> None:
    """Replace what is in a file, in place: to write to one that was emptied takes ext4 a while."""
    with file.open("r+b", buffering=0) as opened:
        opened.write(content)
        opened.truncate()


async def saved(directory: Path, kind: str, tokens: Sequence[AnyToken] = (NOTE,)) -> None:
    options, text, is_large = KINDS[kind]
    async with StateManagerDisk(directory, **options) as manager:
        for token in tokens:
            await manager.set_state(token, Note(text))
            assert (path_of(directory, token).stat().st_size > BLOCK) is is_large


async def outcome(reading: Any) -> Any:
    """Return what is read, or the error."""
    try:
        return await reading
    except StateDecodeError as error:
        return error


async def changed(manager: StateManager, *tokens: AnyToken) -> Any:
    """Return what a body finds. It changes nothing."""
    modification = manager.modify_states(*tokens)
    async with modification as states:
        modification.discard()
    return states


async def read_all(manager: StateManager, *tokens: AnyToken) -> Any:
    return await manager.get_states(*tokens)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # a thread makes it true
            await asyncio.sleep(0)


async def listed(manager: StateManager) -> None:
    async for _ in manager.tokens():
        pass


def lengths(whole: bytes) -> list[int]:
    """Return the lengths to truncate a file to: all, or those near its boundaries and a sample."""
    if len(whole) == BLOCK:
        return list(range(BLOCK))
    near = {
        length
        for boundary in (0, 26, 80, BLOCK, 2 * BLOCK, len(whole) // BLOCK * BLOCK, len(whole))
        for length in range(boundary - 24, boundary + 24)
    }
    drawn = random.Random(0).sample(range(len(whole)), 200)  # noqa: S311
    return sorted(length for length in near.union(drawn) if 0 <= length < len(whole))


def bits(whole: bytes, kind: str) -> list[int]:
    """Return the bits to flip: all of a small one, of the others both ends and a sample."""
    count = 8 * len(whole)
    if kind == "small":
        return list(range(count))
    drawn = random.Random(0).sample(range(count), 500)  # noqa: S311
    return sorted({*range(8 * 80), *range(count - 8 * 16, count), *drawn})


def flipped(whole: bytes, bit: int) -> bytes:
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


async def assert_refused(
    directory: Path,
    kind: str,
    damage: Callable[[bytes, int], bytes],
    places: Callable[[bytes], Iterable[int]],
) -> None:
    """Damage a file in many ways, and read it each time, as a manager's thread does.

    A trip to that thread for each of some ten thousand ways would take most of the time.
    """
    await saved(directory, kind)
    file = path_of(directory, NOTE)
    whole = file.read_bytes()
    async with StateManagerDisk(directory, **KINDS[kind][0]) as manager:
        with file.open("r+b", buffering=0) as opened:
            for place in places(whole):
                content = damage(whole, place)
                opened.seek(0)
                opened.write(content)
                opened.truncate()
                (found,) = run(manager._records.looking(places_of([NOTE]), {}, None))
                assert isinstance(found, StateDecodeError), place
                opened.seek(0)
                assert opened.read() == content, place
            assert os.path.samestat(file.stat(), os.fstat(opened.fileno()))
        assert isinstance(await outcome(manager.get_state(NOTE)), StateDecodeError)
        put(file, whole)
        assert await manager.get_state(NOTE) == Note(KINDS[kind][1])


def run(job: Job[Any]) -> Any:
    """Run what a thread would run."""
    while True:
        try:
            next(job)
        except StopIteration as stop:
            return stop.value


@each_kind
async def test_file_cut_short(tmp_path: Path, kind: str) -> None:
    """A record's file that is shorter than it was is refused, at any length, and kept."""
    await assert_refused(tmp_path, kind, lambda whole, length: whole[:length], lengths)


@each_kind
async def test_flipped_bit(tmp_path: Path, kind: str) -> None:
    """A record's file with one bit wrong is refused, wherever that is, and kept."""
    await assert_refused(tmp_path, kind, flipped, lambda whole: bits(whole, kind))


@each_kind
async def test_something_appended(tmp_path: Path, kind: str) -> None:
    """A record's file that is longer than it was is refused, and kept."""
    await assert_refused(
        tmp_path, kind, lambda whole, size: whole + bytes(size), lambda _: range(1, 301)
    )


@shared_and_exclusive
@each_kind
async def test_damaged_record_whoever_asks(tmp_path: Path, kind: str, mode: dict[str, Any]) -> None:
    """Readers, bodies and lists, in a shared and an exclusive directory: nobody gets a state."""
    await saved(tmp_path, kind)
    file = path_of(tmp_path, NOTE)
    whole = file.read_bytes()
    # Its start, its format, its flags, its deadline, each of its sizes, its key, its body.
    wrong = [flipped(whole, 8 * byte) for byte in (0, 4, 5, 6, 7, 13, 17, 21, 25, 30, 200)]
    async with StateManagerDisk(tmp_path, **KINDS[kind][0], **mode) as manager:
        for content in [*wrong, b"", whole[:26], whole[:-1], bytes(BLOCK)]:
            put(file, content)
            for read in (changed, read_all, changed):
                assert isinstance(await outcome(read(manager, NOTE)), StateDecodeError)
            assert isinstance(await outcome(read_all(manager, LABEL, NOTE)), StateDecodeError)
            assert isinstance(await outcome(changed(manager, LABEL, NOTE)), StateDecodeError)
            assert await manager.has_state(NOTE)
            assert await manager.touch(NOTE)
            await listed(manager)
            assert file.read_bytes() == content
        put(file, whole)
        assert await manager.get_state(NOTE) == Note(KINDS[kind][1])
    assert not (tmp_path / "quarantine").exists()


@shared_and_exclusive
async def test_empty_file_is_no_fresh_state(tmp_path: Path, mode: dict[str, Any]) -> None:
    """A file without content is damage; that there is no file is what makes a state fresh."""
    await saved(tmp_path, "small")
    file = path_of(tmp_path, NOTE)
    put(file, b"")
    async with StateManagerDisk(tmp_path, **mode) as manager:
        for read in (read_all, changed):
            assert isinstance(await outcome(read(manager, NOTE)), StateDecodeError)
        file.unlink()
        assert await manager.get_state(NOTE) == Note()


@shared_and_exclusive
@each_kind
@pytest.mark.parametrize("other", [StateToken("two", Note), LABEL], ids=["ident", "class"])
async def test_record_under_another_name(
    tmp_path: Path, kind: str, other: AnyToken, mode: dict[str, Any]
) -> None:
    """A record that lies where another token's should does not load, and is kept."""
    await saved(tmp_path, kind)
    file = path_of(tmp_path, NOTE).rename(path_of(tmp_path, other))
    content = file.read_bytes()
    async with StateManagerDisk(tmp_path, **KINDS[kind][0], **mode) as manager:
        for read in (read_all, changed):
            assert isinstance(await outcome(read(manager, other)), StateDecodeError)
        assert await manager.get_state(NOTE) == Note()
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("mode", "is_known"),
    [({}, False), ({}, True), ({"exclusive": True}, False)],
    ids=["found by a scan", "used before", "exclusive"],
)
@each_kind
async def test_purge_keeps_what_cannot_be_read(
    tmp_path: Path, kind: str, mode: dict[str, Any], *, is_known: bool
) -> None:
    """A damaged file stays when its deadline has passed, and is no fresh state then either.

    Behind an exclusive manager that has the state in memory it goes: what has expired is known.
    """
    damage: list[Callable[[bytes], bytes]] = [
        lambda whole: b"",
        lambda whole: whole[:-1],
        lambda whole: flipped(whole, 8 * 6 + 7),  # the deadline is long ago
        lambda whole: flipped(whole, 8 * 60),
    ]
    tokens = [StateToken(f"damaged-{number}", Note) for number in range(len(damage))]
    files = [path_of(tmp_path, token) for token in tokens]
    sound = StateToken("sound", Note)
    clock = ManualClock()
    options = {"clock": clock, "token_expiration": 60.0, **KINDS[kind][0]}
    async with StateManagerDisk(tmp_path, **options, **mode) as manager:
        for token in (*tokens, sound):
            await manager.set_state(token, Note(KINDS[kind][1]))
    damaged = []
    async with StateManagerDisk(tmp_path, **options, **mode) as manager:
        if is_known:
            for token in (*tokens, sound):
                await manager.get_state(token)
        for file, harm in zip(files, damage, strict=True):
            status, content = file.stat(), harm(file.read_bytes())
            put(file, content)
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
            damaged.append(content)
        await until(lambda: manager.statistics().tokens_held > len(tokens))
        clock.advance(200)
        await until(lambda: manager.statistics().tokens_held == 0)
        await until(lambda: not path_of(tmp_path, sound).exists())
    async with StateManagerDisk(tmp_path, **options, **mode) as manager:
        assert [file.read_bytes() for file in files] == damaged
        for token in tokens:
            for read in (read_all, changed):
                assert isinstance(await outcome(read(manager, token)), StateDecodeError)
        await listed(manager)
        assert [file.read_bytes() for file in files] == damaged


# An interrupted commit of two classes


class Interrupted:
    """A directory in which a note and a label are being committed together.

    Attributes:
        commit: The file that says so.
        content: What was in it.
        states: The states that are in it.
    """

    states = (Note(b"new note"), Label(b"new label"))

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.commit = directory / "states" / f"{ident_name(NOTE.lock_key)}.commit"
        self._files = [path_of(directory, token) for token in (NOTE, LABEL)]
        self._old: list[bytes] = []
        self._new: list[bytes] = []

    async def make(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with StateManagerDisk(self.directory) as manager:
            async with manager.modify_states(NOTE, LABEL) as (note, label):
                note.text, label.text = b"old note", b"old label"
            self._old = [file.read_bytes() for file in self._files]

            def fail(*_: Any) -> Any:
                raise OSError("interrupted")

            with monkeypatch.context() as patch:
                patch.setattr(StateDirectory, "_finish", fail)
                async with manager.modify_states(NOTE, LABEL) as (note, label):
                    note.text, label.text = (state.text for state in self.states)
            self.content = self.commit.read_bytes()
            assert await changed(manager, NOTE, LABEL) == self.states
            self._new = [file.read_bytes() for file in self._files]

    def lay_out(self, how: str, content: bytes) -> None:
        """Have the files as an interruption leaves them: `first`, `old`, `half` or `new`."""
        shutil.rmtree(self.directory / "quarantine", ignore_errors=True)
        for file in self.commit.parent.iterdir():
            file.unlink()
        contents = {
            "first": [],
            "old": self._old,
            "half": [self._new[0], self._old[1]],
            "new": self._new,
        }[how]
        for file, one in zip(self._files, contents, strict=False):
            file.write_bytes(one)
            os.utime(file, (2e9, 2e9))
        self.commit.write_bytes(content)


@pytest.fixture
async def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Interrupted:
    interrupted = Interrupted(tmp_path)
    await interrupted.make(monkeypatch)
    return interrupted


each_interruption = pytest.mark.parametrize("how", ["first", "old", "half", "new"])


@shared_and_exclusive
@each_interruption
@pytest.mark.parametrize("read", [read_all, changed])
async def test_interrupted_commit_is_committed(
    interrupted: Interrupted, how: str, mode: dict[str, Any], read: Callable[..., Any]
) -> None:
    """However far it had got, and whoever asks: both states are the new ones."""
    interrupted.lay_out(how, interrupted.content)
    async with StateManagerDisk(interrupted.directory, **mode) as manager:
        assert tuple(await read(manager, NOTE, LABEL)) == interrupted.states
        for token, state in zip((NOTE, LABEL), interrupted.states, strict=True):
            assert await manager.get_state(token) == state
            assert await changed(manager, token) == (state,)


@each_interruption
async def test_damaged_commit(interrupted: Interrupted, how: str) -> None:
    """An interrupted commit that was cut short, or has a bit wrong, is refused, and kept."""
    whole = interrupted.content
    every = [whole[:length] for length in range(len(whole))]
    every += [flipped(whole, bit) for bit in range(8 * len(whole))]
    every += [whole + b"\0", bytes(len(whole))]
    interrupted.lay_out(how, every[0])
    places = places_of([NOTE, LABEL])
    async with StateManagerDisk(interrupted.directory) as manager:
        records = manager._records
        for content in every[:: 1 if how == "half" else 41]:
            put(interrupted.commit, content)
            for job in (records.looking(places, {}, None), records.loading(places, 0.0)):
                assert all(isinstance(found, StateDecodeError) for found in run(job))
            assert interrupted.commit.read_bytes() == content


@shared_and_exclusive
@each_interruption
@pytest.mark.parametrize("read", [read_all, changed])
async def test_damaged_commit_is_found_by_a_new_manager(
    interrupted: Interrupted, how: str, mode: dict[str, Any], read: Callable[..., Any]
) -> None:
    """A new manager refuses, too, what may be older than what was committed. All of it is kept."""
    content = flipped(interrupted.content, 8 * 100)
    interrupted.lay_out(how, content)
    files = {file: file.read_bytes() for file in interrupted.commit.parent.iterdir()}
    async with StateManagerDisk(interrupted.directory, **mode) as manager:
        assert isinstance(await outcome(read(manager, NOTE, LABEL)), StateDecodeError)
        assert isinstance(await outcome(read(manager, LABEL)), StateDecodeError)
    assert {file: file.read_bytes() for file in interrupted.commit.parent.iterdir()} == files


@shared_and_exclusive
@each_interruption
@pytest.mark.parametrize("call", ["set_state", "delete_state"])
async def test_damaged_commit_and_a_change_of_one_class(
    interrupted: Interrupted, how: str, mode: dict[str, Any], call: str
) -> None:
    """To set or delete one of the states, or to be refused that, does not revive the other one."""
    interrupted.lay_out(how, flipped(interrupted.content, 8 * 100))
    async with StateManagerDisk(interrupted.directory, **mode) as manager:
        arguments = (NOTE, Note(b"newest")) if call == "set_state" else (NOTE,)
        await outcome(getattr(manager, call)(*arguments))
        for read in (read_all, changed):
            assert isinstance(await outcome(read(manager, LABEL)), StateDecodeError)


@shared_and_exclusive
@each_interruption
async def test_damaged_commit_reset(
    interrupted: Interrupted, how: str, mode: dict[str, Any]
) -> None:
    """With `on_decode_error="reset"` a body starts from fresh states; what was found is kept."""
    content = flipped(interrupted.content, 8 * 100)
    interrupted.lay_out(how, content)
    mode = {"on_decode_error": "reset", **mode}
    async with StateManagerDisk(interrupted.directory, **mode) as manager:
        async with manager.modify_states(NOTE, LABEL) as states:
            assert states == (Note(), Label())
            states[0].text = states[1].text = b"next"
        assert await manager.get_states(NOTE, LABEL) == (Note(b"next"), Label(b"next"))
    kept = [file.read_bytes() for file in (interrupted.directory / "quarantine").iterdir()]
    assert content in kept
