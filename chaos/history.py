"""What each process did, as it wrote it down: a line before each call, and one after it.

A process may be killed at any moment. What it has handed to the kernel by then is in the file, so
each line is written at once, without a buffer: an invoke before the call is made, a return before
anything else is done. An operation without a return was under way when its process was killed,
and may or may not have happened.

A file has three kinds of lines, whose times are nanoseconds of CLOCK_MONOTONIC, which all
processes of a machine share. A `-` stands for what is not there:

    i NUMBER TIME KIND TOKEN VALUE EXPECTED    an operation is about to begin
    b NUMBER ENTERED SEEN VALUE                its body has seen a state, and leaves another one
    r NUMBER TIME OUTCOME SEEN ERROR           it has ended
"""

import os
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Kind(StrEnum):
    """What is done: to a counter the first two, to a register the others."""

    ADD = "add"  # one, under the lock
    LOOK = "look"
    WRITE = "write"  # a value that nobody else writes, whatever is there
    CHANGE = "change"  # the same if the value is an expected one, under the lock
    READ = "read"


class Outcome(StrEnum):
    """How an operation has ended."""

    OK = "ok"
    FAILED = "failed"  # it did nothing, said the manager
    UNCERTAIN = "uncertain"  # it may have happened, or may yet happen
    BROKEN = "broken"  # with an error that must not be, as one that says that bytes are damaged


@dataclass(slots=True)
class Operation:
    """One call of a manager.

    Attributes:
        worker: Which process made it; one that was started again is another one.
        kind: What it does.
        token: The number of its token.
        invoked: When it began.
        returned: When it ended; None if its process was killed before.
        outcome: How it ended.
        value: What it leaves there; None if it changes nothing, or did not get so far.
        expected: What a change expects to find.
        seen: What it has found there; None if it did not look.
        entered: When its body began.
        error: The class of the error that it ended with.
    """

    worker: int
    kind: Kind
    token: int
    invoked: int
    returned: int | None = None
    outcome: Outcome = Outcome.UNCERTAIN
    value: int | None = None
    expected: int | None = None
    seen: int | None = None
    entered: int | None = None
    error: str = "Killed"


class Recorder:
    """Write a history, so that a kill loses nothing that was written."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._number = 0

    def invoke(
        self, kind: Kind, token: int, value: int | None = None, expected: int | None = None
    ) -> int:
        """Write that an operation is about to begin; return its number."""
        self._number += 1
        now = time.monotonic_ns()
        self._write(f"i {self._number} {now} {kind} {token} {_text(value)} {_text(expected)}\n")
        return self._number

    def body(self, number: int, entered: int, seen: int, value: int | None) -> None:
        """Write what a body has seen and leaves, before that is saved."""
        self._write(f"b {number} {entered} {seen} {_text(value)}\n")

    def end(self, number: int, outcome: Outcome, seen: int | None = None, error: str = "-") -> None:
        """Write how an operation has ended."""
        self._write(f"r {number} {time.monotonic_ns()} {outcome} {_text(seen)} {error}\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(self, line: str) -> None:
        os.write(self._file, line.encode())


def read_history(path: Path, worker: int) -> list[Operation]:
    """Read what a process has written. Its last line may be cut off, and then does not count."""
    operations: dict[str, Operation] = {}
    lines = path.read_text().split("\n")[:-1]
    for line in lines:
        kind, number, *words = line.split(" ")
        if kind == "i":
            operations[number] = Operation(
                worker=worker,
                invoked=int(words[0]),
                kind=Kind(words[1]),
                token=int(words[2]),
                # What an uncertain change leaves is known when its body has ended.
                value=_number(words[3]) if words[1] == Kind.WRITE else None,
                expected=_number(words[4]),
            )
        elif kind == "b":
            one = operations[number]
            one.entered, one.seen, one.value = int(words[0]), int(words[1]), _number(words[2])
        else:
            one = operations[number]
            one.returned, one.outcome, one.error = int(words[0]), Outcome(words[1]), words[3]
            if words[2] != "-":
                one.seen = int(words[2])
    return list(operations.values())


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


def _number(word: str) -> int | None:
    return None if word == "-" else int(word)
