"""`outlast`: wait to the end, and be cancelled after it."""

import asyncio
from typing import Any


async def outlast(
    work: "asyncio.Future[Any]", timeout: float | None = None
) -> asyncio.CancelledError | None:
    """Wait until some work is done, however often this is cancelled meanwhile.

    Neither a cancel nor the timeout ends the work. What it ends with is the caller's to ask for.

    Args:
        work: What to wait for.
        timeout: The longest wait in seconds; None waits for ever.

    Returns:
        The last cancel, which is the caller's to raise; None if there was none.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        left = None if deadline is None else deadline - loop.time()
        if left is not None and left <= 0:
            break
        try:
            await asyncio.wait((work,), timeout=left)
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled
