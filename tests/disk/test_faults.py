"""What a file system refuses is an error to its caller, and the old record stays whole.

Each call that a change makes of the system fails in turn: the first, the second, and so on until
there are no more. An error means that nothing was saved, a success that all was.
"""

import asyncio
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest

from statemgr import StateManagerDisk, StateToken
from statemgr.backends.disk.files import state_name
from statemgr.errors import BackendUnavailableError, CommitUncertainError, StateManagerError
from statemgr.testing import ManualClock
from tests.disk.faults import CHANGING, FILLING, Faults, descriptors, faulty_calls, stored

MODES: dict[str, dict[str, Any]] = {
    "shared": {},
    "fsync": {"fsync": True},
    "exclusive": {"exclusive": True},
    "exclusive fsync": {"exclusive": True, "fsync": True},
}
LARGE = 5000  # bytes of text: more than one block


@dataclass
class Cart:
    number: int = 0
    text: str = ""


@dataclass
class Profile:
    number: int = 0


CART, PROFILE = StateToken("somebody", Cart), StateToken("somebody", Profile)
NOBODY = StateToken("nobody", Cart)
Seen = tuple[int, int]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return faulty_calls(monkeypatch)


@asynccontextmanager
async def opened(
    directory: Path, clock: ManualClock | None = None, **options: Any
) -> AsyncIterator[StateManagerDisk]:
    """A manager whose first scan of the directory is over."""
    async with StateManagerDisk(directory, clock=clock or ManualClock(), **options) as m:
        for _ in range(5):
            await m.has_state(NOBODY)
        yield m


# The changes. Each leads to the two numbers it returns.


async def put(m: StateManagerDisk, old: Seen, new: int) -> None:
    await m.set_state(CART, Cart(new))


async def put_large(m: StateManagerDisk, old: Seen, new: int) -> None:
    await m.set_state(CART, Cart(new, "x" * LARGE))


async def change(m: StateManagerDisk, old: Seen, new: int) -> None:
    async with m.modify_state(CART) as cart:
        assert cart.number == old[0], "a body starts from what is committed"
        cart.number = new


async def change_both(m: StateManagerDisk, old: Seen, new: int) -> None:
    async with m.modify_states(CART, PROFILE) as (cart, profile):
        assert (cart.number, profile.number) == old
        cart.number = profile.number = new


async def delete(m: StateManagerDisk, old: Seen, new: int) -> None:
    assert await m.delete_state(CART) is True


async def nothing(m: StateManagerDisk) -> None:
    pass


async def prepare_none(m: StateManagerDisk) -> None:
    await m.delete_state(CART)


async def prepare_large(m: StateManagerDisk) -> None:
    await m.set_state(CART, Cart((await m.get_state(CART)).number, "y" * LARGE))


async def prepare_again(m: StateManagerDisk) -> None:
    for _ in range(2):  # so that both files of a state are there
        async with m.modify_state(CART) as cart:
            cart.text = ""
        async with m.modify_state(PROFILE):
            pass


Prepare = Callable[[StateManagerDisk], Awaitable[None]]
Operate = Callable[[StateManagerDisk, Seen, int], Coroutine[Any, Any, None]]

CHANGES: dict[str, tuple[Prepare, Operate]] = {
    "first write": (prepare_none, put),
    "later write": (prepare_again, put),
    "large write": (prepare_again, put_large),
    "from large to large": (prepare_large, put_large),
    "from large to small": (prepare_large, change),
    "first change": (prepare_none, change),
    "later change": (prepare_again, change),
    "two classes, one of them new": (prepare_none, change_both),
    "two classes": (prepare_again, change_both),
    "delete": (prepare_again, delete),
}


def after(operate: Operate, old: Seen, new: int) -> Seen:
    if operate is change_both:
        return new, new
    return (0 if operate is delete else new), old[1]


def on_disk(directory: Path) -> Seen:
    cart, profile = stored(directory, CART), stored(directory, PROFILE)
    return (cart.number if cart else 0), (profile.number if profile else 0)


async def seen_by(m: StateManagerDisk) -> Seen:
    cart, profile = await m.get_states(CART, PROFILE)
    return cart.number, profile.number


def check_files(directory: Path) -> None:
    """No more than two files for each state, and nothing that waits to be finished."""
    names = {path.name for path in (directory / "states").iterdir()}
    for token in (CART, PROFILE, NOBODY):
        name = state_name(token.cache_key)
        assert not names >= {f"{name}.0", f"{name}.1"}, names
        names -= {name, f"{name}.0", f"{name}.1"}
    assert not names, names
    left = directory / "locks"
    assert not left.exists() or not list(left.iterdir())


async def descriptors_are(number: int) -> None:
    """Wait for the threads of managers that were closed to let their ends of a pipe go."""
    async with asyncio.timeout(20):
        while descriptors() > number:  # noqa: ASYNC110  # what a thread does has no event here
            await asyncio.sleep(0.001)


class Trial:
    """Run a change with one call failing, and look whether what came of it is allowed."""

    def __init__(self, directory: Path, faults: Faults, mode: dict[str, Any]) -> None:
        self.directory = directory
        self.faults = faults
        self.fsync = mode.get("fsync", False)
        self.shared = not mode.get("exclusive", False)
        self.numbers = count(1)

    async def __call__(
        self,
        managers: list[StateManagerDisk],
        operate: Operate,
        **arm: Any,
    ) -> bool:
        """Return whether a call has failed."""
        first = managers[0]
        old, new = await seen_by(first), next(self.numbers)
        wanted = after(operate, old, new)
        if operate is delete and not old[0]:
            return False  # deleted already
        self.faults.arm(**arm)
        error: StateManagerError | None = None
        try:
            async with asyncio.timeout(20):
                await operate(first, old, new)
        except (BackendUnavailableError, CommitUncertainError) as raised:
            error = raised
        fired = self.faults.disarm()
        seen = await seen_by(first)
        if error is None:
            assert seen == wanted == on_disk(self.directory), (self.faults.failed, seen, wanted)
        elif isinstance(error, CommitUncertainError):
            assert self.fsync
            assert self.faults.failed[0] == "fsync"
            assert {seen, on_disk(self.directory)} <= {old, wanted}
        else:
            assert seen == old == on_disk(self.directory), (self.faults.failed, seen, old)
        for other in managers[1:]:
            assert await seen_by(other) == seen, self.faults.failed
        await self.check_lock(managers)
        return fired

    async def check_lock(self, managers: list[StateManagerDisk]) -> None:
        """The ident's lock is free, here and elsewhere."""
        for each in managers:
            assert each.statistics().locks_held == 0
            async with asyncio.timeout(20), each.modify_state(CART, timeout=0):
                pass


async def each_call(
    directory: Path, faults: Faults, mode: dict[str, Any], name: str, **arm: Any
) -> int:
    """Let each call of a change fail in turn; return how many there are."""
    prepare, operate = CHANGES[name]
    trial = Trial(directory, faults, mode)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(opened(directory, **mode))
        managers = [first]
        if trial.shared:
            managers.append(await stack.enter_async_context(opened(directory)))
        await first.set_state(PROFILE, Profile(next(trial.numbers)))
        await first.set_state(CART, Cart(next(trial.numbers)))
        await prepare(first)
        before = descriptors()
        for number in count(1):
            async with first.modify_states(CART, PROFILE) as (cart, profile):
                cart.number = next(trial.numbers)
                profile.number = next(trial.numbers)
            await prepare(first)
            fired = await trial(managers, operate, number=number, **arm)
            assert not await trial(managers, operate, number=0), "it works again"
            await descriptors_are(before)
            check_files(directory)
            if not fired:
                break
        last = await seen_by(first)
    async with opened(directory) as fresh:
        assert await seen_by(fresh) == last
    return number - 1


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("mode", MODES)
async def test_each_call_of_a_change_fails_once(
    mode: str, name: str, tmp_path: Path, faults: Faults
):
    """An error leaves the old state, a success the new one; the next attempt works; nothing is
    left behind: no lock, no descriptor, no file.
    """  # noqa: D205
    assert await each_call(tmp_path, faults, MODES[mode], name) > 3
    assert faults.total.total() > 3


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("mode", ["shared", "exclusive"])
async def test_a_disk_gets_full_at_each_call(mode: str, name: str, tmp_path: Path, faults: Faults):
    """From some call on there is no space: the old state is whole, and later changes work."""
    arm = {"names": FILLING, "lasting": True, "number_of_error": errno.ENOSPC}
    assert await each_call(tmp_path, faults, MODES[mode], name, **arm) >= (name != "delete")


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("mode", ["shared", "exclusive"])
async def test_a_file_system_turns_read_only_at_each_call(
    mode: str, name: str, tmp_path: Path, faults: Faults
):
    """From some call on nothing can be changed, not even tidied up."""
    arm = {"names": CHANGING, "lasting": True, "number_of_error": errno.EROFS}
    assert await each_call(tmp_path, faults, MODES[mode], name, **arm) > 0


async def test_two_calls_of_a_change_fail(tmp_path: Path, faults: Faults):
    """Two calls, of two attempts that follow each other: every eleventh pair there is."""
    trial = Trial(tmp_path, faults, {})
    async with opened(tmp_path) as first, opened(tmp_path) as other:
        await first.set_state(CART, Cart(next(trial.numbers)))
        await first.set_state(PROFILE, Profile(next(trial.numbers)))
        before = descriptors()
        fired = True
        for one in count(1):
            for two in count(1 + one % 11, 11):
                await prepare_again(first)
                fired = await trial([first, other], change_both, number=one)
                if not await trial([first, other], change_both, number=two):
                    break
            if not fired:
                break
        assert await trial([first, other], change_both, number=0) is False
        await descriptors_are(before)
        check_files(tmp_path)


READS: dict[str, Callable[[StateManagerDisk], Awaitable[object]]] = {
    "get_states": seen_by,
    "get_state": lambda m: m.get_state(CART),
    "has_state": lambda m: m.has_state(CART),
    "touch": lambda m: m.touch(CART),
}


@pytest.mark.parametrize("left", ["files", "a commit", "an expired state"])
@pytest.mark.parametrize("name", READS)
async def test_each_call_of_a_read_fails_once(name: str, left: str, tmp_path: Path, faults: Faults):
    """A read that fails raises; it never gives a fresh state for one that is there."""
    clock = ManualClock()
    read = READS[name]
    async with opened(tmp_path, clock) as m, opened(tmp_path, clock) as other:
        for number in count(1):
            await m.set_state(CART, Cart(number))
            await m.set_state(PROFILE, Profile(number))
            if left == "a commit":
                faults.arm(2, names={"replace"}, lasting=True)  # the first one commits
                await change_both(other, (number, number), number + 1)
                assert faults.disarm()
                assert list((tmp_path / "states").glob("*.commit"))
            if left == "an expired state":
                clock.step_wall_clock(m.token_expiration)
            wanted = await read(other) if left != "an expired state" else None
            before = descriptors()
            faults.arm(number)
            try:
                found = await read(m)
            except BackendUnavailableError:
                assert faults.failed
            else:
                if wanted is None:
                    assert found in (Cart(), False, (0, 0))
                else:
                    assert found == wanted
            fired = faults.disarm()
            await descriptors_are(before)
            found = await read(m)
            assert found == wanted if wanted is not None else found in (Cart(), False, (0, 0))
            for each in (m, other):
                async with asyncio.timeout(20), each.modify_state(CART, timeout=0):
                    pass
            if not fired:
                break
    assert number > 3


@pytest.mark.parametrize("mode", MODES)
async def test_each_call_of_opening_fails_once(mode: str, tmp_path: Path, faults: Faults):
    """A manager that cannot be made leaves no descriptor, and the directory to others."""
    before = descriptors()
    for number in count(1):
        faults.arm(number, anywhere=True)
        try:
            m = StateManagerDisk(tmp_path, **MODES[mode])
        except BackendUnavailableError:
            assert faults.disarm()
        else:
            fired = faults.disarm()
            await m.close()
            if not fired:
                break
        await descriptors_are(before)
        await StateManagerDisk(tmp_path, exclusive=True).close()
    assert number > 3


@pytest.mark.parametrize("name", ["pipe", "fsync", "scandir"])
async def test_the_first_call_fails(name: str, tmp_path: Path, faults: Faults):
    """A manager whose thread cannot be started says so, and works when it can."""
    m = StateManagerDisk(tmp_path, clock=ManualClock(), fsync=True)
    faults.arm(1, names={name}, anywhere=True, number_of_error=errno.EMFILE)
    async with asyncio.timeout(20):
        try:
            await m.set_state(CART, Cart(1))
        except (BackendUnavailableError, CommitUncertainError):
            assert name != "scandir"
        assert faults.disarm()
        await m.set_state(CART, Cart(2))
        assert await m.get_state(CART) == Cart(2)
        await m.close()


# Writing behind

DEBOUNCE = 2.0
DEBOUNCED: dict[str, Operate] = {
    "put": put,
    "put large": put_large,
    "change": change,
    "two classes": change_both,
}


async def until_written(m: StateManagerDisk, clock: ManualClock) -> None:
    """Let the writer's time pass until it has nothing to do."""
    async with asyncio.timeout(20):
        while cast("Any", m)._writing is not None:
            clock.advance(1.0)
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("name", DEBOUNCED)
@pytest.mark.parametrize("fsync", [False, True], ids=["", "fsync"])
async def test_each_call_of_writing_behind_fails_once(
    name: str, fsync: bool, tmp_path: Path, faults: Faults
):
    """What was acknowledged is kept and written when it can be; until then it is read."""
    clock = ManualClock()
    operate = DEBOUNCED[name]
    options = {"exclusive": True, "debounce": DEBOUNCE, "fsync": fsync}
    async with opened(tmp_path, clock, **options) as m:
        await put(m, (0, 0), -1)
        await m.set_state(PROFILE, Profile(-1))
        await until_written(m, clock)
        assert on_disk(tmp_path) == (-1, -1)
        before = descriptors()
        for number in count(1):
            old = await seen_by(m)
            await operate(m, old, number)
            wanted = after(operate, old, number)
            assert await seen_by(m) == wanted
            assert on_disk(tmp_path) == old, "it is not written yet"
            faults.arm(number)
            async with asyncio.timeout(20):
                while not faults.failed and cast("Any", m)._writing is not None:
                    clock.advance(1.0)
                    await asyncio.sleep(0.001)
            fired = faults.disarm()
            assert await seen_by(m) == wanted
            await until_written(m, clock)
            assert on_disk(tmp_path) == wanted
            await descriptors_are(before)
            if not fired:
                break
        assert number > 5
    async with opened(tmp_path) as fresh:
        assert await seen_by(fresh) == wanted
    check_files(tmp_path)


@asynccontextmanager
async def failing_writer(
    directory: Path, clock: ManualClock, faults: Faults
) -> AsyncIterator[StateManagerDisk]:
    """A manager with a debounce whose writer has failed, and will until it is disarmed."""
    async with opened(directory, clock, exclusive=True, debounce=DEBOUNCE) as m:
        await m.set_state(CART, Cart(1))
        await m.set_state(PROFILE, Profile(1))
        await until_written(m, clock)
        async with m.modify_state(CART) as cart:
            cart.number = 2
        faults.arm(1, names=FILLING, lasting=True, number_of_error=errno.ENOSPC)
        async with asyncio.timeout(20):
            while not faults.failed:
                clock.advance(1.0)
                await asyncio.sleep(0.001)
            await m.has_state(NOBODY)
            await clock.settle()
        yield m


async def test_while_writing_fails_nothing_is_acknowledged_that_is_not_written(
    tmp_path: Path, faults: Faults
):
    """A change is then written at once, and its caller gets the error."""
    clock = ManualClock()
    async with failing_writer(tmp_path, clock, faults) as m:
        with pytest.raises(BackendUnavailableError, match="free some space"):
            async with m.modify_state(PROFILE) as profile:
                profile.number = 2
        with pytest.raises(BackendUnavailableError):
            await m.set_state(PROFILE, Profile(2))
        assert await seen_by(m) == (2, 1)
        assert on_disk(tmp_path) == (1, 1)
        faults.disarm()
        await m.set_state(PROFILE, Profile(3))
        assert stored(tmp_path, PROFILE) == Profile(3), "written before it is acknowledged"
        await until_written(m, clock)
        assert on_disk(tmp_path) == (2, 3)
        async with m.modify_state(PROFILE) as profile:
            profile.number = 4
        assert stored(tmp_path, PROFILE) == Profile(3), "debounced again"
        await until_written(m, clock)
        assert on_disk(tmp_path) == (2, 4)


async def test_closing_while_writing_fails(tmp_path: Path, faults: Faults):
    """`close()` raises and keeps the states; called again, it writes them."""
    async with failing_writer(tmp_path, ManualClock(), faults) as m:
        for _ in range(2):
            with pytest.raises(BackendUnavailableError, match="free some space"):
                await m.close()
            assert on_disk(tmp_path) == (1, 1)
        faults.disarm()
        await m.close()
        assert on_disk(tmp_path) == (2, 1)


async def test_closing_waits_for_a_save_of_another_class(tmp_path: Path, faults: Faults):
    """What was acknowledged of an ident is written, though another state of it is being saved."""
    async with failing_writer(tmp_path, ManualClock(), faults) as m:
        faults.disarm()
        saving = asyncio.create_task(m.set_state(PROFILE, Profile(2)))
        await asyncio.sleep(0)  # it is on its way
        await m.close()
        await asyncio.wait([saving])
        assert stored(tmp_path, CART) == Cart(2)


async def test_closing_while_a_save_fails_keeps_the_state_before_it(tmp_path: Path, faults: Faults):
    """The state that was acknowledged is kept, the one that was not is not written."""
    async with failing_writer(tmp_path, ManualClock(), faults) as m:
        saving = asyncio.create_task(m.set_state(CART, Cart(3)))
        await asyncio.sleep(0)
        with pytest.raises(BackendUnavailableError):
            await m.close()
        with pytest.raises(StateManagerError):
            await saving
        faults.disarm()
        await m.close()
        assert stored(tmp_path, CART) == Cart(2)


async def test_writing_behind_never_brings_a_deleted_state_back(tmp_path: Path):
    """A state is deleted in the turn in which its writer's time comes."""
    clock = ManualClock()
    options: dict[str, Any] = {"exclusive": True, "debounce": DEBOUNCE}
    async with opened(tmp_path, clock, **options) as m:
        await m.set_state(CART, Cart(1))
        await clock.settle()
        deleting = asyncio.create_task(m.delete_state(CART))
        clock.advance(DEBOUNCE)
        assert await deleting is True
        await m.has_state(NOBODY)
    assert stored(tmp_path, CART) is None


# Real file systems


def as_root(*command: object) -> None:
    """Run a command that takes root; others may be allowed to by sudo, as on CI's machines."""
    sudo = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    subprocess.run([*sudo, *map(str, command)], check=True, capture_output=True)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount something on an empty directory, for the test's time."""
    with ExitStack() as stack:

        def mount(name: str, *options: str) -> Path:
            path = tmp_path / name
            path.mkdir(exist_ok=True)
            try:
                as_root("mount", *options, path)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"mounts a file system, which takes root on Linux: {error}")
            stack.callback(as_root, "umount", "--lazy", path)
            return path

        yield mount


def tmpfs(mounted: Callable[..., Path], size: str) -> Path:
    return mounted(
        "small", "-t", "tmpfs", "-o", f"size={size},mode=0700,uid={os.geteuid()}", "none"
    )


@contextmanager
def read_only(mount: Path) -> Iterator[None]:
    """Cover a mount with a read-only one of the same files: what is open keeps the other."""
    as_root("mount", "--bind", mount, mount)
    try:
        as_root("mount", "-o", "remount,bind,ro", mount)
        yield
    finally:
        as_root("umount", mount)


@pytest.mark.parametrize("mode", MODES)
async def test_a_full_disk(mode: str, mounted: Callable[..., Path]):
    """A change that finds no space is an error and loses nothing; deleting makes room for it."""
    directory = tmpfs(mounted, "128k") / "states"
    tokens = [StateToken(f"user {number}", Cart) for number in range(100)]
    stored_numbers: dict[StateToken[Cart], int] = {}
    refused = 0
    async with opened(directory, **MODES[mode]) as m:
        for round_ in range(1, 4):
            for token in tokens:
                try:
                    async with m.modify_state(token) as cart:
                        assert cart.number == stored_numbers.get(token, 0)
                        cart.number = round_
                except BackendUnavailableError as error:
                    assert "free some space" in str(error)  # noqa: PT017  # others pass
                    refused += 1
                else:
                    stored_numbers[token] = round_
        assert refused
        assert len(stored_numbers) > 5
        lost = next(token for token in tokens if token not in stored_numbers)
        for token in list(stored_numbers)[:2]:
            assert await m.delete_state(token) is True
            del stored_numbers[token]
        await m.set_state(lost, Cart(7))
        stored_numbers[lost] = 7
        for token in tokens:
            assert (await m.get_state(token)).number == stored_numbers.get(token, 0)
    async with opened(directory) as fresh:
        for token in tokens:
            assert (await fresh.get_state(token)).number == stored_numbers.get(token, 0)


async def test_a_full_disk_while_writing_behind(mounted: Callable[..., Path]):
    """What was acknowledged is kept in memory until there is room; closing says so."""
    directory = tmpfs(mounted, "64k") / "states"
    clock = ManualClock()
    tokens = [StateToken(f"user {number}", Cart) for number in range(30)]
    options: dict[str, Any] = {"exclusive": True, "debounce": DEBOUNCE}
    async with opened(directory, clock, **options) as m:
        await m.set_state(CART, Cart(1))
        await until_written(m, clock)
        ballast = directory / "ballast"
        with pytest.raises(OSError, match="No space"), ballast.open("wb") as file:
            while True:
                file.write(b"x" * 1024)
                file.flush()
        for token in tokens[:10]:
            await m.set_state(token, Cart(5))
        with pytest.raises(BackendUnavailableError, match="free some space"):
            await m.close()
        ballast.unlink()
        await m.close()
    async with opened(directory) as fresh:
        assert [(await fresh.get_state(token)).number for token in (CART, *tokens[:10])] == [
            1,
            *[5] * 10,
        ]


@pytest.mark.parametrize("mode", ["shared", "exclusive"])
async def test_a_read_only_file_system(mode: str, mounted: Callable[..., Path]):
    """Nothing can be changed, and the error says what to do; afterwards all is as before."""
    mount = tmpfs(mounted, "256k")
    directory = mount / "states"
    async with opened(directory, **MODES[mode]) as m:
        await m.set_state(CART, Cart(1))
        await m.set_state(CART, Cart(2))
        with read_only(mount):
            with pytest.raises(BackendUnavailableError, match="make it writable"):
                await m.set_state(CART, Cart(3))
            with pytest.raises(BackendUnavailableError):
                async with m.modify_state(CART) as cart:
                    cart.number = 3
            with pytest.raises(BackendUnavailableError):
                await m.delete_state(CART)
            with pytest.raises(BackendUnavailableError, match="make it writable"):
                StateManagerDisk(mount / "other")
        assert await m.get_state(CART) == Cart(2)
        await m.set_state(CART, Cart(3))
    assert stored(directory, CART) == Cart(3)


# Limits of the process, in a process of its own


def run(program: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


PRELUDE = """
import asyncio, os, resource, sys
from pathlib import Path
from statemgr import StateManagerDisk
from statemgr.errors import BackendUnavailableError, StateManagerError
from tests.disk.test_faults import CART, NOBODY, Cart, Profile, PROFILE
directory, mode = Path(sys.argv[1]), eval(sys.argv[2])
for token, state in ((CART, Cart()), (PROFILE, Profile())):
    token.deserialize(token.serialize(state))  # imports what it needs
"""

TOO_MANY_FILES = """
async def main():
    async with StateManagerDisk(directory, **mode) as m:
        await m.set_state(CART, Cart(1))
        await m.set_state(CART, Cart(2))
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        async def refuses(call):
            try:
                await call
            except BackendUnavailableError as error:
                assert "ulimit -n" in str(error), error
            else:
                raise AssertionError("that had to fail")
        for _ in range(3):
            await refuses(m.set_state(CART, Cart(3)))
            await refuses(m.get_state(NOBODY))
            if not mode:
                await refuses(m.get_state(CART))
        try:
            StateManagerDisk(directory / "another")
        except BackendUnavailableError:
            pass
        else:
            raise AssertionError("that had to fail")
        os.close(taken.pop())
        await m.set_state(CART, Cart(4))
        for descriptor in taken:
            os.close(descriptor)
        assert await m.get_state(CART) == Cart(4)
    async with StateManagerDisk(directory) as m:
        assert await m.get_state(CART) == Cart(4)
asyncio.run(main())
"""

TOO_MANY_FILES_FIRST = """
async def main():
    m = StateManagerDisk(directory, **mode)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    async with asyncio.timeout(30):
        try:
            await m.set_state(CART, Cart(3))
        except BackendUnavailableError:
            pass
        else:
            raise AssertionError("that had to fail")
        for descriptor in taken:
            os.close(descriptor)
        await m.set_state(CART, Cart(4))
        assert await m.get_state(CART) == Cart(4)
        await m.close()
asyncio.run(main())
"""

WITHOUT_PERMISSION = """
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
home = directory / "home"
async def main():
    async with StateManagerDisk(home, **mode) as m:
        await m.set_state(CART, Cart(1))
        await m.set_state(CART, Cart(2))
        states = home / "states"
        for bits in (0o500, 0o000):
            states.chmod(bits)
            for call in (lambda: m.set_state(PROFILE, Profile(3)), lambda: m.delete_state(CART)):
                try:
                    await call()
                except BackendUnavailableError as error:
                    assert "this user may not use it" in str(error), error
                else:
                    raise AssertionError("that had to fail")
        states.chmod(0o700)
        assert await m.get_state(CART) == Cart(2)
        await m.set_state(PROFILE, Profile(4))
    home.chmod(0o000)
    try:
        StateManagerDisk(home, **mode)
    except BackendUnavailableError as error:
        assert "this user may not use it" in str(error), error
    else:
        raise AssertionError("that had to fail")
    home.chmod(0o700)
    async with StateManagerDisk(home, **mode) as m:
        assert await m.get_state(CART) == Cart(2)
        assert await m.get_state(PROFILE) == Profile(4)
asyncio.run(main())
"""


@pytest.mark.parametrize("mode", ["shared", "exclusive"])
@pytest.mark.parametrize("program", [TOO_MANY_FILES, TOO_MANY_FILES_FIRST], ids=["later", "first"])
def test_too_many_open_files(mode: str, program: str, tmp_path: Path):
    """Without a free descriptor each call is an error, never a fresh state, and never a hang."""
    run(program, tmp_path, MODES[mode])


@pytest.mark.parametrize("mode", ["shared", "exclusive"])
def test_no_permission(mode: str, tmp_path: Path):
    """Another user's directory, or one that was closed, is an error that says so.

    Root may do anything, so a child takes the rights of nobody.
    """
    if os.geteuid() == 0:
        tmp_path.chmod(0o777)
        for path in tmp_path.parents:
            if path == Path(tempfile.gettempdir()):
                break
            path.chmod(0o711)
    run(WITHOUT_PERMISSION, tmp_path, MODES[mode])
