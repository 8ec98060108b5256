"""What the running process uses."""

import resource
import sys
from pathlib import Path


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
