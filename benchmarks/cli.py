"""What `python -m benchmarks` does with its options."""

import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from time import monotonic
from typing import Any

from benchmarks.discovery import find_scenarios, find_subjects
from benchmarks.environment import describe_other, file_system_of
from benchmarks.interpreter import PreparationError, interpreter_for
from benchmarks.options import PROGRAM, Options, parse_options
from benchmarks.plan import Step, choose_scenarios, choose_subjects, make_plan
from benchmarks.progress import shown
from benchmarks.report import print_failures, print_tables, print_wrapped, write_json
from benchmarks.runner import Outcome, Setting, run
from benchmarks.scenario import Scenario
from benchmarks.server import ServerError, describe_server, server_for
from benchmarks.subject import Subject
from benchmarks.summary import summarize

IN_MEMORY = ("tmpfs", "ramfs")
"""File systems that do not outlive the machine's next start."""

DONE, FAILED, BAD_OPTIONS, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks.

    Args:
        arguments: The command line without the program; None takes it from `sys.argv`.

    Returns:
        The exit code: 0; 1 if something failed; 2 for bad options; 130 after Ctrl-C.
    """
    options = parse_options(arguments)
    scenarios, subjects = find_scenarios(), find_subjects()
    if options.list:
        _print_list(scenarios, subjects)
        return DONE
    try:
        plan = _plan(options, scenarios, subjects)
    except LookupError as error:
        _complain(error.args[0])
        return BAD_OPTIONS
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _measure(plan, options, scenarios, subjects)
    except (PreparationError, ServerError) as error:
        _complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        _complain("interrupted before anything was measured")
        return INTERRUPTED


def _complain(message: str) -> None:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _print_list(scenarios: Mapping[str, Scenario], subjects: Mapping[str, Subject]) -> None:
    print("scenarios")
    for scenario in scenarios.values():
        optional = "optional" if scenario.optional else ""
        print(f"  {scenario.name:<22} {optional:<15} {scenario.summary}")
    print("subjects")
    for subject in subjects.values():
        role = f"{subject.role}, optional" if subject.optional else subject.role
        print(f"  {subject.name:<22} {role:<15} {subject.summary}")


def _plan(
    options: Options, scenarios: Mapping[str, Scenario], subjects: Mapping[str, Subject]
) -> list[Step]:
    chosen = choose_subjects(subjects, options.backends, peers=options.peers)
    everything = options.peers or options.scale.full
    wanted = choose_scenarios(scenarios, options.scenarios, optional=everything)
    if plan := make_plan(wanted, chosen, options.scale, options.rounds):
        return plan
    raise LookupError("none of these backends offers what these scenarios measure")


def _measure(
    plan: Sequence[Step],
    options: Options,
    scenarios: Mapping[str, Scenario],
    subjects: Mapping[str, Subject],
) -> int:
    needed = chain.from_iterable(subject.requires for step in plan for subject in step.subjects)
    python = interpreter_for(needed, _tell)
    environment = describe_other(python)
    environment["file_system"] = file_system_of(options.directory)
    open_server = server_for(options.redis_url)
    if _any_subject(plan, "on_server"):
        environment["server"] = describe_server(open_server)
    started = monotonic()
    with shown(plan) as progress:
        outcome = run(plan, Setting(python, options.directory, open_server), progress)
    rows = summarize(outcome.measurements, subjects)

    if rows:
        print_tables(rows, scenarios)
    print_failures(outcome.failures)
    if environment["file_system"] in IN_MEMORY and _any_subject(plan, "in_files"):
        print_wrapped(
            f"The files lay in memory ({environment['file_system']}): there an fsync costs "
            "nothing, and a disk has other ratios. --directory puts them elsewhere."
        )
    print_wrapped(_closing_line(outcome, plan, options, environment, monotonic() - started))
    if options.json:
        write_json(options.json, outcome, rows, environment, _recorded(options))
    if outcome.interrupted:
        return INTERRUPTED
    return FAILED if outcome.failures else DONE


def _any_subject(plan: Sequence[Step], has: str) -> bool:
    return any(getattr(subject, has) for step in plan for subject in step.subjects)


def _closing_line(
    outcome: Outcome,
    plan: Sequence[Step],
    options: Options,
    environment: Mapping[str, Any],
    seconds: float,
) -> str:
    planned = sum(len(step) for step in plan)
    versions = environment["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in versions)
    done = len(outcome.measurements)
    files = f"files on {environment['file_system']}; " if _any_subject(plan, "in_files") else ""
    server = f"{environment['server']}; " if "server" in environment else ""
    rounds = "1 round" if options.rounds == 1 else f"medians of {options.rounds} rounds"
    return (
        f"{f'{done} of {planned}, interrupted:' if outcome.interrupted else done} measurements "
        f"in {seconds:.0f} s, a fresh process each; {rounds} of "
        f"{options.scale.seconds:g} s; "
        f"{environment['implementation']} {environment['python']}, "
        f"{environment['processors']} x {environment['processor']}; "
        f"{files}{server}{packages}."
    )


def _recorded(options: Options) -> dict[str, Any]:
    recorded = asdict(options)
    del recorded["json"], recorded["list"], recorded["redis_url"]  # which may hold a password
    recorded["directory"] = str(options.directory)
    return recorded
