"""`ClusterSetup`: a cluster of three primaries, and how a slot moves from one to another."""

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations, pairwise
from types import TracebackType
from typing import Any, Self

from statemgr.testing.servers.binaries import DEFAULT
from statemgr.testing.servers.server import (
    FAST_REPLICATION,
    PATIENCE,
    UNREACHABLE,
    Server,
    is_connected_replica,
    wait_until,
)

SLOTS = 16_384
_PRIMARIES = 3
_BATCH = 1_000  # slots, or keys, in one command


@dataclass(frozen=True)
class _Node:
    """A line of CLUSTER NODES: what one node knows of another, or of itself."""

    ident: str
    port: int
    flags: frozenset[str]
    primary: str
    is_linked: bool
    slots: tuple[str, ...]

    @classmethod
    def parse(cls, line: str) -> Self:
        ident, address, flags, primary, _, _, _, link, *slots = line.split()
        port = int(address.partition("@")[0].rpartition(":")[2])
        kinds = frozenset(flags.split(",")) - {"myself"}
        return cls(ident, port, kinds, primary, link == "connected", tuple(slots))

    def has(self, slot: int) -> bool:
        """Return whether a slot is its; one that comes or goes is listed in addition."""
        for text in self.slots:
            first, _, last = text.partition("-")
            if not text.startswith("[") and int(first) <= slot <= int(last or first):
                return True
        return False


class ClusterSetup:
    """Run a cluster while the `with` block lasts.

    Its start takes two seconds at least: so long a primary waits before it takes writes.

    Args:
        name: A key of `SERVERS`.
        replicas: Whether each primary has a replica.
        node_timeout: Milliseconds without an answer after which a node is taken as down.
        settings: Settings of all nodes, as `Server` takes them.

    Attributes:
        primaries: The nodes that were primaries at the start, in the order of their slots.
        replicas: The nodes that were replicas at the start, in the order of their primaries.
    """

    def __init__(
        self,
        name: str = DEFAULT,
        *,
        replicas: bool = False,
        node_timeout: int = 1000,
        **settings: str | float | bool,
    ) -> None:
        every: dict[str, Any] = {
            "cluster_enabled": True,
            "cluster_config_file": "nodes.conf",
            "cluster_node_timeout": node_timeout,
            "cluster_announce_ip": "127.0.0.1",
            **FAST_REPLICATION,
            **settings,
        }
        self.primaries = [Server(name, **every) for _ in range(_PRIMARIES)]
        self.replicas = [Server(name, **every) for _ in range(_PRIMARIES if replicas else 0)]
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as started:
            for node in self.nodes:
                started.enter_context(node)
            self._form()
            wait_until(self.is_whole, "all nodes find the cluster's state ok")
            self._open = started.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    @property
    def nodes(self) -> list[Server]:
        """The primaries at the start, and then their replicas."""
        return [*self.primaries, *self.replicas]

    @property
    def url(self) -> str:
        """All nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def is_whole(self) -> bool:
        """Return whether all is as at the start: all nodes, their roles, and their slots."""
        if not all(node.is_running for node in self.nodes):
            return False
        try:
            return all(
                "cluster_state:ok" in node.command("CLUSTER", "INFO").decode()
                and self._is_as_planned(_view(node))
                for node in self.nodes
            )
        except UNREACHABLE:
            return False

    def flush(self) -> None:
        """Remove all keys, by way of the nodes that were primaries at the start."""
        for node in self.primaries:
            node.command("FLUSHALL")

    def owner(self, slot: int) -> Server:
        """Return the node that has a slot, as the first node says that runs.

        While the slot moves that is the source.
        """
        return self._owner(slot, next(node for node in self.nodes if node.is_running))

    def migrate_slot(self, slot: int, source: Server, target: Server) -> None:
        """Move a slot with its keys; return when all nodes know it."""
        migration = self.begin_migration(slot, source, target)
        migration.move_keys()
        migration.finish()

    def begin_migration(self, slot: int, source: Server, target: Server) -> "SlotMigration":
        """Begin to move a slot. No key has been moved when this returns.

        Until the end the source answers for the keys it still has, and sends who asks for others
        to the target with ASK.
        """
        migration = SlotMigration(self, slot, source, target)
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(source))
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(target))
        return migration

    def wait_for_owner(self, slot: int, owner: Server) -> None:
        """Wait until all nodes that run say that a slot is `owner`'s."""
        wait_until(
            lambda: all(self._owner(slot, node) is owner for node in self.nodes if node.is_running),
            f"all nodes know who has slot {slot}",
        )

    def _owner(self, slot: int, witness: Server) -> Server:
        port = next(node.port for node in _view(witness) if node.has(slot))
        return next(node for node in self.nodes if node.port == port)

    def _form(self) -> None:
        for node, slots in zip(self.primaries, _shares(), strict=True):
            for first in range(slots.start, slots.stop, _BATCH):
                batch = range(first, min(first + _BATCH, slots.stop))
                node.command("CLUSTER", "ADDSLOTS", *batch)
        for epoch, node in enumerate(self.nodes, 1):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        # Each pair, although gossip would do: it takes seconds.
        for one, other in combinations(self.nodes, 2):
            one.command("CLUSTER", "MEET", "127.0.0.1", other.port)
        wait_until(
            lambda: all(
                {known.port for known in _view(node) if "handshake" not in known.flags}
                == {node.port for node in self.nodes}
                for node in self.nodes
            ),
            "the nodes know each other",
        )
        for primary, replica in zip(self.primaries, self.replicas, strict=False):
            replica.command("CLUSTER", "REPLICATE", node_id(primary))

    def _is_as_planned(self, view: list[_Node]) -> bool:
        """Return whether what a node knows of all nodes is what was arranged."""
        known = {node.port: node for node in view}
        if known.keys() != {node.port for node in self.nodes}:
            return False
        for server, slots in zip(self.primaries, _shares(), strict=True):
            node = known[server.port]
            expected = (f"{slots.start}-{slots.stop - 1}",)
            if not node.is_linked or node.flags != {"master"} or node.slots != expected:
                return False
        for server, primary in zip(self.replicas, self.primaries, strict=False):
            node = known[server.port]
            if not node.is_linked or node.flags != {"slave"}:
                return False
            if node.primary != known[primary.port].ident:
                return False
        return all(is_connected_replica(server) for server in self.replicas)


@dataclass(frozen=True)
class SlotMigration:
    """A slot on its way, made by `ClusterSetup.begin_migration`."""

    cluster: ClusterSetup
    slot: int
    source: Server
    target: Server

    def move_keys(self, limit: int | None = None) -> int:
        """Move keys that the source has in the slot, and return how many were moved.

        Args:
            limit: How many to move at most; None moves all.
        """
        moved = 0
        while limit is None or moved < limit:
            count = _BATCH if limit is None else min(_BATCH, limit - moved)
            keys = self.source.command("CLUSTER", "GETKEYSINSLOT", self.slot, count)
            if not keys:
                break
            self.source.command(
                *("MIGRATE", "127.0.0.1", self.target.port, "", 0, int(PATIENCE * 1000)),
                *("KEYS", *keys),
            )
            moved += len(keys)
        return moved

    def finish(self) -> None:
        """Give the slot to the target; return when all nodes know it.

        Raises:
            RuntimeError: The source still has keys in the slot.
        """
        # It refuses that itself, unless it has heard first that the slot is the target's: then
        # it drops the keys.
        if left := self.source.command("CLUSTER", "COUNTKEYSINSLOT", self.slot):
            raise RuntimeError(f"{left} keys are still to be moved from slot {self.slot}")
        others = [node for node in self.cluster.primaries if node.is_running]
        others = [node for node in others if node not in (self.source, self.target)]
        # NOTE: the target first. If it did not learn of it, nobody would have the slot.
        for node in (self.target, self.source, *others):
            node.command("CLUSTER", "SETSLOT", self.slot, "NODE", node_id(self.target))
        self.cluster.wait_for_owner(self.slot, self.target)


def node_id(node: Server) -> str:
    """Return what a node calls itself in its cluster."""
    ident: bytes = node.command("CLUSTER", "MYID")
    return ident.decode()


def _view(node: Server) -> list[_Node]:
    """Return what a node knows of all nodes."""
    text: bytes = node.command("CLUSTER", "NODES")
    return [_Node.parse(line) for line in text.decode().splitlines()]


def _shares() -> list[range]:
    """Return the slots of each primary at the start."""
    bounds = [SLOTS * number // _PRIMARIES for number in range(_PRIMARIES + 1)]
    return [range(*pair) for pair in pairwise(bounds)]
