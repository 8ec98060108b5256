"""`Schedule`: one run of a scenario, step by step, in an order that is chosen.

A step is one event:

    turn      a process runs what is ready, once through
    serve     a command reaches the server, and its reply or message is on its way back
    receive   a reply or message reaches its process
    advance   time goes on to the next timer, to the end of a stall or of a hold

and, only where that is chosen, a fault: a connection is cut, and what was on its way to the server
is lost or comes late; it is held up; a message is lost; a process cannot reach the server for a
while, crashes, or stands still; a call is cancelled. Between two turns of a process only its own
input is a choice: whatever happens elsewhere then could as well happen before or after, and nobody
would see a difference.
"""

import dataclasses
from collections import Counter as Tally
from collections.abc import Iterator
from typing import Any, Final

from chaos.explorer.checks import Judge
from chaos.explorer.choices import Choices, Deviations
from chaos.explorer.loop import VirtualTime
from chaos.explorer.network import Connection, Network
from chaos.explorer.process import Operation, Process
from chaos.explorer.scenarios import LOCK_EXPIRATION, Scenario, Step
from chaos.explorer.server import ModelServer
from statemgr import StateManagerRedis

KEY: Final = b"k:{it}"
_SECOND: Final = 1_000_000
_STALLS: Final = tuple(int(f * LOCK_EXPIRATION * _SECOND) for f in (0.4, 1.6))
_HOLDS: Final = (int(0.3 * _SECOND), int(2.6 * _SECOND))  # longer than the client's timeout, too
_LATE: Final = (0, int(2.6 * _SECOND))  # after the lock has expired, too
_APART: Final = int(1.3 * _SECOND)  # longer than the client's timeout, shorter than a lock
_RECOVERY: Final = LOCK_EXPIRATION + 3 * (LOCK_EXPIRATION / 3 + 0.6)  # a lock and claims expire
_MOST_STEPS: Final = 4_000
_MOST_TIME: Final = 130 * _SECOND

Event = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """How a schedule has ended.

    Attributes:
        scenario: Its name.
        deviations: What was chosen.
        faults: What was wrong.
        steps: How many there were.
        tally: How often each transition was made.
        trace: The timeline, if it was asked for.
    """

    scenario: str
    deviations: Deviations
    faults: list[str]
    steps: int
    tally: Tally[str]
    trace: list[str]


class Schedule:
    """Run a scenario once.

    Args:
        scenario: What the processes do.
        server: The server; it is emptied.
        choices: What happens when.
        manager_type: The manager, or a mutant of it.
        most_faults: How many faults there may be.
        traces: Whether to write a timeline.
    """

    def __init__(
        self,
        scenario: Scenario,
        server: ModelServer,
        choices: Choices,
        manager_type: type[StateManagerRedis] = StateManagerRedis,
        *,
        most_faults: int = 3,
        traces: bool = False,
    ) -> None:
        self._scenario = scenario
        self._server = server
        server.reset()
        self._choices = choices
        self._time = VirtualTime()
        self._network = Network()
        self._judge = Judge(scenario.mode)
        self._faults_left = most_faults
        self._trace: list[str] | None = [] if traces else None
        self._processes = [
            Process(
                number, scenario, manager_type, self._time, self._network, self._begin, self._ended
            )
            for number in range(len(scenario.processes))
        ]

    def run(self) -> Verdict:
        """Run it to its end."""
        step = 0
        choices, processes = self._choices, self._processes
        faults = self._judge.faults
        while not faults:
            event = None
            if step >= choices.next_step:
                event = choices.choose(step, self._alternatives)
            step += 1
            if event is None:
                # What is canonical is looked for here first, for most steps are turns.
                for process in processes:
                    if process.loop.ready and not process.stalled_until:
                        process.loop.turn()
                        break
                else:
                    event = self._canonical()
                    if event is None:
                        break
            if event is not None:
                self._do(event)
            if step > _MOST_STEPS or self._time.now > _MOST_TIME:
                faults.append(f"no end after {step} steps, {self._time.seconds()} s")
        judge = self._judge
        if not judge.faults:
            lock = self._server.dump(KEY)
            judge.conclude(
                self._processes, lock[1].get(b"lock") if lock else None, self._time.wall_us()
            )
        for process in self._processes:
            process.loop.dead = True
            process.loop.bury()
        return Verdict(
            self._scenario.name,
            self._choices.made,
            judge.faults,
            step,
            judge.tally,
            self._trace or [],
        )

    # What may happen

    def _canonical(self) -> Event | None:
        now = self._time.now
        for process in self._processes:
            if process.loop.ready and not process.stalled_until:
                return "turn", process
        first: Event | None = None
        place = 1 << 60
        late: Event | None = None
        for connection in self._network.connections:
            to_server, to_client = connection.to_server, connection.to_client
            if to_server and connection.held_until[0] <= now:
                if not connection.is_open:
                    late = late or ("serve", connection)
                elif to_server[0][0] < place:
                    first, place = ("serve", connection), to_server[0][0]
            if to_client and to_client[0][0] < place and connection.held_until[1] <= now:
                first, place = ("receive", connection), to_client[0][0]
        if first is not None or late is not None:
            return first or late
        if all(process.is_over for process in self._processes):
            return None
        due = self._next_due()
        return None if due is None else ("advance", due)

    def _next_due(self) -> int | None:
        """Return when something happens by itself."""
        now = self._time.now
        times: list[int] = []
        for process in self._processes:
            if process.stalled_until:
                times.append(process.stalled_until)
            elif (due := process.loop.next_due()) is not None:
                times.append(due)
        for connection in self._network.connections:
            times += [until for until in connection.held_until if until > now]
        return max(min(times), now) if times else None

    def _alternatives(self) -> list[Event]:
        """Return what else could happen, in an order that is always the same."""
        canonical = self._canonical()
        if canonical is None:
            return []
        faults = self._faults_left > 0
        if canonical[0] == "turn":
            process = canonical[1]
            events: list[Event] = [
                ("receive", connection)
                for connection in self._network.connections
                if connection.to_client
                and connection.owner is process
                and connection.held_until[1] <= self._time.now
            ]
            if faults:
                events.append(("stall", process, _STALLS[-1]))
                events += [("cancel", o) for o in process.current.values() if o.task]
            return events
        return [e for e in self._idle_events(faults) if e != canonical]

    def _idle_events(self, faults: bool) -> Iterator[Event]:
        now = self._time.now
        connections = self._network.connections
        for connection in connections:
            if connection.to_server and connection.held_until[0] <= now:
                yield "serve", connection
            if connection.to_client and connection.held_until[1] <= now:
                yield "receive", connection
        due = self._next_due()
        if due is not None and not all(process.is_over for process in self._processes):
            yield "advance", due
        if not faults:
            return
        for connection in connections:
            if not connection.is_open or not (connection.to_server or connection.to_client):
                continue
            yield "cut", connection
            if connection.to_server:
                for length in _LATE:
                    yield "cut late", connection, length
                for length in _HOLDS:
                    yield "hold", connection, 0, length
            if connection.to_client:
                for length in _HOLDS:
                    yield "hold", connection, 1, length
                if connection.channels:
                    yield "lose", connection
        for process in self._processes:
            if process.is_over or process.stalled_until:
                continue
            yield "crash", process
            if not process.is_apart:
                yield "part", process
            for length in _STALLS:
                yield "stall", process, length
            for operation in process.current.values():
                if operation.task is not None:
                    yield "cancel", operation

    # What happens

    def _do(self, event: Event) -> None:
        if self._trace is not None:
            self._note(event)
        getattr(self, "_do_" + event[0].replace(" ", "_"))(*event[1:])

    def _do_serve(self, connection: Connection) -> None:
        command = connection.to_server.popleft()[1]
        name = command[0]
        if name in (b"EVALSHA", b"EVAL"):
            script = self._server.find(name, command[1])
            if script is None:
                connection.push(b"-NOSCRIPT No matching script.\r\n")
                return
            ran = self._server.run(script, self._time.wall_us(), command[3], *command[4:])
            if self._trace is not None:
                said = b" ".join(ran.reply.split(b"\r\n")).decode(errors="replace")
                self._say(f"    {ran.script} {_text(ran.args)} -> {said} lock: {ran.after!r}")
            self._judge.watch(ran, self._time.wall_us())
            connection.push(ran.reply)
            for channel, message in ran.published:
                data = b"*3\r\n$7\r\nmessage\r\n%b%b" % (_bulk(channel), _bulk(message))
                for listener in self._network.subscribers(channel):
                    listener.push(data)
        elif name == b"SUBSCRIBE":
            if connection.is_open:
                connection.channels.add(command[1])
            connection.push(b"*3\r\n$9\r\nsubscribe\r\n%b:1\r\n" % _bulk(command[1]))
        elif name == b"PING":
            connection.push(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")
        else:
            connection.push(b"-ERR unknown command\r\n")

    def _do_receive(self, connection: Connection) -> None:
        data = connection.to_client.popleft()[1]
        connection.owner.loop.call_soon(connection.protocol.data_received, data)

    def _do_advance(self, due: int) -> None:
        waiting = any(c.to_server or c.to_client for c in self._network.connections)
        if waiting and due > self._time.now:
            self._slow((due - self._time.now) / _SECOND)
        self._time.now = due
        for process in self._processes:
            if process.stalled_until and process.stalled_until <= due:
                process.stalled_until = 0
            if not process.stalled_until:
                process.loop.wake_timers()
        for process in self._processes:
            for operation in process.current.values():
                self._judge.judge_wait(operation, due)

    def _slow(self, seconds: float) -> None:
        """Allow for time that went by although something was on its way."""
        self._judge.give_time(2 * seconds + 0.6)
        if self._judge.grace > LOCK_EXPIRATION / 4:
            self._judge.may_fail = True
            self._judge.give_time(_RECOVERY)

    def _fault(self, name: str, grace: float, *, may_fail: bool = False) -> None:
        self._faults_left -= 1
        self._judge.tally[name] += 1
        self._judge.give_time(grace)
        self._judge.may_fail |= may_fail

    def _do_cut(self, connection: Connection) -> None:
        self._fault("cut", 0.6)
        connection.to_server.clear()
        connection.cut()

    def _do_cut_late(self, connection: Connection, length: int) -> None:
        # What comes late may take a lock that nobody renews, or a place that nobody claims.
        self._fault("cut late", length / _SECOND + 0.6 + _RECOVERY, may_fail=True)
        connection.cut()
        connection.held_until[0] = self._time.now + length

    def _do_hold(self, connection: Connection, direction: int, length: int) -> None:
        self._fault("hold", 2 * length / _SECOND + _RECOVERY, may_fail=True)
        connection.held_until[direction] = self._time.now + length

    def _do_lose(self, connection: Connection) -> None:
        self._fault("lose a message", 0.6)
        connection.to_client.popleft()

    def _do_crash(self, process: Process) -> None:
        self._fault("crash", _RECOVERY)
        process.crash()
        for connection in self._network.connections:
            if connection.owner is process:
                connection.drop()

    def _do_part(self, process: Process) -> None:
        self._fault("part", 2 * _APART / _SECOND + _RECOVERY, may_fail=True)
        process.apart_until = self._time.now + _APART
        for connection in self._network.connections:
            if connection.owner is process and connection.is_open:
                connection.to_server.clear()
                connection.cut()

    def _do_stall(self, process: Process, length: int) -> None:
        self._fault("stall", length / _SECOND + _RECOVERY, may_fail=True)
        process.stalled_until = self._time.now + length

    def _do_cancel(self, operation: Operation) -> None:
        self._fault("cancel", 0.1)
        assert operation.task is not None
        operation.task.cancel()

    # What processes tell

    def _begin(self, process: Process, step: Step) -> Operation:
        operation = Operation(len(self._judge.operations), process, step, self._time.now)
        self._judge.began(operation)
        return operation

    def _ended(self, operation: Operation) -> None:
        operation.ended_at = self._time.now
        self._judge.judge_wait(operation, self._time.now)
        self._judge.ended(operation, self._time.wall_us())
        if self._trace is not None:
            said = f" {operation.error!r}" if operation.error is not None else ""
            self._say(f"    {operation}: {operation.outcome}{said} found {operation.found}")

    # The timeline

    def _note(self, event: Event) -> None:
        if event[0] == "advance":
            text = f"to {(event[1]) / _SECOND:g} s"
        else:
            text = " ".join(str(getattr(e, "name", e)) for e in event[1:])
        self._say(f"{event[0]} {text}")

    def _say(self, text: str) -> None:
        assert self._trace is not None
        self._trace.append(f"{self._time.now / _SECOND:10.6f}  {text}")


def _bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def _text(args: tuple[Any, ...]) -> str:
    return " ".join(a.decode() if a.isascii() and len(a) < 40 else f"<{len(a)}>" for a in args)
