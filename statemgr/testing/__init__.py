"""The contract as tests: run them on a backend, or move time in the tests of a program.

A backend's author writes a `Harness`, names it in a subclass of `Conformance`, and has the
whole contract run by pytest; `statemgr.testing.stateful` compares the backend with a model.
`ManualClock` is for anybody's tests: it is given to a manager as `clock`.
"""

from importlib.util import find_spec

_missing = [name for name in ("pytest", "pytest_asyncio", "hypothesis") if find_spec(name) is None]
if _missing:
    raise ImportError(
        f"statemgr.testing needs {' and '.join(_missing)}: pip install 'statemgr[testing]'"
    )

import pytest  # noqa: E402  # only once it is known to be there

# Before the modules are imported: then their assertions show the values they compared.
pytest.register_assert_rewrite(
    *(f"{__name__}.{name}" for name in ("conformance", "machine", "stateful"))
)

from statemgr.testing.clock import ManualClock  # noqa: E402
from statemgr.testing.conformance import Conformance  # noqa: E402
from statemgr.testing.harness import Capability, Harness  # noqa: E402

__all__ = ["Capability", "Conformance", "Harness", "ManualClock"]
