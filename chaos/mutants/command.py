"""The command line of `python -m chaos mutants`, and its table."""

import argparse
import contextlib
import hashlib
import logging
import math
import multiprocessing
import os
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from chaos.mutants.catalogue import catalogue
from chaos.mutants.checking import (
    Finding,
    by_cancels,
    by_the_explorer,
    by_the_kit,
    by_the_model,
    explored_name,
    only_explored,
)

_EXPLORED = "protocol/"  # mutants that only the explorer has
_TIME = 480.0  # seconds, so that a run ends within ten minutes


@dataclass(frozen=True)
class Verdict:
    """What has become of one mutant.

    Attributes:
        label: Which one.
        promise: What it breaks.
        findings: Each way of looking for it, and how that has ended.
    """

    label: str
    promise: str
    findings: tuple[Finding, ...]

    @property
    def found(self) -> bool:
        """Whether anything has found it."""
        return any(finding.by is not None for finding in self.findings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--seed", type=int, help="what orders are made by; drawn unless given")
    parser.add_argument(
        "--time",
        type=float,
        default=_TIME,
        metavar="SECONDS",
        help="after these each mutant that is left is tried by the test it is named with only "
        f"({_TIME:g})",
    )
    parser.add_argument("--only", action="append", metavar="TEXT", help="whose name has this in it")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="at a time")


def main(arguments: argparse.Namespace) -> int:
    """Run the command; return 1 if a mutant was not found."""
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    labels = [
        label for label in all_labels() if any(text in label for text in arguments.only or [""])
    ]
    print(f"{len(labels)} mutants, seed {seed}", flush=True)
    started = time.monotonic()
    verdicts = []
    for verdict in _run(labels, seed, started + arguments.time, arguments.jobs):
        verdicts.append(verdict)
        state = "found" if verdict.found else "NOT FOUND"
        print(f"[{len(verdicts):>3}] {verdict.label}: {state}", flush=True)
    verdicts.sort(key=lambda verdict: labels.index(verdict.label))
    print()
    Console(width=140).print(table(verdicts))
    missed = [verdict.label for verdict in verdicts if not verdict.found]
    print(
        f"\n{len(verdicts) - len(missed)} of {len(verdicts)} found in "
        f"{time.monotonic() - started:.0f} s; seed {seed}, verdict {digest(verdicts)}"
    )
    for label in missed:
        print(f"  not found: {label}")
    return 1 if missed or not verdicts else 0


def all_labels() -> list[str]:
    """Return what all mutants are called: those of the catalogue, and the explorer's own."""
    return [*catalogue(), *(_EXPLORED + name for name in only_explored())]


def look(label: str, seed: int, until: float | None = None) -> Verdict:
    """Look for one mutant in every way that there is for it.

    Args:
        label: Which one.
        seed: Makes the orders.
        until: The monotonic time after which nothing is done but what is sure to find it.
    """
    quiet()
    if label.startswith(_EXPLORED):
        found = by_the_explorer(label.removeprefix(_EXPLORED), seed)
        return Verdict(label, "1 to 5: of the protocol", (found,))
    mutant = catalogue()[label]
    findings = [by_the_kit(mutant, seed, until)]

    def in_time() -> bool:
        return until is None or time.monotonic() < until

    if mutant.by_model and in_time():
        findings.append(by_the_model(mutant, seed))
    if mutant.by_cancels and in_time():
        findings.append(by_cancels(mutant))
    explored = explored_name(mutant)
    if explored is not None and in_time():
        findings.append(by_the_explorer(explored, seed, until or math.inf))
    return Verdict(label, mutant.promise.value, tuple(findings))


def quiet() -> None:
    """Say nothing of what mutants log, or leave behind."""
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")


def digest(verdicts: Sequence[Verdict]) -> str:
    """Return a short text that is the same for the same mutants found."""
    text = ",".join(sorted(f"{verdict.label}={verdict.found}" for verdict in verdicts))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _run(labels: Sequence[str], seed: int, until: float, jobs: int) -> Iterator[Verdict]:
    if jobs <= 1:
        yield from (look(label, seed, until) for label in labels)
        return
    # Started anew, not forked: what mutants change in a process stays in it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        # Those that take longest first.
        order = sorted(labels, key=lambda label: not label.startswith((_EXPLORED, "redis")))
        futures = [pool.submit(look, label, seed, until) for label in order]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            with contextlib.suppress(Exception):
                pool.shutdown(cancel_futures=True)
            raise


def table(verdicts: Sequence[Verdict]) -> Table:
    """Return what has found each mutant, after how much, and how long that took."""
    found = Table(box=box.SIMPLE_HEAD)
    for name in ("mutant", "promise", "way", "found by"):
        found.add_column(name, overflow="fold")
    for name in ("after", "seconds"):
        found.add_column(name, justify="right")
    for verdict in verdicts:
        promise = verdict.promise.partition(":")[0]
        for number, finding in enumerate(verdict.findings):
            found.add_row(
                "" if number else verdict.label,
                "" if number else promise,
                finding.way,
                finding.by or "-",
                f"{finding.operations} {finding.unit}",
                f"{finding.seconds:.1f}",
            )
    return found
