"""`python -m chaos explore`: run it, and print what was covered and found."""

import argparse
import concurrent.futures
import multiprocessing
import secrets
import time
from collections import Counter as Tally
from collections.abc import Iterator

from chaos.explorer.explore import (
    PLANNED,
    Explorer,
    Finding,
    Outcome,
    explore,
    replay,
    text_of,
)
from chaos.explorer.mutants import MUTANTS, REAL
from chaos.explorer.process import deterministic
from chaos.explorer.scenarios import MODES, SCENARIOS
from chaos.explorer.schedule import Verdict

_KINDS = (*PLANNED, "random")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be asked for."""
    parser.add_argument(
        "--schedules", type=int, default=100_000, metavar="N", help="how many (default: 100000)"
    )
    parser.add_argument("--seed", type=int, help="of the random ones (default: drawn, and printed)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument(
        "--mutant",
        metavar="NAME",
        choices=[*MUTANTS, "all"],
        help="explore a faulty protocol, or all of them: " + ", ".join(MUTANTS),
    )
    parser.add_argument(
        "--replay",
        metavar="PLACE",
        help="run one schedule again and print its timeline: SEED:NUMBER, or "
        "SCENARIO/STEP=ALTERNATIVE,... as it was printed",
    )


def main(arguments: argparse.Namespace) -> int:
    """Explore.

    Returns:
        0 if the real protocol is as it should be, or the mutant was found; else 1.
    """
    if arguments.replay:
        return _replay(arguments.replay, arguments.mutant)
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    if arguments.mutant == "all":
        return _explore_mutants(seed, arguments.schedules, arguments.jobs)
    return _explore(seed, arguments.schedules, arguments.jobs, arguments.mutant or "")


def _pool(jobs: int) -> concurrent.futures.ProcessPoolExecutor:
    # Fresh interpreters: a fork would copy event loops and Lua along.
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context)


def _explore(seed: int, schedules: int, jobs: int, mutant: str) -> int:
    began = time.perf_counter()
    whole = Outcome()
    with _pool(jobs) as pool:
        shares = [
            pool.submit(explore, seed, schedules, (part, jobs), mutant) for part in range(jobs)
        ]
        for share in shares:
            whole.add(share.result())
    print("\n".join(_report(whole, seed, jobs, time.perf_counter() - began)))
    for finding in whole.findings:
        print("\n".join(_story(finding, mutant)))
    if mutant:
        print(f"mutant {mutant}: {'found' if whole.findings else 'NOT FOUND'}")
        return 0 if whole.findings else 1
    return 1 if whole.findings else 0


def _report(whole: Outcome, seed: int, jobs: int, seconds: float) -> Iterator[str]:
    by_kind = ", ".join(f"{kind} {whole.kinds[kind]:,}" for kind in _KINDS)
    yield f"seed {seed}, {jobs} jobs, {seconds:.0f} s, {whole.seconds:.0f} s of processor time"
    yield f"{whole.total:,} schedules ({by_kind}), {len(whole.distinct):,} distinct"
    yield f"{whole.steps:,} steps, {whole.steps / max(1, whole.total):.0f} in each"
    singles = sum(n == jobs for name, n in whole.complete.items() if " 1 " in name)
    pairs = [n.split(",")[0] for n, k in whole.complete.items() if k == jobs and " 2 " in n]
    yield f"each single deviation tried in {singles} of {len(SCENARIOS)} scenarios"
    yield f"each pair of deviations tried in: {', '.join(pairs) or 'none'}"
    yield ""
    yield "transitions".ljust(20) + "".join(mode.rjust(12) for mode in (*MODES, "all"))
    total: Tally[str] = Tally()
    for tally in whole.transitions.values():
        total += tally
    rows = [("schedules", whole.schedules), *((name, None) for name, _ in total.most_common())]
    for name, counts in rows:
        in_modes = [
            counts[mode] if counts is not None else whole.transitions.get(mode, Tally())[name]
            for mode in MODES
        ]
        yield name.ljust(20) + "".join(f"{n:12,}" for n in (*in_modes, sum(in_modes)))
    yield ""
    if whole.findings:
        yield f"{len(whole.findings)} schedules with something wrong"
    else:
        bound = 3 / max(1, whole.kinds["random"])
        yield (
            "nothing wrong was found: below "
            f"{bound:.2g} of what is drawn like the random schedules, at 95% (3/N)"
        )


def _story(finding: Finding, mutant: str) -> Iterator[str]:
    explorer = Explorer(MUTANTS[mutant] if mutant else REAL)
    with deterministic():
        smallest = explorer.smallest(finding)
    yield ""
    yield f"found at {finding.place}, after {finding.after:,} schedules of its job"
    yield from _timeline(smallest, mutant)


def _timeline(verdict: Verdict, mutant: str) -> Iterator[str]:
    option = f" --mutant {mutant}" if mutant else ""
    place = text_of(SCENARIOS[verdict.scenario], verdict.deviations)
    yield f"python -m chaos explore{option} --replay '{place}'"
    yield from verdict.trace
    for fault in verdict.faults:
        yield f"WRONG: {fault}"
    if not verdict.faults:
        yield "nothing wrong"


def _replay(place: str, mutant: str | None) -> int:
    verdict = replay(place, MUTANTS[mutant] if mutant else REAL)
    print("\n".join(_timeline(verdict, mutant or "")))
    return 1 if verdict.faults else 0


def _explore_mutants(seed: int, schedules: int, jobs: int) -> int:
    missed = []
    width = max(map(len, MUTANTS))
    print(f"seed {seed}, {jobs} jobs: schedules until each mutant was found")
    with _pool(jobs) as pool:
        outcomes = {name: pool.submit(explore, seed, schedules, (0, 1), name) for name in MUTANTS}
        for name, future in outcomes.items():
            outcome = future.result()
            if not outcome.findings:
                missed.append(name)
                print(f"{name:{width}} {outcome.total:8,} NOT FOUND", flush=True)
                continue
            finding = outcome.findings[0]
            print(
                f"{name:{width}} {outcome.total:8,} {finding.place}: {finding.faults[0][:90]}",
                flush=True,
            )
    print(f"{len(MUTANTS) - len(missed)} of {len(MUTANTS)} mutants found")
    return 1 if missed else 0
