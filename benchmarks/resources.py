"""What the running process uses."""

import gc
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter


def peak_memory() -> int:
    """Return the peak of the resident memory of this process, in bytes.

    Linux keeps it per process image in `VmHWM`. The `ru_maxrss` used elsewhere also counts the
    process that this one was started from, up to the moment of its start.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return kilobytes if sys.platform == "darwin" else kilobytes * 1024
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@contextmanager
def collector_time() -> Iterator[Callable[[], float]]:
    """Give what returns the seconds that the garbage collector has taken within the block."""
    total = started = 0.0

    def watch(phase: str, info: object) -> None:
        nonlocal total, started
        if phase == "start":
            started = perf_counter()
        else:
            total += perf_counter() - started

    gc.callbacks.append(watch)
    try:
        yield lambda: total
    finally:
        gc.callbacks.remove(watch)
