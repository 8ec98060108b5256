"""`Judge`: what has to hold in a schedule, seen from the server and from whoever called.

The server's side is the model's own record of what scripts wrote, read without the manager. A
state is the list of the bodies that made it, so one look at two records in a row tells whether the
second was made from the first.
"""

import math
from collections import Counter as Tally
from typing import TYPE_CHECKING, Final

from chaos.explorer.process import Operation, Process
from chaos.explorer.scenarios import COUNTER, LOCK_EXPIRATION, OTHER, TOKEN_EXPIRATION
from chaos.explorer.server import Ran
from statemgr.backends.redis.keys import class_of
from statemgr.errors import LockTimeoutError
from statemgr.record import RecordCodec

if TYPE_CHECKING:
    from statemgr.token import AnyToken

_TOKENS: Final[dict[bytes, "AnyToken"]] = {
    b"s:" + class_of(COUNTER): COUNTER,
    b"s:" + class_of(OTHER): OTHER,
}
_COUNTER: Final = b"s:" + class_of(COUNTER)
_CODEC: Final = RecordCodec()
_TICK: Final = 0.005  # seconds by which a timeout may be missed: what is stored counts in ms
_PATIENCE: Final = 1.0  # seconds that a call may take if nothing has gone wrong: below what a
# lock needs to expire, so that one that waits for an expiry it should not need is seen


class Lock:
    """What is in a lock field; see keys.py of the backend."""

    __slots__ = ("fence", "owner", "since", "term", "until", "wait")

    def __init__(self, text: bytes | None) -> None:
        if text is None:
            self.owner, self.until, self.term, self.fence = b"", 0, 0, 0
            self.wait: list[bytes] = []
        else:
            parts = text.split(b" ")
            self.owner = parts[0]
            self.until, self.term, self.fence = int(parts[1]), int(parts[2]), int(parts[4])
            self.wait = [part for part in parts[7:] if part]

    def is_held(self, now_ms: int) -> bool:
        """Whether somebody has it, by the server's clock."""
        return bool(self.owner) and self.until > now_ms


class Judge:
    """Watch one schedule.

    Args:
        mode: Of the managers.

    Attributes:
        faults: What is wrong, in the order of being seen.
        tally: How often each kind of transition was made.
        grace: Seconds more that a call may take, for what was done to it and to others.
        may_fail: Whether something was done to this schedule that calls may fail by.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.faults: list[str] = []
        self.tally: Tally[str] = Tally()
        self.operations: list[Operation] = []
        self.grace = 0.0
        self.may_fail = False
        self._acknowledged: set[int] = set()
        self._applied: set[int] = set()  # numbers of all bodies that were ever stored
        self._stored: dict[bytes, list[int]] = {field: [] for field in _TOKENS}
        self._dropped: set[int] = set()  # of the first class, by an expiration
        self._fence = 0
        self._lock = Lock(None)
        self._written_fence = self._written_at = 0
        self._seen: set[tuple[bytes, bytes]] = set()

    # What the server does

    def watch(self, ran: Ran, now_us: int) -> None:
        """Judge what a script has done."""
        now = now_us // 1000
        before, after = Lock(ran.before), Lock(ran.after)
        caller = ran.args[0] if ran.script not in ("read", "describe") else b""
        self._lock = after
        if ran.reply.startswith(b"-"):
            self._fault(f"the server refused {ran.script}: {ran.reply.decode().strip()}")
        if ran.after != ran.before:
            self._watch_lock(ran.script, caller, before, after, now)
        if ran.written:
            self._watch_records(ran, caller, before, now)
        self._count(ran, caller, before, after, now)

    def _watch_lock(self, script: str, caller: bytes, before: Lock, after: Lock, now: int) -> None:
        held = before.is_held(now)
        changed = after.owner != before.owner
        if changed and held and before.owner != caller:
            self._fault(f"{script} of {caller.decode()} took the lock of {before.owner.decode()}")
        if changed and after.owner:
            if after.fence <= self._fence:
                self._fault(f"a grant has fence {after.fence} after {self._fence}")
            if before.wait and after.owner != before.wait[0]:
                self._fault(f"{after.owner.decode()} was served before {before.wait[0].decode()}")
        if after.until > before.until and not changed and after.owner not in (b"", caller):
            self._fault(f"{script} of {caller.decode()} renewed another's lock")
        if after.until - now > LOCK_EXPIRATION * 1000:
            self._fault(f"a lock is held for {after.until - now} ms")
        self._fence = max(self._fence, after.fence)
        if after.wait != before.wait:
            left = [owner for owner in before.wait if owner in after.wait]
            if after.wait[: len(left)] != left or len(set(after.wait)) != len(after.wait):
                self._fault(f"the queue was {before.wait} and is {after.wait}")

    def _watch_records(self, ran: Ran, caller: bytes, before: Lock, now: int) -> None:
        commits = False
        fresh: dict[bytes, list[int]] = {}
        dropped: set[bytes] = set()
        for field, record in ran.written:
            if not field:  # the key has expired
                for name in self._stored:
                    self._expire(name)
                self.tally["ident expired"] += 1
                continue
            token = _TOKENS[field]
            if record is None:
                if ran.script == "commit":
                    self._stored[field] = []
                    dropped.add(field)
                    commits = True
                continue
            commits = True
            stamps = token.deserialize(_CODEC.unpack(record, token.cache_key).payload).stamps
            old = self._stored[field]
            if stamps[: len(old)] != old and now - self._written_at >= TOKEN_EXPIRATION * 1000:
                self._expire(field)
                old = []
            if stamps[: len(old)] != old:
                self._fault(f"{stamps} was written over {old}: a change is lost")
            fresh[field] = stamps[len(old) :]
            self._stored[field] = stamps
            if len(set(stamps)) < len(stamps):
                self._fault(f"{stamps} has a change twice")
        if not commits:
            return
        if before.owner != caller or not before.is_held(now):
            self._fault(f"{caller.decode()} wrote without the lock")
        if before.fence < self._written_fence:
            self._fault(f"fence {before.fence} wrote after {self._written_fence}")
        self._written_fence, self._written_at = before.fence, now
        for field, numbers in fresh.items():
            self._applied.update(numbers)
            for number in numbers:
                operation = self.operations[number]
                if operation.step.kind == "both" and any(
                    number not in fresh.get(other, ()) for other in _TOKENS.keys() - dropped
                ):
                    self._fault(f"{operation} was stored in {field.decode()} alone")

    def _expire(self, field: bytes) -> None:
        if field == _COUNTER:
            self._dropped.update(self._stored[field])
        self._stored[field] = []

    def _count(self, ran: Ran, caller: bytes, before: Lock, after: Lock, now: int) -> None:
        tally, script = self.tally, ran.script
        granted = ran.reply.startswith((b"*2\r\n:1", b"*4\r\n:1", b"*5\r\n:1", b"*3\r\n:1"))
        if script == "acquire":
            if granted:
                if before.owner == caller and before.is_held(now):
                    tally["claim" if before.term != after.term else "acquire again"] += 1
                else:
                    tally["acquire"] += 1
            else:
                tally["queue" if len(after.wait) > len(before.wait) else "look"] += 1
            if before.owner and not before.is_held(now):
                tally["expire"] += 1
        elif script == "commit":
            if not granted:
                tally["refuse"] += 1
            else:
                call = (caller, ran.args[1])
                tally["commit again" if call in self._seen else "commit"] += 1
                self._seen.add(call)
        elif script == "extend":
            tally["renew" if granted else "refuse"] += 1
        else:
            tally[script] += 1
        if after.owner != before.owner and after.owner and after.owner != caller:
            held = before.is_held(now)
            tally["hand over" if held else "pass on expired"] += 1
        if (
            before.owner
            and before.owner != after.owner
            and not before.is_held(now)
            and before.term < LOCK_EXPIRATION * 1000
        ):
            tally["skip a claim"] += 1
        if ran.published:
            tally["message"] += 1

    # What callers see

    def began(self, operation: Operation) -> None:
        """Take note of what a read has to find, and number the call."""
        self.operations.append(operation)
        if operation.step.kind == "read":
            operation.known = frozenset(self._acknowledged)

    def ended(self, operation: Operation, now_us: int) -> None:
        """Judge how a call has ended."""
        kind, number, outcome = operation.step.kind, operation.number, operation.outcome
        self.tally[f"call {outcome}"] += 1
        if outcome == "ok" and kind in ("change", "both"):
            self._acknowledged.add(number)
            if self.mode != "behind" and number not in self._applied:
                self._fault(f"{operation} was acknowledged and is not in the server")
            elif number not in self._applied and not (
                self._lock.is_held(now_us // 1000)
                and self._lock.owner.startswith(operation.process.name.encode() + b".")
            ):
                self._fault(f"{operation} was acknowledged under a lock that was lost")
        elif outcome == "ok" and kind == "read" and operation.found is not None:
            self._judge_read(operation, operation.found)
        elif outcome in ("failed", "uncertain") and not self.may_fail:
            timed_out = outcome == "failed" and operation.step.timeout is not None
            if not timed_out:
                self._fault(f"{operation} ended with {operation.error!r} for no reason")
        if isinstance(operation.error, LockTimeoutError):
            waited = (operation.ended_at - operation.began_at) / 1e6
            if waited < (operation.step.timeout or math.inf) - _TICK:
                self._fault(f"{operation} timed out after {waited:g} s")
        if kind == "close" and operation.error is not None and not self.may_fail:
            self._fault(f"{operation} ended with {operation.error!r} for no reason")

    def _judge_read(self, operation: Operation, found: list[int]) -> None:
        seen = set(found)
        if self.mode != "behind":
            missing = operation.known - seen - self._dropped
            if missing:
                self._fault(f"{operation} did not find {sorted(missing)}, which was acknowledged")
            unknown = seen - self._applied
        else:
            own = {o.number for o in self.operations if o.process is operation.process}
            unknown = seen - self._applied - own
        if unknown:
            self._fault(f"{operation} found {sorted(unknown)}, which was not committed")

    def judge_wait(self, operation: Operation, now_us: int) -> None:
        """Judge how long a call has taken, or takes by now."""
        taken = (now_us - operation.began_at) / 1e6
        if operation.step.timeout is not None:
            allowed = operation.step.timeout + operation.step.seconds + _TICK
        else:
            allowed = _PATIENCE + sum(o.step.seconds for o in self.operations)
        if taken > allowed + self.grace:
            self._fault(f"{operation} took {taken:g} s")

    # The end

    def conclude(self, processes: list[Process], lock: bytes | None, now_us: int) -> None:
        """Judge what is left when all have ended."""
        for operation in self.operations:
            if operation.outcome == "failed" and operation.number in self._applied:
                self._fault(f"{operation} is stored, though it ended with {operation.error!r}")
            if (
                operation.outcome == "cancelled"
                and not operation.left
                and operation.number in self._applied
            ):
                self._fault(f"{operation} was cancelled in its body, and is stored")
        self._judge_acknowledged()
        self._judge_values()
        for process in processes:
            for error in process.loop.errors:
                self._fault(f"a callback of {process.name} raised {error!r}")
            if not process.crashed and process.closes:
                left = [task for task in process.loop.tasks if not task.done()]
                if left:
                    self._fault(f"{process.name} has left {left[0].get_coro()}")
        state = Lock(lock)
        if state.is_held(now_us // 1000) and not self.may_leave(processes):
            self._fault(f"the lock is left to {state.owner.decode()}")
        if state.wait and not self.may_leave(processes):
            self._fault(f"places in the queue are left: {state.wait}")

    def may_leave(self, processes: list[Process]) -> bool:
        """Whether a lock may be left behind, until it expires."""
        return self.may_fail or any(process.crashed for process in processes)

    def _judge_acknowledged(self) -> None:
        for number in sorted(self._acknowledged - self._applied):
            operation = self.operations[number]
            process = operation.process
            if self.mode != "behind" or not (process.crashed or process.failed):
                self._fault(f"{operation} was acknowledged, is lost, and nobody was told")

    def _judge_values(self) -> None:
        """Check the final number of changes, and that no two have made the same."""
        if self._dropped:
            return
        final = len(self._stored[_COUNTER])
        counted = [o for o in self.operations if o.step.kind in ("change", "both")]
        stored = [o for o in counted if o.number in self._acknowledged & self._applied]
        possible = [o for o in counted if o.outcome != "failed"]
        if not len(stored) <= final <= len(possible):
            self._fault(f"{final} changes are there, of {len(stored)} to {len(possible)}")
        values = [len(o.found or ()) for o in stored]
        if len(set(values)) < len(values):
            self._fault("two bodies that were acknowledged began with the same state")

    def _fault(self, text: str) -> None:
        self.faults.append(text)

    def give_time(self, seconds: float) -> None:
        """Let calls take longer."""
        self.grace += seconds
