"""Rule 7: a record that cannot be decoded is kept and logged, and never becomes a fresh state."""

import logging

import pytest

from statemgr.errors import StateDecodeError
from statemgr.manager import StateManager
from statemgr.testing.conformance.base import Contract, assert_idle, requires
from statemgr.testing.conformance.states import Counter
from statemgr.testing.faults import faulty_token
from statemgr.testing.harness import Capability, Harness
from statemgr.testing.logs import logged
from statemgr.token import AnyToken, StateToken


def _errors(records: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in records if record.levelno >= logging.ERROR]


async def _spoil(harness: Harness, token: AnyToken) -> bytes:
    """Store a state, and spoil its record behind a closed manager's back; return what it is."""
    async with await harness.open() as manager:
        await manager.set_state(token, Counter(7))
    await harness.corrupt(token)
    record = await harness.read_raw(token)
    assert record is not None
    return record


async def _assert_refused(manager: StateManager, token: AnyToken) -> None:
    for _ in range(2):
        with pytest.raises(StateDecodeError) as caught:
            await manager.get_state(token)
        assert caught.value.key == token.cache_key
        with pytest.raises(StateDecodeError):
            await manager.get_states(token)
        with pytest.raises(StateDecodeError) as caught:
            async with manager.modify_state(token):
                raise AssertionError("a body without a state")
        assert caught.value.key == token.cache_key


class DecodingContract(Contract):
    """`on_decode_error`, and what is kept."""

    @requires(Capability.ROLLBACK)
    async def test_undecodable_state_raises_each_time(self, harness: Harness) -> None:
        """It is left as it is, and read again once it can be; the lock is free."""
        manager = await harness.open()
        token, faults = faulty_token("user-1", Counter)
        await manager.set_state(token, Counter(7))
        faults.decode = ValueError("no such version")
        await _assert_refused(manager, token)
        assert await manager.has_state(token)
        await assert_idle(harness, manager, StateToken("user-1", list))
        faults.decode = None
        assert await manager.get_state(token) == Counter(7)

    @requires(Capability.ROLLBACK)
    async def test_undecodable_state_is_logged(self, harness: Harness) -> None:
        """As an error with the class and the reason, without the ident."""
        manager = await harness.open()
        token, faults = faulty_token("secret-ident", Counter)
        await manager.set_state(token, Counter(7))
        faults.decode = StateDecodeError("the checksum is wrong")
        with logged() as records, pytest.raises(StateDecodeError):
            await manager.get_state(token)
        (message,) = _errors(records)
        assert "the checksum is wrong" in message
        assert f"{Counter.__module__}:{Counter.__qualname__}" in message
        assert "secret-ident" not in message

    @requires(Capability.ROLLBACK)
    async def test_undecodable_state_is_reset(self, harness: Harness) -> None:
        """With "reset" a reader and a body go on with a fresh state, and it is logged."""
        manager = await harness.open(on_decode_error="reset")
        token, faults = faulty_token("user-1", Counter)
        await manager.set_state(token, Counter(7))
        faults.decode = ValueError("no such version")
        with logged() as records:
            assert await manager.get_state(token) == Counter()
            async with manager.modify_state(token) as counter:
                assert counter == Counter()
                counter.value = 1
        assert _errors(records)
        faults.decode = None
        assert await manager.get_state(token) == Counter(1)

    @requires(Capability.RAW_RECORDS)
    async def test_spoilt_record_raises_each_time(self, harness: Harness) -> None:
        """Bytes that are no record are an error, logged, and stay where they are."""
        token = StateToken("user-1", Counter)
        spoilt = await _spoil(harness, token)
        manager = await harness.open()
        with logged() as records:
            await _assert_refused(manager, token)
        assert len(_errors(records)) >= 2
        assert await harness.read_raw(token) == spoilt
        other = StateToken("user-2", Counter)
        assert await manager.get_state(other) == Counter()

    @requires(Capability.RAW_RECORDS)
    async def test_spoilt_record_is_set_aside_by_a_body(self, harness: Harness) -> None:
        """With "reset" a body starts afresh, and the bytes are kept elsewhere."""
        token = StateToken("user-1", Counter)
        spoilt = await _spoil(harness, token)
        manager = await harness.open(on_decode_error="reset")
        async with manager.modify_state(token) as counter:
            assert counter == Counter()
            counter.value = 1
        assert await manager.get_state(token) == Counter(1)
        assert spoilt in await harness.kept()

    @requires(Capability.RAW_RECORDS)
    async def test_spoilt_record_is_kept_by_a_reader(self, harness: Harness) -> None:
        """With "reset" a reader goes on, and the bytes are kept: here, or elsewhere."""
        token = StateToken("user-1", Counter)
        spoilt = await _spoil(harness, token)
        manager = await harness.open(on_decode_error="reset")
        assert await manager.get_state(token) == Counter()
        assert spoilt in [await harness.read_raw(token), *await harness.kept()]

    @requires(Capability.RAW_RECORDS)
    async def test_empty_record_is_no_fresh_state(self, harness: Harness) -> None:
        """A record of no bytes is spoilt like any other."""
        token = StateToken("user-1", Counter)
        await _spoil(harness, token)
        await harness.write_raw(token, b"")
        manager = await harness.open()
        await _assert_refused(manager, token)
