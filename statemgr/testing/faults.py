"""Trouble made on purpose: a cancel at every await, and serialization that fails on demand."""

import asyncio
import enum
import json
import os
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import coroutine
from typing import Any, BinaryIO, NoReturn, TypeVar

from statemgr.testing.proxy import FaultyProxy as FaultyProxy
from statemgr.token import StateToken

T = TypeVar("T")


class Moment(enum.Enum):
    """When a cancel arrives at an await: as the wait begins, or with its result.

    The second is the race that loses locks: what was waited for has been given, and the task
    is cancelled before it could learn of it.
    """

    BEGIN = "begin"
    RESULT = "result"


async def cancel_at_every_await(
    run: Callable[[], Coroutine[Any, Any, object]],
    check: Callable[[bool], Awaitable[None]],
    prepare: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Run something again and again, cancelled at its first await, its second, and so on.

    Args:
        run: Makes the coroutine; it is run in a task of its own.
        check: Called after each run, with whether the run ended in spite of the cancel, or
            before it. It says by an assertion what must hold then.
        prepare: Called before each run.

    Returns:
        How many awaits there are.
    """
    number = 0
    while True:
        number += 1
        for moment in Moment:
            if prepare is not None:
                await prepare()
            waits, ended = await _cancel_at(run(), number, moment)
            await check(ended)
            if waits < number:  # it ended before that await
                return waits


async def _cancel_at(
    subject: Coroutine[Any, Any, object], number: int, moment: Moment
) -> tuple[int, bool]:
    """Return how many awaits there were, and whether it ended without an error of its own."""
    waits = 0

    def waiting(future: object) -> None:
        nonlocal waits
        waits += 1
        if waits != number:
            return
        if moment is Moment.RESULT and isinstance(future, asyncio.Future):
            # Added before the task's own callback, so it runs while the result is on its way.
            future.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()

    async def watched() -> None:
        await _watch(subject, waiting)

    task = asyncio.get_running_loop().create_task(watched())
    await asyncio.wait([task])
    if task.cancelled():
        return waits, False
    task.result()
    return waits, True


@coroutine
def _watch(
    subject: Coroutine[Any, Any, object], waiting: Callable[[object], None]
) -> Generator[Any, Any, None]:
    """Drive `subject` step by step, and tell of each await before it begins."""
    step: Callable[[], Any] = lambda: subject.send(None)  # noqa: E731  # replaced below
    while True:
        try:
            future = step()
        except StopIteration:
            return
        waiting(future)
        try:
            yield future
        except BaseException as error:  # passed on to where it belongs
            step = lambda error=error: subject.throw(error)  # type: ignore[misc]  # noqa: E731
        else:
            step = lambda: subject.send(None)  # noqa: E731


class FaultyToken(StateToken[T]):
    """A token whose serialization fails while `faults` says so. Made by `faulty_token`."""

    faults: "Faults"

    def serialize(self, state: T) -> bytes:
        """Return `state` as bytes, or fail."""
        if self.faults.encode is not None:
            raise self.faults.encode
        return super().serialize(state)

    def deserialize(self, data: bytes | None = None, fp: BinaryIO | None = None) -> T:
        """Return the state of these bytes, or fail."""
        if self.faults.decode is not None:
            raise self.faults.decode
        return super().deserialize(data, fp)


class Faults:
    """What a `FaultyToken` raises.

    Attributes:
        encode: Raised by `serialize`; None lets it work.
        decode: Raised by `deserialize`; None lets it work.
    """

    def __init__(self) -> None:
        self.encode: Exception | None = None
        self.decode: Exception | None = None


def faulty_token(ident: str, cls: type[T]) -> tuple[StateToken[T], Faults]:
    """Return a token and the switch of its faults."""
    faults = Faults()
    # Its own class: a token may be copied, and its copies are to fail with it.
    kind = type("FaultyToken", (FaultyToken,), {"faults": faults})
    return kind(ident, cls), faults


async def in_child(call: Callable[[], Coroutine[Any, Any, dict[str, str]]]) -> dict[str, str]:
    """Fork, run a coroutine on a loop of the child's own, and return what it returned."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        child = os.fork()
    if child == 0:
        _answer(call, writing)
    os.close(writing)
    try:
        answer = await asyncio.to_thread(_read_all, reading)
    finally:
        await asyncio.to_thread(os.waitpid, child, 0)
    result: dict[str, str] = json.loads(answer)
    return result


def _answer(call: Callable[[], Coroutine[Any, Any, dict[str, str]]], writing: int) -> NoReturn:
    """Be the child: never return into the tests that were copied along."""
    try:
        answer = asyncio.run(call())
        os.write(writing, json.dumps(answer).encode())
    except BaseException as error:  # told to the parent
        os.write(writing, json.dumps({"in_child": repr(error)}).encode())
    finally:
        os._exit(0)


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()
