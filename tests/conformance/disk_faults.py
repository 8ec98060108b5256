"""Tests that need more than the kit can make happen: calls of the system that fail, or wait."""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from statemgr import StateManager, StateToken
from statemgr.backends.disk import files
from statemgr.errors import BackendUnavailableError, StateDecodeError
from statemgr.testing import Capability, Conformance
from statemgr.testing.conformance.base import increment
from statemgr.testing.conformance.states import Cart, Counter
from statemgr.testing.logs import logged

from .test_disk import DiskHarness

COUNTER, CART = StateToken("user-1", Counter), StateToken("user-1", Cart)
CALLS = {"open", "read", "write", "utime", "link", "replace", "unlink"}


class System:
    """Stand for the module `os` in files.py.

    Attributes:
        calls: How many of `CALLS` were made.
        fails_at: The numbers of those that fail.
        waits_in: One that waits, the next time, until `goes_on` is set.
        waits: Set when it does.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.fails_at: Any = range(0)
        self.waits_in = ""
        self.waits = threading.Event()
        self.goes_on = threading.Event()

    def __getattr__(self, name: str) -> Any:
        if name not in CALLS:
            return getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls in self.fails_at:
                if name == "write":
                    os.write(arguments[0], bytes(arguments[1])[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if name == self.waits_in:
                self.waits_in = ""
                self.waits.set()
                self.goes_on.wait()
            return getattr(os, name)(*arguments, **options)

        return call


@contextlib.contextmanager
def system() -> Iterator[System]:
    """Put a `System` in place of `os`."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in = System()
        patch.setattr(files, "os", stand_in)
        try:
            yield stand_in
        finally:
            stand_in.goes_on.set()


async def _purge(harness: DiskHarness, manager: StateManager) -> None:
    """Have a manager come to all that it might purge: each call waits for the trips before it."""
    for _ in range(20):
        await harness.clock.settle()
        await manager.has_state(StateToken("nobody", Counter))


class DiskFaults(Conformance):
    """The kit, and tests of the disk backend alone."""

    @pytest.mark.parametrize("several", [False, True])
    async def test_change_that_fails(self, harness: DiskHarness, several: bool) -> None:
        """Whichever call fails: after an error the old state is there, else the new one."""
        tokens = (COUNTER, CART) if several else (CART,)
        manager = other = await harness.open()
        if Capability.SHARED in harness.capabilities:
            other = await harness.open()
        number, fails = 0, True
        while fails:
            number += 1
            for token in tokens:
                await manager.set_state(token, token.cls(-number))
            expected = -number
            with system() as calls, contextlib.suppress(BackendUnavailableError):
                calls.fails_at = [number]
                async with manager.modify_states(*tokens) as states:
                    for token, state in zip(tokens, states, strict=True):
                        vars(state).update(vars(token.cls(number)))
                expected = number
            fails = calls.calls >= number
            wanted = tuple(token.cls(expected) for token in tokens)
            assert await other.get_states(*tokens) == wanted
            assert await manager.get_states(*tokens) == wanted
            async with manager.modify_states(*tokens) as states:
                assert states == wanted
            await manager.close()
            manager = await harness.open()
            if Capability.SHARED not in harness.capabilities:
                other = manager
            assert await manager.get_states(*tokens) == wanted
        assert number > len(tokens) * 3

    async def test_read_that_fails(self, harness: DiskHarness) -> None:
        """Is an error: no fresh state, nor one that a body then saves over the good one."""
        async with await harness.open() as manager:
            await manager.set_state(COUNTER, Counter(7))
        number, fails = 0, True
        while fails:
            number += 1
            manager = await harness.open()
            assert not await manager.has_state(StateToken("nobody", Counter))
            with system() as calls, contextlib.suppress(BackendUnavailableError):
                calls.fails_at = [number]
                assert await manager.get_state(COUNTER) == Counter(7)
            fails = calls.calls >= number
            with system() as calls, contextlib.suppress(BackendUnavailableError):
                calls.fails_at = [number]
                async with manager.modify_state(COUNTER) as counter:
                    assert counter == Counter(7)
            await manager.close()
        assert number > 2

    async def test_write_behind_that_fails(self, harness: DiskHarness) -> None:
        """What was acknowledged is written once it can be."""
        manager = await harness.open()
        await increment(manager, COUNTER)
        await harness.clock.settle()
        with system() as calls, logged() as records:
            calls.fails_at = range(1, 1000)
            await harness.advance(5)
            await harness.eventually(lambda: bool(records))
        await manager.close()
        manager = await harness.open()
        assert await manager.get_state(COUNTER) == Counter(1)

    async def test_write_behind_beside_a_write(self, harness: DiskHarness) -> None:
        """What is tried again does not come after a newer change that was written at once."""
        manager = await harness.open()
        await increment(manager, COUNTER)
        await harness.clock.settle()
        with system() as calls, logged() as records:
            calls.fails_at = range(1, 1000)
            await harness.advance(5)
            await harness.eventually(lambda: bool(records))
        await harness.clock.settle()  # it waits now to try again
        with system() as calls:
            calls.waits_in = "write"
            task = harness.spawn(increment(manager, COUNTER))
            await harness.eventually(calls.waits.is_set)
            await harness.advance(5)
            await harness.clock.settle()
            calls.goes_on.set()
            await task
        await manager.close()
        manager = await harness.open()
        assert await manager.get_state(COUNTER) == Counter(2)

    async def test_crash_beside_what_is_put_off(self, harness: DiskHarness) -> None:
        """A change of several states is in files as a whole when a later one of them is."""
        manager = await harness.open()
        await manager.set_state(COUNTER, Counter(1))
        await manager.set_state(CART, Cart(["apple"]))
        await manager.close()
        manager = await harness.open()
        async with manager.modify_states(COUNTER, CART) as (counter, cart):
            counter.value, cart.items = 2, []
        await harness.clock.settle()
        with system() as calls, logged() as records:
            calls.fails_at = range(1, 1000)
            await harness.advance(5)
            await harness.eventually(lambda: bool(records))
        await manager.set_state(COUNTER, Counter(3))
        shutil.copytree(harness.directory / "store", harness.directory / "after" / "store")
        after = type(harness)(harness.directory / "after")
        found = await (await after.open()).get_states(COUNTER, CART)
        await after.close()
        assert found == (Counter(3), Cart())

    async def test_reader_of_a_file_that_is_used_again(self, harness: DiskHarness) -> None:
        """It does not see what was written there, and then not committed."""
        writer, reader = await harness.open(), await harness.open()
        for number in range(3):  # so that there are two files, which take turns
            await writer.set_state(COUNTER, Counter(number))
        with system() as calls:
            calls.waits_in = "read"
            task = harness.spawn(reader.get_state(COUNTER))
            await harness.eventually(calls.waits.is_set)
            await writer.set_state(COUNTER, Counter(3))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "replace", _refuse)
                with pytest.raises(BackendUnavailableError):
                    await writer.set_state(COUNTER, Counter(4))
            calls.goes_on.set()
            assert await task == Counter(3)

    @pytest.mark.parametrize("spoilt", [False, True])
    async def test_purge_of_what_has_not_expired(self, harness: DiskHarness, spoilt: bool) -> None:
        """The deadline in a record counts, and not its file's time; what is damaged is kept."""
        async with await harness.open() as manager:
            await manager.set_state(COUNTER, Counter(1))
        if spoilt:
            await harness.corrupt(COUNTER)
        os.utime(harness._path(COUNTER), (1, 1))
        manager = await harness.open()
        await _purge(harness, manager)
        assert await harness.read_raw(COUNTER) is not None
        assert manager.statistics().purged == 0

    async def test_purge_beside_another_manager(self, harness: DiskHarness) -> None:
        """What another process has locked is not purged, whatever its deadline."""
        one, two = await harness.open(), await harness.open()
        await one.set_state(COUNTER, Counter(1))
        async with one.modify_state(COUNTER):
            await harness.expire(COUNTER)
            await two._trip(two._records.purging([harness._path(COUNTER).name], 1e12))
            assert await harness.read_raw(COUNTER) is not None

    async def test_record_of_another_token(self, harness: DiskHarness) -> None:
        """A file that was put in another one's place is damage, not that token's state."""
        other = StateToken("user-2", Counter)
        async with await harness.open() as manager:
            await manager.set_state(COUNTER, Counter(1))
            await manager.set_state(other, Counter(2))
        record = await harness.read_raw(other)
        assert record is not None
        await harness.write_raw(COUNTER, record)
        manager = await harness.open()
        with pytest.raises(StateDecodeError):
            await manager.get_state(COUNTER)
        with pytest.raises(StateDecodeError):
            async with manager.modify_state(COUNTER):
                raise AssertionError("a body on another token's state")
        assert await manager.get_state(other) == Counter(2)


def _refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
