"""`run`: measure, print the table, and keep everything in a file."""

import math
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from time import monotonic
from typing import Any

from benchmarks.commands.comparing import print_changes
from benchmarks.comparison import changes_within
from benchmarks.discovery import find_scenarios, find_subjects
from benchmarks.environment import describe_other, file_system_of
from benchmarks.exits import DONE, FAILED, INTERRUPTED
from benchmarks.files import Report, write_report
from benchmarks.interpreter import interpreter_for
from benchmarks.options import CONFIDENCE, THRESHOLD, RunOptions
from benchmarks.plan import Step, choose_scenarios, choose_subjects, make_plan, rounds_of
from benchmarks.progress import shown
from benchmarks.runner import Outcome, Setting, run
from benchmarks.scenario import Scenario
from benchmarks.server import describe_server, server_for
from benchmarks.subject import Subject
from benchmarks.summary import summarize
from benchmarks.table import print_failures, print_tables, print_wrapped

IN_MEMORY = ("tmpfs", "ramfs")
"""File systems that do not outlive the machine's next start."""


def measure(options: RunOptions) -> int:
    """Measure what was asked for, and return the exit code.

    Raises:
        SelectionError: There is nothing of a name that was given, or nothing that fits.
        PreparationError: The interpreter with the peers could not be made.
        ServerError: There is no server to measure with.
        KeyboardInterrupt: Ctrl-C, before anything was measured.
    """
    scenarios, subjects = find_scenarios(), find_subjects()
    plan = _plan(options, scenarios, subjects)
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    needed = chain.from_iterable(subject.requires for step in plan for subject in step.subjects)
    python = interpreter_for(needed, _tell)
    environment = describe_other(python)
    environment["file_system"] = file_system_of(options.directory)
    open_server = server_for(options.redis_url)
    if _any_subject(plan, "on_server"):
        environment["server"] = describe_server(open_server)
    environment["started"] = datetime.now(UTC).isoformat(timespec="minutes")
    started = monotonic()
    setting = Setting(
        python=python,
        directory=options.directory,
        open_server=open_server,
        deadline=started + (options.time_limit or math.inf),
        base=options.base,
    )
    steps = rounds_of(plan, options.rounds)
    with shown(steps) as progress:
        outcome = run(steps, setting, progress)
    environment["seconds"] = round(monotonic() - started, 1)
    report = Report(
        environment=environment,
        options=_recorded(options),
        complete=not (outcome.interrupted or outcome.out_of_time),
        measurements=outcome.measurements,
        failures=outcome.failures,
        rows=summarize(outcome.measurements, subjects),
    )
    if options.json:
        write_report(report, options.json)
    _print(report, plan, scenarios, subjects)
    planned = sum(len(step) for _, step in steps)
    print_wrapped(_closing_line(outcome, plan, planned, options, environment))
    if outcome.interrupted:
        return INTERRUPTED
    return FAILED if outcome.failures else DONE


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _plan(
    options: RunOptions, scenarios: Mapping[str, Scenario], subjects: Mapping[str, Subject]
) -> list[Step]:
    chosen = choose_subjects(subjects, options.backends, peers=options.peers)
    everything = options.peers or options.scale.full
    wanted = choose_scenarios(scenarios, options.scenarios, optional=everything)
    return make_plan(wanted, chosen, options.scale, with_base=options.base is not None)


def _print(
    report: Report,
    plan: Sequence[Step],
    scenarios: Mapping[str, Scenario],
    subjects: Mapping[str, Subject],
) -> None:
    if report.rows:
        print_tables(report.rows, scenarios, subjects)
    if changes := changes_within(report, CONFIDENCE):
        print()
        print_changes(changes, CONFIDENCE, THRESHOLD)
    print_failures(report.failures)
    if report.environment["file_system"] in IN_MEMORY and _any_subject(plan, "in_files"):
        print_wrapped(
            f"The files lay in memory ({report.environment['file_system']}): there an fsync costs "
            "nothing, and a disk has other ratios. --directory puts them elsewhere."
        )


def _any_subject(plan: Sequence[Step], has: str) -> bool:
    return any(getattr(subject, has) for step in plan for subject in step.subjects)


def _closing_line(
    outcome: Outcome,
    plan: Sequence[Step],
    planned: int,
    options: RunOptions,
    environment: Mapping[str, Any],
) -> str:
    done = len(outcome.measurements)
    ended = "interrupted" if outcome.interrupted else "time is up" if outcome.out_of_time else ""
    versions = environment["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in versions)
    files = f"files on {environment['file_system']}; " if _any_subject(plan, "in_files") else ""
    server = f"{environment['server']}; " if "server" in environment else ""
    number = max((one.round for one in outcome.measurements), default=0)
    rounds = "1 round" if number == 1 else f"medians of {'up to ' * bool(ended)}{number} rounds"
    return (
        f"{f'{done} of {planned}' if ended else done} measurements "
        f"in {environment['seconds']:.0f} s{f' ({ended})' if ended else ''}, a fresh process "
        f"each; {rounds} of "
        f"{options.scale.seconds:g} s; "
        f"{environment['implementation']} {environment['python']}, "
        f"{environment['processors']} x {environment['processor']}; "
        f"{files}{server}{packages}."
    )


def _recorded(options: RunOptions) -> dict[str, Any]:
    recorded = asdict(options)
    for name in ("directory", "base", "json"):  # paths, which mean nothing on another machine
        del recorded[name]
    del recorded["redis_url"]  # which may hold a password
    return recorded
