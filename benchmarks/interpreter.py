"""Chooses the interpreter that measures, and makes one that has the peers.

All measurements of a run come from one interpreter and one set of installed packages: a ratio
between two of them would also compare their dependencies.
"""

import hashlib
import importlib.util
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence

from benchmarks.paths import ROOT

VENV = ROOT / ".venv-bench"

_STAMP = VENV / "statemgr-bench"
"""Holds the fingerprint of what was installed; written last."""


class PreparationError(Exception):
    """The interpreter with the peers could not be made."""


def interpreter_for(modules: Iterable[str], tell: Callable[[str], None]) -> str:
    """Return an interpreter that can import the modules.

    The running one if it can; else that of `.venv-bench`, which is made at the first need and
    again when the dependencies in pyproject.toml change.

    Args:
        modules: Names of top-level modules.
        tell: Told in a line what is being done.

    Raises:
        PreparationError: Making it failed, or it still lacks a module.
    """
    missing = sorted({name for name in modules if importlib.util.find_spec(name) is None})
    if not missing:
        return sys.executable
    python = VENV / "bin" / "python"
    fingerprint = _fingerprint()
    if not _STAMP.exists() or _STAMP.read_text(encoding="utf-8") != fingerprint:
        tell(f"{', '.join(missing)} is not installed here: making {VENV.name} (once)")
        _call([sys.executable, "-m", "venv", "--clear", str(VENV)])
        _call(
            [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-e", ".[bench]"]
        )
        _STAMP.write_text(fingerprint, encoding="utf-8")
    for name in missing:
        _call([str(python), "-c", f"import {name}"])
    tell(f"measuring everything with the interpreter of {VENV.name}")
    return str(python)


def _fingerprint() -> str:
    """Sum up what the installation depends on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    parts = [sys.version, project["dependencies"], project["optional-dependencies"]]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _call(command: Sequence[str]) -> None:
    """Run a command, its output going to standard error.

    Raises:
        PreparationError: It failed.
    """
    done = subprocess.run(  # noqa: S603 (commands of this module)
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False
    )
    if done.returncode != 0:
        what = " ".join(command[1:])
        raise PreparationError(
            f"cannot prepare {VENV.name}: `python {what}` ended with exit code {done.returncode}"
        )
