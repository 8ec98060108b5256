"""`Durability`: what a change waits for beside Redis's own answer.

WAIT and WAITAOF tell what others, or the disk, have of what was written before on the same
connection. So the question goes out right behind the commit. If the commit was refused and sent
again, or one of the two alone on another connection, the answer is about something else.
"""

from collections.abc import Callable
from typing import Any

from statemgr.backends.redis.channel import Channel
from statemgr.backends.redis.grants import Grant
from statemgr.backends.redis.link import Call
from statemgr.errors import BackendUnavailableError, CommitUncertainError


class Durability:
    """Have changes acknowledged by replicas, or by the server's disk.

    Args:
        channel: Where the server is.
        kind: "replicated", "aof", or "off" for neither.
        replicas: How many replicas have to acknowledge a change.
        name: Turns a lock key into what an error message may call it.
    """

    def __init__(
        self, channel: Channel, kind: str, replicas: int, name: Callable[[str], str]
    ) -> None:
        self._channel = channel
        self._kind = kind
        self._replicas = replicas
        self._name = name

    def ask(self, grant: Grant) -> Call | None:
        """Have the server say when others, or its disk, have what was sent before."""
        if self._kind == "off":
            return None
        seconds = self._channel.timeout / 2
        if self._kind == "aof":
            command: tuple[Any, ...] = (b"WAITAOF", 1, 0, round(seconds * 1000))
        else:
            command = (b"WAIT", self._replicas, round(seconds * 1000))
        return self._channel.command(grant.key, *command)

    async def confirm(self, grant: Grant, commit: Call, asked: Call) -> None:
        """Wait for them.

        Args:
            grant: Under which the change was written.
            commit: What has written it.
            asked: What `ask` returned behind that.

        Raises:
            CommitUncertainError: If they do not have it in time, or it cannot be known.
        """
        try:
            reply = await asked.future
        except BackendUnavailableError as error:
            raise self._doubtful(
                grant, f"; whether it would outlive a crash is not known: {error}"
            ) from error.__cause__
        # On another connection than the commit's, or before it, it tells about other writes.
        if commit.was_refused or asked.doubts != commit.doubts:
            why = "it was sent again" if commit.was_refused else "the connection was lost"
            raise self._doubtful(grant, f"; whether it would outlive a crash is not known: {why}")
        copies, needed = (reply[0], 1) if self._kind == "aof" else (reply, self._replicas)
        if copies < needed:
            whose = "its disk" if self._kind == "aof" else f"{copies} of {needed} replicas"
            raise self._doubtful(
                grant, f", but {whose} had it within {self._channel.timeout / 2:g} s"
            )

    def _doubtful(self, grant: Grant, why: str) -> CommitUncertainError:
        return CommitUncertainError(
            f"the change of {self._name(grant.lock_key)} is in Redis{why}",
            lock_key=grant.lock_key,
        )
