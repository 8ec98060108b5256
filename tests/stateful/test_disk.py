"""The disk backend beside a dict, in each of its modes."""

from conformance.test_disk import DebounceHarness, DiskHarness, ExclusiveHarness, FsyncHarness
from hypothesis import settings

from statemgr.testing.stateful import StoreMachine

# Each run makes a directory and a thread, and most calls are a trip to it.
FAST = settings(derandomize=True, deadline=None, max_examples=25, stateful_step_count=40)


class DiskMachine(StoreMachine):
    harness_type = DiskHarness


class FsyncMachine(StoreMachine):
    harness_type = FsyncHarness


class ExclusiveMachine(StoreMachine):
    harness_type = ExclusiveHarness


class DebounceMachine(StoreMachine):
    harness_type = DebounceHarness


TestDisk = DiskMachine.TestCase
TestDisk.settings = FAST
TestDiskFsync = FsyncMachine.TestCase
TestDiskFsync.settings = FAST
TestDiskExclusive = ExclusiveMachine.TestCase
TestDiskExclusive.settings = FAST
TestDiskDebounce = DebounceMachine.TestCase
TestDiskDebounce.settings = FAST
