"""What a file system refuses is an error to its caller, and the old record stays whole.

Each call that a change makes of the system fails in turn: the first, the second, and so on until
there are no more. An error means that nothing was saved, a success that all was.
"""

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from statemgr import StateManagerDisk, StateToken
from statemgr.backends.disk import locks, manager
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
            return True  # deleted already
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
            async with each.modify_state(CART, timeout=0) as _, asyncio.timeout(20):
                pass


async def each_call(
    directory: Path, faults: Faults, mode: dict[str, Any], name: str, **arm: Any
) -> int:
    """Let each call of a change fail in turn; return how many there are."""
    prepare, operate = CHANGES[name]
    trial = Trial(directory, faults, mode)
    async with opened(directory, **mode) as first:
        managers = [first]
        if trial.shared:
            other = StateManagerDisk(directory, clock=ManualClock())
            await other.has_state(NOBODY)
            managers.append(other)
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
            assert descriptors() == before, faults.failed
            check_files(directory)
            if not fired:
                break
        for each in managers[1:]:
            await each.close()
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
