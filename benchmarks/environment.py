"""Facts about the machine and the interpreter that measure, for the report."""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.paths import ROOT

PACKAGES = ("statemgr", "msgspec", "msgpack", "redis", "hiredis", "reflex", "litestar", "diskcache")


def describe() -> dict[str, Any]:
    """Describe the running interpreter and its machine."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def file_system_of(directory: Path) -> str:
    """Return the type of the file system that a directory lies on, "unknown" where nobody tells."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    types = {}  # of two mounts in one place the later one counts
    for line in mounts:
        _, place, kind, *_ = line.split()
        types[Path(place.replace(r"\040", " "))] = kind
    path = directory.resolve()
    return next((types[place] for place in (path, *path.parents) if place in types), "unknown")


def describe_other(python: str) -> dict[str, Any]:
    """Describe another interpreter, which runs this module."""
    done = subprocess.run(  # noqa: S603 (our own module)
        [python, "-m", "benchmarks.environment"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(describe()))
