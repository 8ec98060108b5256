"""What `StateManager` does the same on every backend, shown on one that waits at each hook."""

import asyncio
import logging
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest

from statemgr import Settings, StateInfo, StateManager, StateModification, StateToken, Statistics
from statemgr.errors import (
    InvalidTokenError,
    SettingsError,
    StateDecodeError,
    StateEncodeError,
    StateManagerClosedError,
    StateTooLargeError,
    WrongLoopError,
)
from statemgr.testing.clock import ManualClock


@dataclass
class Cart:
    items: list[str] = field(default_factory=list)


@dataclass
class Profile:
    name: str = ""


CART, PROFILE = StateToken("user-1", Cart), StateToken("user-1", Profile)


class Slow(StateManager):
    """A backend that gives the loop a turn in each hook and notes what it was asked for.

    Attributes:
        calls: The hooks that were called.
        records: Payloads by cache key.
        failures: What a hook raises, by the hook's name.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(clock=ManualClock(), **options)
        self.calls: list[str] = []
        self.records: dict[str, bytes] = {}
        self.failures: dict[str, BaseException] = {}

    @property
    def clock(self) -> ManualClock:
        assert isinstance(self._clock, ManualClock)
        return self._clock

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        await asyncio.sleep(0)
        if name in self.failures:
            raise self.failures[name]

    def _load(self, token: StateToken[Any]) -> Any:
        record = self.records.get(token.cache_key)
        if record is None:
            return token.create()
        try:
            return self._decode(token, record)
        except StateDecodeError as error:
            return self._recover(token, error)

    async def _begin(self, modification: StateModification[Any]) -> None:
        await self._called("begin")
        modification.load_states(self._load)

    async def _commit(
        self, modification: StateModification[Any], payloads: Sequence[bytes]
    ) -> None:
        await self._called("commit")
        for token, payload in zip(modification.tokens, payloads, strict=True):
            self.records[token.cache_key] = payload

    async def _abort(self, modification: StateModification[Any]) -> None:
        await self._called("abort")

    async def _write(self, modification: StateModification[Any]) -> None:
        await self._called("write")
        payload = self._encode(modification.token, modification.state)
        self.records[modification.token.cache_key] = payload

    async def _delete(self, modification: StateModification[Any]) -> bool:
        await self._called("delete")
        return self.records.pop(modification.token.cache_key, None) is not None

    async def _read(self, tokens: Sequence[StateToken[Any]]) -> Sequence[Any]:
        await self._called("read")
        return [self._load(token) for token in tokens]

    async def _has(self, token: StateToken[Any]) -> bool:
        await self._called("has")
        return token.cache_key in self.records

    async def _renew(self, token: StateToken[Any]) -> bool:
        await self._called("renew")
        return token.cache_key in self.records

    async def _list(self, prefix: str) -> AsyncIterator[StateInfo]:
        for key, payload in self.records.items():
            ident, _, class_name = key.partition("/")
            if ident.startswith(prefix):
                yield StateInfo(ident, class_name, len(payload), 0.0)

    def _statistics(self) -> Statistics:
        return Statistics(0, 0, 0, 0, 0, self._commits, self._aborts, 0)

    async def _close(self) -> None:
        await self._called("close")


class Undecodable(StateToken[Any]):
    """A kind whose bytes cannot be read back."""

    def deserialize(self, data: bytes | None = None, fp: Any = None) -> Any:
        raise RuntimeError("the price is 4711")


async def _use_each(manager: StateManager) -> dict[str, Callable[[], Any]]:
    async def modify() -> None:
        async with manager.modify_state(CART):
            pass

    async def modify_several() -> None:
        async with manager.modify_states(CART, PROFILE):
            pass

    async def list_tokens() -> list[StateInfo]:
        return [info async for info in manager.tokens()]

    async def statistics() -> Statistics:
        return manager.statistics()

    async def enter() -> None:
        await manager.__aenter__()

    return {
        "get_state": lambda: manager.get_state(CART),
        "get_states": lambda: manager.get_states(CART, PROFILE),
        "no states": lambda: manager.get_states(),
        "set_state": lambda: manager.set_state(CART, Cart()),
        "modify_state": modify,
        "modify_states": modify_several,
        "delete_state": lambda: manager.delete_state(CART),
        "has_state": lambda: manager.has_state(CART),
        "touch": lambda: manager.touch(CART),
        "tokens": list_tokens,
        "statistics": statistics,
        "async with": enter,
    }


class TestBodies:
    async def test_a_body_that_ends_begins_and_commits(self) -> None:
        manager = Slow()
        async with manager.modify_state(CART) as cart:
            cart.items.append("pen")
        assert manager.calls == ["begin", "commit"]
        assert await manager.get_state(CART) == Cart(["pen"])
        assert manager.statistics().commits == 1

    async def test_a_body_that_raises_aborts_and_the_error_goes_on(self) -> None:
        manager = Slow()
        with pytest.raises(KeyError, match="mine"):
            async with manager.modify_state(CART):
                raise KeyError("mine")
        assert manager.calls == ["begin", "abort"]
        assert (manager.statistics().aborts, manager.records) == (1, {})

    async def test_a_discarded_body_aborts(self) -> None:
        manager = Slow()
        modification = manager.modify_state(CART)
        async with modification as cart:
            cart.items.append("pen")
            modification.discard()
        assert manager.calls == ["begin", "abort"]
        assert manager.statistics().aborts == 1

    async def test_a_state_that_cannot_be_saved_aborts(self) -> None:
        manager = Slow()
        modification = manager.modify_state(CART)
        with pytest.raises(StateEncodeError):
            async with modification:
                modification.state = Profile()  # type: ignore[assignment]
        assert manager.calls == ["begin", "abort"]

    async def test_a_state_that_is_too_large_aborts(self) -> None:
        """The size allowed is the last that is."""
        size = len(CART.serialize(Cart(["x" * 50])))
        manager = Slow(max_state_size=size)
        await manager.set_state(CART, Cart(["x" * 50]))
        with pytest.raises(StateTooLargeError, match=f"takes {size + 1} bytes") as caught:
            async with manager.modify_state(CART) as cart:
                cart.items[0] += "x"
        assert (caught.value.size, caught.value.limit) == (size + 1, size)
        assert manager.calls == ["write", "begin", "abort"]
        assert "user-1" not in str(caught.value)

    async def test_a_failed_begin_runs_no_body_and_no_abort(self) -> None:
        manager = Slow()
        manager.failures["begin"] = OSError("gone")
        with pytest.raises(OSError, match="gone"):
            async with manager.modify_state(CART):
                pytest.fail("a body ran without the lock")
        assert manager.calls == ["begin"]

    async def test_a_failed_commit_is_the_callers_error_and_counts_as_none(self) -> None:
        manager = Slow()
        manager.failures["commit"] = OSError("no space")
        with pytest.raises(OSError, match="no space"):
            async with manager.modify_state(CART):
                pass
        assert manager.calls == ["begin", "commit"]
        assert manager.statistics().commits == 0

    async def test_the_state_may_be_replaced(self) -> None:
        manager = Slow()
        number = StateToken("u", int)
        modification = manager.modify_state(number)
        async with modification as state:
            assert (state, modification.state) == (0, 0)
            modification.state = 7
        assert await manager.get_state(number) == 7

    async def test_there_is_no_fence_unless_a_backend_has_one(self) -> None:
        manager = Slow()
        modification = manager.modify_state(CART)
        async with modification:
            assert modification.fence is None
        assert modification.token is CART

    async def test_several_classes_come_and_go_as_a_tuple(self) -> None:
        manager = Slow()
        modification = manager.modify_states(CART, PROFILE)
        async with modification as (cart, profile):
            cart.items.append("pen")
            profile.name = "Ada"
            assert modification.tokens == (CART, PROFILE)
        assert await manager.get_states(PROFILE, CART) == (Profile("Ada"), Cart(["pen"]))
        assert manager.statistics().commits == 1

    @pytest.mark.parametrize("state", [(Cart(),), [Cart(), Profile()], None, Cart()])
    async def test_several_states_are_replaced_by_as_many_in_a_tuple_only(self, state: Any) -> None:
        manager = Slow()
        modification = manager.modify_states(CART, PROFILE)
        with pytest.raises(StateEncodeError, match="tuple of 2"):
            async with modification:
                modification.state = state
        assert manager.records == {}
        async with modification:
            modification.state = (Cart(["pen"]), Profile("Ada"))
        assert len(manager.records) == 2

    async def test_a_modification_may_be_entered_again_after_it_was_left(self) -> None:
        manager = Slow()
        modification = manager.modify_state(CART)
        for item in "ab":
            async with modification as cart:
                cart.items.append(item)
        assert await manager.get_state(CART) == Cart(["a", "b"])

    async def test_a_discard_does_not_reach_the_next_block_of_the_same_modification(self) -> None:
        """A change must not vanish silently: it is saved, or the second entering is an error."""
        manager = Slow()
        modification = manager.modify_state(CART)
        async with modification:
            modification.discard()
        try:
            async with modification as cart:
                cart.items.append("pen")
        except Exception:
            assert await manager.get_state(CART) == Cart()
        else:
            assert await manager.get_state(CART) == Cart(["pen"])


class TestArguments:
    @pytest.mark.parametrize("token", ["user-1", None, ("user-1", Cart), Cart, object()])
    async def test_what_is_no_token_is_refused(self, token: Any) -> None:
        """By every method, as a ValueError, before the backend is asked."""
        manager = Slow()
        calls: list[Callable[[], Any]] = [
            lambda: manager.get_state(token),
            lambda: manager.get_states(CART, token),
            lambda: manager.set_state(token, Cart()),
            lambda: manager.delete_state(token),
            lambda: manager.has_state(token),
            lambda: manager.touch(token),
        ]
        for call in calls:
            with pytest.raises(InvalidTokenError, match="a token is a StateToken"):
                await call()
        for modify in (manager.modify_state, manager.modify_states):
            with pytest.raises(ValueError, match="a token is a StateToken"):
                modify(token)
        assert manager.calls == []

    async def test_a_modification_is_no_token_although_it_has_a_lock_key(self) -> None:
        manager = Slow()
        with pytest.raises(InvalidTokenError):
            async with manager.modify_state(manager.modify_state(CART)):  # type: ignore[arg-type]
                pass
        with pytest.raises(InvalidTokenError):
            await manager.delete_state(manager.modify_state(CART))  # type: ignore[arg-type]

    @pytest.mark.parametrize("timeout", ["soon", pytest.param(10**400, id="huge"), [1]])
    async def test_a_timeout_is_a_number_of_seconds(self, timeout: Any) -> None:
        manager = Slow()
        for modify in (manager.modify_state, manager.modify_states):
            with pytest.raises(SettingsError, match=r"timeout=.*expected a number of seconds"):
                modify(CART, timeout=timeout)

    async def test_any_number_will_do_for_a_timeout(self) -> None:
        """A clock adds no Decimal, and finds out when the ident has a waiter already."""
        assert Slow().modify_state(CART, timeout=Decimal("2.5")).timeout == 2.5  # type: ignore[arg-type]

    async def test_modify_states_takes_different_classes_of_one_ident(self) -> None:
        manager = Slow()
        with pytest.raises(InvalidTokenError, match="at least one"):
            manager.modify_states()
        with pytest.raises(InvalidTokenError, match="one ident"):
            manager.modify_states(CART, StateToken("user-2", Profile))
        with pytest.raises(InvalidTokenError, match="different classes"):
            manager.modify_states(CART, PROFILE, StateToken("user-1", Cart))
        with pytest.raises(InvalidTokenError, match="different classes"):
            manager.modify_states(CART, Undecodable("user-1", Cart))

    async def test_get_states_of_no_token_is_nothing_and_of_any_idents_a_tuple(self) -> None:
        manager = Slow()
        assert await manager.get_states() == ()
        other = StateToken("user-2", Cart)
        await manager.set_state(other, Cart(["pen"]))
        manager.calls.clear()
        assert await manager.get_states(other, CART, other) == (
            Cart(["pen"]),
            Cart(),
            Cart(["pen"]),
        )
        assert manager.calls == ["read"]

    @pytest.mark.parametrize(
        "options",
        [
            {"token_expiration": 0},
            {"token_expiration": float("inf")},
            {"token_expiration": 10**400},
            {"token_expiration": "60"},
            {"lock_warning_threshold": -1},
            {"lock_warning_threshold": float("nan")},
            {"max_state_size": 0},
            {"max_state_size": 1.5},
            {"on_decode_error": "ignore"},
            {"log_idents": "no"},
            {"log_key": 5},
            {"log_key": b"key"},
        ],
        ids=repr,
    )
    async def test_an_option_that_cannot_be_is_refused(self, options: dict[str, Any]) -> None:
        (name,) = options
        with pytest.raises(SettingsError, match=f"{name}=") as caught:
            Slow(**options)
        assert caught.value.variable == name
        assert caught.value.allowed


class TestDecodeErrors:
    async def test_whatever_a_kind_raises_becomes_a_decode_error_with_the_key(self) -> None:
        manager = Slow()
        token = Undecodable("user-1", Cart)
        await manager.set_state(token, Cart())
        with pytest.raises(StateDecodeError, match="Undecodable") as caught:
            await manager.get_state(token)
        assert caught.value.key == token.cache_key
        assert "4711" not in str(caught.value)
        assert isinstance(caught.value.__cause__, RuntimeError)

    async def test_a_damaged_record_gets_its_key_too(self) -> None:
        manager = Slow()
        manager.records[CART.cache_key] = b"junk"
        with pytest.raises(StateDecodeError) as caught:
            await manager.get_state(CART)
        assert caught.value.key == CART.cache_key

    @pytest.mark.parametrize("on_decode_error", ["raise", "reset"])
    async def test_it_is_logged_with_its_reason_but_no_ident_and_no_value(
        self, on_decode_error: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        manager = Slow(on_decode_error=on_decode_error)
        token = Undecodable("user-1", Cart)
        await manager.set_state(token, Cart(["secret"]))
        if on_decode_error == "raise":
            with pytest.raises(StateDecodeError):
                await manager.get_state(token)
        else:
            assert await manager.get_state(token) == Cart()
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert f"{__name__}:Cart of ident #" in record.getMessage()
        assert "RuntimeError" in record.getMessage()
        for hidden in ("user-1", "secret", "4711"):
            assert hidden not in caplog.text

    async def test_idents_are_logged_when_asked_for(self, caplog: pytest.LogCaptureFixture) -> None:
        manager = Slow(log_idents=True, on_decode_error="reset")
        token = Undecodable("user-1", Cart)
        await manager.set_state(token, Cart())
        await manager.get_state(token)
        assert "ident 'user-1'" in caplog.text

    async def test_managers_with_one_log_key_agree_on_names(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        for options in ({"log_key": "k"}, {"log_key": "k"}, {"log_key": "l"}, {}, {}):
            manager = Slow(on_decode_error="reset", **options)
            token = Undecodable("user-1", Cart)
            await manager.set_state(token, Cart())
            await manager.get_state(token)
        names = [record.getMessage() for record in caplog.records]
        assert names[0] == names[1]
        assert len(set(names)) == 4


class TestLongBodies:
    async def test_a_long_body_is_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        manager = Slow(lock_warning_threshold=2.0)
        async with manager.modify_state(CART):
            manager.clock.advance(2.5)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "2.500 s" in record.getMessage()
        assert "lock_warning_threshold is 2 s" in record.getMessage()
        assert "ident #" in record.getMessage()
        assert "user-1" not in caplog.text

    async def test_a_body_as_long_as_the_threshold_is_not(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        manager = Slow(lock_warning_threshold=2.0)
        async with manager.modify_state(CART):
            manager.clock.advance(2.0)
        assert not caplog.records

    async def test_the_wait_for_the_lock_does_not_count(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        manager = Slow(lock_warning_threshold=2.0)
        called = manager._called

        async def slowly(name: str) -> None:
            await called(name)
            manager.clock.advance(10)

        manager._called = slowly  # type: ignore[method-assign]
        async with manager.modify_state(CART):
            pass
        assert not caplog.records

    async def test_a_body_that_raises_is_logged_too(self, caplog: pytest.LogCaptureFixture) -> None:
        manager = Slow()

        def fail() -> None:
            manager.clock.advance(5)
            raise KeyError

        with pytest.raises(KeyError):
            async with manager.modify_state(CART):
                fail()
        assert len(caplog.records) == 1

    async def test_a_log_filter_that_fails_does_not_keep_the_lock(self) -> None:
        """The program's logging is called with the lock held; the hook must run all the same."""
        manager = Slow()

        def fail(record: logging.LogRecord) -> bool:
            raise RuntimeError

        logging.getLogger("statemgr").addFilter(fail)
        try:
            async with manager.modify_state(CART):
                manager.clock.advance(5)
        except RuntimeError:
            pass
        finally:
            logging.getLogger("statemgr").removeFilter(fail)
        assert manager.calls[-1] in {"commit", "abort"}


class TestClosing:
    async def test_every_call_is_refused_afterwards(self) -> None:
        manager = Slow()
        calls = await _use_each(manager)
        await manager.close()
        manager.calls.clear()
        for call in calls.values():
            with pytest.raises(StateManagerClosedError):
                await call()
        assert manager.calls == []

    async def test_closing_again_does_nothing(self) -> None:
        manager = Slow()
        await manager.close()
        await manager.close()
        assert manager.calls == ["close"]

    async def test_async_with_closes(self) -> None:
        async with Slow() as manager:
            await manager.get_state(CART)
        with pytest.raises(StateManagerClosedError):
            await manager.get_state(CART)
        assert manager.calls == ["read", "close"]

    async def test_a_body_that_runs_meanwhile_saves_nothing(self) -> None:
        manager = Slow()
        with pytest.raises(StateManagerClosedError):
            async with manager.modify_state(CART):
                await manager.close()
        assert manager.calls == ["begin", "close", "abort"]
        assert manager.records == {}

    async def test_a_body_that_fails_meanwhile_keeps_its_own_error(self) -> None:
        manager = Slow()

        async def fail() -> None:
            await manager.close()
            raise KeyError

        with pytest.raises(KeyError):
            async with manager.modify_state(CART):
                await fail()
        assert manager.calls == ["begin", "close", "abort"]

    async def test_an_entering_that_waits_meanwhile_runs_no_body(self) -> None:
        manager = Slow()

        async def enter() -> None:
            async with manager.modify_state(CART):
                pytest.fail("a body ran on a closed manager")

        entering = asyncio.create_task(enter())
        await asyncio.sleep(0)
        await manager.close()
        with pytest.raises(StateManagerClosedError):
            await entering
        assert manager.calls == ["begin", "abort", "close"]


class TestOneLoop:
    async def test_every_call_from_another_loop_is_refused(self) -> None:
        manager = Slow()
        await manager.get_state(CART)
        manager.calls.clear()

        async def elsewhere() -> dict[str, type[BaseException] | None]:
            outcomes: dict[str, type[BaseException] | None] = {}
            for name, call in (await _use_each(manager)).items():
                try:
                    await call()
                except Exception as error:
                    outcomes[name] = type(error)
                else:
                    outcomes[name] = None
            return outcomes

        outcomes = await asyncio.to_thread(asyncio.run, elsewhere())
        outcomes.pop("statistics")  # numbers only: they wait for nothing
        assert set(outcomes.values()) == {WrongLoopError}, outcomes
        assert manager.calls == []

    def test_a_second_run_is_another_loop(self) -> None:
        manager = Slow()
        asyncio.run(manager.set_state(CART, Cart()))
        with pytest.raises(WrongLoopError, match="one manager for each loop"):
            asyncio.run(manager.get_state(CART))
        with pytest.raises(WrongLoopError):
            asyncio.run(manager.close())

    def test_a_manager_may_be_made_before_there_is_a_loop(self) -> None:
        assert asyncio.run(Slow().get_state(CART)) == Cart()

    def test_a_call_without_a_loop_says_so(self) -> None:
        call = Slow().get_state(CART)
        with pytest.raises(WrongLoopError, match="running event loop"):
            call.send(None)

    async def test_a_callback_is_on_the_loop_without_a_task(self) -> None:
        manager = Slow()
        await manager.get_state(CART)
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def callback() -> None:
            call = manager.has_state(CART)
            try:
                call.send(None)
            except BaseException as error:
                done.set_exception(error)
            else:
                call.close()
                done.set_result(None)

        asyncio.get_running_loop().call_soon(callback)
        await done
        assert manager.calls == ["read", "has"]


class TestOneProcess:
    def test_a_forked_manager_is_refused_in_the_child_only(self) -> None:
        """In use or not, also for the body in which the fork happened."""
        script = """
            import asyncio, os
            from statemgr import StateManagerMemory, StateToken, errors

            TOKEN = StateToken("u", list)

            def in_child(work):
                reading, writing = os.pipe()
                if not (pid := os.fork()):
                    try:
                        outcome = repr(work())
                    except BaseException as error:
                        outcome = type(error).__name__
                    os.write(writing, outcome.encode())
                    os._exit(0)
                os.close(writing)
                os.waitpid(pid, 0)
                with os.fdopen(reading) as pipe:
                    return pipe.read()

            used, unused = StateManagerMemory(), StateManagerMemory()
            asyncio.run(used.set_state(TOKEN, [1]))
            for manager in (used, unused):
                print(in_child(lambda: asyncio.run(manager.get_state(TOKEN))))
            print(in_child(unused.statistics))

            def drive(coroutine):
                try:
                    coroutine.send(None)
                except StopIteration as stop:
                    return stop.value

            async def main():
                manager = StateManagerMemory()
                modification = manager.modify_state(TOKEN)
                state = await modification.__aenter__()
                state.append(1)
                print(in_child(lambda: drive(modification.__aexit__(None, None, None))))
                print(in_child(lambda: drive(manager.get_state(TOKEN))))
                await modification.__aexit__(None, None, None)
                print(await manager.get_state(TOKEN))

            asyncio.run(main())
        """
        ran = subprocess.run(  # our own script
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert ran.stderr == ""
        assert ran.stdout.split("\n")[:-1] == [*["WrongProcessError"] * 5, "[1]"]


class TestCreating:
    async def test_options_come_from_the_settings(self) -> None:
        settings = Settings(
            token_expiration=5.0,
            lock_warning_threshold=0.5,
            max_state_size=100,
            on_decode_error="reset",
            log_idents=True,
        )
        manager = Slow.create(settings)
        assert isinstance(manager, Slow)
        assert (manager.token_expiration, manager.lock_warning_threshold) == (5.0, 0.5)
        assert (manager.max_state_size, manager.on_decode_error) == (100, "reset")
        assert manager._redaction.ident("u") == "ident 'u'"

    async def test_a_concrete_class_makes_itself_whatever_the_mode(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert isinstance(Slow.create(Settings(mode="nowhere")), Slow)
        monkeypatch.setenv("STATEMGR_MODE", "nowhere")
        monkeypatch.setenv("STATEMGR_TOKEN_EXPIRATION", "7")
        assert Slow.create().token_expiration == 7.0

    def test_the_abstract_class_cannot_be_made(self) -> None:
        with pytest.raises(TypeError, match="abstract"):
            StateManager()  # type: ignore[abstract]
