"""Make docs/live_counter.png anew: `python tests/examples/screenshot.py`, with Chromium installed.

Two windows in one room, each served by another of two workers, on disk and on a real server.
"""

import asyncio
import json
import sys
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from programs import ROOT, Application
from viewers import Browser, PageViewer, browser

from statemgr.testing.servers import DEFAULT, Server

PICTURE = ROOT / "docs" / "live_counter.png"
WIDTH, HEIGHT = 380, 726  # of each window
# Who clicks what, in one room and the other.
CLICKS = (
    [(0, 1), (0, 1), (1, 1), (0, 1), (1, 1), (1, 1), (1, 1), (0, 1), (1, 1), (0, 1), (1, -1)],
    [(1, 1)] * 19 + [(0, 1), (1, 1), (0, 1), (0, -1), (1, 1), (0, 1), (0, 1)],
)

_STYLE = f"""
body {{
  margin: 0; padding: 16px; width: max-content; display: flex; gap: 24px;
  background: #8a93a6; color: #10141d;
}}
h1 {{ margin: 0 0 12px; font: 600 18px system-ui, sans-serif; }}
img {{
  width: {WIDTH}px; height: {HEIGHT}px; border-radius: 10px; margin-right: 12px;
  vertical-align: top;
}}
img:last-child {{ margin: 0; }}
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, Server(DEFAULT) as server:
        directory = Path(temporary)
        stores = {
            "Two workers on disk": ["--directory", str(directory / "states")],
            "Two workers on Valkey": ["--url", server.url],
        }
        rows = []
        with browser(directory / "profile") as running:
            for number, (caption, store) in enumerate(stores.items()):
                with Application(*store, log=directory / f"{number}.log") as application:
                    application.wait()
                    rows.append(
                        (
                            caption,
                            asyncio.run(windows(running, application.address, CLICKS[number])),
                        )
                    )
                    application.stop()
            PICTURE.write_bytes(asyncio.run(composed(running, rows)))
    sys.stdout.write(f"{PICTURE}: {PICTURE.stat().st_size} bytes\n")


async def windows(running: Browser, address: str, clicks: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return pictures of two windows in one room."""
    async with AsyncExitStack() as stack:
        pages: list[PageViewer] = []
        for name, hue, scheme in (("Ada", 265, "light"), ("Grace", 150, "dark")):
            page = await stack.enter_async_context(running(address, "tea-kitchen", name))
            await page.evaluate(f"me.hue = {hue}; introduce()")
            await page.call(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-color-scheme", "value": scheme}],
            )
            await frame(page, WIDTH, HEIGHT)
            pages.append(page)
        one, other = pages
        await one.sees(live=True)
        await other.sees(live=True)
        while (await other.shown())["worker"] == (await one.shown())["worker"]:
            await other.go(f"http://{address}/room/tea-kitchen")
            await other.sees(live=True)
        count = 0
        for who, by in clicks:
            await pages[who].click(by)
            count += by
            for page in pages:
                await page.sees(count=count)
        for page in pages:
            await page.sees(viewers=2, count=count)
        return [await picture(page) for page in pages]


async def composed(running: Browser, rows: Sequence[tuple[str, list[bytes]]]) -> bytes:
    """Return one picture of all."""
    body = "".join(
        f"<section><h1>{caption}</h1>"
        + "".join(f'<img src="data:image/png;base64,{b64encode(one).decode()}">' for one in row)
        + "</section>"
        for caption, row in rows
    )
    html = f"<!doctype html><style>{_STYLE}</style><body>{body}"
    async with running.window() as page:
        await frame(page, 2 * (2 * WIDTH + 12) + 24 + 32, HEIGHT + 32 + 34)
        await page.evaluate(f"document.write({json.dumps(html)}); document.close()")
        await page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
        return await picture(page)


async def frame(page: PageViewer, width: int, height: int) -> None:
    await page.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=1,
        mobile=False,
    )
    await page.call("Emulation.setScrollbarsHidden", hidden=True)


async def picture(page: PageViewer) -> bytes:
    # The bump of the counter is over when its animation is.
    await page.evaluate(
        "Promise.all(document.getAnimations().map((one) => one.finished)).then(() => 0)"
    )
    shot = await page.call("Page.captureScreenshot", format="png")
    return b64decode(shot["data"])


if __name__ == "__main__":
    main()
