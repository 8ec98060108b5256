"""The live counter, started as a user starts it, on disk and on a real server.

It is driven by programs with a WebSocket, and by pages in a browser where one is installed.
Where it matters which worker serves whom there are two applications of one worker each, with one
store and two ports: for the workers that is the same as one port.
"""

import asyncio
import json
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from programs import PATIENCE, ROOT, Application
from viewers import CHROMIUM, Driver, SocketViewer, browser, by_socket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from statemgr.testing.servers import DEFAULT, Server

DRIVERS = ["socket"] + (["browser"] if CHROMIUM else [])

# uvicorn leaves its listening socket to the end of the process.
WARNINGS = ("-W", "error", "-W", "ignore::ResourceWarning")


# Each of these is started when the first test needs it, and once.


@pytest.fixture(scope="module")
def browser_driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with browser(tmp_path_factory.mktemp("browser") / "profile") as running:
        yield running


@pytest.fixture(scope="module")
def socket_driver() -> Driver:
    return by_socket


@pytest.fixture(scope="module")
def disk_store(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return ["--directory", str(tmp_path_factory.mktemp("store") / "states")]


@pytest.fixture(scope="module")
def redis_store() -> Iterator[list[str]]:
    with Server(DEFAULT) as server:
        yield ["--url", server.url]


@contextmanager
def two_applications(store: list[str], logs: Path) -> Iterator[list[Application]]:
    command = [*WARNINGS, *Application.COMMAND, "--workers", "1"]
    both = [Application(*store, log=logs / f"{n}.log", command=command) for n in range(2)]
    with both[0], both[1]:
        for one in both:
            one.wait()
        yield both
        for one in both:
            one.stop()


@pytest.fixture(scope="module")
def disk_workers(
    disk_store: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Application]]:
    with two_applications(disk_store, tmp_path_factory.mktemp("logs")) as both:
        yield both


@pytest.fixture(scope="module")
def redis_workers(
    redis_store: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Application]]:
    with two_applications(redis_store, tmp_path_factory.mktemp("logs")) as both:
        yield both


# What tests ask for.


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    """What makes viewers."""
    made: Driver = request.getfixturevalue(f"{request.param}_driver")
    return made


@pytest.fixture(params=["disk", "redis"])
def store_name(request: pytest.FixtureRequest) -> str:
    """The kind of store."""
    name: str = request.param
    return name


@pytest.fixture
def store(request: pytest.FixtureRequest, store_name: str) -> list[str]:
    """The arguments that say where the application is to keep its states."""
    arguments: list[str] = request.getfixturevalue(f"{store_name}_store")
    return arguments


@pytest.fixture
def workers(request: pytest.FixtureRequest, store_name: str) -> list[Application]:
    """Two applications of one worker each, with one store."""
    both: list[Application] = request.getfixturevalue(f"{store_name}_workers")
    return both


@pytest.fixture
def room(request: pytest.FixtureRequest) -> str:
    """A room that no other test is in."""
    return request.node.name.replace("[", "-").replace("]", "")


async def test_viewers_on_different_workers_see_each_others_clicks(
    workers: list[Application], driver: Driver, room: str
) -> None:
    here, there = workers
    async with driver(here.address, room, "Ada") as ada, driver(there.address, room, "Bob") as bob:
        for viewer in (ada, bob):
            await viewer.sees(count=0, names=[], viewers=2)
        assert (await ada.shown())["worker"] != (await bob.shown())["worker"]
        await ada.click()
        await bob.sees(count=1, names=["Ada"])
        await bob.click()
        await ada.sees(count=2, names=["Bob", "Ada"])
        await ada.click(-1)
        for viewer in (ada, bob):
            await viewer.sees(count=1, names=["Ada", "Bob", "Ada"])


async def test_rooms_are_apart(workers: list[Application], driver: Driver, room: str) -> None:
    """What is not to arrive would come before what is: both go the same way."""
    here, there = workers
    other = f"{room}%20caf%C3%A9"
    async with (
        driver(here.address, room, "Ada") as ada,
        driver(there.address, other, "Bob") as bob,
    ):
        await ada.click()
        await ada.sees(count=1, viewers=1)
        await bob.click(-1)
        await bob.sees(count=-1, names=["Bob"], viewers=1)
        await ada.click()
        await ada.sees(count=2, names=["Ada", "Ada"], viewers=1)


async def test_room_survives_a_restart_of_all_workers(
    workers: list[Application], driver: Driver, room: str
) -> None:
    """The viewers come back by themselves, and see what they saw."""
    here, there = workers
    async with driver(here.address, room, "Ada") as ada, driver(there.address, room, "Bob") as bob:
        await ada.click()
        await bob.sees(count=1)
        await bob.click()
        await ada.sees(count=2, viewers=2)
        before = (await ada.shown())["worker"]
        for one in workers:
            one.stop()
        for one in workers:
            one.begin()
        for one in workers:
            one.wait()
        for viewer in (ada, bob):
            await viewer.come_back()
        for viewer in (ada, bob):
            await viewer.sees(count=2, names=["Bob", "Ada"], viewers=2)
        await bob.click()
        await ada.sees(count=3, names=["Bob", "Bob", "Ada"])
        assert (await ada.shown())["worker"] != before


async def test_what_was_seen_is_kept_when_a_worker_ends_amid_clicks(
    workers: list[Application], room: str
) -> None:
    """A click shows when it is saved: however many are on their way when the worker drains."""
    here, there = workers
    async with by_socket(here.address, room, "Ada") as ada:
        for _ in range(50):
            await ada.click()
        await ada.sees(count=1)
        stopping = asyncio.create_task(asyncio.to_thread(here.stop))
        with pytest.raises(ConnectionClosed):
            while True:
                await ada.hear()
        await stopping
        seen = ada.room["count"]
        async with by_socket(there.address, room, "Bob") as bob:
            await bob.sees(viewers=1)
            assert seen <= bob.room["count"] <= 50
        here.begin()
        here.wait()


async def test_views_never_go_back(workers: list[Application], room: str) -> None:
    """Clicks on both workers at once: each viewer sees the room grow, and all come to the same."""
    clicks = 40
    async with AsyncExitStack() as stack:
        viewers = [
            await stack.enter_async_context(by_socket(workers[n % 2].address, room, f"viewer {n}"))
            for n in range(4)
        ]
        for viewer in viewers:
            await viewer.sees(viewers=4)

        async def click(viewer: SocketViewer) -> None:
            for _ in range(clicks):
                await viewer.click()

        async with asyncio.TaskGroup() as tasks:
            for viewer in viewers[:2]:
                tasks.create_task(click(viewer))
            for viewer in viewers:
                tasks.create_task(viewer.sees(count=2 * clicks, milestone=2 * clicks))
        for viewer in viewers:
            deltas = [message["delta"]["Room"] for message in viewer.heard if "delta" in message]
            revisions = [delta["revision"] for delta in deltas]
            assert revisions == sorted(set(revisions))
            assert viewer.room == viewers[0].room


async def test_every_tenth_count_is_noted_by_a_chained_event(
    workers: list[Application], driver: Driver, room: str
) -> None:
    async with driver(workers[0].address, room, "Ada") as ada:
        await ada.sees(count=0, milestone=None)
        for _ in range(11):
            await ada.click()
        await ada.sees(count=11, milestone=10)


BAD = {
    "no JSON": "click!",
    "nothing": "",
    "cut off": '{"name": "click", "payl',
    "no object": "[1]",
    "no name": '{"payload": {}}',
    "a field too many": '{"name": "click", "payload": {}, "ident": "another room"}',
    "a payload of another kind": '{"name": "click", "payload": [1]}',
    "nested without end": '{"name": "click", "payload": {"by": ' + "[" * 3500,
    "half a character": '{"name": "click", "payload": {"by": 1, "name": "\\ud800", "hue": 1}}',
    "bytes that are no text": b"\xff\xfe",
    "an event that is not there": '{"name": "drop"}',
    "an event of the server": '{"name": "celebrate", "payload": {"milestone": 10}}',
    "nothing in it": '{"name": "click"}',
    "a wrong value": '{"name": "click", "payload": {"by": 2, "name": "Eve", "hue": 1}}',
    "a wrong type": '{"name": "click", "payload": {"by": 1, "name": "Eve", "hue": "red"}}',
    "a name too long": json.dumps(
        {"name": "click", "payload": {"by": 1, "name": "Eve" * 9, "hue": 1}}
    ),
    "a state": '{"name": "click", "payload": {"by": 1, "name": "Eve", "hue": 1, "room": {}}}',
}


async def test_bad_message_is_answered_and_the_socket_goes_on(
    workers: list[Application], room: str
) -> None:
    """Who sent it gets an error, nobody else hears of it, and nothing has changed."""
    here, _ = workers
    async with (
        by_socket(here.address, room, "Eve") as eve,
        by_socket(here.address, room, "Ada") as ada,
    ):
        for viewer in (eve, ada):
            await viewer.sees(viewers=2)
        for what, message in BAD.items():
            await eve.connection.send(message)
            answer = await asyncio.wait_for(eve.hear(), PATIENCE)
            assert list(answer) == ["error"], what
            assert len(answer["error"]) < 300, what
        await eve.click()
        for viewer in (eve, ada):
            await viewer.sees(count=1, names=["Eve"])
        assert not any("error" in message for message in ada.heard)
        assert eve.room["revision"] == ada.room["revision"] == 3  # two viewers and a click
    assert "Traceback" not in here.log


async def test_message_too_long_closes_its_own_socket_only(
    workers: list[Application], room: str
) -> None:
    here, _ = workers
    async with (
        by_socket(here.address, room, "Eve") as eve,
        by_socket(here.address, room, "Ada") as ada,
    ):
        await ada.sees(viewers=2)
        await eve.connection.send("x" * 5000)
        await asyncio.wait_for(eve.connection.wait_closed(), PATIENCE)
        assert eve.connection.close_code == 1009
        await ada.sees(viewers=1)
        await ada.click()
        await ada.sees(count=1)


async def test_socket_that_breaks_concerns_nobody_else(
    workers: list[Application], room: str
) -> None:
    """Its viewer is gone on both workers, and the others click on."""
    here, there = workers
    async with (
        by_socket(here.address, room, "Eve") as eve,
        by_socket(here.address, room, "Ada") as ada,
        by_socket(there.address, room, "Bob") as bob,
    ):
        await bob.sees(viewers=3)
        for _ in range(20):
            await eve.click()
        eve.connection.transport.abort()
        for viewer in (ada, bob):
            await viewer.sees(viewers=2)
        before = bob.room["count"]
        await ada.click()
        await bob.click()
        for viewer in (ada, bob):
            await viewer.sees(count=before + 2)
    assert "Traceback" not in here.log


async def test_page_of_another_site_opens_no_socket(workers: list[Application], room: str) -> None:
    address = workers[0].address
    url = f"ws://{address}/room/{room}/socket"
    with pytest.raises(InvalidStatus, match="403"):
        await connect(url, origin="https://elsewhere.example")
    async with connect(url, origin=f"http://{address}"):
        pass


@asynccontextmanager
async def served_by_another(
    than: SocketViewer, address: str, room: str
) -> AsyncIterator[SocketViewer]:
    """Open sockets until one is served by another worker than this one: the kernel chooses."""
    await than.hear()
    worker = (await than.shown())["worker"]
    for _ in range(1000):
        async with by_socket(address, room, "Eve") as eve:
            await eve.hear()
            if (await eve.shown())["worker"] != worker:
                yield eve
                return
    raise AssertionError("all sockets are served by one worker")


@pytest.fixture(scope="module")
def command_of_make() -> list[str]:
    """What follows the interpreter in the command by which `make example` starts it."""
    make = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "example"],  # noqa: S607  # as a user does
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    _, *command = shlex.split(make.stdout.splitlines()[-1])
    return command


@pytest.mark.parametrize("driver", DRIVERS[-1:], indirect=True)
async def test_two_workers_on_one_port_as_make_starts_them(
    store: list[str], command_of_make: list[str], driver: Driver, room: str, tmp_path: Path
) -> None:
    """Programs come until both workers have one: what one does a viewer of the other sees."""
    with Application(*store, log=tmp_path / "log", command=command_of_make) as application:
        application.wait()
        async with (
            by_socket(application.address, room, "Bob") as bob,
            served_by_another(bob, application.address, room) as eve,
            driver(application.address, room, "Ada") as ada,
        ):
            await ada.click()
            for viewer in (bob, eve):
                await viewer.sees(count=1, names=["Ada"], viewers=3)
            await bob.click()
            for viewer in (ada, eve):
                await viewer.sees(count=2, names=["Bob", "Ada"])
            await eve.click()
            for viewer in (ada, bob):
                await viewer.sees(count=3, names=["Eve", "Bob", "Ada"])
        application.stop()


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        ([], {"STATEMGR_MODE": "memory"}, "workers share nothing"),
        ([], {"STATEMGR_LOCK_EXPIRATION": "soon"}, "STATEMGR_LOCK_EXPIRATION"),
        (["--url", "redis://localhost", "--directory", "here"], {}, "not both"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(
    arguments: list[str], environment: dict[str, str], reason: str
) -> None:
    done = subprocess.run(
        [sys.executable, *Application.COMMAND, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[-1]
