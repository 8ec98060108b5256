"""Rule 11: logs and errors tell neither idents nor states; and a long body is logged."""
# a whole body raises here, or is refused

import logging
import traceback

import pytest

from statemgr.errors import LockReentryError, LockTimeoutError, StateManagerError
from statemgr.testing.conformance.base import Contract, increment, requires, waiting
from statemgr.testing.conformance.states import Cart, Counter
from statemgr.testing.faults import faulty_token
from statemgr.testing.harness import Capability, Harness
from statemgr.testing.logs import logged
from statemgr.token import StateToken

IDENT = "ada@example.com"  # percent-encoded in keys, which must not be told either
VALUE = "the-value-of-a-state"


def _warnings(records: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in records if record.levelno == logging.WARNING]


class SecretsContract(Contract):
    """What is said, and what is not."""

    async def test_waiting_errors_tell_no_ident(self, harness: Harness) -> None:
        """Neither the timeout's nor the reentry's message names it."""
        manager = await harness.open()
        token = StateToken(IDENT, Counter)
        async with manager.modify_state(token):
            modification = manager.modify_state(token, timeout=5.0)
            task = harness.spawn(modification.__aenter__())
            await waiting(harness, manager, 1)
            await harness.advance(6)
            with pytest.raises(LockTimeoutError) as timeout:
                await task
            with pytest.raises(LockReentryError) as reentry:
                await increment(manager, token)
        for error in (timeout.value, reentry.value):
            _assert_silent(str(error))

    @requires(Capability.ROLLBACK)
    async def test_errors_and_logs_tell_no_secret(self, harness: Harness) -> None:
        """Not for a state that cannot be saved, is too large, or cannot be decoded."""
        manager = await harness.open(max_state_size=1000)
        cart = StateToken(IDENT, Cart)
        faulty, faults = faulty_token(IDENT, Counter)
        said: list[str] = []
        with logged() as records:
            for items in ([VALUE, object()], [VALUE] * 100):
                with pytest.raises(StateManagerError) as refused:
                    await manager.set_state(cart, Cart(items))
                said.append(str(refused.value))
                with pytest.raises(StateManagerError) as refused:
                    async with manager.modify_state(cart) as state:
                        state.items = items
                said.append(str(refused.value))
            await manager.set_state(faulty, Counter(1))
            faults.decode = KeyError("version")
            with pytest.raises(StateManagerError) as refused:
                await manager.get_state(faulty)
            said.append(str(refused.value))
        assert len(said) == 5
        said += [_text(record) for record in records]
        for text in said:
            _assert_silent(text)

    @requires(Capability.RAW_RECORDS)
    async def test_spoilt_record_tells_no_secret(self, harness: Harness) -> None:
        """Neither from its key nor from its bytes."""
        token = StateToken(IDENT, Cart)
        async with await harness.open() as manager:
            await manager.set_state(token, Cart([VALUE]))
        await harness.write_raw(token, b"\xc1 " + VALUE.encode())
        manager = await harness.open()
        with logged() as records, pytest.raises(StateManagerError) as refused:
            await manager.get_state(token)
        assert records
        for text in (str(refused.value), *(_text(record) for record in records)):
            _assert_silent(text)

    async def test_idents_are_told_on_request(self, harness: Harness) -> None:
        """With `log_idents` messages name the ident's key."""
        manager = await harness.open(log_idents=True)
        token = StateToken("user-1", Counter)
        async with manager.modify_state(token):
            with pytest.raises(LockReentryError, match="user-1"):
                await increment(manager, token)

    async def test_digests_agree_under_one_key(self, harness: Harness) -> None:
        """With the same `log_key` an ident has the same name in every manager's messages."""
        names = []
        for log_key in ("one", "one", "two", None):
            async with await harness.open(log_key=log_key) as manager:
                token = StateToken("user-1", Counter)
                async with manager.modify_state(token):
                    with pytest.raises(LockReentryError) as reentry:
                        await increment(manager, token)
                names.append(str(reentry.value))
        assert names[0] == names[1]
        assert len(set(names)) == 3

    async def test_long_body_is_logged_once(self, harness: Harness) -> None:
        """With its time and the threshold, without the ident; also when it raises."""
        manager = await harness.open(lock_warning_threshold=2.0)
        token = StateToken(IDENT, Counter)
        with logged() as records:
            async with manager.modify_state(token):
                await harness.advance(3.0)
                await harness.clock.settle()
        (warning,) = _warnings(records)
        assert "3.0" in warning
        assert "2" in warning
        _assert_silent(warning)
        with logged() as records, pytest.raises(KeyError):
            async with manager.modify_state(token):
                await harness.advance(3.0)
                raise KeyError
        assert len(_warnings(records)) == 1

    async def test_short_body_is_not_logged(self, harness: Harness) -> None:
        """Nor is a long wait before a short body."""
        manager = await harness.open(lock_warning_threshold=2.0)
        token = StateToken("user-1", Counter)
        modification = manager.modify_state(token)
        with logged() as records:
            async with modification:
                task = harness.spawn(increment(manager, token))
                await waiting(harness, manager, 1)
                await harness.advance(1.5)
                task_two = harness.spawn(increment(manager, token))
                await waiting(harness, manager, 2)
            await task
            await task_two
            await harness.advance(1.5)
        assert _warnings(records) == []
        with logged() as records:
            async with manager.modify_state(token):
                task = harness.spawn(increment(manager, token))
                await waiting(harness, manager, 1)
                await harness.advance(3.0)
            await task
        assert len(_warnings(records)) == 1  # the body's own, not the waiter's


def _assert_silent(text: str) -> None:
    for secret in (IDENT, "ada%40", "ada@", VALUE):
        assert secret not in text


def _text(record: logging.LogRecord) -> str:
    """Return what a handler would write: the message, and the error with its traceback."""
    error = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
    return record.getMessage() + error
