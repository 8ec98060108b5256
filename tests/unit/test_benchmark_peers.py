"""The peers of the benchmarks: what each says that it lacks, and the loops of those not installed.

Litestar and diskcache are not installed where tests run: stand-ins with the few methods of theirs
that the loops call take their place. What is said of them and of Reflex was found by running them.
"""

import asyncio
import copy
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from benchmarks.discovery import find_scenarios, find_subjects
from benchmarks.measure import LostUpdateError, check_changes
from benchmarks.peers.diskcache_store import DiskCacheStore
from benchmarks.peers.litestar_store import UNLOCKED, LitestarStore
from benchmarks.peers.redis_lock import RedisLock
from benchmarks.plan import choose_subjects, make_plan
from benchmarks.scenario import Scale
from benchmarks.states import Cart, cart
from benchmarks.subject import Role, Store
from statemgr import StateToken
from statemgr.errors import StateDecodeError
from statemgr.testing.servers import Server

ROOT = Path(__file__).resolve().parents[2]
SUBJECTS = find_subjects()
PEERS = [subject for subject in SUBJECTS.values() if subject.role is Role.PEER]
WITHOUT_LOCK = {subject.name for subject in PEERS if not subject.exclusive}
EXPIRATION = 60.0
TASKS = 8


class Shelf:
    """A stand-in for Litestar's stores: bytes by key, and no lock."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.expirations: set[float] = set()

    async def get(self, key: str) -> bytes:
        await asyncio.sleep(0)
        return self.values[key]

    async def set(self, key: str, value: bytes, expires_in: int) -> None:
        await asyncio.sleep(0)
        self.values[key] = value
        self.expirations.add(expires_in)


class Drawer:
    """A stand-in for diskcache's `Cache`: copies by key, and one transaction at a time."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._turn = threading.RLock()

    @contextmanager
    def transact(self, *, retry: bool) -> Iterator[None]:
        assert retry  # else a busy database is an error
        with self._turn:
            yield

    def get(self, key: str) -> Any:
        return copy.deepcopy(self.values[key])

    def set(self, key: str, value: Any, *, expire: float, retry: bool) -> None:
        assert expire == EXPIRATION
        assert retry
        with self._turn:
            self.values[key] = copy.deepcopy(value)

    def add(self, key: str, value: Any, *, expire: float) -> bool:
        assert expire > 0  # a lock that outlives its holder is freed
        with self._turn:
            return self.values.setdefault(key, token := object()) is token

    def delete(self, key: str) -> None:
        with self._turn:
            del self.values[key]


@pytest.fixture
async def redis_client():
    """A client of a server of its own."""
    with Server() as server:
        async with Redis.from_url(server.url) as client:
            yield client


async def filled(store: Store, idents: int = 1) -> list[Any]:
    """Store the reference state for some idents, and return their tokens."""
    tokens = [store.token(f"user-{number}", Cart) for number in range(idents)]
    await store.fill(tokens, cart)
    return tokens


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_names_what_it_lacks(peer):
    """In three phrases at least, and in few words: they are printed below each table."""
    assert 3 <= len(peer.lacks) <= 6
    assert len(set(peer.lacks)) == len(peer.lacks)
    for phrase in peer.lacks:
        assert 2 <= len(phrase.split()) <= 8
        assert phrase[-1] not in ".,;"


def test_only_peers_lack_something():
    """Ours keep the promises, and of floors none is expected."""
    assert {subject.role for subject in SUBJECTS.values() if subject.lacks} == {Role.PEER}


def test_every_backend_has_peers_of_three_packages():
    """Reflex and two others, of which one at least has a lock."""
    for backend in ("disk", "redis"):
        against = [peer for peer in PEERS if backend in peer.against and not peer.open_events]
        assert len({peer.requires[0] for peer in against}) >= 3
        assert len({peer.requires[0] for peer in against if peer.exclusive}) >= 2


def test_no_peer_is_imported_to_be_listed():
    """Its package is imported where it is measured, and by nobody who does without."""
    program = (
        "import sys; from benchmarks.discovery import find_subjects\n"
        "needed = {name for one in find_subjects().values() for name in one.requires}\n"
        "print(*sorted(needed & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


def test_who_has_no_lock_is_spared_shared_tokens():
    """It would lose updates, which is an error of the harness, and says so where it is measured."""
    scenarios = find_scenarios()
    chosen = choose_subjects(SUBJECTS, [], peers=True)
    plan = make_plan(
        [scenarios[name] for name in ("change", "contended", "hot")], chosen, Scale(seconds=1.0)
    )
    measured: dict[str, set[str]] = {}
    for step in plan:
        measured.setdefault(step.scenario.name, set()).update(one.name for one in step.subjects)
    assert sorted(WITHOUT_LOCK) == ["litestar_file", "litestar_memory", "litestar_redis"]
    assert measured["change"] >= WITHOUT_LOCK
    assert not WITHOUT_LOCK & (measured["contended"] | measured["hot"])
    for name in WITHOUT_LOCK:
        assert SUBJECTS[name].lacks[0] == UNLOCKED


async def test_litestar_writes_back_what_it_has_read():
    """Each change is one read and one write of the whole state, which sets its expiration anew."""
    shelf = Shelf()
    store = LitestarStore(shelf, EXPIRATION)
    tokens = await filled(store, TASKS)
    for loop in (store.change, store.change_slowly, store.read):
        await asyncio.gather(*(loop([token]) for token in tokens))
    await check_changes(store, tokens, 2 * TASKS, start=cart().version)
    assert shelf.expirations == {EXPIRATION}
    assert all(value.startswith(b'{"owner":"user-42"') for value in shelf.values.values())


async def test_litestar_loses_updates_of_one_token():
    """Two that read before either has written: the harness finds out."""
    store = LitestarStore(Shelf(), EXPIRATION)
    tokens = await filled(store)
    await asyncio.gather(*(store.change(tokens) for _ in range(TASKS)))
    with pytest.raises(LostUpdateError):
        await check_changes(store, tokens, TASKS, start=cart().version)


async def test_diskcache_loses_none():
    """Neither a change in a transaction, nor one whose body waits, under the lock."""
    drawer = Drawer()
    store = DiskCacheStore(drawer, EXPIRATION)
    tokens = await filled(store)
    for loop in (store.change, store.change_slowly):
        await asyncio.gather(*(loop(tokens) for _ in range(TASKS)))
    await store.read(tokens)
    await check_changes(store, tokens, 2 * TASKS, start=cart().version)
    assert drawer.values.keys() == set(tokens)  # the lock has been freed


async def test_redis_lock_does_not_fence(redis_client):
    """Who has lost the lock still overwrites what another has written since, and is told after."""
    other = RedisLock(redis_client, EXPIRATION)

    class Late(RedisLock):
        async def _save(self, key: Any, state: Any) -> None:
            await redis_client.delete(f"{key.name}:lock")  # as if it had expired
            await other.change([key])
            await super()._save(key, state)

    tokens = await filled(other)
    with pytest.raises(Exception, match="no longer owned"):
        await Late(redis_client, EXPIRATION).change(tokens)
    assert await other.version(tokens[0]) == cart().version + 1


async def test_redis_lock_renews_nothing_by_reading(redis_client):
    """A state that is only read expires."""
    store = RedisLock(redis_client, EXPIRATION)
    [key] = await filled(store)
    await redis_client.pexpire(key.name, 30_000)
    await store.read([key])
    assert await redis_client.pttl(key.name) <= 30_000


async def test_redis_lock_has_no_checksum(redis_client):
    """A byte that has changed on the way is another value, and no error."""
    store = RedisLock(redis_client, EXPIRATION)
    [key] = await filled(store)
    data = await redis_client.get(key.name)
    await redis_client.set(key.name, data.replace(b"sku-3", b"sku-9"))
    await store.read([key])
    assert key.decode(await redis_client.get(key.name)).items[3].sku == "sku-9"


class Malicious:
    """Pickles as a call of whatever it wants called."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this has run",)


def test_pickle_runs_code_when_it_loads(capsys):
    """Ours refuses the same bytes."""
    codec = SUBJECTS["pickle"].codec()
    data = codec.encode(Malicious())
    with pytest.raises(StateDecodeError):
        StateToken("user-42", Cart).deserialize(data)
    assert capsys.readouterr().out == ""
    codec.decode(data)
    assert capsys.readouterr().out == "this has run\n"


def test_pickle_names_the_module_of_a_class():
    """A class that a deployment has moved is not found again; ours stores no such name."""
    codec = SUBJECTS["pickle"].codec()
    name = Cart.__module__.encode()
    moved = codec.encode(cart()).replace(name, name[:-1] + b"_")
    with pytest.raises(ModuleNotFoundError):
        codec.decode(moved)
    assert name not in StateToken("user-42", Cart).serialize(cart())
