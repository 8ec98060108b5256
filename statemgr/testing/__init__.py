"""The contract as tests: run them on a backend, or move time in the tests of a program.

A backend's author writes a `Harness`, names it in a subclass of `Conformance`, and has the
whole contract run by pytest; `statemgr.testing.stateful` compares the backend with a model.
`ManualClock` is for anybody's tests: it is given to a manager as `clock`. Real servers are in
`statemgr.testing.servers`.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statemgr.testing.clock import ManualClock
    from statemgr.testing.conformance import Conformance
    from statemgr.testing.harness import Capability, Harness

__all__ = ["Capability", "Conformance", "Harness", "ManualClock"]

# Loaded at the first touch: the benchmarks use the servers, and have no pytest.
_HOMES = {
    "Capability": "statemgr.testing.harness",
    "Conformance": "statemgr.testing.conformance",
    "Harness": "statemgr.testing.harness",
    "ManualClock": "statemgr.testing.clock",
}

if find_spec("pytest") is not None:
    import pytest

    # Before the modules are imported: then their assertions show the values they compared.
    pytest.register_assert_rewrite(
        *(f"{__name__}.{name}" for name in ("conformance", "machine", "stateful"))
    )


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    needed = ("pytest", "pytest_asyncio", "hypothesis")
    if missing := [package for package in needed if find_spec(package) is None]:
        raise ImportError(
            f"statemgr.testing needs {' and '.join(missing)}: pip install 'statemgr[testing]'"
        )
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
