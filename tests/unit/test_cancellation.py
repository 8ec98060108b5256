"""`outlast`: a wait that a cancel does not cut short."""

import asyncio

import pytest

from statemgr.cancellation import outlast


async def test_a_cancel_is_returned_when_the_work_is_done():
    """However many there were, it is the last; the work is left alone."""
    work = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(outlast(work))
    for message in ("first", "last"):
        await asyncio.sleep(0)
        waiting.cancel(message)
    await asyncio.sleep(0)
    assert not waiting.done()
    work.set_result("done")
    cancelled = await waiting
    assert cancelled is not None
    assert cancelled.args == ("last",)


@pytest.mark.parametrize("ends", ["result", "error", "cancel"])
async def test_what_the_work_ends_with_is_not_told(ends):
    """That is the caller's to ask for."""
    work = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(outlast(work))
    await asyncio.sleep(0)
    if ends == "result":
        work.set_result(1)
    elif ends == "error":
        work.set_exception(ValueError("no"))
        work.exception()
    else:
        work.cancel()
    assert await waiting is None


async def test_work_that_is_done_is_not_waited_for():
    """No turn of the loop is taken."""
    work = asyncio.get_running_loop().create_future()
    work.set_result(None)
    with pytest.raises(StopIteration):
        outlast(work).send(None)


async def test_the_wait_ends_at_the_timeout():
    """The work does not, and a cancel before it is returned."""
    work = asyncio.get_running_loop().create_future()
    assert await outlast(work, 0) is None
    waiting = asyncio.create_task(outlast(work, 0.01))
    await asyncio.sleep(0)
    waiting.cancel()
    assert isinstance(await waiting, asyncio.CancelledError)
    assert not work.done()
