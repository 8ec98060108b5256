"""Who looks at a room and clicks: a program with a WebSocket, or a page in a browser."""

import asyncio
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from programs import PATIENCE, Program
from websockets.asyncio.client import ClientConnection, connect

from statemgr.testing.servers import wait_until


class Viewer(ABC):
    """One viewer of one room."""

    @abstractmethod
    async def click(self, by: int = 1) -> None:
        """Click."""

    @abstractmethod
    async def come_back(self) -> None:
        """Connect again, the connection having been closed by the server."""

    async def sees(self, **expected: Any) -> None:
        """Wait until it sees this, of what `shown` returns."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._sees(expected)
        except TimeoutError:
            raise AssertionError(f"not seen: {expected}, but {await self.shown()}") from None

    @abstractmethod
    async def shown(self) -> dict[str, Any]:
        """Return what it sees: count, names (in the recent clicks), viewers, milestone, worker."""

    @abstractmethod
    async def _sees(self, expected: dict[str, Any]) -> None: ...


class Driver(Protocol):
    """Make viewers: `async with driver("127.0.0.1:8000", "lobby", "Ada") as viewer`."""

    def __call__(
        self, address: str, room: str, name: str
    ) -> AbstractAsyncContextManager[Viewer]: ...


class SocketViewer(Viewer):
    """A program that speaks over the WebSocket.

    Attributes:
        room: The room's fields, as far as they were heard.
        heard: All messages, as they came.
    """

    def __init__(self, url: str, name: str, connection: ClientConnection) -> None:
        self.connection = connection
        self.room: dict[str, Any] = {}
        self.heard: list[dict[str, Any]] = []
        self._url = url
        self._name = name
        self._worker: str | None = None

    async def click(self, by: int = 1) -> None:
        payload = {"by": by, "name": self._name, "hue": 200}
        await self.connection.send(json.dumps({"name": "click", "payload": payload}))

    async def come_back(self) -> None:
        await self.connection.wait_closed()
        assert self.connection.close_code == 1012  # the service restarts
        self.connection = await connect(self._url)

    async def hear(self) -> dict[str, Any]:
        """Return the next message."""
        message: dict[str, Any] = json.loads(await self.connection.recv())
        self.heard.append(message)
        self._worker = message.get("worker", self._worker)
        self.room |= message.get("delta", {}).get("Room", {})
        return message

    async def shown(self) -> dict[str, Any]:
        return {
            "count": self.room.get("count"),
            "names": [click["name"] for click in self.room.get("clicks", [])],
            "viewers": self.room.get("viewers"),
            "milestone": self.room.get("milestone"),
            "worker": self._worker,
        }

    async def _sees(self, expected: dict[str, Any]) -> None:
        while not expected.items() <= (await self.shown()).items():
            await self.hear()


@asynccontextmanager
async def by_socket(address: str, room: str, name: str) -> AsyncIterator[SocketViewer]:
    """Open a WebSocket."""
    url = f"ws://{address}/room/{room}/socket"
    viewer = SocketViewer(url, name, await connect(url))
    try:
        yield viewer
    finally:
        await viewer.connection.close()


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

_SHOWN = """
function shown() {
  const text = (id) => document.getElementById(id)?.textContent ?? "";
  const number = (id) => text(id).match(/-?[0-9]+/) ? Number(text(id).match(/-?[0-9]+/)[0]) : null;
  return {
    count: number("count"),
    names: [...document.querySelectorAll("#clicks .who")].map((who) => who.textContent),
    viewers: number("viewers"),
    milestone: number("milestone"),
    live: document.querySelector("button[data-by]")?.disabled === false,
    worker: number("status") === null ? null : String(number("status")),
  };
}
"""
_LOADED = """
new Promise((resolve) => {
  if (document.readyState === "complete") resolve(true);
  else addEventListener("load", () => resolve(true));
})
"""
_SEES = """
new Promise((resolve) => {
  const look = () => {
    const now = shown();
    for (const [key, value] of Object.entries(expected))
      if (JSON.stringify(now[key]) !== JSON.stringify(value)) return;
    observer.disconnect();
    resolve(true);
  };
  const observer = new MutationObserver(look);
  const all = {subtree: true, childList: true, characterData: true, attributes: true};
  observer.observe(document, all);
  look();
})
"""


class PageViewer(Viewer):
    """A page in a browser, driven by its DevTools protocol; a window and a store of its own.

    Attributes:
        requested: The URLs that it has asked for.
        errors: What went wrong in it.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self.requested: list[str] = []
        self.errors: list[Any] = []
        self._connection = connection
        self._session: dict[str, str] = {}
        self._calls = 0

    async def open(self) -> None:
        context = await self.call("Target.createBrowserContext", disposeOnDetach=True)
        target = await self.call("Target.createTarget", url="about:blank", **context)
        self._session = await self.call("Target.attachToTarget", flatten=True, **target)
        for domain in ("Network", "Page", "Runtime"):
            await self.call(f"{domain}.enable")

    async def go(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.evaluate(_LOADED)

    async def introduce(self, name: str) -> None:
        await self.evaluate(
            f"""{{
              const field = document.getElementById("name");
              field.value = {json.dumps(name)};
              field.dispatchEvent(new Event("change"));
            }}"""
        )

    async def click(self, by: int = 1) -> None:
        await self.sees(live=True)
        await self.evaluate(f"document.querySelector('button[data-by=\"{by}\"]').click()")

    async def come_back(self) -> None:
        pass  # it does so by itself

    async def shown(self) -> dict[str, Any]:
        found: dict[str, Any] = await self.evaluate("shown()")
        return found

    async def _sees(self, expected: dict[str, Any]) -> None:
        await self.evaluate(f"{{ const expected = {json.dumps(expected)}; {_SEES} }}")

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page, when that is there."""
        answer = await self.call(
            "Runtime.evaluate",
            expression=_SHOWN + expression,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give the browser one command, and return its answer."""
        self._calls += 1
        command = {"id": self._calls, "method": method, "params": parameters, **self._session}
        await self._connection.send(json.dumps(command))
        while True:
            message = json.loads(await self._connection.recv())
            if message.get("id") == self._calls:
                assert "error" not in message, message
                answer: dict[str, Any] = message["result"]
                return answer
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(message["params"])
            if message.get("method") == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])


class Browser:
    """A browser without a screen. It asks nobody for anything but the pages that it is sent to."""

    def __init__(self, url: str) -> None:
        self._url = url

    @asynccontextmanager
    async def window(self) -> AsyncIterator[PageViewer]:
        """Open a window, with nothing in it."""
        async with connect(self._url, max_size=None) as connection:
            page = PageViewer(connection)
            await page.open()
            yield page

    @asynccontextmanager
    async def __call__(self, address: str, room: str, name: str) -> AsyncIterator[PageViewer]:
        async with self.window() as page:
            await page.go(f"http://{address}/room/{room}")
            await page.introduce(name)
            yield page
            await page.shown()  # so that all was heard
            assert not page.errors
            mine = (f"http://{address}/", "data:", "about:")
            assert [url for url in page.requested if not url.startswith(mine)] == []


@contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """Run the browser that is installed."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-breakpad",
        "--remote-debugging-port=0",
        f"--user-data-dir={directory}",
        "about:blank",
    ]
    log = directory.with_suffix(".log")
    with Program(command, log):
        told = directory / "DevToolsActivePort"  # the port, and on the next line the path
        wait_until(lambda: told.exists() and "\n/" in told.read_text(), "a browser", PATIENCE)
        port, path = told.read_text().split("\n")
        yield Browser(f"ws://127.0.0.1:{port}{path}")
