"""Every error has one root, carries what it knows, and can be sent to another process."""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from statemgr import errors
from statemgr.errors import StateManagerError

EXAMPLES: list[tuple[StateManagerError, dict[str, Any]]] = [
    (errors.StateManagerError("m"), {}),
    (
        errors.SettingsError("m", variable="STATEMGR_MODE", allowed="memory"),
        {"variable": "STATEMGR_MODE", "allowed": "memory"},
    ),
    (errors.InvalidTokenError("m"), {}),
    (errors.StateDefaultError("m", key="u/m:C"), {"key": "u/m:C"}),
    (errors.StateEncodeError("C.a", "a socket"), {"path": "C.a", "reason": "a socket"}),
    (errors.StateDecodeError("damaged", key="u/m:C"), {"reason": "damaged", "key": "u/m:C"}),
    (errors.StateTooLargeError("m", size=2, limit=1), {"size": 2, "limit": 1}),
    (errors.LockTimeoutError("m", lock_key="u", timeout=1.5), {"lock_key": "u", "timeout": 1.5}),
    (errors.LockExpiredError("m", lock_key="u"), {"lock_key": "u"}),
    (errors.LockReentryError("m", lock_key="u"), {"lock_key": "u"}),
    (errors.CommitUncertainError("m", lock_key="u"), {"lock_key": "u"}),
    (errors.BackendUnavailableError("m"), {"address": None, "reason": None}),
    (
        errors.BackendUnavailableError("m", address="h:1", reason="r"),
        {"address": "h:1", "reason": "r"},
    ),
    (errors.StateDirectoryInUseError("m", directory="/d"), {"directory": "/d"}),
    (errors.StateManagerClosedError("m"), {}),
    (errors.WrongLoopError("m"), {}),
    (errors.WrongProcessError("m"), {}),
    (errors.EventHandlerError("m"), {}),
    (errors.UnknownEventError("m", name="add"), {"name": "add"}),
    (errors.EventPayloadError("m", field="n"), {"field": "n"}),
    (errors.EventTimeoutError("m", name="add", timeout=1.5), {"name": "add", "timeout": 1.5}),
    (errors.EventQueueFullError("m"), {}),
    (errors.EventDeadlockError("m"), {}),
    (errors.EventProcessorStoppedError("m"), {}),
]
LEAVES = {
    leaf
    for leaf in vars(errors).values()
    if inspect.isclass(leaf) and leaf.__module__ == errors.__name__
}
each_error = pytest.mark.parametrize(
    ("error", "fields"), EXAMPLES, ids=[type(error).__name__ for error, _ in EXAMPLES]
)


def _unpickled(error: BaseException) -> BaseException:
    return pickle.loads(pickle.dumps(error))  # noqa: S301  # made one line ago


class TestErrors:
    def test_every_error_has_the_one_root_and_a_docstring(self) -> None:
        assert len(LEAVES) > 15
        for leaf in LEAVES:
            assert issubclass(leaf, StateManagerError)
            assert leaf.__name__.endswith("Error")
            assert leaf.__doc__

    def test_every_error_has_an_example_here(self) -> None:
        assert {type(error) for error, _ in EXAMPLES} == LEAVES

    def test_what_design_promises_is_there(self) -> None:
        assert issubclass(errors.InvalidTokenError, ValueError)
        assert issubclass(errors.WrongProcessError, errors.WrongLoopError)
        assert issubclass(errors.EventHandlerError, ValueError)
        assert issubclass(errors.EventTimeoutError, TimeoutError)

    @each_error
    def test_an_error_carries_its_fields(
        self, error: StateManagerError, fields: dict[str, Any]
    ) -> None:
        assert {name: getattr(error, name) for name in fields} == fields
        assert str(error)

    @each_error
    @pytest.mark.parametrize("copied", [_unpickled, copy.copy, copy.deepcopy])
    def test_a_copy_of_an_error_is_the_same_error(
        self,
        error: StateManagerError,
        fields: dict[str, Any],
        copied: Callable[[StateManagerError], StateManagerError],
    ) -> None:
        other = copied(error)
        assert type(other) is type(error)
        assert (str(other), other.args) == (str(error), error.args)
        assert {name: getattr(other, name) for name in fields} == fields

    def test_a_copy_keeps_notes(self) -> None:
        error = errors.LockTimeoutError("m", lock_key="u", timeout=1.0)
        error.add_note("while saving the cart")
        assert _unpickled(error).__notes__ == ["while saving the cart"]

    def test_an_encode_error_says_path_and_reason(self) -> None:
        error = errors.StateEncodeError("Cart.items[3].handle", "a socket cannot be saved")
        assert str(error) == "Cart.items[3].handle: a socket cannot be saved"

    def test_a_decode_error_may_not_know_its_key_yet(self) -> None:
        assert errors.StateDecodeError("damaged").key is None
