"""What lies in a state directory, who may be there, and what a reader sees of a change."""

import asyncio
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from statemgr import StateManagerDisk, StateToken
from statemgr.backends.disk import files
from statemgr.backends.disk.files import NewRecord, StateDirectory, ident_name, state_name
from statemgr.errors import BackendUnavailableError, SettingsError, StateDecodeError
from statemgr.record import RecordCodec
from statemgr.testing import ManualClock
from tests.disk.faults import stored, unsynced

LIFE = 60.0
MODES: dict[str, dict[str, Any]] = {
    "shared": {},
    "fsync": {"fsync": True},
    "exclusive": {"exclusive": True},
    "exclusive fsync": {"exclusive": True, "fsync": True},
}


@dataclass
class Cart:
    number: int = 0
    text: str = ""


@dataclass
class Profile:
    number: int = 0


CART, PROFILE = StateToken("somebody", Cart), StateToken("somebody", Profile)
NOBODY = StateToken("nobody", Cart)
NAME = state_name(CART.cache_key)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def umask() -> Iterator[Callable[[int], object]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def make(directory: Path, clock: ManualClock, **options: Any) -> StateManagerDisk:
    return StateManagerDisk(directory, clock=clock, **{"token_expiration": LIFE} | options)


async def scanned(m: StateManagerDisk) -> None:
    """Wait until the manager's first scan of the directory is over."""
    for _ in range(5):
        await m.has_state(NOBODY)


def packed(token: StateToken[Any], state: object, deadline: float) -> NewRecord:
    payload = token.serialize(state)
    data = RecordCodec().pack(token.cache_key, payload, deadline)
    return NewRecord(state_name(token.cache_key), data, deadline)


def commit(directory: Path, *changes: tuple[StateToken[Any], object]) -> None:
    """Change states as another program does."""
    other = StateDirectory(directory, fsync=False)
    records = [packed(token, state, ManualClock().time() + LIFE) for token, state in changes]
    for _ in other.write_together(ident_name(changes[0][0].lock_key), records):
        raise AssertionError("nothing is synced")
    other.close()


def begin_commit(directory: Path, *changes: tuple[StateToken[Any], object]) -> Path:
    """Leave what a program leaves that is killed when it has committed several records."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StateDirectory, "_finish", lambda *_: iter(()))
        commit(directory, *changes)
    path = directory / "states" / f"{ident_name(CART.lock_key)}.commit"
    assert path.exists()
    return path


async def reset(m: StateManagerDisk) -> None:
    async with m.modify_state(CART) as cart:
        assert cart == Cart()


def modes_in(directory: Path) -> set[tuple[bool, int]]:
    """Return what modes directories, and files, have."""
    return {(path.is_dir(), stat.S_IMODE(path.lstat().st_mode)) for path in directory.rglob("*")}


def children(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def names(directory: Path) -> set[str]:
    return children(directory / "states")


# The directory


@pytest.mark.parametrize("mask", [0, 0o022, 0o277, 0o777])
@pytest.mark.parametrize("mode", MODES)
async def test_only_this_user_may_look_inside(
    mode: str, mask: int, tmp_path: Path, clock: ManualClock, umask: Callable[[int], object]
):
    """Directories are 0700 and files 0600, whatever the umask; also those above that were made."""
    umask(mask)
    directory = tmp_path / "above" / "states of a program"
    async with make(directory, clock, on_decode_error="reset", **MODES[mode]) as m:
        for number in range(3):
            async with m.modify_states(CART, PROFILE) as (cart, profile):
                cart.number = profile.number = number
        await m.set_state(CART, Cart(1, "x" * 5000))
    (directory / "states" / NAME).write_bytes(b"damage")
    async with make(directory, clock, on_decode_error="reset", **MODES[mode]) as m:
        await reset(m)
    assert list((directory / "quarantine").iterdir())
    assert modes_in(tmp_path) == {(True, 0o700), (False, 0o600)}


def test_a_directory_of_somebody_else_is_refused(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    """Its owner could replace the records."""
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(SettingsError, match="of the user that this program runs as") as raised:
        make(tmp_path, clock)
    assert raised.value.variable == "disk_directory"


@pytest.mark.parametrize("inner", ["", "states", "quarantine", "locks"])
@pytest.mark.parametrize("mode", [0o777, 0o702, 0o1777, 0o770, 0o775, 0o2720])
def test_a_directory_that_others_can_write_to_is_refused(
    mode: int, inner: str, tmp_path: Path, clock: ManualClock
):
    """The group or all; also one inside, as it was made while others could make one."""
    (tmp_path / inner).mkdir(exist_ok=True)
    (tmp_path / inner).chmod(mode)
    with pytest.raises(SettingsError, match=f"expected {inner}.*chmod go-w") as raised:
        make(tmp_path, clock)
    assert raised.value.variable == "disk_directory"
    (tmp_path / inner).chmod(mode & ~0o022)
    make(tmp_path, clock, exclusive=True)


@pytest.mark.parametrize("inner", ["states", "quarantine"])
def test_a_directory_inside_that_is_another_ones_is_refused(
    inner: str, tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / inner).mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(tmp_path / inner, 65534, 65534)
    else:
        users = iter([os.geteuid()] * (1 if inner == "states" else 2))
        monkeypatch.setattr(os, "geteuid", lambda: next(users, 65534))
    with pytest.raises(SettingsError, match=f"expected {inner} inside .* of the user that"):
        make(tmp_path, clock)


@pytest.mark.parametrize("inner", ["states", "quarantine"])
def test_a_directory_inside_is_no_link(inner: str, tmp_path: Path, clock: ManualClock):
    """To whatever it leads. The directory itself may be named by one."""
    home, elsewhere, link = tmp_path / "home", tmp_path / "elsewhere", tmp_path / "link"
    home.mkdir(mode=0o700)
    elsewhere.mkdir(mode=0o700)
    (home / inner).symlink_to(elsewhere)
    with pytest.raises(SettingsError, match=f"expected {inner} inside to be a directory$"):
        make(home, clock)
    link.symlink_to(elsewhere)
    make(link, clock)


def test_what_is_no_directory_is_refused(tmp_path: Path, clock: ManualClock):
    path = tmp_path / "file"
    path.write_text("something else")
    with pytest.raises(SettingsError, match="expected a directory"):
        make(path, clock)
    assert path.read_text() == "something else"


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path, clock: ManualClock):
    """The error says which one, and why."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendUnavailableError, match="file/below cannot be used: Not a dir"):
        make(tmp_path / "file" / "below", clock)


async def test_a_directory_by_another_name(tmp_path: Path, clock: ManualClock):
    """A link to a directory of this user's own will do."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    async with make(tmp_path / "link", clock) as m:
        await m.set_state(CART, Cart(1))
    assert stored(tmp_path / "real", CART) == Cart(1)


# Names

HOSTILE = {
    "above": "../x",
    "absolute": "/etc/passwd",
    "dots": "..",
    "nul": "a\0b",
    "long": "x" * 10_000,
    "surrogate": "\udc80\ud800",
    "newline": "a\nb",
    "percent": "a%2Fb",
    "leftover": "x.0",
}


@pytest.mark.parametrize("ident", HOSTILE.values(), ids=HOSTILE)
async def test_any_ident_stays_inside(ident: str, tmp_path: Path, clock: ManualClock):
    """Files have names of digests, whatever the ident, and nothing is made elsewhere."""
    (tmp_path / "inside").mkdir()
    token = StateToken(ident, Cart)
    async with make(tmp_path / "inside", clock) as m:
        for number in (1, 2):
            await m.set_state(token, Cart(number))
        assert await m.get_state(token) == Cart(2)
        assert [info.ident async for info in m.tokens()] == [ident]
    for name in names(tmp_path / "inside"):
        assert re.fullmatch(r"[0-9a-f]{32}-[0-9a-f]{32}(\.[01])?", name)
    assert children(tmp_path) == {"inside"}
    assert children(tmp_path / "inside") <= {"idents", "lock", "states"}


# What is not a record, in a record's place


def put_link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def put_pipe(path: Path, target: Path) -> None:
    os.mkfifo(path, 0o600)


def put_directory(path: Path, target: Path) -> None:
    path.mkdir()


Put = Callable[[Path, Path], None]


@pytest.mark.parametrize("put", [put_link, put_pipe, put_directory])
@pytest.mark.parametrize("mode", ["shared", "exclusive"])
async def test_what_is_no_file_is_not_read(mode: str, put: Put, tmp_path: Path, clock: ManualClock):
    """A link is not followed and a pipe is not waited for: it is an error, and no fresh state."""
    target = tmp_path / "target"
    target.write_bytes(packed(CART, Cart(666), clock.time() + LIFE).data.ljust(4096, b"\0"))
    content = target.read_bytes()
    directory = tmp_path / "store"
    async with asyncio.timeout(20), make(directory, clock, **MODES[mode]) as m:
        put(directory / "states" / NAME, target)
        for call in (m.get_state, m.has_state, m.touch):
            with pytest.raises(BackendUnavailableError):
                await call(CART)
        with pytest.raises(BackendUnavailableError):
            async with m.modify_state(CART):
                pass
        await m.set_state(PROFILE, Profile(1))
        assert await m.get_state(PROFILE) == Profile(1)
    assert target.read_bytes() == content


@pytest.mark.parametrize("put", [put_link, put_pipe, put_directory])
@pytest.mark.parametrize("turn", [".0", ".1"])
async def test_what_is_no_file_is_not_overwritten(
    turn: str, put: Put, tmp_path: Path, clock: ManualClock
):
    """In the place of the file that is written next, it is an error, or it is replaced."""
    target = tmp_path / "target"
    target.write_bytes(b"t" * 4096)
    directory = tmp_path / "store"
    async with asyncio.timeout(20), make(directory, clock) as m:
        commit(directory, (CART, Cart(1)))
        put(directory / "states" / f"{NAME}{turn}", target)
        wanted = Cart(2)
        try:
            await m.set_state(CART, wanted)
        except BackendUnavailableError:
            wanted = Cart(1)
        assert await m.get_state(CART) == wanted
    assert target.read_bytes() == b"t" * 4096


async def test_a_purge_goes_on_past_what_is_no_file(tmp_path: Path, clock: ManualClock):
    """States that expired are purged, whatever else is in the directory."""
    make(tmp_path, clock, exclusive=True)
    strange = tmp_path / "states" / state_name(PROFILE.cache_key)
    put_pipe(strange, tmp_path)
    os.utime(strange, ns=(0, 0))
    tokens = [StateToken(f"user {number}", Cart) for number in range(10)]
    for token in tokens:
        commit(tmp_path, (token, Cart(1)))
    async with asyncio.timeout(20), make(tmp_path, clock) as m:
        await scanned(m)
        clock.advance(LIFE)
        while m.statistics().purged < len(tokens):
            clock.advance(1.0)
            await asyncio.sleep(0.001)
        assert names(tmp_path) == {strange.name}


# What programs that were killed have left


@pytest.mark.parametrize("mode", MODES)
async def test_files_of_no_state_are_tidied_up(mode: str, tmp_path: Path, clock: ManualClock):
    """The first scan removes files that were being written for a state that is not there."""
    make(tmp_path, clock, exclusive=True)
    commit(tmp_path, (PROFILE, Profile(1)))
    left = [f"{NAME}.0", f"{NAME}.1", f"{ident_name(CART.lock_key)}.commit.0"]
    for name in left:
        (tmp_path / "states" / name).write_bytes(b"half of a rec")
    async with make(tmp_path, clock, **MODES[mode]) as m:
        await scanned(m)
        assert names(tmp_path) == {state_name(PROFILE.cache_key)}
        assert await m.get_state(PROFILE) == Profile(1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["README", ".DS_Store", "x" * 65, "f" * 41, "~.0", "a.commit"])
async def test_foreign_files_are_left_alone(
    mode: str, name: str, tmp_path: Path, clock: ManualClock
):
    """They neither are removed nor keep the scan from what comes after them."""
    make(tmp_path, clock, exclusive=True)
    foreign = tmp_path / "states" / name
    foreign.write_text("mine")
    tokens = [StateToken(f"user {number}", Cart) for number in range(5)]
    for token in tokens:
        commit(tmp_path, (token, Cart(1)))
    async with asyncio.timeout(20), make(tmp_path, clock, **MODES[mode]) as m:
        await scanned(m)
        assert m.statistics().tokens_held >= len(tokens)
        assert {info.ident async for info in m.tokens()} == {token.ident for token in tokens}
    assert foreign.read_text() == "mine"


@pytest.mark.parametrize("turn", [".0", ".1"])
@pytest.mark.parametrize("other", [None, "whole", "torn"])
@pytest.mark.parametrize("mode", MODES)
async def test_a_record_is_never_overwritten_by_its_second_name(
    mode: str, other: str | None, turn: str, tmp_path: Path, clock: ManualClock
):
    """A program died when it had given the record a second name, before it renamed the new one."""
    make(tmp_path, clock, exclusive=True)
    commit(tmp_path, (CART, Cart(1)))
    states = tmp_path / "states"
    (states / f"{NAME}{turn}").hardlink_to(states / NAME)
    if other is not None:
        rest = {".0": ".1", ".1": ".0"}[turn]
        (states / f"{NAME}{rest}").write_bytes(b"z" * (4096 if other == "whole" else 100))
    record = (states / NAME).read_bytes()
    with (states / NAME).open("rb") as old:
        async with make(tmp_path, clock, **MODES[mode]) as m:
            await scanned(m)
            async with m.modify_state(CART) as cart:
                assert cart == Cart(1)
                cart.number = 2
            assert old.read() == record, "it is whole until the new one has its name"
            await m.set_state(CART, Cart(3))
            await m.set_state(CART, Cart(4))
            assert await m.get_state(CART) == Cart(4)
    assert stored(tmp_path, CART) == Cart(4)
    assert {path.stat().st_nlink for path in states.iterdir()} == {1}
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("mode", MODES)
async def test_a_commit_that_was_begun_is_seen_and_finished(
    mode: str, tmp_path: Path, clock: ManualClock
):
    """It is committed: readers see all of it, before and after the scan has finished it."""
    make(tmp_path, clock, exclusive=True)
    commit(tmp_path, (CART, Cart(1)))
    begin_commit(tmp_path, (CART, Cart(2)), (PROFILE, Profile(2)))
    async with make(tmp_path, clock, **MODES[mode]) as m:
        assert await m.get_states(CART, PROFILE) == (Cart(2), Profile(2))
        await scanned(m)
        assert names(tmp_path) == {NAME, f"{NAME}.1", state_name(PROFILE.cache_key)}
        assert await m.get_states(CART, PROFILE) == (Cart(2), Profile(2))


@pytest.mark.parametrize("how", ["set", "modify", "delete"])
@pytest.mark.parametrize("mode", MODES)
async def test_a_commit_that_was_begun_never_overwrites_a_later_one(
    mode: str, how: str, tmp_path: Path, clock: ManualClock
):
    """The next change of the ident finishes it first, even before the scan."""
    make(tmp_path, clock, exclusive=True)
    commit(tmp_path, (CART, Cart(1)))
    left = begin_commit(tmp_path, (CART, Cart(2)), (PROFILE, Profile(2)))
    async with make(tmp_path, clock, **MODES[mode]) as m:
        if how == "set":
            await m.set_state(CART, Cart(3))
        elif how == "modify":
            async with m.modify_state(CART) as cart:
                assert cart == Cart(2)
                cart.number = 3
        else:
            assert await m.delete_state(CART) is True
        wanted = (Cart() if how == "delete" else Cart(3)), Profile(2)
        assert stored(tmp_path, CART) == (None if how == "delete" else Cart(3))
        await scanned(m)
        assert await m.get_states(CART, PROFILE) == wanted
        assert not left.exists()
    async with make(tmp_path, clock) as m:
        await scanned(m)
        assert await m.get_states(CART, PROFILE) == wanted


@pytest.mark.parametrize("how", ["set", "modify", "delete"])
@pytest.mark.parametrize("mode", ["fsync", "exclusive fsync"])
async def test_a_commit_that_was_begun_and_cannot_be_finished(
    mode: str, how: str, tmp_path: Path, clock: ManualClock
):
    """The change that comes upon it is not made, and so its error is not that it may have been."""
    async with make(tmp_path, clock, **MODES[mode]) as m:
        await scanned(m)
        begin_commit(tmp_path, (CART, Cart(2)), (PROFILE, Profile(2)))

        async def change() -> None:
            if how == "set":
                await m.set_state(CART, Cart(3))
            elif how == "delete":
                await m.delete_state(CART)
            else:
                async with m.modify_state(CART) as cart:
                    cart.number = 3

        with unsynced(m), pytest.raises(BackendUnavailableError):
            await change()
        assert stored(tmp_path, CART) == Cart(2)
        assert await m.get_states(CART, PROFILE) == (Cart(2), Profile(2))
        await change()
        assert stored(tmp_path, CART) == (None if how == "delete" else Cart(3))
        assert stored(tmp_path, PROFILE) == Profile(2)


async def test_a_commit_that_is_damaged_is_kept(tmp_path: Path, clock: ManualClock):
    """Nobody can tell what it held: reading raises, and nothing is put in its place."""
    make(tmp_path, clock, exclusive=True)
    commit(tmp_path, (CART, Cart(1)))
    left = begin_commit(tmp_path, (CART, Cart(2)), (PROFILE, Profile(2)))
    content = left.read_bytes()[:-1]
    left.write_bytes(content)
    async with make(tmp_path, clock) as m:
        for _ in range(3):
            for token in (CART, PROFILE):
                with pytest.raises(StateDecodeError):
                    await m.get_state(token)
                with pytest.raises(StateDecodeError):
                    async with m.modify_state(token):
                        pass
        await scanned(m)
    assert left.read_bytes() == content
    async with make(tmp_path, clock, on_decode_error="reset") as m:
        async with m.modify_state(PROFILE) as profile:
            profile.number = 3
        assert await m.get_state(PROFILE) == Profile(3)
    assert content in [path.read_bytes() for path in (tmp_path / "quarantine").iterdir()]


# Two files in turn


@pytest.mark.parametrize("mode", MODES)
async def test_two_files_take_turns(mode: str, tmp_path: Path, clock: ManualClock):
    """A small state has two files and no more, and each is the record every other time."""
    inodes = []
    async with make(tmp_path, clock, **MODES[mode]) as m:
        for number in range(1, 8):
            async with m.modify_state(CART) as cart:
                cart.number = number
            record = (tmp_path / "states" / NAME).stat()
            inodes.append(record.st_ino)
            assert record.st_nlink == 1
            assert len(names(tmp_path)) <= 2
            assert all(path.stat().st_nlink == 1 for path in (tmp_path / "states").iterdir())
            assert stored(tmp_path, CART) == Cart(number)
    assert len(set(inodes)) == 2
    assert all(one != two for one, two in pairwise(inodes))


async def test_a_large_record_has_a_file_of_its_own(tmp_path: Path, clock: ManualClock):
    """Between small and large nothing is left over."""
    async with make(tmp_path, clock) as m:
        for size in (0, 0, 5000, 9000, 0, 0, 5000, 0):
            await m.set_state(CART, Cart(size, "x" * size))
            assert await m.get_state(CART) == Cart(size, "x" * size)
            assert len(names(tmp_path)) <= 2
        assert len(names(tmp_path)) == 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
async def test_a_file_system_without_links(
    number: int, tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    """Each change makes a new file then; the file system is not asked again."""
    asked = []

    def link(*args: object, **_: object) -> None:
        asked.append(args)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    async with make(tmp_path, clock) as m:
        for count in range(1, 6):
            async with m.modify_state(CART) as cart:
                cart.number = count
            assert await m.get_state(CART) == Cart(count)
        assert len(asked) == 1
        assert names(tmp_path) == {NAME}


# A reader beside a writer


class _Reading:
    """Stand for `os` where files are read: do something in the middle of the first read."""

    def __init__(self, in_between: Callable[[], None], first_bytes: int = 0) -> None:
        self._in_between: Callable[[], None] | None = in_between
        self._first_bytes = first_bytes
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def read(self, descriptor: int, size: int) -> bytes:
        self.reads += 1
        in_between, self._in_between = self._in_between, None
        if in_between is None:
            return os.read(descriptor, size)
        data = os.read(descriptor, self._first_bytes) if self._first_bytes else b""
        in_between()
        return data or os.read(descriptor, size)


async def test_a_reader_never_sees_what_is_not_committed(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    """The reader has opened the record; it becomes the other file, and is overwritten.

    reader   opens the record's file: one
    writer   commits the second state; one is the file to be written next
    writer   writes the third state to one, and has not committed it
    reader   reads the third state: it looks again, and returns the second
    """
    commit_all = StateDirectory(tmp_path, fsync=True)
    third = commit_all.write(packed(CART, Cart(3), clock.time() + LIFE))
    async with make(tmp_path, clock) as m:
        await m.set_state(CART, Cart(1))

        def in_between() -> None:
            commit(tmp_path, (CART, Cart(2)))
            next(third)  # up to its sync: it is written, and not renamed

        reading = _Reading(in_between)
        monkeypatch.setattr(files, "os", reading)
        assert await m.get_state(CART) == Cart(2)
        assert reading.reads > 1
        monkeypatch.undo()
        for _ in third:
            pass
        assert await m.get_state(CART) == Cart(3)
    commit_all.close()


@pytest.mark.parametrize("first_bytes", [1, 30, 100, 200])
async def test_a_reader_never_sees_parts_of_two_records(
    first_bytes: int, tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    """A file is replaced twice while it is read: it is the record again, with other contents."""
    async with make(tmp_path, clock) as m:
        await m.set_state(CART, Cart(1, "a" * 200))

        def in_between() -> None:
            commit(tmp_path, (CART, Cart(2, "b" * 200)))
            commit(tmp_path, (CART, Cart(3, "c" * 200)))

        monkeypatch.setattr(files, "os", _Reading(in_between, first_bytes))
        assert await m.get_state(CART) == Cart(3, "c" * 200)


async def test_a_reader_sees_all_of_a_commit_or_nothing(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    """Two classes of one ident are changed together while both are read."""
    async with make(tmp_path, clock) as m:
        commit(tmp_path, (CART, Cart(1)), (PROFILE, Profile(1)))
        for number in range(2, 6):
            with pytest.MonkeyPatch.context() as patch:
                skipped = number - 2  # the change comes at the first read, at the second ...

                def in_between(number: int = number) -> None:
                    commit(tmp_path, (CART, Cart(number)), (PROFILE, Profile(number)))

                patch.setattr(files, "os", _Later(in_between, skipped))
                cart, profile = await m.get_states(CART, PROFILE)
            assert cart.number == profile.number
            assert await m.get_states(CART, PROFILE) == (Cart(number), Profile(number))


class _Later(_Reading):
    """Do it in the middle of a later read."""

    def __init__(self, in_between: Callable[[], None], skipped: int) -> None:
        super().__init__(in_between)
        self._skipped = skipped

    def read(self, descriptor: int, size: int) -> bytes:
        if self._skipped > 0:
            self._skipped -= 1
            return os.read(descriptor, size)
        return super().read(descriptor, size)


# Renewals


async def test_a_renewal_is_the_time_of_the_file(tmp_path: Path, clock: ManualClock):
    """Reading sets the file's time to the new deadline, and another program heeds it."""
    async with make(tmp_path, clock) as m:
        await m.set_state(CART, Cart(1))
        path = tmp_path / "states" / NAME
        assert path.stat().st_mtime == pytest.approx(clock.time() + LIFE, abs=1e-3)
        content = path.read_bytes()
        clock.advance(LIFE / 2)
        await m.get_state(CART)
        assert path.stat().st_mtime == pytest.approx(clock.time() + LIFE, abs=1e-3)
        assert path.read_bytes() == content
    clock.advance(LIFE - 1)
    async with make(tmp_path, clock) as m:
        assert await m.has_state(CART) is True
        clock.advance(2)
        assert await m.has_state(CART) is False


@pytest.mark.parametrize("mode", ["shared", "exclusive"])
async def test_a_copy_that_lost_its_times_falls_back_to_the_records_deadline(
    mode: str, tmp_path: Path, clock: ManualClock
):
    """It loses the renewals since the last commit, and nothing more."""
    async with make(tmp_path, clock) as m:
        await m.set_state(CART, Cart(1))
        clock.advance(LIFE / 2)
        assert await m.touch(CART)
    path = tmp_path / "states" / NAME
    os.utime(path, (0, 0))
    async with make(tmp_path, clock, **MODES[mode]) as m:
        await scanned(m)
        await clock.settle()
        assert await m.has_state(CART) is True, "the purge looks into the record"
        clock.advance(LIFE / 2 - 1)
        assert await m.has_state(CART) is True
        clock.advance(2)
        assert await m.has_state(CART) is False


# Quarantine


@pytest.mark.parametrize("mode", ["shared", "exclusive"])
async def test_what_cannot_be_read_is_set_aside_when_it_is_replaced(
    mode: str, tmp_path: Path, clock: ManualClock
):
    """Under "reset" a change moves it to the quarantine, as often as it happens."""
    damages = [b"", b"damage", b"\0" * 4096, b"x" * 5000]
    path = tmp_path / "states" / NAME
    for damage in damages:
        async with make(tmp_path, clock) as m:
            await m.set_state(CART, Cart(1))
        path.write_bytes(damage)
        async with make(tmp_path, clock, **MODES[mode]) as m:
            for _ in range(2):
                with pytest.raises(StateDecodeError):
                    async with m.modify_state(CART):
                        pass
                with pytest.raises(StateDecodeError):
                    await m.get_state(CART)
        assert path.read_bytes() == damage, "raising leaves it where it is"
        async with make(tmp_path, clock, on_decode_error="reset", **MODES[mode]) as m:
            assert await m.get_state(CART) == Cart()
            assert path.read_bytes() == damage, "reading too"
            async with m.modify_state(CART) as cart:
                cart.number = 5
            assert await m.get_state(CART) == Cart(5)
    kept = sorted(path.read_bytes() for path in (tmp_path / "quarantine").iterdir())
    assert kept == sorted(damages)


@pytest.mark.parametrize("size", [100, 1_000, 5_000, 600_000])
@pytest.mark.parametrize("mode", MODES)
async def test_a_state_is_listed_however_long_its_key(
    mode: str, size: int, tmp_path: Path, clock: ManualClock
):
    """The key stands in the record, and is read from there."""
    token = StateToken("x" * size, Cart)
    async with make(tmp_path, clock, **MODES[mode]) as m:
        await m.set_state(token, Cart(1))
    async with make(tmp_path, clock, **MODES[mode]) as m:
        assert [info.ident async for info in m.tokens()] == [token.ident]
