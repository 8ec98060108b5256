"""Carries a plan out: a fresh process per measurement, one at a time."""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Protocol

from benchmarks.files import point_of
from benchmarks.paths import ROOT
from benchmarks.plan import Step
from benchmarks.results import Case, Failure, Measurement, Point
from benchmarks.scenario import Scenario
from benchmarks.server import VARIABLE, OpenServer, ServerError
from benchmarks.subject import Subject

TIME_LIMIT = 900.0
"""Seconds after which a measurement, with all its preparation, is given up."""

GRACE = 2.0
"""Seconds that a child has to end what it started, once it is told to."""


class Progress(Protocol):
    """What is told how far the run is."""

    def begin(self, number: int, step: Step) -> None:
        """A step of a round starts."""

    def advance(self, subject: Subject) -> None:
        """A measurement of the step starts."""

    def end(self, step: Step) -> None:
        """A step is done."""


@dataclass(slots=True)
class Outcome:
    """What a run brought, complete or not.

    Attributes:
        measurements: In the order in which they were made.
        failures: Those that gave no result.
        interrupted: Whether it was ended by Ctrl-C.
        out_of_time: Whether it was ended by the time limit.
    """

    measurements: list[Measurement] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False
    out_of_time: bool = False


class ChildError(Exception):
    """A child ended without a result; the text is the last line it wrote about it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all measurements of a run have in common.

    Attributes:
        python: The interpreter for the children.
        directory: Where the children's temporary files lie.
        open_server: Makes a server ready for one measurement.
        deadline: The `monotonic()` time after which nothing is begun.
        base: Another checkout whose statemgr is measured too.
    """

    python: str
    directory: Path
    open_server: OpenServer
    deadline: float = math.inf
    base: Path | None = None


def run(steps: Sequence[tuple[int, Step]], setting: Setting, progress: Progress) -> Outcome:
    """Measure everything in a plan.

    A round goes through the whole plan: what is slow for a minute is slow in one round of some
    cases, and who ends the run early has all of the earlier rounds.

    `KeyboardInterrupt` ends the run and is not passed on: the running child is ended, and what
    was measured before is returned.

    Args:
        steps: What to measure, as `rounds_of` lays it out.
        setting: With what to measure it.
        progress: Told about every measurement.
    """
    outcome = Outcome()
    try:
        for number, step in steps:
            progress.begin(number, step)
            for subject, base in step.turns(number):
                if monotonic() > setting.deadline:
                    outcome.out_of_time = True
                    return outcome
                progress.advance(subject)
                _measure(setting, step, subject, number, base, outcome)
            progress.end(step)
    except KeyboardInterrupt:
        outcome.interrupted = True
    return outcome


def _measure(
    setting: Setting, step: Step, subject: Subject, number: int, base: bool, outcome: Outcome
) -> None:
    """Measure one subject and add what comes of it to the outcome."""
    try:
        points = measure_in_child(setting, step.scenario, step.case, subject, base=base)
    except ChildError as error:
        outcome.failures.append(Failure(step.case, subject.name, number, str(error), base))
    else:
        outcome.measurements.append(Measurement(step.case, subject.name, number, points, base))


def measure_in_child(
    setting: Setting, scenario: Scenario, case: Case, subject: Subject, *, base: bool = False
) -> tuple[Point, ...]:
    """Measure one case on one subject in a fresh process.

    Args:
        setting: With what to measure it.
        scenario: What to measure.
        case: How.
        subject: On what.
        base: Whether to measure the statemgr of the other checkout.

    Raises:
        ChildError: The process failed, took longer than `TIME_LIMIT`, or had no server.
    """
    job = {
        "scenario_module": scenario.module,
        "subject_module": subject.module,
        "subject": subject.name,
        "case": asdict(case),
    }
    command = [setting.python, "-m", "benchmarks.worker", json.dumps(job)]
    try:
        with (
            _server_for(subject, setting.open_server) as server,
            _temporary_directory(setting.directory) as temporary,
            _other_package(setting.base if base else None) as package,
            _child(command, {"TMPDIR": temporary, **server, **package}) as child,
        ):
            output = _output_of(child)
    except ServerError as error:
        raise ChildError(str(error)) from error
    return tuple(point_of(fields) for fields in json.loads(output.splitlines()[-1])["points"])


def _output_of(child: subprocess.Popen[str]) -> str:
    try:
        output, errors = child.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        raise ChildError(f"took longer than {TIME_LIMIT:g} s") from None
    if child.returncode != 0:
        lines = errors.strip().splitlines()
        raise ChildError(lines[-1] if lines else f"exit code {child.returncode}")
    return output


@contextlib.contextmanager
def _server_for(subject: Subject, open_server: OpenServer) -> Iterator[dict[str, str]]:
    """Have a server if a subject needs one; give the environment that tells where it is."""
    if not subject.on_server:
        yield {}
        return
    server = contextlib.ExitStack()
    try:
        with _interrupts_held_back():
            url = server.enter_context(open_server())
        yield {VARIABLE: url}
    finally:
        with _interrupts_held_back():
            server.close()


@contextlib.contextmanager
def _temporary_directory(parent: Path) -> Iterator[str]:
    """Make a directory for a child's temporary files, and remove it with all of them.

    Not left to the child: it may be killed.
    """
    temporary = None
    try:
        with _interrupts_held_back():
            temporary = tempfile.mkdtemp(prefix="statemgr-benchmark-", dir=parent)
        yield temporary
    finally:
        if temporary is not None:
            with _interrupts_held_back():
                shutil.rmtree(temporary)


@contextlib.contextmanager
def _other_package(checkout: Path | None) -> Iterator[dict[str, str]]:
    """Give the environment in which a child, and its own children, import another statemgr.

    The scenarios stay ours: what measures the two is the same.
    """
    if checkout is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="statemgr-base-") as place:
        Path(place, "statemgr").symlink_to(checkout / "statemgr")
        yield {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{place}{os.pathsep}{ROOT}"}


@contextlib.contextmanager
def _child(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Start a child in a session of its own, and leave no process of it behind.

    In its own session a Ctrl-C at the terminal reaches only this process, which then ends the
    child together with whatever the child has started.
    """
    child = None
    try:
        with _interrupts_held_back():
            child = subprocess.Popen(  # noqa: S603 (our own worker)
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        yield child
    except BaseException:
        if child is not None:
            _end(child)
        raise


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Raise `KeyboardInterrupt` after the block, not in it, even if the block raises another error.

    While a process is being started there is a moment at which it runs and nobody has its id:
    an exception then would leave it running.
    """
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [
        signal.signal(number, lambda number, _: caught.append(number)) for number in numbers
    ]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        if caught:
            raise KeyboardInterrupt


def _end(child: subprocess.Popen[str]) -> None:
    """Let a child's session finish within `GRACE`, then kill what is left of it."""
    try:
        _signal(child, signal.SIGINT)
        child.communicate(timeout=GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal(child, signal.SIGKILL)
        child.wait()


def _signal(child: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)
