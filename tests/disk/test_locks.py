"""Locks between processes exclude, are fair, and are gone with who held them."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from statemgr import StateManagerDisk, StateToken
from statemgr.backends.disk import locks, manager
from statemgr.backends.disk.locks import DirectoryClaim, FileLocks, IdentLocks, RangeLocks
from statemgr.errors import SettingsError, StateDirectoryInUseError
from statemgr.testing import Conformance
from tests.conformance.test_disk import DiskHarness
from tests.disk.faults import descriptors, faulty_calls

IDENT, OTHER = "0123456789abcdef" * 2, "f" * 32
NAMESAKE = IDENT[:15] + "0" * 17  # the first 15 digits choose the lock

KINDS = [RangeLocks, FileLocks]
if sys.platform != "linux":
    KINDS.remove(RangeLocks)

MakeLocks = Callable[[], IdentLocks]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeLocks]:
    """Make what each process has of the locks of one directory."""
    made: list[IdentLocks] = []

    def one() -> IdentLocks:
        made.append(request.param(tmp_path))
        return made[-1]

    yield one
    for each in made:
        each.close()
    left = tmp_path / "locks"
    assert not left.exists() or not list(left.iterdir()), "nothing is left after use"


def test_a_lock_has_one_holder(make: MakeLocks):
    """Who asks for a lock that another process has does not get it, until that lets it go."""
    a, b = make(), make()
    assert a.take(IDENT, "a")
    assert not b.take(IDENT, "b")
    a.free(IDENT, "a")
    assert b.take(IDENT, "b")
    assert not a.take(IDENT, "a")
    b.free(IDENT, "b")
    a.free(IDENT, "a")


def test_a_lock_has_one_owner_in_a_manager(make: MakeLocks):
    """Two owners of one process exclude each other as two processes do."""
    a = make()
    assert a.take(IDENT, "a")
    assert not a.take(IDENT, "b")
    assert not a.take_briefly(IDENT, "b")
    a.free(IDENT, "b")
    assert not a.take(IDENT, "b"), "only its owner lets a lock go"
    a.free(IDENT, "a")
    assert a.take(IDENT, "b")
    a.free(IDENT, "b")


def test_idents_have_locks_of_their_own(make: MakeLocks):
    a, b = make(), make()
    assert a.take(IDENT, "a")
    assert b.take(OTHER, "b")
    a.free(IDENT, "a")
    assert not a.take(OTHER, "a")
    b.free(OTHER, "b")
    a.free(OTHER, "a")


def test_idents_whose_digests_begin_alike_share_a_lock(make: MakeLocks):
    """They exclude each other: less goes at once, and nothing goes wrong."""
    a, b = make(), make()
    assert a.take(IDENT, "a")
    assert not a.take(NAMESAKE, "x")
    assert not b.take(NAMESAKE, "b")
    assert b.is_in_use(NAMESAKE)
    a.free(IDENT, "a")
    assert b.take(NAMESAKE, "b")
    assert not a.take(IDENT, "a")
    b.free(NAMESAKE, "b")
    a.free(IDENT, "a")


def test_who_waits_gets_in_before_the_last_holder(make: MakeLocks):
    """The gate is the waiter's: the holder that lets the lock go cannot take it again first."""
    a, b = make(), make()
    assert a.take(IDENT, "a")
    assert not b.take(IDENT, "b")
    a.free(IDENT, "a")
    for _ in range(3):
        assert not a.take(IDENT, "a, again")
    assert b.take(IDENT, "b")
    for _ in range(3):
        assert not a.take(IDENT, "a, again")
    assert not b.take(IDENT, "b's next")
    b.free(IDENT, "b")
    assert a.take(IDENT, "a, again")
    a.free(IDENT, "a, again")


def test_two_processes_take_turns(make: MakeLocks):
    """However often both ask, each has the lock every other time."""
    processes = [make(), make()]
    holder = 0
    assert processes[0].take(IDENT, 0)
    for _ in range(20):
        waiter = 1 - holder
        assert not processes[waiter].take(IDENT, waiter)
        processes[holder].free(IDENT, holder)
        assert not processes[holder].take(IDENT, holder)
        assert processes[waiter].take(IDENT, waiter)
        holder = waiter
    processes[holder].free(IDENT, holder)
    processes[1 - holder].free(IDENT, 1 - holder)


def test_a_third_process_comes_after_the_one_that_waits(make: MakeLocks):
    """It finds the gate shut, and has no place; it gets in when the others are through."""
    a, b, c = make(), make(), make()
    assert a.take(IDENT, "a")
    assert not b.take(IDENT, "b")
    assert not c.take(IDENT, "c")
    a.free(IDENT, "a")
    assert not c.take(IDENT, "c")
    assert b.take(IDENT, "b")
    assert not c.take(IDENT, "c"), "it waits at the gate now"
    b.free(IDENT, "b")
    assert not b.take(IDENT, "b")
    assert c.take(IDENT, "c")
    c.free(IDENT, "c")


def test_who_gives_up_waiting_opens_the_gate(make: MakeLocks):
    a, b = make(), make()
    assert a.take(IDENT, "a")
    assert not b.take(IDENT, "b")
    b.free(IDENT, "b")
    a.free(IDENT, "a")
    assert a.take(IDENT, "a")
    a.free(IDENT, "a")


def test_who_dies_waiting_opens_the_gate(make: MakeLocks):
    a, b = make(), make()
    assert a.take(IDENT, "a")
    assert not b.take(IDENT, "b")
    b.close()
    a.free(IDENT, "a")
    assert a.take(IDENT, "a")
    a.free(IDENT, "a")


def test_to_take_briefly_is_for_what_nobody_has_or_wants(make: MakeLocks):
    """A reader or a purge neither disturbs a holder nor gets in before one that waits."""
    a, b, reader = make(), make(), make()
    assert a.take(IDENT, "a")
    assert not reader.take_briefly(IDENT, "r")
    assert not b.take(IDENT, "b")
    a.free(IDENT, "a")
    assert not reader.take_briefly(IDENT, "r"), "b waits"
    assert not a.take_briefly(IDENT, "r"), "b waits"
    assert b.take(IDENT, "b")
    b.free(IDENT, "b")
    assert reader.take_briefly(IDENT, "r")
    assert not a.take(IDENT, "a")
    assert not b.take_briefly(IDENT, "r")
    reader.free(IDENT, "r")
    assert a.take(IDENT, "a")
    a.free(IDENT, "a")


def test_what_is_held_briefly_is_not_in_use(make: MakeLocks):
    """A state whose lock a body has, or waits for, lives; one that is being purged does not."""
    a, b, c = make(), make(), make()
    assert not c.is_in_use(IDENT)
    assert a.take_briefly(IDENT, "a")
    assert a.is_in_use(IDENT)
    assert not c.is_in_use(IDENT)
    assert not b.take(IDENT, "b")
    assert c.is_in_use(IDENT), "b waits"
    a.free(IDENT, "a")
    assert b.take(IDENT, "b")
    assert c.is_in_use(IDENT), "b has it"
    b.free(IDENT, "b")
    assert not c.is_in_use(IDENT)


def test_to_free_is_idempotent(make: MakeLocks):
    """Also for who never asked, and when somebody else has the lock."""
    a, b = make(), make()
    a.free(IDENT, "a")
    assert a.take(IDENT, "a")
    a.free(IDENT, "a")
    a.free(IDENT, "a")
    assert b.take(IDENT, "b")
    a.free(IDENT, "a")
    assert not a.take(IDENT, "a")
    b.free(IDENT, "b")
    a.free(IDENT, "a")


def test_closing_lets_everything_go(make: MakeLocks):
    before = descriptors()
    a, b = make(), make()
    assert a.take(IDENT, "a")
    assert a.take_briefly(OTHER, "a2")
    a.close()
    a.close()
    for ident in (IDENT, OTHER):
        assert b.take(ident, ident)
        b.free(ident, ident)
    b.close()
    assert descriptors() <= before


@pytest.mark.parametrize("call", ["take", "take_briefly", "free", "is_in_use"])
def test_each_call_of_the_system_fails_once(
    call: str, make: MakeLocks, monkeypatch: pytest.MonkeyPatch
):
    """A call that fails leaves neither an owner nor a lock that the next call cannot have."""
    faults = faulty_calls(monkeypatch)
    a, b = make(), make()
    before = descriptors()
    for number in range(1, 100):
        if call == "free":
            assert a.take(IDENT, "a")
        faults.arm(number, anywhere=True)
        try:
            getattr(a, call)(*((IDENT,) if call == "is_in_use" else (IDENT, "a")))
        except OSError:
            assert call != "free", "what was done under the lock is done"
        fired = faults.disarm()
        a.free(IDENT, "a")
        assert a.take(IDENT, "again"), faults.failed
        assert not b.take(IDENT, "b")
        a.free(IDENT, "again")
        assert b.take(IDENT, "b"), faults.failed
        b.free(IDENT, "b")
        assert descriptors() <= before, faults.failed
        if not fired:
            break
    assert number > 1


# Other processes

CHILD = """
import os, sys
from pathlib import Path
from statemgr.backends.disk import locks
held = getattr(locks, sys.argv[1])(Path(sys.argv[2]))
print(held.take(sys.argv[3], "child"), flush=True)
sys.stdin.readline()
"""


class Child:
    """Another process that asks for a lock, and keeps what it got until it is killed."""

    def __init__(self, kind: type[IdentLocks], directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, kind.__name__, str(directory), IDENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._stdout: IO[str] = self._process.stdout
        self.has_it = self._stdout.readline() == "True\n"

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


@pytest.mark.parametrize("kind", KINDS)
def test_locks_are_gone_with_a_process_that_is_killed(kind: type[IdentLocks], tmp_path: Path):
    """So is its place among those who wait."""
    ours = kind(tmp_path)
    holder = Child(kind, tmp_path)
    assert holder.has_it
    assert not ours.take(IDENT, "ours")
    ours.free(IDENT, "ours")
    waiter = Child(kind, tmp_path)
    assert not waiter.has_it
    holder.kill()
    assert not ours.take(IDENT, "ours"), "the other one waits"
    waiter.kill()
    assert ours.take(IDENT, "ours")
    ours.free(IDENT, "ours")
    ours.close()


FORK = """
import os, sys, warnings
from pathlib import Path
from statemgr.backends.disk import locks
directory, ident = Path(sys.argv[2]), sys.argv[3]
kind = getattr(locks, sys.argv[1])

def can(call):
    try:
        return bool(call())
    except Exception as error:
        return type(error).__name__

claim = locks.DirectoryClaim(directory / "lock", exclusive=True)
ours = kind(directory)
assert ours.take(ident, "parent")
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    can(lambda: ours.free(ident, "parent"))  # as a finally of the parent's would
    ours.close()
    claim.close()
    os.write(ready[1], b"1")
    os.read(go[0], 1)  # it lives on
    os._exit(0)
os.read(ready[0], 1)
other = kind(directory)
print("freed by the child:", can(lambda: other.take(ident, "other")))
print("claim freed by the child:",
      can(lambda: locks.DirectoryClaim(directory / "lock", exclusive=True)))
other.free(ident, "other")
ours.free(ident, "parent")
ours.close()
claim.close()
print("free, though the child lives:", can(lambda: other.take(ident, "other")))
print("claim free, though the child lives:",
      can(lambda: locks.DirectoryClaim(directory / "lock", exclusive=True)))
os.write(go[1], b"1")
os.waitpid(child, 0)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_child_neither_holds_nor_frees_locks(kind: type[IdentLocks], tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", FORK, kind.__name__, str(tmp_path), IDENT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr
    assert done.stdout.splitlines() == [
        "freed by the child: False",
        "claim freed by the child: StateDirectoryInUseError",
        "free, though the child lives: True",
        "claim free, though the child lives: True",
    ]


# The directory's claim


def test_a_directory_is_shared_or_one_managers_alone(tmp_path: Path):
    """The claim is refused in either order, and free again after closing."""
    before = descriptors()
    shared = DirectoryClaim(tmp_path / "lock", exclusive=False)
    also = DirectoryClaim(tmp_path / "lock", exclusive=False)
    with pytest.raises(StateDirectoryInUseError) as raised:
        DirectoryClaim(tmp_path / "lock", exclusive=True)
    assert raised.value.directory == str(tmp_path)
    shared.close()
    also.close()
    alone = DirectoryClaim(tmp_path / "lock", exclusive=True)
    for exclusive in (False, True):
        with pytest.raises(StateDirectoryInUseError):
            DirectoryClaim(tmp_path / "lock", exclusive=exclusive)
    alone.close()
    alone.close()
    DirectoryClaim(tmp_path / "lock", exclusive=False).close()
    assert descriptors() <= before


async def test_without_file_locks_a_directory_is_one_managers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Sharing is refused with the reason; `exclusive` works, though nobody can check it."""
    monkeypatch.setattr(locks, "fcntl", None)
    before = descriptors()
    with pytest.raises(SettingsError, match="disk_exclusive=True") as raised:
        StateManagerDisk(tmp_path)
    assert raised.value.variable == "disk_exclusive"
    assert descriptors() <= before
    token = StateToken("somebody", list)
    async with StateManagerDisk(tmp_path, exclusive=True) as m:
        async with m.modify_state(token) as state:
            state.append(1)
        assert await m.get_state(token) == [1]
        assert await m.delete_state(token) is True


# The whole contract with the locks of other platforms


class FileLocksHarness(DiskHarness):
    async def make(self, **options: Any) -> StateManagerDisk:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(manager, "ident_locks", FileLocks)
            made = StateManagerDisk(self.directory / "store", **options)
        assert isinstance(made._idents, FileLocks)
        return made


class TestFileLocks(Conformance):
    harness_type = FileLocksHarness
